"""A grid of classes by samples, to look at while a model trains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.pipeline.samples import encode_png
from imbdiff.pipeline.sampling import sampling
from imbdiff.reporting.sprites import sample_grid

CLASSES, PER_CLASS, STEPS = 10, 6, 20


def preview_grid(model: DiffusionModel, config: RunConfig, groups: Groups | None = None) -> bytes:
    """A PNG of the same images each time: at most the 10 largest classes, 6 images of each, at most 20 steps.

    `groups` are those of the classes, by which scales may be given; default: those of the class counts.
    """
    stats = model.spec.stats
    largest = np.argsort(-np.asarray(stats.counts), kind="stable")[:CLASSES]
    labels = np.repeat(np.sort(largest), PER_CLASS)
    how = sampling(config)
    how = replace(how, steps=min(how.steps, STEPS))
    images = generate(
        model, labels, np.arange(len(labels)), sampler=how.sampler, steps=how.steps,
        guidance=how.guide(model, groups, partial=True), batch_size=30, boost=how.boost, skip=how.skip,
    )  # fmt: skip
    grid = sample_grid(ImageSet(images, labels, stats.names), per_class=PER_CLASS, max_classes=CLASSES)
    return encode_png(np.asarray(grid.convert("RGB")))
