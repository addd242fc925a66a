import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbdiff.data.samplers import BatchSampler, GroupedSampler, class_distribution
from imbdiff.runtime.errors import ConfigError

LAWS = ("natural", "balanced", "sqrt", "tempered")
COUNTS = [4, 64, 16, 1]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))

counts = st.lists(st.integers(1, 30), min_size=1, max_size=6)


def labels_of(counts):
    return np.random.default_rng(7).permutation(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("natural", np.array([4, 64, 16, 1]) / 85),
        ("balanced", np.full(4, 0.25)),
        ("sqrt", np.array([2, 8, 4, 1]) / 15),
        # ranks by size: class 1 first, then 2, 0, 3
        ("tempered", np.array([0.1 ** (2 / 3), 1, 0.1 ** (1 / 3), 0.1]) / sum(0.1 ** (i / 3) for i in range(4))),
    ],
)
def test_laws_by_hand_and_by_drawing(distribution, expected):
    sampler = BatchSampler(LABELS, 50, distribution=distribution, seed=3)
    assert sampler.class_distribution == pytest.approx(expected)
    drawn = np.concatenate([LABELS[sampler.indices(step)] for step in range(400)])
    seen = np.bincount(drawn, minlength=4) / len(drawn)
    # four standard errors of the binomial; the natural distribution is exact up to the last, broken epoch
    assert (np.abs(seen - expected) < 4 * np.sqrt(expected * (1 - expected) / len(drawn))).all()


def test_tempered_is_ccuas_resampling_where_classes_are_sorted():
    counts = [50, 20, 10, 5, 2]
    labels = np.repeat(np.arange(5), counts)
    per_image = np.array([0.1 ** (y / 4) / counts[y] for y in labels])  # weights per image, as their code implies
    per_image /= per_image.sum()
    expected = np.bincount(labels, weights=per_image)
    assert BatchSampler(labels, 8, distribution="tempered").class_distribution == pytest.approx(expected)
    assert expected[0] / expected[-1] == pytest.approx(10)


@pytest.mark.parametrize("distribution", ["balanced", "sqrt", "tempered"])
def test_images_of_a_class_are_drawn_equally_often(distribution):
    labels = labels_of([6, 3])
    sampler = BatchSampler(labels, 200, distribution=distribution)
    drawn = np.bincount(np.concatenate([sampler.indices(s) for s in range(100)]), minlength=9)
    for k in (0, 1):
        mine = drawn[labels == k]
        assert mine.min() > 0.85 * mine.mean()
        assert mine.max() < 1.15 * mine.mean()


@given(counts, st.integers(1, 40), st.integers(0, 3))
def test_natural_is_permuted_epochs_end_to_end(counts, batch, seed):
    labels = labels_of(counts)
    n = len(labels)
    sampler = BatchSampler(labels, batch, seed=seed)
    steps = -(-3 * n // batch)
    stream = np.concatenate([sampler.indices(step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_are_permuted_differently():
    sampler = BatchSampler(np.arange(50) % 5, 50)
    assert not np.array_equal(sampler.indices(0), sampler.indices(1))


@settings(max_examples=40)
@given(counts, st.integers(1, 50), st.sampled_from(LAWS), st.lists(st.integers(0, 10_000), min_size=1, max_size=5))
def test_a_batch_depends_on_seed_and_step_alone(counts, batch, distribution, steps):
    labels = labels_of(counts)
    used = BatchSampler(labels, batch, distribution=distribution, seed=1)
    for step in [*steps, *reversed(steps)]:
        indices = used.indices(step)
        assert np.array_equal(indices, BatchSampler(labels, batch, distribution=distribution, seed=1).indices(step))
        assert indices.shape == (batch,)
        assert indices.dtype == np.int64
        assert indices.min() >= 0
        assert indices.max() < len(labels)


def test_returned_batches_may_be_changed():
    sampler = BatchSampler(LABELS, 8)
    before = sampler.indices(0).copy()
    sampler.indices(0)[:] = -1
    assert np.array_equal(sampler.indices(0), before)


@pytest.mark.parametrize("distribution", LAWS)
def test_seed_name_and_step_all_matter(distribution):
    base = BatchSampler(LABELS, 16, distribution=distribution, seed=0)
    others = [
        BatchSampler(LABELS, 16, distribution=distribution, seed=1).indices(0),
        BatchSampler(LABELS, 16, distribution=distribution, seed=0, name="other").indices(0),
        base.indices(1),
    ]
    assert all(not np.array_equal(base.indices(0), other) for other in others)


@given(counts, st.sampled_from(LAWS), st.floats(0.01, 1, allow_subnormal=False))
def test_laws_are_distributions(counts, distribution, factor):
    p = class_distribution(np.array(counts), distribution, factor)
    assert p.sum() == pytest.approx(1)
    assert (p > 0).all()


@pytest.mark.parametrize("distribution", LAWS)
def test_classes_without_images_are_never_drawn(distribution):
    labels = np.array([0, 0, 2, 2, 2, 5])
    sampler = BatchSampler(labels, 64, distribution=distribution)
    assert sampler.class_distribution[[1, 3, 4]].tolist() == [0, 0, 0]
    assert set(labels[sampler.indices(0)]) == {0, 2, 5}


def test_impossible_settings():
    for wrong in ({"distribution": "cubic"}, {"factor": 0}, {"factor": 2}):
        with pytest.raises(ConfigError):
            BatchSampler(LABELS, 8, **wrong)
    with pytest.raises(ConfigError):
        BatchSampler(LABELS, 0)
    with pytest.raises(ConfigError):
        BatchSampler(np.empty(0, np.int64), 8)
    with pytest.raises(ConfigError):
        BatchSampler(LABELS, 8).indices(-1)
    with pytest.raises(ConfigError, match=r"\[9\]"):
        GroupedSampler(LABELS, [1, 9], 2, 2)
    with pytest.raises(ConfigError):
        GroupedSampler(LABELS, [], 2, 2)
    with pytest.raises(ConfigError):
        GroupedSampler(LABELS, [1], 0, 2)


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
        k = set(labels[mine].tolist())
        assert len(k) == 1
        assert k <= classes
        chosen += k
        times = np.bincount(mine, minlength=len(labels))[labels == chosen[-1]]
        assert times.max() - times.min() <= 1
    assert len(set(chosen)) == min(groups, len(classes))


def test_grouped_batches_change_with_the_step_and_cover_all_classes():
    sampler = GroupedSampler(LABELS, [0, 2, 3], 2, 3)
    seen = set()
    for step in range(30):
        seen |= set(LABELS[sampler.indices(step)[0]].tolist())
    assert seen == {0, 2, 3}
    assert not np.array_equal(sampler.indices(0)[0], sampler.indices(1)[0])
