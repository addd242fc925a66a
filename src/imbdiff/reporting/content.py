"""The results that the page of a run is made of; every part but the class statistics may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import ClassStats, Groups


@dataclass(frozen=True, eq=False)
class ReportData:
    """One run's results.

    Attributes:
        title: the page's heading.
        command: the command line that repeats the run.
        method: name of the method that trained the generator.
        source: what was loaded, as the user wrote it.
        stats: class statistics of the training split.
        groups: many / medium / few, a partition of the classes of `stats`.
        environment: versions and hardware, any nesting.
        config: the resolved configuration, any nesting.
        warnings: sentences for the reader, from all stages.
        manifest: the split: "counts", "hash", "seed", "long_tail" and so on (`Prepared.manifest`).
        train: the training images; None leaves the pictures out.
        synthetic: the synthetic images, of the classes of `stats`.
        log: rows of the training log: {"step", "images", "loss", <term>: value, ...}.
        metrics: what `imbdiff.metrics.evaluate.evaluate` gave.
        classifier: what `imbdiff.recognition.comparison.classify` gave, as JSON.
        timings: seconds per stage.
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
    train: ImageSet | None = None
    synthetic: ImageSet | None = None
    log: Sequence[Mapping[str, Any]] = ()
    metrics: Mapping[str, Any] | None = None
    classifier: Mapping[str, Any] | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    run: str = "RUN"
    protocol: Mapping[str, str] = field(default_factory=dict)
    curated: Mapping[str, Any] | None = None

    @property
    def filled(self) -> list[int]:
        """(C,) synthetic images per class."""
        labels = np.zeros(0, np.int64) if self.synthetic is None else self.synthetic.labels
        return np.bincount(labels, minlength=self.stats.num_classes).tolist()

    @property
    def memorisation(self) -> Mapping[str, Any] | None:
        """What was found about copies; None if nothing was searched."""
        return (self.metrics or {}).get("memorisation")

    def group(self, k: int) -> str:
        """Name of the group of class `k`."""
        return self.groups.names[self.groups.of_class[k]]

    @property
    def by_size(self) -> list[int]:
        """Class labels from the largest class to the smallest; ties in label order."""
        return np.argsort(-np.asarray(self.stats.counts), kind="stable").tolist()
