"""What changes the prediction while sampling: ``guidance(x_t, t, labels, predict) -> prediction``.

`predict(x_t, t, labels)` evaluates the network, or another guidance: they compose by nesting (`Guided`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from imbdiff.diffusion.process import Process, expand
from imbdiff.runtime.errors import ConfigError

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


class Guidance(ABC):
    """Changes the prediction at x_t."""

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        """x_t (B, c, h, w), t (B,), labels (B,) in [0, C] -> the guided prediction (B, c, h, w)."""

    def at(self, level: float) -> Guidance:
        """This guidance at a known noise level, which need not be read from the device then; default: itself."""
        return self


class NoGuidance(Guidance):
    """The conditional prediction as it is."""

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        return predict(x_t, t, labels)


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance (Ho and Salimans 2021), as the papers of this field write it.

        prediction = p_c + omega (p_c - p_u)

    omega = 0 means no guidance; the "guidance scale" w of other code is 1 + omega. Both branches run as one batch.
    All predictions here are affine in eps at fixed x_t and t, so it is the same guidance under eps, v and flow.

    Attributes:
        omega: one number for all classes, or one per class, (C,); at least -1.
        null: the null label.
        process: gives the noise level of t.
        interval: (low, high) noise levels in [0, 1] within which to guide (Kynkaanniemi et al. 2024); outside of it the
            conditional prediction is used and the second branch is not computed.
        level: the noise level of t, where it is known; otherwise it is read from t.
    """

    omega: float | Sequence[float]
    null: int
    process: Process
    interval: tuple[float, float] = (0.0, 1.0)
    level: float | None = None

    def __post_init__(self) -> None:
        values = [self.omega] if isinstance(self.omega, int | float) else list(self.omega)
        if not isinstance(self.omega, int | float) and len(values) != self.null:
            raise ConfigError(
                f"{len(values)} guidance scales for {self.null} classes", "give one number, or one per class"
            )
        if any(not -1 <= value < float("inf") for value in values):
            raise ConfigError(f"guidance omega must be at least -1 and finite, not {self.omega}")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"guidance interval {self.interval} must be 0 <= low <= high <= 1")

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        level = known_level(self.level, self.process, t)
        scales = [float(self.omega)] if isinstance(self.omega, int | float) else [float(w) for w in self.omega]
        if not self.interval[0] <= level <= self.interval[1] or not any(scales):
            return predict(x_t, t, labels)
        both = predict(
            torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([labels, torch.full_like(labels, self.null)])
        )
        conditional, unconditional = both.chunk(2)
        if isinstance(self.omega, int | float):
            return conditional + self.omega * (conditional - unconditional)
        # the null label is as good a label as any, and has nothing to be guided to
        per_row = torch.tensor([*scales, 0.0], device=x_t.device, dtype=x_t.dtype)[labels]
        return conditional + expand(per_row, x_t) * (conditional - unconditional)

    def at(self, level: float) -> ClassifierFree:
        return replace(self, level=level)


def known_level(level: float | None, process: Process, t: Tensor) -> float:
    """The noise level that all rows share while sampling: as known, or read from their time."""
    return float(process.noise_level(t[:1])) if level is None else level


@dataclass(frozen=True)
class Guided(Guidance):
    """`outer` around `inner`: what `outer` sees as the network is `inner`'s guided prediction."""

    outer: Guidance
    inner: Guidance

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        return self.outer(x_t, t, labels, lambda x, s, y: self.inner(x, s, y, predict))

    def at(self, level: float) -> Guided:
        return Guided(self.outer.at(level), self.inner.at(level))
