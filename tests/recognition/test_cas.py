"""Classification accuracy score: what a classifier learns from synthetic images alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.cas import MIN_SYNTHETIC, classification_accuracy_score
from imbdiff.recognition.plan import FitPlan
from tests.recognition.conftest import make_set

PLAN = FitPlan(steps=40, batch_size=24)


def _cas(synthetic: ImageSet, prepared: Any, **options: Any) -> dict[str, Any]:
    found, _ = classification_accuracy_score(
        synthetic, prepared.train, prepared.test, prepared.groups, PLAN, **options
    )  # fmt: skip
    report: dict[str, Any] = {"numbers": [], "baselines": [], "classes": {"metrics": []}}
    found.into(report)
    return report


def _row(rows: list[dict[str, Any]], scope: str) -> dict[str, Any]:
    (row,) = [r for r in rows if r["scope"] == scope]
    return row


def test_good_images_teach_and_mislabelled_ones_do_not(prepared: Any) -> None:
    good = make_set((30, 30, 30), 7)
    wrong = ImageSet(good.images, (good.labels + 1) % 3, good.class_names)
    high, low = (_row(_cas(s, prepared, seeds=(0, 1))["numbers"], "all") for s in (good, wrong))
    assert high["value"] > 0.8
    assert low["value"] < 0.2
    assert high["low"] <= high["value"] <= high["high"]
    assert (high["n_synthetic"], high["n_reference"], high["metric"]) == (90, 90, "CAS")


def test_one_image_over_and_over_teaches_less_than_its_agreement_says(prepared: Any) -> None:
    rich = make_set((30, 30, 30), 7)
    rows = [np.flatnonzero(rich.labels == k)[0] for k in (0, 1, 2)]
    poor = rich.select(np.repeat(rows, 30))
    a, b = (_row(_cas(s, prepared, seeds=(0, 1, 2))["numbers"], "all")["value"] for s in (rich, poor))
    assert b < a - 0.1


def test_classes_without_synthetic_images_are_left_out_of_both(prepared: Any) -> None:
    found = _cas(make_set((0, 30, 30), 7), prepared, seeds=(0,))
    whole, real = _row(found["numbers"], "all"), _row(found["baselines"], "all")
    assert (whole["classes_left_out"], whole["n_reference"], real["n_reference"]) == (1, 60, 60)
    assert real["n_synthetic"] == 14
    refused = _row(found["numbers"], "many")
    assert refused["value"] is None
    assert str(MIN_SYNTHETIC) in refused["refused"]
    columns = {c["of"]: c for c in found["classes"]["metrics"]}
    assert columns["synthetic"]["value"][0] is None
    assert np.mean(columns["synthetic"]["value"][1:]) == pytest.approx(whole["value"], abs=1e-5)
    nothing = _cas(make_set((0, 0, 30), 7), prepared, seeds=(0,))
    assert "two classes" in _row(nothing["numbers"], "all")["refused"]


def test_repeats_to_the_digit_and_counts_its_trainings(prepared: Any) -> None:
    told: list[tuple[int, int]] = []
    one = _cas(make_set((30, 30, 30), 7), prepared, seeds=(0, 1), progress=lambda d, n: told.append((d, n)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert one == _cas(make_set((30, 30, 30), 7), prepared, seeds=(0, 1))
