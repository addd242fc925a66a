"""Non-leaking geometric augmentation: what was done to an image is an input of the network, which need not learn it.

ADA as CBDM's released code has it (utils/augmentation.py there, after Karras et al. 2022, *Elucidating the Design Space
of Diffusion-Based Generative Models*, and k-diffusion). A change is nine numbers, all 0 for an image as it is:

== ============== ============================= ==================================================================
#  name           range                         what it does; x to the right, y downwards, about the image's centre
== ============== ============================= ==================================================================
0  mirrored       0 or 1 (1/2, whatever p is)   left and right swapped
1  upside down    0 or 1 (p / 2)                top and bottom swapped
2  size           N(0, 1)                       enlarged by 2^(0.2 size)
3  cos(angle) - 1 [-2, 0]                       rotated counter-clockwise by an angle uniform in (-pi, pi)
4  sin(angle)     [-1, 1]                       the same
5  a cos(axis)    a = \\|N(0, 1)\\|               stretched by aniso^a along the axis, aniso = 2^0.2, and squeezed by
                                                as much across it; axis uniform in (-pi, pi), clockwise from x
6  a sin(axis)    the same                      the same
7  shift x        N(0, 1)                       moved by shift x width x this, shift = 1/8
8  shift y        N(0, 1)                       moved by shift x height x this
== ============== ============================= ==================================================================

Sizes, rotations, axes and shifts are each there with probability p (0.12 in CBDM's code), and 0 otherwise. They are
composed in the order of that code: shift, stretch, rotation, size, and the two mirrorings last,

    out = mirror . upside . size . R(angle) . R(axis) diag(aniso^a, aniso^-a) R(axis)^-1 . shift   (on positions)

Departures from that code: images are interpolated by cubic convolution (torch's bicubic) where it uses a cubic
B-spline; an image that is only mirrored is not interpolated at all; a, normal there, is its absolute value: with a
sign, (a, axis) and (-a, axis + pi) would be two changes with one vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from imbdiff.data.symmetry import Symmetry

CONDITION_SIZE = 9
"""Numbers that describe a change."""
UNIT = 2**0.2
"""Factor of one unit of size, and of stretch."""
SHIFT = 1 / 8
"""Share of the side that one unit of shift is."""
SMALL_ANGLE = math.pi / 12
"""Largest rotation of images that have an upright position."""


@dataclass(frozen=True)
class Geometric:
    """Random geometric changes of images, and the vectors that describe them.

    Attributes:
        p: probability of each kind of change, in [0, 1]; mirroring has 1/2 whatever it is.
        symmetry: of the data set: what is not among it is left out. Of "none" there is no mirroring, of "none" and
            "mirror" nothing is upside down and rotations stay within 15 degrees. None: all of the table, as published.
    """

    p: float = 0.12
    symmetry: Symmetry | None = None

    def describe(self) -> str:
        """For a page."""
        mirrored = {"none": "", "mirror": ", mirrored"}.get(
            self.symmetry or "turns", ", mirrored and turned upside down"
        )
        angle = "any angle" if self.symmetry in (None, "turns") else f"up to {math.degrees(SMALL_ANGLE):.0f} degrees"
        return f"rotated by {angle}, scaled, stretched and moved, each with probability {self.p:g}{mirrored}"

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 9) float32 vectors of random changes, on the generator's device.

        Every row takes the same number of random numbers whatever p is: a change that is there at one p is there, and
        the same, at every larger one.
        """
        device = generator.device
        u = torch.rand((n, 9), generator=generator, device=device, dtype=torch.float64)
        size, stretch, x, y = torch.randn((n, 4), generator=generator, device=device, dtype=torch.float64).unbind(1)
        upside, sized, rotated, stretched, shifted = (u[:, :5] < self.p).double().unbind(1)
        any_angle, mirrored = self.symmetry in (None, "turns"), self.symmetry != "none"
        angle = (2 * u[:, 5] - 1) * (math.pi if any_angle else SMALL_ANGLE) * rotated
        axis = (2 * u[:, 6] - 1) * math.pi
        stretch = stretch.abs() * stretched
        columns = [
            (u[:, 7] < 0.5).double() * mirrored,
            (u[:, 8] < 0.5).double() * upside * any_angle,
            size * sized,
            angle.cos() - 1,
            angle.sin(),
            stretch * axis.cos(),
            stretch * axis.sin(),
            x * shifted,
            y * shifted,
        ]
        return torch.stack(columns, 1).float() + 0.0  # no negative zeros

    def apply(self, x: Tensor, change: Tensor) -> Tensor:
        """The changed images. Rows that are only mirrored, or not changed, keep their values exactly.

        Beyond the border an image goes on as its reflection about the centres of the outermost pixels. Interpolated
        values may leave the range of `x` a little; they are not cut off, as in the source.

        Args:
            x: (B, C, H, W) float images or model space, on any device.
            change: (B, 9) of :meth:`draw`, on any device.

        Returns:
            (B, C, H, W) of the same type and device.
        """
        h, w = x.shape[2:]
        theta = self._inverse(change, h, w).to(device=x.device, dtype=x.dtype)
        change = change.to(x.device)
        grid = F.affine_grid(theta, list(x.shape), align_corners=True)
        # True counts positions from the centres of the outermost pixels, which is also where reflection then happens
        warped = F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=True)

        def where(rows: Tensor, changed: Tensor, other: Tensor) -> Tensor:
            return torch.where(rows[:, None, None, None], changed, other)

        # every row is warped, and the warp dropped where nothing asks for it: which rows those are stays on the device
        out = where((change[:, 2:] != 0).any(1), warped, x)
        out = where(change[:, 0] > 0.5, out.flip(3), out)
        return where(change[:, 1] > 0.5, out.flip(2), out)

    def _inverse(self, change: Tensor, h: int, w: int) -> Tensor:
        """(B, 2, 3): where each position comes from, without the mirrorings, both in units of half an image's side."""
        _, _, size, cosine, sine, ax, ay, dx, dy = change.double().unbind(1)
        cosine = cosine + 1
        a = torch.hypot(ax, ay)
        stretch = UNIT**a
        ux, uy = torch.where(a > 0, ax / a.clamp_min(1e-30), 1.0), torch.where(a > 0, ay / a.clamp_min(1e-30), 0.0)
        # R(axis) diag(1 / s, s) R(axis)^-1
        xx, yy = ux * ux / stretch + uy * uy * stretch, uy * uy / stretch + ux * ux * stretch
        xy = ux * uy * (1 / stretch - stretch)
        # times the inverse of the rotation, which is clockwise where y points down, and of the size
        factor = UNIT**-size
        m00, m01 = factor * (xx * cosine + xy * sine), factor * (xy * cosine - xx * sine)
        m10, m11 = factor * (xy * cosine + yy * sine), factor * (yy * cosine - xy * sine)
        half_w, half_h = max(w - 1, 1) / 2, max(h - 1, 1) / 2
        rows = (
            torch.stack([m00, m01 * half_h / half_w, -SHIFT * w * dx / half_w], 1),
            torch.stack([m10 * half_w / half_h, m11, -SHIFT * h * dy / half_h], 1),
        )
        return torch.stack(rows, 1)
