"""Re-weightings of the denoising loss, each in its place: by class size, noise level, and difficulty."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from imbdiff.data.stats import ClassStats
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.denoising import Denoising


@lru_cache(maxsize=16)
def class_weights(stats: ClassStats, beta: float, mean: str, device: torch.device) -> Tensor:
    """(C,) float32: w_k proportional to (1 - beta) / (1 - beta^n_k) (Cui et al., CVPR 2019, Eq. 4).

    beta = 0: all 1; beta = 1 is the limit, proportional to 1 / n_k. They have mean 1 over "classes" or "images". One
    copy per device: no host-to-device copy in the loop.
    """
    n = torch.tensor(stats.counts, dtype=torch.float64)
    volume = n if beta == 1 else -torch.expm1(n * math.log(beta)) if beta > 0 else torch.ones_like(n)
    share = torch.full_like(n, 1 / len(n)) if mean == "classes" else n / n.sum()
    return (1 / volume / (share / volume).sum()).float().to(device)


@dataclass(eq=False, kw_only=True)
class EffectiveNumber(Denoising):
    """L_i = w(y_i) || f(x_t, t, y_i) - target ||^2 with w the inverse effective number of images of the class.

    The class is the true one, also where the label was dropped: as in resampling, the unconditional branch learns the
    re-weighted mix of classes too.

    Args:
        beta: in [0, 1]; 0.9999 for the long-tailed sets of the paper and of the recipes that use it.
        mean: what has mean 1: the weights of all "classes" (the paper), or of all training "images", which keeps the
            size of the loss relative to other objectives.
    """

    name = "effective_number"

    beta: float = 0.9999
    mean: Literal["classes", "images"] = "classes"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(beta=0 <= self.beta <= 1)

    def weighted(self, batch: NoisyBatch, error: Tensor) -> Tensor:
        return class_weights(batch.stats, self.beta, self.mean, error.device)[batch.labels] * error


@dataclass(eq=False, kw_only=True)
class MinSNR(Denoising):
    """L_i = min(SNR, gamma) || x0_i - x0_hat ||^2,      SNR = a(t)^2 / s(t)^2

    Min-SNR weighting (Hang et al., ICCV 2023, arXiv 2303.09556, Eq. 8), in units of the network's own target, where the
    weight of || f(x_t, t, y) - target ||^2 is

        eps:                min(1, gamma s^2 / a^2)          = min(SNR, gamma) / SNR
        v, velocity:        min(a^2, gamma s^2)              = min(SNR, gamma) / (SNR + 1) for v

    Plain DDPM (eps) weighs x0 by SNR: the cleanest times most. Here none counts more than gamma.

    Args:
        gamma: the most a time may weigh, above 0; 5 in the paper.
    """

    name = "min_snr"

    gamma: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(gamma=0 < self.gamma < math.inf)

    def weighted(self, batch: NoisyBatch, error: Tensor) -> Tensor:
        a, s = (c.double().square() for c in batch.process.coefficients(batch.t))
        if batch.process.prediction == "epsilon":
            weight = (self.gamma * s / a.clamp_min(torch.finfo(a.dtype).tiny)).clamp_max(1)
        else:
            weight = torch.minimum(a, self.gamma * s)
        return weight.to(error) * error


@dataclass(eq=False, kw_only=True)
class Focal(Denoising):
    """L_i = (tanh(beta r_i / 2) / tanh(beta / 2))^gamma e_i,      e_i = || f(x_t, t, y_i) - target ||^2

    Focal-R (Yang et al., ICML 2021; tanh(x / 2) = 2 sigmoid(x) - 1) for a row in place of a number, scaled to 1 at
    r = 1, its factor without gradient: for one row that changes the size of the gradient, not its direction.

    How large the error of a row is depends on its noise level far more than on its class. So r_i = sqrt(e_i / mean of
    e over rows of about the same noise level), over all processes: hard is what is harder than others as noisy.

    Args:
        beta, gamma: 0.2 and 1 in the authors' code, where r weighs nearly in proportion; gamma = 0 is no weighting.
        against: "noise_level", or "nothing": r = sqrt(e), as published; it then mostly re-weights times.
        width: standard deviation of "about the same", in noise levels.
    """

    name = "focal"

    beta: float = 0.2
    gamma: float = 1.0
    against: Literal["noise_level", "nothing"] = "noise_level"
    width: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(beta=self.beta > 0, gamma=self.gamma >= 0, width=self.width > 0)

    def weighted(self, batch: NoisyBatch, error: Tensor) -> Tensor:
        with torch.no_grad():
            hardness = error
            if self.against == "noise_level":
                s, e = batch.dist.gather(batch.noise_level), batch.dist.gather(hardness)
                near = (-((batch.noise_level[:, None] - s) / self.width).square() / 2).exp().to(e.dtype)
                usual = (near * e).sum(1) / near.sum(1)  # a row is near itself, so the divisor is at least 1
                hardness = hardness / usual.clamp_min(torch.finfo(e.dtype).tiny)
            factor = (self.beta / 2 * hardness.sqrt()).tanh() / math.tanh(self.beta / 2)
        return factor.pow(self.gamma) * error
