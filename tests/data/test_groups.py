import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbdiff.data.profiles import profile_counts
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.runtime.errors import ConfigError, DataError

counts = st.lists(st.integers(1, 400), min_size=1, max_size=40)


def stats(counts):
    return ClassStats(tuple(f"c{i}" for i in range(len(counts))), tuple(counts))


def check_partition(groups, n):
    members = [k for name in groups.names for k in groups.classes(name)]
    assert sorted(members) == list(range(n))
    assert Groups.from_json(groups.to_json()) == groups


@given(counts, st.integers(0, 300), st.integers(0, 300), st.booleans(), st.booleans())
def test_thresholds_partition_the_classes_or_are_refused(counts, many, few, many_closed, few_closed):
    try:
        groups = Groups.by_threshold(stats(counts), many, few, many_closed, few_closed)
    except ConfigError:
        assert few >= many
        return
    check_partition(groups, len(counts))
    for n, g in zip(counts, groups.of_class, strict=True):
        is_many = n >= many if many_closed else n > many
        is_few = n <= few if few_closed else n < few
        assert g == (0 if is_many else 2 if is_few else 1)


@given(counts, st.floats(0, 0.5, allow_subnormal=False), st.floats(0, 0.5, allow_subnormal=False))
def test_quantiles_partition_the_classes_in_order_of_size(counts, many, few):
    groups = Groups.by_quantile(stats(counts), many, few)
    check_partition(groups, len(counts))
    sizes = [[counts[k] for k in groups.classes(name)] for name in groups.names]
    for larger, smaller in ((0, 1), (1, 2), (0, 2)):
        if sizes[larger] and sizes[smaller]:
            assert min(sizes[larger]) >= max(sizes[smaller])


@given(counts)
def test_the_default_partitions_the_classes(counts):
    check_partition(Groups.default(stats(counts)), len(counts))


@given(counts, st.data())
def test_explicit_groups_partition_the_classes(counts, data):
    s = stats(counts)
    of_class = [data.draw(st.integers(0, 2)) for _ in counts]
    named = {f"g{g}": [n for n, other in zip(s.names, of_class, strict=True) if other == g] for g in range(3)}
    groups = Groups.explicit(s, named)
    check_partition(groups, len(counts))
    assert groups.of_class == tuple(of_class)


def test_cifar100_lt_groups_of_the_literature():
    s = stats(profile_counts("exponential", 500, 100, 100))
    sizes = [np.bincount(Groups.by_threshold(s).of_class).tolist()]
    sizes += [np.bincount(Groups.by_threshold(s, many_closed=True, few_closed=True).of_class).tolist()]
    assert sizes == [[35, 35, 30], [35, 34, 31]]


def test_cifar_thirds_leave_no_class_out():
    groups = Groups.by_quantile(stats(profile_counts("exponential", 5000, 10, 100)))
    assert groups.of_class == (0, 0, 0, 1, 1, 1, 1, 2, 2, 2)


def test_rules_of_few_classes_read_well():
    rules = [Groups.by_quantile(stats(range(c, 0, -1))).rule for c in (1, 2, 3, 10)]
    assert rules == [
        "many: none, few: none, medium: the other one",
        "many: the largest class, few: the smallest, medium: none",
        "many: the largest class, few: the smallest, medium: the other one",
        "many: the 3 largest classes, few: the 3 smallest, medium: the other 4",
    ]


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
