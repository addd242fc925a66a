"""What is refused before any long work: sets that do not belong together, and extractors that may not judge."""

from __future__ import annotations

from collections.abc import Sequence

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.features import FeatureSource
from imbdiff.runtime.errors import ConfigError, DataError

MODES = {1: "grey", 3: "RGB"}


def check_sets(
    synthetic: ImageSet | FeatureSource,
    reference: ImageSet | FeatureSource,
    train: ImageSet | None,
    groups: Groups | None,
) -> None:
    """Raises DataError where the sets have other classes or shapes than each other, or fewer than two images."""
    for name, images in (("synthetic", synthetic), ("reference", reference), ("training", train)):
        if images is None:
            continue
        if len(images) < 2:
            raise DataError(
                f"there {'is one' if len(images) else 'are no'} {name} image{'' if len(images) else 's'} to evaluate: "
                "at least two are needed",
                "sample or hold out some first",
            )
        if images.class_names != reference.class_names:
            raise DataError(
                f"the {name} images have other classes than the reference "
                f"({len(images.class_names)} and {len(reference.class_names)})",
                "evaluate images of the same data set",
            )
        if images.shape[2] != reference.shape[2]:
            raise DataError(
                f"the {name} images are {MODES[images.shape[2]]}, the reference is {MODES[reference.shape[2]]}",
                "bring both to the same mode",
            )
        if images.shape != reference.shape:
            raise DataError(
                f"the {name} images are {images.shape} (H, W, C), the reference {reference.shape}",
                "bring both to the same size",
            )
    if train is not None and set(train.hashes) == set(reference.hashes):
        raise DataError(
            "the reference is the training set itself: what was copied from it would look perfect",
            "give as reference images that the generator has not seen, or leave the training images out",
        )
    if groups is not None and len(groups.of_class) != len(reference.class_names):
        raise DataError(f"the groups are of {len(groups.of_class)} classes, the images of {len(reference.class_names)}")


def check_judges(extractors: Sequence[Extractor], reference: ImageSet | FeatureSource) -> None:
    """Raises where there is no extractor, or one may not judge, saw the reference, or cannot read the images."""
    names = [e.name for e in extractors]
    if len(set(names)) < len(names):
        raise ConfigError(f"two extractors have the same name: {', '.join(names)}", "give each only once")
    if not extractors:
        raise ConfigError("no extractor to evaluate with", "give at least one, such as RandomConv(channels)")
    for extractor in extractors:
        if extractor.role != "judge":
            raise ConfigError(
                f"{extractor.name} is a working extractor: it may steer the work, so it may not judge it",
                "evaluate with a judge: one that is used for nothing else",
            )
        seen = extractor.trained_on.intersection(reference.hashes)
        if seen:
            raise DataError(
                f"judge {extractor.name} was trained on {len(seen)} images of the reference",
                "train the judge without them, or take another reference",
            )
        extractor.check(reference.shape)
        stored = getattr(reference, "stored", None)
        if stored is not None:
            stored(extractor)
