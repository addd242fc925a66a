from __future__ import annotations

import numpy as np
import pytest

from imbdiff.metrics.frechet import Moments
from imbdiff.metrics.intervals import jackknife_half_width, wilson


def test_merged_parts_equal_the_whole_also_far_from_zero() -> None:
    x = np.random.default_rng(0).normal(size=(101, 3)) + 1e6
    parts = Moments.empty(3)
    for start in range(0, 101, 17):
        parts = parts.merge(Moments.of(x[start : start + 17]))
    np.testing.assert_allclose(parts.mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(parts.covariance, np.cov(x, rowvar=False), rtol=1e-8)
    assert parts.effective == pytest.approx(101)


def test_weighted_covariance_equals_numpys_aweights() -> None:
    g = np.random.default_rng(1)
    x, w = g.normal(size=(40, 3)), g.uniform(0.1, 2, size=40)
    np.testing.assert_allclose(Moments.of(x, w).covariance, np.cov(x, rowvar=False, aweights=w), rtol=1e-12)


def test_jackknife_of_a_mean_is_the_textbook_interval() -> None:
    x = np.random.default_rng(2).normal(size=31)
    leave_one_out = [(x.sum() - v) / 30 for v in x]
    assert jackknife_half_width([leave_one_out]) == pytest.approx(2.042 * x.std(ddof=1) / np.sqrt(31), rel=1e-6)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (10, 10), (97, 100)])
def test_wilson_equals_scipy(hits: int, n: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
