"""Intervals over triples of split, generator and classifier against scipy, literal sums and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from imbdiff.recognition.intervals import paired_interval, paired_replicates, percentile_p, percentiles
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.streams import rng
from tests.benchmarks.test_harness import load

nested = load("nested_intervals")


def _triples(means: list[float], n: int = 90, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Triples of about these mean differences: 2 seeds, three classes of unequal size."""
    g = np.random.default_rng(seed)
    made = []
    for i, mean in enumerate(means):
        labels = np.repeat([0, 1, 2], [n // 2, n // 3, n - n // 2 - n // 3 + 3 * i])
        p = [(0.3 - mean) / 2, 0.7, (0.3 + mean) / 2]
        made.append((g.choice([-1, 0, 1], p=p, size=(2, len(labels))), labels))
    return made


def test_triples_that_differ_give_the_student_interval_of_their_means() -> None:
    triples = _triples([0.25, -0.1, 0.1, 0.02])
    means = [d.mean() for d, _ in triples]
    theirs = stats.ttest_1samp(means, 0)
    ends = theirs.confidence_interval(0.9)
    assert nested.nested_interval(triples, 0.9) == pytest.approx((np.mean(means), ends.low, ends.high))
    assert nested.nested_p(triples) == pytest.approx(theirs.pvalue)
    # unequal sizes: every triple counts once, not every image
    assert np.mean(means) != pytest.approx(np.concatenate([d.ravel() for d, _ in triples]).mean(), abs=1e-4)


def test_triples_that_agree_by_chance_keep_the_width_of_their_test_images() -> None:
    (d, labels), *_ = _triples([0.1])
    centre, low, high = nested.nested_interval([(d, labels)] * 3)
    per_image = d.mean(axis=0)
    variance = sum((labels == k).sum() * per_image[labels == k].var(ddof=1) for k in range(3)) / len(labels) ** 2
    half = stats.norm.ppf(0.975) * math.sqrt(variance / 3)
    assert (centre, low, high) == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))
    assert nested.nested_p([(d, labels)] * 3) == pytest.approx(
        2 * stats.norm.sf(abs(d.mean()) / math.sqrt(variance / 3))
    )


def test_shared_test_images_do_not_become_more_by_being_used_again() -> None:
    g = np.random.default_rng(2)
    labels = np.repeat([0, 1], 100)
    triples = [(g.choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=(2, 200)), labels) for _ in range(4)]
    means = np.array([d.mean() for d, _ in triples])
    per_image = np.mean([d.mean(axis=0) for d, _ in triples], axis=0)
    v = sum(100 * per_image[labels == k].var(ddof=1) for k in (0, 1)) / 200**2
    between = stats.t.ppf(0.975, 3) * means.std(ddof=1) / 2
    half = math.sqrt(between**2 + stats.norm.ppf(0.975) ** 2 * v)
    images = [np.arange(200)] * 4
    assert nested.nested_interval(triples, images=images) == pytest.approx(
        (means.mean(), means.mean() - half, means.mean() + half)
    )
    same = [triples[0]] * 4
    one, many = nested.nested_interval(same, images=images), nested.nested_interval(same)
    assert (one[2] - one[1]) == pytest.approx(2 * (many[2] - many[1]))
    with pytest.raises(DataError, match="one an image"):
        nested.nested_interval(triples, images=images[:3])


def test_images_shared_by_some_triples_count_once_in_whatever_order() -> None:
    g = np.random.default_rng(5)
    labels, tendency = np.repeat([0, 1], 150), g.choice([-1, 0, 1], p=[0.2, 0.5, 0.3], size=300)
    tested = [np.sort(g.permutation(300)[:240]) for _ in range(6)]
    triples = [(tendency[None, rows], labels[rows]) for rows in tested]
    _, _, v = nested.nested_parts(triples, tested)
    order = [g.permutation(240) for _ in tested]
    mixed = [(d[:, o], y[o]) for (d, y), o in zip(triples, order, strict=True)]
    assert nested.nested_parts(mixed, [rows[o] for rows, o in zip(tested, order, strict=True)])[2] == pytest.approx(v)
    # an oracle: weights of the images in the mean over triples, each image drawn once
    weight = sum(np.isin(np.arange(300), rows) / 240 / 6 for rows in tested)
    exact = sum((weight[labels == k] ** 2).sum() * tendency[labels == k].var(ddof=1) for k in (0, 1))
    assert v == pytest.approx(exact, rel=0.05)
    assert nested.nested_parts(triples)[2] < 0.3 * v  # as if each triple had its own


@pytest.mark.parametrize("shared", [False, True])
def test_p_is_below_the_error_where_the_interval_excludes_zero(shared: bool) -> None:
    seen = set()
    g = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], 30)
    for _ in range(40):
        effect = g.normal(0.08, 0.05, 3)
        triples = [(g.choice([-1, 0, 1], p=[0.2, 0.6 - e, 0.2 + e], size=(2, 90)), labels) for e in effect]
        images = [np.arange(90)] * 3 if shared else None
        _, low, high = nested.nested_interval(triples, images=images)
        seen.add(excludes := low > 0 or high < 0)
        assert excludes == (nested.nested_p(triples, images=images) < 0.05)
    assert seen == {False, True}


def test_one_triple_is_the_paired_interval() -> None:
    (d, labels), *_ = _triples([0.1])
    assert nested.nested_interval([(d, labels)], 0.9, seed=3) == paired_interval(d, labels, 0.9, seed=3)
    assert nested.nested_p([(d, labels)], seed=3) == min(percentile_p(paired_replicates(d, labels, 3)))


def test_no_interval_leaves_what_a_difference_of_accuracies_can_be() -> None:
    labels = np.zeros(40, dtype=np.int64)
    apart = np.stack([np.full(40, -1), np.full(40, -1), np.ones(40)]).astype(np.int8)  # seeds that differ a lot
    mean, low, high = paired_interval(apart, labels)
    assert (mean, low) == (pytest.approx(-1 / 3), -1.0)
    assert paired_interval(-apart, labels)[2] == 1.0
    assert -1 < high <= 1
    assert nested.nested_interval([(apart[:1], labels), (apart[2:], labels)])[1:] == (-1.0, 1.0)


def test_a_class_of_one_image_and_parts_that_do_not_fit() -> None:
    d, labels = np.array([[1, 0, -1]]), np.array([0, 0, 1])
    assert nested.nested_parts([(d, labels)] * 2)[2] == pytest.approx(2 * 0.5 / 9 / 2)
    with pytest.raises(DataError, match="no triples"):
        nested.nested_interval([])
    with pytest.raises(DataError, match="3 test images"):
        nested.nested_interval([(d[:, :2], labels)])


def nested_coverage(
    triples: int,
    between: float,
    *,
    shared: bool = False,
    seeds: int = 3,
    images: int = 300,
    classes: int = 5,
    repetitions: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    interval: Callable[..., tuple[float, float, float]] = nested.nested_interval,
) -> float:
    """How often `interval` holds the true mean difference, by simulation.

    World: a difference is 1, -1 or 0 with probability (0.2 + e) / 2, (0.2 - e) / 2 and 0.8, e = 0.02 + effect of the
    triple (normal, `between`) + of the seed (normal, 0.01) + of the image (uniform in ±0.1).
    """
    truth, generator = 0.02, rng(seed, "nested coverage", triples, images)
    labels = np.arange(images) % classes
    held = 0
    for _ in range(repetitions):
        tendency = generator.uniform(-0.1, 0.1, (1 if shared else triples, 1, images))
        e = truth + generator.normal(0, between, (triples, 1, 1)) + generator.normal(0, 0.01, (triples, seeds, 1))
        e = np.clip(e + tendency, -0.2, 0.2)
        u = generator.random((triples, seeds, images))
        d = (u < (0.2 + e) / 2).astype(np.int8) - (u > 1 - (0.2 - e) / 2)
        own = [np.arange(images)] * triples if shared else None
        _, low, high = interval([(one, labels) for one in d], level=level, images=own)
        held += low <= truth <= high
    return held / repetitions


@pytest.mark.parametrize(
    ("triples", "between", "shared"), [(3, 0.04, False), (5, 0.04, False), (5, 0.02, False), (5, 0.04, True)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(triples: int, between: float, shared: bool) -> None:
    assert 0.92 <= nested_coverage(triples, between, shared=shared, repetitions=800, seed=7) <= 0.97


def test_intervals_hold_more_than_they_say_where_triples_are_alike() -> None:
    assert nested_coverage(3, 0.0, repetitions=400, seed=7) >= 0.95


def test_percentiles_of_a_few_triples_would_hold_too_little() -> None:
    """Why the interval is Student's: the bootstrap of three means, widened by sqrt(3 / 2), every draw enumerated."""
    draws = np.array(list(itertools.product(range(3), repeat=3)))

    def bootstrap(triples: list[Any], level: float, images: Any) -> tuple[float, float, float]:
        means = np.array([d.mean() for d, _ in triples])
        drawn = means.mean() + math.sqrt(3 / 2) * (means[draws].mean(axis=1) - means.mean())
        return (means.mean(), *percentiles(drawn, level))

    assert nested_coverage(3, 0.04, repetitions=400, interval=bootstrap) < 0.85
