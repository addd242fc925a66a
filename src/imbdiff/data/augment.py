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
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from imbdiff.data.auto_augment import DRAWS, apply_policy, filled
from imbdiff.data.names import counted
from imbdiff.data.source import Symmetry
from imbdiff.runtime.errors import ConfigError

Border = Literal["edge", "zero"]
Policy = Literal["none", "autoaugment-cifar"]

DRAWS_PER_ROW = 9
"""Without a policy, whose draws come after these."""
COVER = 127
"""Grey value of an erased square: 0 where pixels are scaled to [-1, 1]."""


@dataclass(frozen=True)
class Augmentation:
    """Mirroring, turning, shifting, a policy, lighting and covering, in this order.

    With `flip`, `shift`, `policy` and `erase` it is that of the CIFAR literature: crop, mirror, AutoAugment, cutout
    (whose squares there are black).

    Attributes:
        flip: mirror left and right with probability 1/2; only where a mirrored image means the same.
        turns: also mirror up and down, and exchange rows and columns of square images, each with probability 1/2:
            with `flip` all 8 symmetries of the square are equally likely; images that are not square get 4.
        shift: move by up to this many pixels in each direction, every offset equally likely.
        jitter: multiply brightness, and contrast about the mean of the image's channels, by factors uniform in
            [1 - jitter, 1 + jitter]; rounded to whole grey values.
        erase: side in pixels of a grey square put over the image, its centre uniform over the image, so that parts of
            it may lie outside (cutout, DeVries and Taylor 2017, arXiv 1708.04552).
        border: what comes in where an image is moved: "edge" repeats its border, "zero" is black, as in the
            literature's random crop of images padded by `shift` pixels.
        policy: "autoaugment-cifar": two operations on color, light or shape, drawn from the policy that was found for
            CIFAR; see :mod:`imbdiff.data.auto_augment`.

    Raises:
        ConfigError: a negative number, a jitter of 1 or more, or an unknown border or policy.
    """

    flip: bool = False
    shift: int = 0
    turns: bool = False
    jitter: float = 0.0
    erase: int = 0
    border: Border = "edge"
    policy: Policy = "none"

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ConfigError(f"augmentation shift {self.shift} is negative", "give 0 or more pixels")
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"augmentation jitter {self.jitter} is not in [0, 1)", "give for example 0.2")
        if self.erase < 0:
            raise ConfigError(f"augmentation erase {self.erase} is negative", "give 0 or more pixels")
        for name, value, known in (
            ("border", self.border, get_args(Border)),
            ("policy", self.policy, get_args(Policy)),
        ):
            if value not in known:
                raise ConfigError(f"unknown augmentation {name} {value!r}", f"choose one of {', '.join(known)}")

    @classmethod
    def of(
        cls,
        symmetry: Symmetry,
        *,
        shift: int = 0,
        jitter: float = 0.0,
        erase: int = 0,
        border: Border = "edge",
        policy: Policy = "none",
    ) -> Augmentation:
        """What a data set's symmetry allows, and what only classifiers may see."""
        return cls(symmetry in ("mirror", "turns"), shift, symmetry == "turns", jitter, erase, border, policy)

    def words(self) -> str:
        """In words, for a report; "none" if nothing is switched on."""
        black = " with a black border" if self.border == "zero" else ""
        parts = [
            "mirrored at random" if self.flip else "",
            "turned by quarters at random" if self.turns else "",
            f"shifted by up to {counted(self.shift, 'pixel')}{black}" if self.shift else "",
            "changed by AutoAugment's policy for CIFAR" if self.policy != "none" else "",
            f"brightness and contrast changed by up to {self.jitter:.0%}" if self.jitter else "",
            f"a square of {self.erase} pixels covered" if self.erase else "",
        ]
        return ", ".join(part for part in parts if part) or "none"

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 9) float32 uniform numbers in [0, 1) on the CPU; (n, 14) with a policy.

        Mirror, vertical and horizontal offset, up-down mirror, exchange of axes, brightness, contrast, row and column
        of the square. As many whatever is switched on, so that one setting does not change the draws of another; those
        of a policy come after.
        """
        first = torch.rand((n, 3), generator=generator)
        parts = [first, torch.rand((n, DRAWS_PER_ROW - 3), generator=generator)]
        if self.policy != "none":
            parts.append(torch.rand((n, DRAWS), generator=generator))
        return torch.cat(parts, dim=1)

    def apply(self, x: Tensor, draws: Tensor) -> Tensor:
        """The changed batch.

        Args:
            x: (B, C, H, W), any type and range, on any device; for `jitter`, `erase` and `policy` uint8.
            draws: (B, 9) or (B, 14) of :meth:`draw`.

        Returns:
            (B, C, H, W) of the same type and device; `x` itself if nothing is switched on.
        """
        if self == Augmentation():
            return x
        width = DRAWS_PER_ROW + (DRAWS if self.policy != "none" else 0)
        if draws.shape != (len(x), width):
            raise ValueError(f"draws must be ({len(x)}, {width}), not {tuple(draws.shape)}")
        draws = draws.to(x.device)
        if self.flip or self.turns or self.shift:
            x = self._moved(x, draws)
        if self.policy != "none":
            x = apply_policy(x, draws[:, DRAWS_PER_ROW:])
        if self.jitter:
            x = self._lit(x, draws)
        return self._covered(x, draws) if self.erase else x

    def _moved(self, x: Tensor, draws: Tensor) -> Tensor:
        b, _, h, w = x.shape
        if self.turns and h == w:
            x = torch.where((draws[:, 4] < 0.5)[:, None, None, None], x.transpose(2, 3), x)
        if self.turns:
            x = torch.where((draws[:, 3] < 0.5)[:, None, None, None], x.flip(2), x)
        mirrored = draws[:, 0] < 0.5 if self.flip else None
        if self.shift:
            x = self._window(x, draws, mirrored)
        if mirrored is None:
            return x
        # of all images and all mirrored ones; a copy of whole images, which a mask of pixels is not
        which = torch.arange(b, device=x.device).add_(mirrored, alpha=b)
        return torch.cat([x, x.flip(3)]).index_select(0, which)

    def _window(self, x: Tensor, draws: Tensor, mirrored: Tensor | None) -> Tensor:
        """Moved images; those that are mirrored afterwards are moved the other way across."""
        b, c, h, w = x.shape
        most = 2 * self.shift
        # how far down and to the right; float32 can round u (2s + 1) up to 2s + 1 itself
        down, right = (draws[:, 1:3] * (most + 1)).long().clamp_(max=most).unbind(1)
        if mirrored is not None:
            right = torch.where(mirrored, most - right, right)
        x = self._padded(x).contiguous()
        tall, wide = x.shape[2:]
        # what an image becomes is a stretch of the padded one that begins at some number, with whole rows between: one
        # copy per image instead of an index per pixel
        size, last = c * tall * wide, most * (wide + 1)
        first = torch.arange(last, last + b * size, size, device=x.device).sub_(down, alpha=wide).sub_(right)
        length = (c * tall - tall + h - 1) * wide + w
        x = x.as_strided((b * size - length + 1, length), (1, 1)).index_select(0, first)
        return x.as_strided((b, c, h, w), (length, tall * wide, wide, 1)).contiguous()

    def _padded(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H + 2 shift, W + 2 shift)."""
        if self.border == "zero":
            return functional.pad(x, (self.shift,) * 4)
        # torch repeats no border of bytes
        s = self.shift
        x = torch.cat([x[..., :1].expand(-1, -1, -1, s), x, x[..., -1:].expand(-1, -1, -1, s)], dim=3)
        return torch.cat([x[:, :, :1].expand(-1, -1, s, -1), x, x[:, :, -1:].expand(-1, -1, s, -1)], dim=2)

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
        return filled(x, (inside[0][:, :, None] & inside[1][:, None, :])[:, None], COVER)


def scaled(x: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> float32 in [-1, 1], x / 127.5 - 1, in one piece of new memory."""
    return x.float().div_(127.5).sub_(1)
