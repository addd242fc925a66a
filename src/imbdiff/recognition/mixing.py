"""Mixing of images and labels inside a batch: mixup, CutMix, Remix.

The loss of a mixed row is lambda L(z, y_a) + (1 - lambda) L(z, y_b), which for cross-entropy is that of the mixed label
and leaves every other loss as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

REMIX_KAPPA = 3.0
REMIX_TAU = 0.5
"""Constants of Remix (Chou et al. 2020, section 4.3)."""
CUTMIX_PROBABILITY = 0.5
"""Share of the batches that CutMix changes, as its authors' code does on CIFAR."""


@dataclass(frozen=True, eq=False)
class Mixed:
    """A mixed batch.

    Attributes:
        x: (B, C, H, W).
        partner: (B,) int64 row that each was mixed with.
        weight: (B,) float32 lambda of the row's own label; 1 - lambda is the partner's.
    """

    x: Tensor
    partner: Tensor
    weight: Tensor


def mix(kind: str, x: Tensor, labels: Tensor, counts: Tensor, generator: torch.Generator) -> Mixed | None:
    """Mixes the rows of a batch with a permutation of them; None where this batch stays as it is.

    One lambda ~ U(0, 1) (Beta(1, 1)) per batch, as the authors' codes draw it.

    * mixup (Zhang et al. 2018): x = lambda x_a + (1 - lambda) x_b, labels alike.
    * cutmix (Yun et al. 2019): a box of area 1 - lambda, its centre uniform, comes from x_b; lambda is then the share
      of the image that is left. In half of the batches.
    * remix (Chou et al. 2020, Eq. 6-7): images as mixup; with n_a / n_b >= kappa and lambda < tau the label is all
      y_b's, with n_a / n_b <= 1 / kappa and 1 - lambda < tau all y_a's: the rarer class.

    Args:
        kind: "mixup", "cutmix" or "remix".
        x: (B, C, H, W) float.
        labels: (B,).
        counts: (C,) images of each class.
        generator: on the CPU.
    """
    draws = torch.rand(4, generator=generator).tolist()
    partner = torch.randperm(len(x), generator=generator).to(x.device)
    share = draws[0]
    if kind == "cutmix":
        if draws[1] >= CUTMIX_PROBABILITY:
            return None
        h, w = x.shape[2:]
        side = (1 - share) ** 0.5
        rows, columns = _span(int(h * side), int(draws[2] * h), h), _span(int(w * side), int(draws[3] * w), w)
        x = x.clone()
        x[:, :, rows, columns] = x[partner][:, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return Mixed(x, partner, torch.full((len(x),), 1 - area / (h * w), device=x.device))
    mixed = share * x + (1 - share) * x[partner]
    weight = torch.full((len(x),), share, device=x.device)
    if kind == "remix":
        ratio = counts[labels] / counts[labels[partner]]
        if share < REMIX_TAU:
            weight = torch.where(ratio >= REMIX_KAPPA, torch.zeros_like(weight), weight)
        if 1 - share < REMIX_TAU:
            weight = torch.where(ratio <= 1 / REMIX_KAPPA, torch.ones_like(weight), weight)
    elif kind != "mixup":
        raise ValueError(f"unknown mixing {kind!r}")
    return Mixed(mixed, partner, weight)


def _span(length: int, centre: int, size: int) -> slice:
    return slice(max(0, centre - length // 2), min(size, centre + length // 2))
