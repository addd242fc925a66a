"""The dispersive loss (Wang and He 2025, arXiv 2506.09027)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.objective import COMPARES_ROWS, Answer, Objective, Request


@dataclass(eq=False, kw_only=True)
class Dispersive(Objective):
    """Spreads the features of a batch: a contrastive loss without positives.

        L = log mean over i, j of exp(-D_ij / tau),      D_ij = || z_i - z_j ||^2 / dimension  or  1 - cos(z_i, z_j)

    over all pairs of the rows of all processes, i = j among them, with z = features of (x_t, t, y), flattened. It is
    between -log n (all far apart) and 0 (all the same). Memory is O(rows x all rows).

    Args:
        tau: temperature; 0.5 in the paper, 1 in the released PyTorch code.
        distance: "l2", the paper's choice, or "cosine" (the paper's -cos and a constant).
        tap: the features. "quarter", as in the paper: the block at a quarter of a transformer's depth ("block2" of 12),
            of a U-Net the middle block. The released PyTorch code takes the last block.
        weight: the paper's lambda, 0.5; 0.25 in the released PyTorch code.
    """

    name = "dispersive"
    all_rows: ClassVar[str | None] = COMPARES_ROWS

    weight: float = 0.5
    tau: float = 0.5
    distance: Literal["l2", "cosine"] = "l2"
    tap: str = "quarter"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(tau=self.tau > 0)

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("given", taps=(self.tap,), prediction=False)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        z = answers[0].taps[self.tap].flatten(1)
        with torch.autocast(z.device.type, enabled=False):  # differences of large products need all their digits
            if self.distance == "cosine":
                z = F.normalize(z, dim=1)
                everyone = batch.dist.gather(z)
                far = 1 - z @ everyone.T
            else:
                everyone = batch.dist.gather(z)
                centre = everyone.mean(0).detach()  # moves all alike, so no distance; what is subtracted gets smaller
                z, everyone = z - centre, everyone - centre
                squares = z.square().sum(1)[:, None] + everyone.square().sum(1)
                far = (squares - 2 * z @ everyone.T).clamp_min(0) / z.shape[1]
        n = len(everyone)
        every = torch.arange(n, device=z.device)
        far = far.masked_fill(every[batch.dist.share(n), None] == every, 0.0)
        # the log of the sum over this process's rows, then over processes: nothing underflows, and no n x n matrix
        mine = (-far / self.tau).flatten().logsumexp(0)
        return {"spread": batch.dist.gather(mine[None]).logsumexp(0) - 2 * math.log(n)}
