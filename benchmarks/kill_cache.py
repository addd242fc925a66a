"""Kills the making of a cache of decoded images with SIGKILL at random moments, repeats it, and compares it to the bit.

    python benchmarks/kill_cache.py --kills 20

Half of the kills take the whole process group, half the main process alone, whose workers live on for a moment and may
write beside the next start. After every kill each line of the journal must be true: a chunk that it names is there.
At the end bytes and hashes must be those of an undisturbed build.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from imbdiff.runtime.files import sha256_file

SIZE = 32
CHILD = """
import sys
from imbdiff.data import cache, reading as parallel
from imbdiff.data.folder import FolderSource
folder, store, processes_from, chunk = sys.argv[1:]
parallel.PROCESSES_FROM, cache.CHUNK_BYTES = int(processes_from), int(chunk)
source = FolderSource(folder)
source.survey()
print("begin", flush=True)
source.read_all(size=SIZE, cache=store)
""".replace("SIZE", str(SIZE))


def make_images(root: Path, n: int) -> Path:
    """A tree of two classes with `n` PNG files of noise, 48 x 40 pixels."""
    chance = np.random.default_rng(0)
    for i in range(n):
        path = root / f"class{i % 2}" / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chance.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(path, compress_level=1)
    return root


def start(folder: Path, store: Path, processes_from: int, chunk: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(folder), str(store), str(processes_from), str(chunk)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def outcome(store: Path) -> dict[str, str]:
    """Hashes of the bytes, and of the journal's lines in the order of the images."""
    (made,) = store.iterdir()
    lines = sorted((made / "journal.jsonl").read_text().splitlines(), key=lambda line: json.loads(line)["start"])
    return {"images": sha256_file(made / "images.u8"), "journal": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def untrue_lines(store: Path) -> list[int]:
    """First images of the chunks that the journal names and that are not there as it says."""
    found = []
    for made in store.iterdir() if store.exists() else ():
        if not (made / "journal.jsonl").exists():
            continue
        data = (made / "images.u8").read_bytes()
        for text in (made / "journal.jsonl").read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue  # torn, so it claims nothing
            each = SIZE * SIZE * 3
            hashes = [line["hashes"][k : k + 32] for k in range(0, len(line["hashes"]), 32)]
            here = data[line["start"] * each : (line["start"] + len(hashes)) * each]
            images = [here[k : k + each] for k in range(0, len(hashes) * each, each)]
            if [hashlib.sha256(image).hexdigest()[:32] for image in images] != hashes:
                found.append(line["start"])
    return found


def complete_chunks(store: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in store.glob("*/journal.jsonl"))


def disturbed(
    folder: Path, store: Path, kills: int, processes_from: int, chunk: int, span: float, chance: random.Random
) -> dict[str, object]:
    """Builds the cache with `kills` kills, each up to `span` seconds after decoding began."""
    fell = {"group": 0, "main process": 0}
    untrue: list[int] = []
    kept: list[int] = []
    begun_anew = 0
    while True:
        child = start(folder, store, processes_from, chunk)
        assert child.stdout is not None
        child.stdout.readline()
        if sum(fell.values()) < kills:
            time.sleep(chance.uniform(0.0, span))
            if child.poll() is None:
                kind = "group" if sum(fell.values()) % 2 == 0 else "main process"
                if kind == "group":
                    os.killpg(child.pid, signal.SIGKILL)
                else:
                    os.kill(child.pid, signal.SIGKILL)
                fell[kind] += 1
                child.wait()
                untrue += untrue_lines(store)
                kept.append(complete_chunks(store))
                continue
        if child.wait() != 0:
            raise SystemExit("the build failed without having been killed")
        if sum(fell.values()) >= kills:
            return {"kills": fell, "untrue": untrue, "chunks_kept": kept, "begun_anew": begun_anew}
        shutil.rmtree(store)  # it was done before it was killed often enough
        begun_anew += 1


def compare(images: int, kills: int, processes_from: int, chunk: int, span: float, seed: int) -> dict[str, object]:
    """An undisturbed and a disturbed build of the same images."""
    with tempfile.TemporaryDirectory() as place:
        folder = make_images(Path(place) / "images", images)
        began = time.monotonic()
        child = start(folder, Path(place) / "undisturbed", processes_from, chunk)
        if child.wait() != 0:
            raise SystemExit("the undisturbed build failed")
        seconds = time.monotonic() - began
        chance = random.Random(seed)
        found = disturbed(folder, Path(place) / "killed", kills, processes_from, chunk, span, chance)
        equal = outcome(Path(place) / "undisturbed") == outcome(Path(place) / "killed")
    return {**found, "undisturbed_seconds": round(seconds, 2), "equal": equal}


def main() -> None:
    from results_file import write_result

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--chunk", type=int, default=2**17, help="bytes of decoded images in a chunk")
    parser.add_argument("--span", type=float, default=1.5, help="seconds after the start of decoding")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ways = {"processes": 1, "threads": 10**9}
    result = {
        way: compare(given.images, given.kills, least, given.chunk, given.span, given.seed)
        for way, least in ways.items()
    }
    print(json.dumps(result, indent=1))
    good = all(found["equal"] and not found["untrue"] for found in result.values())
    write_result(
        "kill_cache", {"equal": good, **result}, config=vars(given),
        notes="Bytes and hashes of the cache of decoded images after SIGKILL at random moments, against an undisturbed "
        "build; half of the kills take the process group, half the main process alone. `chunks_kept` is how many "
        "chunks the journal named after each kill, `untrue` which of them were not there.",
    )  # fmt: skip
    sys.exit(not good)


if __name__ == "__main__":
    main()
