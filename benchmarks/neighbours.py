"""Neighbour metrics: speed against the package prdc, memory at 50,000 x 2048, and the coverage of their intervals.

    OMP_NUM_THREADS=1 python benchmarks/neighbours.py speed          # 10,000 x 10,000 x 64, both in one process
    OMP_NUM_THREADS=1 python benchmarks/neighbours.py memory         # memory-mapped inputs, capped at 10,000
    OMP_NUM_THREADS=1 python benchmarks/neighbours.py memory --cap 50000
    OMP_NUM_THREADS=1 python benchmarks/neighbours.py coverage       # Gaussian worlds, several hundred repetitions

Each writes a result file. `speed` also checks that both sides give the same numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness import Side, compare, peak_rss, write_result
from imbdiff.metrics.neighbours import CAP, count_inside, density_coverage, neighbour_measures, precision_recall
from imbdiff.metrics.rows import Rows


def clouds(n: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    return g.normal(size=(n, dim)).astype(np.float32), (0.9 * g.normal(size=(n, dim)) + 0.05).astype(np.float32)


def speed(n: int, dim: int, repeats: int) -> None:
    """prdc at one k against all four numbers at one k, and against all four at k = 3 and 5 with intervals."""
    from prdc import compute_prdc

    real, fake = clouds(n, dim)
    fake_rows, real_rows = Rows.of(fake), Rows.of(real)

    def package() -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            return compute_prdc(real, fake, 5)

    def values() -> None:
        count_inside(fake, real, 5, 5)

    sides = [
        Side("prdc, k=5", package),
        Side("imbdiff, k=5", values),
        Side("imbdiff, k=3 and 5, with 95 % intervals", lambda: neighbour_measures(fake_rows, real_rows, cap=n)),
    ]
    result = compare(sides, repeats=repeats, memory_repeats=1)
    theirs, (precision, recall) = package(), precision_recall(real, fake, 5)
    density, coverage = density_coverage(real, fake, 5)
    mine = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}
    result["largest difference of the numbers"] = max(abs(theirs[key] - mine[key]) for key in mine)
    ratios = {r["name"]: round(1 / r["wall"]["median"], 1) for r in result["ratios"]}
    notes = f"Times faster than prdc (median): {ratios}. Largest difference of the four numbers: " + (
        f"{result['largest difference of the numbers']:.1e}; prdc works in the type of its input, here float32."
    )
    print(notes)
    write_result("neighbour_speed", result, config={"n": n, "dim": dim, "repeats": repeats}, notes=notes)


def memory(n: int, dim: int, cap: int) -> None:
    """All four with intervals on memory-mapped features; `rise` includes pages of the files that were read."""
    with tempfile.TemporaryDirectory() as folder:
        sets = []
        for name, seed in (("real", 0), ("fake", 1)):
            path = Path(folder) / f"{name}.npy"
            out = np.lib.format.open_memmap(path, "w+", np.float32, (n, dim))
            g = np.random.default_rng(seed)
            for start in range(0, n, 1000):
                # a low-dimensional cloud, bent and rectified, as features of networks are
                z = g.normal(size=(min(1000, n - start), 32)) @ np.random.default_rng(9).normal(size=(32, dim))
                out[start : start + 1000] = np.maximum(z + 0.3 * g.normal(size=z.shape), 0)
            out.flush()
            del out
            sets.append(np.load(path, mmap_mode="r"))
        began = time.perf_counter()
        with peak_rss() as read_peak:
            real, fake = Rows.of(sets[0]), Rows.of(sets[1])
        read_s, began = time.perf_counter() - began, time.perf_counter()
        with peak_rss() as peak:
            found = neighbour_measures(fake, real, cap=cap)
        result = {
            "hash and sort rows: s": read_s,
            "hash and sort rows: peak resident set, MiB": read_peak[0] / 2**20,
            "neighbour measures: s": time.perf_counter() - began,
            "neighbour measures: peak resident set, MiB": peak[0] / 2**20,
            **{name: e.value for name, e in found.items()},
        }
    print(result)
    notes = "The peaks count the pages of the memory-mapped files that the kernel keeps, and Python with torch."
    write_result("neighbour_memory", result, config={"n": n, "dim": dim, "cap": cap}, notes=notes)


def worlds(name: str, n: int, g: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    real, fake = g.normal(size=(n, 8)), g.normal(size=(n, 8))
    if name == "narrow":
        fake *= 0.7
    elif name == "shifted":
        fake[:, 0] += 2.0
    elif name == "lost mode":
        real[:, 0] += 8 * (np.arange(n) % 2)
    return fake, real


def coverage(sizes: list[int], repetitions: int) -> None:
    """Share of 95 % intervals that hold the mean over all repetitions: the expectation at this n."""
    table: list[dict[str, Any]] = []
    for n in sizes:
        for world in ("same", "narrow", "shifted", "lost mode"):
            runs = []
            for i in range(repetitions):
                fake, real = worlds(world, n, np.random.default_rng([i, n]))
                runs.append(neighbour_measures(Rows.of(fake), Rows.of(real)))
            for name in runs[0]:
                mean = float(np.mean([run[name].value for run in runs]))
                spread = float(np.std([run[name].value for run in runs]))
                inside = np.mean([run[name].low <= mean <= run[name].high for run in runs])
                width = np.mean([run[name].high - run[name].low for run in runs]) / 2
                row = {"n": n, "world": world, "number": name, "mean": mean, "sd": spread}
                table.append({**row, "mean half width": float(width), "coverage": float(inside)})
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in table[-1].items()}, flush=True)
    low = min(row["coverage"] for row in table)
    notes = f"Gaussian worlds in 8 dimensions. Lowest coverage {low:.3f}; it is of the expectation at this n."
    write_result("neighbour_coverage", {"table": table}, config={"n": sizes, "repetitions": repetitions}, notes=notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "memory", "coverage"])
    parser.add_argument("--n", type=int, nargs="*", default=None, help="rows of either set")
    parser.add_argument("--dim", type=int, default=None)
    parser.add_argument("--cap", type=int, default=CAP)
    parser.add_argument("--repeats", type=int, default=None)
    args = parser.parse_args()
    if args.part == "speed":
        speed((args.n or [10_000])[0], args.dim or 64, args.repeats or 5)
    elif args.part == "memory":
        memory((args.n or [50_000])[0], args.dim or 2048, args.cap)
    else:
        coverage(args.n or [100, 300, 1000], args.repeats or 300)


if __name__ == "__main__":
    main()
