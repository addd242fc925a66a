"""The grid of a study: which numbers of synthetic images, curated how, in which recipes, used in which ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.arms import check_arms, check_sets
from imbdiff.recognition.curation import parse_policy
from imbdiff.recognition.fitting import check_trainings
from imbdiff.recognition.jobs import Arm
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.files import digest

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared


LONGEST = 60
"""Characters of a number in names."""


@dataclass(frozen=True)
class Cell:
    """One way of using synthetic images.

    Attributes:
        number: how many, in the words that it was asked for.
        wanted: (C,) images per class that this means.
        curation: a policy of :mod:`imbdiff.recognition.curation`.
        recipe: a name of :data:`imbdiff.recognition.recipes.RECIPES`.
        use: how the images take part.
    """

    number: str
    wanted: tuple[int, ...]
    curation: str
    recipe: str
    use: Use

    @property
    def name(self) -> str:
        curated = "" if self.curation == "none" else f", {self.curation}"
        number = self.number
        if len(number) > LONGEST:  # totals of many classes; what is cut off still tells two of them apart
            number = f"{number[:LONGEST]}... ({digest(number)[:6]})"
        return f"{number}{curated}: {get_recipe(self.recipe).label}, {self.use.words()}"

    @property
    def arm(self) -> Arm:
        """Its name becomes a file's: totals of classes, whose names are data, are left out of it."""
        number = self.number if len(self.number) <= 16 and re.fullmatch(r"[\w.= -]+", self.number, re.A) else "totals"
        return Arm(self.recipe, self.use, f"{number} {self.curation} synthetic + {get_recipe(self.recipe).label}")


def make_cells(
    numbers: Mapping[str, Sequence[int]], curation: Sequence[str], recipes: Sequence[str], uses: Sequence[Use]
) -> tuple[Cell, ...]:
    """The grid: every number with every curation, recipe and use.

    Raises:
        ConfigError: an unknown recipe or policy, the same thing twice, nothing of a kind, a number that adds nothing.
    """
    for what, given in (("number", numbers), ("curation", curation), ("recipe", recipes), ("use", uses)):
        if not len(given):
            raise ConfigError(f"the grid names no {what}", "give at least one")
    policies = ["+".join(parse_policy(text)) for text in curation]
    for recipe in recipes:
        get_recipe(recipe)
    for what, names in (("curation", policies), ("recipe", list(recipes)), ("use", [u.words() for u in uses])):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"{what} {twice!r} stands in the grid twice", "name each once: it counts as a comparison")
    seen: dict[tuple[int, ...], str] = {}
    for number, wanted in numbers.items():
        counts = tuple(int(n) for n in wanted)
        if not sum(counts):
            raise ConfigError(f"the number {number!r} adds no image to any class", "leave it out, or ask for more")
        if counts in seen:
            raise ConfigError(
                f"the numbers {seen[counts]!r} and {number!r} add the same images",
                "name one of them: each counts as a comparison",
            )
        seen[counts] = number
    return tuple(
        Cell(number, counts, policy, recipe, use)
        for counts, number in seen.items() for policy in policies for recipe in recipes for use in uses
    )  # fmt: skip


def first_of(pool: ImageSet, wanted: Sequence[int]) -> ImageSet:
    """The first `wanted` (C,) images of each class of `pool`, whose classes are in drawing order; fewer where it has
    fewer. What is asked for by larger numbers contains what is asked for by smaller ones."""
    rank = np.zeros(len(pool), dtype=np.int64)
    for k in np.unique(pool.labels).tolist():
        mine = pool.labels == k
        rank[mine] = np.arange(mine.sum())
    return pool.select(np.flatnonzero(rank < np.asarray(wanted)[pool.labels]))


def recipes_without(without: Sequence[str], cells: Sequence[Cell]) -> list[str]:
    """Recipes of the arms without synthetic images: those asked for, and each that a cell has."""
    return list(dict.fromkeys([*without, *(cell.recipe for cell in cells)]))


def missing_classes(prepared: Prepared) -> list[str]:
    """Names of the classes that claims are made of and that no validation image has; all, if claims are of none."""
    names = prepared.train.class_names
    if not any(prepared.claimable):
        return list(names)
    has = set() if prepared.val is None else set(prepared.val.labels.tolist())
    return [name for k, name in enumerate(names) if prepared.claimable[k] and k not in has]


def check_grid(
    prepared: Prepared, cells: Sequence[Cell], plan: FitPlan, without: Sequence[str], seeds: Sequence[int],
    *, reveal_test: bool = False,
) -> None:  # fmt: skip
    """Refuses what would fail later, or could show nothing; see :func:`imbdiff.recognition.sweep.sweep`."""
    if not cells:
        raise ConfigError("the grid has no cell with synthetic images", "name at least one number")
    check_arms([Arm(recipe) for recipe in recipes_without(without, cells)], seeds)
    check_sets(prepared, None)
    if not reveal_test and (prepared.val is None or not len(prepared.val)):
        raise DataError(
            "there are no validation images to choose by, so that a study could show nothing",
            "hold some out in a new run (--data.val_fraction)",
        )
    alone = [(recipe, None) for recipe in recipes_without(without, cells)]
    check_trainings(prepared.train, plan, [*alone, *((cell.recipe, cell.use) for cell in cells)])
