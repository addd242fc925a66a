"""How a classifier is trained, the same for all that are compared."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from imbdiff.config import FitConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.symmetry import Symmetry
from imbdiff.recognition.networks import Maker, name_of, network_identity

MOMENTUM = 0.9
STEPS_AT = ((0.8, 0.01), (0.9, 0.0001))
"""Of the protocol "cifar-lt": from these shares of the steps on, the learning rate is multiplied by these factors (160
and 180 of 200 epochs in the code of Cao et al. 2019)."""
CIFAR_PIXELS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""Mean and standard deviation that the literature brings CIFAR's channels to 0 and 1 with."""


@dataclass(frozen=True)
class FitPlan(FitConfig):
    """The options of :class:`imbdiff.config.FitConfig`, with what the data and the run add to them.

    Attributes:
        network: in Python also a function of (H, W, C) and the number of classes that gives a module.
        symmetry: what leaves the meaning of the images as it is: how they are mirrored and turned.
        precision: "auto" is bf16 on a GPU that has it, and from 16 pixels on a CPU with AMX; fp32 elsewhere.
    """

    network: str | Maker = "resnet-small"  # type: ignore[assignment]
    symmetry: Symmetry = "none"
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @classmethod
    def of(
        cls, options: FitConfig, *, symmetry: Symmetry = "none", precision: Literal["auto", "fp32", "bf16"] = "auto"
    ) -> FitPlan:
        """The plan of a configuration. The protocol of the literature is in float32, whatever `precision` says."""
        given = {field.name: getattr(options, field.name) for field in fields(FitConfig)}
        return cls(**given, symmetry=symmetry, precision="fp32" if options.protocol == "cifar-lt" else precision)

    @property
    def augmentation(self) -> Augmentation:
        """What is done to training images: more than a generator may see."""
        border: Literal["edge", "zero"] = "zero" if self.protocol == "cifar-lt" else "edge"
        return Augmentation(self.symmetry, self.shift, self.erase, border, self.policy)

    @property
    def weight_decay(self) -> float:
        return 2e-4 if self.protocol == "cifar-lt" else 5e-4

    @property
    def warmup(self) -> float:
        """Share of the steps over which the rate rises: 5 of 200 epochs in the code of Cao et al. 2019."""
        return 5 / 200 if self.protocol == "cifar-lt" else 0.1

    @property
    def nesterov(self) -> bool:
        return self.protocol != "cifar-lt"

    @property
    def normalise(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """(means, standard deviations) of pixels in [0, 1], which the network brings to 0 and 1; None: to [-1, 1]."""
        return CIFAR_PIXELS if self.protocol == "cifar-lt" else None

    def to_json(self) -> dict[str, Any]:
        """Plain values: for hashes and pages."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        own = {"momentum": MOMENTUM, "nesterov": self.nesterov, "augmentation": asdict(self.augmentation),
               "weight_decay": self.weight_decay, "warmup": self.warmup}  # fmt: skip
        return {**plain, "network": name_of(self.network), **own}

    def identity(self, shape: tuple[int, int, int], num_classes: int) -> list[Any]:
        """What tells two plans apart in caches, for images of `shape`: their values, and what the network is."""
        return [self.to_json(), network_identity(self.network, shape, num_classes)]

    def rate(self, step: int, steps: int | None = None) -> float:
        """Learning rate of `step` in 0..steps-1; `steps` of a phase in place of all."""
        steps = self.steps if steps is None else steps
        rise = max(1, round(self.warmup * steps))
        if step < rise:
            return self.lr * (step + 1) / rise
        if self.protocol == "cifar-lt":
            return self.lr * next((f for share, f in reversed(STEPS_AT) if step >= share * steps), 1.0)
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (steps - rise + 1)))


def literature(steps: int = 17_000, *, mirror: bool = True) -> FitPlan:
    """The recipe of the literature of CIFAR-LT (Cao et al. 2019, their code).

    ResNet-32, batch 128, SGD with momentum 0.9 and weight decay 2e-4, rate 0.1 after 5 of 200 epochs of warm-up, times
    0.01 from epoch 160 and 0.0001 from 180; crops of images padded by 4 black pixels, mirrored at random. 17,000 steps
    are 200 epochs of CIFAR-100-LT at imbalance factor 100. Arithmetic in float32.
    """
    return FitPlan(
        network="resnet32", steps=steps, protocol="cifar-lt", shift=4,
        symmetry="mirror" if mirror else "none", precision="fp32",
    )  # fmt: skip
