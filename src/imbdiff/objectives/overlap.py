"""DiffROP's penalty on the overlap of classes (Yan et al. 2024, arXiv 2402.10821)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imbdiff.objectives.alignment import Time, time_weight
from imbdiff.objectives.batch import NoisyBatch, PermutationDraw, Space
from imbdiff.objectives.objective import Answer, Labels, Objective, Request


@dataclass(eq=False, kw_only=True)
class ClassOverlap(Objective):
    """Drives the predictions for different classes apart: one reverse step should tell which class it denoises.

        L = 1 / (1 + d),      d = mean over all rows of s_i [y_i != y_j] || eps_i - eps_j ||^2,      s_i = t_i / T

    with j the next row on one random cycle through all rows of all processes, and the mean over pixels. The term is one
    number for the global batch, in (0, 1]. The squared distance is the KL divergence of two reverse steps at one x_t up
    to a factor of time:

        exact      eps_j = eps(x_t, t, y_j) at row i's own x_t and t: twice the passes. Rows whose label was dropped
                   take no part.
        released   eps_j is what was predicted for row j, at *its* x_t and t: no extra pass, but the distance is mostly
                   that of two images' noises. The form in the code of CCUA (arXiv 2507.09052), which weighs clean rows
                   most: ``ClassOverlap(exact=False, time="clean")``. The paper has no code.

    Args:
        exact: which of the two.
        time: what s is, see `time_weight`.
        space: of the difference, see `NoisyBatch.difference`; how far 1 / (1 + d) is saturated depends on it.
        weight: 0.1 in the released code.
    """

    name = "overlap"
    all_rows: ClassVar[str | None] = (
        "1 / (1 + d) of the mean distance d is no sum over rows: from an unbiased d it would be biased"
    )

    weight: float = 0.1
    exact: bool = True
    time: Time = "noise"
    space: Space = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.draws = {"cycle": PermutationDraw()}

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        if not self.exact:
            return [Request("given")]
        return [Request("given"), Request(Labels("overlap", self.partners(batch, batch.labels)))]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        own = answers[0]
        applies = batch.labels != self.partners(batch, batch.labels)
        if self.exact:
            applies = applies & ~batch.dropped
            apart = batch.difference(own.pred, answers[1].pred, own, self.space)
        else:
            native = self.space == "native"
            eps = own.pred if native else batch.process.to_eps(own.pred, batch.x_t, batch.t)
            apart = eps - self.partners(batch, eps)
        d = time_weight(batch, self.time) * applies * apart.square().flatten(1).mean(1)
        return {"overlap": 1 / (1 + batch.dist.gather(d).mean())}

    def partners(self, batch: NoisyBatch, x: Tensor) -> Tensor:
        """(B, ...) the rows of the gathered `x` that this process's rows are paired with: the next on the cycle."""
        order = batch.dist.gather(batch.draws["cycle"]).argsort()
        after = torch.empty_like(order).index_copy_(0, order, order.roll(-1))
        return batch.dist.gather(x).index_select(0, after[batch.dist.share(len(after))])
