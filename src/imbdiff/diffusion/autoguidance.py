"""Guidance by a bad version of the model itself (Karras et al., NeurIPS 2024, arXiv 2406.02507)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imbdiff.diffusion.guidance import Extrapolation, Predict
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.process import Process
from imbdiff.runtime.errors import ConfigError


@dataclass(frozen=True)
class Autoguidance(Extrapolation):
    """Autoguidance (Karras et al., NeurIPS 2024, arXiv 2406.02507, Eq. 3): away from a worse model of the same images.

        prediction = p(x_t, y) + omega (p(x_t, y) - p_weak(x_t, y))

    Both have the same label, so it goes away from the weak model's errors and not from other classes. Theirs is a
    smaller model trained for 1/16 to 1/3.5 as long; here it is the same network earlier in its training. Their best
    omega is 0.7 on ImageNet-64 and 1.05 to 1.45 on ImageNet-512 (w - 1 of the presets in NVlabs/edm2). Rows of the null
    label are guided too. Guidance within `predict` changes p and not p_weak.

    Attributes:
        omega: one number for all rows, or one per class, (C,), where rows of the null label take 0, or (C + 1,), theirs
            the last; at least -1.
        weak: in eval mode, on the device of the model.
        interval: (low, high) noise levels in [0, 1] within which to guide; the paper finds no interval of use.
        level: the noise level of t, where it is known; otherwise it is read from t.
        bf16: call the weak network under bfloat16 autocast.

    Raises:
        ConfigError: an omega is below -1 or not finite, or their number is wrong; bad interval; `weak` is in training
            mode.
    """

    omega: float | Sequence[float]
    weak: DiffusionModel
    interval: tuple[float, float] = (0.0, 1.0)
    level: float | None = None
    bf16: bool = False

    _null_too = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(module.training for module in self.weak.modules()):
            raise ConfigError("autoguidance: the weak model is in training mode", "call weak.eval() first")

    @property
    def classes(self) -> int:
        return self.weak.num_classes

    @property
    def process(self) -> Process:  # type: ignore[override]
        return self.weak.process

    def pair(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> tuple[Tensor, Tensor]:
        p = predict(x_t, t, labels)
        with torch.autocast(x_t.device.type, torch.bfloat16, enabled=self.bf16):
            other, _ = self.weak(x_t, t, labels)
        return p, other.to(p.dtype)
