"""The classifier's loop: images are augmented on the device, and steps are counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbdiff.data.augment import Augmentation
from imbdiff.data.gather import Gather
from imbdiff.data.imageset import ImageSet
from imbdiff.data.samplers import BatchSampler
from imbdiff.metrics.extractors import to_unit
from imbdiff.recognition.losses import balanced_softmax, cross_entropy, log_prior
from imbdiff.recognition.networks import Classifier, build_network
from imbdiff.runtime.errors import ConfigError, NonFiniteLossError
from imbdiff.runtime.streams import torch_rng

CHECK_EVERY = 50
"""Steps between looks at the loss: each look waits for the device."""


@dataclass(frozen=True)
class FitPlan:
    """How a classifier is trained, the same for every arm of a comparison.

    Attributes:
        network: a name of :data:`imbdiff.recognition.networks.NETWORKS`.
        steps, batch_size: optimizer steps and images per step.
        learning_rate, momentum, weight_decay: of SGD with Nesterov momentum; the rate rises over the first `warmup` of
            the steps and falls to 0 along a half cosine.
        augmentation: random shifts and flips, drawn per row from (seed, step).
    """

    network: str = "resnet-small"
    steps: int = 500
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2:
            raise ConfigError(
                f"classifier: {self.steps} steps of batch {self.batch_size}",
                "give at least 1 step, and at least 2 images per step (batch normalisation)",
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def rate(self, step: int) -> float:
        """Learning rate of `step` in 0..steps-1."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (self.steps - rise + 1)))


def fit(
    images: ImageSet,
    plan: FitPlan,
    *,
    law: str = "natural",
    prior: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    stop: Callable[[], bool] | None = None,
    name: str = "classifier",
) -> Classifier:
    """Trains a network on `images`; equal arguments give equal weights, bit for bit on a CPU at one thread count.

    Args:
        images: real and synthetic ones together.
        law: of the batch sampler.
        prior: (C,) for balanced softmax; cross-entropy where None.
        weights: (N,) of the loss of each image, all 1 where None. Divided by their mean, so that the learning rate
            keeps its meaning.
        seed: of weights, batches and augmentation; the streams do not depend on what else is compared.
        stop: asked now and then; training ends early where it says True (its result is then worthless).
        name: for error messages.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
    """
    device = torch.device(device)
    network = build_network(plan.network, images.shape, len(images.class_names), seed).to(device)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    data = Gather(images.images, device)
    labels = torch.from_numpy(np.array(images.labels)).to(device)
    row_weights = None if weights is None else torch.from_numpy(weights / weights.mean()).float().to(device)
    adjustment = None if prior is None else log_prior(prior, device)
    sampler = BatchSampler(images.labels, plan.batch_size, law=law, seed=seed, name="classifier batch")
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=plan.learning_rate,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
        nesterov=plan.momentum > 0,
    )
    for step in range(plan.steps):
        index = sampler.indices(step)
        if not data.on_device:
            data.ahead(sampler.indices(step + 1))
        rows = torch.from_numpy(index).to(device)
        draws = plan.augmentation.draw(plan.batch_size, torch_rng(seed, "classifier augmentation", step))
        x = plan.augmentation.apply(data.rows(index), draws.to(device)).float() / 127.5 - 1
        logits = network(x.contiguous(memory_format=torch.channels_last))
        y = labels[rows]
        per_row = cross_entropy(logits, y) if adjustment is None else balanced_softmax(logits, y, adjustment)
        loss = (per_row if row_weights is None else per_row * row_weights[rows]).mean()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == plan.steps:
            if stop is not None and stop():
                return network
            if not math.isfinite(loss.item()):
                raise NonFiniteLossError(
                    f"{name}: the loss is {loss.item()} at step {step + 1}",
                    f"use a smaller learning rate than {plan.learning_rate}",
                )
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def predict(network: Classifier, images: ImageSet, batch_size: int = 512) -> np.ndarray:
    """(N,) int64 predicted class of each image; the largest logit, the prior of the test images taken as flat."""
    device = next(network.parameters()).device
    network.eval()
    parts: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        x = to_unit(torch.from_numpy(np.array(images.images[start : start + batch_size], order="C")).to(device))
        parts.append(network(x.contiguous(memory_format=torch.channels_last)).argmax(dim=1).cpu())
    return torch.cat(parts).numpy().astype(np.int64) if parts else np.zeros(0, np.int64)
