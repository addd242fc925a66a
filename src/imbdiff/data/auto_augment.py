"""AutoAugment's policy for CIFAR (Cubuk et al. 2019, arXiv 1805.09501), on batches and on their device.

One of 25 sub-policies is drawn for each image: two operations, each with a probability and a magnitude of 0 to 9. The
operations are those of PIL with nearest interpolation, and what comes in from outside is grey. What the paper leaves
open is done as by the ports that long-tail recognition uses: magnitudes are spread evenly over ten values, and not only
shears, translations and rotations but also contrast, color, brightness and sharpness have a random sign, about no
change (the paper's own scale, 0.1 to 1.9, would make small magnitudes extreme). Those ports differ in two details:
shears with bicubic interpolation, and rotations of one sign.

Rows are independent of each other. On a CPU they are grouped by operation; elsewhere all rows go through all operations
and the wanted one is selected, so that shapes are static and nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

DRAWS = 5
"""Numbers per row: which sub-policy, whether its first and second operation happen, the signs of both."""
FILL = 128

OPERATIONS = (
    "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "autocontrast", "invert", "equalize", "solarize",
    "posterize", "contrast", "brightness", "color", "sharpness",
)  # fmt: skip
MOVING = slice(0, 5)
BY_VALUE = slice(5, 12)
"""Those that replace every value by another, whatever its place."""

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


def strength(name: str, magnitude: int, sign: int) -> float:
    """What an operation's magnitude of 0 to 9 means.

    Shear: pixels per pixel; translation: share of the side; rotation: degrees, counter-clockwise; solarize: the value
    from which on others are inverted; posterize: bits that stay; contrast, color, brightness, sharpness: PIL's factor,
    1 for no change.
    """
    share = magnitude / 9
    if name == "solarize":
        return 256 - 256 * share
    if name == "posterize":
        return round(8 - 4 * share)
    if name in ("contrast", "color", "brightness", "sharpness"):
        return 1 + sign * 0.9 * share
    most = {"shear-x": 0.3, "shear-y": 0.3, "translate-x": 150 / 331, "translate-y": 150 / 331, "rotate": 30.0}
    return sign * share * most.get(name, 0.0)


def apply_policy(x: Tensor, draws: Tensor, *, grouped: bool | None = None) -> Tensor:
    """The changed batch.

    Args:
        x: (B, C, H, W) uint8 on any device. Images that do not have 3 channels keep their color.
        draws: (B, 5) uniform numbers in [0, 1), on the same device.
        grouped: whether rows are grouped by operation; by default on a CPU. The result is the same.

    Raises:
        ValueError: `x` is not uint8.
    """
    if x.dtype != torch.uint8:
        raise ValueError(f"AutoAugment changes uint8 images, not {x.dtype}")
    grouped = x.device.type == "cpu" if grouped is None else grouped
    setting, probability = _policy(x.device)
    which = (draws[:, 0] * len(CIFAR_POLICY)).long().clamp(max=len(CIFAR_POLICY) - 1)
    for i in (0, 1):
        happens = draws[:, 1 + i] < probability[which, i]
        x = operate(x, setting[which, i] + (draws[:, 3 + i] >= 0.5).long(), happens, grouped=grouped)
    return x


def setting_of(name: str, magnitude: int, sign: int = 1) -> int:
    """The number under which :func:`operate` knows an operation with its magnitude and sign (-1 or 1)."""
    return (OPERATIONS.index(name) * 10 + magnitude) * 2 + (sign > 0)


def operate(x: Tensor, setting: Tensor, happens: Tensor, *, grouped: bool) -> Tensor:
    """One operation on each row.

    Args:
        x: (B, C, H, W) uint8.
        setting: (B,) int64 of :func:`setting_of`.
        happens: (B,) bool; rows where not stay as they are.
        grouped: see :func:`apply_policy`.
    """
    operation = setting // 20
    factor = _factors(x.device)[setting]

    def where(part: slice) -> Tensor:
        return happens & (operation >= part.start) & (operation < part.stop)

    def only(name: str) -> Tensor:
        return happens & (operation == OPERATIONS.index(name))

    def moved(rows: Any) -> Tensor:
        return _moved(x[rows], _matrices(*x.shape[2:], x.device)[setting[rows]])

    def by_value(rows: Any) -> Tensor:
        return _by_value(x[rows], setting[rows], factor[rows], grouped)

    parts: list[tuple[Tensor, Callable[[Any], Tensor]]] = [(where(MOVING), moved), (where(BY_VALUE), by_value)]
    if x.shape[1] == 3:
        parts.append((only("color"), lambda rows: _blend(_grey(x[rows])[:, None], x[rows], factor[rows])))
    if min(x.shape[2:]) >= 3:
        parts.append((only("sharpness"), lambda rows: _blend(_smooth(x[rows]), x[rows], factor[rows])))
    # no row is in two parts, so that each can start from x
    out = x
    for member, change in parts:
        out = _put(out, member, change, grouped)
    return out


def _put(base: Tensor, member: Tensor, change: Callable[[Any], Tensor], grouped: bool) -> Tensor:
    """`base` with the rows where `member` replaced by `change` of them."""
    if not grouped:
        return torch.where(member.reshape(-1, *[1] * (base.ndim - 1)), change(slice(None)), base)
    index = member.nonzero().flatten()
    return base.index_copy(0, index, change(index)) if len(index) else base


def _moved(x: Tensor, matrix: Tensor) -> Tensor:
    """x at the places that (B, 6) matrices in 1/65536 pixel name, grey where these are outside."""
    h, w = x.shape[2:]
    a = matrix[:, :, None, None].unbind(1)
    down, right = torch.arange(h, device=x.device)[:, None], torch.arange(w, device=x.device)
    columns = (a[0] * right + a[1] * down + a[2]) >> 16
    rows = (a[3] * right + a[4] * down + a[5]) >> 16
    inside = (columns >= 0) & (columns < w) & (rows >= 0) & (rows < h)
    at = (rows * w + columns).clamp(0, h * w - 1).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    return filled(x.flatten(2).gather(2, at).reshape(x.shape), ~inside[:, None], FILL)


def filled(x: Tensor, where: Tensor, value: int) -> Tensor:
    """x with `value` where a mask that broadcasts says so; `x.masked_fill`, which is 10 times slower on bytes."""
    if x.dtype != torch.uint8:
        return x.masked_fill(where, value)
    found = x * ~where
    return found.add_(where.to(torch.uint8) * value) if value else found


def _by_value(x: Tensor, setting: Tensor, factor: Tensor, grouped: bool) -> Tensor:
    operation = setting // 20
    table = _tables(x.device)[setting][:, None].expand(-1, x.shape[1], -1)
    changes: dict[str, Callable[[Any], Tensor]] = {
        "autocontrast": lambda rows: _stretched(x[rows]),
        "equalize": lambda rows: _equalized(x[rows]),
        "contrast": lambda rows: _contrasted(x[rows], factor[rows]),
    }
    for name, change in changes.items():
        table = _put(table, operation == OPERATIONS.index(name), change, grouped)
    return table.gather(2, x.flatten(2).long()).reshape(x.shape)


def _stretched(x: Tensor) -> Tensor:
    """(B, C, 256): the darkest value of each channel becomes 0, the brightest 255. PIL's floats may fall 1 lower."""
    low, high = (edge(x.flatten(2), dim=2, keepdim=True).int() for edge in (torch.amin, torch.amax))
    value = torch.arange(256, device=x.device, dtype=torch.int32)
    new = ((value - low) * 255 // (high - low).clamp(min=1)).clamp(0, 255)
    return torch.where(high > low, new, value).to(torch.uint8)


def _equalized(x: Tensor) -> Tensor:
    """(B, C, 256): values spread so that each is equally frequent."""
    b, c = x.shape[:2]
    flat = x.flatten(2).long()
    start = torch.arange(b * c, device=x.device).reshape(b, c, 1) * 256
    count = torch.zeros(b * c * 256, dtype=torch.int64, device=x.device)
    count.scatter_add_(
        0, (flat + start).flatten(), torch.ones((), dtype=torch.int64, device=x.device).expand(x.numel())
    )
    count = count.reshape(b, c, 256)
    last = count.gather(2, flat.amax(dim=2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    new = ((step // 2 + count.cumsum(2) - count) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, new, torch.arange(256, device=x.device)).to(torch.uint8)


def _contrasted(x: Tensor, factor: Tensor) -> Tensor:
    """(B, C, 256): values farther from, or nearer to, the mean grey value of the image."""
    n = x.shape[2] * x.shape[3]
    mean = (2 * _grey(x).flatten(1).sum(1) + n) // (2 * n)
    value = torch.arange(256, device=x.device)
    table = _blend(mean.int()[:, None], value.to(torch.uint8)[None].expand(len(x), -1), factor)
    return table[:, None].expand(-1, x.shape[1], -1)


def _grey(x: Tensor) -> Tensor:
    """(B, H, W) int32, weighted as by PIL (ITU-R 601-2); the mean where there are not three channels."""
    y = x.int()
    if x.shape[1] == 3:
        return (19595 * y[:, 0] + 38470 * y[:, 1] + 7471 * y[:, 2] + 0x8000) >> 16
    return y.sum(1, dtype=torch.int32) // x.shape[1]


def _smooth(x: Tensor) -> Tensor:
    """PIL's filter SMOOTH: 1/13 of each neighbour and 5/13 of the pixel; pixels at the border stay."""
    y = x.short()
    box = y[:, :, :-2] + y[:, :, 1:-1] + y[:, :, 2:]
    box = box[..., :-2] + box[..., 1:-1] + box[..., 2:]
    inner = (2 * (box + 4 * y[:, :, 1:-1, 1:-1]) + 13) // 26
    y[:, :, 1:-1, 1:-1] = inner
    return y


def _blend(a: Tensor, b: Tensor, factor: Tensor) -> Tensor:
    """a + factor (b - a) within 0..255, cut off to whole numbers as by PIL; factor (B,)."""
    a = a.float()
    found = a + factor.reshape(-1, *[1] * (b.ndim - 1)) * (b.float() - a)
    return found.clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=8)
def _policy(device: torch.device) -> tuple[Tensor, Tensor]:
    """(25, 2) int64 settings with negative sign, and (25, 2) float32 probabilities."""
    setting = [[setting_of(name, magnitude, -1) for name, _, magnitude in pair] for pair in CIFAR_POLICY]
    return torch.tensor(setting, device=device), torch.tensor(
        [[p for _, p, _ in s] for s in CIFAR_POLICY], device=device
    )


@lru_cache(maxsize=8)
def _factors(device: torch.device) -> Tensor:
    """(280,) float32: the strength of each setting."""
    return torch.tensor([s for _, s in _settings()], device=device)


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> Tensor:
    """(280, 256) uint8: what becomes of each value where this does not depend on the image; otherwise itself."""
    value = np.arange(256)
    rows = []
    for name, s in _settings():
        row = value
        if name == "invert":
            row = 255 - value
        elif name == "solarize":
            row = np.where(value < s, value, 255 - value)
        elif name == "posterize":
            row = value & ~(2 ** (8 - int(s)) - 1)
        elif name == "brightness":
            row = np.clip(np.float32(s) * value.astype(np.float32), 0, 255)
        rows.append(row.astype(np.uint8))
    return torch.from_numpy(np.stack(rows)).to(device)


@lru_cache(maxsize=32)
def _matrices(h: int, w: int, device: torch.device) -> Tensor:
    """(280, 6) int64, in 1/65536 pixel: x' = a x + b y + c, y' = d x + e y + f of pixel (x, y), as PIL computes it."""
    rows = []
    for name, s in _settings():
        a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
        if name == "shear-x":
            b = s
        elif name == "shear-y":
            d = s
        elif name == "rotate":
            a, b = math.cos(math.radians(-s)), math.sin(math.radians(-s))
            d, e = -b, a
            c, f = w / 2 - a * w / 2 - b * h / 2, h / 2 - d * w / 2 - e * h / 2
        elif name == "translate-x":
            c = math.floor(s * w + 0.5)
        elif name == "translate-y":
            f = math.floor(s * h + 0.5)
        # pixels are asked for at their centres
        row = (a, b, c + 0.5 * (a + b), d, e, f + 0.5 * (d + e))
        rows.append([math.floor(v * 65536 + 0.5) for v in row])
    return torch.tensor(rows, device=device)


@lru_cache(maxsize=1)
def _settings() -> list[tuple[str, float]]:
    return [(name, strength(name, m, sign)) for name in OPERATIONS for m in range(10) for sign in (-1, 1)]
