"""PRD against the paper's equations in plain loops, known histograms, and modes that one side has lost."""

from __future__ import annotations

from math import pi, tan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import MiniBatchKMeans

from imbdiff.metrics.prd import cluster, f_beta, prd_curve, prd_f8, prd_measure
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.runtime.errors import DataError


def loop_curve(p: list[float], q: list[float], angles: int) -> tuple[list[float], list[float]]:
    """alpha(lambda) = sum min(lambda P, Q), beta(lambda) = sum min(P, Q / lambda), as in the paper."""
    alphas, betas = [], []
    for i in range(angles):
        slope = tan(1e-10 + (pi / 2 - 2e-10) * i / (angles - 1))
        alphas.append(sum(min(slope * a, b) for a, b in zip(p, q, strict=True)))
        betas.append(sum(min(a, b / slope) for a, b in zip(p, q, strict=True)))
    return alphas, betas


def loop_f(p: list[float], q: list[float], beta: float) -> float:
    pairs = zip(*loop_curve(p, q, 1001), strict=True)
    return max((1 + beta**2) * a * b / (beta**2 * a + b) if a > 0 and b > 0 else 0.0 for a, b in pairs)


histograms = arrays(np.float64, 6, elements=st.integers(0, 9)).filter(lambda h: h.sum() > 0).map(lambda h: h / h.sum())


@settings(max_examples=25, deadline=None)
@given(p=histograms, q=histograms)
def test_curve_and_f_equal_the_paper_in_loops(p: np.ndarray, q: np.ndarray) -> None:
    precision, recall = prd_curve(p, q, 101)
    alphas, betas = loop_curve(p.tolist(), q.tolist(), 101)
    assert precision == pytest.approx(np.array(alphas), abs=1e-9)
    assert recall == pytest.approx(np.array(betas), abs=1e-9)
    curve = prd_curve(p, q)
    assert f_beta(*curve, 8) == pytest.approx(loop_f(p.tolist(), q.tolist(), 8), abs=1e-9)
    assert f_beta(*curve, 1 / 8) == pytest.approx(loop_f(p.tolist(), q.tolist(), 1 / 8), abs=1e-9)


def test_equal_and_disjoint_histograms() -> None:
    p = np.array([0.5, 0.25, 0.25, 0.0])
    for beta in (8, 1 / 8):
        assert f_beta(*prd_curve(p, p), beta) == pytest.approx(1)
        assert f_beta(*prd_curve(p, np.array([0.0, 0, 0, 1])), beta) == 0


def test_f8_weighs_recall_and_one_eighth_precision() -> None:
    real, half = np.full(10, 0.1), np.r_[np.full(5, 0.2), np.zeros(5)]
    lost, extra = prd_curve(real, half), prd_curve(half, real)
    # a set that lost half of the clusters: all it has is right (precision 1), half is covered (recall 1/2)
    assert f_beta(*lost, 8) == pytest.approx(65 * 0.5 / 64.5, abs=1e-3)
    assert f_beta(*lost, 1 / 8) == pytest.approx((1 + 1 / 64) * 0.5 / (1 / 64 + 0.5), abs=1e-3)
    assert f_beta(*extra, 8) == pytest.approx(f_beta(*lost, 1 / 8), abs=1e-6)
    assert f_beta(*extra, 1 / 8) == pytest.approx(f_beta(*lost, 8), abs=1e-6)


def modes(n: int, which: range, g: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = np.sort(g.choice(list(which), n))
    return np.eye(8)[labels] * 30 + g.normal(size=(n, 8)), labels


def test_features_with_a_lost_mode() -> None:
    g = np.random.default_rng(1)
    real, half, same = modes(400, range(4), g)[0], modes(400, range(2), g)[0], modes(400, range(4), g)[0]
    f8, f18 = prd_f8(real, half, 8, runs=3)
    assert f8 < 0.65 < 0.8 < f18
    assert min(prd_f8(real, same, 8, runs=3)) > 0.9


def test_one_start_a_run_is_as_good_as_the_authors_ten() -> None:
    g = np.random.default_rng(2)
    real, fake = modes(400, range(4), g)[0], modes(400, range(3), g)[0] * 1.02
    x = np.concatenate([fake, real])

    def score(found: list[np.ndarray]) -> tuple[float, float]:
        curves = [
            prd_curve(np.bincount(c[400:], minlength=40) / 400, np.bincount(c[:400], minlength=40) / 400) for c in found
        ]
        precision, recall = np.mean(curves, axis=0)
        return f_beta(precision, recall, 8), f_beta(precision, recall, 1 / 8)

    theirs = score([MiniBatchKMeans(40, n_init=10, random_state=i).fit_predict(x) for i in range(10)])
    assert prd_f8(real, fake, 40) == pytest.approx(theirs, abs=0.02)
    assert prd_f8(real, fake, 40) == pytest.approx(score(list(cluster(x, 40))))


def measured(fake: Rows, real: Rows, **options: int) -> tuple[Estimate, Estimate]:
    found = prd_measure(fake, real, runs=3, **options)
    assert list(found) == ["F8", "F1/8"]
    return found["F8"], found["F1/8"]


def test_measure_counts_weights_and_bounds_its_size() -> None:
    g = np.random.default_rng(3)
    x, xl = modes(300, range(4), g)
    y, yl = modes(260, range(4), g)
    y[yl == 3] += 100
    for share in (0.1, 0.7):
        mix = np.array([1 - share, 0.0, 0.0, share])
        f8, f18 = measured(Rows.of(y, yl, mix), Rows.of(x, xl, mix), clusters_per_class=3)
        n = min((yl == 0).sum() + (yl == 3).sum(), (xl == 0).sum() + (xl == 3).sum())
        assert f8.n_synthetic == f8.n_reference == n
        assert f8.extra["clusters"] == 6
        # the mode that lies elsewhere is missing from both
        for e in (f8, f18):
            assert e.value == pytest.approx(1 - share, abs=0.12)
            assert e.low < e.value < e.high <= 1


def test_too_few_rows_and_unequal_sets_are_refused() -> None:
    g = np.random.default_rng(5)
    x, labels = modes(80, range(4), g)
    f8, _ = measured(Rows.of(x, labels), Rows.of(x[:70], labels[:70]))
    assert f8.value is None
    assert "at least" in str(f8.refused)
    with pytest.raises(DataError, match="equal size"):
        prd_f8(x, x[:70], 5)
    with pytest.raises(DataError, match="200 clusters"):
        prd_f8(x, x, 200)
