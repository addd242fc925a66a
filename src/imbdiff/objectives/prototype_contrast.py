"""The loss that trains DiffRC's guidance encoder, and its prototypes (Fu, He, Hu 2023, Eq. 11-12)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbdiff.diffusion.encoder import PrototypeEncoder, prototype_logits
from imbdiff.objectives.batch import NoisyBatch, class_prior
from imbdiff.objectives.objective import Answer, Objective, Request
from imbdiff.runtime.errors import ConfigError

TINY = 1e-18  # lengths below are those of a class that was not seen


@dataclass(eq=False, kw_only=True)
class PrototypeContrast(Objective):
    """Pulls the feature of a noisy image to its class's prototype and away from the others, frequent ones most.

        L_i = -log( pi_y exp(f_i c_y / tau) / sum_j pi_j exp(f_i c_j / tau) )                           (Eq. 12)

    with f_i = f(x_t, t) of unit length. Prototypes follow the features of the global batch, without gradient:

        c_k <- m^n c_k + (1 - m^n) mean_k,    n = sum_{i in k} w_i,    mean_k = sum_{i in k} w_i f_i / n,

    which is Eq. 11, c <- m c + (1 - m) f, applied to each image of the class, all with the features of one step. w_i is
    a(t)^2: near-clean images count most, since the paper does not say at which noise prototypes are taken. The sum
    starts at zero and is brought to unit length where it is used, so that early features are forgotten sooner. A row's
    loss takes the prototypes from before the step (a class that occurs for the first time: this batch's) and the true
    label, whether or not it was dropped. With accumulated micro-batches prototypes move in each of them.

    Args:
        tau: temperature, 0.07 in the paper.
        momentum: m, 0.999 in the paper; in [0, 1).
        prior: pi, class frequencies: the features' cosines then need no prior (balanced softmax). False: all alike.
        clean: False weighs all images alike in the prototypes, whatever their noise.
    """

    name = "prototype_contrast"
    all_rows: ClassVar[str | None] = "it is a softmax over classes and averages its prototypes over the batch's rows"

    tau: float = 0.07
    momentum: float = 0.999
    prior: bool = True
    clean: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(tau=0 < self.tau < math.inf, momentum=0 <= self.momentum < 1)
        self.sums: Tensor
        self.register_buffer("sums", torch.zeros(0, 0))

    def prepare(self, networks: Mapping[str, nn.Module]) -> None:
        """Gives the prototypes their shape.

        Raises:
            ConfigError: the network that is trained is not a `PrototypeEncoder`.
        """
        encoder = networks["model"]
        if not isinstance(encoder, PrototypeEncoder):
            raise ConfigError(
                f"prototypes cannot be trained for {type(encoder).__name__}", "train a PrototypeEncoder (Phase.make)"
            )
        self.sums = torch.zeros_like(encoder.prototypes)

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("null", taps=("features",), prediction=False)]

    def prototypes(self) -> Tensor:
        """(C, dim) of unit length; zero for a class that was never seen."""
        return _unit(self.sums)

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        f = answers[0].taps["features"]
        with torch.autocast(f.device.type, enabled=False):  # cosines over 0.07 need more digits than bfloat16 has
            before = self.sums.clone()
            after = self._moved(batch, f)
            seen = before.norm(dim=1, keepdim=True) > TINY
            if self.training:
                self.sums.copy_(after)
            prior = class_prior(batch.stats, f.device).to(f) if self.prior else None
            logits = prototype_logits(f, _unit(torch.where(seen, before, after)), self.tau, prior)
            return {"loss": F.cross_entropy(logits, batch.labels, reduction="none")}

    @torch.no_grad()
    def _moved(self, batch: NoisyBatch, features: Tensor) -> Tensor:
        """(C, dim) `sums` after the rows of all processes."""
        f, labels = batch.dist.gather(features).to(self.sums), batch.dist.gather(batch.labels)
        a, _ = batch.process.coefficients(batch.dist.gather(batch.t))
        w = a.square().to(f) if self.clean else torch.ones_like(labels, dtype=f.dtype)
        of_class = F.one_hot(labels, len(self.sums)).T.to(f) * w
        n = of_class.sum(1, keepdim=True)
        mean = of_class @ f / n.clamp_min(torch.finfo(f.dtype).tiny)
        if self.momentum == 0:
            return torch.where(n > 0, mean, self.sums)
        # 1 - m^n by expm1: with little weight n, m^n rounds to 1
        share = -torch.expm1(n * math.log(self.momentum))
        return self.sums + share * (mean - self.sums)


def with_prototypes(encoder: PrototypeEncoder, objectives: Sequence[Objective]) -> PrototypeEncoder:
    """`Phase.finish` of an encoder: gives it the prototypes and the temperature that it was trained with."""
    (contrast,) = [o for o in objectives if isinstance(o, PrototypeContrast)]
    encoder.prototypes.copy_(contrast.prototypes())
    encoder.tau = contrast.tau
    return encoder.requires_grad_(False)


def _unit(x: Tensor) -> Tensor:
    """Rows of unit length; zero where there is none."""
    return x / x.norm(dim=1, keepdim=True).clamp_min(TINY)
