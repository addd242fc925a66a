"""Class statistics and groups: computed once from the label array, saved with every artefact.

Groups partition the classes. Their rule is kept as text and printed with every number that is reported by group, since
the literature uses several thresholds under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.names import counted
from imbdiff.runtime.errors import ConfigError, DataError, listing

GROUP_NAMES = ("many", "medium", "few")


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
        empty = [name for name, count in zip(self.names, self.counts, strict=True) if count < 1]
        if empty:
            raise DataError(
                f"{counted(len(empty), 'class has', 'classes have')} no training image:\n{listing(empty)}",
                "add images of them, or leave these classes out",
            )

    @classmethod
    def from_labels(cls, labels: np.ndarray, names: Sequence[str]) -> ClassStats:
        """Statistics of `labels` (N,) int with values in [0, C), C = len(names).

        Raises:
            DataError: a label is out of range, or a class has no image.
        """
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
        return np.array(self.counts, dtype=np.float64) / self.total

    @property
    def imbalance_factor(self) -> float:
        """Largest class count divided by the smallest, >= 1."""
        return max(self.counts) / min(self.counts)

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "counts": list(self.counts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClassStats:
        return cls(tuple(value["names"]), tuple(value["counts"]))


@dataclass(frozen=True)
class Groups:
    """A partition of the classes, such as many / medium / few.

    Attributes:
        names: (G,) group names, from the most to the least frequent classes. A group may be empty.
        of_class: (C,) index of each class's group.
        rule: one sentence that says how the groups were made.
    """

    names: tuple[str, ...]
    of_class: tuple[int, ...]
    rule: str

    @classmethod
    def by_threshold(cls, stats: ClassStats, many: int = 100, few: int = 20) -> Groups:
        """many: more than `many` training images; few: fewer than `few`; medium: the rest.

        Raises:
            ConfigError: the thresholds overlap, so that a class could be both many and few.
        """
        if few > many + 1:
            raise ConfigError(f"group thresholds overlap: many > {many}, few < {few}", "choose a smaller few threshold")
        of_class = tuple(0 if n > many else 2 if n < few else 1 for n in stats.counts)
        return cls(GROUP_NAMES, of_class, f"many: > {many} training images, few: < {few}, medium: between")

    @classmethod
    def by_quantile(cls, stats: ClassStats) -> Groups:
        """The third of the classes that are largest are many, the smallest third few; ties go by label order."""
        c = stats.num_classes
        third = round(c / 3)
        of_class = np.ones(c, dtype=int)
        order = np.argsort(-np.array(stats.counts), kind="stable")
        of_class[order[:third]] = 0
        of_class[order[c - third :]] = 2
        largest = "largest class" if third == 1 else f"{third} largest classes"
        smallest = "smallest" if third == 1 else f"{third} smallest"
        other = "one" if c - 2 * third == 1 else c - 2 * third
        rule = f"many: the {largest}, few: the {smallest}, medium: the other {other}"
        return cls(GROUP_NAMES, tuple(of_class.tolist()), rule)

    @classmethod
    def explicit(cls, stats: ClassStats, groups: Mapping[str, Sequence[str]]) -> Groups:
        """Groups given as {group name: class names}.

        Raises:
            ConfigError: a class is unknown, in two groups, or in none.
        """
        of_class: dict[str, int] = {}
        for g, (group, members) in enumerate(groups.items()):
            for name in members:
                if name not in stats.names:
                    raise ConfigError(f"group {group!r} names an unknown class {name!r}", "check its spelling")
                if name in of_class:
                    raise ConfigError(f"class {name!r} is in two groups", "leave it in one")
                of_class[name] = g
        missing = [name for name in stats.names if name not in of_class]
        if missing:
            raise ConfigError(f"these classes are in no group:\n{listing(missing)}", "put each into one group")
        return cls(tuple(groups), tuple(of_class[name] for name in stats.names), "given explicitly")

    @classmethod
    def default(cls, stats: ClassStats) -> Groups:
        """Thirds by class size, or the literature's thresholds (> 100, < 20) where they fit.

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
        return cls(tuple(value["names"]), tuple(value["of_class"]), value["rule"])
