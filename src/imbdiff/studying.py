"""The options of the verb `study`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imbdiff.config import AboveZero, Count, Group, Oversampling


@dataclass(frozen=True)
class StudyOptions(Group):
    """The grid of a study: every number with every curation, recipe, weight and schedule."""

    prefix = "--"
    numbers: tuple[str, ...] = ("equal=0.25", "equal=0.5", "equal")
    """How many images, each a word of --sample.strategy: equal=0.5, auto, effective=0.9, NAME=TOTAL,NAME=TOTAL."""
    curation: tuple[str, ...] = ("none", "agreement")
    """Which of them are kept, each a --curate.policy."""
    recipes: tuple[str, ...] = ("ce", "balanced-softmax")
    """Recipes with synthetic images; `imbdiff methods` lists them."""
    weights: tuple[AboveZero, ...] = (1.0,)
    """Weights of a synthetic image in the loss, in (0, 1]."""
    schedules: tuple[Literal["mixed", "real-last"], ...] = ("mixed",)
    """When synthetic images are seen, each a --classify.synthetic_schedule."""
    seeds: Count | None = None
    """Classifiers per arm. Default: the run's --classify.seeds."""
    candidates: Oversampling = 1.5
    """Candidates per image wanted, where they are curated."""
