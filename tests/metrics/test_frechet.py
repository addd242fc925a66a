"""Fréchet distance against scipy's matrix square root and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from imbdiff.metrics.frechet import frechet, frechet_distance, minimum_rows
from imbdiff.metrics.statistics import Moments


def _two_sets(n: int = 150, m: int = 90, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(0)
    return g.normal(size=(n, d)) @ g.normal(size=(d, d)), g.normal(size=(m, d)) * 2 + 1


def _scipy(x: np.ndarray, y: np.ndarray) -> float:
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2)
    d = x.mean(0) - y.mean(0)
    return float(d @ d + np.trace(s1 + s2 - 2 * root).real)


def test_equals_scipy_sqrtm_and_is_symmetric() -> None:
    x, y = _two_sets()
    a, b = Moments.of(x), Moments.of(y)
    assert frechet_distance(a, b) == pytest.approx(_scipy(x, y), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_equals_torchmetrics_with_fed_features() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(torch.nn.Module):
        num_features = 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    x, y = _two_sets()
    fid = FrechetInceptionDistance(feature=Identity(), normalize=True).set_dtype(torch.float64)
    fid.update(torch.from_numpy(x), real=True)
    fid.update(torch.from_numpy(y), real=False)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(float(fid.compute()), rel=1e-6)


def test_known_answers() -> None:
    # one dimension: (m1 - m2)^2 + (s1 - s2)^2
    a = Moments(10.0, 10.0, np.array([1.0]), np.array([[9 * 4.0]]))
    b = Moments(10.0, 10.0, np.array([4.0]), np.array([[9 * 25.0]]))
    assert frechet_distance(a, b) == pytest.approx(9 + 9)
    x, _ = _two_sets()
    assert frechet_distance(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-9)
    shifted = frechet_distance(Moments.of(x), Moments.of(x + 3))
    assert shifted == pytest.approx(9 * x.shape[1])


def test_singular_covariance_gives_a_real_number() -> None:
    x, y = _two_sets()
    x[:, 3] = x[:, 2]
    y[:, 0] = 0
    value = frechet_distance(Moments.of(x), Moments.of(y))
    assert np.isfinite(value)
    assert value > 0


def test_refuses_small_n_with_a_reason_and_prints_at_the_minimum() -> None:
    x, y = _two_sets(n=minimum_rows(6) - 1)
    labels = [np.zeros(len(v), np.int64) for v in (x, y)]
    refused = frechet(x, y, *labels, np.ones(1))
    assert refused["value"] is None
    assert "kernel distance" in str(refused["refused"])
    x, y = _two_sets(n=minimum_rows(6))
    labels = [np.zeros(len(v), np.int64) for v in (x, y)]
    allowed = frechet(x, y, *labels, np.ones(1))
    assert allowed["refused"] is None
    assert allowed["low"] < allowed["value"] < allowed["high"]  # type: ignore[operator]


def test_class_mix_of_the_synthetic_set_does_not_count() -> None:
    g = np.random.default_rng(1)
    y_labels = np.repeat([0, 1], 300)
    x_labels = np.repeat([0, 1], [60, 540])
    y = g.normal(size=(600, 3)) + 5 * y_labels[:, None]
    x = g.normal(size=(600, 3)) + 5 * x_labels[:, None]
    matched = frechet(x, y, x_labels, y_labels, np.array([0.5, 0.5]))["value"]
    plain = frechet_distance(Moments.of(x), Moments.of(y))
    assert isinstance(matched, float)
    assert matched < 0.3
    assert plain > 5


def test_jackknife_interval_covers_about_as_often_as_it_says() -> None:
    g = np.random.default_rng(2)
    d, n = 4, 80
    values, covered = [], 0
    draws = []
    for _ in range(60):
        x, y = g.normal(size=(n, d)), g.normal(size=(n, d)) * 1.5 + 1
        labels = np.zeros(n, np.int64)
        found = frechet(x, y, labels, labels, np.ones(1))
        draws.append(found)
        values.append(found["value"])
    centre = np.mean([float(v) for v in values if v is not None])
    covered = sum(float(f["low"]) <= centre <= float(f["high"]) for f in draws)  # type: ignore[arg-type]
    assert 50 <= covered <= 60
