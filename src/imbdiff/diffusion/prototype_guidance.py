"""DiffRC's guidance: every step is shifted towards the prototype of the wanted class (Fu, He, Hu 2023, Eq. 13)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.guidance import Guidance, Predict, known_level
from imbdiff.diffusion.process import DDPM, MIN_DIVISOR, Flow, expand
from imbdiff.runtime.errors import ConfigError

Norm = Literal["l2", "rms", "none"]
START = 0.2  # what the paper initialises s to
FLOW_DIVISOR = 0.05  # the least a that a flow's shift is divided by: the first step of 20


@dataclass(frozen=True)
class PrototypeGuidance(Guidance):
    """Lowers the prototype contrastive loss L_PC(x_t, y) of an encoder, step by step.

    Eq. 13 with its signs and square root corrected (L_PC is a negative log probability, to be descended):

        x_{t-1} = mu + sqrt(Sigma) z - s Sigma g,     g = normalised gradient of L_PC(x_t, y) in x_t

    Here the prediction is changed, so that it works with every sampler and process; in units of noise

        eps' = eps + s sqrt(1 - abar) g                                        solvers of the ODE: score - s g
        eps' = eps + s (Sigma / beta) sqrt(alpha) sqrt(1 - abar) g             ancestral steps

    where alpha = abar_t / abar_prev and beta = 1 - alpha are those of the *sampler's* step, and Sigma = beta, the
    variance of our ancestral sampler ("fixed large"). The second is exactly the shift of the mean by -s Sigma g as long
    as the sampler does not clip the clean image that the prediction implies; where it does, less of it arrives. At the
    last step, which draws no noise, it shifts all the same.

    A prediction of v or velocity is shifted by that over a, since eps' - eps = a (p' - p). For v the shift is exact
    where a >= MIN_DIVISOR: everywhere but at the last time of the cosine schedule, where 0.04 of it is left and the
    sampler clips. Along a flow a step of Euler moves x by -dt s (t / a) g, and the sum of dt t / (1 - t) up to t = 1
    has no limit: it grows as log(1 / a), the first of 20 steps alone would move an image by 50 s, and nothing clips. At
    pure noise there is no class to be seen either. So a flow divides by no less than FLOW_DIVISOR, 0.05: exact for
    t <= 0.95. All steps together then move x by 3.0 s (250 steps) to 3.6 s (20), before what follows shrinks it; on the
    linear DDPM schedule ancestral steps move it by 10 s, solvers by 5 s.

    With the paper's unit gradient a 32-pixel image is moved by at most s sum(Sigma), about 10 s against a length of
    about 55; "rms" gives the gradient the length of noise, sqrt(c h w), and "none" leaves it as it is.

    The paper's "s changes adaptively" has no rule. Ours, with `adaptive`: per row and step s_i = 0.2 + (s - 0.2)
    (1 - exp(-L_PC)), from s where the encoder does not see the class to 0.2 (s, if less) where it is sure of it. It
    depends on the row alone, so that images stay the same whatever is drawn beside them.

    All classes are guided alike by default. The paper generates medium and tail classes only; a frequent class that is
    asked for needs it as much, since nothing else tells an unconditional model what to draw. Rows of the null label are
    left as they are, to the bit.

    Attributes:
        encoder: in eval mode; its gradient in x_t is taken, the model's prediction is not differentiated.
        scale: s, at least 0; one number, or one per class, (C,).
        times: of an ancestral sampler, all its times in order; empty for solvers of the ODE.
        norm: "l2", "rms" or "none", per image.
        prior: whether L_PC has class frequencies in it (Eq. 12); without, rare classes are pushed less from frequent.
        adaptive: see above.
        interval: (low, high) noise levels in [0, 1] within which to guide.
        level: the noise level of t, where it is known.

    Raises:
        ConfigError: a scale is negative or not finite, or their number is wrong; unknown norm; bad interval; ancestral
            times for a process other than DDPM, or, when called, a time that is not one of them.
    """

    encoder: PrototypeEncoder
    scale: float | Sequence[float]
    times: tuple[int, ...] = ()
    norm: Norm = "l2"
    prior: bool = True
    adaptive: bool = False
    interval: tuple[float, float] = (0.0, 1.0)
    level: float | None = None
    _ancestral: dict[int, float] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        classes = self.encoder.spec.stats.num_classes
        scales = [self.scale] if isinstance(self.scale, int | float) else list(self.scale)
        if not isinstance(self.scale, int | float) and len(scales) != classes:
            raise ConfigError(f"{len(scales)} scales for {classes} classes", "give one number, or one per class")
        if any(not 0 <= s < float("inf") for s in scales):
            raise ConfigError(f"prototype guidance: scale {self.scale} must be at least 0 and finite")
        if self.norm not in ("l2", "rms", "none"):
            raise ConfigError(f"unknown normalisation {self.norm!r}", "use l2, rms or none")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"guidance interval {self.interval} must be 0 <= low <= high <= 1")
        if self.times:
            process = self.encoder.process
            if not isinstance(process, DDPM):
                raise ConfigError("ancestral times are for DDPM processes", "leave `times` out")
            abar = [float(process.alphas_cumprod[t]) for t in self.times] + [1.0]
            self._ancestral.update(
                {t: (here / after) ** 0.5 for t, here, after in zip(self.times, abar, abar[1:], strict=False)}
            )

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
        prediction = predict(x_t, t, labels)
        process = self.encoder.process
        # all rows share one time while sampling
        level = known_level(self.level, process, t)
        scales = [float(self.scale)] if isinstance(self.scale, int | float) else [float(s) for s in self.scale]
        if not self.interval[0] <= level <= self.interval[1] or not any(scales):
            return prediction
        loss, g = self.gradient(x_t, t, labels)
        classes = self.encoder.spec.stats.num_classes
        per_class = scales * classes if len(scales) == 1 else scales
        s = torch.tensor([*per_class, 0.0], device=x_t.device, dtype=x_t.dtype)[labels]
        if self.adaptive:
            least = s.clamp_max(START)
            s = least + (s - least) * (1 - (-loss).exp())
        _, sigma = process.coefficients(t)
        divisor = FLOW_DIVISOR if isinstance(process, Flow) else MIN_DIVISOR
        factor = s * sigma.to(s) * self._alpha(t) / process.eps_scale(t).clamp_min(divisor).to(s)
        return torch.where(expand(s, x_t) > 0, prediction + expand(factor, x_t) * g, prediction)

    def at(self, level: float) -> PrototypeGuidance:
        made = copy.copy(self)
        object.__setattr__(made, "level", level)
        return made

    def gradient(self, x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """L_PC (B,) and its normalised gradient in x_t (B, c, h, w)."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            loss = self.encoder.loss(x, t, labels, self.prior)
            (g,) = torch.autograd.grad(loss.sum(), x)
        if self.norm == "none":
            return loss.detach(), g
        length = g.flatten(1).norm(dim=1).clamp_min(torch.finfo(g.dtype).tiny)
        unit = g / expand(length, g)
        return loss.detach(), unit if self.norm == "l2" else unit * g[0].numel() ** 0.5

    def _alpha(self, t: Tensor) -> float:
        """sqrt(alpha) of the sampler's step from t; 1 for solvers of the ODE."""
        if not self.times:
            return 1.0
        time = int(t[0])
        if time not in self._ancestral:
            raise ConfigError(
                f"this guidance was made for {len(self.times)} ancestral steps, none of them at time {time}",
                "make it for the sampler's own steps: prototype_guidance(...)",
            )
        return self._ancestral[time]


def prototype_guidance(
    encoder: PrototypeEncoder, scale: float | Sequence[float], *, sampler: str, steps: int, **options: Any
) -> PrototypeGuidance:
    """`PrototypeGuidance` for a sampler of `imbdiff.diffusion.schedulers` and its number of steps."""
    from imbdiff.diffusion.schedulers import make_scheduler

    times: tuple[int, ...] = ()
    if sampler == "ddpm":
        times = tuple(make_scheduler(sampler, encoder.process, steps).timesteps.tolist())
    return PrototypeGuidance(encoder, scale, times, **options)
