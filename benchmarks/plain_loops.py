"""Training loops to be measured against: as this field's released code writes them, as diffusers' example does, and
tuned by hand. All train the same network on the same images; none of this is used by the package.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler

from imbdiff.data.imageset import ImageSet
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.runtime.device import make_accelerator

CLIP, DECAY, LR, DROP = 1.0, 0.9999, 2e-4, 0.1
Step = Callable[[], object]


class PilImages(Dataset[tuple[Tensor, int]]):
    """One image at a time: through PIL, mirrored by a coin, to [-1, 1]."""

    def __init__(self, data: ImageSet) -> None:
        self.images, self.labels = np.asarray(data.images), data.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        array = self.images[i]
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        if torch.rand(1).item() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image)).reshape(array.shape).permute(2, 0, 1).contiguous().float().div(255)
        return (x - 0.5) / 0.5, int(self.labels[i])


def endless(data: ImageSet, batch: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        PilImages(data), batch, sampler=RandomSampler(PilImages(data), replacement=True, num_samples=10**6),
        num_workers=workers, drop_last=True, persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        yield from loader


def noised(model: DiffusionModel, x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    noise, t = torch.randn_like(x0), torch.randint(0, 1000, (len(x0),), device=x0.device)
    return model.process.add_noise(x0, noise, t), t, noise


def field(model: DiffusionModel, data: ImageSet, batch: int, device: str, method: str, workers: int = 0) -> Step:
    """As released code of this field: a pass per branch, labels dropped per batch, the loss read at every step, and the
    average a Python loop over the state dict."""
    images = endless(data, batch, workers)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step, 5000) / 5000)
    average = copy.deepcopy(model)
    prior = torch.from_numpy(data.stats.prior)

    def step() -> float:
        optimizer.zero_grad()
        x0, y = (part.to(device) for part in next(images))
        x_t, t, noise = noised(model, x0)
        dropped = torch.rand(1).item() < DROP
        label = torch.full_like(y, model.null) if dropped else y
        given, _ = model(x_t, t, label)
        loss = F.mse_loss(given, noise)
        w = (t / 1000).reshape(-1, 1, 1, 1)
        if method == "cbdm":
            other, _ = model(x_t, t, torch.multinomial(prior, len(y), replacement=True).to(device))
            loss = loss + (w * (given - other.detach()) ** 2).mean() + 0.25 * (w * (given.detach() - other) ** 2).mean()
        if method == "alignment":
            null, _ = model(x_t, t, torch.full_like(y, model.null))
            loss = loss + (w * (given - null) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        source, target = model.state_dict(), average.state_dict()
        for key in source:
            target[key].data.copy_(target[key].data * DECAY + source[key].data * (1 - DECAY))
        return loss.item()

    return step


def example(model: DiffusionModel, data: ImageSet, batch: int, device: str, workers: int = 0) -> Step:
    """In the style of diffusers' unconditional training example: accelerate, its scheduler and EMAModel, AdamW."""
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    accelerator = make_accelerator(device, "fp32")  # accelerate's precision is global to the process
    images = endless(data, batch, workers)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    rates = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10**6)
    average = EMAModel(model.parameters(), decay=DECAY, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    wrapped = accelerator.prepare(model)

    def step() -> float:
        x0, y = (part.to(device) for part in next(images))
        noise = torch.randn(x0.shape, dtype=x0.dtype, device=x0.device)
        t = torch.randint(0, 1000, (len(x0),), device=x0.device).long()
        x_t = scheduler.add_noise(x0, noise, t)
        with accelerator.accumulate(wrapped):
            given, _ = wrapped(x_t, t, y)
            loss = F.mse_loss(given.float(), noise.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
        average.step(model.parameters())
        return loss.detach().item()

    return step


def tuned(
    model: DiffusionModel, data: ImageSet, batch: int, device: str, channels_last: bool, bf16: bool = False
) -> Step:
    """What can be had by hand without a compiler: resident images, fused Adam, foreach clipping and averaging, nothing
    read from the device; with `bf16` under autocast."""
    resident = torch.from_numpy(np.asarray(data.images)).permute(0, 3, 1, 2).contiguous().to(device)
    labels = torch.from_numpy(data.labels).to(device)
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters: list[Any] = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
    average = [p.detach().clone() for p in parameters]

    def step() -> None:
        rows = torch.randint(0, len(labels), (batch,), device=device)
        x0, y = resident[rows].float().div_(127.5).sub_(1), labels[rows]
        x0 = torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.5, x0.flip(-1), x0)
        if channels_last:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        x_t, t, noise = noised(model, x0)
        y = torch.where(torch.rand(batch, device=device) < DROP, model.null, y)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            given, _ = model(x_t, t, y)
        F.mse_loss(given.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - DECAY)

    return step
