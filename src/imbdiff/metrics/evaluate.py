"""Synthetic images against a reference: every number with its n, reference, extractor, fingerprint and interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.frechet import frechet
from imbdiff.metrics.kernel import kernel
from imbdiff.metrics.nearest import nearest_report
from imbdiff.metrics.statistics import wilson
from imbdiff.runtime.errors import ConfigError, DataError

PROTOCOL = {
    "class_mix": (
        "synthetic images are weighted to the reference's class mix; classes that either set lacks are left out of both"
    ),
    "FD": (
        "squared Fréchet distance in float64; needs an effective n > 2 x features in both sets; biased upwards at "
        "small n, so compare at equal n only; interval: 95 % delete-a-group jackknife (20 groups) "
        "around the value at this n"
    ),
    "KD": (
        "unbiased squared maximum mean discrepancy, kernel (x.y/D + 1)^3, stratified by class, at most 2,000 images of "
        "each set; may be negative; interval: 95 % delete-a-group jackknife (20 groups)"
    ),
    "agreement": "share of synthetic images that the judge puts into the class asked for; 95 % Wilson interval",
    "nearest": "nearest training image of the same class, in pixels, beside held-out real images",
}


def evaluate(
    synthetic: ImageSet,
    reference: ImageSet,
    train: ImageSet,
    groups: Groups,
    extractors: Sequence[Extractor],
    *,
    reference_name: str,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures `synthetic` against `reference`, overall and per group.

    Args:
        synthetic: generated images; their labels are what they were made for. uint8, as they are stored.
        reference: real images that no judge was trained on, normally the test split.
        train: the training split, for neighbours, as a second reference and as the yardstick (real images against the
            reference).
        groups: of the classes.
        extractors: judges.
        reference_name: what the reference is, printed with each number, such as "test".
        seed: of the parts drawn.

    Returns:
        JSON-able: "protocol"; "numbers", each with metric, scope ("all" or a group), value, low, high, n_synthetic,
        n_reference, n_effective (the smaller one, after weighting to the class mix), reference, extractor,
        fingerprint, direction, ranking_only, classes_left_out, refused (a reason, then value is None); "yardsticks",
        the same numbers for the training images in place of the synthetic ones; "agreement", per class; "nearest".

    Raises:
        ConfigError: a working extractor was to judge, or there is none.
        DataError: the sets do not share classes or image shape, a set is empty, or a judge was trained on the
            reference.
    """
    _check(synthetic, reference, train, groups, extractors)
    numbers: list[dict[str, Any]] = []
    yardsticks: list[dict[str, Any]] = []
    agreement: list[dict[str, Any]] = []
    for extractor in extractors:
        fs, fr, ft = (extractor.features(s) for s in (synthetic, reference, train))
        saw_train = not extractor.trained_on.isdisjoint(train.hashes)
        # many small products: threads would cost more than they give, and the numbers do not depend on their count
        with threadpool_limits(limits=1, user_api="blas"):
            for scope in ["all", *groups.present]:
                to_reference = (reference.labels, fr, reference_name, False)
                to_train = (train.labels, ft, "train", saw_train)
                numbers += _distances(extractor, scope, groups, synthetic.labels, fs, *to_reference, seed=seed)
                numbers += _distances(extractor, scope, groups, synthetic.labels, fs, *to_train, seed=seed)
                yardsticks += _distances(extractor, scope, groups, train.labels, ft, *to_reference, seed=seed)
        predicted = extractor.predict(fs)
        if predicted is not None:
            found = _agreement(extractor, predicted, synthetic, groups)
            numbers += found[0]
            agreement += found[1]
    return {
        "protocol": {
            **PROTOCOL,
            "reference": reference_name,
            "n_reference": len(reference),
            "n_synthetic": len(synthetic),
            "n_train": len(train),
            "groups": groups.rule,
            "ranking_only": [e.name for e in extractors if e.ranking_only],
            "fingerprints": {
                "synthetic": synthetic.fingerprint,
                "reference": reference.fingerprint,
                "train": train.fingerprint,
            },
            "seed": seed,
        },
        "numbers": numbers,
        "yardsticks": yardsticks,
        "agreement": agreement,
        "nearest": nearest_report(synthetic, train, reference, groups),
    }


def _check(
    synthetic: ImageSet, reference: ImageSet, train: ImageSet, groups: Groups, extractors: Sequence[Extractor]
) -> None:
    for name, images in (("synthetic", synthetic), ("reference", reference), ("training", train)):
        if not len(images):
            raise DataError(f"there are no {name} images to evaluate", "sample or hold out some first")
        if images.class_names != train.class_names:
            raise DataError(
                f"the {name} images have other classes than the training images "
                f"({len(images.class_names)} and {len(train.class_names)})",
                "evaluate images of the same data set",
            )
        if images.shape != train.shape:
            raise DataError(
                f"the {name} images are {images.shape} (H, W, C), the training images {train.shape}",
                "evaluate at the size that was trained",
            )
    if len(groups.of_class) != len(train.class_names):
        raise DataError(f"the groups are of {len(groups.of_class)} classes, the images of {len(train.class_names)}")
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


def _distances(
    extractor: Extractor,
    scope: str,
    groups: Groups,
    labels: np.ndarray,
    features: np.ndarray,
    reference_labels: np.ndarray,
    reference_features: np.ndarray,
    reference_name: str,
    judge_saw_reference: bool,
    *,
    seed: int,
) -> list[dict[str, Any]]:
    c = len(groups.of_class)
    members = np.arange(c) if scope == "all" else np.array(groups.classes(scope))
    counts, reference_counts = np.bincount(labels, minlength=c), np.bincount(reference_labels, minlength=c)
    shared = members[(counts[members] > 0) & (reference_counts[members] > 0)]
    x, y = np.isin(labels, shared), np.isin(reference_labels, shared)
    common = {
        "scope": scope,
        "n_synthetic": int(x.sum()),
        "n_reference": int(y.sum()),
        "reference": reference_name,
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "direction": "lower",
        "ranking_only": extractor.ranking_only,
        "judge_saw_reference": judge_saw_reference,
        "classes_left_out": len(members) - len(shared),
    }
    proportions = np.where(np.isin(np.arange(c), shared), reference_counts, 0).astype(np.float64)
    rows = []
    for metric, function in (("FD", frechet), ("KD", kernel)):
        name = f"{metric}[{extractor.name}]"
        if not len(shared):
            reason = "no class has images in both sets"
            rows.append({"metric": name, "value": None, "low": None, "high": None, "refused": reason, **common})
            continue
        found = function(
            features[x], reference_features[y], labels[x], reference_labels[y], proportions / proportions.sum(), seed
        )
        n = (found.get("n_effective_x", found.get("n_x")), found.get("n_effective_y", found.get("n_y")))
        row = {"metric": name, **{key: found[key] for key in ("value", "low", "high", "refused")}, **common}
        rows.append({**row, "n_effective": min(float(v) for v in n if v is not None)})
    return rows


def _agreement(
    extractor: Extractor, predicted: np.ndarray, synthetic: ImageSet, groups: Groups
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Numbers per scope (pooled over the images of its classes), and one row per class that has synthetic images."""
    right = predicted == synthetic.labels
    of_class = np.asarray(groups.of_class)[synthetic.labels]
    numbers = []
    for scope in ["all", *groups.present]:
        mine = np.ones(len(right), bool) if scope == "all" else of_class == groups.names.index(scope)
        n, hits = int(mine.sum()), int(right[mine].sum())
        low, high = wilson(hits, n)
        numbers.append(
            {
                "metric": f"agreement[{extractor.name}]",
                "scope": scope,
                "value": hits / n if n else None,
                "low": low if n else None,
                "high": high if n else None,
                "n_synthetic": n,
                "n_reference": 0,
                "n_effective": float(n),
                "reference": "label asked for",
                "extractor": extractor.name,
                "fingerprint": extractor.fingerprint,
                "direction": "higher",
                "ranking_only": extractor.ranking_only,
                "judge_saw_reference": False,
                "classes_left_out": sum(not (synthetic.labels == k).any() for k in _members(groups, scope)),
                "refused": None if n else "no synthetic image of these classes",
            }
        )
    per_class = []
    for k in np.unique(synthetic.labels).tolist():
        mine = synthetic.labels == k
        n, hits = int(mine.sum()), int(right[mine].sum())
        low, high = wilson(hits, n)
        row = {"class": synthetic.class_names[k], "label": k, "n": n, "value": hits / n, "low": low, "high": high}
        per_class.append({**row, "extractor": extractor.name, "fingerprint": extractor.fingerprint})
    return numbers, per_class


def _members(groups: Groups, scope: str) -> Sequence[int]:
    return range(len(groups.of_class)) if scope == "all" else groups.classes(scope)
