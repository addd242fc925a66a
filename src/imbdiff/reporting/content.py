"""What a report is made of: plain results, every part of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.runtime.errors import DataError


@dataclass(frozen=True, eq=False)
class ReportData:
    """One run's results, as the page needs them.

    Only the first fields are needed; whatever else is missing is said to be missing, with the command that makes it.

    Attributes:
        title: the page's heading.
        command: the command line that repeats the run.
        method: name of the method that trained the generator.
        source: what was loaded, as the user wrote it.
        environment: versions and hardware, any nesting.
        config: the resolved configuration, any nesting.
        stats: class statistics of the training split.
        groups: many / medium / few, a partition of the classes of `stats`.
        warnings: sentences for the reader, from all stages.
        manifest: the split: "counts", "hash", "seed", "profile", "val" and so on (`Prepared.manifest`).
        sampled: (C,) synthetic images per class; empty means none.
        train: the training images; None leaves the pictures out.
        synthetic: the synthetic images, all or a sample of each class.
        nearest: for synthetic images the nearest training image: `evaluate(...)["nearest"]`.
        log: rows of the training log: {"step", "images", "loss", <term>: value, ...}.
        metrics: what `imbdiff.metrics.evaluate.evaluate` gave.
        classifier: what `imbdiff.recognition.comparison.classify` gave.
        timings: seconds per stage, {stage: seconds}.
        run: the run folder as the user named it, for the commands that the page suggests.
        protocol: further rows for the protocol box, {label: text}, shown first.
        curated: the manifest of curation, and as "candidates" the images that it chose among; None: nothing was chosen.
    """

    title: str
    command: str
    method: str
    source: str
    stats: ClassStats
    groups: Groups
    environment: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
    sampled: Sequence[int] = ()
    train: ImageSet | None = None
    synthetic: ImageSet | None = None
    nearest: Mapping[str, Any] | None = None
    log: Sequence[Mapping[str, Any]] = ()
    metrics: Mapping[str, Any] | None = None
    classifier: Mapping[str, Any] | None = None
    timings: Mapping[str, Any] = field(default_factory=dict)
    run: str = "RUN"
    protocol: Mapping[str, str] = field(default_factory=dict)
    curated: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        c = self.stats.num_classes
        if len(self.groups.of_class) != c:
            raise DataError(f"groups of {len(self.groups.of_class)} classes for {c} classes")
        if len(self.sampled) not in (0, c):
            raise DataError(f"{len(self.sampled)} numbers of synthetic images for {c} classes")
        for name, images in (("train", self.train), ("synthetic", self.synthetic)):
            if images is not None and len(images.class_names) != c:
                raise DataError(f"the {name} images have {len(images.class_names)} classes, the statistics {c}")

    @property
    def filled(self) -> tuple[int, ...]:
        """(C,) synthetic images per class, zeros where nothing was sampled."""
        return tuple(int(n) for n in self.sampled) or (0,) * self.stats.num_classes

    @property
    def memorisation(self) -> Mapping[str, Any] | None:
        """What was found about copies; None if nothing was looked for."""
        found = self.nearest or (self.metrics or {}).get("memorisation")
        return found if found and found.get("summary") else None

    def group(self, k: int) -> str:
        """Name of the group of class `k`."""
        return self.groups.names[self.groups.of_class[k]]

    @property
    def by_size(self) -> list[int]:
        """Class labels from the largest class to the smallest; ties in label order."""
        return np.argsort(-np.asarray(self.stats.counts), kind="stable").tolist()
