"""Reliability against a literal loop, torchmetrics, and simulated classifiers that say the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from imbdiff.recognition.calibration import BINS, calibration_error, chance_error, pooled, reliability
from imbdiff.runtime.errors import DataError


def _sample(n: int, seed: int, lift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    p = g.uniform(0.2, 0.99, n)
    return p, g.random(n) < p + lift


def test_error_equals_torchmetrics_and_a_literal_loop() -> None:
    p, right = _sample(700, 0, lift=-0.2)
    rows = reliability(p, right)
    assert len(rows) == BINS == 15
    found = calibration_error(rows)
    total = 0.0
    for b in range(15):
        mine = [i for i in range(700) if b / 15 < p[i] <= (b + 1) / 15]
        assert rows[b]["n"] == len(mine)
        if mine:
            gap = sum(right[i] for i in mine) / len(mine) - sum(p[i] for i in mine) / len(mine)
            total += len(mine) / 700 * abs(gap)
    assert found == pytest.approx(total, abs=1e-12)
    # its binary form takes the probability of 1 and compares it with how often the target is 1
    theirs = binary_calibration_error(torch.tensor(p), torch.tensor(right).long(), n_bins=15, norm="l1")
    assert found == pytest.approx(theirs.item(), abs=1e-6)


def test_the_upper_end_belongs_to_its_bin_and_zero_to_the_first() -> None:
    ends = np.linspace(0, 1, 16)
    rows = reliability(ends, np.ones(16, bool))
    assert [row["n"] for row in rows] == [2] + [1] * 14
    assert rows[1] == {"n": 1, "confidence": pytest.approx(2 / 15), "accuracy": 1.0}
    empty = reliability(np.array([0.5]), np.array([True]))
    assert empty[0] == {"n": 0, "confidence": None, "accuracy": None}
    assert calibration_error(empty) == pytest.approx(0.5)


def test_too_sure_and_too_unsure_both_count() -> None:
    p = np.array([0.95] * 10 + [0.35] * 10)
    right = np.array([True] * 8 + [False] * 2 + [True] * 8 + [False] * 2)
    assert calibration_error(reliability(p, right)) == pytest.approx((0.15 + 0.45) / 2)


def test_chance_error_is_what_truthful_classifiers_have() -> None:
    g = np.random.default_rng(1)
    centres = (np.arange(15) + 0.5) / 15
    p = np.repeat(centres, np.arange(3, 18))
    rows = reliability(p, np.zeros(len(p), bool))
    drawn = [calibration_error(reliability(p, g.random(len(p)) < p)) for _ in range(1500)]
    assert chance_error(rows) == pytest.approx(np.mean([d for d in drawn if d is not None]), rel=0.02)
    # one image: 2 p (1 - p)
    assert chance_error(reliability(np.array([0.7]), np.array([True]))) == pytest.approx(0.42)
    assert chance_error(reliability(np.array([1.0]), np.array([True]))) == 0


def test_pooled_bins_are_those_of_all_images_together() -> None:
    parts = [_sample(n, n) for n in (40, 90, 7)]
    together = reliability(np.concatenate([p for p, _ in parts]), np.concatenate([r for _, r in parts]))
    found = pooled([reliability(p, right) for p, right in parts])
    for row, one in zip(found, together, strict=True):
        assert row["n"] == one["n"]
        for key in ("confidence", "accuracy"):
            assert row[key] == (None if one[key] is None else pytest.approx(one[key]))


def test_no_images_and_what_is_no_probability() -> None:
    nothing = reliability(np.zeros(0), np.zeros(0, bool))
    assert calibration_error(nothing) is None
    assert chance_error(nothing) is None
    assert reliability(np.array([1 + 1e-7], np.float32), np.array([True]))[-1]["n"] == 1
    for bad in (1.2, -0.1, math.nan):
        with pytest.raises(DataError, match="no probability"):
            reliability(np.array([0.5, bad]), np.array([True, False]))
    with pytest.raises(DataError, match="2 confidences for 3"):
        reliability(np.array([0.5, 0.5]), np.ones(3, bool))
