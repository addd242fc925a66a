"""Synthetic images against a reference: every number with its n, reference, extractor, fingerprint and interval."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.features import FeatureStore, OnProgress, StoredReference
from imbdiff.metrics.measures import MEASURES, Measure
from imbdiff.metrics.memorisation import PROTOCOL as MEMORISATION
from imbdiff.metrics.memorisation import memorisation_report
from imbdiff.metrics.numbers import Found, Number, Of, Origin
from imbdiff.metrics.rows import Estimate, Rows, Scope, scopes
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError, DataError

SCHEMA = "imbdiff-metrics/1"
CLASS_MIX = (
    "synthetic images are weighted to the reference's class mix; classes that either set lacks are left out of both"
)
LARGE = 20_000_000
"""Feature values in one set from which BLAS gets all threads, instead of one for each of several scopes at a time."""

LEAST_DRAWS = 5
"""Groups of images that belong together, from which on there is an interval."""

MOST_AT_ONCE = 4
"""Scopes at a time: each may take half a gigabyte."""

Images = ImageSet | StoredReference


@dataclass(frozen=True, eq=False)
class _Set:
    """One set of images with the rows of the extractor at work, and whether that was trained on some of them."""

    name: str
    rows: Rows
    saw: bool = False


@dataclass(frozen=True, eq=False)
class _Job:
    """One measure of one scope of two sets, whose images its numbers are of, and what they are called."""

    scope: Scope
    fake: Rows
    real: Rows
    measure: Measure
    of: Of
    reference: str
    saw: bool
    left_out: int


def evaluate(
    synthetic: Images,
    reference: Images,
    train: ImageSet | None,
    groups: Groups | None,
    extractors: Sequence[Extractor],
    *,
    reference_name: str,
    seed: int = 0,
    store: FeatureStore | None = None,
    measures: Mapping[str, Measure] = MEASURES,
    progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Measures `synthetic` against `reference`: overall, per group and per class.

    Args:
        synthetic: generated images; their labels are what they were made for. uint8, as they are stored.
        reference: real images that no judge was trained on, normally the test split; or a stored reference.
        train: the training split: for memorisation, as a second reference, and as the baseline (real images against
            the reference). None where it is not at hand: these parts are left out, as the protocol notes.
        groups: of the classes, by training counts; None: no groups.
        extractors: judges. The first one's features serve memorisation, in addition to pixels.
        reference_name: what the reference is, printed with each number, such as "test".
        seed: of image keys, halvings and clusterings.
        store: keeps features; with several processes each extracts its part. Default: memory only.
        measures: rows of the table; with more of them from outside: :func:`imbdiff.metrics.measures.choose_measures`.
        progress: called with what is done and how far it is.

    Returns:
        JSON-able. "schema"; "protocol"; "numbers", one :class:`~imbdiff.metrics.numbers.Number` for each metric, scope
        ("all" or a group) and reference; "baselines", the same for the training images in place of the synthetic
        ones (for metrics of one set alone: of the reference images); "classes": names, counts and, per metric, a
        :class:`~imbdiff.metrics.numbers.ClassColumn`; "memorisation"; "warnings", sentences.

    Raises:
        ConfigError: a working extractor was to judge, or there is none.
        DataError: the sets do not share classes or image shape, a set has fewer than two images, a judge was trained on
            the reference, or features are not finite.
    """
    if reference_name in ("train", "synthetic"):  # these are names of the other sets
        reference_name = f"reference ({reference_name})"
    check_sets(synthetic, reference, train, groups)
    check_judges(extractors, reference)
    store, progress = store or FeatureStore(), progress or (lambda what, done, total: None)
    names = synthetic.class_names
    every = list(scopes(names, groups))
    measures = {name: measure for name, measure in measures.items() if measure.function is not None}
    given: dict[str, Images] = {"synthetic": synthetic, "reference": reference} | (
        {} if train is None else {"train": train}
    )
    found = Found(len(names))
    main_features: dict[str, Any] | None = None
    for extractor in extractors:
        sets = []
        for kind, images in given.items():
            name = reference_name if kind == "reference" else kind
            sets.append(_extracted(name, images, extractor, names, seed, store, progress))
        jobs = _jobs(sets, every, list(measures.values()), len(names))
        what = f"measuring with {extractor.name}"
        for job, estimates in zip(jobs, _computed(jobs, seed, store.dist, partial(progress, what)), strict=True):
            _add(found, job, estimates, extractor)
        if main_features is None and train is not None:
            own, held, seen = (s.rows.features for s in sets)
            held_out = held if isinstance(reference, ImageSet) else None
            main_features = {"extractor": extractor.name, "synthetic": own, "held_out": held_out, "train": seen}
    memorised = None
    if train is not None and isinstance(synthetic, ImageSet):
        progress("looking for copies", 0, 1)
        if store.dist.main:
            known = reference if isinstance(reference, ImageSet) else None
            one_group = Groups(("all classes",), (0,) * len(names), "no groups")
            memorised = memorisation_report(synthetic, train, known, groups or one_group, features=main_features)
        memorised = store.dist.broadcast(memorised)
        progress("looking for copies", 1, 1)
    known_hashes = set(reference.hashes)
    same = sum(key in known_hashes for key in synthetic.hashes)
    counts = {kind: np.bincount(images.labels, minlength=len(names)).tolist() for kind, images in given.items()}
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "protocol": {
            "class_mix": CLASS_MIX,
            "measures": {name: {"what": m.what, "source": m.source} for name, m in measures.items()},
            "memorisation": MEMORISATION if train is not None else "not computed: no training images were given",
            "reference": reference_name,
            "n_reference": len(reference),
            "n_synthetic": len(synthetic),
            "n_train": None if train is None else len(train),
            "n_synthetic_in_reference": same,
            "groups": None if groups is None else groups.rule,
            **_together(given),
            "extractors": [e.described() for e in extractors],
            "fingerprints": {kind: images.fingerprint for kind, images in given.items()},
            "subsets": "images by the hash of their pixels: order of files, workers and processes change nothing",
            "seed": seed,
        },
        "numbers": [],
        "baselines": [],
        "classes": {
            "names": list(names),
            "group": None if groups is None else [groups.names[g] for g in groups.of_class],
            "n_synthetic": counts["synthetic"],
            "n_reference": counts["reference"],
            "n_train": counts.get("train"),
            "metrics": [],
        },
        "memorisation": memorised,
        "warnings": [
            f"{same:,} of {len(synthetic):,} synthetic images equal a reference image pixel by pixel: numbers "
            "of copies look perfect and say nothing of a generator"
        ] if same else [],
    }  # fmt: skip
    found.into(report)
    return report


def _together(given: Mapping[str, Images]) -> dict[str, Any]:
    """How many groups of images that belong together each set has, where that is known."""
    known = {kind: len(set(x.groups)) for kind, x in given.items() if isinstance(x, ImageSet) and x.groups is not None}
    how = "intervals take images that belong together as one draw; n counts images"
    return {"images_belong_together": {**known, "intervals": how}} if known else {}


def _extracted(
    name: str, images: Images, extractor: Extractor, names: tuple[str, ...], seed: int, store: FeatureStore,
    progress: OnProgress,
) -> _Set:  # fmt: skip
    """The features of a set, and, but for the training images, what the extractor makes of them."""
    what = f"{extractor.name}: features of {name} images"
    progress(what, 0, len(images))
    features = store.features(images, extractor, partial(progress, what))
    predicted, probabilities = (None, None) if name == "train" else _decisions(extractor, features, names)
    rows = Rows.of(
        features, images.labels, hashes=images.hashes, seed=seed, predicted=predicted, probabilities=probabilities,
        together=images.groups if isinstance(images, ImageSet) else None,
    )  # fmt: skip
    return _Set(name, rows, not extractor.trained_on.isdisjoint(images.hashes))


def _decisions(
    extractor: Extractor, features: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(N,) labels that the extractor gives, and its (N, C) probabilities; None where there are none.

    Labels go by the names of its classes, -1 for those that the data set lacks. One without names has the classes of
    the data set, if it has as many.
    """
    probabilities, predicted = extractor.probabilities(features), extractor.predict(features)
    if predicted is None:
        return None, probabilities
    if extractor.classes is not None:
        label = {name: k for k, name in enumerate(names)}
        order = np.array([label.get(name, -1) for name in extractor.classes], dtype=np.int64)
        return (order[predicted] if set(names) <= set(extractor.classes) else None), probabilities
    same = probabilities is None or probabilities.shape[1] == len(names)
    return (predicted if same else None), probabilities


def _jobs(sets: list[_Set], every: list[Scope], measures: list[Measure], num_classes: int) -> list[_Job]:
    """Everything to be computed: against the reference, against the training images, and the baselines."""
    fake, reference, *more = sets
    compared = [m for m in measures if not m.needs]
    pairs: list[tuple[_Set, _Set, list[Measure], Of]] = [(fake, reference, compared, "synthetic")]
    if more:
        pairs.append((fake, more[0], [m for m in compared if m.against_train], "synthetic"))
        pairs.append((more[0], reference, compared, "train"))
    jobs = []
    for first, second, wanted, of in pairs:
        for scope in every:
            a, b, left_out = scope.pair(first.rows, second.rows, num_classes)
            jobs += [_Job(scope, a, b, m, of, second.name, second.saw, left_out) for m in wanted]
    alone = [m for m in measures if m.needs and getattr(fake.rows, m.needs) is not None]
    for scope in every if alone else ():
        a, b, left_out = scope.pair(fake.rows, reference.rows, num_classes)
        for m in alone:
            jobs.append(_Job(scope, a, b, m, "synthetic", "none", False, left_out))
            jobs.append(_Job(scope, b, a, m, "reference", f"{reference.name} images", False, left_out))
    return jobs


def _computed(
    jobs: list[_Job], seed: int, dist: Dist, progress: Callable[[int, int], None]
) -> list[dict[str, Estimate]]:
    """What each job found. Every job is computed by itself, so their order and number at a time change nothing.

    With several processes each computes its share, and all get everything.
    """
    # in turn, one further every time round, so that no process gets the same measure of every scope
    owners = [(i + i // dist.world) % dist.world for i in range(len(jobs))]
    mine = [job for job, owner in zip(jobs, owners, strict=True) if owner == dist.rank]
    progress(0, len(mine))
    large = max(max(len(j.fake), len(j.real)) * j.fake.dim for j in jobs) > LARGE
    threads = 1 if large else min(os.cpu_count() or 1, MOST_AT_ONCE)
    found = []
    # small products: threads inside them would cost more than they give
    with threadpool_limits(limits=None if large else 1), ThreadPoolExecutor(threads) as pool:
        for estimates in pool.map(lambda job: job.measure.numbers(job.fake, job.real, seed=seed), mine):
            found.append(estimates)
            progress(len(found), len(mine))
    of_process = [iter(theirs) for theirs in dist.gather_objects(found)]
    return [next(of_process[owner]) for owner in owners]


def _add(found: Found, job: _Job, estimates: Mapping[str, Estimate], extractor: Extractor) -> None:
    for metric in job.measure.metrics:
        if metric.name not in estimates:
            continue
        reference = metric.alone if metric.alone and job.of == "synthetic" else job.reference
        origin = Origin(
            metric=metric.name, k=metric.k, reference=reference, extractor=extractor.name,
            fingerprint=extractor.fingerprint, direction=metric.direction, ranking_only=extractor.ranking_only,
            judge_saw_reference=job.saw, is_fid=extractor.is_fid,
        )  # fmt: skip
        estimate = estimates[metric.name]
        if any(rows.units is not None and rows.draws < LEAST_DRAWS for rows in (job.fake, job.real)):
            estimate = replace(estimate, low=None, high=None)
        number = Number.made(origin, job.scope.name, estimate, classes_left_out=job.left_out)
        found.add(number, job.scope, job.of)


def check_sets(synthetic: Images, reference: Images, train: ImageSet | None, groups: Groups | None) -> None:
    """Raises DataError where the sets have other classes or shapes than each other, or fewer than two images."""
    sets = {"synthetic": synthetic, "reference": reference} | ({} if train is None else {"training": train})
    for name, images in sets.items():
        if len(images) < 2:
            raise DataError(
                f"{name} images to evaluate: {len(images)}, and at least two are needed",
                "sample or hold out some first",
            )
        if images.class_names != reference.class_names:
            raise DataError(
                f"the {name} images have other classes than the reference "
                f"({len(images.class_names)} and {len(reference.class_names)})",
                "evaluate images of the same data set",
            )
        if images.shape != reference.shape:
            (h, w, c), (h2, w2, c2) = images.shape, reference.shape
            mode = {1: "grey", 3: "RGB"}
            stored = isinstance(reference, StoredReference)
            tall, wide = (h2, w2) if stored else min((h, w), (h2, w2), key=lambda shape: (shape[0] * shape[1], shape))
            side = tall if tall == wide else f"{tall}x{wide}"
            raise DataError(
                f"the {name} images are {h} x {w} {mode[c]}, the reference is {h2} x {w2} {mode[c2]}",
                f"give --size {side}" if c == c2 else "save both as grey or both as RGB",
            )
    if train is not None and set(train.hashes) == set(reference.hashes):
        raise DataError(
            "the reference is the training set itself: what was copied from it would look perfect",
            "give as reference images that the generator has not seen, or leave the training images out",
        )
    if groups is not None and len(groups.of_class) != len(reference.class_names):
        raise DataError(f"the groups are of {len(groups.of_class)} classes, the images of {len(reference.class_names)}")


def check_judges(extractors: Sequence[Extractor], reference: Images) -> None:
    """Raises where there is no extractor, or one may not judge, saw the reference, or cannot read the images."""
    names = [e.name for e in extractors]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"extractors to evaluate with: {', '.join(names) or 'none'}", "name at least one, each once")
    for extractor in extractors:
        if extractor.role != "judge":
            raise ConfigError(
                f"{extractor.name} is a working extractor: it may steer the work, so it may not judge it",
                "evaluate with a judge: one that is used for nothing else",
            )
        if seen := extractor.trained_on.intersection(reference.hashes):
            raise DataError(
                f"judge {extractor.name} was trained on {len(seen)} images of the reference",
                "train the judge without them, or take another reference",
            )
        extractor.check(reference.shape)
        if isinstance(reference, StoredReference):
            reference.stored(extractor)
