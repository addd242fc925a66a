"""What it takes to look at, decode and keep many image files: time, memory and files a second, against a plain loop.

    python benchmarks/preparing.py --files 10000 100000

Files are generated: PNG, 64 x 64 pixels, RGB, smooth patterns with noise, 100 classes of exponential sizes. Measured,
each in a process of its own: listing with labels (no file is opened); headers; `imbdiff inspect`; building the cache of
decoded images; opening it again (every byte is read and compared with its hash); and the plain loop of one process,
`np.asarray(Image.open(path).convert("RGB"))` into one array. Memory is the largest resident set of the main process and
of it and its worker processes together, sampled ten times a second. The page cache is warm for every side.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from results_file import write_result

SIDE = 64
CLASSES = 100


def counts(n: int) -> list[int]:
    """(100,) class sizes, exponential with factor 100, summing to n."""
    share = np.array([100 ** (-k / (CLASSES - 1)) for k in range(CLASSES)])
    sizes = np.maximum(1, np.floor(share / share.sum() * n)).astype(int)
    sizes[0] += n - sizes.sum()
    return sizes.tolist()


def picture(seed: int) -> Image.Image:
    """A smooth pattern with noise: its PNG takes about as much work as a photograph's."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8))


def write_class(job: tuple[str, int, int]) -> None:
    folder, n, first = job
    Path(folder).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        picture(first + i).save(Path(folder) / f"{i:06d}.png")


def generate(root: Path, n: int) -> None:
    sizes = counts(n)
    firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()
    jobs = [
        (str(root / f"class{k:03d}"), size, first) for k, (size, first) in enumerate(zip(sizes, firsts, strict=True))
    ]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(write_class, jobs, chunksize=1)


TASKS = {
    "plain loop": """
from PIL import Image
paths = sorted(Path(root).rglob("*.png"))
out = np.empty((len(paths), 64, 64, 3), np.uint8)
for i, path in enumerate(paths):
    out[i] = np.asarray(Image.open(path).convert("RGB"))
""",
    "list with labels": """
source = imbdiff.load(root)
labels = source.labels()
assert len(labels) == n
""",
    "headers": """
source = imbdiff.load(root)
assert source.survey().sizes == {(64, 64): n}
""",
    "inspect": """
report = imbdiff.inspect(root)
assert report["images"] == {"train": n} and not report["bad"]
""",
    "build cache": """
sets, _ = imbdiff.load(root).read_all(cache=cache)
assert sets["train"].shape == (64, 64, 3)
""",
    "open cache": """
sets, _ = imbdiff.load(root).read_all(cache=cache)
assert len(sets["train"]) == n
""",
}

PROGRAM = """
import sys, time
from pathlib import Path
import numpy as np
import imbdiff
root, n, cache = sys.argv[1], int(sys.argv[2]), sys.argv[3]
began = time.perf_counter()
{body}
print("SECONDS", time.perf_counter() - began)
"""


def watch(process: psutil.Process, peak: dict[str, float], stop: threading.Event) -> None:
    while not stop.wait(0.1):
        try:
            own = process.memory_info().rss
            children = sum(child.memory_info().rss for child in process.children(recursive=True))
        except psutil.Error:
            continue
        peak["main"] = max(peak["main"], own)
        peak["all"] = max(peak["all"], own + children)


def measure(name: str, root: Path, n: int, cache: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", PROGRAM.format(body=TASKS[name]), str(root), str(n), str(cache)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = {"main": 0.0, "all": 0.0}
    stop = threading.Event()
    thread = threading.Thread(target=watch, args=(psutil.Process(child.pid), peak, stop))
    thread.start()
    out, err = child.communicate()
    stop.set()
    thread.join()
    if child.returncode:
        raise RuntimeError(f"{name} failed:\n{err}")
    seconds = float(out.split("SECONDS")[1])
    return {
        "what": name, "files": n, "seconds": round(seconds, 2), "files/s": round(n / seconds),
        "MiB, main process": round(peak["main"] / 2**20), "MiB, with workers": round(peak["all"] / 2**20),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", type=int, default=(10_000, 100_000))
    parser.add_argument("--folder", type=Path, help="where the files go, and stay; default: a temporary folder")
    parser.add_argument("--no-result", action="store_true")
    given = parser.parse_args()
    base = given.folder or Path(tempfile.mkdtemp())
    rows = []
    try:
        for n in given.files:
            root, cache = base / f"{n}", base / f"{n}-cache"
            if not root.exists():
                generate(root.with_suffix(".partial"), n)
                root.with_suffix(".partial").rename(root)
            shutil.rmtree(cache, ignore_errors=True)
            measure("headers", root, n, cache)  # warms the page cache
            # the plain loop before and after: the machine may be slower at one time than at another
            for name in ("plain loop", *list(TASKS)[1:], "plain loop"):
                rows.append(measure(name, root, n, cache))
                print(json.dumps(rows[-1]), flush=True)
    finally:
        if given.folder is None:
            shutil.rmtree(base, ignore_errors=True)
    summary = []
    for n in given.files:
        here = [row for row in rows if row["files"] == n]
        plain = float(np.mean([row["files/s"] for row in here if row["what"] == "plain loop"]))
        for row in here:
            summary.append({**row, "times the plain loop": round(row["files/s"] / plain, 2)})
    if not given.no_result:
        write_result(
            "preparing",
            {"measured": summary},
            config={"files": list(given.files)},
            notes=__doc__.split("\n\n", 2)[2],
        )


if __name__ == "__main__":
    main()
