"""Time and peak memory of every measure at the size of a published evaluation: 50,000 x 2,048 against 50,000 x 2,048.

    python benchmarks/measuring.py

The features are random but shaped like those of a network with ReLU (a rectified mixture of 10 classes), and lie
memory-mapped on disk. Each measure runs in a process of its own; its peak is the largest resident size of that process,
pages of the mapped files included, less what it was before the measure began ("of it").
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from harness import write_result
from imbdiff.metrics.measures import MEASURES
from imbdiff.metrics.rows import Rows

CLASSES = 10


def make(path: Path, n: int, dim: int, seed: int) -> None:
    """(n, dim) float32 rows on disk, 2,048 at a time."""
    world, own = np.random.default_rng(0), np.random.default_rng([1, seed])
    mixing = world.normal(size=(64, dim)).astype(np.float32) / 8
    centres = world.normal(size=(CLASSES, dim)).astype(np.float32) * (0.5 + 0.02 * seed)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, dim))
    for start in range(0, n, 2048):
        rows = np.arange(start, min(n, start + 2048))
        z = own.normal(size=(len(rows), 64)).astype(np.float32)
        noise = own.normal(size=(len(rows), dim)).astype(np.float32) * 0.3
        out[rows] = np.maximum(z @ mixing + centres[rows % CLASSES] + noise, 0)
    out.flush()


def peak() -> float:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(folder: Path, name: str) -> None:
    """Runs one measure and prints what it took."""
    fake, real = (np.load(folder / f"{side}.npy", mmap_mode="r") for side in ("fake", "real"))
    labels = np.arange(len(fake)) % CLASSES
    mix = np.full(CLASSES, 1 / CLASSES)
    began = time.monotonic()
    answers = {}
    if MEASURES[name].needs:
        p = np.exp(np.asarray(fake[:, :1000]) - 3)
        answers = {"probabilities": p / p.sum(axis=1, keepdims=True), "predicted": p.argmax(axis=1)}
    sets = [Rows.of(x, labels[: len(x)], mix, **answers) for x in (fake, real)]
    opened, before = time.monotonic() - began, peak()
    began = time.monotonic()
    found = MEASURES[name].numbers(*sets, seed=0)
    print(
        json.dumps(
            {
                "measure": name,
                "seconds": round(time.monotonic() - began, 1),
                "peak MiB": round(peak()),
                "of it MiB": round(max(0.0, peak() - before)),
                "sorting and hashing the rows, s": round(opened, 1),
                "rows used": max(e.n_synthetic for e in found.values()),
                "numbers": {k: None if e.value is None else float(f"{e.value:.5g}") for k, e in found.items()},
                "refused": [e.refused for e in found.values() if e.refused],
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--measures", nargs="+", default=[n for n, m in MEASURES.items() if m.function])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(Path(given.child[0]), given.child[1])
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for seed, side in enumerate(("fake", "real")):
            make(Path(place) / f"{side}.npy", given.n, given.dim, seed)
        for name in given.measures:
            out = subprocess.run([sys.executable, __file__, "--child", place, name], capture_output=True, text=True)
            if out.returncode:
                rows.append({"measure": name, "failed": out.stderr.strip().splitlines()[-1]})
            else:
                rows.append(json.loads(out.stdout))
            print(rows[-1], flush=True)
    for row in rows:
        row["numbers"] = ", ".join(f"{k} {v}" for k, v in row.get("numbers", {}).items())
        row["refused"] = "; ".join(row.get("refused", []))
    write_result(
        "measuring", {"measures": rows}, config={"n": given.n, "dim": given.dim, "classes": CLASSES},
        notes=(__doc__ or "").split("\n\n")[2],
    )  # fmt: skip


if __name__ == "__main__":
    main()
