"""Fréchet distance against scipy's matrix square root; its extrapolation and intervals."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from imbdiff.metrics.frechet import Moments, frechet, frechet_distance
from imbdiff.metrics.rows import Rows


def _two_sets(n: int = 150, m: int = 130, d: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    return g.normal(size=(n, d)) @ g.normal(size=(d, d)), g.normal(size=(m, d)) * 2 + 1


def _scipy(x: np.ndarray, y: np.ndarray) -> float:
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2)
    d = x.mean(0) - y.mean(0)
    return float(d @ d + np.trace(s1 + s2 - 2 * root).real)


@given(st.integers(2, 12), st.integers(0, 20), st.floats(0.01, 100, allow_subnormal=False))
@settings(max_examples=30, deadline=None)
def test_equals_scipy_sqrtm_and_is_symmetric(d: int, seed: int, scale: float) -> None:
    x, y = _two_sets(5 * d, 7 * d, d, seed)
    x = x * scale
    value = frechet_distance(x, y)
    assert value == pytest.approx(_scipy(x, y), rel=1e-6)
    assert frechet_distance(y, x) == pytest.approx(value, rel=1e-9)


def test_known_answers() -> None:
    # one dimension: (m1 - m2)^2 + (s1 - s2)^2
    a = Moments(10.0, 10.0, np.array([1.0]), np.array([[9 * 4.0]]))
    b = Moments(10.0, 10.0, np.array([4.0]), np.array([[9 * 25.0]]))
    assert frechet_distance(a, b) == pytest.approx(9 + 9)
    x, _ = _two_sets()
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 3) == pytest.approx(9 * x.shape[1])


def test_singular_and_constant_features_give_real_numbers() -> None:
    x, y = _two_sets()
    x[:, 3] = x[:, 2]
    y[:, 0] = 0
    assert np.isfinite(frechet_distance(x, y))
    for found in (frechet(Rows.of(x), Rows.of(y)), frechet(Rows.of(x * 0 + 1), Rows.of(y))):
        for e in found.values():
            assert np.isfinite([e.value, e.low, e.high]).all()
            assert e.value > 0
    flat = frechet(Rows.of(x * 0), Rows.of(y * 0))["FD∞"]
    assert flat.value == pytest.approx(0, abs=1e-12)


def test_refuses_small_n_with_a_reason_and_offers_what_is_sound() -> None:
    enough = frechet(*map(Rows.of, _two_sets(120, 120)))
    assert not enough["FD∞"].extra["small_sample"]
    small = frechet(*map(Rows.of, _two_sets(119, 500)))
    assert small["FD"].value is None
    assert "at least 120 in both sets, here 119; use FD∞" in str(small["FD"].refused)
    assert small["FD∞"].extra["small_sample"]
    tiny = frechet(*map(Rows.of, _two_sets(29, 500)))
    assert tiny["FD∞"].value is None
    assert "use the kernel distance" in str(tiny["FD∞"].refused)


def test_class_mix_of_the_synthetic_set_does_not_count() -> None:
    g = np.random.default_rng(1)
    y_labels = np.repeat([0, 1], 300)
    x_labels = np.repeat([0, 1], [60, 540])
    y = g.normal(size=(600, 3)) + 5 * y_labels[:, None]
    x = g.normal(size=(600, 3)) + 5 * x_labels[:, None]
    half = np.array([0.5, 0.5])
    matched = frechet(Rows.of(x, x_labels, half), Rows.of(y, y_labels, half))["FD∞"]
    assert matched.low < 0.0 < matched.high < 0.3
    assert matched.n_effective < 300
    assert frechet_distance(x, y) > 5


def test_halves_have_the_class_mix_of_the_whole() -> None:
    from imbdiff.metrics.frechet import _halves, moments_of

    z = np.repeat([0, 1, 2], [7, 4, 1])
    rows = Rows.of(np.eye(3)[z], z, np.array([0.2, 0.3, 0.5]))
    whole = moments_of(rows)
    for seed in range(5):
        for half in _halves(rows, whole, np.random.default_rng(seed)):
            np.testing.assert_allclose(half.mean, [0.2, 0.3, 0.5], atol=1e-12)
    g = np.random.default_rng(0)
    x = Rows.of(g.normal(size=(41, 3)), np.sort(g.integers(0, 3, 41)), np.array([0.2, 0.3, 0.5]))
    a, b = _halves(x, moments_of(x), np.random.default_rng(3))
    again = a.merge(b)
    np.testing.assert_allclose(again.mean, moments_of(x).mean, atol=1e-12)
    # the variance of a half is twice that of the whole, whatever the parity of its classes
    w = x.weights
    assert a.squares + b.squares == pytest.approx(4 * (w**2).sum())
    assert min(np.bincount(x.labels)) > 1


def test_extrapolation_removes_the_bias_and_the_interval_holds_the_truth() -> None:
    """A short form of benchmarks/interval_coverage.py; 100 repetitions hold 95 % within 6 points."""
    g = np.random.default_rng(3)
    d, n, shift, factor = 8, 160, 0.8, 1.5
    first = np.linspace(0.5, 2, d)
    truth = shift**2 + float(((np.sqrt(first) - np.sqrt(first * factor)) ** 2).sum())
    found, null = [], []
    for i in range(100):
        x = g.normal(size=(n, d)) * np.sqrt(first)
        y = g.normal(size=(n, d)) * np.sqrt(first * factor)
        y[:, 0] += shift
        e = frechet(Rows.of(x), Rows.of(y), halvings=10)
        found.append((e["FD"].value, e["FD∞"].value, e["FD∞"].low, e["FD∞"].high))
        if i < 50:
            z = frechet(Rows.of(x), Rows.of(g.normal(size=(n, d)) * np.sqrt(first)), halvings=10)["FD∞"]
            null.append((z.low, z.high))
    plain, value, low, high = np.array(found, dtype=float).T
    error = value.std() / np.sqrt(len(value))
    assert abs(value.mean() - truth) < 3 * error
    assert plain.mean() - truth > 5 * error
    assert 0.89 <= ((low <= truth) & (truth <= high)).mean() < 1
    lows, highs = np.array(null, dtype=float).T
    assert ((lows <= 0) & (highs >= 0)).mean() >= 0.9


def test_few_images_of_many_classes_leave_no_bias() -> None:
    """Odd rows of a class are in both halves; without making up for them 3 a class keep a third of the bias."""
    g = np.random.default_rng(4)
    classes, per_class, d = 200, 3, 6
    z, centres = np.repeat(np.arange(classes), per_class), g.normal(size=(classes, d))
    mix, values, held = np.ones(classes), [], 0
    for _ in range(40):
        x, y = (Rows.of(centres[z] + g.normal(size=(len(z), d)), z, mix) for _ in range(2))
        e = frechet(x, y, halvings=8)
        values.append((e["FD"].value, e["FD∞"].value))
        held += e["FD∞"].low <= 0 <= e["FD∞"].high
    plain, value = np.array(values, dtype=float).T
    assert abs(value.mean()) < 3 * value.std() / np.sqrt(len(value))
    assert abs(value.mean()) < 0.1 * plain.mean()
    assert held >= 35


def test_classes_of_a_single_image_are_refused_where_they_hold_much() -> None:
    g = np.random.default_rng(5)
    z = np.r_[np.zeros(170, int), np.arange(1, 31)]
    x, y = g.normal(size=(200, 3)), g.normal(size=(200, 3))
    heavy = frechet(Rows.of(x, z, np.full(31, 1.0)), Rows.of(y, np.zeros(200, int)))["FD∞"]
    assert "single image" in str(heavy.refused) or "effective n" in str(heavy.refused)
    even = np.bincount(z) / len(z)
    found = frechet(Rows.of(x, z, even), Rows.of(y, z, even))
    assert "classes with a single image hold 15 % of the squared weights" in str(found["FD∞"].refused)
    assert found["FD"].low is None
    light = np.r_[np.zeros(190, int), np.arange(1, 11)]
    few = np.bincount(light) / 200
    assert frechet(Rows.of(x, light, few), Rows.of(y, light, few))["FD∞"].value is not None


def test_the_seed_changes_the_halvings_only() -> None:
    a, b = (frechet(*map(Rows.of, _two_sets()), seed=seed) for seed in (0, 1))
    assert a["FD"].value == b["FD"].value
    assert a["FD∞"].value != b["FD∞"].value
    assert a["FD∞"].value == pytest.approx(b["FD∞"].value, rel=0.1)
