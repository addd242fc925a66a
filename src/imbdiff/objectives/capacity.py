"""Capacity manipulation, CM (Hong et al., ICLR 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import ClassVar

import torch
from torch import Tensor

from imbdiff.data.stats import ClassStats
from imbdiff.objectives.batch import NoisyBatch, Space
from imbdiff.objectives.objective import Answer, Request
from imbdiff.objectives.row_sampling import RowSampled


@dataclass(eq=False, kw_only=True)
class CapacityManipulation(RowSampled):
    """Keeps the low-rank capacity of a network for rare classes: see `imbdiff.diffusion.low_rank`.

        g_i = || eps(x_t, t, y; W_g + s B A) - eps(x_t, t, y; W_g) ||^2
        consistent:   consistency w_con(y) g_i,         w_con(y) = C N_y / sum_c N_c
        diverse:     -diversity w_div(y) phi(g_i),      w_div(y) = C / (N_y sum_c 1 / N_c)

    the mean over pixels: frequent classes are to do with W_g alone what they do with all weights, rare ones to differ.
    Both weights have mean 1 over classes and are 1 where classes are equally frequent.

    The paper's phi(g) = g has no lower bound: where diversity w_div > consistency w_con it pays to drive the prediction
    of W_g alone away for ever. Here phi(g) = g / (1 + g / bound), which is g where g is far below `bound` and never
    above `bound`. The log's "gap" is the mean of g; where it is not small against `bound`, the bound is at work.

    The network must have a capacity to switch off (`LowRankModel`). Rows whose label was dropped take no part. The two
    predictions have dropout masks of their own: with dropout 0.1 that is most of g in short runs, and
    ``--model.dropout 0`` leaves the low-rank part alone in it.

    Args:
        consistency, diversity: factors of the two terms; 1 and 0.2 as reported of the authors' release.
        bound: of phi, in units of the target's variance; `inf`: the paper's.
        detach_base: no gradient into the prediction of W_g alone; default: into both.
        space: of the difference, see `NoisyBatch.difference`.
        rows: share of the rows that W_g alone is evaluated for, without bias: see `row_sampling`.
        weight: the paper's lambda, about 1.
    """

    name = "capacity"
    monitors: ClassVar[tuple[str, ...]] = ("gap",)

    consistency: float = 1.0
    diversity: float = 0.2
    bound: float = 0.1
    detach_base: bool = False
    space: Space = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(consistency=0 <= self.consistency < inf, diversity=0 <= self.diversity < inf, bound=self.bound > 0)

    def row_weight(self, batch: NoisyBatch) -> Tensor:
        """What bounds the size of a row's two terms together, in units of its gap."""
        consistent, diverse = class_weights(batch.stats, batch.labels.device)[:, batch.labels]
        return (self.consistency * consistent + self.diversity * diverse) * ~batch.dropped

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        rows = self.sampled(batch)
        return [Request("given", rows), Request("given", rows, capacity="base", grad=not self.detach_base)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        full, base = answers
        gap = batch.difference(full.pred, base.pred, full, self.space).square().flatten(1).mean(1)
        gap = gap * ~full.of(batch.dropped)
        w = class_weights(batch.stats, gap.device)[:, full.of(batch.labels)].to(gap.dtype)
        inverse = self.inverse(batch, full)
        terms = {
            "consistent": self.consistency * w[0] * gap,
            "diverse": -self.diversity * w[1] * (gap / (1 + gap / self.bound)),
            "gap": gap.detach(),
        }
        return {name: batch.spread(inverse * term, full) for name, term in terms.items()}


@lru_cache(maxsize=16)
def class_weights(stats: ClassStats, device: torch.device) -> Tensor:
    """(2, C) float64: w_con and w_div; one copy per device: no host-to-device copy in the loop."""
    n = torch.tensor(stats.counts, dtype=torch.float64)
    # w_div as C / sum_c (N_y / N_c), so that equal counts give exactly 1
    weights = torch.stack([len(n) * n / n.sum(), len(n) / (n[:, None] / n).sum(1)])
    return weights.to(device)
