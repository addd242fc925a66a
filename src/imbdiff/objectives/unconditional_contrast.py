"""CCUA's contrast of unconditional features (Chen et al. 2025, arXiv 2507.09052): InfoNCE in v1, UCL in v2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from imbdiff.objectives.alignment import Time, time_weight
from imbdiff.objectives.batch import FAR, NoisyBatch
from imbdiff.objectives.objective import COMPARES_ROWS, Answer, Objective, Request


@dataclass(eq=False, kw_only=True)
class UnconditionalContrast(Objective):
    """Pushes the features of different images apart, in the unconditional branch.

        L_i = s_i log(1 + sum over j != i of exp((cos(h_i, h_j) - 1) / tau)),      s_i = t_i / T

    with h = features of (x_t, t, null), whole and flattened, and j over the rows of all processes, any class and time.
    This is InfoNCE whose positive is its anchor: the cosine of the two is 1 and has no gradient, so all that is left is
    repulsion. At cosines below about 0.4 it hardly acts. Memory is O(rows x all rows).

    Args:
        tau: temperature; 0.1 is the default of the function that the released code calls.
        time: what s is, see `time_weight`: weighted in the released code, also in v2 for two of the data sets; v1 says
            it of the alignment only.
        block: above 0, j only from the same block of this many consecutive rows: the released script sees 32 at a time,
            the share of one of its four devices.
        tap: the features. "mid": the U-Net's middle block, or the block at a quarter of a transformer's depth ("block3"
            of 12), as the released code has it.
        weight: the paper's alpha; 1 in the released U-Net script, 0.05 in the transformer's.
    """

    name = "unconditional_contrast"
    all_rows: ClassVar[str | None] = COMPARES_ROWS

    tau: float = 0.1
    time: Time = "noise"
    block: int = 0
    tap: str = "mid"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(tau=self.tau > 0, block=self.block >= 0)

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("null", taps=(self.tap,), prediction=False)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        h = answers[0].taps[self.tap].flatten(1)
        with torch.autocast(h.device.type, enabled=False):  # in bfloat16 cosines near 1 are off by 1 / 256, tau is 0.1
            z = F.normalize(h, dim=1)
            everyone = batch.dist.gather(z)
            logits = (z @ everyone.T - 1) / self.tau
        every = torch.arange(len(everyone), device=h.device)
        own = every[batch.dist.share(len(everyone)), None]
        apart = own != every
        if self.block:
            apart = apart & (own // self.block == every // self.block)
        repel = F.softplus(logits.masked_fill(~apart, FAR).logsumexp(1))
        return {"repel": time_weight(batch, self.time) * repel}
