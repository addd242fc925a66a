import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbdiff.data.samplers import BatchSampler, GroupedSampler, class_distribution
from imbdiff.runtime.errors import ConfigError

DISTRIBUTIONS = ("natural", "balanced", "sqrt", "tempered", "half-balanced")
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [4, 64, 16, 1]))

counts = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def labels_of(counts):
    return np.random.default_rng(7).permutation(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("natural", np.array([4, 64, 16, 1]) / 85),
        ("balanced", np.full(4, 0.25)),
        ("sqrt", np.array([2, 8, 4, 1]) / 15),
        ("half-balanced", np.array([4 / 85 + 1 / 4, 64 / 85 + 1 / 4, 16 / 85 + 1 / 4, 1 / 85 + 1 / 4]) / 2),
        # ranks by size: class 1 first, then 2, 0, 3
        ("tempered", np.array([0.1 ** (2 / 3), 1, 0.1 ** (1 / 3), 0.1]) / sum(0.1 ** (i / 3) for i in range(4))),
    ],
)
def test_distributions_by_hand_and_by_sampling(distribution, expected):
    sampler = BatchSampler(LABELS, 50, distribution=distribution, seed=3)
    assert sampler.class_distribution == pytest.approx(expected)
    sampled = np.concatenate([LABELS[sampler.indices(step)] for step in range(400)])
    seen = np.bincount(sampled, minlength=4) / len(sampled)
    # four standard errors of the binomial; the natural distribution is exact up to the last, broken epoch
    assert (np.abs(seen - expected) < 4 * np.sqrt(expected * (1 - expected) / len(sampled))).all()


def test_tempered_is_ccuas_resampling_where_classes_are_sorted():
    counts = [50, 20, 10, 5, 2]
    labels = np.repeat(np.arange(5), counts)
    per_image = np.array([0.1 ** (y / 4) / counts[y] for y in labels])  # weights per image, as their code implies
    expected = np.bincount(labels, weights=per_image / per_image.sum())
    assert BatchSampler(labels, 8, distribution="tempered").class_distribution == pytest.approx(expected)
    assert expected[0] / expected[-1] == pytest.approx(10)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS[1:])
def test_images_of_a_class_are_sampled_equally_often(distribution):
    labels = labels_of([6, 3])
    sampler = BatchSampler(labels, 200, distribution=distribution)
    often = np.bincount(np.concatenate([sampler.indices(s) for s in range(100)]), minlength=9)
    for k in (0, 1):
        mine = often[labels == k]
        assert mine.min() > 0.85 * mine.mean()
        assert mine.max() < 1.15 * mine.mean()


@given(counts, st.integers(1, 40), st.integers(0, 3))
def test_natural_is_permuted_epochs_end_to_end(counts, batch, seed):
    labels = labels_of(counts)
    n = len(labels)
    sampler = BatchSampler(labels, batch, seed=seed)
    stream = np.concatenate([sampler.indices(step) for step in range(-(-3 * n // batch))])
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


@settings(max_examples=40)
@given(
    counts, st.integers(1, 50), st.sampled_from(DISTRIBUTIONS), st.lists(st.integers(0, 10_000), min_size=1, max_size=5)
)
def test_a_batch_depends_on_seed_and_step_alone(counts, batch, distribution, steps):
    labels = labels_of(counts)
    used = BatchSampler(labels, batch, distribution=distribution, seed=1)
    for step in [*steps, *reversed(steps)]:
        indices = used.indices(step)
        assert np.array_equal(indices, BatchSampler(labels, batch, distribution=distribution, seed=1).indices(step))
        assert (indices.shape, indices.dtype) == ((batch,), np.int64)
        assert 0 <= indices.min() <= indices.max() < len(labels)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_seed_name_and_step_all_matter_and_batches_may_be_changed(distribution):
    base = BatchSampler(LABELS, len(LABELS), distribution=distribution, seed=0)
    first = base.indices(0).copy()
    others = [
        BatchSampler(LABELS, len(LABELS), distribution=distribution, seed=1).indices(0),
        BatchSampler(LABELS, len(LABELS), distribution=distribution, seed=0, name="other").indices(0),
        base.indices(1),
    ]
    assert all(not np.array_equal(first, other) for other in others)
    base.indices(0)[:] = -1
    assert np.array_equal(base.indices(0), first)


@given(counts, st.sampled_from(DISTRIBUTIONS), st.floats(0.01, 1, allow_subnormal=False))
def test_distributions_sum_to_one(counts, distribution, factor):
    p = class_distribution(np.array(counts), distribution, factor)
    assert p.sum() == pytest.approx(1)
    assert (p > 0).all()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_classes_without_images_are_never_sampled(distribution):
    labels = np.array([0, 0, 2, 2, 2, 5])
    sampler = BatchSampler(labels, 64, distribution=distribution)
    assert sampler.class_distribution[[1, 3, 4]].tolist() == [0, 0, 0]
    assert set(labels[sampler.indices(0)]) == {0, 2, 5}


def test_impossible_settings():
    for wrong in ({"distribution": "cubic"}, {"factor": 0}, {"factor": 2}):
        with pytest.raises(ConfigError):
            BatchSampler(LABELS, 8, **wrong)
    with pytest.raises(ConfigError):
        BatchSampler(np.empty(0, np.int64), 8)


@settings(max_examples=40)
@given(counts, st.data(), st.integers(1, 7), st.integers(1, 7), st.integers(0, 1000))
def test_grouped_batches(counts, data, groups, size, step):
    labels = labels_of(counts)
    classes = data.draw(st.sets(st.integers(0, len(counts) - 1), min_size=1))
    rows, group = GroupedSampler(labels, list(classes), groups, size, seed=2).indices(step)
    again = GroupedSampler(labels, sorted(classes, reverse=True), groups, size, seed=2).indices(step)
    assert np.array_equal(rows, again[0])
    assert group.tolist() == [g for g in range(groups) for _ in range(size)]
    chosen = []
    for g in range(groups):
        mine = rows[group == g]
        (k,) = set(labels[mine].tolist())
        chosen.append(k)
        times = np.bincount(mine, minlength=len(labels))[labels == k]
        assert times.max() - times.min() <= 1
    assert set(chosen) <= classes
    assert len(set(chosen)) == min(groups, len(classes))


def test_grouped_batches_change_with_the_step_and_cover_all_classes():
    sampler = GroupedSampler(LABELS, [0, 2, 3], 2, 3)
    batches = [sampler.indices(step)[0] for step in range(30)]
    assert set(LABELS[np.concatenate(batches)].tolist()) == {0, 2, 3}
    assert not np.array_equal(batches[0], batches[1])
