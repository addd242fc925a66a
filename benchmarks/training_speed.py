"""What a training step costs here, against loops as others write them: images/s, passes, operations, utilisation.

    python benchmarks/training_speed.py --backbone unet-32-small --batch 16 32
    python benchmarks/training_speed.py --backbone unet-32 --batch 16 32 --repeats 3
    python benchmarks/training_speed.py --precision bf16      # ours, on a CPU with units for it; and tuned by hand
    python benchmarks/training_speed.py --backbone unet-32 --batch 128 --steps 30 --device cuda --workers 4

All sides train the same network on the same random images of 32 x 32 pixels and 10 classes, whole steps: batch, passes,
backward, clipping, optimizer, average. Two at a time they alternate, A B A B: on a CPU each in a process of its own.
On a GPU the loops of others run in float32 and in TF32, ours in bfloat16, compiled where its gradients are right; on a
CPU all run in float32, but for --precision bf16.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from typing import Any

import numpy as np
import torch

from harness import Side, compare, compare_apart, give_back, write_result
from imbdiff.config import TrainConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.diffusion.backbones import BACKBONES
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import DDPM
from imbdiff.methods import METHODS
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.row_sampling import sample_branches
from imbdiff.runtime import compiling
from imbdiff.runtime.device import make_accelerator, set_backends
from imbdiff.training.parts import Batches, Part
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
    compiled: bool, distribution: Part,
) -> Callable[[], object]:  # fmt: skip
    """The trainer's updates, with what the trainer looks at after each."""
    config = TrainConfig(images=batch * 100_000, batch_size=batch, precision=precision)
    set_backends(False)
    step = TrainingStep({"model": model}, objectives)
    accelerator = make_accelerator(device, precision)
    bf16 = accelerator.mixed_precision == "bf16"
    batches = Batches(
        step, [distribution], data, Groups.by_quantile(data.stats), config, device=torch.device(device),
        augmentation=Augmentation("mirror"), channels_last=device == "cuda" and bf16,
    )  # fmt: skip
    update = Update(step, batches, config, accelerator)
    on = compiling.DEVICES
    compiling.DEVICES = on if compiled else ()
    update.wrap(print)
    compiling.DEVICES = on
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


def sides_of(given: argparse.Namespace, batch: int, only: str = "") -> tuple[list[Side], list[DiffusionModel]]:
    """All sides that were asked for, or only that of a name, and their models."""
    data, models = images(given.size, 3), []
    gpu = given.device == "cuda"
    sides = []

    def model() -> DiffusionModel:
        made = build_model(given.backbone, DDPM(), (3, given.size, given.size), data.stats, seed=len(models))
        models.append(made.to(given.device).train())
        return models[-1]

    def add(name: str, make: Callable[[], Callable[[], object]], fast: bool = False) -> None:
        if any(fnmatch(name, pattern) for pattern in given.without) or only not in ("", name):
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
            if not gpu and given.precision == "bf16":
                add(f"{name}, in bf16", lambda c=layout: tuned(model(), *args, c, True), fast)
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
    parser.add_argument("--without", nargs="*", default=[], metavar="PATTERN", help="leaves out sides of such names")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="of ours; default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-result", action="store_true")
    given = parser.parse_args()
    if given.device == "cpu" and given.workers:
        parser.error("on a CPU, where each side has a process of its own, loaders have no workers")
    torch.set_num_threads(given.threads)
    given.precision = given.precision or ("bf16" if given.device == "cuda" else "fp32")
    narrow, size = given.precision == "bf16", 2048 if given.device == "cpu" else 8192
    top = peak(given.device, torch.float32, size)
    top_bf16 = peak(given.device, torch.bfloat16, size) if narrow else None
    result: dict[str, Any] = {"matrix product, 10^9 operations/s": {"fp32": top / 1e9}}
    if top_bf16:
        result["matrix product, 10^9 operations/s"]["bf16"] = top_bf16 / 1e9
    parameters = 0
    for batch in given.batch:
        sides, models = sides_of(given, batch)
        parameters = models[0].num_parameters
        table = []
        for side in sides:  # a look at each: passes, operations, and about how long (not compared)
            row = compare(
                [side], repeats=1, memory_repeats=0, modules=[m.backbone for m in models], device=given.device
            )["sides"][0]
            seconds = row["wall_s"]["min"] / given.steps
            best = top_bf16 if top_bf16 and ("ours" in side.name or "bf16" in side.name) else top
            table.append({
                "side": side.name, "seconds per step, once": seconds, "images/s": batch / seconds,
                "passes": sum(row["forwards"]) / given.steps, "10^9 operations": row["flop"] / given.steps / 1e9,
                "utilisation": row["flop"] / given.steps / seconds / best,
            })  # fmt: skip
            print(f"batch {batch} {side.name:48s} {seconds:.3f} s, {table[-1]['passes']:.0f} passes, "
                  f"{table[-1]['utilisation']:.0%} of the peak", flush=True)  # fmt: skip
        result[f"batch {batch}"] = table
        two_at_a_time = pairs(table)
        if given.device == "cpu":  # each in a process of its own: these are in the way
            sides, models = [], []
            del side
            give_back()
        result[f"batch {batch}: ratios"] = [pair(given, batch, *two, sides or None) for two in two_at_a_time]
    if not given.no_result:
        config = {**{k: v for k, v in vars(given).items() if k != "no_result"}, "parameters": parameters}
        suffix = "_bf16" if narrow and given.device == "cpu" else ""
        write_result(f"training_speed_{given.backbone.replace('-', '_')}{suffix}", result, config=config, notes=NOTES)


def pairs(table: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What is compared with what: (slower as a rule, faster)."""
    seconds = {row["side"]: row["seconds per step, once"] for row in table}
    plain = [name for name in seconds if "plain loop" in name]
    by_hand = sorted((name for name in seconds if "tuned by hand" in name), key=seconds.__getitem__)[:1]
    found = [(name, own) for name in plain if (own := f"{name.split(',')[0]}, ours") in seconds]
    found += [(name, "ddpm, ours") for name in [*by_hand, *(n for n in seconds if "example" in n)]]
    found += [(name, "ddpm, ours") for name in seconds if ", ours" in name and name != "ddpm, ours"]
    first = next(name for name in plain if name.startswith("ddpm"))
    return found + [(name, first) for name in plain if name.startswith("cbdm")]


def alone(given: argparse.Namespace, batch: int, name: str) -> Side:
    """The side of a name, in a process of its own."""
    torch.set_num_threads(given.threads)
    (side,) = sides_of(given, batch, only=name)[0]
    return side


def pair(given: argparse.Namespace, batch: int, slower: str, faster: str, sides: list[Side] | None) -> dict[str, Any]:
    """How many times as long one takes as the other, A B A B: of `sides`, or each in a process of its own."""
    if sides is None:
        makers = [(name, partial(alone, given, batch, name)) for name in (faster, slower)]
        found = compare_apart(makers, repeats=given.repeats, warmup=2)
    else:
        two = [side for name in (faster, slower) for side in sides if side.name == name]
        found = compare(two, repeats=given.repeats, warmup=0, memory_repeats=0, counting=False, device=given.device)
    wall = found["ratios"][0]["wall"]
    fastest = [side["wall_s"]["min"] for side in found["sides"]]
    row = {
        "ratio": f"{slower} / {faster}", "median": wall["median"], "q1": wall["q1"], "q3": wall["q3"],
        "of the fastest runs": fastest[1] / fastest[0], "CPU seconds": found["ratios"][0]["cpu"]["median"],
        "runs of each": given.repeats,
    }  # fmt: skip
    print(f"  {row['ratio']:70s} {row['median']:.2f} ({row['q1']:.2f}-{row['q3']:.2f}), of the fastest "
          f"{row['of the fastest runs']:.2f}, CPU {row['CPU seconds']:.2f}", flush=True)  # fmt: skip
    return row


NOTES = """Ratios are of wall seconds, above 1 where the second side is faster: the two sides alone, A B A B; median and
quartiles over neighbouring runs, the ratio of the fastest runs, and the median ratio of CPU seconds. Utilisation:
counted operations (matrix products, convolutions, attention; forward and backward) per second, of what one large matrix
product reaches on this machine in the same process. Plain loops read images through PIL one at a time; with 0 workers
in the training process. On a GPU all loops of others, TF32 too, are set against the float32 rate; with one step per run
their loaders work while others are timed: give --steps 30. The ratios on a CPU are of processes. The
seconds of one step are looked at in one process."""

if __name__ == "__main__":
    main()
