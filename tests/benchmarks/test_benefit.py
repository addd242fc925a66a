"""Numbers of the benchmark of benefit: means over classes, paired, against a direct calculation."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import ClassStats, Groups

NAMES = ("a", "b", "c")


@dataclass
class Data:
    test: ImageSet
    groups: Any
    claimable: tuple[bool, ...] = (True, True, True)


@pytest.fixture(scope="module")
def benefit() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        return importlib.import_module("benefit")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def data() -> list[Data]:
    rng = np.random.default_rng(0)
    groups = Groups.by_threshold(ClassStats(NAMES, (200, 50, 3)))
    made = []
    for counts in ((40, 20, 5), (30, 30, 9), (44, 10, 7)):
        labels = np.repeat(np.arange(3), counts)
        made.append(Data(ImageSet(rng.integers(0, 256, (len(labels), 2, 2, 1), dtype=np.uint8), labels, NAMES), groups))
    return made


def probabilities(data: Data, seed: int) -> np.ndarray:
    p = np.random.default_rng(seed).random((len(data.test), 3))
    p[np.arange(len(p)), data.test.labels] += 0.4
    return p


def class_mean(p: np.ndarray, labels: np.ndarray, classes: list[int]) -> float:
    hit = p.argmax(1) == labels
    return float(np.mean([hit[labels == k].mean() for k in classes]))


@pytest.mark.parametrize(("scope", "classes"), [("all", [0, 1, 2]), ("few", [2])])
def test_the_difference_is_that_of_the_mean_over_classes(
    benefit: Any, data: list[Data], scope: str, classes: list[int]
) -> None:
    a, b = [probabilities(d, 1) for d in data], [probabilities(d, 2) for d in data]
    expected = [
        100 * (class_mean(x, d.test.labels, classes) - class_mean(y, d.test.labels, classes))
        for x, y, d in zip(a, b, data, strict=True)
    ]
    found = benefit.difference(a, b, data, scope)
    assert found["difference"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert found["splits above 0"] == sum(e > 0 for e in expected)
    # Student's over three splits, t = 4.3027, or wider where test images alone make it so
    assert found["high"] - found["difference"] >= 4.3026 * np.std(expected, ddof=1) / np.sqrt(3) - 1e-9
    swapped = benefit.difference(b, a, data, scope)
    assert (swapped["low"], swapped["high"]) == pytest.approx((-found["high"], -found["low"]))


def test_arms_differ_from_their_controls_by_one_thing(benefit: Any) -> None:
    with_, placebo, strong = benefit.WITH, benefit.PLACEBO, benefit.STRONG
    assert (placebo.use, placebo.changes, placebo.recipe) == (with_.use, with_.changes, with_.recipe)
    assert placebo.placebo
    assert not placebo.needs_synthetic
    assert (strong.changes, strong.use) == (with_.changes, None)
    assert benefit.COMPARED[0] == ("2 without + 2 with", "4 without")
    assert [len(benefit.ARMS[name].networks(0)) for name in benefit.COMPARED[0]] == [4, 4]
