"""Extra branches from 0.4 of the rows against all rows: the same quality at the same images seen?

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/branch_rows.py toy --seeds 5
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/branch_rows.py digits --seeds 3

CBDM, and DDPM with alignment, on the world of points of `toy_world.py` and on digits at imbalance factor 20 as in
`methods_on_digits.py`. Pairs share training points, initial weights and what is drawn. What is finished is kept.
"""

from __future__ import annotations

import argparse
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np

import methods_on_digits
import toy_world
from results_file import ROOT, write_result
from toy_mixture import lattice, training_data

ROWS = 0.4
#: CBDM, and CCUA's alignment alone
KINDS = {
    "cbdm": "cbdm class_balancing.rows={rows:g}",
    "alignment": "ccua unconditional_contrast.weight=0 main.distribution=natural alignment.rows={rows:g}",
}


def name_of(kind: str, rows: float) -> str:
    """The method with its constants, as `toy_world` and `methods_on_digits` take it."""
    return KINDS[kind].format(rows=rows)


def toy(job: tuple[str, int, int, Path]) -> dict[str, Any]:
    return toy_world.kept_job(*job)


def digits(job: dict[str, Any]) -> dict[str, Any]:
    return methods_on_digits.one(job)


def paired(all_rows: list[float], some: list[float]) -> dict[str, str]:
    """Means of both, and the difference over pairs ± half its 95 % t-interval."""
    gaps = [b - a for a, b in zip(all_rows, some, strict=True)]
    return {
        "all rows": f"{np.mean(all_rows):.4f}", f"{ROWS:g} of the rows": f"{np.mean(some):.4f}",
        "difference": toy_world.text(gaps, signed=True, digits=5), "pairs": str(len(gaps)),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=["toy", "digits"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--images", type=int, help="default: 1,000,000 points, 45,000 digits")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "branch_rows")
    given = parser.parse_args()
    on_toy = given.world == "toy"
    images = given.images or (1_000_000 if on_toy else 45_000)
    names = [name_of(kind, rows) for kind in given.kinds for rows in (1.0, ROWS)]
    asked = [(name, seed) for seed in range(given.seeds) for name in names]
    with multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        if on_toy:
            found = pool.map(toy, [(name, seed, images, given.folder) for name, seed in asked], chunksize=1)
        else:
            common = {
                "folder": str(given.folder),
                "per_class": 60,
                "images": images,
                "validation": False,
                "factor": 20.0,
            }
            found = pool.map(digits, [{**common, "name": n, "method": n, "seed": s} for n, s in asked], chunksize=1)
    of = dict(zip(asked, found, strict=True))
    table = []
    for kind in given.kinds:
        for guided in ("none", "own"):
            for key in measures(on_toy):
                both = [
                    [number(of[name_of(kind, rows), seed], guided, key, on_toy) for seed in range(given.seeds)]
                    for rows in (1.0, ROWS)
                ]
                row = {"loss": kind, "guidance": guided, "measure": key, **paired(*both)}
                table.append(row)
                print(row, flush=True)
    config = {k: v for k, v in vars(given).items() if k not in ("folder", "workers")}
    write_result(f"branch_rows_{given.world}", {"pairs": table}, config={**config, "images": images}, notes=NOTES)


def measures(on_toy: bool) -> list[str]:
    if on_toy:
        return [f"{measure} {group}" for group in ("few", "many") for measure in ("distance", "covered", "precision")]
    return [f"{measure} {scope}" for scope in ("all", "few") for measure in ("FD∞", "recall", "agreement")]


def number(result: dict[str, Any], guided: str, key: str, on_toy: bool) -> float:
    if on_toy:
        measure, group = key.split()
        classes = training_data(lattice(), 0).groups.classes(group)
        return toy_world.group_means(result, guided, classes)[measure]
    return float(result["drawn"][int(guided == "own")]["numbers"][key])


NOTES = """Both sides of a pair see the same images, noise and labels at every step; that of 0.4 of the rows evaluates
its extra branch on 13 of every 32 rows, weighted by 1 / pi. Difference: mean over seeds ± half the 95 % interval
(Student)."""

if __name__ == "__main__":
    main()
