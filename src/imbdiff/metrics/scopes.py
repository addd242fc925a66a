"""Scopes: all classes, a group, one class. What of two sets belongs to each, weighted to one class mix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from imbdiff.data.stats import Groups
from imbdiff.metrics.rows import Rows


@dataclass(frozen=True)
class Scope:
    """All classes, one group or one class.

    Attributes:
        kind: "all", "group" or "class".
        name: "all", or the name of the group or class.
        classes: (n,) labels.
    """

    kind: str
    name: str
    classes: np.ndarray

    def pair(self, fake: Rows, real: Rows, num_classes: int) -> tuple[Rows, Rows, int]:
        """The rows of both sets in this scope, weighted to the class mix of `real`; and how many classes are left out.

        Synthetic images fill up classes, so their class mix differs from the reference's by construction, and a plain
        distance would first of all measure that. Classes that one of the sets lacks are left out of both.
        """
        a, b = (np.bincount(r.labels, minlength=num_classes)[self.classes] for r in (fake, real))
        shared = self.classes[(a > 0) & (b > 0)]
        mix = np.zeros(num_classes)
        mix[shared] = np.bincount(real.labels, minlength=num_classes)[shared]
        return fake.mixed(mix), real.mixed(mix), len(self.classes) - len(shared)


def scopes(names: tuple[str, ...], groups: Groups | None, *, per_class: bool = True) -> Iterator[Scope]:
    """All, then groups that are present, then classes (not where there is one class only: that is "all")."""
    every = np.arange(len(names))
    yield Scope("all", "all", every)
    if groups is not None and len(groups.present) > 1:
        for name in groups.present:
            yield Scope("group", name, np.array(groups.classes(name)))
    if per_class and len(names) > 1:
        for k, name in enumerate(names):
            yield Scope("class", name, every[k : k + 1])
