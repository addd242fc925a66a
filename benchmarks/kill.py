"""Kills a run with SIGKILL at random moments of training and sampling, repeats it, and compares the outcome to the bit.

    python benchmarks/kill.py --kills 20

Writes a result file: how many kills fell into which stage, and whether weights, images and log were those of the
undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from imbdiff.runtime.files import sha256_file
from results_file import write_result

OPTIONS = shlex.split(
    "--preset tiny --device cpu --data.imbalance_factor 20 --train.images 1280 --train.batch_size 32 "
    "--train.checkpoint_images 128 --train.preview_images 320 --sample.steps 10 "
    "--sample.batch_size 16 --sample.strategy 0.5"
)


def command(folder: Path, verb: str = "train") -> list[str]:
    start = [sys.executable, "-m", "imbdiff"]
    return (
        [*start, "train", "digits", "--out", str(folder), *OPTIONS] if verb == "train" else [*start, verb, str(folder)]
    )


def outcome(folder: Path) -> dict[str, str]:
    """Hashes of weights and images, and the log without its times."""
    found = {str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*.png"))}
    found["weights"] = sha256_file(folder / "model" / "model.safetensors")
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found["log"] = json.dumps([{k: v for k, v in row.items() if k != "seconds"} for row in rows])
    return found


def whole(folder: Path) -> float:
    began = time.monotonic()
    for verb in ("train", "sample"):
        subprocess.run(command(folder, verb), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def disturbed(folder: Path, kills: int, chance: random.Random) -> dict[str, int]:
    """Runs to the end with `kills` kills, about half of them in each stage; returns how many fell where."""
    fell: dict[str, int] = {"train": 0, "sample": 0}
    for verb, wanted in (("train", kills - kills // 2), ("sample", kills // 2)):
        sign = folder / ("checkpoints" if verb == "train" else "samples")
        while True:
            child = subprocess.Popen(command(folder, verb), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if fell[verb] < wanted:
                began = time.monotonic()
                while child.poll() is None and not sign.exists() and time.monotonic() - began < 60:
                    time.sleep(0.005)
                # a start takes a second or two before it works on; from then on any moment will do
                time.sleep(chance.uniform(0.0, 6.0 if verb == "train" else 5.0))
                if child.poll() is None:
                    os.kill(child.pid, signal.SIGKILL)
                    fell[verb] += 1
            if child.wait() == 0:
                if fell[verb] >= wanted:
                    break
                # it finished before it was killed often enough: once more from the start of this stage
                _forget(folder, verb)
    return fell


def _forget(folder: Path, verb: str) -> None:
    import shutil

    stages = json.loads((folder / "stages.json").read_text())
    stages.pop(verb, None)
    (folder / "stages.json").write_text(json.dumps(stages))
    for name in ("checkpoints", "model") if verb == "train" else ("samples",):
        shutil.rmtree(folder / name, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        undisturbed, killed = Path(place) / "undisturbed", Path(place) / "killed"
        seconds = whole(undisturbed)
        fell = disturbed(killed, given.kills, random.Random(given.seed))
        a, b = outcome(undisturbed), outcome(killed)
    differ = [name for name in a if a.get(name) != b.get(name)] + [name for name in b if name not in a]
    result = {
        "kills": fell,
        "images": len([n for n in a if n.endswith(".png")]),
        "undisturbed_seconds": round(seconds, 1),
        "equal": not differ,
        "differ": differ[:20],
    }
    print(json.dumps(result, indent=1))
    write_result(
        "kill", result, config={"kills": given.kills, "seed": given.seed, "options": OPTIONS},
        notes="Weights, images (previews too) and log, bit for bit, after SIGKILL at random moments.",
    )  # fmt: skip
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
