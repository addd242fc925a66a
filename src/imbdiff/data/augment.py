"""Augmentation of a batch on its device, by random numbers that are given per row.

The numbers are drawn on the CPU for the global batch, so that the same image gets the same change on any device and any
number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imbdiff.runtime.errors import ConfigError

DRAWS_PER_ROW = 3


@dataclass(frozen=True)
class Augmentation:
    """Mirroring and shifting.

    Attributes:
        flip: mirror left and right with probability 1/2; only where a mirrored image means the same.
        shift: move by up to this many pixels in each direction, every offset equally likely; the border is repeated.
    """

    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ConfigError(f"augmentation shift {self.shift} is negative", "give 0 or more pixels")

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 3) float32 uniform numbers in [0, 1) on the CPU: mirror, vertical and horizontal offset of each row.

        Three per row whatever is switched on, so that one setting does not change the draws of another.
        """
        return torch.rand((n, DRAWS_PER_ROW), generator=generator)

    def apply(self, x: Tensor, draws: Tensor) -> Tensor:
        """The changed batch.

        Args:
            x: (B, C, H, W), any type and range, on any device.
            draws: (B, 3) of :meth:`draw`.

        Returns:
            (B, C, H, W) of the same type and device; `x` itself if nothing is switched on.
        """
        if not self.flip and self.shift == 0:
            return x
        b, c, h, w = x.shape
        if draws.shape != (b, DRAWS_PER_ROW):
            raise ValueError(f"draws must be ({b}, {DRAWS_PER_ROW}), not {tuple(draws.shape)}")
        draws = draws.to(x.device)
        rows = (torch.arange(h, device=x.device) - self._offset(draws[:, 1])[:, None]).clamp(0, h - 1)
        columns = (torch.arange(w, device=x.device) - self._offset(draws[:, 2])[:, None]).clamp(0, w - 1)
        if self.flip:
            columns = torch.where(draws[:, :1] < 0.5, w - 1 - columns, columns)
        batch = torch.arange(b, device=x.device)[:, None, None, None]
        channels = torch.arange(c, device=x.device)[None, :, None, None]
        return x[batch, channels, rows[:, None, :, None], columns[:, None, None, :]]

    def _offset(self, u: Tensor) -> Tensor:
        # float32 can round u (2s + 1) up to 2s + 1 itself
        return (u * (2 * self.shift + 1)).floor().long().clamp(max=2 * self.shift) - self.shift
