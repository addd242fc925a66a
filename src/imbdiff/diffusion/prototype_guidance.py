"""DiffRC's guidance: every step is shifted towards the prototype of the wanted class (Fu, He, Hu 2023, Eq. 13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.guidance import Predict, Shift, ancestral_times
from imbdiff.diffusion.process import Process, expand


@dataclass(frozen=True)
class PrototypeGuidance(Shift):
    """Lowers the prototype contrastive loss L_PC(x_t, y) of an encoder, step by step.

    Eq. 13 with its signs and square root corrected (L_PC is a negative log probability, to be descended):

        x_{t-1} = mu + sqrt(Sigma) z - s Sigma g,     g = normalised gradient of L_PC(x_t, y) in x_t

    It is a `Shift` of the score by r = -s g, so that it works with every sampler and process: with ancestral steps it
    is exactly this, at every step; what solvers of the ODE make of it near pure noise is said there.

    With the paper's unit gradient a 32-pixel image is moved by at most s sum(Sigma), about 10 s against a length of
    about 55, before what follows shrinks it: with a perfect model of N(0, 0.5^2) and 8 x 8 pixels 0.7 s of it are left
    at the end of 250 ancestral steps, 1.5 to 2.2 s of what solvers do, and 1.8 to 2.1 s along a flow. The paper's "s
    changes adaptively" has no rule, and s is constant here.

    All classes are guided alike by default. The paper generates medium and tail classes only; a frequent class that is
    asked for needs it as much, since nothing else tells an unconditional model which class to generate. Rows of the
    null label, and of a scale of 0, are left as they are, bit for bit.

    Attributes:
        encoder: in eval mode; its gradient in x_t is taken, the model's prediction is not differentiated.
        scale: s, at least 0; one number, or one per class, (C,).
        times: of an ancestral sampler, all its times in order; empty for solvers of the ODE.
        prior: whether L_PC has class frequencies in it (Eq. 12); without, rare classes are pushed less from frequent.
        interval: (low, high) noise levels in [0, 1] within which to guide.
        level: the noise level of t, where it is known.

    Raises:
        ConfigError: a scale is negative or not finite, or their number is wrong; bad interval; ancestral
            times for a process other than DDPM, or, when called, a time that is not one of them.
    """

    encoder: PrototypeEncoder
    scale: float | Sequence[float]
    times: tuple[int, ...] = ()
    prior: bool = True
    interval: tuple[float, float] = (0.0, 1.0)
    level: float | None = None

    def __post_init__(self) -> None:
        self.check()

    @property
    def process(self) -> Process:
        return self.encoder.process

    @property
    def classes(self) -> int:
        return self.encoder.spec.stats.num_classes

    def step(self, x_t: Tensor, t: Tensor, labels: Tensor, scale: Tensor, predict: Predict) -> tuple[Tensor, Tensor]:
        prediction = predict(x_t, t, labels)
        _, g = self.gradient(x_t, t, labels)
        return prediction, -expand(scale, g) * g

    def gradient(self, x_t: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """L_PC (B,) and its normalised gradient in x_t (B, c, h, w)."""
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            loss = self.encoder.loss(x, t, labels, self.prior)
            (g,) = torch.autograd.grad(loss.sum(), x)
        length = g.flatten(1).norm(dim=1).clamp_min(torch.finfo(g.dtype).tiny)
        return loss.detach(), g / expand(length, g)


def prototype_guidance(
    encoder: PrototypeEncoder, scale: float | Sequence[float], *, sampler: str, steps: int, **options: Any
) -> PrototypeGuidance:
    """`PrototypeGuidance` for a sampler of `imbdiff.diffusion.schedulers` and its number of steps."""
    return PrototypeGuidance(encoder, scale, ancestral_times(sampler, encoder.process, steps), **options)
