"""Steps with and without the memory of the last step kept (`imbdiff.runtime.memory`): seconds and page faults.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/page_faults.py --repeats 5
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/page_faults.py --backbone unet-32 --batch 32 --repeats 2

DDPM and CBDM, our updates on random images of 32 x 32 pixels, A B A B, each in a process of its own. Linux with glibc.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

from harness import Side, compare_apart, write_result
from imbdiff.diffusion.backbones import BACKBONES
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import DDPM
from imbdiff.methods import METHODS
from imbdiff.runtime.memory import freed_memory_kept
from imbdiff.training.parts import Part
from training_speed import images, ours

KEPT = ExitStack()
WAYS = ("kept", "as usual", "afterwards")


def side(backbone: str, batch: int, method: str, way: str) -> Side:
    """A step of a method: "as usual", "kept", or "afterwards": after something else has kept memory."""
    torch.set_num_threads(1)
    data = images(32, 3)
    model = build_model(backbone, DDPM(), (3, 32, 32), data.stats, seed=0).train()
    step = ours(model, data, batch, "cpu", METHODS[method].phases[0].objectives(), "fp32", False, Part())
    if way == "afterwards":
        with freed_memory_kept():
            step()
    KEPT.enter_context(freed_memory_kept(way == "kept"))  # until the process ends
    return Side(way, step)


def row(batch: int, method: str, found: dict[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    cells: dict[str, Any] = {"batch": batch, "method": method}
    for one in found["sides"]:
        cells |= {
            f"CPU s, {one['name']}": one["cpu_s"]["median"], f"kernel s, {one['name']}": one["kernel_s"]["median"],
            f"page faults, {one['name']}": one["page_faults"]["median"],
        }  # fmt: skip
    for ratio in found["ratios"]:
        name = f"CPU s, {ratio['name']} / {ratio['against']}"
        cells |= {f"{name}{end}": ratio["cpu"][q] for end, q in (("", "median"), (": q1", "q1"), (": q3", "q3"))}
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="unet-32-small", choices=BACKBONES)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    parser.add_argument(
        "--ways", nargs="+", default=["kept", "as usual"], choices=WAYS, help="the first is compared with the others"
    )
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)  # as in the sides' processes; the result file says it
    rows = []
    for batch in given.batch:
        for method in ("ddpm", "cbdm"):
            makers = [(way, partial(side, given.backbone, batch, method, way)) for way in given.ways]
            rows.append(row(batch, method, compare_apart(makers, repeats=given.repeats, warmup=2)))
            print(rows[-1], flush=True)
    write_result(f"page_faults_{given.backbone.replace('-', '_')}", {"steps": rows}, config=vars(given), notes=NOTES)


NOTES = """Medians over the repeats; ratios of neighbouring steps with quartiles. Each side has a process of its own,
which takes two steps before it is measured."""

if __name__ == "__main__":
    main()
