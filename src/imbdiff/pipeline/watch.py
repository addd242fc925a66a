"""Measuring while the diffusion model trains: as `evaluate` does, on validation images, by a working extractor.

Weights after which images are copies of training images are not kept, however good their distance is.

Choosing weights by a number makes that number useless for judging them. So the extractor here is a classifier that saw
the training split only, the reference is the validation split, and neither is used for anything that is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.metrics.agreement import share_agreeing
from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.frechet import frechet
from imbdiff.metrics.kernel import kernel
from imbdiff.metrics.memorisation import memorisation_report
from imbdiff.metrics.rows import Estimate, Rows, Scope
from imbdiff.pipeline.recognising import working_of
from imbdiff.pipeline.sampling import Sampling, encode_png, sampling
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.reporting.pictures import sample_grid
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.files import read_json, write_json
from imbdiff.runtime.log import JsonLog, read_jsonl

#: images to sample each time, the same labels and seeds
SAMPLES = 512
#: the number that decides: the distance that a few hundred images suffice for; less is better
METRIC = "KD"
CLASSES, PER_CLASS, STEPS = 8, 4, 20
"""Of a preview grid."""


@dataclass
class Watch:
    """Measures averaged weights and keeps the best.

    Attributes:
        folder: of the run; ``watch.jsonl`` gets a line per measurement, ``checkpoints/best`` the best model.
    """

    prepared: Prepared
    config: RunConfig
    folder: Path
    log: Callable[[str], None] = lambda _: None
    _logged: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.prepared.val is None or len(self.prepared.val) < 20:
            n = 0 if self.prepared.val is None else len(self.prepared.val)
            raise DataError(
                f"--train.watch_images needs at least 20 validation images, here are {n}",
                "raise --data.val_fraction, or leave it out",
            )
        self._extractor: Extractor | None = None
        self._real: Rows | None = None

    def __call__(self, model: DiffusionModel, seen: int) -> None:
        """Measures `model`, writes a line, and keeps the model if it is the best so far and makes no copies."""
        began = time.monotonic()
        images = self.sample(model)
        numbers, copied = self.measure(images), self.copies(images)
        line: dict[str, Any] = {name: {"value": e.value, "low": e.low, "high": e.high} for name, e in numbers.items()}
        line |= {"near_copies": copied["summary"][0]["near_copy_share"], "copies": copied["warnings"]}
        missing = sampling(self.config).missing(model)
        if missing:
            line["without_guidance"] = missing
            self._log_missing(missing)
        rows = [row for row in read_jsonl(self.folder / "watch.jsonl") if row["images"] < seen]
        log = JsonLog(self.folder / "watch.jsonl")
        log.cut(lambda row: row["images"] < seen)
        log.write(images=seen, seconds=round(time.monotonic() - began, 2), **line)
        value, others = numbers[METRIC].value, [row[METRIC]["value"] for row in rows if not row["copies"]]
        if copied["warnings"]:
            self.log(f"watch: not kept, after {seen:,} images there are copies: {copied['warnings'][0]}")
        elif value is not None and all(other is None or value < other for other in others):
            save_model(model, self.folder / "checkpoints" / "best")
            write_json(self.folder / "checkpoints" / "best" / "watched.json", {"images": seen, **line})

    def sample(self, model: DiffusionModel) -> ImageSet:
        """The images that are measured: of each class with validation images as many, the same seeds each time."""
        assert self.prepared.val is not None
        present = np.unique(self.prepared.val.labels)
        labels = np.sort(present[np.arange(SAMPLES) % len(present)])
        how = sampling(self.config)
        guidance = how.guide(model, self.prepared.groups, partial=True)
        images = generate(model, labels, np.arange(len(labels)), **how.generator_options(guidance))
        return ImageSet(images, labels.astype(np.int64), self.prepared.train.class_names)

    def measure(self, images: ImageSet) -> dict[str, Estimate]:
        """KD and FD∞ against the validation images and the agreement with the labels asked for."""
        val = self.prepared.val
        assert val is not None
        if self._extractor is None:
            self._extractor = working_of(self.prepared, self.config)
        fake = self._rows(images)
        if self._real is None:
            self._real = self._rows(val)
        every = Scope("all", "all", np.arange(len(val.class_names)))
        a, b, _ = every.pair(fake, self._real, len(val.class_names))
        predicted = self._extractor.predict(fake.array)
        assert predicted is not None
        return {**kernel(a, b), **frechet(a, b), "agreement": share_agreeing(predicted, fake.labels)}

    def copies(self, images: ImageSet) -> dict[str, Any]:
        """Copies of training images, by the rule of the page, against validation images as what was held out."""
        return memorisation_report(images, self.prepared.train, self.prepared.val, self.prepared.groups)

    def best_of(self, model: DiffusionModel) -> DiffusionModel:
        """The best weights, with the guide and the weak model of `model`; `model` itself where none were kept."""
        folder = self.folder / "checkpoints" / "best"
        if not (folder / "watched.json").is_file():
            rows = read_jsonl(self.folder / "watch.jsonl")
            why = "all made copies" if any(row["copies"] for row in rows) else f"none gave a {METRIC}"
            self.log(f"kept: the last weights: of {len(rows)} measurements {why}")
            return model
        found, best = read_json(folder / "watched.json"), load_model(folder)
        best.guide = model.guide
        best.keep_weak(model.weak)
        self.log(f"kept: the weights after {found['images']:,} images, {METRIC} {found[METRIC]['value']:.4g}")
        return best

    def _log_missing(self, missing: dict[str, str]) -> None:
        """Says once which guidances the images that are measured here do without."""
        if missing and not self._logged:
            self._logged = True
            left = ", ".join(f"{name} (needs {what})" for name, what in missing.items())
            self.log(f"watch: while training, images are sampled without this guidance: {left}")

    def _rows(self, images: ImageSet) -> Rows:
        assert self._extractor is not None
        return Rows.of(self._extractor.features(images), images.labels, hashes=images.hashes, seed=self.config.seed)


def previewed(stats: ClassStats, config: RunConfig) -> tuple[int, ...]:
    """The classes of a preview: of those that get synthetic images at most 8, the rarest and every so many up to the
    most frequent; rare ones first."""
    wanted = images_to_draw(config.sample.strategy, stats)
    rank = sorted((k for k, n in enumerate(wanted) if n or not sum(wanted)), key=lambda k: stats.counts[k])
    rare, others = rank[: CLASSES // 2], rank[CLASSES // 2 :]
    at = np.linspace(0, len(others) - 1, min(CLASSES - len(rare), len(others))).round().astype(int)
    return (*rare, *(others[i] for i in at))


def preview_sampling(config: RunConfig, classes: int) -> Sampling:
    """How the images of a preview of so many classes are sampled: at once, in at most 20 steps."""
    how = sampling(config)
    return replace(how, steps=min(how.steps, STEPS), batch_size=classes * PER_CLASS, precision="fp32")


def preview_grid(model: DiffusionModel, config: RunConfig, groups: Groups | None = None) -> bytes:
    """A PNG of the same images each time: 4 of each of the classes of :func:`previewed`.

    Args:
        groups: of the classes, by which scales may be given; default: those of the class counts.
    """
    stats = model.spec.stats
    classes = previewed(stats, config)
    labels = np.repeat(np.array(classes, dtype=np.int64), PER_CLASS)
    how = preview_sampling(config, len(classes))
    guidance = how.guide(model, groups, partial=True)
    images = generate(model, labels, np.arange(len(labels)), **how.generator_options(guidance))
    names = tuple(stats.names[k] for k in classes)  # in their order
    shown = ImageSet(images, np.repeat(np.arange(len(classes)), PER_CLASS), names)
    grid = sample_grid(shown, per_class=PER_CLASS, max_classes=CLASSES)
    return encode_png(np.asarray(grid.convert("RGB")))
