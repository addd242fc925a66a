"""AutoAugment's policy for CIFAR (Cubuk et al. 2019, arXiv 1805.09501), on batches and on their device.

One of 25 sub-policies is chosen for each image: two operations, each with a probability and a magnitude of 0 to 9. The
operations are those of PIL with nearest interpolation, and what comes in from outside is grey. What the paper leaves
open is done as by the ports that long-tail recognition uses: magnitudes are spread evenly over ten values, and not only
shears, translations and rotations but also contrast, color, brightness and sharpness have a random sign, about no
change (the paper's own scale, 0.1 to 1.9, would make small magnitudes extreme). Those ports differ in two details:
shears with bicubic interpolation, and rotations of one sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NUMBERS = 5
"""Random numbers per row: which sub-policy, whether its first and second operation happen, the signs of both."""
FILL = 128
LARGEST = {"shear-x": 0.3, "shear-y": 0.3, "translate-x": 150 / 331, "translate-y": 150 / 331, "rotate": 30.0}
"""Strength at magnitude 9: pixels per pixel, share of the side, degrees counter-clockwise."""

CIFAR_POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate-x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear-y", 0.5, 8), ("translate-y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear-y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate-x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate-y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.8, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate-y", 0.9, 9), ("translate-y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate-y", 0.7, 9), ("autocontrast", 0.9, 1)),
)
"""Table 7 of the paper, "Reduced CIFAR-10": (operation, probability, magnitude) twice."""


def apply_policy(x: Tensor, numbers: Tensor) -> Tensor:
    """The changed batch; rows are independent of each other.

    Args:
        x: (B, C, H, W) uint8 on any device. Images that do not have 3 channels keep their color.
        numbers: (B, 5) uniform in [0, 1), on the same device.
    """
    names = list(OPERATIONS)
    operation, probability, magnitude = (
        torch.tensor([[column(step) for step in pair] for pair in CIFAR_POLICY], device=x.device)
        for column in (lambda step: names.index(step[0]), lambda step: step[1], lambda step: step[2])
    )
    which = (numbers[:, 0] * len(CIFAR_POLICY)).long().clamp(max=len(CIFAR_POLICY) - 1)
    out = x.clone()
    for i in (0, 1):
        happens = numbers[:, 1 + i] < probability[which, i]
        sign = torch.where(numbers[:, 3 + i] < 0.5, -1, 1)
        for number, name in enumerate(names):
            rows = (happens & (operation[which, i] == number)).nonzero().flatten()
            if len(rows):
                out[rows] = operate(name, out[rows], magnitude[which[rows], i], sign[rows])
    return out


def operate(name: str, x: Tensor, magnitude: Tensor, sign: Tensor) -> Tensor:
    """One operation on (B, C, H, W) uint8 images, with magnitudes (B,) of 0 to 9 and signs (B,) -1 or 1."""
    return OPERATIONS[name](x, strength(name, magnitude, sign))


def strength(name: str, magnitude: Tensor, sign: Tensor) -> Tensor:
    """(B,) float64, what magnitudes of 0 to 9 mean.

    Solarize: the value from which on others are inverted; posterize: bits that stay; contrast, color, brightness,
    sharpness: PIL's factor, 1 for no change; shear, translation, rotation: see `LARGEST`.
    """
    share = magnitude.double() / 9
    if name == "solarize":
        return 256 - 256 * share
    if name == "posterize":
        return (8 - 4 * share).round()
    if name in ("contrast", "color", "brightness", "sharpness"):
        return 1 + 0.9 * share * sign
    return sign * share * LARGEST.get(name, 0.0)


def _moved(x: Tensor, affine: list[Tensor]) -> Tensor:
    """x at the places x' = a x + b y + c, y' = d x + e y + f of pixel (x, y), grey where these are outside.

    `affine`: a to f, (B,) float64 each. Places are in whole 1/65536 pixels, as PIL computes them.
    """
    h, w = x.shape[2:]
    a, b, c, d, e, f = affine
    # pixels are asked for at their centres
    exact = torch.stack([a, b, c + 0.5 * (a + b), d, e, f + 0.5 * (d + e)])
    m = (exact * 65536 + 0.5).floor().long()[:, :, None, None]
    down, right = torch.arange(h, device=x.device)[:, None], torch.arange(w, device=x.device)
    columns = (m[0] * right + m[1] * down + m[2]) >> 16
    rows = (m[3] * right + m[4] * down + m[5]) >> 16
    inside = (columns >= 0) & (columns < w) & (rows >= 0) & (rows < h)
    at = (rows * w + columns).clamp(0, h * w - 1).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return torch.where(inside[:, None], x.flatten(2).gather(2, at).reshape(x.shape), FILL)


def _affine(s: Tensor, **given: Tensor) -> list[Tensor]:
    """The entries a to f of a matrix for each strength, those of the identity where not given."""
    identity = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0, "e": 1.0, "f": 0.0}
    return [given.get(name, torch.full_like(s, value)) for name, value in identity.items()]


def _rotated(x: Tensor, s: Tensor) -> Tensor:
    h, w = x.shape[2:]
    cos, sin = torch.cos(-s * (math.pi / 180)), torch.sin(-s * (math.pi / 180))
    c, f = w / 2 - cos * w / 2 - sin * h / 2, h / 2 + sin * w / 2 - cos * h / 2
    return _moved(x, [cos, sin, c, -sin, cos, f])


def _solarized(x: Tensor, s: Tensor) -> Tensor:
    return torch.where(x < _wide(s), x, 255 - x)


def _posterized(x: Tensor, s: Tensor) -> Tensor:
    step = 2 ** (8 - _wide(s).int())
    return (x.int() // step * step).to(torch.uint8)


def _stretched(x: Tensor, s: Tensor) -> Tensor:
    """The darkest value of each channel becomes 0, the brightest 255. PIL's floats may fall 1 lower."""
    y = x.int()
    low, high = y.amin((2, 3), keepdim=True), y.amax((2, 3), keepdim=True)
    return torch.where(high > low, (y - low) * 255 // (high - low).clamp(min=1), y).to(torch.uint8)


def _equalized(x: Tensor, s: Tensor) -> Tensor:
    """Values spread so that each is equally frequent."""
    flat = x.flatten(2).long()
    count = torch.zeros((*flat.shape[:2], 256), dtype=torch.int64, device=x.device)
    count.scatter_add_(2, flat, torch.ones_like(flat))
    last = count.gather(2, flat.amax(dim=2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    new = ((step // 2 + count.cumsum(2) - count) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, new.gather(2, flat), flat).reshape(x.shape).to(torch.uint8)


def _contrasted(x: Tensor, s: Tensor) -> Tensor:
    """Values farther from, or nearer to, the mean grey value of the image."""
    n = x.shape[2] * x.shape[3]
    mean = (2 * _grey(x).flatten(1).sum(1) + n) // (2 * n)
    return _blended(_wide(mean), x, s)


def _sharpened(x: Tensor, s: Tensor) -> Tensor:
    """Farther from, or nearer to, PIL's filter SMOOTH: 1/13 of each neighbour and 5/13 of the pixel, borders kept."""
    if min(x.shape[2:]) < 3:
        return x
    y = x.short()
    box = y[:, :, :-2] + y[:, :, 1:-1] + y[:, :, 2:]
    box = box[..., :-2] + box[..., 1:-1] + box[..., 2:]
    inner = (2 * (box + 4 * y[:, :, 1:-1, 1:-1]) + 13) // 26
    y[:, :, 1:-1, 1:-1] = inner
    return _blended(y, x, s)


def _grey(x: Tensor) -> Tensor:
    """(B, H, W) int32, weighted as by PIL (ITU-R 601-2); the mean where there are not three channels."""
    y = x.int()
    if x.shape[1] == 3:
        return (19595 * y[:, 0] + 38470 * y[:, 1] + 7471 * y[:, 2] + 0x8000) >> 16
    return y.sum(1, dtype=torch.int32) // x.shape[1]


def _blended(a: Tensor, x: Tensor, s: Tensor) -> Tensor:
    """a + s (x - a) within 0..255, cut off to whole numbers as by PIL."""
    a = a.float()
    return (a + _wide(s.float()) * (x.float() - a)).clamp(0, 255).to(torch.uint8)


def _wide(s: Tensor) -> Tensor:
    return s[:, None, None, None]


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shear-x": lambda x, s: _moved(x, _affine(s, b=s)),
    "shear-y": lambda x, s: _moved(x, _affine(s, d=s)),
    "translate-x": lambda x, s: _moved(x, _affine(s, c=(s * x.shape[3] + 0.5).floor())),
    "translate-y": lambda x, s: _moved(x, _affine(s, f=(s * x.shape[2] + 0.5).floor())),
    "rotate": _rotated,
    "autocontrast": _stretched,
    "invert": lambda x, s: 255 - x,
    "equalize": _equalized,
    "solarize": _solarized,
    "posterize": _posterized,
    "contrast": _contrasted,
    "brightness": lambda x, s: (x.float() * _wide(s.float())).clamp(0, 255).to(torch.uint8),
    "color": lambda x, s: _blended(_grey(x)[:, None], x, s) if x.shape[1] == 3 else x,
    "sharpness": _sharpened,
}
"""Each takes (B, C, H, W) uint8 images and strengths (B,) float64, and gives the changed images."""
