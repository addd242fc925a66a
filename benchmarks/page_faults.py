"""Steps with and without the memory of the last step kept (`imbdiff.runtime.memory`): seconds and page faults.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/page_faults.py --repeats 5
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python benchmarks/page_faults.py --backbone unet-32 --batch 32 --repeats 2

DDPM and CBDM, our updates on random images of 32 x 32 pixels, A B A B in one process. Linux with glibc.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from harness import spread, write_result
from imbdiff.diffusion.model import BACKBONES, build_model
from imbdiff.diffusion.process import DDPM
from imbdiff.methods import METHODS
from imbdiff.objectives.denoising import Denoising
from imbdiff.runtime.memory import freed_memory_kept
from imbdiff.training.parts import Part
from training_speed import images, ours


def measured(step: Callable[[], object]) -> dict[str, float]:
    before, cpu = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    step()
    seconds, after = time.process_time() - cpu, resource.getrusage(resource.RUSAGE_SELF)
    kernel = after.ru_stime - before.ru_stime
    return {"CPU seconds": seconds, "of these in the kernel": kernel, "page faults": after.ru_minflt - before.ru_minflt}


def compared(step: Callable[[], object], repeats: int) -> dict[str, Any]:
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for kept in (False, True):  # warm up
        with freed_memory_kept(kept):
            step()
    for _ in range(repeats):
        for kept in (False, True):
            with freed_memory_kept(kept):
                if kept:
                    step()  # the first one fills what is kept
                found[kept].append(measured(step))
    row: dict[str, Any] = {}
    for kept, name in ((False, "as usual"), (True, "kept")):
        row |= {f"{what}, {name}": spread(r[what] for r in found[kept])["median"] for what in found[kept][0]}
    ratios = [a["CPU seconds"] / b["CPU seconds"] for a, b in zip(found[False], found[True], strict=True)]
    return row | {f"CPU seconds, as usual / kept: {q}": spread(ratios)[q] for q in ("median", "q1", "q3")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="unet-32-small", choices=BACKBONES)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, rows = images(32, 3), []
    for batch in given.batch:
        for name, objectives in (("ddpm", [Denoising()]), ("cbdm", METHODS["cbdm"].phases[0].objectives())):
            model = build_model(given.backbone, DDPM(), (3, 32, 32), data.stats, seed=0).train()
            step = ours(model, data, batch, "cpu", list(objectives), "fp32", False, Part())
            rows.append({"batch": batch, "method": name, **compared(step, given.repeats)})
            print(rows[-1], flush=True)
    write_result(f"page_faults_{given.backbone.replace('-', '_')}", {"steps": rows}, config=vars(given), notes=NOTES)


NOTES = """Medians over the repeats; ratios of neighbouring steps with quartiles. Before each step with memory kept one
more is taken that is not measured."""

if __name__ == "__main__":
    main()
