"""What a training step costs here, against loops as others write them: images/s, passes, operations, utilisation.

    python benchmarks/training_speed.py --backbone unet-32-small --batch 16 32
    python benchmarks/training_speed.py --backbone unet-32 --batch 16 32 --repeats 3
    python benchmarks/training_speed.py --backbone unet-32 --batch 128 256 --device cuda --workers 4

All sides train the same network on the same random images of 32 x 32 pixels and 10 classes, whole steps: batch, passes,
backward, clipping, optimizer, average. They alternate in one process. On a GPU the loops of others run in float32 and
in TF32, ours in bfloat16, compiled where its gradients are right.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from harness import Side, compare, write_result
from imbdiff.config import TrainConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.diffusion.model import BACKBONES, DiffusionModel, build_model
from imbdiff.diffusion.process import DDPM
from imbdiff.methods import METHODS
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.contract import Objective
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.row_sampling import sample_branches
from imbdiff.runtime.device import make_accelerator
from imbdiff.runtime.dist import Dist
from imbdiff.training.parts import Part, make_loaders
from imbdiff.training.step import TrainingStep
from imbdiff.training.update import Update
from plain_loops import example, field, tuned

ROWS = 0.4


def images(size: int, channels: int) -> ImageSet:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), [110, 71, 46, 29, 19, 12, 8, 5, 3, 2]).astype(np.int64)
    pixels = generator.integers(0, 256, (len(labels), size, size, channels)).astype(np.uint8)
    return ImageSet(pixels, labels, tuple(f"class {k}" for k in range(10)))


def ours(
    model: DiffusionModel, data: ImageSet, batch: int, device: str, objectives: list[Objective], precision: Any,
    compiled: bool, law: Part,
) -> Callable[[], object]:  # fmt: skip
    """The trainer's updates, with what the trainer looks at after each."""
    config = TrainConfig(
        images=batch * 100_000, batch_size=batch, precision=precision, compile="on" if compiled else "off"
    )
    step = TrainingStep({"model": model}, objectives)
    loaders = make_loaders(
        [law], data, Groups.by_quantile(data.stats), batch, seed=0, dist=Dist(), device=torch.device(device)
    )
    update = Update(
        step, loaders, config, make_accelerator(device, precision), codec=model.codec, process=model.process,
        augmentation=Augmentation.of("mirror"),
    )  # fmt: skip
    update.wrap(print)
    number = iter(range(10**9))

    def run() -> None:
        now = next(number)
        losses = update.gradients(now)
        if device == "cpu":
            assert bool(torch.isfinite(losses["grad_norm"]))
        update.apply(now)

    return run


def peak(device: str, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations per second of a square matrix product: the best of several."""
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(8):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def tf32(on: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def sides_of(given: argparse.Namespace, batch: int) -> tuple[list[Side], list[DiffusionModel]]:
    data, models = images(given.size, 3), []
    gpu = given.device == "cuda"
    sides = []

    def model() -> DiffusionModel:
        made = build_model(given.backbone, DDPM(), (3, given.size, given.size), data.stats, seed=len(models))
        models.append(made.to(given.device).train())
        return models[-1]

    def add(name: str, make: Callable[[], Callable[[], object]], fast: bool = False) -> None:
        if any(word in name for word in given.without):
            return
        step = make()

        def run() -> None:
            for _ in range(given.steps):
                step()

        sides.append(Side(name, run, (lambda: tf32(fast)) if gpu else None))

    args = (data, batch, given.device)
    for fast in (False, True) if gpu else (False,):
        words = (" in TF32" if fast else " in fp32") if gpu else ""
        for method in ("ddpm", "cbdm", "alignment"):
            if method == "alignment" and gpu:
                continue
            add(f"{method}, plain loop{words}", lambda m=method: field(model(), *args, m, given.workers), fast)
        add(f"ddpm, diffusers' example{words}", lambda: example(model(), *args, given.workers), fast)
        for layout in (False, True):
            name = f"ddpm, tuned by hand, {'channels_last' if layout else 'contiguous'}{words}"
            add(name, lambda c=layout: tuned(model(), *args, c), fast)
    own: dict[str, tuple[list[Objective], Part]] = {
        "ddpm": ([Denoising()], Part()),
        "cbdm": (METHODS["cbdm"].phases[0].objectives(), Part()),
        "alignment": ([Denoising(), Alignment()], Part()),
    }
    if gpu:
        own["ccua"] = (METHODS["ccua"].phases[0].objectives(), METHODS["ccua"].phases[0].parts[0])
        own.pop("alignment")
    for name, (objectives, part) in own.items():
        add(
            f"{name}, ours",
            lambda o=objectives, p=part: ours(model(), *args, o, given.precision, gpu, p),  # type: ignore[misc]
            True,
        )
        if name in ("cbdm", "alignment"):
            sampled = METHODS["cbdm"].phases[0].objectives() if name == "cbdm" else [Denoising(), Alignment()]
            sample_branches(sampled, ROWS)
            add(
                f"{name}, ours, {ROWS:g} of the rows",
                lambda o=sampled, p=part: ours(model(), *args, o, given.precision, gpu, p),  # type: ignore[misc]
                True,
            )
    return sides, models


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="unet-32-small", choices=BACKBONES)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="per timed run")
    parser.add_argument("--workers", type=int, default=0, help="of the plain loops' loaders")
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="WORDS", help="leaves out sides whose name holds these"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-result", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.precision = "bf16" if given.device == "cuda" else "fp32"
    top = peak(given.device, torch.float32, 2048 if given.device == "cpu" else 8192)
    top_bf16 = peak("cuda", torch.bfloat16, 8192) if given.device == "cuda" else None
    result: dict[str, Any] = {"matrix product, 10^9 operations/s": {"fp32": top / 1e9}}
    if top_bf16:
        result["matrix product, 10^9 operations/s"]["bf16"] = top_bf16 / 1e9
    parameters = 0
    for batch in given.batch:
        sides, models = sides_of(given, batch)
        parameters = models[0].num_parameters
        found = compare(
            sides, repeats=given.repeats, memory_repeats=0, modules=[m.backbone for m in models], device=given.device
        )
        table = []
        for side, row in zip(sides, found["sides"], strict=True):
            seconds = row["wall_s"]["median"] / given.steps
            use = row["flop"] / given.steps / seconds
            best = top_bf16 if top_bf16 and "ours" in side.name else top
            table.append({
                "side": side.name, "images/s": batch / seconds, "seconds per step": seconds,
                "fastest": row["wall_s"]["min"] / given.steps, "passes": sum(row["forwards"]) / given.steps,
                "10^9 operations": row["flop"] / given.steps / 1e9, "utilisation": use / best,
            })  # fmt: skip
        result[f"batch {batch}"] = table
        result[f"batch {batch}: ratios"] = ratios(found["sides"])
        for row in table:
            print(f"batch {batch} {row['side']:48s} {row['seconds per step']:.3f} s (min {row['fastest']:.3f}), "
                  f"{row['passes']:.0f} passes, {row['utilisation']:.0%} of the peak", flush=True)  # fmt: skip
        for row in result[f"batch {batch}: ratios"]:
            print(f"  {row['ratio']:70s} {row['median']:.2f} ({row['q1']:.2f}-{row['q3']:.2f})", flush=True)
    if not given.no_result:
        config = {**{k: v for k, v in vars(given).items() if k != "no_result"}, "parameters": parameters}
        write_result(f"training_speed_{given.backbone.replace('-', '_')}", result, config=config, notes=NOTES)


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times slower one side is than another: over rounds, in each of which all sides ran."""
    of = {row["name"]: np.array(row["wall_s"]["values"]) for row in rows}
    by_hand = [name for name in of if "tuned by hand" in name]
    best = min(by_hand, key=lambda name: float(np.median(of[name])))
    plain = [name for name in of if "plain loop" in name]
    pairs = [(name, f"{name.split(',')[0]}, ours") for name in plain if f"{name.split(',')[0]}, ours" in of]
    pairs += [(name, "ddpm, ours") for name in of if "example" in name or name == best]
    pairs += [(name, "ddpm, ours") for name in of if ", ours" in name and name != "ddpm, ours"]
    pairs += [(name, next(n for n in plain if n.startswith("ddpm"))) for name in plain if not name.startswith("ddpm")]
    found = []
    for a, b in pairs:
        values = of[a] / of[b]
        q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
        found.append({"ratio": f"{a} / {b}", "median": float(median), "q1": float(q1), "q3": float(q3)})
    return found


NOTES = """Ratios are of wall seconds, above 1 where the second side is faster; medians and quartiles over rounds in
each of which every side ran once. Utilisation: counted operations (matrix products, convolutions, attention; forward
and backward) per second, of what one large matrix product reaches on this machine in the same process. Plain loops read
images through PIL one at a time; with 0 workers in the training process."""

if __name__ == "__main__":
    main()
