"""What changes the prediction while sampling: ``guidance(x_t, t, labels, predict) -> prediction``.

`predict(x_t, t, labels)` evaluates the network, or another guidance: they compose by nesting (`Guided`). There are two
kinds: `Extrapolation` goes away from another prediction, `Shift` adds a gradient to the score. What a shift adds is
handed to the sampler apart from the prediction (`Guidance.parts`), since samplers clip the clean image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from imbdiff.diffusion.process import DDPM, MIN_DIVISOR, Process, expand
from imbdiff.diffusion.scales import scale_table
from imbdiff.diffusion.schedulers import make_scheduler, process_times
from imbdiff.runtime.errors import ConfigError

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
SOLVER_DIVISOR = 0.05  # the least a that the shift of an ODE solver is divided by: a flow's after the first of 20 steps


class Guidance(ABC):
    """Changes the prediction at x_t.

    Attributes:
        shifts: whether it hands `predict`'s answer on and does nothing but add a shift to it.
        differentiates: whether it takes gradients through `predict`, which a compiled network may answer wrongly.
    """

    shifts: bool = False
    differentiates: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        """x_t (B, c, h, w), t (B,), labels (B,) in [0, C] -> the guided prediction (B, c, h, w)."""

    def parts(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> tuple[Tensor, Tensor | None]:
        """The prediction whose clean image the sampler may clip, and a shift of that image which it may not.

        Both are (B, c, h, w); None is no shift. By default all of it is prediction.
        """
        return self(x_t, t, labels, predict), None

    def at(self, level: float) -> Guidance:
        """This guidance at a known noise level, which need not be read from the device then.

        A guidance is a dataclass; without a field ``level`` it is the same at all of them.
        """
        return replace(self, level=level) if hasattr(self, "level") else self  # type: ignore[type-var]


class NoGuidance(Guidance):
    """The conditional prediction as it is."""

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        return predict(x_t, t, labels)


class Extrapolation(Guidance):
    """Away from another prediction:

        prediction = p + omega (p - p_other)

    omega = 0 means no guidance; the "guidance scale" w of other code is 1 + omega. All predictions here are affine in
    eps at fixed x_t and t, so it is the same guidance under eps, v and flow.
    """

    omega: float | Sequence[float]
    process: Process
    interval: tuple[float, float]
    level: float | None

    def __post_init__(self) -> None:
        scale_table(self.omega, self.classes, least=-1.0, null=self._null_too)
        check_interval(self.interval)

    _null_too = False

    @property
    @abstractmethod
    def classes(self) -> int: ...

    @abstractmethod
    def pair(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> tuple[Tensor, Tensor]:
        """p and p_other, each (B, c, h, w)."""

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        level = known_level(self.level, self.process, t)
        scales = scale_table(self.omega, self.classes, least=-1.0, null=self._null_too)
        if not self.interval[0] <= level <= self.interval[1] or not any(scales):
            return predict(x_t, t, labels)
        p, other = self.pair(x_t, t, labels, predict)
        if isinstance(self.omega, int | float):
            return p + self.omega * (p - other)
        per_row = torch.tensor(scales, device=x_t.device, dtype=x_t.dtype)[labels]
        return p + expand(per_row, x_t) * (p - other)


@dataclass(frozen=True)
class ClassifierFree(Extrapolation):
    """Classifier-free guidance (Ho and Salimans 2021), as the papers of this field write it.

        prediction = p_c + omega (p_c - p_u)

    Both branches run as one batch.

    Attributes:
        omega: one number for all classes, or one per class, (C,); at least -1.
        null: the null label; it is as good a label as any, and has nothing to be guided to.
        process: gives the noise level of t.
        interval: (low, high) noise levels in [0, 1] within which to guide (Kynkaanniemi et al. 2024); outside of it the
            conditional prediction is used and the second branch is not computed.
        level: the noise level of t, where it is known; otherwise it is read from t.

    Raises:
        ConfigError: an omega is below -1 or not finite, or their number is wrong; bad interval.
    """

    omega: float | Sequence[float]
    null: int
    process: Process
    interval: tuple[float, float] = (0.0, 1.0)
    level: float | None = None

    @property
    def classes(self) -> int:
        return self.null

    def pair(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> tuple[Tensor, Tensor]:
        both = predict(
            torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([labels, torch.full_like(labels, self.null)])
        )
        conditional, unconditional = both.chunk(2)
        return conditional, unconditional


class Shift(Guidance):
    """Adds a step to the score: score' = score + r, with r (B, c, h, w) from a gradient.

    In the noise and in the clean image that a prediction implies, that is

        eps' = eps - s r,        x0' = x0 + (s^2 / a) r                              solvers of the ODE
        x0' = x0 + (s^2 / a_prev) r                                                  ancestral steps

    The second is exactly a shift of the mean by Sigma r (Dhariwal and Nichol 2021, Algorithm 1), Sigma = beta = 1 -
    abar_t / abar_prev being the variance of our ancestral sampler ("fixed large") and a_prev its next sqrt(abar), since
    x0 enters the mean with a_prev beta / s^2.

    The x0 that samplers clip is that of the prediction *before* the shift, so all of the shift arrives: `parts` gives
    the two apart, and `generate` adds the shift to the clipped image. ``guidance(...)`` gives both in one.

    For solvers, a step of first order from t to t' moves x by (a' s / a - s') s r: from near pure noise, a -> 0,
    without limit, where there is no class to be seen either. So a is no less than SOLVER_DIVISOR, 0.05, here; where it
    is smaller (t > 768 of the linear schedule, 966 of the cosine one, 0.95 of a flow), a / 0.05 of the shift arrives.

    Attributes:
        scale: at least 0; one number for all classes, or one per class, (C,). Rows of the null label are left alone.
        sampler, steps: a name in `schedulers.SAMPLERS`, and its number of steps; ancestral steps are shifted otherwise
            than those of solvers of the ODE, which need not be named.
        interval: (low, high) noise levels in [0, 1] within which to guide.
        level: the noise level of t, where it is known; otherwise it is read from t.
    """

    shifts = True
    scale: float | Sequence[float]
    sampler: str
    steps: int
    interval: tuple[float, float]
    level: float | None

    @property
    @abstractmethod
    def process(self) -> Process: ...

    @property
    @abstractmethod
    def classes(self) -> int: ...

    @abstractmethod
    def step(self, x_t: Tensor, t: Tensor, labels: Tensor, scale: Tensor, predict: Predict) -> tuple[Tensor, Tensor]:
        """`predict`'s answer and r, each (B, c, h, w); scale (B,) is that of each row."""

    def guides_at(self, level: float) -> bool:
        """Whether it does anything at a noise level."""
        return self.interval[0] <= level <= self.interval[1]

    def parts(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> tuple[Tensor, Tensor | None]:
        level = known_level(self.level, self.process, t)
        scales = scale_table(self.scale, self.classes)
        if not self.guides_at(level) or not any(scales):
            return predict(x_t, t, labels), None
        s = torch.tensor(scales, device=x_t.device, dtype=x_t.dtype)[labels]
        prediction, r = self.step(x_t, t, labels, s, predict)
        shift = expand(self._reach(t, level).to(r), r) * r
        return prediction, torch.where(expand(s, r) > 0, shift, torch.zeros_like(shift))

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        prediction, shift = self.parts(x_t, t, labels, predict)
        return moved(self.process, prediction, shift, t)

    def __post_init__(self) -> None:
        scale_table(self.scale, self.classes)
        check_interval(self.interval)

    def _reach(self, t: Tensor, level: float) -> Tensor:
        """(B,) d x0 / d r."""
        a, s = self.process.coefficients(t)
        if self.sampler != "ddpm":
            return s**2 / a.clamp_min(SOLVER_DIVISOR)
        assert isinstance(self.process, DDPM)
        times = sampler_times(self.sampler, self.process, self.steps)
        after = times.index(round(level * self.process.num_steps)) + 1
        a_prev = float(self.process.alphas_cumprod[int(times[after])]) ** 0.5 if after < len(times) else 1.0
        return s**2 / a_prev


@dataclass(frozen=True)
class Guided(Guidance):
    """`outer` around `inner`: what `outer` sees as the network is `inner`'s guided prediction.

    Two shifts add up and arrive whole. A shift within an extrapolation is part of its prediction, so that the sampler
    clips it: put shifts outside.
    """

    outer: Guidance
    inner: Guidance

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        return self.outer(x_t, t, labels, lambda x, s, y: self.inner(x, s, y, predict))

    @property
    def shifts(self) -> bool:  # type: ignore[override]
        return self.outer.shifts and self.inner.shifts

    @property
    def differentiates(self) -> bool:  # type: ignore[override]
        return self.outer.differentiates or self.inner.differentiates

    @property
    def process(self) -> Process:
        """Of a pair that shifts."""
        return self.outer.process  # type: ignore[attr-defined]

    def parts(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> tuple[Tensor, Tensor | None]:
        if not self.outer.shifts:
            return self.outer.parts(x_t, t, labels, lambda x, s, y: self.inner(x, s, y, predict))
        within: list[Any] = []

        def whole(x: Tensor, s: Tensor, y: Tensor) -> Tensor:
            within[:] = self.inner.parts(x, s, y, predict)
            return moved(self.process, within[0], within[1], s)

        _, shift = self.outer.parts(x_t, t, labels, whole)
        prediction, before = within[0] if differentiated(x_t) else within[0].detach(), within[1]
        if shift is None or before is None:
            return prediction, before if shift is None else shift
        return prediction, before + shift

    def at(self, level: float) -> Guided:
        return Guided(self.outer.at(level), self.inner.at(level))


def differentiated(x_t: Tensor) -> bool:
    """Whether a guidance outside takes gradients through this call, so that its answer must keep its graph."""
    return torch.is_grad_enabled() and x_t.requires_grad


def moved(process: Process, prediction: Tensor, shift: Tensor | None, t: Tensor) -> Tensor:
    """The prediction whose clean image is that of `prediction` plus `shift`, the division by s clamped."""
    if shift is None:
        return prediction
    a, s = process.coefficients(t)
    per_x0 = -(a if process.prediction == "epsilon" else torch.ones_like(a)) / s.clamp_min(MIN_DIVISOR)
    return prediction + expand(per_x0.to(shift), shift) * shift


def known_level(level: float | None, process: Process, t: Tensor) -> float:
    """The noise level that all rows share while sampling: as known, or read from their time."""
    return float(process.noise_level(t[:1])) if level is None else level


@lru_cache(maxsize=16)
def sampler_times(sampler: str, process: Process, steps: int) -> tuple[float, ...]:
    """The process's times at the steps of a sampler."""
    return tuple(process_times(make_scheduler(sampler, process, steps), process).tolist())


def check_interval(interval: tuple[float, float]) -> None:
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ConfigError(
            f"guidance interval {interval} must be 0 <= low <= high <= 1", "give noise levels, such as (0.0, 0.8)"
        )
