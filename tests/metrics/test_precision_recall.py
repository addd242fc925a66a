"""Precision and recall against prdc, against brute force with groups left out, and on geometry with a known answer.

torch-fidelity returns the two exchanged where its first input is the synthetic set (its `input1` is the real one), so
the direction is tested by geometry, not against that package.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from imbdiff.metrics.neighbour_measures import neighbour_measures
from imbdiff.metrics.precision_recall import precision_recall, precision_recall_measure
from imbdiff.metrics.rows import Rows
from imbdiff.metrics.statistics import jackknife_half_width, wilson
from imbdiff.runtime.errors import DataError


def prdc(real: np.ndarray, fake: np.ndarray, k: int) -> dict[str, float]:
    from prdc import compute_prdc

    with contextlib.redirect_stdout(io.StringIO()):
        return compute_prdc(real, fake, k)


@pytest.mark.parametrize(("n", "m", "dim", "k"), [(200, 170, 4, 3), (150, 300, 64, 5), (90, 90, 1, 1)])
def test_equals_prdc(n: int, m: int, dim: int, k: int) -> None:
    g = np.random.default_rng(n)
    real, fake = g.normal(size=(n, dim)), 0.8 * g.normal(size=(m, dim)) + 0.2
    theirs = prdc(real, fake, k)
    assert precision_recall(real, fake, k) == pytest.approx((theirs["precision"], theirs["recall"]), abs=1e-12)


def test_tight_fakes_in_a_wide_cloud_are_precise_and_recall_little_and_the_reverse() -> None:
    g = np.random.default_rng(0)
    wide, tight = g.normal(size=(400, 3)), 0.05 * g.normal(size=(400, 3))
    precision, recall = precision_recall(wide, tight)
    assert precision > 0.95
    assert recall < 0.05
    precision, recall = precision_recall(tight, wide)
    assert precision < 0.05
    assert recall > 0.95


def test_a_lost_mode_costs_recall_and_not_precision() -> None:
    g = np.random.default_rng(0)
    real = g.normal(size=(400, 4)) + 20 * (np.arange(400) % 2)[:, None]
    fake = g.normal(size=(400, 4))
    precision, recall = precision_recall(real, fake)
    both = precision_recall(real, g.normal(size=(400, 4)) + 20 * (np.arange(400) % 2)[:, None])
    assert recall < 0.55 < 0.8 < both[1]
    assert precision > both[0] - 0.1


def test_a_point_on_the_edge_is_inside() -> None:
    # radii of the real points at k = 1: 1, 1, 2
    real, fake = np.array([[0.0], [1.0], [3.0]]), np.array([[5.0], [-1.0], [5.1], [5.2]])
    precision, _ = precision_recall(real, fake, 1)
    assert precision == 0.5


def brute(
    fake: np.ndarray, real: np.ndarray, wf: np.ndarray, wr: np.ndarray, k: int, dense_k: int
) -> tuple[float, float, float, float]:
    d = ((real[:, None] - fake[None]) ** 2).sum(axis=2)

    def radii(x: np.ndarray, k: int) -> np.ndarray:
        return np.sort(((x[:, None] - x[None]) ** 2).sum(axis=2), axis=1)[:, k]

    r, dense, s = radii(real, k), radii(real, dense_k), radii(fake, k)
    return (
        float(wf @ (d <= r[:, None]).any(axis=0)),
        float(wr @ (d <= s).any(axis=1)),
        float(wf @ (d <= dense[:, None]).sum(axis=0)) / dense_k,
        float(wr @ (d <= dense[:, None]).any(axis=1)),
    )


@pytest.mark.parametrize("ties", [False, True])
def test_measure_equals_brute_force_with_every_group_left_out(ties: bool) -> None:
    g = np.random.default_rng(5)
    x, y = g.normal(size=(90, 3)), 1.2 * g.normal(size=(75, 3)) + 0.3
    if ties:
        x, y = np.round(x), np.round(y)
    real = Rows.of(x, g.integers(0, 2, 90), np.array([0.3, 0.7]))
    fake = Rows.of(y, g.integers(0, 2, 75), np.array([0.3, 0.7]))
    wf, wr, fx, rx = fake.left_out_weights(), real.left_out_weights(), fake.array, real.array
    whole = brute(fx, rx, wf[:, -1], wr[:, -1], 3, 5)
    left: list[list[tuple[float, ...]]] = [[], []]
    for group in range(20):
        kf, kr = fake.groups() != group, real.groups() != group
        left[0].append(brute(fx[kf], rx, wf[kf, group], wr[:, -1], 3, 5))
        left[1].append(brute(fx, rx[kr], wf[:, -1], wr[kr, group], 3, 5))
    found = neighbour_measures(fake, real)
    assert list(found) == ["precision", "recall", "density", "coverage"]
    for i, (name, rows) in enumerate(zip(found, (fake, real, fake, real), strict=True)):
        e = found[name]
        half = jackknife_half_width([[values[i] for values in side] for side in left])
        assert e.value == pytest.approx(whole[i], abs=1e-12)
        assert (e.n_synthetic, e.n_reference) == (75, 90)
        low, high = whole[i] - half, whole[i] + half
        if "density" not in name:
            w = wilson(min(1.0, whole[i]) * rows.effective, rows.effective)
            low, high = max(0.0, min(low, w[0])), min(1.0, max(high, w[1]))
        assert (e.low, e.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_weights_move_precision_to_the_class_that_counts() -> None:
    g = np.random.default_rng(6)
    labels = np.repeat([0, 1], 60)
    real = g.normal(size=(120, 2)) + 50 * labels[:, None]
    # class 1 of the fakes lies nowhere
    fake = g.normal(size=(120, 2)) + 500 * labels[:, None]
    for share in (0.2, 0.9):
        mix = np.array([1 - share, share])
        found = precision_recall_measure(Rows.of(fake, labels, mix), Rows.of(real, labels, mix))
        e = found["precision"]
        assert e.value is not None
        assert (1 - share) * 0.85 < e.value <= 1 - share


def test_order_and_chunks_change_nothing() -> None:
    g = np.random.default_rng(7)
    x, y = g.normal(size=(130, 5)).astype(np.float32), g.normal(size=(110, 5)).astype(np.float32)
    order = g.permutation(130)
    a = neighbour_measures(Rows.of(y), Rows.of(x), cap=100)
    b = neighbour_measures(Rows.of(y[::-1]), Rows.of(x[order]), cap=100, chunk=9)
    for name, e in a.items():
        assert (e.value, e.low, e.high) == pytest.approx((b[name].value, b[name].low, b[name].high), abs=1e-12)
        assert (e.n_synthetic, e.n_reference) == (100, 100)


def test_all_alike_has_an_interval_of_some_width_and_few_rows_are_refused() -> None:
    x = np.random.default_rng(8).normal(size=(60, 2))
    e = precision_recall_measure(Rows.of(x), Rows.of(x))["precision"]
    assert (e.value, e.high) == (pytest.approx(1.0), 1.0)
    assert e.low == pytest.approx(wilson(60, 60)[0])
    refused = neighbour_measures(Rows.of(x[:49]), Rows.of(x), k=4)
    assert refused["recall"].value is None
    assert refused["recall"].refused == "at least 50 images in both sets are needed; here 49 and 60"
    assert "at least 62" in str(precision_recall_measure(Rows.of(x), Rows.of(x), k=30)["recall"].refused)


def test_intervals_hold_the_expectation_at_this_n() -> None:
    """Short form of `benchmarks/neighbours.py coverage`."""
    g = np.random.default_rng(9)
    runs = [
        neighbour_measures(Rows.of(0.8 * g.normal(size=(60, 3))), Rows.of(g.normal(size=(60, 3)))) for _ in range(60)
    ]
    for name in runs[0]:
        mean = np.mean([run[name].value for run in runs])
        assert np.mean([run[name].low <= mean <= run[name].high for run in runs]) >= 0.9, name
        assert np.mean([run[name].high - run[name].low for run in runs]) < 0.9, name


def test_left_out_weights_keep_the_class_mix() -> None:
    labels = np.r_[np.zeros(50, int), np.ones(30, int), 2]
    mix = np.array([0.2, 0.5, 0.3])
    rows = Rows.of(np.arange(81.0)[:, None], labels, mix)
    w = rows.left_out_weights()
    assert w.shape == (81, 21)
    for g in range(20):
        assert (w[rows.groups() == g, g] == 0).all()
        share = np.bincount(rows.labels, w[:, g])
        alone = rows.groups()[-1] == g
        assert share == pytest.approx([2 / 7, 5 / 7, 0] if alone else mix, abs=1e-12)
    assert w[:, -1] == pytest.approx(rows.weights)


def test_sets_of_other_features_are_refused() -> None:
    with pytest.raises(DataError, match=r"9 x 2 fake .* 9 x 3 real"):
        precision_recall(np.zeros((9, 3)), np.zeros((9, 2)))
    with pytest.raises(DataError, match="0 x 3 fake"):
        precision_recall(np.zeros((9, 3)), np.zeros((0, 3)))
