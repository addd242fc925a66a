"""DiffRC's pair-wise diversity loss (Fu, He, Hu 2023, Eq. 6-10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imbdiff.objectives.batch import FAR, NoisyBatch, class_counts
from imbdiff.objectives.objective import COMPARES_ROWS, Answer, Objective, Request


@dataclass(eq=False, kw_only=True)
class PairDiversity(Objective):
    """Keeps, within a class, the similarities of predicted images that a source model sees.

        p_i^sou = softmax_{j != i} cos(x0_sou^i, x0_sou^j) / tau
        p_i^tar = softmax_{j != i} cos(x0_tar^i, x0_tar^j) / (tau (1 + gamma N_k))
        L       = sum_k sum_{i in k} KL(p_i^tar || p_i^sou)                                         (Eq. 7-9, tau = 1)

    with x0 the clean image that a prediction implies (Eq. 6), j over the other rows of i's class group, N_k the
    training images of its class. Both models see the same x_t, and all rows of a group share one t. The source is asked
    without label, as it was trained; the gradient goes through p_tar alone. Groups of fewer than three rows give 0: a
    softmax over one similarity is 1. Rows outside any group give 0 too.

    Eq. 9 sums over classes and images, while the base loss is a mean over images: so does ``reduction="sum"``, over
    all rows that are compared at a time. As a mean the term does nothing (docs/fidelity.md). A larger N_k flattens
    p_tar, so that matching asks for target similarities (1 + gamma N_k) times as sharp as the source's.

    Args:
        gamma: 0.1 in the paper; at least 0.
        reduction: over rows: "sum", the paper's Eq. 9, or "mean".
        temperature: tau of both softmaxes, above 0; the paper has none, which is 1.
        weight: lambda of Eq. 10, the best of 0.1, 0.3, 0.5, 0.7, 0.9 in the paper.
        source: name of the frozen network that was trained first.
        condition: the target's label: "given" (as the batch has it, dropped ones included) or "null".
        part: a part sampled in class groups.
    """

    name = "pair_diversity"
    all_rows: ClassVar[str | None] = COMPARES_ROWS
    wiring: ClassVar[tuple[str, ...]] = ("part", "source", "condition")
    #: rows that a class group must have for this to be more than 0
    smallest_group = 3

    weight: float = 0.5
    gamma: float = 0.1
    reduction: Literal["sum", "mean"] = "sum"
    temperature: float = 1.0
    source: str = "source"
    condition: Literal["given", "null"] = "given"
    part: str = "grouped"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(gamma=0 <= self.gamma < inf, temperature=0 < self.temperature < inf)

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request(self.condition), Request("null", network=self.source, grad=False)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        rows = torch.arange(len(batch), device=batch.labels.device)
        pair = (batch.group[:, None] == batch.group) & (batch.group >= 0) & (rows[:, None] != rows)
        counts = class_counts(batch.stats, rows.device)[batch.labels]
        target = self._log_p(batch, answers[0], pair, 1 + self.gamma * counts)
        source = self._log_p(batch, answers[1], pair, torch.ones_like(counts)).detach()
        kl = (target.exp() * (target - source)).masked_fill(~pair, 0).sum(1)
        # the step takes the mean over the rows of all processes
        return {"kl": kl * (len(batch) * batch.dist.world) if self.reduction == "sum" else kl}

    def _log_p(self, batch: NoisyBatch, answer: Answer, pair: Tensor, flatter: Tensor) -> Tensor:
        """(B, B) log probabilities over the columns where `pair`."""
        x0 = batch.process.to_x0(answer.pred, batch.x_t.to(answer.pred.dtype), batch.t)
        with torch.autocast(x0.device.type, enabled=False):  # cosines need more digits than bfloat16 has
            x0 = F.normalize(x0.flatten(1), dim=1)
            logits = x0 @ x0.T / (self.temperature * flatter[:, None].to(x0.dtype))
        return logits.masked_fill(~pair, FAR).log_softmax(1)
