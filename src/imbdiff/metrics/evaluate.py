"""Synthetic images against a reference: every number with its n, reference, extractor, fingerprint and interval."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.metrics import agreement
from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.features import FeatureSource, FeatureStore
from imbdiff.metrics.measures import MEASURES, Measure
from imbdiff.metrics.memorisation import PROTOCOL as MEMORISATION
from imbdiff.metrics.memorisation import memorisation_report
from imbdiff.metrics.numbers import ClassColumns, Number, Of
from imbdiff.metrics.rows import Estimate, Rows, Scope, scopes
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError, DataError

SCHEMA = "imbdiff-metrics/1"
CLASS_MIX = (
    "synthetic images are weighted to the reference's class mix; classes that either set lacks are left out of both"
)
LARGE = 20_000_000
"""Feature values in one set from which BLAS gets all threads, instead of one for each of several scopes at a time."""

MOST_AT_ONCE = 4
"""Scopes at a time: each may take half a gigabyte."""

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, eq=False)
class _Set:
    """One set of images with the rows of the extractor at work."""

    name: str
    source: ImageSet | FeatureSource
    rows: Rows
    features: np.ndarray
    saw: bool = False


@dataclass
class _Found:
    """Where numbers go: those of single classes into columns, the others apart by whose images they are of."""

    columns: ClassColumns
    numbers: list[Number] = field(default_factory=list)
    baselines: list[Number] = field(default_factory=list)

    def add(self, number: Number, scope: Scope, of: Of) -> None:
        if scope.kind == "class":
            self.columns.add(number, int(scope.classes[0]), of)
        else:
            (self.numbers if of == "synthetic" else self.baselines).append(number)


@dataclass
class _Job:
    """One scope of one pair of sets: the rows to compute with, and the origin of its numbers."""

    scope: Scope
    fake: Rows
    real: Rows
    measures: Mapping[str, Measure]
    origin: dict[str, Any]
    of: Of
    found: dict[str, Estimate] = field(default_factory=dict)


def evaluate(
    synthetic: ImageSet | FeatureSource,
    reference: ImageSet | FeatureSource,
    train: ImageSet | None,
    groups: Groups | None,
    extractors: Sequence[Extractor],
    *,
    reference_name: str,
    seed: int = 0,
    store: FeatureStore | None = None,
    measures: Mapping[str, Measure] = MEASURES,
    workers: int | None = None,
    progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Measures `synthetic` against `reference`: overall, per group and per class.

    Args:
        synthetic: generated images; their labels are what they were made for. uint8, as they are stored.
        reference: real images that no judge was trained on, normally the test split; or a stored reference.
        train: the training split: for memorisation, as a second reference, and as the baseline (real images against
            the reference). None where it is not at hand: these parts are left out, and the protocol says so.
        groups: of the classes, by training counts; None: no groups.
        extractors: judges. The first one's features serve memorisation, in addition to pixels.
        reference_name: what the reference is, printed with each number, such as "test".
        seed: of image keys, halvings and clusterings.
        store: keeps features; with several processes each extracts its part. Default: memory only.
        measures: rows of the table; with more of them from outside: :func:`imbdiff.metrics.measures.choose_measures`.
        workers: scopes computed at a time; default: the cores, at most 4. Changes no number.
        progress: called with what is done and how far it is.

    Returns:
        JSON-able. "schema"; "protocol"; "numbers", one :class:`~imbdiff.metrics.numbers.Number` for each metric, scope
        ("all" or a group) and reference; "baselines", the same for the training images in place of the synthetic
        ones; "classes": names, counts and, per metric, a :class:`~imbdiff.metrics.numbers.ClassColumn`;
        "memorisation".

    Raises:
        ConfigError: a working extractor was to judge, or there is none.
        DataError: the sets do not share classes or image shape, a set has fewer than two images, a judge was trained on
            the reference, or features are not finite.
    """
    if reference_name in ("train", "synthetic"):  # these are names of the other sets
        reference_name = f"reference ({reference_name})"
    check_sets(synthetic, reference, train, groups)
    check_judges(extractors, reference)
    store = store or FeatureStore()
    names = synthetic.class_names
    every = list(scopes(names, groups))
    found = _Found(ClassColumns(len(names)))
    main_features: dict[str, Any] | None = None
    measures = {name: measure for name, measure in measures.items() if measure.function is not None}
    metrics = {
        metric.name: {"direction": metric.direction, "k": metric.k} for m in measures.values() for metric in m.metrics
    }
    report = progress or (lambda what, done, total: None)
    for extractor in extractors:
        sets = _extract(synthetic, reference, train, extractor, reference_name, seed, store, report)
        jobs = _jobs(sets, every, extractor, measures, len(names))
        _compute(jobs, seed, workers, store.dist, partial(report, f"measuring with {extractor.name}"))
        for job in jobs:
            for name, estimate in job.found.items():
                number = Number.of(name, job.scope.name, estimate, **metrics[name], **job.origin)
                found.add(number, job.scope, job.of)
        for answer in agreement.report(extractor, sets[0].rows, sets[1].rows, sets[1].name, every, names, seed=seed):
            found.add(*answer)
        if main_features is None and train is not None:
            own, held, seen = (s.features for s in sets)
            main_features = {"extractor": extractor.name, "synthetic": own, "held_out": held, "train": seen}
    memorised = None
    if train is not None and isinstance(synthetic, ImageSet):
        report("looking for copies", 0, 1)
        held_out = reference if isinstance(reference, ImageSet) else None
        if held_out is None and main_features is not None:
            main_features["held_out"] = None
        if store.dist.main:
            of = _one_group(groups, train)
            memorised = memorisation_report(synthetic, train, held_out, of, features=main_features)
        memorised = store.dist.broadcast(memorised)
        report("looking for copies", 1, 1)
    return {
        "schema": SCHEMA,
        "protocol": _protocol(synthetic, reference, train, groups, extractors, measures, reference_name, seed),
        "numbers": [number.to_json() for number in found.numbers],
        "baselines": [number.to_json() for number in found.baselines],
        "classes": {
            "names": list(names),
            "group": None if groups is None else [groups.names[g] for g in groups.of_class],
            "n_synthetic": _counts(synthetic, len(names)),
            "n_reference": _counts(reference, len(names)),
            "n_train": None if train is None else _counts(train, len(names)),
            "metrics": found.columns.to_json(),
        },
        "memorisation": memorised,
    }


def _extract(
    synthetic: ImageSet | FeatureSource,
    reference: ImageSet | FeatureSource,
    train: ImageSet | None,
    extractor: Extractor,
    reference_name: str,
    seed: int,
    store: FeatureStore,
    report: OnProgress,
) -> list[_Set]:
    """The synthetic images, the reference and, where given, the training images, in this order."""
    todo = [("synthetic", synthetic), (reference_name, reference)]
    todo += [("train", train)] if train is not None else []
    result = []
    for name, source in todo:
        what = f"{extractor.name}: features of {name} images"
        report(what, 0, len(source))
        features = store.features(source, extractor, partial(report, what))
        saw = not extractor.trained_on.isdisjoint(source.hashes)
        rows = Rows.of(features, source.labels, hashes=source.hashes, seed=seed)
        result.append(_Set(name, source, rows, features, saw))
    return result


def _jobs(
    sets: list[_Set], every: list[Scope], extractor: Extractor, measures: Mapping[str, Measure], num_classes: int
) -> list[_Job]:
    fake, reference, *more = sets
    pairs: list[tuple[_Set, _Set, Mapping[str, Measure], Of]] = [(fake, reference, measures, "synthetic")]
    if more:
        against = {name: m for name, m in measures.items() if m.against_train}
        pairs += [(fake, more[0], against, "synthetic"), (more[0], reference, measures, "train")]
    jobs = []
    for first, second, wanted, of in pairs:
        for scope in every:
            a, b, left_out = scope.pair(first.rows, second.rows, num_classes)
            origin = {**extractor.origin, "reference": second.name, "judge_saw_reference": second.saw}
            jobs.append(_Job(scope, a, b, wanted, {**origin, "classes_left_out": left_out}, of))
    return jobs


def _compute(jobs: list[_Job], seed: int, workers: int | None, dist: Dist, report: Callable[[int, int], None]) -> None:
    """Fills in what was found. Every job is computed by itself, so their order and number at a time change nothing.

    With several processes each computes its share, and all get everything.
    """
    mine = jobs[dist.rank :: dist.world]
    report(0, len(mine))
    large = max(max(len(j.fake), len(j.real)) * j.fake.dim for j in jobs) > LARGE
    threads = 1 if large else workers or min(os.cpu_count() or 1, MOST_AT_ONCE)

    def one(job: _Job) -> None:
        if not len(job.fake) or not len(job.real):
            reason = Estimate.refuse("no class has images in both sets", job.fake, job.real)
            job.found = {metric.name: reason for m in job.measures.values() for metric in m.metrics}
            return
        for measure in job.measures.values():
            job.found.update(measure.numbers(job.fake, job.real, seed=seed))

    # small products: threads inside them would cost more than they give
    with threadpool_limits(limits=None if large else 1), ThreadPoolExecutor(threads) as pool:
        for done, _ in enumerate(pool.map(one, mine), start=1):
            report(done, len(mine))
    for rank, found in enumerate(dist.gather_objects([job.found for job in mine])):
        for job, numbers in zip(jobs[rank :: dist.world], found, strict=True):
            job.found = numbers


def _described(extractor: Extractor) -> dict[str, Any]:
    """What the protocol says of an extractor."""
    trained_on = extractor.trained_on_note
    if not trained_on and extractor.trained_on:
        trained_on = f"{len(extractor.trained_on):,} images, by hash"
    return {
        "name": extractor.name,
        "fingerprint": extractor.fingerprint,
        "role": extractor.role,
        "dim": extractor.dim,
        "preprocessing": extractor.preprocessing,
        "weights": extractor.weights_note,
        "trained_on": trained_on,
        "ranking_only": extractor.ranking_only,
        "is_fid": extractor.is_fid,
        "verified": extractor.verified,
        "classes": "taken to be those of the data set, in order" if extractor.classes is None else "by name",
    }


def _counts(images: ImageSet | FeatureSource, num_classes: int) -> list[int]:
    return np.bincount(images.labels, minlength=num_classes).tolist()


def _one_group(groups: Groups | None, train: ImageSet) -> Groups:
    return groups or Groups(("all classes",), (0,) * len(train.class_names), "no groups")


def _protocol(
    synthetic: ImageSet | FeatureSource,
    reference: ImageSet | FeatureSource,
    train: ImageSet | None,
    groups: Groups | None,
    extractors: Sequence[Extractor],
    measures: Mapping[str, Measure],
    reference_name: str,
    seed: int,
) -> dict[str, Any]:
    """What the numbers depend on."""
    sets = {"synthetic": synthetic, "reference": reference, **({} if train is None else {"train": train})}
    return {
        "class_mix": CLASS_MIX,
        "measures": {name: {"what": m.what, "source": m.source} for name, m in measures.items()},
        "agreement": agreement.PROTOCOL,
        "memorisation": MEMORISATION if train is not None else "not computed: no training images were given",
        "reference": reference_name,
        "n_reference": len(reference),
        "n_synthetic": len(synthetic),
        "n_train": None if train is None else len(train),
        "groups": None if groups is None else groups.rule,
        "extractors": [_described(e) for e in extractors],
        "fingerprints": {name: s.fingerprint for name, s in sets.items()},
        "subsets": "images by the hash of their pixels: order of files, workers and processes change nothing",
        "seed": seed,
    }


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
