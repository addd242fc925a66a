from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbdiff.metrics.frechet import Moments, moments_of
from imbdiff.metrics.intervals import jackknife_half_width, wilson
from imbdiff.metrics.rows import Rows
from imbdiff.runtime.errors import DataError


def _rows(n: int = 200, seed: int = 0, mix: tuple[float, ...] | None = None) -> tuple[np.ndarray, np.ndarray, Rows]:
    g = np.random.default_rng(seed)
    x, z = g.normal(size=(n, 3)), np.sort(g.integers(0, 4, n) ** 2 % 4)
    return x, z, Rows.of(x, z, None if mix is None else np.array(mix))


def test_order_changes_nothing_and_rows_keep_their_labels() -> None:
    x, z, rows = _rows()
    p = np.random.default_rng(1).permutation(len(x))
    other = Rows.of(x[p], z[p])
    np.testing.assert_array_equal(rows.array, other.array)
    np.testing.assert_array_equal(rows.labels, other.labels)
    for k in range(4):
        own = {tuple(r) for r in x[z == k]}
        assert {tuple(r) for r in rows.array[rows.labels == k]} == own
    assert not np.array_equal(Rows.of(x, z, seed=1).array, rows.array)


def test_order_follows_image_hashes_where_they_are_given() -> None:
    x, z, _ = _rows()
    hashes = [f"{i:032x}" for i in range(len(x))]
    one = Rows.of(x, z, hashes=hashes)
    nearly = Rows.of(x * (1 + 1e-7), z, hashes=hashes)
    np.testing.assert_allclose(one.array, nearly.array, rtol=1e-6)
    assert next(r for r, _ in one.blocks(7)).dtype == np.float64


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_weights_give_the_mix_and_parts_keep_it(labels: list[int], n: int) -> None:
    z = np.array(labels)
    mix = np.array([0.5, 0.25, 0.0, 0.25])
    rows = Rows.of(np.arange(len(z), dtype=float)[:, None], z, mix)
    assert not (rows.labels == 2).any()
    if not len(rows):
        return
    shares = np.bincount(rows.labels, rows.weights, minlength=4)
    present = np.bincount(rows.labels, minlength=4) > 0
    np.testing.assert_allclose(shares, np.where(present, mix, 0) / mix[present].sum(), rtol=1e-12)
    part = rows.part(n)
    assert len(part) == min(n, len(rows))
    assert part.weights.sum() == pytest.approx(1)
    # a smaller part is inside a larger one
    assert set(part.array[:, 0]) <= set(rows.part(n + 3).array[:, 0])


def test_a_part_takes_from_all_classes_by_their_weight() -> None:
    z = np.repeat([0, 1, 2], [1000, 100, 3])
    rows = Rows.of(np.arange(len(z), dtype=float)[:, None], z, np.array([1.0, 1.0, 1.0]))
    assert np.bincount(rows.part(60).labels).tolist() == [29, 28, 3]
    plain = Rows.of(np.arange(len(z), dtype=float)[:, None], z)
    assert np.bincount(plain.part(110).labels).tolist() == [100, 10]


def test_moments_of_blocks_equal_the_whole() -> None:
    x, _, rows = _rows(mix=(0.1, 0.2, 0.3, 0.4))
    whole = moments_of(rows)
    direct = Moments.of(rows.array, rows.weights)
    blocks = moments_of(rows, size=7)
    for m in (direct, blocks):
        np.testing.assert_allclose(m.mean, whole.mean, rtol=1e-12)
        np.testing.assert_allclose(m.covariance, whole.covariance, rtol=1e-12)
    half = rows.weights * np.where(np.arange(len(rows)) % 2, 1.5, 0.5)
    half /= half.sum()
    part = moments_of(rows, half)
    rest = whole.complement(part, float(((2 * rows.weights - half) ** 2).sum()))
    other = moments_of(rows, 2 * rows.weights - half)
    np.testing.assert_allclose(rest.mean, other.mean, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(rest.covariance, other.covariance, rtol=1e-10, atol=1e-14)
    assert len(x) == len(rows)


def test_bad_features_are_named() -> None:
    x = np.zeros((5, 2))
    x[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3 of 5 is not finite"):
        Rows.of(x)
    with pytest.raises(DataError, match=r"\(5,\)"):
        Rows.of(np.zeros(5))
    with pytest.raises(DataError, match="labels"):
        Rows.of(np.zeros((5, 2)), np.zeros(4, int))
    with pytest.raises(DataError, match="2 proportions"):
        Rows.of(np.zeros((5, 2)), np.full(5, 2), np.ones(2))


def test_merged_parts_equal_the_whole_also_far_from_zero() -> None:
    x = np.random.default_rng(0).normal(size=(101, 3)) + 1e6
    parts = Moments.of(x[:17])
    for start in range(17, 101, 17):
        parts = parts.merge(Moments.of(x[start : start + 17]))
    np.testing.assert_allclose(parts.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(parts.covariance, np.cov(x, rowvar=False), rtol=1e-8)
    assert parts.weight**2 / parts.squares == pytest.approx(101)


def test_weighted_covariance_equals_numpys_aweights() -> None:
    g = np.random.default_rng(1)
    x, w = g.normal(size=(40, 3)), g.uniform(0.1, 2, size=40)
    np.testing.assert_allclose(Moments.of(x, w).covariance, np.cov(x, rowvar=False, aweights=w), rtol=1e-12)


def test_jackknife_of_a_mean_is_the_textbook_interval() -> None:
    x = np.random.default_rng(2).normal(size=31)
    leave_one_out = [(x.sum() - v) / 30 for v in x]
    assert jackknife_half_width([leave_one_out]) == pytest.approx(2.0422725 * x.std(ddof=1) / np.sqrt(31), rel=1e-6)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (97, 100)])
def test_wilson_equals_scipy(hits: int, n: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
