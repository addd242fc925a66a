"""Inception score against torchmetrics, a loop, and known answers."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
import torch

from imbdiff.metrics.inception_score import inception_score, inception_score_measure
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.runtime.errors import DataError


def loop(p: list[list[float]]) -> float:
    marginal = [sum(column) / len(p) for column in zip(*p, strict=True)]
    return exp(sum(sum(a * log(a / m) for a, m in zip(row, marginal, strict=True) if a > 0) for row in p) / len(p))


def test_equals_a_loop_over_the_authors_splits() -> None:
    p = np.random.default_rng(0).dirichlet(np.full(5, 0.3), 47)
    p[3] = np.eye(5)[2]
    parts = [p[i * 47 // 4 : (i + 1) * 47 // 4].tolist() for i in range(4)]
    scores = [loop(part) for part in parts]
    assert inception_score(p, 4) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_equals_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fed logits, its shuffle taken out. Its deviation divides by the number of splits less one."""
    from torchmetrics.image.inception import InceptionScore

    logits = torch.randn(60, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    metric = InceptionScore(feature=torch.nn.Identity(), splits=5)
    metric.features = [logits]
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n))
    mean, deviation = metric.compute()
    mine = inception_score(logits.softmax(1).numpy(), 5)
    assert mine[0] == pytest.approx(float(mean), rel=1e-9)
    assert mine[1] * (5 / 4) ** 0.5 == pytest.approx(float(deviation), rel=1e-9)


def test_known_answers() -> None:
    sure = np.eye(4)[np.arange(80) % 4]
    assert inception_score(sure, 10) == (pytest.approx(4), pytest.approx(0))
    assert inception_score(np.full((80, 4), 0.25), 10) == (pytest.approx(1), pytest.approx(0))
    # rows sorted by class: each split has one class only
    assert inception_score(sure[np.argsort(np.arange(80) % 4, kind="stable")], 4)[0] == pytest.approx(1)


def measured(p: np.ndarray, labels: np.ndarray | None = None, mix: np.ndarray | None = None, **how: int) -> Estimate:
    """The number of probabilities that are their own features."""
    rows = Rows.of(p, labels, mix, probabilities=p)
    return inception_score_measure(rows, rows, **how)["IS"]


def test_measure_puts_classes_into_all_splits_and_counts_weights() -> None:
    labels = np.repeat(np.arange(2), [400, 200])
    x, mix = np.random.default_rng(1).normal(size=(600, 3)), np.array([0.5, 0.5])
    rows = Rows.of(x, labels, mix, probabilities=np.eye(2)[labels])
    e = inception_score_measure(rows, rows)["IS"]
    # unweighted it would be exp(H(1/3)) = 1.89; sorted by class, 1 in nearly all splits
    assert e.value == pytest.approx(2, abs=0.03)
    assert (e.n_synthetic, e.n_reference, e.extra["splits"]) == (600, 0, 10)
    assert inception_score_measure(rows, rows, splits=1)["IS"].value == pytest.approx(2, rel=1e-12)
    assert inception_score_measure(rows, rows.part(200))["IS"].n_synthetic == 200


def test_measure_with_one_split_is_the_function_and_its_interval_holds_the_expectation() -> None:
    values, intervals = [], []
    for i in range(60):
        p = np.random.default_rng(i).dirichlet(np.full(4, 0.3), 400)
        e = measured(p)
        values.append(e.value)
        intervals.append((e.low, e.high))
        if i == 0:
            assert measured(p, splits=1).value == pytest.approx(inception_score(p, 1)[0], rel=1e-12)
    mean = np.mean(values)
    assert np.mean([low <= mean <= high for low, high in intervals]) >= 0.88
    assert np.mean([high - low for low, high in intervals]) < 6 * np.std(values)


def test_what_is_no_probability_or_too_few_is_refused() -> None:
    e = measured(np.full((79, 2), 0.5))
    assert e.value is None
    assert "at least 80 images; here 79" in str(e.refused)
    assert measured(np.full((99, 2), 0.5)).value == pytest.approx(1)
    for p in (np.full((99, 2), 0.6), np.full((99, 2), np.nan), np.full(99, 0.5), np.tile([1.5, -0.5], (99, 1))):
        with pytest.raises(DataError, match="probabilities"):
            inception_score(p)
    with pytest.raises(DataError, match="splits"):
        inception_score(np.full((3, 2), 0.5), 4)
