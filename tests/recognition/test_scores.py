"""Scores against scikit-learn and published numbers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from imbdiff.data.stats import Groups
from imbdiff.recognition.scores import _balance, scores, spread

GROUPS = Groups(("many", "medium", "few"), (0, 0, 1, 2, 2), "made up")
ALL = (True,) * 5


def _sample(seed: int, sizes: tuple[int, ...] = (60, 40, 30, 20, 5)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions that favour class 0 and never name class 3."""
    g = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), sizes)
    predicted = np.where(g.random(len(labels)) < 0.6, labels, g.choice([0, 0, 1, 2, 4], len(labels)))
    predicted[predicted == 3] = 0
    return predicted, labels, g.uniform(0.3, 1, len(labels))


@pytest.mark.parametrize("claimable", [ALL, (True, False, True, True, True)])
def test_equal_to_sklearn_over_claimable_classes(claimable: tuple[bool, ...]) -> None:
    predicted, labels, _ = _sample(0)
    found = scores(predicted, labels, GROUPS, claimable)
    chosen = [k for k in range(5) if claimable[k]]
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    recall = recall_score(labels, predicted, labels=chosen, average="macro")
    assert found["balanced_accuracy"] == pytest.approx(recall)
    options: dict[str, Any] = {"labels": chosen, "average": "macro", "zero_division": 0}
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, **options))
    assert found["macro_precision"] == pytest.approx(precision_score(labels, predicted, **options))
    assert found["macro_f1"] != pytest.approx(found["macro_precision"])


def test_a_class_never_predicted_counts_as_zero_and_one_without_images_not_at_all() -> None:
    labels = np.array([0, 0, 0, 1, 2])
    groups = Groups(("many", "few"), (0, 1, 1, 1), "made up")
    found = scores(np.array([0, 0, 1, 1, 0]), labels, groups, (True,) * 4)
    # precision 2/3, 1/2, 0 (never predicted); class 3 has no image
    assert found["macro_precision"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((4 / 6 + 2 / 3 + 0) / 3)
    assert found["per_class"] == [pytest.approx(2 / 3), 1.0, 0.0, None]


@pytest.mark.parametrize(("groups", "published"), [((65.2, 49.3, 26.9), 15.7), ((63.7, 51.3, 31.1), 13.4)])
def test_balance_of_groups_is_the_std_of_published_tables(groups: tuple[float, ...], published: float) -> None:
    assert round(_balance(groups) or 0, 1) == published
    # the same through predictions: 1,000 images per group, one class each
    labels = np.repeat(np.arange(3), 1000)
    right = np.concatenate([np.arange(1000) < 10 * g for g in groups])
    three = Groups(("many", "medium", "few"), (0, 1, 2), "made up")
    found = scores(np.where(right, labels, (labels + 1) % 3), labels, three, (True,) * 3)
    assert [round(100 * v, 1) for v in found["groups"].values()] == list(groups)
    assert round(100 * found["group_sd"], 1) == published


def test_balance_needs_every_group_and_more_than_one() -> None:
    predicted, labels, _ = _sample(1)
    assert scores(predicted, labels, GROUPS, (True, True, True, False, False))["group_sd"] is None
    assert scores(predicted, labels, Groups(("all",), (0,) * 5, "one"), ALL)["group_sd"] is None
    # a group without classes is no group that lacks an accuracy
    empty = Groups(("many", "medium", "few"), (0, 0, 0, 2, 2), "made up")
    assert scores(predicted, labels, empty, ALL)["group_sd"] is not None


def test_group_accuracy_counts_every_image_once() -> None:
    predicted, labels, _ = _sample(2)
    found = scores(predicted, labels, GROUPS, ALL)
    few = np.isin(labels, [3, 4])
    assert found["groups"]["few"] == pytest.approx((predicted == labels)[few].mean())
    assert found["groups"]["few"] != pytest.approx(np.mean(found["per_class"][3:]))


def test_calibration_by_group_is_over_its_claimable_images_and_overall_over_all() -> None:
    predicted, labels, confidence = _sample(3)
    claimable = (True, True, True, True, False)
    found = scores(predicted, labels, GROUPS, claimable, confidence)
    few = labels == 3  # never predicted: always wrong
    assert found["ece_by_group"]["few"] == pytest.approx(confidence[few].mean())
    assert sum(row["n"] for row in found["reliability"]) == len(labels)
    assert 0 < found["ece_chance"] < 0.2
    flipped = scores(predicted, labels, GROUPS, claimable, (predicted == labels).astype(float))
    assert flipped["ece"] == 0
    assert flipped["ece_by_group"] == {"many": 0.0, "medium": 0.0, "few": 0.0}
    assert "ece" not in scores(predicted, labels, GROUPS, claimable)
    none = scores(predicted, labels, GROUPS, (True, True, True, False, False), confidence)
    assert none["ece_by_group"]["few"] is None


def test_spread_covers_every_number_and_survives_missing_ones() -> None:
    runs = []
    for seed in range(3):
        predicted, labels, confidence = _sample(seed)
        runs.append(scores(predicted, labels, GROUPS, (True, True, True, True, False), confidence))
    found = spread(runs)
    json.dumps(found, allow_nan=False)
    for key in ("accuracy", "group_sd", "macro_f1", "macro_precision", "ece", "ece_chance"):
        values = [run[key] for run in runs]
        assert found["mean"][key] == pytest.approx(np.mean(values))
        assert found["sd"][key] == pytest.approx(np.std(values, ddof=1))
    assert found["mean"]["per_class"][4] is found["sd"]["per_class"][4] is None
    few = [run["ece_by_group"]["few"] for run in runs]
    assert found["mean"]["ece_by_group"]["few"] == pytest.approx(np.mean(few))
    assert sum(row["n"] for row in found["mean"]["reliability"]) == 3 * 155
    assert "reliability" not in found["sd"]
    # a number that one run lacks is not made up, and neither is calibration that one run lacks
    broken = [{**runs[0], "group_sd": None}, *runs[1:]]
    assert spread(broken)["mean"]["group_sd"] is None
    assert "ece" not in spread([{k: v for k, v in runs[0].items() if "ece" not in k}, runs[1]])["mean"]
    alone = spread(runs[:1])
    assert alone["mean"]["macro_f1"] == runs[0]["macro_f1"]
    assert alone["sd"]["macro_f1"] is None


def test_nothing_claimable_and_no_images() -> None:
    predicted, labels, confidence = _sample(4)
    found = scores(predicted, labels, GROUPS, (False,) * 5, confidence)
    assert found["macro_f1"] is found["macro_precision"] is found["balanced_accuracy"] is found["group_sd"] is None
    assert found["accuracy"] is not None
    empty = np.zeros(0, np.int64)
    found = scores(empty, empty, GROUPS, ALL, np.zeros(0))
    assert found["accuracy"] is found["ece"] is found["macro_f1"] is None
