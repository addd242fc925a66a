"""Transfer of the denoising target between similar images, T2H (Zhang et al., ICLR 2024, OpenReview NW2s5XXwXU)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imbdiff.diffusion.process import MIN_DIVISOR, expand
from imbdiff.objectives.batch import NoisyBatch, UniformDraw, class_counts
from imbdiff.objectives.denoising import Denoising

Direction = Literal["t2h", "h2t", "full"]


@dataclass(eq=False, kw_only=True)
class Transfer(Denoising):
    """The denoising loss, with a target that may lead to another row's clean image.

        P(z_i = j) ~ (n_{y_j})^tau exp(-|| x_t - a x0_j ||^2 / (2 s^2)),      j over the rows of all processes
        accepted if  n_{y_z} >= n_{y_i} ("t2h"),  n_{y_z} <= n_{y_i} ("h2t"),  always ("full");  else z_i = i
        L_i = || f(x_t, t, y_i) - target(x0_z, eps', t) ||^2,      eps' = (x_t - a x0_z) / s,  no gradient

    with n_y the training images of class y, and the mean over pixels. z is one draw of the posterior over the clean
    images that x_t can have come from: sharp where there is little noise, so that targets move at noisy times only.
    Label and x_t stay; rows whose label was dropped take part.

    Args:
        direction: "t2h" sends rows to images of classes at least as frequent, "h2t" to those at most as frequent (the
            authors' choice without conditions), "full" to any.
        tau: prior of the candidates, 0 in the paper's method. The authors' code multiplies by (q_i q_j)^tau, of which
            q_i cancels, and then accepts everything: that is ``direction="full", tau=1``.
    """

    name = "transfer"

    direction: Direction = "t2h"
    tau: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(tau=math.isfinite(self.tau))
        self.draws = {"transfer": UniformDraw(columns=2)}

    @torch.no_grad()
    def target(self, batch: NoisyBatch) -> Tensor:
        """(B, c, h, w) what the network should predict."""
        candidates = batch.dist.gather(batch.x0)
        clean = candidates.index_select(0, self.sources(batch, candidates))
        a, s = (expand(c, batch.x0).to(batch.x0.dtype) for c in batch.process.coefficients(batch.t))
        # (x_t - a x0_z) / s, written so that a row that stays where it is keeps its noise bit for bit
        noise = batch.noise + a / s.clamp_min(MIN_DIVISOR) * (batch.x0 - clean)
        return batch.process.target(clean, noise, batch.t)

    @torch.no_grad()
    def sources(self, batch: NoisyBatch, candidates: Tensor | None = None) -> Tensor:
        """(B,) int64: of every row, the row of the gathered batch whose clean image its target leads to.

        Args:
            candidates: the gathered x0, if at hand.
        """
        if candidates is None:
            candidates = batch.dist.gather(batch.x0)
        counts = class_counts(batch.stats, batch.x0.device).double()
        here, there = counts[batch.labels], counts[batch.dist.gather(batch.labels)]
        a, s = batch.process.coefficients(batch.t)
        a = a.clamp_min(MIN_DIVISOR)
        # distances are taken one by one: the fast way, by products, loses what tells similar images apart
        scaled = (batch.x_t / expand(a, batch.x_t).to(batch.x_t.dtype)).flatten(1)
        gap = torch.cdist(scaled, candidates.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").double()
        ratio = (a / s.clamp_min(MIN_DIVISOR)).double()[:, None]
        # z is where the row's first number falls among the candidates, in the order of their second numbers: an order
        # of its own, so that the draw does not depend on where a row stands in the batch
        order = batch.dist.gather(batch.draws["transfer"][:, 1]).argsort()
        logits = self.tau * there.log() - (ratio * gap).square() / 2
        cdf = logits.index_select(1, order).softmax(1).cumsum(1)
        place = (cdf <= batch.draws["transfer"][:, :1].double() * cdf[:, -1:]).sum(1)
        z = order[place.clamp_max(len(candidates) - 1)]
        own = torch.arange(len(candidates), device=z.device)[batch.dist.share(len(candidates))]
        if self.direction == "full":
            return z
        accepted = there[z] >= here if self.direction == "t2h" else there[z] <= here
        return torch.where(accepted, z, own)
