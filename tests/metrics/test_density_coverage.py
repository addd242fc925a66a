"""Density and coverage against prdc, a loop over balls, and known answers."""

from __future__ import annotations

import contextlib
import io
from math import prod

import numpy as np
import pytest

from imbdiff.metrics.density_coverage import density_coverage, density_coverage_measure
from imbdiff.metrics.rows import Rows


@pytest.mark.parametrize(("n", "m", "dim", "k"), [(200, 170, 4, 5), (150, 300, 64, 3), (90, 90, 1, 1)])
def test_equals_prdc(n: int, m: int, dim: int, k: int) -> None:
    from prdc import compute_prdc

    g = np.random.default_rng(n)
    real, fake = g.normal(size=(n, dim)), 0.8 * g.normal(size=(m, dim)) + 0.2
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = compute_prdc(real, fake, k)
    assert density_coverage(real, fake, k) == pytest.approx((theirs["density"], theirs["coverage"]), abs=1e-12)


def test_known_balls_on_a_line() -> None:
    # radii at k = 1: 1, 1, 2; the balls [-1, 1], [0, 2], [1, 5]
    real = np.array([[0.0], [1.0], [3.0]])
    assert density_coverage(real, np.array([[1.0], [9.0]]), 1) == (1.5, 1.0)
    assert density_coverage(real, np.array([[0.5], [0.5], [9.0], [9.0]]), 1) == (1.0, pytest.approx(2 / 3))
    assert density_coverage(real, np.array([[9.0]]), 1) == (0.0, 0.0)


def test_coverage_of_real_by_real_is_as_the_theory_says() -> None:
    g = np.random.default_rng(0)
    n, m, k = 80, 60, 3
    found = [density_coverage(g.normal(size=(n, 4)), g.normal(size=(m, 4)), k) for _ in range(60)]
    expected = 1 - prod((n - 1 - i) / (m + n - 1 - i) for i in range(k))
    density, coverage = np.mean(found, axis=0)
    assert coverage == pytest.approx(expected, abs=0.02)
    assert density == pytest.approx(1, abs=0.06)


def test_a_lost_mode_costs_coverage_and_not_density() -> None:
    g = np.random.default_rng(1)
    labels = np.arange(300) % 2
    real = g.normal(size=(300, 4)) + 20 * labels[:, None]
    density, coverage = density_coverage(real, g.normal(size=(300, 4)))
    assert coverage == pytest.approx(0.5, abs=0.03)
    assert density > 0.8


def test_measure_has_intervals_and_no_fakes_near_give_zero_with_an_upper_end() -> None:
    g = np.random.default_rng(2)
    real, fake = Rows.of(g.normal(size=(80, 3))), Rows.of(g.normal(size=(60, 3)) + 100)
    found = density_coverage_measure(fake, real)
    assert list(found) == ["density", "coverage"]
    for e in found.values():
        assert (e.value, e.low) == (0.0, 0.0)
        assert e.high is not None
        assert 0.0 < e.high < 0.1
    assert "at least 50" in str(density_coverage_measure(fake.part(40), real)["density"].refused)
    near = density_coverage_measure(Rows.of(g.normal(size=(60, 3))), real)["density"]
    assert near.value is not None
    assert near.low is not None
    assert near.high is not None
    assert 0.3 < near.low < near.value < near.high < 2
