"""Intra-class diversity against scipy, loops and known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from imbdiff.metrics.diversity import MIN_PER_CLASS, _distances, diversity, mean_pairwise_distance
from imbdiff.metrics.intervals import jackknife_half_width
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.runtime.errors import DataError


@pytest.mark.parametrize("shift", [0.0, 1e5])
def test_mean_distance_equals_scipy_also_for_near_equal_rows(shift: float) -> None:
    g = np.random.default_rng(0)
    x = np.concatenate([g.normal(size=(30, 4)), 5 + 1e-7 * g.normal(size=(20, 4))]) + shift
    assert mean_pairwise_distance(x) == pytest.approx(pdist(x).mean(), rel=1e-9)
    assert mean_pairwise_distance(x[30:]) == pytest.approx(pdist(x[30:]).mean(), rel=1e-9)
    assert _distances(x) == pytest.approx(squareform(pdist(x)), rel=1e-8, abs=0)
    assert mean_pairwise_distance(np.ones((9, 3))) == 0
    with pytest.raises(DataError, match="two rows"):
        mean_pairwise_distance(x[:1])


def of(found: dict[str, Estimate]) -> tuple[float, float, float]:
    e = found["diversity"]
    return e.value, e.low, e.high  # type: ignore[return-value]


def test_classes_count_by_the_mix_of_the_reference() -> None:
    g = np.random.default_rng(1)
    labels, mix = np.repeat([0, 1, 2], [40, 30, 3]), np.array([0.2, 0.5, 0.3])
    # class 1 has a quarter of its spread; class 2 is too small and drops out
    real = g.normal(size=(73, 5)) + 100 * labels[:, None]
    fake = g.normal(size=(73, 5)) * np.where(labels == 1, 0.25, 1)[:, None]
    found = diversity(Rows.of(fake, labels), Rows.of(real, labels, mix))
    p = np.array([0.2, 0.5]) / 0.7
    mine, theirs = (sum(p[k] * pdist(x[labels == k]).mean() for k in (0, 1)) for x in (fake, real))
    value, low, high = of(found)
    assert value == pytest.approx(mine / theirs, rel=1e-9)
    assert low < value < high
    e = found["diversity"]
    assert e.extra["synthetic_distance"] == pytest.approx(mine)
    assert e.extra["reference_distance"] == pytest.approx(theirs)
    assert e.extra["classes"] == [0, 1]
    assert (e.n_synthetic, e.n_reference) == (70, 70)


def test_interval_is_the_jackknife_of_the_logarithm() -> None:
    g = np.random.default_rng(2)
    fake, real = Rows.of(g.normal(size=(50, 3))), Rows.of(g.normal(size=(44, 3)))
    left = [[float(np.log(pdist(rows.array[rows.groups() != i]).mean())) for i in range(20)] for rows in (fake, real)]
    half = jackknife_half_width(left)
    value, low, high = of(diversity(fake, real))
    assert (low, high) == (pytest.approx(value * np.exp(-half)), pytest.approx(value * np.exp(half)))


def test_collapsed_classes_have_no_diversity_however_different_the_classes_are() -> None:
    g = np.random.default_rng(3)
    labels = np.repeat(np.arange(4), 30)
    real = Rows.of(g.normal(size=(120, 6)), labels)
    value, low, high = of(diversity(Rows.of(np.eye(6)[labels] * 99, labels), real))
    assert (value, low) == (0, 0)
    assert high == pytest.approx(6 / 120)
    value, low, high = of(diversity(Rows.of(g.normal(size=(120, 6)), labels), real))
    assert low < 1 < high
    twice, *_ = of(diversity(Rows.of(2 * g.normal(size=(120, 6)), labels), real))
    assert twice == pytest.approx(2, rel=0.1)
    flat = diversity(real, Rows.of(np.eye(6)[labels], labels))["diversity"]
    assert flat.value is None
    assert "all the same" in str(flat.refused)


def test_rows_of_a_class_are_capped_by_hash() -> None:
    g = np.random.default_rng(4)
    labels = g.integers(0, 2, 90)
    rows = Rows.of(g.normal(size=(90, 3)), labels)
    e = diversity(rows, Rows.of(g.normal(size=(90, 3)), labels), per_class=25)["diversity"]
    assert e.n_synthetic == 50
    first = [pdist(rows.array[rows.labels == k][:25]).mean() for k in (0, 1)]
    assert e.extra["synthetic_distance"] == pytest.approx(np.bincount(labels) / 90 @ first, rel=1e-9)


def test_few_rows_are_refused() -> None:
    g = np.random.default_rng(5)
    x = g.normal(size=(60, 3))
    for labels in (np.zeros(60, int), np.arange(60) // (MIN_PER_CLASS - 1)):
        n = 19 if not labels.any() else 60
        e = diversity(Rows.of(x[:n], labels[:n]), Rows.of(x, labels))["diversity"]
        assert e.value is None
        assert f"from classes with at least {MIN_PER_CLASS} in both" in str(e.refused)
    nothing = diversity(Rows.of(x, np.zeros(60, int)), Rows.of(x, np.full(60, 3)))["diversity"]
    assert nothing.value is None


def test_interval_holds_the_ratio() -> None:
    """Unbiased distances: the truth is the ratio of the scales."""
    g = np.random.default_rng(6)
    runs = [of(diversity(Rows.of(0.7 * g.normal(size=(60, 4))), Rows.of(g.normal(size=(60, 4))))) for _ in range(120)]
    assert np.mean([low <= 0.7 <= high for _, low, high in runs]) >= 0.88
    assert np.mean([high - low for _, low, high in runs]) < 6 * np.std([value for value, _, _ in runs])
