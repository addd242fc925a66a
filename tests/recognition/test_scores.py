"""Scores and calibration against scikit-learn, torchmetrics, literal loops and published numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from torchmetrics.functional.classification import binary_calibration_error

from imbdiff.data.stats import Groups
from imbdiff.recognition.scores import Scores, calibration_error, chance_error, mean_of, reliability, scores, sd_of
from imbdiff.runtime.errors import DataError

GROUPS = Groups(("many", "medium", "few"), (0, 0, 1, 2, 2), "made up")
ALL = (True,) * 5


def _predictions(seed: int, sizes: tuple[int, ...] = (60, 40, 30, 20, 5)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions that favour class 0 and never name class 3."""
    g = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), sizes)
    predicted = np.where(g.random(len(labels)) < 0.6, labels, g.choice([0, 0, 1, 2, 4], len(labels)))
    predicted[predicted == 3] = 0
    return predicted, labels, g.uniform(0.3, 1, len(labels))


@pytest.mark.parametrize("claimable", [ALL, (True, False, True, True, True)])
def test_equal_to_sklearn_over_claimable_classes(claimable: tuple[bool, ...]) -> None:
    predicted, labels, _ = _predictions(0)
    found = scores(predicted, labels, GROUPS, claimable)
    chosen = [k for k in range(5) if claimable[k]]
    assert found.accuracy == pytest.approx(accuracy_score(labels, predicted))
    recall = recall_score(labels, predicted, labels=chosen, average="macro")
    assert found.balanced_accuracy == pytest.approx(recall)
    options: dict[str, Any] = {"labels": chosen, "average": "macro", "zero_division": 0}
    assert found.macro_f1 == pytest.approx(f1_score(labels, predicted, **options))
    assert found.macro_precision == pytest.approx(precision_score(labels, predicted, **options))
    assert found.macro_f1 != pytest.approx(found.macro_precision)


def test_a_class_never_predicted_counts_as_zero_and_one_without_images_not_at_all() -> None:
    labels = np.array([0, 0, 0, 1, 2])
    groups = Groups(("many", "few"), (0, 1, 1, 1), "made up")
    found = scores(np.array([0, 0, 1, 1, 0]), labels, groups, (True,) * 4)
    # precision 2/3, 1/2, 0 (never predicted); class 3 has no image
    assert found.macro_precision == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found.macro_f1 == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
    assert found.per_class == [pytest.approx(2 / 3), 1.0, 0.0, None]


@pytest.mark.parametrize(("groups", "published"), [((65.2, 49.3, 26.9), 15.7), ((63.7, 51.3, 31.1), 13.4)])
def test_balance_of_groups_is_the_std_of_published_tables(groups: tuple[float, ...], published: float) -> None:
    # 1,000 images per group, one class each
    labels = np.repeat(np.arange(3), 1000)
    right = np.concatenate([np.arange(1000) < 10 * g for g in groups])
    three = Groups(("many", "medium", "few"), (0, 1, 2), "made up")
    found = scores(np.where(right, labels, (labels + 1) % 3), labels, three, (True,) * 3)
    assert [round(100 * v, 1) for v in found.groups.values()] == list(groups)
    assert round(100 * found.group_sd, 1) == published


def test_balance_needs_every_group_and_more_than_one() -> None:
    predicted, labels, _ = _predictions(1)
    assert scores(predicted, labels, GROUPS, (True, True, True, False, False)).group_sd is None
    assert scores(predicted, labels, Groups(("all",), (0,) * 5, "one"), ALL).group_sd is None
    # a group without classes is no group that lacks an accuracy
    empty = Groups(("many", "medium", "few"), (0, 0, 0, 2, 2), "made up")
    assert scores(predicted, labels, empty, ALL).group_sd is not None


def test_group_accuracy_counts_every_image_once() -> None:
    predicted, labels, _ = _predictions(2)
    found = scores(predicted, labels, GROUPS, ALL)
    few = np.isin(labels, [3, 4])
    assert found.groups["few"] == pytest.approx((predicted == labels)[few].mean())
    assert found.groups["few"] != pytest.approx(np.mean(found.per_class[3:]))


def test_mean_and_spread_cover_every_number_and_survive_missing_ones() -> None:
    runs = []
    for seed in range(3):
        predicted, labels, confidence = _predictions(seed)
        runs.append(scores(predicted, labels, GROUPS, (True, True, True, True, False), confidence))
    mean, sd = mean_of(runs), sd_of(runs)
    json.dumps([mean.to_json(), sd.to_json()], allow_nan=False)
    assert Scores.from_json(json.loads(json.dumps(mean.to_json()))) == mean
    for key in ("accuracy", "group_sd", "macro_f1", "macro_precision", "ece", "ece_chance"):
        values = [getattr(run, key) for run in runs]
        assert getattr(mean, key) == pytest.approx(np.mean(values))
        assert getattr(sd, key) == pytest.approx(np.std(values, ddof=1))
    assert mean.per_class[4] is sd.per_class[4] is None
    # a number that one run lacks is not made up, and neither is calibration that one run lacks
    assert mean_of([replace(runs[0], group_sd=None), *runs[1:]]).group_sd is None
    assert mean_of([replace(runs[0], ece=None), runs[1]]).ece is None
    assert scores(*_predictions(0)[:2], GROUPS, ALL).ece is None
    assert mean_of(runs[:1]).macro_f1 == runs[0].macro_f1
    assert sd_of(runs[:1]).macro_f1 is None


def test_nothing_claimable_and_no_images() -> None:
    predicted, labels, confidence = _predictions(4)
    found = scores(predicted, labels, GROUPS, (False,) * 5, confidence)
    assert found.macro_f1 is found.macro_precision is found.balanced_accuracy is found.group_sd is None
    assert found.accuracy is not None
    empty = np.zeros(0, np.int64)
    found = scores(empty, empty, GROUPS, ALL, np.zeros(0))
    assert found.accuracy is found.ece is found.macro_f1 is None


# -- calibration


def _sample(n: int, seed: int, lift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    p = g.uniform(0.2, 0.99, n)
    return p, g.random(n) < p + lift


def error(p: np.ndarray, right: np.ndarray) -> float | None:
    return calibration_error(*reliability(p, right))


def test_error_equals_torchmetrics_and_a_literal_loop() -> None:
    p, right = _sample(700, 0, lift=-0.2)
    total = 0.0
    for b in range(15):
        mine = [i for i in range(700) if b / 15 < p[i] <= (b + 1) / 15]
        if mine:
            gap = sum(right[i] for i in mine) / len(mine) - sum(p[i] for i in mine) / len(mine)
            total += len(mine) / 700 * abs(gap)
    assert error(p, right) == pytest.approx(total, abs=1e-12)
    # its binary form takes the probability of 1 and compares it with how often the target is 1
    theirs = binary_calibration_error(torch.tensor(p), torch.tensor(right).long(), n_bins=15, norm="l1")
    assert error(p, right) == pytest.approx(theirs.item(), abs=1e-6)


def test_the_upper_end_belongs_to_its_bin_and_zero_to_the_first() -> None:
    ends = np.linspace(0, 1, 16)
    n, confidence, accuracy = reliability(ends, np.ones(16, bool))
    assert n.tolist() == [2] + [1] * 14
    assert (confidence[1], accuracy[1]) == (pytest.approx(2 / 15), 1.0)
    assert error(np.array([0.5]), np.array([True])) == pytest.approx(0.5)


def test_chance_error_is_what_truthful_classifiers_have() -> None:
    g = np.random.default_rng(1)

    def chance(p: np.ndarray) -> float | None:
        return chance_error(*reliability(p, np.zeros(len(p), bool))[:2])

    centres = (np.arange(15) + 0.5) / 15
    p = np.repeat(centres, np.arange(3, 18))
    drawn = [error(p, g.random(len(p)) < p) for _ in range(1500)]
    assert chance(p) == pytest.approx(np.mean([d for d in drawn if d is not None]), rel=0.02)
    # one image: 2 p (1 - p)
    assert chance(np.array([0.7])) == pytest.approx(0.42)
    assert chance(np.array([1.0])) == 0
    assert chance(np.zeros(0)) is error(np.zeros(0), np.zeros(0, bool)) is None


def test_what_is_no_probability() -> None:
    assert reliability(np.array([1 + 1e-7], np.float32), np.array([True]))[0].tolist() == [1]
    for bad in (1.2, -0.1, math.nan):
        with pytest.raises(DataError, match="no probability"):
            reliability(np.array([0.5, bad]), np.array([True, False]))
