"""Augmentation of a batch on its device, by random numbers that are given per row.

What may be done to images without changing what they show is a property of the data set, its *symmetry*: nothing for
digits and traffic signs, mirroring for most photographs, mirroring and quarter turns for what is seen from above or has
no orientation (microscopy, skin, satellites). A generator learns to make whatever it is shown, so it is shown only what
the symmetry allows; classifiers are also shown shifted and partly covered images, which no generator sees.

The numbers are drawn on the CPU for the global batch, so that the same image gets the same change on any device and any
number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from imbdiff.data.auto_augment import NUMBERS, apply_policy
from imbdiff.data.names import counted
from imbdiff.data.symmetry import Symmetry

OWN_NUMBERS = 7
"""Random numbers per row: mirror, vertical and horizontal offset, up-down mirror, exchange of axes, row and column of
the square. Those of a policy come after them."""
COVER = 127
"""Grey value of an erased square: 0 where pixels are scaled to [-1, 1]."""


@dataclass(frozen=True)
class Augmentation:
    """Turning, mirroring, shifting, a policy, and covering, in this order.

    With all but turning it is that of the CIFAR literature: crop, mirror, AutoAugment, cutout (whose squares there are
    black).

    Attributes:
        symmetry: "mirror": left and right with probability 1/2. "turns": also up and down, and rows and columns of
            square images exchanged, each with probability 1/2: all 8 symmetries of the square are equally likely.
        shift: move by up to this many pixels in each direction, every offset equally likely.
        erase: side in pixels of a grey square put over the image, its centre uniform over the image, so that parts of
            it may lie outside (cutout, DeVries and Taylor 2017, arXiv 1708.04552); uint8 images.
        border: what comes in where an image is moved: "edge" repeats its border, "zero" is black, as in the
            literature's random crop of images padded by `shift` pixels.
        policy: "autoaugment-cifar": see :mod:`imbdiff.data.auto_augment`; uint8 images.
    """

    symmetry: Symmetry = "none"
    shift: int = 0
    erase: int = 0
    border: Literal["edge", "zero"] = "edge"
    policy: Literal["none", "autoaugment-cifar"] = "none"

    def describe(self) -> str:
        """For a report; "none" if nothing is switched on."""
        black = " with a black border" if self.border == "zero" else ""
        parts = [
            "mirrored at random" if self.symmetry != "none" else "",
            "turned by quarters at random" if self.symmetry == "turns" else "",
            f"shifted by up to {counted(self.shift, 'pixel')}{black}" if self.shift else "",
            "changed by AutoAugment's policy for CIFAR" if self.policy != "none" else "",
            f"a square of {self.erase} pixels covered" if self.erase else "",
        ]
        return ", ".join(filter(None, parts)) or "none"

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 7) float32 uniform numbers in [0, 1) on the CPU; (n, 12) with a policy.

        One setting does not change the numbers of another.
        """
        widths = [3, OWN_NUMBERS - 3] + [NUMBERS] * (self.policy != "none")
        return torch.cat([torch.rand((n, width), generator=generator) for width in widths], dim=1)

    def variants(self, shape: tuple[int, ...]) -> int:
        """How many images mirroring and turning make of one of `shape` (..., H, W)."""
        return {"none": 1, "mirror": 2, "turns": 8 if shape[-2] == shape[-1] else 4}[self.symmetry]

    def variant(self, numbers: Tensor, count: int) -> Tensor:
        """(B,) int64, which of `count` variants :meth:`apply` makes with `numbers` (B, 7)."""
        mirrored, upside, exchanged = (numbers[:, [0, 3, 4]] < 0.5).long().unbind(1)
        return (mirrored + 2 * upside + 4 * exchanged) % count

    def as_variant(self, x: Tensor, number: int) -> Tensor:
        """Variant `number` of all images (B, C, H, W)."""
        numbers = torch.ones(len(x), OWN_NUMBERS)
        numbers[:, [0, 3, 4]] -= torch.tensor([number >> bit & 1 for bit in range(3)])
        return Augmentation(self.symmetry).apply(x, numbers)

    def apply(self, x: Tensor, numbers: Tensor) -> Tensor:
        """The changed batch.

        Args:
            x: (B, C, H, W), any type and range, on any device.
            numbers: (B, 7) or (B, 12) of :meth:`draw`.

        Returns:
            (B, C, H, W) of the same type and device; `x` itself if nothing is switched on.
        """
        u = numbers.to(x.device)
        below = (u < 0.5)[..., None, None, None]
        if self.symmetry == "turns":
            if x.shape[2] == x.shape[3]:
                x = torch.where(below[:, 4], x.transpose(2, 3), x)
            x = torch.where(below[:, 3], x.flip(2), x)
        if self.symmetry != "none":
            x = torch.where(below[:, 0], x.flip(3), x)
        if self.shift:
            x = self._shifted(x, u[:, 1:3])
        if self.policy != "none":
            x = apply_policy(x, u[:, OWN_NUMBERS:])
        return self._covered(x, u[:, 5:7]) if self.erase else x

    def _shifted(self, x: Tensor, u: Tensor) -> Tensor:
        b, _, h, w = x.shape
        s = self.shift
        # float32 can round u (2s + 1) up to 2s + 1 itself
        down, right = (u * (2 * s + 1)).long().clamp_(max=2 * s).unbind(1)
        if self.border == "zero":
            x = functional.pad(x, (s,) * 4)
        else:  # torch repeats no border of bytes
            x = torch.cat([x[..., :1].expand(-1, -1, -1, s), x, x[..., -1:].expand(-1, -1, -1, s)], dim=3)
            x = torch.cat([x[:, :, :1].expand(-1, -1, s, -1), x, x[:, :, -1:].expand(-1, -1, s, -1)], dim=2)
        windows = x.unfold(2, h, 1).unfold(3, w, 1)
        return windows[torch.arange(b, device=x.device), :, 2 * s - down, 2 * s - right]

    def _covered(self, x: Tensor, u: Tensor) -> Tensor:
        covered = []
        for size, centre in zip(x.shape[2:], u.unbind(1), strict=True):
            start = (centre * size).long().clamp(max=size - 1) - self.erase // 2
            place = torch.arange(size, device=x.device) - start[:, None]
            covered.append((place >= 0) & (place < self.erase))
        return torch.where((covered[0][:, :, None] & covered[1][:, None, :])[:, None], COVER, x)


def scaled(x: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> float32 in [-1, 1], x / 127.5 - 1, in one piece of new memory."""
    return x.float().div_(127.5).sub_(1)
