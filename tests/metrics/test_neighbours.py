"""The neighbour engine against loops in exact arithmetic, at ties, copies, outliers and any chunk size."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from imbdiff.metrics.neighbour_measures import count_inside
from imbdiff.metrics.neighbours import Screen, ball_radii, kth_radii, within
from imbdiff.metrics.points import Points
from imbdiff.runtime.errors import DataError


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """sum (a - b)^2, exact for small whole numbers."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.array([[((p - q) ** 2).sum() for q in b] for p in a]).reshape(len(a), len(b))


def loop_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared, as the k-th smallest over the other rows, one row at a time."""
    d = squared(x, x)
    return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(d)])


@settings(max_examples=30, deadline=None)
@given(
    x=st.integers(1, 4).flatmap(lambda d: arrays(np.float64, (24, d), elements=st.integers(-2, 2))),
    k=st.integers(1, 6),
    chunk=st.integers(1, 30),
)
def test_radii_on_grids_full_of_ties_equal_a_loop(x: np.ndarray, k: int, chunk: int) -> None:
    assert np.array_equal(kth_radii(x, k, chunk) ** 2 > 1e-9, loop_radii(x, k) > 0)
    assert np.array_equal(ball_radii(Points(x), (k,), chunk)[k][Points(x).member, 0], loop_radii(x, k))


@settings(max_examples=25, deadline=None)
@given(x=arrays(np.float64, (40, 2), elements=st.integers(0, 3)), k=st.integers(1, 4))
def test_radii_without_a_group_equal_those_of_the_remaining_rows(x: np.ndarray, k: int) -> None:
    # uneven groups: some hold most of the neighbours of a row, so that the first list is too short
    groups = np.minimum(np.arange(40) % 7, 3)
    points = Points(x, groups)
    radii = ball_radii(points, (k,))[k]
    assert radii.shape == (len(points), 5)
    for g in range(4):
        left = np.flatnonzero(groups != g)
        assert np.array_equal(radii[points.member[left], g], loop_radii(x[left], k))


def test_a_group_that_holds_all_near_neighbours_makes_a_longer_list() -> None:
    # on a line, a group is a stretch: without it, the nearest others are far beyond the first list
    x = np.arange(120.0)[:, None] ** 1.01
    groups = np.arange(120) // 40
    radii = ball_radii(Points(np.r_[x, x], np.r_[groups, groups * 0 + 3]), (3,))[3]
    assert np.array_equal(radii[:, 3], loop_radii(x, 3))
    mixed = np.where(np.arange(120) % 30 == 0, 3, groups)
    radii = ball_radii(Points(x, mixed), (3,))[3]
    for g in range(4):
        left = np.flatnonzero(mixed != g)
        assert np.array_equal(radii[left, g], loop_radii(x[left], 3))


@pytest.mark.parametrize("collapsed", ["fake", "real"])
def test_balls_that_hold_nearly_everything_are_counted_right(collapsed: str) -> None:
    g = np.random.default_rng(5)
    wide, tight = g.normal(size=(700, 60)), 1e-3 * g.normal(size=(650, 60))
    fake, real = (tight, wide) if collapsed == "fake" else (wide, tight)
    f, r = Points(fake, np.arange(len(fake)) % 3), Points(real, np.arange(len(real)) % 3)
    found = count_inside(f, r, 3, 5)
    d = np.array([((row - real) ** 2).sum(axis=1) for row in fake])
    radii, dense, own = ball_radii(r, (3,))[3], ball_radii(r, (5,))[5], ball_radii(f, (3,))[3]
    for group in range(4):
        keep_f, keep_r = np.arange(len(fake)) % 3 != group, np.arange(len(real)) % 3 != group
        assert np.array_equal(found.precision[:, group], (d <= radii[:, group])[:, keep_r].sum(axis=1))
        assert np.array_equal(found.density[:, group], (d <= dense[:, group])[:, keep_r].sum(axis=1))
        assert np.array_equal(found.recall[:, group], (d <= own[:, [group]])[keep_f].sum(axis=0))
        assert np.array_equal(found.coverage_fake[:, group], (d <= dense[:, -1])[keep_f].sum(axis=0))
        assert np.array_equal(found.coverage_real[:, group], (d <= dense[:, group]).sum(axis=0))
    assert max(found.precision.mean(), found.recall.mean()) > 256


@settings(max_examples=30, deadline=None)
@given(
    real=arrays(np.float64, (23, 2), elements=st.integers(0, 4)),
    fake=arrays(np.float64, (17, 2), elements=st.integers(0, 4)),
    k=st.integers(1, 3),
    chunk=st.integers(1, 20),
)
def test_counts_on_grids_equal_a_loop(real: np.ndarray, fake: np.ndarray, k: int, chunk: int) -> None:
    f, r = Points(fake), Points(real)
    found = count_inside(f, r, k, k + 1, chunk)
    d = squared(fake, real)
    assert np.array_equal(found.precision[f.member, 0], (d <= loop_radii(real, k)).sum(axis=1))
    assert np.array_equal(found.density[f.member, 0], (d <= loop_radii(real, k + 1)).sum(axis=1))
    assert np.array_equal(found.recall[r.member, 0], (d <= loop_radii(fake, k)[:, None]).sum(axis=0))
    assert np.array_equal(found.coverage_fake[r.member, 0], (d <= loop_radii(real, k + 1)).sum(axis=0))


@pytest.mark.parametrize("dim", [3, 200])
def test_a_copy_of_the_kth_neighbour_is_on_the_edge(dim: int) -> None:
    """Rounding of norms and products must not decide: every fake is as far as a radius, to the last bit."""
    g = np.random.default_rng(0)
    real = (g.normal(size=(80, dim)) * 0.01 + 7).astype(np.float32)
    d = squared(real, real)
    fourth = np.argsort(d, axis=1)[:, 4]
    points = Points(real)
    for i, fake in enumerate(real[fourth]):
        inside = list(within(Points(fake[None]), points, ball_radii(points, (4,))[4]))
        mine = np.concatenate([p.support[p.column <= ball_radii(points, (4,))[4][p.support, 0]] for p in inside])
        assert i in mine
        if i == 3:
            break


def test_screen_bounds_hold_and_are_tight() -> None:
    g = np.random.default_rng(1)
    a, b = Points(g.normal(size=(50, 700)) + 30), Points(1.5 * g.normal(size=(90, 700)) + 30)
    screen = Screen(a, b)
    low, norms = screen.lower(np.arange(50))
    low = low[:, :90]
    exact = squared(a.take(np.arange(50)), b.take(np.arange(90))) / screen.unit
    high = low + 2 * screen.slack * (norms[:, None] + screen.base_norms)
    assert screen.kind is np.float32
    assert (low <= exact).all()
    assert (exact <= high).all()
    assert ((high - low) / exact).max() < 0.01


def test_far_clusters_and_outliers_go_to_float64_and_stay_exact() -> None:
    g = np.random.default_rng(2)
    x = g.normal(size=(600, 4)) * 1e-3 + 1e4 * g.integers(0, 3, size=(600, 1))
    x[0] = 1e9
    points = Points(x)
    screen = Screen(points, points)
    assert screen.upgrade(10**9, 1)
    assert screen.kind is np.float64
    expected = np.sort(((x[:, None] - x[None]) ** 2).sum(axis=2), axis=1)[:, 3]
    assert np.allclose(kth_radii(x, 3) ** 2, expected, rtol=1e-12, atol=0)


def test_chunks_and_order_change_nothing() -> None:
    g = np.random.default_rng(3)
    x = g.normal(size=(300, 30)).astype(np.float32)
    plain = kth_radii(x, 5)
    assert np.array_equal(plain, kth_radii(x, 5, chunk=7))
    order = g.permutation(300)
    assert np.array_equal(plain[order], kth_radii(x[order], 5))


@pytest.mark.parametrize("kind", ["equal", "collapsed", "few"])
def test_degenerate_sets_need_little_memory(kind: str) -> None:
    g = np.random.default_rng(4)
    real = g.normal(size=(3000, 8)).astype(np.float32)
    fake = {
        "equal": np.ones((3000, 8), np.float32),
        "collapsed": (1e-3 * g.normal(size=(3000, 8))).astype(np.float32),
        "few": real[:5].repeat(600, axis=0),
    }[kind]
    tracemalloc.start()
    # all pairs as float64 would be 72 MB for each of the counts
    count_inside(Points(fake), Points(fake if kind == "equal" else real), 3, 5, chunk=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 120e6


def test_minus_zero_is_zero_and_equal_rows_are_one_point() -> None:
    points = Points(np.array([[0.0, 1.0], [-0.0, 1.0], [2.0, 3.0], [0.0, 1.0]]), np.array([0, 1, 1, 0]))
    assert points.member.tolist() == [0, 0, 1, 0]
    assert points.counts.tolist() == [[1, 2, 3], [1, 0, 1]]


@pytest.mark.parametrize(
    ("x", "k"), [(np.zeros((3, 2)), 3), (np.zeros((3, 2)), 0), (np.zeros(3), 1), (np.array([[np.nan], [0.0]]), 1)]
)
def test_impossible_input_is_refused(x: np.ndarray, k: int) -> None:
    with pytest.raises(DataError):
        kth_radii(x, k)
