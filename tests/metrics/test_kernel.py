"""Kernel distance against torchmetrics and a double loop."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from imbdiff.metrics.kernel import MIN_ROWS, kernel, kernel_distance
from imbdiff.metrics.rows import Rows


def _two_sets(n: int = 40, m: int = 40, d: int = 5) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(0)
    return g.normal(size=(n, d)), g.normal(size=(m, d)) * 1.3 + 0.5


def _k(a: np.ndarray, b: np.ndarray) -> float:
    return float((a @ b / len(a) + 1) ** 3)


def test_equals_torchmetrics_and_a_double_loop() -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = _two_sets()
    mine = kernel_distance(x, y)
    assert mine == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), rel=1e-9)
    x, y = _two_sets(7, 4)
    xx = np.mean([_k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    yy = np.mean([_k(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    xy = np.mean([_k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_stratified_equals_a_loop_over_pairs_of_classes() -> None:
    g = np.random.default_rng(3)
    p = np.array([0.25, 0.75])
    x_labels, y_labels = np.array([1, 0] * 5 + [1] * 20), np.array([0] * 8 + [1] * 14)
    x, y = g.normal(size=(30, 4)) + x_labels[:, None], g.normal(size=(22, 4)) - y_labels[:, None]

    def mixture(a: np.ndarray, la: np.ndarray, b: np.ndarray, lb: np.ndarray) -> float:
        total = 0.0
        for c, e in product((0, 1), (0, 1)):
            places = product(np.flatnonzero(la == c), np.flatnonzero(lb == e))
            pairs = [_k(a[i], b[j]) for i, j in places if a is not b or i != j]
            total += p[c] * p[e] * float(np.mean(pairs))
        return total

    expected = mixture(x, x_labels, x, x_labels) + mixture(y, y_labels, y, y_labels)
    expected -= 2 * mixture(x, x_labels, y, y_labels)
    found = kernel(Rows.of(x, x_labels, p), Rows.of(y, y_labels, p))["KD"]
    assert found.value == pytest.approx(expected, rel=1e-10)


def test_unbiased_under_equal_distributions_where_the_plug_in_is_not() -> None:
    g = np.random.default_rng(4)
    values, biased, covered = [], [], 0
    for _ in range(80):
        x, y = g.normal(size=(24, 6)), g.normal(size=(30, 6))
        found = kernel(Rows.of(x), Rows.of(y))["KD"]
        value = found.value
        values.append(value)
        covered += found.low <= 0 <= found.high
        biased.append(value + np.mean([_k(a, a) for a in x]) / 24)
    error = np.std(values) / np.sqrt(80)
    assert abs(np.mean(values)) < 3 * error
    assert np.mean(biased) > 5 * error
    assert covered >= 70


def test_interval_leaves_zero_out_for_different_sets_and_shrinks_with_n() -> None:
    g = np.random.default_rng(5)
    widths = []
    for n in (60, 600):
        x, y = g.normal(size=(n, 4)), g.normal(size=(n, 4)) + 1
        found = kernel(Rows.of(x), Rows.of(y))["KD"]
        assert found.low > 0
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


def test_small_sets_are_refused_and_small_classes_left_out() -> None:
    x, y = _two_sets(MIN_ROWS - 1)
    found = kernel(Rows.of(x), Rows.of(y))["KD"]
    assert found.value is None
    assert "at least 20" in str(found.refused)
    x, y = _two_sets(40, 40)
    labels, mix = np.array([0] * 39 + [1]), np.array([0.97, 0.03])
    found = kernel(Rows.of(x, labels, mix), Rows.of(y, np.repeat([0, 1], 20), mix))["KD"]
    assert (found.n_synthetic, found.n_reference) == (39, 20)
    assert found.extra == {"classes_dropped": 1, "weight_used": 0.97}
    assert found.value == pytest.approx(kernel_distance(x[:39], y[:20]), rel=1e-10)


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """A short form of benchmarks/interval_coverage.py."""
    g = np.random.default_rng(6)
    d, n, shift = 8, 160, 0.7
    # one dimension is shifted: E (x.y/d + 1)^3 of normal distributions, by the mean over many samples
    big = g.normal(size=(4000, d)), g.normal(size=(4000, d)) + shift * np.eye(d)[0]
    truth, values = kernel_distance(*big), []
    for _ in range(80):
        x, y = g.normal(size=(n, d)), g.normal(size=(n, d)) + shift * np.eye(d)[0]
        e = kernel(Rows.of(x), Rows.of(y))["KD"]
        values.append((e.value, e.low, e.high))
    value, low, high = np.array(values, dtype=float).T
    assert abs(value.mean() - truth) < 0.3 * value.std()
    assert 0.88 <= ((low <= truth) & (truth <= high)).mean() <= 1


def test_classes_that_cannot_be_paired_are_said_and_refused_where_they_matter() -> None:
    g = np.random.default_rng(7)
    z, mix = np.r_[np.zeros(50, int), np.arange(1, 21)], np.full(21, 1 / 21)
    real = g.normal(size=(840, 3))
    found = kernel(Rows.of(g.normal(size=(70, 3)), z, mix), Rows.of(real, np.arange(840) % 21, mix))["KD"]
    assert found.value is None
    assert "20 classes have fewer than 2 images" in str(found.refused)
    assert "95 % of the weight" in str(found.refused)


def test_a_part_keeps_pairs_of_every_class() -> None:
    g = np.random.default_rng(8)
    z = np.repeat(np.arange(30), np.maximum(2, 200 // (1 + np.arange(30))))
    mix = np.bincount(z) / len(z)
    x, y = Rows.of(g.normal(size=(len(z), 3)), z, mix), Rows.of(g.normal(size=(len(z), 3)) + (z > 15)[:, None], z, mix)
    found = kernel(x, y, max_rows=90)["KD"]
    assert found.n_synthetic == 90
    assert found.extra == {}
    rare = (z <= 15) * 1.0  # the rare classes count, however few rows are used
    same = Rows.of(g.normal(size=(len(z), 3)) * rare[:, None] + (1 - rare)[:, None] * 9, z, mix)
    assert kernel(x, same, max_rows=90)["KD"].value > 100 * abs(found.value)
