"""DiffRC's guidance: every step is shifted towards the prototype of the wanted class (Fu, He, Hu 2023, Eq. 13)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.guidance import Predict, Shift
from imbdiff.diffusion.process import Process, expand


@dataclass(frozen=True)
class PrototypeGuidance(Shift):
    """Lowers the prototype contrastive loss L_PC(x_t, y) of an encoder, step by step.

    Eq. 13 with its signs and square root corrected (L_PC is a negative log probability, to be descended):

        x_{t-1} = mu + sqrt(Sigma) z - s Sigma g,     g = normalised gradient of L_PC(x_t, y) in x_t

    It is a `Shift` of the score by r = -s g, so that it works with every sampler and process: with ancestral steps it
    is exactly this. With a unit gradient a 32-pixel image is moved by at most s sum(Sigma), about 10 s against a length
    of about 55, before what follows shrinks it. The paper's "s changes adaptively" has no rule, and s is constant here.

    The paper generates medium and tail classes only; a frequent class that is asked for needs guidance as much, since
    nothing else tells an unconditional model which class to generate. Rows of the null label, and of a scale of 0, are
    left as they are.

    Attributes:
        encoder: in eval mode; its gradient in x_t is taken, the model's prediction is not differentiated.
        scale: s, at least 0; one number, or one per class, (C,).
        prior: whether L_PC has class frequencies in it (Eq. 12); without, rare classes are pushed less from frequent.
        sampler, steps, interval, level: see `Shift`.

    Raises:
        ConfigError: a scale is negative or not finite, or their number is wrong; bad interval.
    """

    encoder: PrototypeEncoder
    scale: float | Sequence[float]
    prior: bool = True
    sampler: str = ""
    steps: int = 0
    interval: tuple[float, float] = (0.0, 1.0)
    level: float | None = None

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
