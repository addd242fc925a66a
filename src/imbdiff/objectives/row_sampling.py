"""Estimating an expensive loss from some rows of the batch: systematic sampling in proportion to weight, unbiased.

A loss that is a sum over rows, L = sum_i w_i g_i, with weights w_i that are known before any network is called, can be
had from k of the rows:

    pi_i = min(1, k w_i / sum_j w_j)      (iteratively clipped, so that the pi_i add up to k)
    L^   = sum over the sampled rows of w_i g_i / pi_i,        E[L^] = L,  E[grad L^] = grad L

Systematic sampling (Madow 1949): on the running sum of the pi_i, the rows in which the points u, u + 1, ..., u + k - 1
lie, u uniform in [0, 1). Rows run in order of weight, so that every sample has noisy and clean rows alike.

k follows from the batch size alone: shapes never change, and no number is read back from the device. Rows are sampled
within strata of 32 consecutive rows, so that one process of 64 rows and two of 32 sample the same ones; where the rows
do not divide by 32, all of a process's rows are one stratum.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from imbdiff.objectives.batch import NoisyBatch, Space, UniformDraw
from imbdiff.objectives.objective import Answer, Objective, Rows

STRATUM = 32
#: of the largest weight: what a row of weight 0 counts when fewer than k rows have a weight; its term stays 0
FLOOR = 1e-9


def inclusion(weights: Tensor, k: int) -> Tensor:
    """(strata, n) weights of at least 0 -> (strata, n) float64 probabilities in (0, 1]; every line adds up to k.

    Closed form of the iterative clipping: with rows in descending order, the first m are certain, m the number of c for
    which (k - c) w_c is at least the sum of w from c on (once that fails it fails for all that follow).
    """
    w = weights.double()
    floor = FLOOR * w.amax(1, keepdim=True)
    w = w + torch.where(floor > 0, floor, 1.0)
    n = w.shape[1]
    ordered, order = w.sort(dim=1, descending=True, stable=True)
    tail = ordered @ torch.ones(n, n, dtype=w.dtype, device=w.device).tril()  # cumsum has no deterministic form on GPUs
    rank = torch.arange(n, device=w.device)
    certain = ((k - rank) * ordered >= tail).sum(1, keepdim=True)
    rest = tail.gather(1, certain.clamp_max(n - 1))
    pi = torch.where(rank < certain, 1.0, ((k - certain) * ordered / rest).clamp_max(1.0))
    return torch.empty_like(pi).scatter_(1, order, pi)


def systematic(pi: Tensor, k: int, u: Tensor) -> Tensor:
    """(strata, n) probabilities that add up to k, (strata, 1) uniform numbers -> (strata, k) distinct row numbers."""
    n = pi.shape[1]
    ordered, order = pi.sort(dim=1, descending=True, stable=True)
    steps = torch.arange(k, device=pi.device)
    sums = (ordered @ torch.ones(n, n, dtype=pi.dtype, device=pi.device).triu()).cummax(1).values
    found = torch.searchsorted(sums, u.double() + steps, right=True)
    # what rounding may do where a probability is 1 to the last digit: no row twice, none beyond the end
    found = (found - steps).cummax(1).values + steps
    return order.gather(1, torch.minimum(found, n - k + steps))


@dataclass(eq=False, kw_only=True)
class RowSampled(Objective):
    """An objective whose terms are sums over rows, each row times a weight that is known beforehand.

    Args:
        rows: share of the rows that its own evaluations are made for, in (0, 1]; 1: all, bit for bit the loss itself.
    """

    all_rows: ClassVar[str | None] = None

    rows: float = 1.0
    space: Space = "native"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sample_rows(self.rows)

    def sample_rows(self, share: float) -> None:
        self.rows = float(share)
        self.check(rows=0 < share <= 1)
        self.draws = {k: v for k, v in self.draws.items() if k != self._draw}
        if share < 1:
            self.draws[self._draw] = UniformDraw()

    @property
    def _draw(self) -> str:
        return f"rows of {self.name}"

    @abstractmethod
    def row_weight(self, batch: NoisyBatch) -> Tensor:
        """(B,) the factor of each row's term, at least 0; 0 where a row takes no part."""

    def _strata(self, batch: NoisyBatch) -> tuple[Tensor, int]:
        """(strata, n) inclusion probabilities, and how many rows of each are sampled."""
        weight = self.row_weight(batch).detach()
        if self.space == "eps":  # terms are squares of eps_scale times a difference of the network's own outputs
            weight = weight * batch.process.eps_scale(batch.t).square()
        n = STRATUM if len(weight) % STRATUM == 0 else len(weight)
        k = max(1, int(self.rows * n + 0.5))
        return inclusion(weight.reshape(-1, n), k), k

    def sampled(self, batch: NoisyBatch) -> Rows | None:
        """The rows to evaluate; None for all."""
        if self.rows == 1:
            return None
        pi, k = self._strata(batch)
        u = batch.draws[self._draw].reshape(*pi.shape)[:, :1]
        first = pi.shape[1] * torch.arange(len(pi), device=pi.device)[:, None]
        return Rows(f"{self.name}:{k} of {pi.shape[1]}", (systematic(pi, k, u) + first).flatten())

    def inverse(self, batch: NoisyBatch, answer: Answer) -> Tensor | float:
        """(k,) 1 / pi of the rows of `answer`, by which their terms are multiplied; 1 where it is about all rows."""
        if answer.rows is None:
            return 1.0
        pi, _ = self._strata(batch)
        return 1 / answer.of(pi.flatten()).to(batch.x_t.dtype)


def sample_branches(objectives: Iterable[Objective], share: float) -> list[tuple[str, str]]:
    """Lets the objectives that can be estimated from a share of the rows be so.

    Returns:
        (name, reason) of those that need all rows.
    """
    refused = []
    for objective in objectives:
        if objective.all_rows is None:
            objective.sample_rows(share)
        else:
            refused.append((objective.name, objective.all_rows))
    return refused
