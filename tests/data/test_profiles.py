# ruff: noqa: NPY002
from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbdiff.data.profiles import largest_n_max, long_tail, parse_imbalance_factor, profile_counts, profile_shares
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.runtime.errors import ConfigError, DataError

PROFILES = ("exponential", "pareto", "step")

# Totals and counts of the literature's protocol: Cui et al. 2019; LDAM-DRW; CBDM.
TOTALS = {
    (10, 5000): {10: 20431, 50: 13996, 100: 12406, 200: 11203, 1000: 9324},
    (100, 500): {10: 19573, 50: 12608, 100: 10847, 200: 9502},
    (200, 500): {10: 39072, 50: 25082, 100: 21549, 200: 18836},
}


def literal_cifar_lt(labels: list[int], factor: float, kind: str = "exp") -> list[int]:
    """The rule of the literature, restated: one seeding, classes in order, shuffle, keep the first n_i."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        targets = np.array(labels, dtype=np.int64)
        classes = int(targets.max()) + 1
        img_max = len(targets) / classes
        imb_factor = 1 / factor
        kept = []
        for k in range(classes):
            if kind == "exp":
                n = int(img_max * (imb_factor ** (k / (classes - 1.0))))
            else:
                n = int(img_max) if k < classes // 2 else int(img_max * imb_factor)
            idx = np.where(targets == k)[0]
            np.random.shuffle(idx)
            kept.extend(idx[:n].tolist())
        return kept
    finally:
        np.random.set_state(state)


@pytest.mark.parametrize(("shape", "factor", "total"), [(s, f, t) for s, row in TOTALS.items() for f, t in row.items()])
def test_published_totals(shape, factor, total):
    classes, n_max = shape
    assert sum(profile_counts("exponential", n_max, classes, factor)) == total
    labels = np.repeat(np.arange(classes), n_max)
    assert len(long_tail(labels, imbalance_factor=factor, protocol="cifar-lt")) == total


def test_published_counts_of_cifar10_lt_100():
    expected = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
    assert profile_counts("exponential", 5000, 10, 100) == expected
    assert profile_counts("exponential", 5000, 10, 0.01) == expected
    assert profile_counts("exponential", 98, 3, 49)[-1] == 2  # 98 * (1/49) is 1.9999999999999998


def test_step_and_pareto():
    assert profile_counts("step", 500, 5, 10) == (500, 500, 50, 50, 50)
    counts = np.array(profile_counts("pareto", 1280, 1000, 256))
    assert (counts[0], counts[-1]) == (1280, 5)
    assert abs(counts.sum() / 115_846 - 1) < 0.05  # ImageNet-LT's total
    # many fewer images in the middle than a straight line, more than the exponential of the same ends at the very tail
    assert counts[500] < 200


@pytest.mark.parametrize("factor", [10, 50, 100, 200])
@pytest.mark.parametrize(("classes", "n"), [(10, 5000), (100, 500)])
@pytest.mark.parametrize(("profile", "kind"), [("exponential", "exp"), ("step", "step")])
def test_cifar_lt_gives_the_literal_index_lists(classes, n, factor, profile, kind):
    labels = np.random.default_rng(classes).permutation(np.repeat(np.arange(classes), n))
    got = long_tail(labels, imbalance_factor=factor, profile=profile, protocol="cifar-lt")
    assert got.tolist() == literal_cifar_lt(labels.tolist(), factor, kind)


def test_the_global_generator_is_left_alone():
    np.random.seed(5)
    before = np.random.get_state()[1].copy(), np.random.get_state()[2]
    labels = np.repeat(np.arange(4), 30)
    long_tail(labels, imbalance_factor=10, protocol="cifar-lt")
    long_tail(labels, imbalance_factor=10)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert np.random.get_state()[2] == before[1]


def test_cifar_lt_refuses_what_it_does_not_have():
    labels = np.repeat(np.arange(100), 50)
    with pytest.raises(DataError, match="without an image"):
        long_tail(labels, imbalance_factor=1000, protocol="cifar-lt")
    for wrong in ({"profile": "pareto"}, {"order": "size"}):
        with pytest.raises(ConfigError, match="cifar-lt protocol"):
            long_tail(labels, imbalance_factor=10, protocol="cifar-lt", **wrong)
    with pytest.raises(DataError, match="more images than"):
        long_tail(labels, imbalance_factor=10, protocol="cifar-lt", n_max=60)


@given(st.sampled_from(PROFILES), st.integers(1, 6000), st.integers(2, 300), st.floats(1, 2000, allow_subnormal=False))
def test_counts_never_increase_and_stay_within_bounds(profile, n_max, classes, factor):
    counts = profile_counts(profile, n_max, classes, factor)
    assert len(counts) == classes
    assert counts[0] == n_max
    assert all(a >= b for a, b in itertools.pairwise(counts))
    assert min(counts) >= 1
    assert counts[-1] == max(1, int(n_max / factor + 1e-9))
    shares = profile_shares(profile, classes, factor)
    assert shares[0] == 1
    assert shares[-1] == pytest.approx(1 / factor)


@given(st.integers(1, 5000))
def test_both_ways_to_write_the_factor(factor):
    assert parse_imbalance_factor(factor) == parse_imbalance_factor(1 / factor) == factor


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), True, "100"])
def test_impossible_factors(factor):
    with pytest.raises(ConfigError, match="imbalance factor"):
        parse_imbalance_factor(factor)


def test_unknown_names_are_refused():
    labels = np.repeat(np.arange(3), 9)
    for wrong in ({"profile": "zipf"}, {"protocol": "mine"}, {"order": "random"}):
        with pytest.raises(ConfigError, match=next(iter(wrong.values()))):
            long_tail(labels, imbalance_factor=3, **wrong)
    with pytest.raises(ConfigError):
        profile_counts("step", 0, 3, 3)
    with pytest.raises(ConfigError):
        profile_counts("step", 9, 1, 3)


@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=8),
    st.sampled_from(PROFILES),
    st.floats(1, 50, allow_subnormal=False),
    st.sampled_from(["label", "size"]),
)
def test_the_largest_possible_n_max_is_possible_and_one_more_is_not(available, profile, factor, order):
    n_max = largest_n_max(available, profile, factor, order)
    ranked = sorted(available, reverse=True) if order == "size" else available

    def fits(n: int) -> bool:
        return all(a >= b for a, b in zip(ranked, profile_counts(profile, n, len(available), factor), strict=True))

    assert fits(n_max)
    assert not fits(n_max + 1)


def test_kept_images_are_sorted_distinct_and_as_many_as_the_profile_says():
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [90, 80, 100, 70, 60]))
    kept = long_tail(labels, imbalance_factor=10, n_max=80)
    assert np.array_equal(kept, np.unique(kept))
    assert tuple(np.bincount(labels[kept])) == profile_counts("exponential", 80, 5, 10)
    assert not np.array_equal(kept, long_tail(labels, imbalance_factor=10, n_max=80, seed=1))
    assert np.array_equal(kept, long_tail(labels, imbalance_factor=10, n_max=80, seed=0))


def test_order_size_makes_the_largest_class_the_head():
    labels = np.repeat(np.arange(3), [20, 90, 40])
    kept = long_tail(labels, imbalance_factor=9, order="size")
    assert np.bincount(labels[kept]).tolist() == [10, 90, 30]


def test_one_classs_draw_does_not_depend_on_the_others():
    labels = np.repeat(np.arange(3), 50)
    few = long_tail(labels, imbalance_factor=10, n_max=50)
    more = long_tail(labels, imbalance_factor=2, n_max=50)
    assert set(few[labels[few] == 2]) < set(more[labels[more] == 2])


counts = st.lists(st.integers(1, 400), min_size=1, max_size=40)


def stats(counts):
    return ClassStats(tuple(f"c{i}" for i in range(len(counts))), tuple(counts))


def check_partition(groups, n):
    members = [k for name in groups.names for k in groups.classes(name)]
    assert sorted(members) == list(range(n))
    assert Groups.from_json(groups.to_json()) == groups


@given(counts, st.integers(0, 300), st.integers(0, 300))
def test_thresholds_partition_the_classes_or_are_refused(counts, many, few):
    if few > many + 1:
        with pytest.raises(ConfigError, match="overlap"):
            Groups.by_threshold(stats(counts), many, few)
        return
    groups = Groups.by_threshold(stats(counts), many, few)
    check_partition(groups, len(counts))
    assert groups.of_class == tuple(0 if n > many else 2 if n < few else 1 for n in counts)


@given(counts)
def test_thirds_partition_the_classes_in_order_of_size(counts):
    groups = Groups.by_quantile(stats(counts))
    check_partition(groups, len(counts))
    check_partition(Groups.default(stats(counts)), len(counts))
    sizes = [sorted(counts[k] for k in groups.classes(name)) for name in groups.names]
    assert [*sizes[2], *sizes[1], *sizes[0]] == sorted(counts)
    assert len(sizes[0]) == len(sizes[2]) == round(len(counts) / 3)


@given(counts, st.data())
def test_explicit_groups_partition_the_classes(counts, data):
    s = stats(counts)
    of_class = [data.draw(st.integers(0, 2)) for _ in counts]
    named = {f"g{g}": [n for n, other in zip(s.names, of_class, strict=True) if other == g] for g in range(3)}
    groups = Groups.explicit(s, named)
    check_partition(groups, len(counts))
    assert groups.of_class == tuple(of_class)


def test_groups_of_the_literature():
    hundred = stats(profile_counts("exponential", 500, 100, 100))
    assert np.bincount(Groups.default(hundred).of_class).tolist() == [35, 35, 30]
    assert np.bincount(Groups.by_threshold(hundred, 99, 21).of_class).tolist() == [35, 34, 31]  # >= 100, <= 20
    ten = Groups.default(stats(profile_counts("exponential", 5000, 10, 100)))
    assert ten.of_class == (0, 0, 0, 1, 1, 1, 1, 2, 2, 2)
    assert ten.rule == "many: the 3 largest classes, few: the 3 smallest, medium: the other 4"


def test_explicit_groups_that_are_no_partition():
    s = stats([3, 2])
    for wrong, message in (
        ({"a": ["c0"]}, "no group"),
        ({"a": ["c0", "c1", "x"]}, "unknown"),
        ({"a": ["c0", "c0"]}, "two"),
    ):
        with pytest.raises(ConfigError, match=message):
            Groups.explicit(s, wrong)


def test_class_without_images():
    with pytest.raises(DataError, match="c1"):
        ClassStats.from_labels(np.array([0, 2]), ("c0", "c1", "c2"))
    with pytest.raises(DataError, match=r"\[3\]"):
        ClassStats.from_labels(np.array([0, 3]), ("c0", "c1", "c2"))
