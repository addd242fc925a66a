"""The denoising loss: the mean squared error of the prediction (Ho et al. 2020, Eq. 14; per process, see `process`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.objective import Answer, Objective, Request


@dataclass(eq=False, kw_only=True)
class Denoising(Objective):
    """L = mean over pixels of || f(x_t, t, y) - target ||^2, with y dropped for a share of the rows.

    The target is the noise, v, or the velocity of the flow, as the process says. Losses that stand for it are
    subclasses with another target or with weights.
    """

    name = "denoising"
    all_rows: ClassVar[str | None] = "its predictions of all rows are what the other losses compare with"
    base = True

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("given")]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        error = answers[0].pred - self.target(batch)
        return {"mse": self.weighted(batch, error.square().flatten(1).mean(1))}

    def target(self, batch: NoisyBatch) -> Tensor:
        """(B, c, h, w) what the network should predict."""
        return batch.target

    def weighted(self, batch: NoisyBatch, error: Tensor) -> Tensor:
        """(B,) the error of each row, times its weight."""
        return error
