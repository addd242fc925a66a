"""`generate`: from labels and seeds to images.

Every random number of image i depends on its seed alone, and batches are of one fixed size (the last one is padded),
so image i is the same whatever is drawn beside it, in whatever order, by however many processes, and after a restart:
bit for bit on the same machine, precision and thread count. Other batch sizes or devices round differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbdiff.diffusion.guidance import Guidance, NoGuidance
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.process import Flow
from imbdiff.diffusion.schedulers import make_scheduler, process_times, start
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.memory import freed_memory_kept
from imbdiff.runtime.streams import torch_rng


def generate(
    model: DiffusionModel,
    labels: Sequence[int] | np.ndarray,
    seeds: Sequence[int] | np.ndarray,
    *,
    sampler: str = "dpm++",
    steps: int = 20,
    guidance: Guidance | None = None,
    batch_size: int = 64,
    bf16: bool = False,
) -> np.ndarray:
    """Draws one image per label.

    Args:
        model: a trained model, in eval mode.
        labels: (N,) classes in [0, C), or C for "no class".
        seeds: (N,) one non-negative integer per image.
        sampler: a name in `schedulers.SAMPLERS`.
        steps: number of sampler steps.
        guidance: defaults to none.
        batch_size: rows per network call (twice as many under classifier-free guidance).
        bf16: call the network under bfloat16 autocast; the solver stays in float32.

    Returns:
        (N, H, W, C) uint8, in the order of `labels`.

    Raises:
        ConfigError: labels out of range, negative seeds, numbers that are not whole, lengths that differ, a batch size
            below 1, or a model in training mode (its dropout would draw from the global generator).
    """
    out: list[np.ndarray | None] = [None] * len(labels)
    for rows, images in generate_batches(
        model, labels, seeds, sampler=sampler, steps=steps, guidance=guidance, batch_size=batch_size, bf16=bf16
    ):
        for row, image in zip(rows, images, strict=True):
            out[row] = image
    height, width = model.spec.shape[1:]
    return (
        np.stack([x for x in out if x is not None])
        if out
        else np.zeros((0, height, width, model.spec.shape[0]), np.uint8)
    )


def generate_batches(
    model: DiffusionModel,
    labels: Sequence[int] | np.ndarray,
    seeds: Sequence[int] | np.ndarray,
    *,
    sampler: str = "dpm++",
    steps: int = 20,
    guidance: Guidance | None = None,
    batch_size: int = 64,
    bf16: bool = False,
    only: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """`generate`, batch by batch: yields (row numbers, (n, H, W, C) uint8 images).

    Batch b holds rows b * batch_size and following. `only` names the batches to draw: those of one process, or those
    that an earlier run did not finish.
    """
    labels, seeds = _whole(labels, "labels"), _whole(seeds, "seeds")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} must be at least 1")
    if any(module.training for module in model.modules()):
        raise ConfigError("the model is in training mode", "call model.eval() first")
    if len(labels) != len(seeds):
        raise ConfigError(f"{len(labels)} labels but {len(seeds)} seeds", "give one seed per image")
    if len(labels) and (labels.min() < 0 or labels.max() > model.null):
        raise ConfigError(
            f"labels reach from {labels.min()} to {labels.max()}; this model knows classes 0..{model.num_classes - 1}",
            f"use those, or {model.null} for 'no class'",
        )
    if len(seeds) and seeds.min() < 0:
        raise ConfigError(f"seed {seeds.min()} is negative", "use whole numbers from 0")
    batches = -(-len(labels) // batch_size)
    if only is not None and any(not 0 <= b < batches for b in only):
        raise ConfigError(f"batches {list(only)} were asked for; there are {batches}, counted from 0")
    scheduler = make_scheduler(sampler, model.process, steps)  # refuses what does not fit, before any work
    with freed_memory_kept(next(model.parameters()).device.type == "cpu"):
        for b in range(batches) if only is None else only:
            rows = list(range(b * batch_size, min((b + 1) * batch_size, len(labels))))
            padded = rows + [rows[0]] * (batch_size - len(rows))
            images = _batch(model, labels[padded], seeds[padded], scheduler, steps, guidance or NoGuidance(), bf16)
            yield rows, images[: len(rows)]


def _whole(values: Sequence[int] | np.ndarray, what: str) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ConfigError(f"{what} must be a list of whole numbers, not {array.dtype} of shape {array.shape}")
    return array.astype(np.int64)


@torch.no_grad()
def _batch(
    model: DiffusionModel,
    labels: np.ndarray,
    seeds: np.ndarray,
    scheduler: Any,
    steps: int,
    guidance: Guidance,
    bf16: bool,
) -> np.ndarray:
    device = next(model.parameters()).device
    y = torch.from_numpy(labels).to(device)
    generators = [torch_rng(int(seed), "image") for seed in seeds]
    # drawn on the CPU, one generator per image: the same numbers on every device
    x = torch.stack([torch.randn(model.codec.shape, generator=g) for g in generators]).to(device)
    start(scheduler, steps)
    if not isinstance(model.process, Flow):
        x = x * scheduler.init_noise_sigma
    options = {"generator": generators} if _takes_generator(scheduler) else {}

    def predict(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            prediction, _ = model(x_t, t, condition)
        return prediction.float()

    times = process_times(scheduler, model.process)
    levels = model.process.noise_level(times.cpu()).tolist()  # known here, so that nobody has to read them back
    for timestep, time, level in zip(scheduler.timesteps, times.to(device), levels, strict=True):
        t = time.expand(len(x))
        prediction = guidance.at(level)(
            scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x, t, y, predict
        )
        x = scheduler.step(prediction, timestep, x, **options, return_dict=False)[0]
    return model.codec.decode(x).permute(0, 2, 3, 1).cpu().numpy()


def _takes_generator(scheduler: Any) -> bool:
    return "generator" in scheduler.step.__code__.co_varnames
