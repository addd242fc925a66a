"""What a run survives: kills at random moments, damaged and foreign files, full disks, no permission, company.

    python benchmarks/faults.py --kills 200 --damages 300 --rest 40

A small run of digits is made once, undisturbed, and once with another seed. Then, trial after trial:

- kill: the same run, its process group ended by SIGKILL, SIGTERM, SIGINT or SIGHUP in a random stage, and repeated
  until it ends by itself: every file must be that of the undisturbed run, but for clocks;
- damage: a file of a finished or half-finished run is altered, then a command is given: it must refuse (status 2, the
  file and a remedy named) or give what it gives without the damage. The remedy is followed where it is a command or
  the removal of the file, and must lead to the undisturbed outcome;
- rest: files that may not grow, a folder of another user, two commands at once, images that change meanwhile.

A trial depends on its kind, its number and --seed alone; what is in --state is not done again. Commands run in forks of
this process, which has imported everything; a tenth of the kills in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imbdiff.cli import main as command_line
from imbdiff.runtime.files import sha256_file
from results_file import write_result

OPTIONS = shlex.split(
    "--preset tiny --device cpu --data.imbalance_factor 20 --train.images 192 --train.batch_size 16 "
    "--train.checkpoint_images 48 --train.preview_images 96 --train.warmup_images 0 --sample.steps 3 "
    "--sample.batch_size 16 --sample.strategy 0.2 --curate.policy no-copies --evaluate.no-cas --classify.steps 6 "
    "--classify.batch_size 16 --classify.seeds 1 --classify.ensemble 0 --classify.synthetic_prior train "
    "--classify.recipes ce --quiet"
)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
STAGES = ("data", "train", "sample", "curate", "evaluate", "classify")
CLOCKS = ("seconds", "checksum", "log.jsonl")
#: files from which work goes on, and what has to be lost for them to be read
KEPT = {
    "checkpoints/": "model/model.safetensors", "features/": "metrics.json", "judge/": "metrics.json",
    "classifier/[^/]*.safetensors": "classifier/results.json", "curation/working": "curation/manifest.json",
    "previews/": "", "classifier/logs/": "",
}  # fmt: skip
NOT_COMPARED = (".lock", ".allowed")
VERBS = ("run", "run", "report", "report", "sample", "predict", "compare")


# -- commands


def start(words: Sequence[str], log: Path, before: Callable[[], None] | None = None) -> int:
    """A command in a fork, the leader of its own process group; what it prints goes into `log`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        if before is not None:
            before()
        code = command_line(list(words))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Its exit status; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def give(words: Sequence[str], log: Path, before: Callable[[], None] | None = None) -> tuple[int, str]:
    """A command to its end: status and what it printed."""
    code = ended(start(words, log, before))
    return code, log.read_text(errors="replace")


def run_words(out: Path, source: str = "digits", seed: int = 0) -> list[str]:
    return ["run", source, "--out", str(out), "--seed", str(seed), *OPTIONS]


# -- what came out


def plain(value: Any) -> Any:
    """JSON without clocks."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in CLOCKS}
    return [plain(v) for v in value] if isinstance(value, list) else value


def content(folder: Path) -> dict[str, str]:
    """Every file of a run by its hash, those with clocks by what they say without."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name in NOT_COMPARED:
            continue
        key = str(path.relative_to(folder))
        found[key] = sha256_file(path)
        try:
            if path.suffix == ".json":
                found[key] = json.dumps(plain(json.loads(path.read_text())))
            elif path.suffix == ".jsonl":
                found[key] = json.dumps([plain(json.loads(line)) for line in path.read_text().splitlines()])
            elif path.suffix == ".html":
                text = re.sub(r'\d[\d.,]*\s?(s|min|h|ms)\b|class="bar" style="[^"]*"', "", path.read_text())
                found[key] = text.replace(str(folder), "RUN")
        except ValueError:
            pass
    return found


def apart(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in {**one, **other} if one.get(name) != other.get(name))


class Trials:
    """The folders, and the undisturbed outcome."""

    def __init__(self, state: Path, seed: int) -> None:
        self.state, self.seed = state, seed
        state.mkdir(parents=True, exist_ok=True)
        self.log, self.work = state / "said.txt", state / "work"
        self.whole, self.other, self.half = (state / name for name in ("whole", "other", "half"))
        self.images = state / "images"
        self.said: dict[str, Any] = {}

    def prepare(self) -> None:
        for folder, seed in ((self.whole, 0), (self.other, 1)):
            if not (folder / "report.html").exists():
                shutil.rmtree(folder, ignore_errors=True)
                code, text = give(run_words(folder, seed=seed), self.log)
                assert code == 0, text
        if not self.half.exists():
            making = self.state / "making"
            shutil.rmtree(making, ignore_errors=True)
            child = start(run_words(making), self.log)
            while len(list((making / "checkpoints").glob("*/ckpt-*/meta.json"))) < 2:
                time.sleep(0.002)
            os.killpg(child, signal.SIGKILL)
            ended(child)
            making.rename(self.half)
        marks = json.loads((self.whole / "stages.json").read_text())
        self.seconds = {stage: float(mark["seconds"]) for stage, mark in marks.items()}
        self.expected = content(self.whole)
        for verb in set(VERBS) - {"run"}:
            self.copy(self.whole)
            code, text, out = self.command(verb)
            assert code == 0, text
            self.said[verb] = out

    def copy(self, folder: Path) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(folder, self.work)

    def command(self, verb: str) -> tuple[int, str, Any]:
        """Gives `verb` on the folder at work: status, words, and what it left, to be compared."""
        page, table = self.state / "page.html", self.state / "table.csv"
        page.unlink(missing_ok=True)
        table.unlink(missing_ok=True)
        words = {
            "run": run_words(self.work), "report": ["report", str(self.work), "--quiet"],
            "sample": ["sample", str(self.work), "--quiet"],
            "predict": ["predict", str(self.work), str(self.whole / "samples"), "--out", str(table), "--quiet"],
            "compare": ["compare", str(self.work), str(self.other), "--out", str(page)],
        }[verb]  # fmt: skip
        code, text = give(words, self.log)
        if verb == "predict":
            return code, text, table.read_text() if table.exists() else None
        if verb == "compare":
            return code, text, content(self.state).get("page.html")
        found = content(self.work)
        shown = {k: v for k, v in found.items() if verb != "report" or k == "report.html"}
        return code, text, {k: v for k, v in shown.items() if verb != "sample" or k.startswith("samples/")}

    # -- kills

    def kill(self, chance: random.Random) -> dict[str, Any]:
        """One run that is killed some times and ends; how often, where, and what differs."""
        shutil.rmtree(self.work, ignore_errors=True)
        fell: Counter[str] = Counter()
        problems = []
        for attempt in range(40):
            own = chance.random() < 0.1
            if own:
                words = [sys.executable, "-m", "imbdiff", *run_words(self.work)]
                with open(self.log, "w") as out:
                    process = subprocess.Popen(words, start_new_session=True, stdout=out, stderr=out)
                child = process.pid
            else:
                child = start(run_words(self.work), self.log)
            number = chance.choice(SIGNALS)
            at = self._wait(child, chance) if attempt < 8 else None
            if at is not None:
                os.killpg(child, number)
            code = ended(child)
            text = self.log.read_text(errors="replace")
            if code == 0:
                break
            fell[f"{at or 'end'} {number.name}{' process' if own else ''}"] += 1
            polite = code in (-number, 128 + number) and "Traceback" not in text
            if at is None or not polite:
                problems.append(f"{at} {number.name}: status {code}: {text[-600:]}")
        else:
            problems.append("it never ended")
        return {"fell": dict(fell), "differ": apart(content(self.work), self.expected), "problems": problems}

    def _wait(self, child: int, chance: random.Random) -> str | None:
        """Waits for a random moment of a stage that is still to come; the stage, or None where the command is over."""
        begun = time.monotonic()
        stages = self.work / "stages.json"

        def done() -> set[str]:
            try:
                return set(json.loads(stages.read_text()))
            except (OSError, ValueError):
                return set()

        aim = chance.choice([s for s in STAGES if s not in done()] or ["report"])
        before = STAGES[: STAGES.index(aim)] if aim in STAGES else STAGES
        while not set(before) <= done():
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) or time.monotonic() - begun > 120:
                return None
            time.sleep(0.002)
        time.sleep(chance.uniform(0, max(0.3, self.seconds.get(aim, 0.3))))
        over = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if over else next((s for s in STAGES if s not in done()), "report")

    # -- damage

    def damage(self, chance: random.Random) -> dict[str, Any]:
        state = "half" if chance.random() < 0.2 else "whole"
        verb = "run" if state == "half" else chance.choice(VERBS)
        self.copy(getattr(self, state))
        names = [str(p.relative_to(self.work)) for p in sorted(self.work.rglob("*")) if p.is_file()]
        kinds: dict[str, list[str]] = {}
        for name in names:
            if Path(name).name not in NOT_COMPARED:
                kinds.setdefault(re.sub(r"[0-9a-f]{8,}|\d+", "N", name), []).append(name)
        kind = chance.choice(sorted(kinds))
        name = chance.choice(kinds[kind])
        how = chance.choice(sorted(DAMAGES))
        if not DAMAGES[how](self.work / name, self.other / name, chance):
            return {"outcome": "no damage"}
        lost = next((lost for start, lost in KEPT.items() if re.match(start, name)), None)
        if lost and state == "whole" and chance.random() < 0.6:  # so that what is kept is needed
            (self.work / lost).unlink(missing_ok=True)
            verb = "run"
        found = {"state": state, "file": kind, "damage": how, "verb": verb}
        code, text, out = self.command(verb)
        if "Traceback" in text or code not in (0, 2):
            return {**found, "outcome": "traceback", "name": name, "said": text[-900:]}
        if code == 2:
            found |= self._refused(verb, name, text)
        else:
            differ = self._differ(verb, out)
            unread = differ == [name] and lost is not None
            found |= {"outcome": "unread" if unread else "silent" if differ else "equal", "differ": differ[:6]}
        return found if found["outcome"] in ("equal", "unread", "refused") else {**found, "name": name}

    def _differ(self, verb: str, out: Any) -> list[str]:
        """In what the outcome of a verb is not that of the undisturbed run."""
        expected = self.expected if verb == "run" else self.said[verb]
        if isinstance(out, dict):
            return apart(out, expected)
        return [] if out == expected else [verb]

    def _refused(self, verb: str, name: str, text: str) -> dict[str, Any]:
        """Follows the remedy of a refusal."""
        named = any(
            str(place) in text for place in (self.work / name, *(self.work / name).parents) if place != self.state
        )
        if not named or "\n  -> " not in text:
            return {"outcome": "unclear", "said": text[-600:]}
        remedy = text.split("\n  -> ")[-1]
        advice, removal = re.search(r"`imbdiff (.*)`", remedy), re.search(r"(\S+) (is damaged|was altered|is a )", text)
        for _ in range(3):
            if advice is not None:
                give([*shlex.split(advice[1]), "--quiet"], self.log)
            elif removal is not None and ("remove it" in remedy or "move it away" in remedy):
                place = Path(removal[1].removeprefix("error:").strip())
                shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
                give(run_words(self.work), self.log)
            code, again, out = self.command(verb)
            if code == 0:
                differ = self._differ(verb, out)
                if name == "environment.json":  # what did the stages cannot be known again
                    differ = [file for file in differ if file not in (name, "report.html")]
                return {"outcome": "refused" if not differ else "remedy differs", "differ": differ[:6]}
            remedy = again.split("\n  -> ")[-1]
            advice = re.search(r"`imbdiff (.*)`", remedy)
            removal = re.search(r"(\S+) (is damaged|was altered|is a )", again)
        return {"outcome": "remedy fails", "said": text[-600:] + again[-600:]}

    # -- the rest

    def rest(self, chance: random.Random) -> dict[str, Any]:
        shutil.rmtree(self.work, ignore_errors=True)
        what = chance.choice(["limit", "user", "two", "source"])
        problems = getattr(self, f"_{what}")(chance)
        return {"what": what, "problems": problems}

    def _finish(self, expected: dict[str, str], source: str = "digits") -> list[str]:
        code, text = give(run_words(self.work, source), self.log)
        differ = apart(content(self.work), expected) if code == 0 else []
        return [f"status {code}: {text[-600:]}"] * (code != 0) + differ[:6]

    def _limit(self, chance: random.Random) -> list[str]:
        """No file may grow beyond a random size, as on a disk without space."""
        size = int(10 ** chance.uniform(2, 6))
        limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))  # noqa: E731
        code, text = give(run_words(self.work), self.log, limit)
        bad = [f"{size} bytes: status {code}: {text[-600:]}"] if code not in (0, 2) or "Traceback" in text else []
        return bad + self._finish(self.expected)

    def _user(self, chance: random.Random) -> list[str]:
        """Another user may read, or not even that, and not write."""
        if os.getuid() != 0:
            return []
        self.copy(self.whole)
        for path in (self.state, *self.state.parents):
            if path.stat().st_mode & 0o5 != 0o5:
                return []
        if chance.random() < 0.7:
            chance.choice(sorted(p for p in self.work.rglob("*") if p.is_file())).chmod(0)
        verb = chance.choice(["run", "report", "sample"])
        words = run_words(self.work) if verb == "run" else [verb, str(self.work)]
        code, text = give(words, self.log, lambda: os.setuid(65534))
        return [] if code == 2 and "Traceback" not in text and "\n  -> " in text else [f"{verb} {code}: {text[-600:]}"]

    def _two(self, chance: random.Random) -> list[str]:
        first = start(run_words(self.work), self.log)
        time.sleep(chance.uniform(0, 3))
        code, text = give(run_words(self.work), self.state / "second.txt")
        codes = [ended(first), code]
        fine = codes in ([0, 2], [2, 0]) or codes == [0, 0]  # the first was over
        return ([] if fine and "Traceback" not in text else [f"{codes}: {text[-600:]}"]) + self._finish(self.expected)

    def _source(self, chance: random.Random) -> list[str]:
        """An image of a folder is lost, cut or another one while the run works; then it is put right."""
        if not self.images.exists():
            for k, n in enumerate((40, 16)):
                for i in range(n):
                    place = self.images / "ab"[k] / f"{i}.png"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    pixels = np.random.default_rng([k, i]).integers(40 + 60 * k, 120 + 60 * k, (8, 8))
                    Image.fromarray(pixels.astype(np.uint8)).save(place)
        source, undisturbed = str(self.images), self.state / "of-images"
        if not (undisturbed / "report.html").exists():
            code, text = give(run_words(undisturbed, source), self.log)
            assert code == 0, text
        victim = chance.choice(sorted(self.images.rglob("*.png")))
        kept, stamp = victim.read_bytes(), victim.stat()
        child = start(run_words(self.work, source), self.log)
        time.sleep(chance.uniform(0, sum(self.seconds.values())))
        DAMAGES[chance.choice(["cut", "delete", "empty", "flip"])](victim, victim, chance)
        code = ended(child)
        text = self.log.read_text(errors="replace")
        bad = [f"status {code}: {text[-600:]}"] if code not in (0, 2) or "Traceback" in text else []
        victim.write_bytes(kept)
        os.utime(victim, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        if code == 2 and "of other data" not in text and not (self.work / "split.json").exists():
            shutil.rmtree(self.work, ignore_errors=True)
        return bad + self._finish(content(undisturbed), source)


# -- ways to damage a file: whether it is another one now


def _flip(path: Path, other: Path, chance: random.Random) -> bool:
    data = bytearray(path.read_bytes())
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
    return bool(data)


def _digit(path: Path, other: Path, chance: random.Random) -> bool:
    data = path.read_bytes()
    places = [m.start() for m in re.finditer(rb"\d", data)] if path.suffix in (".json", ".jsonl", ".yaml") else []
    if not places:
        return _flip(path, other, chance)
    at = chance.choice(places)
    path.write_bytes(data[:at] + b"%d" % ((data[at] - 47) % 10) + data[at + 1 :])
    return True


def _cut(path: Path, other: Path, chance: random.Random) -> bool:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(max(1, len(data)))])
    return bool(data)


def _write(data: bytes) -> Callable[..., bool]:
    def write(path: Path, other: Path, chance: random.Random) -> bool:
        changed = path.read_bytes() != data
        path.write_bytes(data)
        return changed

    return write


def _delete(path: Path, other: Path, chance: random.Random) -> bool:
    path.unlink()
    return True


def _folder(path: Path, other: Path, chance: random.Random) -> bool:
    path.unlink()
    path.mkdir()
    return True


def _foreign(path: Path, other: Path, chance: random.Random) -> bool:
    if not other.is_file() or other.read_bytes() == path.read_bytes():
        return False
    shutil.copyfile(other, path)
    return True


DAMAGES: dict[str, Callable[[Path, Path, random.Random], bool]] = {
    "flip": _flip, "digit": _digit, "cut": _cut, "empty": _write(b""), "null": _write(b"null\n"),
    "object": _write(b'{"format": "another", "images": [1]}\n'), "delete": _delete, "folder": _folder,
    "foreign": _foreign,
}  # fmt: skip


# -- all of it


def trials(state: Path, seed: int, wanted: dict[str, int], deadline: float = float("inf")) -> list[dict[str, Any]]:
    """The trials that are asked for, those in `state` read; no new one after `deadline` (of the monotonic clock)."""
    state.mkdir(parents=True, exist_ok=True)
    record = state / "trials.jsonl"
    rows = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    known = {(row["kind"], row["number"]) for row in rows}
    here = Trials(state, seed)
    here.prepare()
    todo = [(i / n, kind, i) for kind, n in wanted.items() for i in range(n) if (kind, i) not in known]
    for _, kind, i in sorted(todo):
        if time.monotonic() > deadline:
            break
        row = {"kind": kind, "number": i, **getattr(here, kind)(random.Random(f"{seed} {kind} {i}"))}
        rows.append(row)
        with open(record, "a") as handle:
            handle.write(json.dumps(row) + "\n")
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    kills = [row for row in rows if row["kind"] == "kill"]
    fell: Counter[str] = Counter()
    for row in kills:
        fell.update(row["fell"])
    damages = [row for row in rows if row["kind"] == "damage" and row["outcome"] != "no damage"]
    outcomes = Counter(row["outcome"] for row in damages)
    rest = [row for row in rows if row["kind"] == "rest"]
    silent = [row for row in damages if row["outcome"] not in ("equal", "refused", "unread")]
    return {
        "kills": sum(fell.values()),
        "killed runs": len(kills),
        "killed runs that differ": sum(bool(row["differ"]) for row in kills),
        "kills by stage": {s: sum(n for k, n in fell.items() if k.startswith(s)) for s in (*STAGES, "report")},
        "kills by signal": {s.name: sum(n for k, n in fell.items() if s.name in k) for s in SIGNALS},
        "kills of processes of their own": sum(n for k, n in fell.items() if k.endswith("process")),
        "damages": len(damages),
        "damages by outcome": dict(outcomes),
        "other faults": dict(Counter(row["what"] for row in rest)),
        "other faults with a problem": sum(bool(row["problems"]) for row in rest),
        "problems": [
            *({"trial": f"kill {r['number']}", "what": str([*r["differ"], *r["problems"]])[:600]} for r in kills
              if r["differ"] or r["problems"]),
            *({"trial": f"damage {r['number']}", "what": json.dumps(r)[:600]} for r in silent),
            *({"trial": f"rest {r['number']}", "what": str(r["problems"])[:600]} for r in rest if r["problems"]),
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="about so many: a killed run takes some four of them")
    parser.add_argument("--damages", type=int, default=300)
    parser.add_argument("--rest", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, default=Path("runs/faults"), help="folder; repeat the command to go on")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no trial after these")
    given = parser.parse_args()
    wanted = {"kill": -(-given.kills // 4), "damage": given.damages, "rest": given.rest}
    rows = trials(given.state.resolve(), given.seed, wanted, time.monotonic() + 60 * given.minutes)
    result = summary(rows)
    print(json.dumps(result, indent=1))
    write_result(
        "faults", result, config={**vars(given), "options": OPTIONS},
        notes="Outcomes of damages: refused = status 2, file and remedy named, and the remedy led to the undisturbed "
        "outcome; equal = the outcome is the undisturbed one; unread = a file from which nothing had to go on.",
    )  # fmt: skip
    sys.exit(bool(result["problems"]))


if __name__ == "__main__":
    main()
