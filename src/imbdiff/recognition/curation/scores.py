"""What is known of every candidate, by a working classifier: its class, its distance to real images, copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.near_duplicates import finder, thumbnails
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.recognition.curation.space import RealSpace
from imbdiff.runtime.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class Scores:
    """One row per candidate.

    Attributes:
        predicted: (N,) int64 class that the classifier decides for. It was trained with balanced softmax: it decides,
            and gives probabilities, as if all classes were equally frequent.
        agrees: (N,) bool: that is the class asked for.
        probability: (N,) float64 of the class asked for.
        distance: (N,) float64 to the nearest real training image of the class asked for, see `space`.
        ratio: (N,) float64: the distance over what is usual among real images of that class; NaN where there is nothing
            to say what is usual.
        zone: (N,) int64 of `space.ZONES`; -1 without a ratio.
        copy_ratio: (N,) float64 of small pictures, against training images of all classes, see
            `imbdiff.data.near_duplicates`; NaN where there are too few training images.
        near_copy, exact_copy: (N,) bool.
        rows: (N, D) float32 standardised features.
        space: of the real images.
        copy_limit: ratio below which an image is a near copy; NaN where there is none.
    """

    predicted: np.ndarray
    agrees: np.ndarray
    probability: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray
    zone: np.ndarray
    copy_ratio: np.ndarray
    near_copy: np.ndarray
    exact_copy: np.ndarray
    rows: np.ndarray
    space: RealSpace
    copy_limit: float


def check_extractor(extractor: ClassifierFeatures, train: ImageSet) -> None:
    """Refuses who may not curate.

    Raises:
        ConfigError: a judge, or a classifier that saw images which are not in the training split.
    """
    if extractor.role != "working":
        raise ConfigError(
            f"{extractor.name} is a {extractor.role}: judges never curate", "use a classifier of the training split"
        )
    others = len(extractor.trained_on - set(train.hashes))
    if others or not extractor.trained_on:
        seen = f"{others} images that are not in the training split" if others else "images that are not known"
        raise ConfigError(f"{extractor.name} was trained on {seen}", "use a classifier of the training split alone")


def score(candidates: ImageSet, train: ImageSet, extractor: ClassifierFeatures) -> Scores:
    """Scores of all `candidates`, labelled with the class asked for. No other image than these and `train` is read.

    Raises:
        ConfigError: the extractor may not curate.
        DataError: images of another shape, or other classes.
    """
    check_extractor(extractor, train)
    if candidates.shape != train.shape:
        raise DataError(f"candidates are {candidates.shape} (H, W, C), the training images {train.shape}")
    if candidates.class_names != train.class_names:
        raise DataError("the candidates are of other classes than the training images", "label them by the same names")
    features = extractor.features(candidates)
    space = RealSpace(extractor.features(train), train)
    rows = space.standardise(features)
    labels = candidates.labels
    probability = extractor.probabilities(features)[np.arange(len(labels)), labels]
    distance = space.distances(rows, labels)
    ratio = distance / space.typical[labels]
    known = np.isfinite(ratio)
    zone = np.full(len(labels), -1, dtype=np.int64)
    if space.zones is not None:
        zone[known] = space.zones.of(ratio[known])
    search = finder(train)
    found = search.find(thumbnails(candidates.images), thumbnails(candidates.images, mirrored=True))
    originals = set(train.hashes)
    predicted = extractor.predict(features)
    return Scores(
        predicted=predicted,
        agrees=predicted == labels,
        probability=probability,
        distance=distance,
        ratio=ratio,
        zone=zone,
        copy_ratio=found.ratio,
        near_copy=found.near,
        exact_copy=np.array([key in originals for key in candidates.hashes], dtype=bool),
        rows=rows,
        space=space,
        copy_limit=search.limit,
    )
