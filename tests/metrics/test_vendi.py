"""Vendi score: known answers, the eigenvalues of the n x n matrix, and sets that have lost modes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.datasets import load_digits

from imbdiff.metrics.rows import Rows
from imbdiff.metrics.vendi import vendi, vendi_score
from imbdiff.runtime.errors import DataError


def direct(x: np.ndarray, weights: np.ndarray) -> float:
    """From the n x n matrix sqrt(w_i w_j) cos(x_i, x_j), pair by pair."""
    k = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in x] for a in x])
    values = np.linalg.eigvals(np.sqrt(np.outer(weights, weights)) * k).real
    values = values[values > 1e-13]
    return float(np.exp(-(values * np.log(values)).sum()))


@pytest.mark.parametrize(("n", "dim"), [(30, 5), (12, 40), (9, 9)])
def test_equals_the_matrix_of_similarities_whichever_side_is_smaller(n: int, dim: int) -> None:
    g = np.random.default_rng(n)
    x, w = g.normal(size=(n, dim)), g.dirichlet(np.ones(n))
    assert vendi_score(x) == pytest.approx(direct(x, np.full(n, 1 / n)), rel=1e-9)
    assert vendi_score(x, w) == pytest.approx(direct(x, w), rel=1e-9)
    assert vendi_score(x, 7 * w, centre=x[0] + 1) == pytest.approx(direct(x - x[0] - 1, w), rel=1e-9)


def test_equal_rows_score_one_and_unlike_groups_their_number() -> None:
    assert vendi_score(np.tile([1.0, 2.0, 3.0], (50, 1))) == pytest.approx(1, abs=1e-9)
    for m in (2, 7):
        assert vendi_score(np.eye(9)[np.arange(70 * m) % m] * 3) == pytest.approx(m, rel=1e-9)
    # groups of unequal weight: exp of the entropy of the shares
    shares = np.array([0.5, 0.25, 0.25])
    assert vendi_score(np.eye(3), shares) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    # rows at the centre are like each other and like nothing else
    assert vendi_score(np.array([[0.0, 0], [0, 0], [1, 0], [1, 0]])) == pytest.approx(2)


@settings(max_examples=25, deadline=None)
@given(
    x=arrays(np.float64, (8, 3), elements=st.floats(-9, 9, allow_subnormal=False)),
    scale=st.floats(0.1, 10, allow_subnormal=False),
)
def test_between_one_and_n_and_deaf_to_scale(x: np.ndarray, scale: float) -> None:
    # rows of which the norm would be lost in rounding are rounded away
    x = np.round(x, 3)
    score = vendi_score(x)
    assert 1 <= score <= 8 * (1 + 1e-12)
    assert vendi_score(x * scale) == pytest.approx(score, rel=1e-9)


def test_copies_count_by_weight() -> None:
    x = np.random.default_rng(0).normal(size=(6, 4))
    times = np.array([1, 2, 3, 1, 1, 4])
    assert vendi_score(x.repeat(times, axis=0)) == pytest.approx(vendi_score(x, times / times.sum()), rel=1e-9)


def test_the_measure_falls_with_lost_classes_and_copies_behind_a_relu() -> None:
    """Plain cosine does not: of such features it falls by less than a tenth with half of the classes."""
    x, y = load_digits(return_X_y=True)
    g = np.random.default_rng(0)
    features = np.maximum(x @ g.normal(size=(64, 256)) / 8 - 2, 0)
    order = g.permutation(len(x))
    real, rest = features[order[:400]], order[400:]

    def score(fake: np.ndarray) -> float:
        e = vendi(Rows.of(fake), Rows.of(real), cap=300)["vendi"]
        assert (e.n_synthetic, e.n_reference) == (300, 300)
        assert e.value is not None
        assert e.extra["ratio"] == pytest.approx(e.value / e.extra["reference_vendi"])
        return e.extra["ratio"]

    whole, half = features[rest[:300]], features[rest[y[rest] < 5][:300]]
    copies = features[rest[:10]].repeat(30, axis=0)
    assert score(whole) == pytest.approx(1, abs=0.07)
    assert score(half) < 0.85
    assert score(copies) < 0.35
    assert vendi_score(half) / vendi_score(whole) > 0.9


def test_weights_interval_and_refusal() -> None:
    g = np.random.default_rng(1)
    labels = np.repeat([0, 1], 50)
    x = g.normal(size=(100, 6))
    fake = np.where(labels[:, None] == 0, g.normal(size=(100, 6)), 5.0)
    few, many = (
        vendi(Rows.of(fake, labels, np.array(mix)), Rows.of(x, labels))["vendi"] for mix in ([0.1, 0.9], [0.9, 0.1])
    )
    for e in (few, many):
        assert e.low is not None
        assert e.value is not None
        assert e.high is not None
        assert 1 <= e.low < e.value < e.high <= 100
    assert few.value is not None
    assert many.value is not None
    assert few.value < 2 < 4 < many.value
    refused = vendi(Rows.of(fake[:19]), Rows.of(x))["vendi"]
    assert refused.value is None
    assert refused.refused == "at least 20 images in both sets are needed; here 19 and 100"
    same = vendi(Rows.of(np.ones((30, 6))), Rows.of(x))["vendi"]
    assert (same.value, same.low) == (pytest.approx(1), pytest.approx(1))


def test_order_changes_nothing() -> None:
    g = np.random.default_rng(2)
    x, y, o = g.normal(size=(80, 5)), g.normal(size=(70, 5)), g.permutation(70)
    a, b = (vendi(Rows.of(f), Rows.of(r))["vendi"] for f, r in ((y, x), (y[o], x[::-1])))
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-10)


def test_interval_holds_the_expectation_at_this_n() -> None:
    g = np.random.default_rng(3)
    real = Rows.of(g.normal(size=(60, 4)))
    runs = [vendi(Rows.of(g.normal(size=(60, 4)) * [2, 1, 0.5, 0.2]), real)["vendi"] for _ in range(80)]
    mean = np.mean([e.value for e in runs])
    assert np.mean([e.low <= mean <= e.high for e in runs]) >= 0.88
    assert np.mean([e.high - e.low for e in runs]) < 6 * np.std([e.value for e in runs])


@pytest.mark.parametrize(
    ("x", "w"),
    [(np.zeros((0, 3)), None), (np.zeros(3), None), (np.full((2, 2), np.nan), None), (np.eye(2), np.array([-1.0, 2]))],
)
def test_bad_input_is_refused(x: np.ndarray, w: np.ndarray | None) -> None:
    with pytest.raises(DataError):
        vendi_score(x, w)
