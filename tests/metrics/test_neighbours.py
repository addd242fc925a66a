"""Precision, recall, density, coverage: against prdc, loops with every group left out, and known geometry.

torch-fidelity returns precision and recall exchanged where its first input is the synthetic set (its `input1` is the
real one), so the direction is tested by geometry, not against that package.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from imbdiff.metrics.intervals import jackknife_half_width, wilson
from imbdiff.metrics.neighbours import (
    ball_radii,
    count_inside,
    density_coverage,
    neighbour_measures,
    precision_recall,
)
from imbdiff.metrics.rows import Rows
from imbdiff.runtime.errors import DataError


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sum (a - b)^2, exact for small whole numbers."""
    return ((a[:, None].astype(np.float64) - b[None].astype(np.float64)) ** 2).sum(axis=2)


def loop_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared, as the k-th smallest over the other rows, one row at a time."""
    return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(squared(x, x))])


@pytest.mark.parametrize(("n", "m", "dim", "k"), [(200, 170, 4, 3), (150, 300, 64, 5), (90, 90, 1, 1)])
def test_equals_prdc(n: int, m: int, dim: int, k: int) -> None:
    from prdc import compute_prdc

    g = np.random.default_rng(n)
    real, fake = g.normal(size=(n, dim)), 0.8 * g.normal(size=(m, dim)) + 0.2
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = compute_prdc(real, fake, k)
    assert precision_recall(real, fake, k) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-12)
    assert density_coverage(real, fake, k) == pytest.approx((theirs["density"], theirs["coverage"]), abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(x=arrays(np.float64, (40, 2), elements=st.integers(0, 3)), k=st.integers(1, 4))
def test_radii_without_a_group_equal_those_of_the_remaining_rows(x: np.ndarray, k: int) -> None:
    # a grid full of ties; uneven groups, which hold most of the neighbours of a row: the first list is too short
    groups = np.minimum(np.arange(40) % 7, 3)
    radii = ball_radii(x, (k,), groups)[k]
    assert radii.shape == (40, 5)
    assert np.array_equal(radii[:, -1], loop_radii(x, k))
    for g in range(4):
        left = np.flatnonzero(groups != g)
        assert np.array_equal(radii[left, g], loop_radii(x[left], k))


@pytest.mark.parametrize("collapsed", ["fake", "real"])
def test_balls_that_hold_nearly_everything_are_counted_right(collapsed: str) -> None:
    g = np.random.default_rng(5)
    wide, tight = g.normal(size=(700, 60)), 1e-3 * g.normal(size=(650, 60))
    fake, real = (tight, wide) if collapsed == "fake" else (wide, tight)
    of_fake, of_real = np.arange(len(fake)) % 3, np.arange(len(real)) % 3
    found = count_inside(fake, real, 3, 5, of_fake, of_real)
    d = np.array([((row - real) ** 2).sum(axis=1) for row in fake])
    both = ball_radii(real, (3, 5), of_real)
    radii, dense, own = both[3], both[5], ball_radii(fake, (3,), of_fake)[3]
    for group in range(4):
        keep_f, keep_r = of_fake != group, of_real != group
        assert np.array_equal(found.precision[:, group], (d <= radii[:, group])[:, keep_r].sum(axis=1))
        assert np.array_equal(found.density[:, group], (d <= dense[:, group])[:, keep_r].sum(axis=1))
        assert np.array_equal(found.recall[:, group], (d <= own[:, [group]])[keep_f].sum(axis=0))
        assert np.array_equal(found.coverage_fake[:, group], (d <= dense[:, -1])[keep_f].sum(axis=0))
        assert np.array_equal(found.coverage_real[:, group], (d <= dense[:, group]).any(axis=0))
    assert max(found.precision.mean(), found.recall.mean()) > 256


@pytest.mark.parametrize("dim", [3, 200])
def test_a_copy_of_the_kth_neighbour_is_on_the_edge(dim: int) -> None:
    """Rounding of norms and products must not decide: every fake is as far as a radius."""
    real = (np.random.default_rng(0).normal(size=(80, dim)) * 0.01 + 7).astype(np.float32)
    fourth = np.argsort(squared(real, real), axis=1)[:, 4]
    for i, j in enumerate(fourth[:10]):  # with one real point left, its ball alone counts
        inside = count_inside(real[[j]], real, None, 4)
        assert inside.coverage_fake[i, 0] == 1


@pytest.mark.parametrize(
    ("x", "k"), [(np.zeros((3, 2)), 3), (np.zeros((3, 2)), 0), (np.zeros(3), 1), (np.array([[np.nan], [0.0]]), 1)]
)
def test_impossible_input_is_refused(x: np.ndarray, k: int) -> None:
    with pytest.raises(DataError):
        count_inside(x, x, k, k)
    with pytest.raises(DataError, match="2 features"):
        precision_recall(np.zeros((9, 3)), np.zeros((9, 2)))
    with pytest.raises(DataError, match="N > 0"):
        precision_recall(np.zeros((9, 3)), np.zeros((0, 3)))


@pytest.mark.parametrize(("spread", "precise"), [((1, 0.05), True), ((0.05, 1), False)])
def test_tight_fakes_in_a_wide_cloud_are_precise_and_recall_little(spread: tuple[float, float], precise: bool) -> None:
    g = np.random.default_rng(0)
    precision, recall = precision_recall(*(s * g.normal(size=(400, 3)) for s in spread))
    assert (precision > 0.95) is precise
    assert (recall < 0.05) is precise
    assert (recall > 0.95) is (precision < 0.05)


def test_a_point_on_the_edge_is_inside() -> None:
    # radii of the real points at k = 1: 1, 1, 2
    real, fake = np.array([[0.0], [1.0], [3.0]]), np.array([[5.0], [-1.0], [5.1], [5.2]])
    precision, _ = precision_recall(real, fake, 1)
    assert precision == 0.5


def brute(
    fake: np.ndarray, real: np.ndarray, wf: np.ndarray, wr: np.ndarray, k: int, dense_k: int
) -> tuple[float, float, float, float]:
    d = ((real[:, None] - fake[None]) ** 2).sum(axis=2)

    def radii(x: np.ndarray, k: int) -> np.ndarray:
        return np.sort(((x[:, None] - x[None]) ** 2).sum(axis=2), axis=1)[:, k]

    r, dense, s = radii(real, k), radii(real, dense_k), radii(fake, k)
    return (
        float(wf @ (d <= r[:, None]).any(axis=0)),
        float(wr @ (d <= s).any(axis=1)),
        float(wf @ (d <= dense[:, None]).sum(axis=0)) / dense_k,
        float(wr @ (d <= dense[:, None]).any(axis=1)),
    )


@pytest.mark.parametrize("ties", [False, True])
def test_measure_equals_brute_force_with_every_group_left_out(ties: bool) -> None:
    g = np.random.default_rng(5)
    x, y = g.normal(size=(90, 3)), 1.2 * g.normal(size=(75, 3)) + 0.3
    if ties:
        x, y = np.round(x), np.round(y)
    real = Rows.of(x, g.integers(0, 2, 90), np.array([0.3, 0.7]))
    fake = Rows.of(y, g.integers(0, 2, 75), np.array([0.3, 0.7]))
    wf, wr, fx, rx = fake.left_out_weights(), real.left_out_weights(), fake.array, real.array
    whole = brute(fx, rx, wf[:, -1], wr[:, -1], 3, 5)
    left: list[list[tuple[float, ...]]] = [[], []]
    for group in range(20):
        kf, kr = fake.groups() != group, real.groups() != group
        left[0].append(brute(fx[kf], rx, wf[kf, group], wr[:, -1], 3, 5))
        left[1].append(brute(fx, rx[kr], wf[:, -1], wr[kr, group], 3, 5))
    found = neighbour_measures(fake, real)
    averaged = {"precision": fake, "recall": real, "density": fake, "coverage": real}
    assert list(found) == list(averaged)
    for i, (name, rows) in enumerate(averaged.items()):
        e = found[name]
        half = jackknife_half_width([[values[i] for values in side] for side in left])
        assert e.value == pytest.approx(whole[i], abs=1e-12)
        assert (e.n_synthetic, e.n_reference) == (75, 90)
        low, high = whole[i] - half, whole[i] + half
        if "density" not in name:
            w = wilson(min(1.0, whole[i]) * rows.effective, rows.effective)
            low, high = max(0.0, min(low, w[0])), min(1.0, max(high, w[1]))
        assert (e.low, e.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_weights_move_precision_to_the_class_that_counts() -> None:
    g = np.random.default_rng(6)
    labels = np.repeat([0, 1], 60)
    real = g.normal(size=(120, 2)) + 50 * labels[:, None]
    # class 1 of the fakes is nowhere near
    fake = g.normal(size=(120, 2)) + 500 * labels[:, None]
    for share in (0.2, 0.9):
        mix = np.array([1 - share, share])
        found = neighbour_measures(Rows.of(fake, labels, mix), Rows.of(real, labels, mix))
        e = found["precision"]
        assert (1 - share) * 0.85 < e.value <= 1 - share


def test_all_alike_and_all_apart_have_intervals_of_some_width_and_few_rows_are_refused() -> None:
    x = np.random.default_rng(8).normal(size=(60, 2))
    e = neighbour_measures(Rows.of(x), Rows.of(x))["precision"]
    assert (e.value, e.high) == (pytest.approx(1.0), 1.0)
    assert e.low == pytest.approx(wilson(60, 60)[0])
    apart = neighbour_measures(Rows.of(x + 100), Rows.of(x))
    for name in ("density", "coverage"):
        e = apart[name]
        assert (e.value, e.low) == (0.0, 0.0)
        assert 0.0 < e.high < 0.1
    refused = neighbour_measures(Rows.of(x[:49]), Rows.of(x), k=4)["recall"]
    assert refused.refused == "at least 50 images in both sets are needed; here 49 and 60"
    assert "at least 62" in str(neighbour_measures(Rows.of(x), Rows.of(x), k=30)["recall"].refused)


def test_intervals_hold_the_expectation_at_this_n() -> None:
    """Short form of `benchmarks/neighbours.py coverage`."""
    g = np.random.default_rng(9)
    runs = [
        neighbour_measures(Rows.of(0.8 * g.normal(size=(60, 3))), Rows.of(g.normal(size=(60, 3)))) for _ in range(60)
    ]
    for name in runs[0]:
        mean = np.mean([run[name].value for run in runs])
        assert np.mean([run[name].low <= mean <= run[name].high for run in runs]) >= 0.9, name
        assert np.mean([run[name].high - run[name].low for run in runs]) < 0.9, name


def test_left_out_weights_keep_the_class_mix() -> None:
    labels = np.r_[np.zeros(50, int), np.ones(30, int), 2]
    mix = np.array([0.2, 0.5, 0.3])
    rows = Rows.of(np.arange(81.0)[:, None], labels, mix)
    w = rows.left_out_weights()
    assert w.shape == (81, 21)
    for g in range(20):
        assert (w[rows.groups() == g, g] == 0).all()
        share = np.bincount(rows.labels, w[:, g])
        alone = rows.groups()[-1] == g
        assert share == pytest.approx([2 / 7, 5 / 7, 0] if alone else mix, abs=1e-12)
    assert w[:, -1] == pytest.approx(rows.weights)


def test_known_balls_on_a_line() -> None:
    # radii at k = 1: 1, 1, 2; the balls [-1, 1], [0, 2], [1, 5]
    real = np.array([[0.0], [1.0], [3.0]])
    assert density_coverage(real, np.array([[1.0], [9.0]]), 1) == (1.5, 1.0)
    assert density_coverage(real, np.array([[0.5], [0.5], [9.0], [9.0]]), 1) == (1.0, pytest.approx(2 / 3))
    assert density_coverage(real, np.array([[9.0]]), 1) == (0.0, 0.0)
