"""Class statistics and groups: computed once from the label array, saved with every artefact.

Groups partition the classes: every class is in exactly one, whatever the rule. The rule, thresholds and their
closedness are kept as text and printed with every number that is reported by group, because the literature uses both
``>= 100 / <= 20`` and ``> 100 / < 20`` under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.names import counted
from imbdiff.runtime.errors import ConfigError, DataError, listing

GROUP_NAMES = ("many", "medium", "few")


def _ranked(n: int, one: str, several: str) -> str:
    """ "none", "the largest class", "the 3 largest classes"."""
    return "none" if n == 0 else f"the {one}" if n == 1 else f"the {several.format(n)}"


@dataclass(frozen=True)
class ClassStats:
    """Counts and names of the training labels.

    Attributes:
        names: (C,) class names, in label order.
        counts: (C,) training images per class, as a tuple of ints; every class has at least one.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.counts):
            raise DataError(
                f"{counted(len(self.names), 'class name')} for {counted(len(self.counts), 'class', 'classes')}"
            )
        empty = [name for name, count in zip(self.names, self.counts, strict=True) if count < 1]
        if empty:
            raise DataError(
                f"{counted(len(empty), 'class has', 'classes have')} no training image:\n{listing(empty)}",
                "add images of them, or leave these classes out",
            )

    @classmethod
    def from_labels(cls, labels: np.ndarray, names: Sequence[str]) -> ClassStats:
        """Statistics of `labels` (N,) with values in [0, C), C = len(names).

        Raises:
            DataError: a label is out of range, or a class has no image.
        """
        labels = np.asarray(labels)
        bad = sorted(set(labels[(labels < 0) | (labels >= len(names))].tolist()))
        if bad:
            raise DataError(
                f"labels out of range 0..{len(names) - 1}: {bad[:20]}",
                f"there are {len(names)} class names; relabel the images or name all classes",
            )
        return cls(tuple(names), tuple(np.bincount(labels, minlength=len(names)).tolist()))

    @property
    def num_classes(self) -> int:
        return len(self.counts)

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def prior(self) -> np.ndarray:
        """(C,) float64 class frequencies, summing to 1."""
        counts = np.asarray(self.counts, dtype=np.float64)
        return counts / counts.sum()

    @property
    def imbalance_factor(self) -> float:
        """Largest class count divided by the smallest, >= 1."""
        return max(self.counts) / min(self.counts)

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "counts": list(self.counts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClassStats:
        return cls(tuple(value["names"]), tuple(int(n) for n in value["counts"]))


@dataclass(frozen=True)
class Groups:
    """A partition of the classes, such as many / medium / few.

    Attributes:
        names: (G,) group names, from the most to the least frequent classes. A group may be empty.
        of_class: (C,) index of each class's group.
        rule: one sentence that says how the groups were made, closedness included.
    """

    names: tuple[str, ...]
    of_class: tuple[int, ...]
    rule: str

    @classmethod
    def by_threshold(
        cls, stats: ClassStats, many: int = 100, few: int = 20, many_closed: bool = False, few_closed: bool = False
    ) -> Groups:
        """many: count > `many` (>= if `many_closed`); few: count < `few` (<= if `few_closed`); medium: the rest.

        Raises:
            ConfigError: the thresholds overlap, so that a class could be both many and few.
        """
        lowest_many = many if many_closed else many + 1
        highest_few = few if few_closed else few - 1
        if highest_few >= lowest_many:
            raise ConfigError(
                f"group thresholds overlap: many {'>=' if many_closed else '>'} {many}, "
                f"few {'<=' if few_closed else '<'} {few}",
                "choose a few threshold below the many threshold",
            )
        of_class = tuple(0 if n >= lowest_many else 2 if n <= highest_few else 1 for n in stats.counts)
        rule = (
            f"many: {'>=' if many_closed else '>'} {many} training images, "
            f"few: {'<=' if few_closed else '<'} {few}, medium: between"
        )
        return cls(GROUP_NAMES, of_class, rule)

    @classmethod
    def by_quantile(cls, stats: ClassStats, many: float = 1 / 3, few: float = 1 / 3) -> Groups:
        """The round(`many` C) largest classes are many, the round(`few` C) smallest few; ties go by label order.

        Raises:
            ConfigError: a share is outside [0, 1] or they add up to more than 1.
        """
        if not (0 <= many <= 1 and 0 <= few <= 1 and many + few <= 1 + 1e-9):
            raise ConfigError(f"group shares many={many}, few={few} must be in [0, 1] and add up to at most 1")
        c = stats.num_classes
        order = np.argsort(-np.asarray(stats.counts), kind="stable")
        n_many = round(many * c)
        n_few = min(round(few * c), c - n_many)
        of_class = np.ones(c, dtype=int)
        of_class[order[:n_many]] = 0
        of_class[order[c - n_few :]] = 2
        rule = (
            f"many: {_ranked(n_many, 'largest class', '{} largest classes')}, "
            f"few: {_ranked(n_few, 'smallest', '{} smallest')}, "
            f"medium: {_ranked(c - n_many - n_few, 'other one', 'other {}')}"
        )
        return cls(GROUP_NAMES, tuple(of_class.tolist()), rule)

    @classmethod
    def explicit(cls, stats: ClassStats, groups: Mapping[str, Sequence[str]]) -> Groups:
        """Groups given as {group name: class names}.

        Raises:
            ConfigError: a class is unknown, in two groups, or in none.
        """
        index = {name: k for k, name in enumerate(stats.names)}
        of_class = [-1] * stats.num_classes
        for g, (group, members) in enumerate(groups.items()):
            for name in members:
                if name not in index:
                    raise ConfigError(f"group {group!r} names an unknown class {name!r}", "check its spelling")
                if of_class[index[name]] >= 0:
                    raise ConfigError(f"class {name!r} is in two groups", "leave it in one")
                of_class[index[name]] = g
        missing = [name for name, g in zip(stats.names, of_class, strict=True) if g < 0]
        if missing:
            raise ConfigError(f"these classes are in no group:\n{listing(missing)}", "put each into one group")
        return cls(tuple(groups), tuple(of_class), "given explicitly")

    @classmethod
    def default(cls, stats: ClassStats) -> Groups:
        """Thirds by class size; the literature's thresholds (> 100, < 20) where they fit.

        They fit where the largest class has at least 500 images, as in the sets that they were made for, and no group
        is empty.
        """
        groups = cls.by_threshold(stats)
        if max(stats.counts) >= 500 and set(groups.of_class) == {0, 1, 2}:
            return groups
        return cls.by_quantile(stats)

    def classes(self, group: str) -> list[int]:
        """Labels of the classes in `group`."""
        g = self.names.index(group)
        return [k for k, other in enumerate(self.of_class) if other == g]

    @property
    def present(self) -> list[str]:
        """Names of the groups that have at least one class."""
        return [name for g, name in enumerate(self.names) if g in self.of_class]

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "of_class": list(self.of_class), "rule": self.rule}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Groups:
        return cls(tuple(value["names"]), tuple(int(g) for g in value["of_class"]), str(value["rule"]))
