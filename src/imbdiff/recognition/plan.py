"""How a classifier is trained, the same for all that are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from torch import nn

from imbdiff.data.augment import Augmentation
from imbdiff.runtime.errors import ConfigError

STEPS_AT = ((0.8, 0.01), (0.9, 0.0001))
"""Of the schedule "steps": from these shares of the steps on, the learning rate is multiplied by so much (160 and 180
of 200 epochs in the code of Cao et al. 2019)."""
CIFAR_PIXELS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""Mean and standard deviation that the literature brings CIFAR's channels to 0 and 1 with."""


@dataclass(frozen=True)
class FitPlan:
    """How a classifier is trained, the same for every arm of a comparison.

    Attributes:
        network: a name that :func:`imbdiff.recognition.networks.build_network` takes, or in Python a function of
            (H, W, C) and the number of classes that gives a module.
        steps, batch_size: optimizer steps and images per step.
        learning_rate, momentum, nesterov, weight_decay: of SGD.
        warmup: share of the steps over which the rate rises from 0.
        schedule: "cosine": after it the rate falls to 0 along a half cosine; "steps": :data:`STEPS_AT`.
        augmentation: drawn per row from (seed, step).
        normalise: (means, standard deviations) of the channels of pixels in [0, 1], which the network brings to 0 and
            1; None: pixels are in [-1, 1].
        precision: "auto" is bf16 on a GPU that has it, and from 16 pixels on a CPU with AMX; fp32 elsewhere.
    """

    network: str | Callable[[tuple[int, int, int], int], nn.Module] = "resnet-small"
    steps: int = 500
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    nesterov: bool = True
    schedule: Literal["cosine", "steps"] = "cosine"
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 2:
            raise ConfigError(
                f"classifier: {self.steps} steps of batch {self.batch_size}",
                "give at least 1 step, and at least 2 images per step (batch normalisation)",
            )
        if self.schedule not in ("cosine", "steps"):
            raise ConfigError(f"unknown schedule {self.schedule!r} of the learning rate", "choose cosine or steps")

    def to_json(self) -> dict[str, Any]:
        """Plain values: for hashes and pages."""
        found = self.network
        if not isinstance(found, str):
            # a partial or another object that can be called has no name of its own
            found = f"{found.__module__}.{getattr(found, '__qualname__', type(found).__qualname__)}"
        return {**asdict(replace(self, network="")), "network": found}

    def rate(self, step: int, steps: int | None = None) -> float:
        """Learning rate of `step` in 0..steps-1; `steps` of a phase in place of all."""
        steps = self.steps if steps is None else steps
        rise = max(1, round(self.warmup * steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        if self.schedule == "steps":
            return self.learning_rate * next((f for share, f in reversed(STEPS_AT) if step >= share * steps), 1.0)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (steps - rise + 1)))


def literature(steps: int = 17_000, *, mirror: bool = True) -> FitPlan:
    """The recipe of the literature of CIFAR-LT (Cao et al. 2019, their code).

    ResNet-32, batch 128, SGD with momentum 0.9 and weight decay 2e-4, rate 0.1 after 5 of 200 epochs of warm-up, times
    0.01 from epoch 160 and 0.0001 from 180; crops of images padded by 4 black pixels, mirrored at random. 17,000 steps
    are 200 epochs of CIFAR-100-LT at imbalance factor 100. Arithmetic in float32.
    """
    crop = Augmentation(flip=mirror, shift=4, border="zero")
    return FitPlan(
        "resnet32", steps, 128, 0.1, 0.9, 2e-4, warmup=5 / 200, augmentation=crop, nesterov=False, schedule="steps",
        normalise=CIFAR_PIXELS, precision="fp32",
    )  # fmt: skip
