"""`generate`: from labels and seeds to images.

Every random number of image i depends on its seed alone, and batches are of one fixed size (the last one is padded),
so image i is the same for any other images, any order, any number of processes, and after a restart:
bit for bit on the same machine, precision and thread count. Other batch sizes or devices round differently.

An image begins as noise, or as a real image with noise on it (SDEdit: Meng et al., ICLR 2022, arXiv 2108.01073; for
training classifiers DA-Fusion: Trabucco et al., ICLR 2024, arXiv 2302.07944).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbdiff.data.imageset import Rows
from imbdiff.diffusion.guidance import Guidance, NoGuidance, moved
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.process import DDPM, Flow, Process
from imbdiff.diffusion.schedulers import begin_at, make_scheduler, process_times
from imbdiff.diffusion.schedulers import start as start_scheduler
from imbdiff.runtime.device import cpu_threads
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng


def generate(
    model: DiffusionModel, labels: Sequence[int] | np.ndarray, seeds: Sequence[int] | np.ndarray, **options: Any
) -> np.ndarray:
    """Generates one image per label, with the arguments of `generate_batches`.

    Returns:
        (N, H, W, C) uint8, in the order of `labels`.
    """
    batches = list(generate_batches(model, labels, seeds, **options))
    if not batches:
        return np.zeros((0, *_image_shape(model)), np.uint8)
    order = np.argsort(np.concatenate([rows for rows, _ in batches]))
    return np.concatenate([images for _, images in batches])[order]


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
    boost: float = 1.0,
    skip: float = 0.0,
    start: np.ndarray | Rows | None = None,
    strength: float | Sequence[float] | np.ndarray = 1.0,
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Generates one image per label, batch by batch: yields (row numbers, (n, H, W, C) uint8 images).

    Args:
        model: a trained model, in eval mode.
        labels: (N,) classes in [0, C), or C for "no class".
        seeds: (N,) one non-negative integer per image.
        sampler: a name in `schedulers.SAMPLERS`.
        steps: number of sampler steps.
        guidance: defaults to none.
        batch_size: rows per network call (twice as many under classifier-free guidance). Batch b holds rows
            b * batch_size and following; where there are several strengths, those of the least come first, and no
            batch has two.
        bf16: call the network under bfloat16 autocast; the solver stays in float32.
        only: the batches to generate: those of one process, or those that an earlier run did not finish.
        boost, skip: Boost-and-Skip (Um, Kim and Ye, ICML 2025, arXiv 2502.06516), for images of low density within
            their class: the initial noise is `boost` times as large, x ~ N(0, boost^2 I), above 0, and the steps from
            the noisiest `skip` of the time, in [0, 1), are left out, so that later ones do not undo it: the first is
            that at the first time of at most (1 - skip) T. The paper's code (soobin-um/BnS) takes 4 (2.5 for
            ImageNet-64 to be enlarged to 256) and the first 3 of 250 steps, 0.012, with ancestral sampling ("ddpm"):
            stochastic steps are what their theory is about. (A perfect model of Gaussian data forgets a boost in
            them, and keeps it in steps of a solver.)
        start: (N, H, W, C) uint8, the real image that each begins as; they are read and encoded batch by batch, to the
            mean where an encoding is a distribution. None: as noise.
        strength: in [0, 1], one for all or (N,). A real image is brought to this noise level, x = a(t) x_0 + s(t) noise
            with the noise that its seed would begin with, and the sampler's steps below it follow: its time nearest to
            it is moved there. 0 gives what the codec makes of the image, without a step: decode(encode(image)). At 1
            what is left of it is what the process leaves at its noisiest time: a = 0.006 with linear betas.

    Raises:
        ConfigError: labels out of range, seeds that are negative, either not (N,) whole numbers, a batch size below 1,
            a model in training mode (its dropout would read the global generator), a boost, skip or strength out of
            range, or so large a skip that no step is left; images to begin as that are not of the model's size, or a
            sampler that does not scale x_t as the process does.
    """
    labels, seeds = _whole(labels, "labels"), _whole(seeds, "seeds")
    if len(labels) != len(seeds) or batch_size < 1 or (len(seeds) and seeds.min() < 0):
        raise ConfigError(
            f"{len(labels)} labels, {len(seeds)} seeds from {seeds.min(initial=0)}, batch_size={batch_size}",
            "give one seed from 0 for each label, and a batch_size of at least 1",
        )
    if any(module.training for module in model.modules()):
        raise ConfigError("the model is in training mode", "call model.eval() first")
    if len(labels) and (labels.min() < 0 or labels.max() > model.null):
        raise ConfigError(
            f"labels reach from {labels.min()} to {labels.max()}; this model knows classes 0..{model.num_classes - 1}",
            f"use those, or {model.null} for 'no class'",
        )
    strengths = _strengths(strength, start, len(labels), _image_shape(model), changed=boost != 1 or skip != 0)
    if not 0 < boost < float("inf"):
        raise ConfigError(f"boost={boost} must be above 0 and finite", "use 1 for none; the paper uses 2.5 to 4")
    # refuses what does not fit, before any work
    scheduler = make_scheduler(sampler, model.process, steps, model.codec.bound)
    if start is not None and not isinstance(model.process, Flow) and float(scheduler.init_noise_sigma) != 1:
        raise ConfigError(f"the sampler {sampler} scales images otherwise than the process", "use dpm++ or ddim")
    begin = first_step(scheduler, model.process, skip)
    alike = [np.flatnonzero(strengths == s).tolist() for s in np.unique(strengths)]
    batches = [of_one[i : i + batch_size] for of_one in alike for i in range(0, len(of_one), batch_size)]
    for rows in batches if only is None else [batches[b] for b in only]:
        padded = rows + [rows[0]] * (batch_size - len(rows))
        real = None if start is None else torch.from_numpy(start[np.array(padded)]).permute(0, 3, 1, 2)
        with cpu_threads(model.cpu_threads):
            images = _batch(
                model, labels[padded], seeds[padded], scheduler, steps, guidance or NoGuidance(), bf16, boost,
                begin, real, strengths[rows[0]],
            )  # fmt: skip
        yield rows, images[: len(rows)]


def _image_shape(model: DiffusionModel) -> tuple[int, int, int]:
    channels, height, width = model.spec.shape
    return height, width, channels


def _strengths(
    strength: Any, start: np.ndarray | Rows | None, n: int, shape: tuple[int, int, int], changed: bool
) -> np.ndarray:
    """(n,) float64."""
    found = np.asarray(strength, dtype=np.float64)
    if found.shape not in ((), (n,)) or not ((found >= 0) & (found <= 1)).all():
        raise ConfigError(f"strength={strength} must be in [0, 1]", "give one number, or one for each image")
    if start is None and (found != 1).any():
        raise ConfigError(f"strength={strength} has no effect without images to begin as", "give these as `start`")
    if start is not None and (start.shape != (n, *shape) or start.dtype != np.uint8):
        raise ConfigError(
            f"start: images of shape {start.shape} and type {start.dtype}, and this model makes {(n, *shape)} uint8",
            "give one image of that size for each label",
        )
    if start is not None and changed:
        raise ConfigError("boost and skip have no effect on images that begin as real ones", "leave them out")
    return np.broadcast_to(found, (n,))


def _whole(values: Sequence[int] | np.ndarray, what: str) -> np.ndarray:
    found = np.asarray(values)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise ConfigError(
            f"{what} of type {found.dtype} and shape {found.shape}", f"give {what} as whole numbers, (N,)"
        )
    return found.astype(np.int64)


@torch.no_grad()
def _batch(
    model: DiffusionModel,
    labels: np.ndarray,
    seeds: np.ndarray,
    scheduler: Any,
    steps: int,
    guidance: Guidance,
    bf16: bool,
    boost: float,
    begin: int,
    real: Tensor | None,
    strength: float,
) -> np.ndarray:
    device = next(model.parameters()).device
    y = torch.from_numpy(labels).to(device)
    generators = [torch_rng(int(seed), "image") for seed in seeds]
    # drawn on the CPU, one generator per image: the same numbers on every device
    x = torch.stack([torch.randn(model.codec.shape, generator=g) for g in generators]).to(device)
    start_scheduler(scheduler, steps)
    if real is not None:
        clean = model.codec.encode(model.codec.store(real.to(device)))
        if strength == 0:
            return _decoded(model, clean)
        begin = begin_at(scheduler, model.process, strength)
        time = process_times(scheduler, model.process)[begin].to(device)
        x = model.process.add_noise(clean, x, time.expand(len(x)))
    elif not isinstance(model.process, Flow):
        x = x * scheduler.init_noise_sigma
    if boost != 1:
        x = x * boost
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    options = {"generator": generators} if _takes_generator(scheduler) else {}

    def predict(x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            prediction, _ = model(x_t, t, condition)
        return prediction.float()

    times = process_times(scheduler, model.process)
    levels = model.process.noise_level(times.cpu()).tolist()  # known here: not read back from the device
    steps_left = zip(scheduler.timesteps[begin:], times.to(device)[begin:], levels[begin:], strict=True)
    for timestep, time, level in steps_left:
        t = time.expand(len(x))
        seen = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
        prediction, shift = guidance.at(level).parts(seen, t, y, predict)
        x = sampler_step(scheduler, model.process, prediction, shift, t, timestep, x, **options)
    return _decoded(model, x)


def _decoded(model: DiffusionModel, x: Tensor) -> np.ndarray:
    return model.codec.decode(x).permute(0, 2, 3, 1).cpu().numpy()


def first_step(scheduler: Any, process: Process, skip: float) -> int:
    """The number of the first step at a time of at most (1 - skip) T.

    Raises:
        ConfigError: `skip` is not in [0, 1), or no step is left.
    """
    if not 0 <= skip < 1:
        raise ConfigError(f"skip={skip} must be at least 0 and below 1", "give a share of the time, such as 0.012")
    levels = process.noise_level(process_times(scheduler, process).cpu()).tolist()
    left = [i for i, level in enumerate(levels) if level <= 1 - skip + 1e-6]
    if not left:
        raise ConfigError(
            f"skip={skip} leaves none of {len(levels)} steps: the last is at {levels[-1]:.3g} of the time",
            "skip less, or use more steps",
        )
    return left[0]


def sampler_step(
    scheduler: Any,
    process: Process,
    prediction: Tensor,
    shift: Tensor | None,
    t: Tensor,
    timestep: Tensor,
    x: Tensor,
    **options: Any,
) -> Tensor:
    """The sampler's step from x (B, c, h, w) with a shift of the clean image that it does not clip.

    diffusers' samplers clip within `step`. Multistep solvers go through their `convert_model_output`, whose answer, the
    clipped clean image, is what is shifted; to it their history belongs too. The mean of an ancestral step is linear in
    the clean image, which has the factor a_prev beta / (1 - abar), so it is shifted afterwards. Flows do not clip.
    """
    if shift is not None and isinstance(process, DDPM) and hasattr(scheduler, "convert_model_output"):
        convert = scheduler.convert_model_output
        scheduler.convert_model_output = lambda *args, **named: convert(*args, **named) + shift
        try:
            return scheduler.step(prediction, timestep, x, **options, return_dict=False)[0]
        finally:
            del scheduler.convert_model_output
    if shift is not None and isinstance(process, DDPM) and type(scheduler).__name__ == "DDPMScheduler":
        x = scheduler.step(prediction, timestep, x, **options, return_dict=False)[0]
        after = int(scheduler.previous_timestep(timestep))
        abar = float(process.alphas_cumprod[timestep])
        abar_prev = float(process.alphas_cumprod[after]) if after >= 0 else 1.0
        return x + abar_prev**0.5 * (1 - abar / abar_prev) / (1 - abar) * shift
    if shift is not None:
        prediction = moved(process, prediction, shift, t)
    return scheduler.step(prediction, timestep, x, **options, return_dict=False)[0]


def _takes_generator(scheduler: Any) -> bool:
    return "generator" in scheduler.step.__code__.co_varnames
