"""Intervals where images belong together: as many copies of each image as one likes, as one group, tell no more."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.agreement import agreement
from imbdiff.metrics.copies import Side, tables
from imbdiff.metrics.diversity import diversity
from imbdiff.metrics.evaluate import LEAST_DRAWS, evaluate
from imbdiff.metrics.extractors import RawPixels
from imbdiff.metrics.frechet import frechet
from imbdiff.metrics.inception_score import inception_score_measure
from imbdiff.metrics.kernel import kernel
from imbdiff.metrics.neighbours import neighbour_measures
from imbdiff.metrics.prd import prd_measure
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.recognition.cas import _estimate

N, M = 240, 3
COPIES = np.repeat(np.arange(N), M)


def made(seed: int, index: np.ndarray | None = None, *, together: bool = False, shift: float = 0.0) -> Rows:
    """Rows of two classes, a judge's probabilities and decisions; `index`: of which rows they are copies."""
    g = np.random.default_rng(seed)
    index = np.arange(N) if index is None else index
    x, labels = g.normal(size=(N, 4)) + shift, np.arange(N) % 2
    wrong, p = g.random(N) < 0.3, g.dirichlet([0.5, 0.5], N)
    return Rows.of(
        x[index], labels[index], predicted=(labels ^ wrong)[index], probabilities=p[index],
        hashes=[f"{i:08x}{k:08x}" for k, i in enumerate(index)], together=index if together else None,
    )  # fmt: skip


def width(found: Estimate) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


MEASURES: list[tuple[Any, str]] = [
    (kernel, "KD"), (frechet, "FD∞"), (frechet, "FD"), (diversity, "diversity"), (prd_measure, "F8"),
    (neighbour_measures, "recall"), (neighbour_measures, "coverage"), (neighbour_measures, "precision"),
]  # fmt: skip


@pytest.mark.parametrize(("measure", "name"), MEASURES)
def test_copies_of_reference_images_narrow_no_interval(measure: Any, name: str) -> None:
    fake = made(1, shift=0.4)
    once = measure(fake, made(2))[name]
    grouped, alone = (measure(fake, made(2, COPIES, together=together))[name] for together in (True, False))
    assert width(grouped) > 0.85 * width(once)
    assert width(grouped) > 0.9 * width(alone)
    assert grouped.n_effective < N + 1e-6
    assert alone.n_effective == pytest.approx(N)  # of the synthetic ones: copies without groups count
    single = measure(fake, made(2, np.arange(N), together=True))[name]
    assert (single.value, width(single)) == pytest.approx((once.value, width(once)), rel=0.15)  # each its own group


def test_the_kernel_distance_of_copies_is_that_of_the_images() -> None:
    fake = made(1, shift=0.4)
    once, grouped = kernel(fake, made(2))["KD"], kernel(fake, made(2, COPIES, together=True))["KD"]
    assert (grouped.value, grouped.low, grouped.high) == pytest.approx((once.value, once.low, once.high), rel=1e-9)
    alone = kernel(fake, made(2, COPIES))["KD"]
    assert alone.value is not None
    assert alone.value > grouped.value  # a copy is near to itself


@pytest.mark.parametrize(("measure", "name"), [(agreement, "agreement"), (inception_score_measure, "IS")])
def test_measures_of_one_set(measure: Any, name: str) -> None:
    once, grouped, alone = (
        measure(rows, rows)[name] for rows in (made(2), made(2, COPIES, together=True), made(2, COPIES))
    )
    assert grouped.value == pytest.approx(once.value, rel=0.05)
    assert width(grouped) > 0.7 * width(once)
    assert width(alone) < 0.75 * width(once)


def test_what_belongs_together_is_left_out_together() -> None:
    rows = made(2, COPIES, together=True)
    assert rows.draws == N
    groups = rows.groups()
    assert rows.units is not None
    for unit in range(N):
        assert len(set(groups[rows.units == unit])) == 1
    sizes = np.bincount(groups)
    assert (len(sizes), sizes.max() - sizes.min()) == (20, 0)
    assert rows.select(rows.labels == 1).draws == N // 2


@pytest.mark.parametrize("seeds", [1, 3])
def test_accuracy_of_classifiers_of_synthetic_images(seeds: int) -> None:
    right = np.random.default_rng(0).random((seeds, N)) < 0.7
    every = np.ones(N * M, dtype=bool)
    once = _estimate(right, every[:N], 5)
    grouped, alone = (_estimate(right[:, COPIES], every, 5, of) for of in (COPIES, None))
    assert (grouped.value, grouped.low, grouped.high) == pytest.approx((once.value, once.low, once.high), rel=0.01)
    assert width(alone) < width(grouped)
    assert grouped.n_effective == pytest.approx(N)


def test_closeness_counts_held_out_images_that_belong_together_once() -> None:
    g = np.random.default_rng(0)
    x, y = g.random(60), g.random(40)
    none = np.zeros(200, dtype=bool)
    fake = Side(np.zeros(60, np.int64), x, none[:60], none[:60])
    train = ImageSet(np.zeros((2, 2, 2, 1), np.uint8), np.array([0, 1]), ("a", "b"))
    from imbdiff.data.stats import Groups

    groups, index = Groups(("all",), (0, 0), "one"), np.repeat(np.arange(40), 5)

    def found(of: np.ndarray, together: Any) -> tuple[float, float]:
        side = Side(np.zeros(len(of), np.int64), y[of], none[: len(of)], none[: len(of)], together=together)
        row = tables(fake, side, train, groups, 0.0, np.zeros(2, np.int64))["classes"][0]
        return row["closeness_low"], row["closeness_high"]

    assert found(index, index) == pytest.approx(found(np.arange(40), None))
    low, high = found(index, None)
    assert high - low < np.diff(found(index, index))[0]


@pytest.mark.parametrize("draws", [1, LEAST_DRAWS - 1, 30])
def test_evaluate_uses_the_groups_of_the_reference_and_needs_several(draws: int) -> None:
    def images(seed: int, groups: Any = None) -> ImageSet:
        x = np.random.default_rng(seed).integers(0, 256, (60, 2, 2, 1), dtype=np.uint8)
        return ImageSet(x, np.arange(60) % 2, ("a", "b"), groups=groups)

    found, plain = (
        evaluate(images(0), images(1, of), None, None, [RawPixels((2, 2, 1))], reference_name="test")
        for of in ([f"patient {i % draws}" for i in range(60)], None)
    )
    assert found["protocol"]["images_belong_together"]["reference"] == draws
    assert "images_belong_together" not in plain["protocol"]
    rows = [n for n in found["numbers"] if n["value"] is not None]
    assert {n["metric"] for n in rows} >= {"KD"}
    known = [n["low"] is not None for n in rows if n["reference"] == "test"]
    assert all(known) if draws == 30 else not any(known)
