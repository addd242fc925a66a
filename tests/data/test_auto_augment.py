"""AutoAugment's operations against PIL's, and its policy against a loop over images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from imbdiff.data.auto_augment import CIFAR_POLICY, OPERATIONS, apply_policy, operate, strength
from imbdiff.runtime.streams import rng, torch_rng

ENHANCE = {
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "color": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


def by_pil(image: Image.Image, name: str, magnitude: int, sign: int) -> Image.Image:
    """Written with PIL alone; magnitudes as in the paper's Table 6, spread over 0 to 9."""
    grey = image.mode == "L"
    fill = 128 if grey else (128, 128, 128)
    w, h = image.size
    share = magnitude / 9
    if name in ENHANCE:
        return image if name == "color" and grey else ENHANCE[name](image).enhance(1 + sign * 0.9 * share)
    if name == "rotate":
        return image.rotate(sign * 30 * share, fillcolor=fill)
    if name == "solarize":
        return ImageOps.solarize(image, 256 - 256 * share)
    if name == "posterize":
        return ImageOps.posterize(image, [8, 8, 7, 7, 6, 6, 5, 5, 4, 4][magnitude])
    if name in ("autocontrast", "equalize", "invert"):
        return getattr(ImageOps, name)(image)
    v = sign * share
    matrix = {
        "shear-x": (1, 0.3 * v, 0, 0, 1, 0),
        "shear-y": (1, 0, 0, 0.3 * v, 1, 0),
        "translate-x": (1, 0, 150 / 331 * v * w, 0, 1, 0),
        "translate-y": (1, 0, 0, 0, 1, 150 / 331 * v * h),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=fill)


def images(h: int, w: int, c: int) -> np.ndarray:
    """(9, H, W, C) uint8: noise, little contrast, one value, two values, slopes that differ by channel."""
    r = rng(0, "images", h, w, c)
    down, across = np.mgrid[:h, :w]
    slope = np.stack([(down * (5 + k) + across * 3) % 256 for k in range(c)], axis=2)
    parts = [r.integers(0, 256, (3, h, w, c)), r.integers(90, 140, (3, h, w, c)), np.full((1, h, w, c), 77),
             r.integers(0, 2, (1, h, w, c)) * 255, slope[None]]  # fmt: skip
    return np.concatenate(parts).astype(np.uint8)


def from_pil(image: Image.Image, c: int) -> np.ndarray:
    return np.asarray(image).reshape(image.size[1], image.size[0], c)


def to_pil(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image if image.shape[2] == 3 else image[..., 0])


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def levels(magnitude: int, sign: int, n: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((n,), magnitude), torch.full((n,), sign)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (9, 33, 3), (2, 5, 3)])
def test_operations_are_those_of_pil(name: str, shape: tuple[int, int, int]) -> None:
    x = images(*shape)
    moves = 0
    for magnitude in (0, 1, 3, 6, 8, 9):
        for sign in (-1, 1):
            wanted = np.stack([from_pil(by_pil(to_pil(i), name, magnitude, sign), shape[2]) for i in x])
            found = operate(name, tensor(x), *levels(magnitude, sign, len(x)))
            assert found.dtype == torch.uint8
            off = np.abs(found.permute(0, 2, 3, 1).numpy().astype(int) - wanted)
            # measured: all equal PIL; of the stretching, PIL's floats fall 1 below the exact value now and then
            assert off.max() <= (1 if name == "autocontrast" else 0), (magnitude, sign)
            moves += int((wanted != x).sum())
    assert moves or (name, shape[2]) == ("color", 1) or min(shape) == 2


def test_signs_point_somewhere() -> None:
    """By hand: a positive translation brings in what lies to the right; a positive rotation is counter-clockwise."""
    x = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    x[0, 0, 4, 8] = 255  # in the middle of the right side

    def spot(name: str, sign: int) -> list[int]:
        found = operate(name, x, *levels(9, sign))
        return (found[0, 0] == 255).nonzero()[0].tolist()

    assert spot("translate-x", 1) == [4, 4]  # 0.453 of 9 pixels
    assert spot("rotate", 1)[0] < 4
    assert spot("rotate", -1)[0] > 4
    moved = operate("translate-x", x, *levels(9, -1))
    assert (moved[0, 0, :, :4] == 128).all()
    assert (moved[0, 0, :, 4:] == 0).all()


def test_strengths_by_hand() -> None:
    def of(name: str, magnitude: int, sign: int = 1) -> float:
        return float(strength(name, *levels(magnitude, sign)))

    assert of("rotate", 3, -1) == pytest.approx(-10)
    assert of("shear-x", 9) == pytest.approx(0.3)
    assert of("solarize", 9) == 0
    assert [of("brightness", 9, s) for s in (-1, 1)] == pytest.approx([0.1, 1.9])
    assert [of("posterize", m) for m in (0, 1, 2, 9)] == [8, 8, 7, 4]


def test_policy_is_the_papers() -> None:
    assert len(CIFAR_POLICY) == 25
    named = [name for pair in CIFAR_POLICY for name, _, _ in pair]
    assert named.count("equalize") == 9
    assert named.count("autocontrast") == 7
    assert "shear-x" not in named
    assert CIFAR_POLICY[21] == (("translate-y", 0.9, 9), ("translate-y", 0.7, 9))
    assert sum(p for pair in CIFAR_POLICY for _, p, _ in pair) == pytest.approx(26.7)
    assert sum(m for pair in CIFAR_POLICY for _, _, m in pair) == 267


@pytest.mark.parametrize("channels", [3, 1])
def test_policy_against_one_image_at_a_time(channels: int) -> None:
    x = np.concatenate([images(12, 10, channels)] * 30)
    draws = torch.rand((len(x), 5), generator=torch_rng(0, "policy"))
    found = apply_policy(tensor(x), draws).permute(0, 2, 3, 1).numpy()
    off = []
    for image, u, seen in zip(x, draws.double().numpy(), found, strict=True):
        made, stretched = to_pil(image), False
        for i, (name, probability, magnitude) in enumerate(CIFAR_POLICY[int(u[0] * 25)]):
            if u[1 + i] < probability:
                made = by_pil(made, name, magnitude, 1 if u[3 + i] >= 0.5 else -1)
                stretched = stretched or name == "autocontrast"
        if not stretched:
            assert np.array_equal(seen, from_pil(made, channels))
        off.append(np.abs(seen.astype(int) - from_pil(made, channels)).max())
    # what follows the stretching may enlarge its 1: equalize does, where few values are left
    assert np.mean(np.array(off) <= 1) > 0.98


def test_rows_are_independent_and_the_batch_is_left_alone() -> None:
    x = torch.randint(0, 256, (64, 3, 16, 16), dtype=torch.uint8, generator=torch_rng(1))
    draws = torch.rand((64, 5), generator=torch_rng(2))
    before = x.clone()
    whole = apply_policy(x, draws)
    assert torch.equal(x, before)
    assert torch.equal(whole, torch.cat([apply_policy(x[:7], draws[:7]), apply_policy(x[7:], draws[7:])]))
    assert torch.equal(apply_policy(x, draws.clamp(max=0) + float(np.nextafter(np.float32(1), 0))), x)
