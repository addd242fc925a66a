"""Intervals against literal loops, scipy and simulation; Holm's correction against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from imbdiff.recognition.intervals import holm, paired_interval, paired_replicates, percentile_p, percentiles


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


def test_whole_groups_are_resampled() -> None:
    """Against a slow bootstrap of groups, and wider than one of images where a group's images agree."""
    g = np.random.default_rng(3)
    groups = np.repeat(np.arange(40), 4)
    labels = (groups >= 25).astype(np.int64)
    d = np.repeat(g.choice([-1, 0, 1], p=[0.1, 0.5, 0.4], size=(2, 40)), 4, axis=1)
    slow = []
    for _ in range(4000):
        drawn = np.concatenate([g.choice(np.arange(a, b), b - a) for a, b in ((0, 25), (25, 40))])
        means = np.concatenate([d[:, groups == k] for k in drawn], axis=1).mean(axis=1)
        slow.append(means.mean() + math.sqrt(2) * (means[g.integers(0, 2, 2)].mean() - means.mean()))
    fast = paired_replicates(d, labels, replicates=4000, groups=groups)
    assert fast.mean() == pytest.approx(np.mean(slow), abs=0.01)
    assert fast.std() == pytest.approx(np.std(slow), rel=0.06)
    assert fast.std() > 1.15 * paired_replicates(d, labels, replicates=4000).std()
    alone = paired_replicates(d, labels, groups=np.arange(160))
    np.testing.assert_allclose(alone, paired_replicates(d, labels))


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


@given(st.lists(st.integers(1, 1000).map(lambda k: k / 1000), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(p: list[float]) -> None:
    """The definition: from the smallest p up, as long as p < alpha / (number left)."""
    alpha, rejected = 0.05, [False] * len(p)
    for done, i in enumerate(sorted(range(len(p)), key=lambda i: (p[i], i))):
        if not p[i] < alpha / (len(p) - done):
            break
        rejected[i] = True
    adjusted, errors = holm(p, alpha)
    for i in range(len(p)):
        assert abs(adjusted[i] - alpha) < 1e-12 or rejected[i] == (adjusted[i] < alpha)
        assert rejected[i] == (p[i] < errors[i])
        assert p[i] <= adjusted[i] <= 1
        assert alpha / len(p) <= errors[i] <= alpha


def test_holm_on_a_known_example() -> None:
    # Holm 1979: ordered .01, .02, .03, .04 times 4, 3, 2, 1, made monotone
    adjusted, errors = holm([0.03, 0.01, 0.04, 0.02])
    assert adjusted == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert errors == pytest.approx([0.05 / 3, 0.05 / 4, 0.05 / 3, 0.05 / 3])
    assert holm([]) == ([], [])
    assert holm([0.7, 0.9])[0] == [1.0, 1.0]
