"""Augmentation of a batch on its device, by random numbers that are given per row: the one place for all of it.

What may be done to images without changing what they show is a property of the data set, its *symmetry*: nothing for
digits and traffic signs, mirroring for most photographs, mirroring and quarter turns for what is seen from above or has
no orientation (microscopy, skin, satellites). A generator learns to draw whatever it is shown, so it is shown only what
the symmetry allows; classifiers are also shown shifted, re-lit and partly covered images, which no generator sees.

The numbers are drawn on the CPU for the global batch, so that the same image gets the same change on any device and any
number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from imbdiff.data.source import Symmetry
from imbdiff.data.words import counted
from imbdiff.runtime.errors import ConfigError

DRAWS_PER_ROW = 9
COVER = 127
"""Grey value of an erased square: 0 where pixels are scaled to [-1, 1]."""


@dataclass(frozen=True)
class Augmentation:
    """Mirroring, turning, shifting, lighting and covering, in this order.

    Attributes:
        flip: mirror left and right with probability 1/2; only where a mirrored image means the same.
        turns: also mirror up and down, and exchange rows and columns of square images, each with probability 1/2:
            with `flip` all 8 symmetries of the square are equally likely; images that are not square get 4.
        shift: move by up to this many pixels in each direction, every offset equally likely; the border is repeated.
        jitter: multiply brightness, and contrast about the mean of the image's channels, by factors uniform in
            [1 - jitter, 1 + jitter]; rounded to whole grey values.
        erase: side in pixels of a grey square put over the image, its centre uniform over the image, so that parts of
            it may lie outside (cutout, DeVries and Taylor 2017, arXiv 1708.04552).

    Raises:
        ConfigError: a negative number, or a jitter of 1 or more.
    """

    flip: bool = False
    shift: int = 0
    turns: bool = False
    jitter: float = 0.0
    erase: int = 0

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ConfigError(f"augmentation shift {self.shift} is negative", "give 0 or more pixels")
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"augmentation jitter {self.jitter} is not in [0, 1)", "give for example 0.2")
        if self.erase < 0:
            raise ConfigError(f"augmentation erase {self.erase} is negative", "give 0 or more pixels")

    @classmethod
    def of(cls, symmetry: Symmetry, *, shift: int = 0, jitter: float = 0.0, erase: int = 0) -> Augmentation:
        """What a data set's symmetry allows, and what only classifiers may see."""
        return cls(symmetry in ("mirror", "turns"), shift, symmetry == "turns", jitter, erase)

    def words(self) -> str:
        """In words, for a report; "none" if nothing is switched on."""
        parts = [
            "mirrored at random" if self.flip else "",
            "turned by quarters at random" if self.turns else "",
            f"shifted by up to {counted(self.shift, 'pixel')}" if self.shift else "",
            f"brightness and contrast changed by up to {self.jitter:.0%}" if self.jitter else "",
            f"a square of {self.erase} pixels covered" if self.erase else "",
        ]
        return ", ".join(part for part in parts if part) or "none"

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 9) float32 uniform numbers in [0, 1) on the CPU.

        Mirror, vertical and horizontal offset, up-down mirror, exchange of axes, brightness, contrast, row and column
        of the square. As many whatever is switched on, so that one setting does not change the draws of another.
        """
        first = torch.rand((n, 3), generator=generator)
        return torch.cat([first, torch.rand((n, DRAWS_PER_ROW - 3), generator=generator)], dim=1)

    def apply(self, x: Tensor, draws: Tensor) -> Tensor:
        """The changed batch.

        Args:
            x: (B, C, H, W), any type and range, on any device; for `jitter` and `erase` uint8.
            draws: (B, 9) of :meth:`draw`.

        Returns:
            (B, C, H, W) of the same type and device; `x` itself if nothing is switched on.
        """
        if self == Augmentation():
            return x
        if draws.shape != (len(x), DRAWS_PER_ROW):
            raise ValueError(f"draws must be ({len(x)}, {DRAWS_PER_ROW}), not {tuple(draws.shape)}")
        draws = draws.to(x.device)
        if self.flip or self.turns or self.shift:
            x = self._moved(x, draws)
        if self.jitter:
            x = self._lit(x, draws)
        return self._covered(x, draws) if self.erase else x

    def _moved(self, x: Tensor, draws: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if self.turns and h == w:
            x = torch.where((draws[:, 4] < 0.5)[:, None, None, None], x.transpose(2, 3), x)
        rows = (torch.arange(h, device=x.device) - self._offset(draws[:, 1])[:, None]).clamp(0, h - 1)
        columns = (torch.arange(w, device=x.device) - self._offset(draws[:, 2])[:, None]).clamp(0, w - 1)
        if self.flip:
            columns = torch.where(draws[:, :1] < 0.5, w - 1 - columns, columns)
        if self.turns:
            rows = torch.where(draws[:, 3:4] < 0.5, h - 1 - rows, rows)
        batch = torch.arange(b, device=x.device)[:, None, None, None]
        channels = torch.arange(c, device=x.device)[None, :, None, None]
        return x[batch, channels, rows[:, None, :, None], columns[:, None, None, :]]

    def _offset(self, u: Tensor) -> Tensor:
        # float32 can round u (2s + 1) up to 2s + 1 itself
        return (u * (2 * self.shift + 1)).floor().long().clamp(max=2 * self.shift) - self.shift

    def _lit(self, x: Tensor, draws: Tensor) -> Tensor:
        brightness, contrast = (1 + self.jitter * (2 * draws[:, i, None, None, None] - 1) for i in (5, 6))
        y = x.float() * brightness
        mean = y.mean(dim=(1, 2, 3), keepdim=True)
        return (mean + (y - mean) * contrast).round().clamp(0, 255).to(x.dtype)

    def _covered(self, x: Tensor, draws: Tensor) -> Tensor:
        h, w = x.shape[2:]
        inside = []
        for size, u in ((h, draws[:, 7]), (w, draws[:, 8])):
            start = (u * size).floor().long().clamp(max=size - 1) - self.erase // 2
            place = torch.arange(size, device=x.device) - start[:, None]
            inside.append((place >= 0) & (place < self.erase))
        return x.masked_fill((inside[0][:, :, None] & inside[1][:, None, :])[:, None], COVER)
