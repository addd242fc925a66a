"""CBDM's distribution adjustment (Qin et al., CVPR 2023, arXiv 2305.00562)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from torch import Tensor

from imbdiff.objectives.batch import LabelDistribution, LabelDraw, NoisyBatch, Space
from imbdiff.objectives.objective import Answer, Labels, Request
from imbdiff.objectives.row_sampling import RowSampled


@dataclass(eq=False, kw_only=True)
class ClassBalancing(RowSampled):
    """Pulls predictions for the true and for a random other label together, more so at noisier times.

        L = w(t) || h - sg(h') ||^2  +  gamma w(t) || sg(h) - h' ||^2,      w(t) = tau t / T

    with h = eps(x_t, t, y), h' = eps(x_t, t, y'), y' drawn independently of the image, sg = no gradient, and the mean
    over pixels. Rows whose label was dropped take no part. As in the authors' code; the paper's tau = 0.001 is for
    w = tau t with t in 0..999, here tau = 1 with the noise level t / T.

    Args:
        tau: strength, 1 in the authors' code.
        gamma: commitment weight, 1/4.
        distribution: of y': the training "prior" (from scratch), "uniform" over classes (as in their fine-tuning), or
            "inverse", in proportion to 1 / images of the class, in favour of rare ones (after PD-CBDM, 2026).
        space: of the difference, see `NoisyBatch.difference`; the authors' network predicts eps, where both are one.
        rows: share of the rows that h' is evaluated for, without bias: see `row_sampling`.
    """

    name = "class_balancing"

    tau: float = 1.0
    gamma: float = 0.25
    distribution: LabelDistribution = "prior"
    space: Space = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(tau=0 <= self.tau < inf, gamma=0 <= self.gamma < inf)
        self.draws["comparison"] = LabelDraw(self.distribution)

    def row_weight(self, batch: NoisyBatch) -> Tensor:
        return self.tau * batch.noise_level * ~batch.dropped

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        rows = self.sampled(batch)
        return [Request("given", rows), Request(Labels("comparison", batch.draws["comparison"]), rows)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        true, other = answers
        w = true.of(self.row_weight(batch)) * self.inverse(batch, true)
        pull = batch.difference(true.pred, other.pred.detach(), true, self.space).square().flatten(1).mean(1)
        commit = batch.difference(true.pred.detach(), other.pred, true, self.space).square().flatten(1).mean(1)
        return {"pull": batch.spread(w * pull, true), "commit": batch.spread(self.gamma * w * commit, true)}
