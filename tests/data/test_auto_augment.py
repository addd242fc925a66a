"""AutoAugment's operations by hand, and its policy against a loop over images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from imbdiff.data.auto_augment import CIFAR_POLICY, OPERATIONS, apply_policy, operate
from imbdiff.runtime.streams import torch_rng


def images(n: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, 12, 10), dtype=torch.uint8, generator=torch_rng(1))


def on(name: str, pixels: np.ndarray, magnitude: int, sign: int = 1) -> np.ndarray:
    return np.asarray(operate(name, Image.fromarray(pixels.astype(np.uint8)), magnitude, sign)).astype(int)


def test_operations_on_values_by_hand() -> None:
    x = np.arange(256).reshape(16, 16)
    assert (on("invert", x, 0) == 255 - x).all()
    assert (on("solarize", x, 9) == 255 - x).all()
    assert (on("solarize", x, 0) == x).all()
    assert (on("solarize", x, 5) == np.where(x < 256 - 256 * 5 / 9, x, 255 - x)).all()
    assert [len(np.unique(on("posterize", x, m))) for m in (0, 1, 2, 9)] == [256, 256, 128, 16]
    assert (on("brightness", x, 9, -1) == np.floor(np.float32(0.1) * x.astype(np.float32))).all()
    assert (on("brightness", x, 9) == np.minimum(np.floor(np.float32(1.9) * x.astype(np.float32)), 255)).all()
    assert (on("contrast", x, 9) == np.clip(np.trunc(128 + 1.9 * (x - 128.0)), 0, 255)).all()
    assert (on("autocontrast", 60 + x // 4, 0) == (x // 4) * 255 // 63).all()
    narrow = on("equalize", np.repeat(100 + np.arange(32), 256).reshape(64, 128), 0)
    assert np.diff(np.unique(narrow)).min() >= 7  # 32 values over 0 to 255
    assert (narrow.min(), narrow.max()) == (0, 255)
    for name in ("contrast", "brightness", "sharpness", "rotate", "shear-x", "translate-y"):
        assert (on(name, x, 0, -1) == x).all()
    red = np.broadcast_to([200, 0, 0], (4, 4, 3))
    assert on("color", red, 9, -1)[0, 0].tolist() == [74, 54, 54]  # nearly its grey value 60
    assert (on("color", x, 9) == x).all()


def test_signs_point_somewhere() -> None:
    """A positive translation brings in what lies to the right; a positive rotation is counter-clockwise."""
    x = np.zeros((9, 9))
    x[4, 8] = 255  # in the middle of the right side

    def spot(name: str, sign: int) -> list[int]:
        return np.argwhere(on(name, x, 9, sign) == 255)[0].tolist()

    assert spot("translate-x", 1) == [4, 4]  # 0.453 of 9 pixels
    assert spot("rotate", 1)[0] < 4
    assert spot("rotate", -1)[0] > 4
    moved = on("translate-x", x, 9, -1)
    assert (moved[:, :4] == 128).all()
    assert (moved[:, 4:] == 0).all()
    assert spot("shear-y", -1)[0] > 4 > spot("shear-y", 1)[0]


def test_policy_is_the_papers() -> None:
    assert len(CIFAR_POLICY) == 25
    named = [name for pair in CIFAR_POLICY for name, _, _ in pair]
    assert set(named) == set(OPERATIONS) - {"shear-x"}
    assert (named.count("equalize"), named.count("autocontrast")) == (9, 7)
    assert CIFAR_POLICY[21] == (("translate-y", 0.9, 9), ("translate-y", 0.7, 9))
    assert sum(p for pair in CIFAR_POLICY for _, p, _ in pair) == pytest.approx(26.7)
    assert sum(m for pair in CIFAR_POLICY for _, _, m in pair) == 267


@pytest.mark.parametrize("channels", [3, 1])
def test_numbers_choose_operations_and_signs(channels: int) -> None:
    x = images(25, channels)
    numbers = torch.zeros(25, 5)
    numbers[:, 0] = (torch.arange(25) + 0.5) / 25
    numbers[:, 4] = 0.5
    pictures = [Image.fromarray(i if channels == 3 else i[..., 0]) for i in x.permute(0, 2, 3, 1).numpy()]
    wanted = []
    for image, ((first, p, m), (second, q, n)) in zip(pictures, CIFAR_POLICY, strict=True):
        image = operate(first, image, m, -1) if p else image
        image = operate(second, image, n, 1) if q else image
        wanted.append(np.asarray(image).reshape(12, 10, channels))
    assert np.array_equal(apply_policy(x, numbers).permute(0, 2, 3, 1).numpy(), np.stack(wanted))
    numbers[:, 1:3] = 0.95  # above every probability
    assert torch.equal(apply_policy(x, numbers), x)


def test_rows_are_independent_and_the_batch_is_left_alone() -> None:
    x, numbers = images(64), torch.rand((64, 5), generator=torch_rng(2))
    before = x.clone()
    whole = apply_policy(x, numbers)
    assert torch.equal(x, before)
    assert torch.equal(whole, torch.cat([apply_policy(x[:7], numbers[:7]), apply_policy(x[7:], numbers[7:])]))
    last = torch.full((1, 5), float(np.nextafter(np.float32(1), np.float32(0))))
    assert torch.equal(apply_policy(x[:1], last), x[:1])
    assert 0.6 < float((whole != x).flatten(1).any(1).float().mean()) < 1
