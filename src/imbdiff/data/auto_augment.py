"""AutoAugment's policy for CIFAR (Cubuk et al. 2019, arXiv 1805.09501), with the operations of PIL.

One of 25 sub-policies is chosen for each image: two operations, each with a probability and a magnitude of 0 to 9.
Interpolation is nearest, and what comes in from outside is grey. What the paper leaves open is done as by the ports
that long-tail recognition uses: magnitudes are spread evenly over ten values, and not only shears, translations and
rotations but also contrast, color, brightness and sharpness have a random sign, about no change (the paper's own scale,
0.1 to 1.9, would make small magnitudes extreme). Those ports differ in two details: shears with bicubic interpolation,
and rotations of one sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

NUMBERS = 5
"""Random numbers per row: which sub-policy, whether its first and second operation happen, the signs of both."""

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
    """The changed batch; rows are independent of each other. Images pass through main memory one by one.

    Args:
        x: (B, C, H, W) uint8 on any device, C = 1 or 3.
        numbers: (B, 5) uniform in [0, 1).
    """
    images = x.permute(0, 2, 3, 1).cpu().numpy()
    changed = [_changed(image, row) for image, row in zip(images, numbers.tolist(), strict=True)]
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).contiguous().to(x.device)


def _changed(pixels: np.ndarray, numbers: list[float]) -> np.ndarray:
    which, *happens = numbers[:3]
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    steps = CIFAR_POLICY[int(which * len(CIFAR_POLICY))]
    for (name, probability, magnitude), u, sign in zip(steps, happens, numbers[3:], strict=True):
        if u < probability:
            image = operate(name, image, magnitude, -1 if sign < 0.5 else 1)
    return np.asarray(image).reshape(pixels.shape)


def operate(name: str, image: Image.Image, magnitude: int, sign: int) -> Image.Image:
    """An operation of `OPERATIONS` at a magnitude of 0 to 9, with the sign -1 or 1 where it has one."""
    return OPERATIONS[name](image, magnitude / 9, sign)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """The image at x' = a x + b y + c, y' = d x + e y + f of each pixel (x, y)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=_grey(image))


def _grey(image: Image.Image) -> int | tuple[int, int, int]:
    return 128 if image.mode == "L" else (128, 128, 128)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, share, sign: kind(image).enhance(1 + sign * 0.9 * share)


Operation = Callable[[Image.Image, float, int], Image.Image]
OPERATIONS: dict[str, Operation] = {
    "shear-x": lambda image, share, sign: _affine(image, 1, sign * 0.3 * share, 0, 0, 1, 0),
    "shear-y": lambda image, share, sign: _affine(image, 1, 0, 0, sign * 0.3 * share, 1, 0),
    "translate-x": lambda image, share, sign: _affine(image, 1, 0, sign * 150 / 331 * share * image.width, 0, 1, 0),
    "translate-y": lambda image, share, sign: _affine(image, 1, 0, 0, 0, 1, sign * 150 / 331 * share * image.height),
    "rotate": lambda image, share, sign: image.rotate(sign * 30 * share, fillcolor=_grey(image)),
    "autocontrast": lambda image, share, sign: ImageOps.autocontrast(image),
    "invert": lambda image, share, sign: ImageOps.invert(image),
    "equalize": lambda image, share, sign: ImageOps.equalize(image),
    "solarize": lambda image, share, sign: ImageOps.solarize(image, math.ceil(256 - 256 * share)),
    "posterize": lambda image, share, sign: ImageOps.posterize(image, round(8 - 4 * share)),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "color": _enhance(ImageEnhance.Color),
    "sharpness": _enhance(ImageEnhance.Sharpness),
}
"""What each does with an image, a magnitude as a share of 9, and a sign: shears of up to 0.3 pixels per pixel,
translations by up to 150/331 of the side, rotations by up to 30 degrees, counter-clockwise; others inverted from a
value on; 8 to 4 bits kept; PIL's factor of 0.1 to 1.9, 1 for no change."""
