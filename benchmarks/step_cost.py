"""What a method's training step costs against DDPM's, and merged passes against separate ones.

    python benchmarks/step_cost.py --backbone unet-8 --size 8 --batch 64

Every side is one optimizer step's forward and backward on the same batch, without the optimizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from harness import Side, compare, write_result
from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import DDPM
from imbdiff.methods import METHODS
from imbdiff.objectives.batch import noisy_batch
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.training.step import TrainingStep

STATS = ClassStats(tuple(f"class {k}" for k in range(10)), (110, 71, 46, 29, 19, 12, 8, 5, 3, 2))


def batch_of(step: TrainingStep, model: DiffusionModel, rows: int) -> dict:
    x0 = torch.randn(rows, *model.spec.shape, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, STATS.num_classes, (rows,), generator=torch.Generator().manual_seed(1))
    return {
        "main": noisy_batch(
            x0, labels, process=model.process, stats=STATS, seed=0, step=0, draws=step.draws(), label_dropout=0.1
        )
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="unet-8")
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    shape = (given.channels, given.size, given.size)
    model = build_model(given.backbone, DDPM(), shape, STATS)

    def side(objectives: list) -> Callable[[], object]:
        step = TrainingStep({"model": model}, objectives)
        batches = batch_of(step, model, given.batch)

        def run() -> None:
            step(batches)["loss"].backward()
            model.zero_grad()

        return run

    cbdm = TrainingStep({"model": model}, [Denoising(), ClassBalancing()])
    main_batch = batch_of(cbdm, model, given.batch)["main"]

    def separate_passes() -> None:
        h, _ = model(main_batch.x_t, main_batch.t, main_batch.condition)
        other, _ = model(main_batch.x_t, main_batch.t, main_batch.draws["comparison"])
        w = (main_batch.noise_level * ~main_batch.dropped).reshape(-1, 1, 1, 1)
        loss = (h - main_batch.noise).square().mean()
        loss = loss + (w * (h - other.detach()).square()).mean() + 0.25 * (w * (h.detach() - other).square()).mean()
        loss.backward()
        model.zero_grad()

    sides = [Side("ddpm", side([Denoising()]))]
    sides += [Side("cbdm", side(METHODS["cbdm"].phases[0].objectives())), Side("cbdm, two passes", separate_passes)]
    with torch.random.fork_rng():
        result = compare(sides, repeats=given.repeats, modules=[model.backbone])
    for row, ratio in zip(result["sides"], [None, *result["ratios"]], strict=False):
        against = "" if ratio is None else f", {ratio['cpu']['median']:.2f} x ddpm (CPU seconds)"
        print(f"{row['name']:18s} {1000 * row['wall_s']['median']:.0f} ms, {row['forwards']} forward passes{against}")
    write_result(
        "step_cost", result, config=vars(given) | {"parameters": model.num_parameters},
        notes="Forward and backward of one batch. 'two passes' is what a plain implementation does.",
    )  # fmt: skip


if __name__ == "__main__":
    main()
