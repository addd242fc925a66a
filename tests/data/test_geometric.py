"""Geometric changes against known geometry and against the formula in loops; their distribution; what stays exact."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from imbdiff.data.geometric import CONDITION_SIZE, Geometric
from imbdiff.data.symmetry import Symmetry
from imbdiff.runtime.streams import torch_rng

MIRRORED, UPSIDE, SIZE, COS, SIN, AX, AY, DX, DY = range(9)


def vector(**given: float) -> Tensor:
    """(1, 9) of named components; `angle` and `axis` with `stretch` in their place."""
    change = torch.zeros(1, CONDITION_SIZE)
    if "angle" in given:
        angle = given.pop("angle")
        change[0, COS], change[0, SIN] = math.cos(angle) - 1, math.sin(angle)
    if "axis" in given:
        axis, a = given.pop("axis"), given.pop("stretch")
        change[0, AX], change[0, AY] = a * math.cos(axis), a * math.sin(axis)
    for name, value in given.items():
        change[0, globals()[name]] = value
    return change


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def blob(side: int, sigma: float) -> Tensor:
    at = torch.arange(side) - (side - 1) / 2
    return torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * sigma**2)).reshape(1, 1, side, side)


def moments(image: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Centre and covariance of (x, y), y downwards, about the middle of the image."""
    weight = image[0, 0].double().numpy()
    weight = weight / weight.sum()
    h, w = weight.shape
    y, x = np.mgrid[:h, :w].astype(float)
    points = np.stack([x - (w - 1) / 2, y - (h - 1) / 2]).reshape(2, -1)
    mean = points @ weight.ravel()
    return mean, (points * weight.ravel()) @ points.T - np.outer(mean, mean)


def cubic(d: float) -> float:
    """Keys' cubic convolution with a = -3/4."""
    d, a = abs(d), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def mirror_index(i: int, n: int) -> int:
    while not 0 <= i < n:
        i = -i if i < 0 else 2 * (n - 1) - i
    return i


def forward_map(change: np.ndarray, h: int, w: int) -> tuple[np.ndarray, np.ndarray]:
    """(matrix, offset) on centred positions (x, y): shift, stretch, rotation, size, mirrorings."""
    upside, flip = np.diag([1.0, 1 - 2 * change[UPSIDE]]), np.diag([1 - 2 * change[MIRRORED], 1.0])
    angle = math.atan2(change[SIN], change[COS] + 1)
    # counter-clockwise as one sees it, with y downwards
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    a, axis = math.hypot(change[AX], change[AY]), math.atan2(change[AY], change[AX])
    along = np.array([[math.cos(axis), -math.sin(axis)], [math.sin(axis), math.cos(axis)]])
    stretch = along @ np.diag([2 ** (0.2 * a), 2 ** (-0.2 * a)]) @ along.T
    matrix = flip @ upside @ (2 ** (0.2 * change[SIZE]) * np.eye(2)) @ rotation @ stretch
    return matrix, matrix @ np.array([w / 8 * change[DX], h / 8 * change[DY]])


def warp(image: np.ndarray, change: np.ndarray) -> np.ndarray:
    h, w = image.shape
    matrix, offset = forward_map(change, h, w)
    back = np.linalg.inv(matrix)
    centre = np.array([(w - 1) / 2, (h - 1) / 2])
    out = np.zeros((h, w))
    for row, column in itertools.product(range(h), range(w)):
        x, y = back @ (np.array([column, row]) - centre - offset) + centre
        left, top = math.floor(x), math.floor(y)
        for i, j in itertools.product(range(top - 1, top + 3), range(left - 1, left + 3)):
            out[row, column] += cubic(y - i) * cubic(x - j) * image[mirror_index(i, h), mirror_index(j, w)]
    return out


@pytest.mark.parametrize("shape", [(8, 8), (7, 12), (9, 5)])
def test_composed_changes_are_the_formula(shape: tuple[int, int]) -> None:
    changes = Geometric(1.0).draw(10, torch_rng(3, *shape))
    x = noise(10, 1, *shape)
    found = Geometric().apply(x, changes)
    for image, change, out in zip(x, changes, found, strict=True):
        expected = warp(image[0].double().numpy(), change.double().numpy())
        assert np.abs(out[0].numpy() - expected).max() < 2e-4
    assert (found - x).abs().amax((1, 2, 3)).min() > 0.1


def test_a_smooth_image_comes_out_as_with_the_cubic_spline_of_the_source() -> None:
    """scipy's order-3 spline with reflection at pixel centres: what the released code's `warp` computes."""
    y, x = np.mgrid[:24, :20]
    image = np.sin(x / 3.0) * np.cos(y / 4.0 + 0.3) + x / 20
    for change in Geometric(1.0).draw(6, torch_rng(8)).double().numpy():
        matrix, offset = forward_map(change, 24, 20)
        swap = np.array([[0.0, 1.0], [1.0, 0.0]])  # scipy counts (row, column)
        back = swap @ np.linalg.inv(matrix) @ swap
        centre = np.array([11.5, 9.5])
        start = centre - back @ (centre + swap @ offset)
        expected = ndimage.affine_transform(image, back, start, order=3, mode="mirror")
        one = torch.from_numpy(image)[None, None]
        found = Geometric().apply(one, torch.from_numpy(change)[None])[0, 0].numpy()
        assert np.abs(found - expected).max() < 0.1
        assert np.abs(found - expected).mean() < 0.01


def test_a_moved_dot_lands_where_the_vector_says() -> None:
    x = torch.zeros(1, 1, 16, 32)
    x[..., 5, 20] = 1
    moved = Geometric().apply(x, vector(DX=-0.75, DY=1.5))  # one unit: 4 pixels across, 2 down
    expected = torch.zeros_like(x)
    expected[..., 8, 17] = 1
    assert torch.allclose(moved, expected, atol=1e-5)


def test_a_quarter_turn_is_counter_clockwise() -> None:
    x = noise(1, 3, 9, 9)
    turned = Geometric().apply(x, vector(angle=math.pi / 2))
    assert torch.allclose(turned, torch.rot90(x, 1, (2, 3)), atol=1e-5)
    assert torch.allclose(Geometric().apply(x, vector(angle=math.pi)), x.flip(2, 3), atol=1e-5)


def test_size_enlarges_and_a_stretch_is_along_its_axis_clockwise_from_the_right() -> None:
    for size in (3.0, -2.0):
        mean, covariance = moments(Geometric().apply(blob(41, 3.0), vector(SIZE=size)))
        assert np.allclose(mean, 0, atol=1e-3)
        assert np.allclose(covariance, 9 * 2 ** (0.4 * size) * np.eye(2), atol=0.3)
    axis, a = 0.5, 2.5
    _, covariance = moments(Geometric().apply(blob(51, 3.0), vector(axis=axis, stretch=a)))
    direction = np.array([math.cos(axis), math.sin(axis)])
    across = np.array([-direction[1], direction[0]])
    assert direction @ covariance @ direction == pytest.approx(9 * 2 ** (0.4 * a), rel=0.05)
    assert across @ covariance @ across == pytest.approx(9 * 2 ** (-0.4 * a), rel=0.05)
    assert abs(direction @ covariance @ across) < 0.1
    opposite = Geometric().apply(blob(51, 3.0), vector(axis=axis + math.pi, stretch=a))
    assert np.allclose(moments(opposite)[1], covariance, atol=1e-3), "an axis has no sign"


def test_mirrored_rows_keep_their_values_next_to_rows_that_are_warped() -> None:
    x = noise(6, 3, 7, 10)
    rows = [{}, {"MIRRORED": 1.0}, {"UPSIDE": 1.0}, {"MIRRORED": 1.0, "UPSIDE": 1.0}, {"SIZE": 1.0}, {"angle": 0.3}]
    out = Geometric(0.7).apply(x, torch.cat([vector(**row) for row in rows]))
    for row, dims in enumerate([(), (2,), (1,), (1, 2)]):
        assert torch.equal(out[row], x[row].flip(dims))
    assert not torch.allclose(out[4], x[4], atol=0.01)
    assert not torch.allclose(out[5], x[5], atol=0.01)


@pytest.mark.filterwarnings("ignore:.*affine_grid behavior")
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
def test_images_of_one_pixel_across_stay_finite(shape: tuple[int, int]) -> None:
    out = Geometric().apply(noise(20, 1, *shape), Geometric(1).draw(20, torch_rng(0)))
    assert out.isfinite().all()


@pytest.mark.parametrize("p", [0.12, 0.5])
def test_each_change_is_there_with_its_probability(p: float) -> None:
    n = 20_000
    changes = Geometric(p).draw(n, torch_rng(1))
    for columns, expected in (((0,), 0.5), ((1,), p / 2), ((2,), p), ((3, 4), p), ((5, 6), p), ((7, 8), p)):
        there = (changes[:, list(columns)] != 0).any(1).double()
        bound = 4 * math.sqrt(expected * (1 - expected) / n)
        assert abs(float(there.mean()) - expected) < bound, columns
    # independent of each other: each pair is there together as often as the product says
    there = torch.stack([changes[:, i] != 0 for i in (0, 1, 2, 4, 5, 7)], 1).double()
    for i, j in itertools.combinations(range(6), 2):
        expected = float(there[:, i].mean() * there[:, j].mean())
        assert abs(float((there[:, i] * there[:, j]).mean()) - expected) < 4 * math.sqrt(expected / n)


def test_the_numbers_have_the_distribution_of_the_source() -> None:
    n = 20_000
    c = Geometric(1).draw(n, torch_rng(2)).double()
    for column in (SIZE, DX, DY):
        assert float(c[:, column].mean()) == pytest.approx(0, abs=0.03)
        assert float(c[:, column].std()) == pytest.approx(1, abs=0.03)
        assert float(c[:, column].pow(4).mean()) == pytest.approx(3, abs=0.3)
    angle, axis = torch.atan2(c[:, SIN], c[:, COS] + 1), torch.atan2(c[:, AY], c[:, AX])
    for direction in (angle, axis):
        counts = torch.histc(direction, 8, -math.pi, math.pi)
        assert (counts / n - 1 / 8).abs().max() < 4 * math.sqrt(7 / 64 / n)
    a = torch.hypot(c[:, AX], c[:, AY])
    assert float(a.mean()) == pytest.approx(math.sqrt(2 / math.pi), abs=0.02)
    assert float(a.square().mean()) == pytest.approx(1, abs=0.04)
    correlation = torch.corrcoef(torch.stack([c[:, SIZE], angle, axis, a, c[:, DX], c[:, DY]]))
    assert (correlation - torch.eye(6)).abs().max() < 0.03


def test_a_larger_probability_only_adds_changes() -> None:
    none, few, many = (Geometric(p).draw(500, torch_rng(4)) for p in (0, 0.2, 0.6))
    assert not none[:, 1:].any()
    assert torch.equal(none[:, MIRRORED], many[:, MIRRORED])
    there = few != 0
    assert torch.equal(few[there], many[there])
    assert int((many != 0).sum()) > 2 * int(there.sum())
    assert torch.equal(few[:, MIRRORED], many[:, MIRRORED])


@pytest.mark.parametrize("symmetry", ["none", "mirror", "turns"])
def test_changes_that_a_set_does_not_allow_are_left_out_and_the_others_stay(symmetry: Symmetry) -> None:
    published, found = (Geometric(0.6, s).draw(2000, torch_rng(4)) for s in (None, symmetry))
    allowed = {"none": (False, False), "mirror": (True, False), "turns": (True, True)}[symmetry]
    for column, there in zip((MIRRORED, UPSIDE), allowed, strict=True):
        assert torch.equal(found[:, column], published[:, column] * there)
    for column in (SIZE, AX, AY, DX, DY):
        assert torch.equal(found[:, column], published[:, column])
    before, after = (torch.atan2(c[:, SIN], c[:, COS] + 1) for c in (published, found))
    assert float(before.abs().max()) > 3
    torch.testing.assert_close(after, before if symmetry == "turns" else before / 12, atol=2e-4, rtol=0)  # 15 degrees
