"""The partitions of classes that the literature reports by, as functions of the training statistics."""

from __future__ import annotations

from imbdiff.data.stats import GROUP_NAMES, ClassStats, Groups


def shots(stats: ClassStats) -> Groups:
    """More than 100, 20 to 100, fewer than 20 training images; thirds of the class order where one would be empty.

    OLTR's own code counts 100 as many and 20 as few; that of most others, and this, does not.
    """
    groups = Groups.by_threshold(stats)
    return groups if set(groups.of_class) == {0, 1, 2} else thirds(stats)


def thirds(stats: ClassStats) -> Groups:
    """Thirds of the class order, cut at floor(C/3) and floor(2C/3), as CM reports: 0-2, 3-5, 6-9 of ten classes."""
    c = stats.num_classes
    return _cut(stats, c // 3, 2 * c // 3, "thirds of the class order")


def ccua_thirds(stats: ClassStats) -> Groups:
    """Thirds as CCUA's SiT code cuts ImageNet: 0-332, 333-666, 667-999. Its U-Net code leaves 333 and 666 out."""
    c = stats.num_classes
    return _cut(stats, c // 3, 2 * c // 3 + 1, "thirds of the class order as CCUA cuts them")


def _cut(stats: ClassStats, first: int, second: int, why: str) -> Groups:
    c = stats.num_classes
    of_class = tuple(0 if k < first else 1 if k < second else 2 for k in range(c))
    ends = ((0, first), (first, second), (second, c))
    spans = ", ".join(
        f"{name}: {'none' if a == b else f'classes {a} to {b - 1}'}"
        for name, (a, b) in zip(GROUP_NAMES, ends, strict=True)
    )
    return Groups(GROUP_NAMES, of_class, f"{spans} ({why})")
