"""Intervals against literal loops, scipy and simulation; Holm's correction against the definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from imbdiff.recognition.intervals import (
    holm,
    holm_steps,
    nested_interval,
    nested_p,
    nested_parts,
    paired_interval,
    paired_replicates,
    percentile_p,
    percentiles,
)
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.streams import rng


def _triples(means: list[float], n: int = 90, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Triples of about these mean differences: 2 seeds, three classes of unequal size."""
    g = np.random.default_rng(seed)
    made = []
    for i, mean in enumerate(means):
        labels = np.repeat([0, 1, 2], [n // 2, n // 3, n - n // 2 - n // 3 + 3 * i])
        p = [(0.3 - mean) / 2, 0.7, (0.3 + mean) / 2]
        made.append((g.choice([-1, 0, 1], p=p, size=(2, len(labels))), labels))
    return made


def test_paired_replicates_equal_a_loop_over_seeds_and_images() -> None:
    """The moments of a slow bootstrap of the same design, class by class, with a generator of its own."""
    g = np.random.default_rng(5)
    labels = np.repeat([0, 1], [60, 20])
    d = g.choice([-1, 0, 1], p=[0.1, 0.5, 0.4], size=(3, 80))
    slow = []
    for _ in range(4000):
        rows = np.concatenate([g.choice(np.flatnonzero(labels == k), (labels == k).sum()) for k in (0, 1)])
        means = d[:, rows].mean(axis=1)
        slow.append(means.mean() + math.sqrt(3 / 2) * (means[g.integers(0, 3, 3)].mean() - means.mean()))
    fast = paired_replicates(d, labels, replicates=4000)
    assert len(fast) == 4000
    assert fast.mean() == pytest.approx(np.mean(slow), abs=0.005)
    assert fast.std() == pytest.approx(np.std(slow), rel=0.06)


def test_several_comparisons_of_one_draw_equal_each_alone() -> None:
    g = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 30)
    d = g.integers(-1, 2, (4, 2, 90))
    together = paired_replicates(d, labels)
    assert together.shape == (4, 2000)
    for one, row in zip(d, together, strict=True):
        np.testing.assert_allclose(paired_replicates(one, labels), row, atol=1e-12)
    assert paired_interval(d[0], labels)[1:] == pytest.approx(percentiles(together[0], 0.95))


_VALUES = st.lists(st.integers(-6, 6), min_size=5, max_size=60)


@given(_VALUES, st.sampled_from([0.05, 0.1, 0.25, 0.5]))
def test_a_percentile_p_below_the_error_says_that_the_interval_excludes_zero(values: list[int], error: float) -> None:
    replicates = np.array(values) / 7
    above, below = percentile_p(replicates)
    low, high = percentiles(replicates, 1 - error)
    least = 2 / (len(values) + 1)
    if error > least and abs(low) > 1e-9 and abs(high) > 1e-9:
        assert (above < error) == (low > 0)
        assert (below < error) == (high < 0)
    assert least <= above <= 1
    assert least <= below <= 1


def test_percentile_p_of_a_normal_sample_is_that_of_the_normal_distribution() -> None:
    replicates = np.random.default_rng(0).normal(2, 1, 200_000)
    above, below = percentile_p(replicates)
    assert above == pytest.approx(2 * stats.norm.sf(2), rel=0.03)
    assert below == 1
    assert percentile_p(-replicates) == (below, above)
    assert percentile_p(np.full(99, 0.3)) == (0.02, 1.0)
    assert percentile_p(np.zeros(99)) == (1.0, 1.0)


def test_triples_that_differ_give_the_student_interval_of_their_means() -> None:
    triples = _triples([0.25, -0.1, 0.1, 0.02])
    means = [d.mean() for d, _ in triples]
    theirs = stats.ttest_1samp(means, 0)
    ends = theirs.confidence_interval(0.9)
    assert nested_interval(triples, 0.9) == pytest.approx((np.mean(means), ends.low, ends.high))
    assert nested_p(triples) == pytest.approx(theirs.pvalue)
    # unequal sizes: every triple counts once, not every image
    assert np.mean(means) != pytest.approx(np.concatenate([d.ravel() for d, _ in triples]).mean(), abs=1e-4)


def test_triples_that_agree_by_chance_keep_the_width_of_their_test_images() -> None:
    (d, labels), *_ = _triples([0.1])
    centre, low, high = nested_interval([(d, labels)] * 3)
    per_image = d.mean(axis=0)
    variance = sum((labels == k).sum() * per_image[labels == k].var(ddof=1) for k in range(3)) / len(labels) ** 2
    half = stats.norm.ppf(0.975) * math.sqrt(variance / 3)
    assert (centre, low, high) == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))
    assert nested_p([(d, labels)] * 3) == pytest.approx(2 * stats.norm.sf(abs(d.mean()) / math.sqrt(variance / 3)))


def test_shared_test_images_do_not_become_more_by_being_used_again() -> None:
    g = np.random.default_rng(2)
    labels = np.repeat([0, 1], 100)
    triples = [(g.choice([-1, 0, 1], p=[0.1, 0.6, 0.3], size=(2, 200)), labels) for _ in range(4)]
    means = np.array([d.mean() for d, _ in triples])
    per_image = np.mean([d.mean(axis=0) for d, _ in triples], axis=0)
    v = sum(100 * per_image[labels == k].var(ddof=1) for k in (0, 1)) / 200**2
    between = stats.t.ppf(0.975, 3) * means.std(ddof=1) / 2
    half = math.sqrt(between**2 + stats.norm.ppf(0.975) ** 2 * v)
    assert nested_interval(triples, shared=True) == pytest.approx(
        (means.mean(), means.mean() - half, means.mean() + half)
    )
    same = [triples[0]] * 4
    one, many = nested_interval(same, shared=True), nested_interval(same)
    assert (one[2] - one[1]) == pytest.approx(2 * (many[2] - many[1]))
    with pytest.raises(DataError, match="not the same"):
        nested_interval([(triples[0][0], labels[::-1]), triples[1]], shared=True)


@pytest.mark.parametrize("shared", [False, True])
def test_p_is_below_the_error_where_the_interval_excludes_zero(shared: bool) -> None:
    seen = set()
    g = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], 30)
    for _ in range(40):
        effect = g.normal(0.08, 0.05, 3)
        triples = [(g.choice([-1, 0, 1], p=[0.2, 0.6 - e, 0.2 + e], size=(2, 90)), labels) for e in effect]
        _, low, high = nested_interval(triples, shared=shared)
        seen.add(excludes := low > 0 or high < 0)
        assert excludes == (nested_p(triples, shared=shared) < 0.05)
    assert seen == {False, True}


def test_one_triple_is_the_paired_interval() -> None:
    (d, labels), *_ = _triples([0.1])
    assert nested_interval([(d, labels)], 0.9, seed=3) == paired_interval(d, labels, 0.9, seed=3)
    assert nested_p([(d, labels)], seed=3) == min(percentile_p(paired_replicates(d, labels, 3)))


def test_no_interval_leaves_what_a_difference_of_accuracies_can_be() -> None:
    labels = np.zeros(40, dtype=np.int64)
    apart = np.stack([np.full(40, -1), np.full(40, -1), np.ones(40)]).astype(np.int8)  # seeds that differ a lot
    mean, low, high = paired_interval(apart, labels)
    assert (mean, low) == (pytest.approx(-1 / 3), -1.0)
    assert paired_interval(-apart, labels)[2] == 1.0
    assert -1 < high <= 1
    assert nested_interval([(apart[:1], labels), (apart[2:], labels)])[1:] == (-1.0, 1.0)


def test_a_class_of_one_image_and_parts_that_do_not_fit() -> None:
    d, labels = np.array([[1, 0, -1]]), np.array([0, 0, 1])
    assert nested_parts([(d, labels)] * 2)[2] == pytest.approx(2 * 0.5 / 9 / 2)
    with pytest.raises(DataError, match="no triples"):
        nested_interval([])
    with pytest.raises(DataError, match="3 test images"):
        nested_interval([(d[:, :2], labels)])


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
    interval: Callable[..., tuple[float, float, float]] = nested_interval,
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
        _, low, high = interval([(one, labels) for one in d], level=level, shared=shared)
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

    def bootstrap(triples: list[Any], level: float, shared: bool) -> tuple[float, float, float]:
        means = np.array([d.mean() for d, _ in triples])
        drawn = means.mean() + math.sqrt(3 / 2) * (means[draws].mean(axis=1) - means.mean())
        return (means.mean(), *percentiles(drawn, level))

    assert nested_coverage(3, 0.04, repetitions=400, interval=bootstrap) < 0.85


@given(st.lists(st.integers(1, 1000).map(lambda k: k / 1000), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(p: list[float]) -> None:
    """The definition: from the smallest p up, as long as p < alpha / (number left)."""
    alpha, rejected = 0.05, [False] * len(p)
    for done, i in enumerate(sorted(range(len(p)), key=lambda i: (p[i], i))):
        if not p[i] < alpha / (len(p) - done):
            break
        rejected[i] = True
    near = [abs(a - alpha) < 1e-12 for a in holm(p)]
    steps = holm_steps(p, alpha)
    for i in range(len(p)):
        assert near[i] or rejected[i] == (holm(p)[i] < alpha)
        assert rejected[i] == (p[i] < steps[i])
        assert p[i] <= holm(p)[i] <= 1
        assert alpha / len(p) <= steps[i] <= alpha


def test_holm_on_a_known_example() -> None:
    # Holm 1979: ordered .01, .02, .03, .04 times 4, 3, 2, 1, made monotone
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm_steps([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.05 / 3, 0.05 / 4, 0.05 / 3, 0.05 / 3])
    assert holm([]) == []
    assert holm([0.7, 0.9]) == [1.0, 1.0]
