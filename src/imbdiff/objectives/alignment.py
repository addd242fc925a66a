"""CCUA's alignment of conditional and unconditional predictions (Chen et al. 2025, arXiv 2507.09052)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from imbdiff.objectives.batch import NoisyBatch, Space
from imbdiff.objectives.objective import Answer, Request
from imbdiff.objectives.row_sampling import RowSampled

Time = Literal["noise", "none", "clean"]


def time_weight(batch: NoisyBatch, time: Time) -> Tensor:
    """(B,) in [0, 1]: how much a row counts by its time.

    "noise": the noise level t / T, as the text says and the U-Net code does. "clean": one minus it, what the released
    transformer code does by accident: its time runs from noise to data, and it weights by that time. "none": 1.
    """
    if time == "none":
        return batch.noise_level.new_ones(len(batch))
    return batch.noise_level if time == "noise" else 1 - batch.noise_level


@dataclass(eq=False, kw_only=True)
class Alignment(RowSampled):
    """Makes the first steps of denoising, where all is noise, insensitive to the class.

        L_i = s_i || eps(x_t, t, y) - eps(x_t, t, null) ||^2,      s_i = t_i / T

    the mean over pixels, with gradients into both branches. Rows whose label was dropped take no part.

    Args:
        time: what s is, see `time_weight`.
        space: of the difference, see `NoisyBatch.difference`; "native" in the released transformer code as well.
        rows: share of the rows that the null label is evaluated for, without bias: see `row_sampling`.
        weight: the paper's gamma; 1 in the released U-Net script, 0.05 in the transformer's.
    """

    name = "alignment"

    time: Time = "noise"
    space: Space = "native"

    def row_weight(self, batch: NoisyBatch) -> Tensor:
        return time_weight(batch, self.time) * ~batch.dropped

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        rows = self.sampled(batch)
        return [Request("given", rows), Request("null", rows)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        given, null = answers
        gap = batch.difference(given.pred, null.pred, given, self.space).square().flatten(1).mean(1)
        w = given.of(self.row_weight(batch)) * self.inverse(batch, given)
        return {"gap": batch.spread(w * gap, given)}
