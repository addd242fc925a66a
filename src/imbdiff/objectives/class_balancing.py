"""CBDM's distribution adjustment (Qin et al., CVPR 2023, arXiv 2305.00562)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from imbdiff.objectives.batch import LabelDraw, NoisyBatch
from imbdiff.objectives.contract import Answer, Draw, Request
from imbdiff.objectives.row_sampling import RowSampled
from imbdiff.runtime.errors import ConfigError


class ClassBalancing(RowSampled):
    """Pulls predictions for the true and for a random other label together, more so at noisier times.

        L = w(t) || h - sg(h') ||^2  +  gamma w(t) || sg(h) - h' ||^2,      w(t) = tau t / T

    with h = eps(x_t, t, y), h' = eps(x_t, t, y'), y' drawn independently of the image, sg = no gradient, and the mean
    over pixels. Rows whose label was dropped take no part. As in the authors' code; the paper's tau = 0.001 is for
    w = tau t with t in 0..999, here tau = 1 with the noise level t / T.

    Args:
        tau: strength, 1 in the authors' code.
        gamma: commitment weight, 1/4.
        law: where y' comes from: the training "prior" (from scratch) or "uniform" (the authors' fine-tuning).
        space: "eps": differences in units of noise whatever the network predicts; "native": as it predicts.
        rows: share of the rows that h' is evaluated for, without bias: see `row_sampling`.
    """

    name = "class_balancing"

    def __init__(
        self,
        *,
        tau: float = 1.0,
        gamma: float = 0.25,
        law: Literal["prior", "uniform"] = "prior",
        space: Literal["eps", "native"] = "eps",
        rows: float = 1.0,
        weight: float = 1.0,
        part: str = "main",
    ) -> None:
        super().__init__(rows=rows, weight=weight, part=part)
        if tau < 0 or gamma < 0:
            raise ConfigError(f"CBDM's tau={tau} and gamma={gamma} must be at least 0")
        self.tau, self.gamma, self.space = tau, gamma, space
        self.draws["comparison"] = LabelDraw(law)

    def row_weight(self, batch: NoisyBatch) -> Tensor:
        return self.tau * batch.noise_level * ~batch.dropped

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        rows = self.rows(batch)
        return [Request("given", rows), Request(Draw("comparison"), rows)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        true, other = answers
        w = true.of(self.row_weight(batch)) * self.inverse(batch, true)
        pull = batch.difference(true.pred, other.pred.detach(), true, self.space).square().flatten(1).mean(1)
        commit = batch.difference(true.pred.detach(), other.pred, true, self.space).square().flatten(1).mean(1)
        return {"pull": batch.spread(w * pull, true), "commit": batch.spread(self.gamma * w * commit, true)}
