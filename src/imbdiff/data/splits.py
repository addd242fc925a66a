"""From a source to the splits of an experiment: test, validation, the long-tailed training set, and their manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data import near_duplicates
from imbdiff.data.decode import Size
from imbdiff.data.imageset import ImageSet, conflicting_copies, copies_across, copies_within
from imbdiff.data.names import counted
from imbdiff.data.profiles import about_cut, largest_n_max, long_tail, parse_imbalance_factor
from imbdiff.data.source import Source
from imbdiff.data.sources import load
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.runtime.errors import ConfigError, DataError, listing
from imbdiff.runtime.files import digest
from imbdiff.runtime.streams import rng

TINY = 3  # a class of up to this many images stays whole in train
LEAST_FOR_VAL = 20  # a class of fewer images gives none to validation


def check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} {value!r} is not in [0, 1)", "give for example 0.2")


def test_counts(
    counts: Sequence[int], fraction: float, per_class: int | None, class_names: Sequence[str]
) -> tuple[int, ...]:
    """(C,) images of each class to hold out for the test split.

    A class of 1 to 3 images gives none. Of the others, `per_class` if that is set, otherwise round(`fraction` n), at
    least 1; none at all where `fraction` is 0.

    Raises:
        DataError: `per_class` would leave a class without training images.
    """
    if per_class is None:
        return tuple(0 if n <= TINY or fraction == 0 else min(n - 1, max(1, round(fraction * n))) for n in counts)
    if per_class < 1:
        raise ConfigError(f"{per_class} test images per class is not positive", "give at least 1")
    short = [f"{name!r}: {n} images" for name, n in zip(class_names, counts, strict=True) if TINY < n <= per_class]
    if short:
        raise DataError(
            f"{per_class} test images per class would leave these classes without training images:\n{listing(short)}",
            "hold out fewer, or a fraction (test_fraction)",
        )
    return tuple(0 if n <= TINY else per_class for n in counts)


def val_counts(counts: Sequence[int], fraction: float) -> tuple[int, ...]:
    """(C,) images to hold out for validation: round(`fraction` n), at least 1, of classes of at least 20 images."""
    return tuple(max(1, round(fraction * n)) if n >= LEAST_FOR_VAL and fraction > 0 else 0 for n in counts)


def held_out(
    labels: np.ndarray, wanted: Sequence[int], seed: int, name: str, last: np.ndarray | None = None
) -> np.ndarray:
    """Sorted indices of `wanted`[k] images of each class k (all of them where there are fewer).

    Args:
        labels: (N,) int64.
        wanted: (C,) images per class.
        seed: of the split.
        name: of the random stream; the draw in one class does not depend on the others.
        last: (N,) bool: images to take only where the others do not suffice (those that have exact copies: a copy
            left behind in the training split would make the test easier than it is).
    """
    parts = [np.empty(0, dtype=np.int64)]
    for k, n in enumerate(wanted):
        members = rng(seed, name, k).permutation(np.flatnonzero(labels == k))
        if last is not None:
            members = np.concatenate([members[~last[members]], members[last[members]]])
        parts.append(members[:n])
    return np.sort(np.concatenate(parts))


NEAR_DUPLICATE_PAIRS = 10_000_000
"""Training times test images up to which near duplicates are looked for: seconds. ``imbdiff inspect`` looks further."""

GroupRule = Groups | Mapping[str, Sequence[str]] | Callable[[ClassStats], Groups]


@dataclass(frozen=True, eq=False)
class Prepared:
    """Everything an experiment may see, and who may see it.

    Attributes:
        train: the only images a generator or a classifier's weights are fitted on; every class has at least one.
        val: for choices between controls; None where there is none. It may lack classes.
        test: for the numbers that are reported; it may lack classes.
        pool: all images that are not test, before the long tail was cut: a judge may train on it. None unless the
            source is balanced and a profile was applied.
        stats: class statistics of `train`.
        groups: partition of the classes, from `train`.
        claimable: (C,) whether per-class claims may be made: the class has test images, and had more than 3 images
            before the hold-out.
        warnings: what the user has to know: tiny classes, duplicates, sizes changed, files ignored.
        manifest: JSON-able: source, protocol, seed, class names, counts, ids and digests per split, duplicates, where
            val and test come from, and "hash": one hash of everything that decides the outcome, free of paths.
        flippable: the source is known to allow mirroring.
    """

    train: ImageSet
    val: ImageSet | None
    test: ImageSet
    pool: ImageSet | None
    stats: ClassStats
    groups: Groups
    claimable: tuple[bool, ...]
    warnings: tuple[str, ...]
    manifest: dict[str, Any]
    flippable: bool = False


def prepare(
    source: str | Path | Source | ImageSet | tuple[np.ndarray, np.ndarray],
    *,
    size: Size | None = None,
    resize: str = "crop",
    imbalance_factor: float | None = None,
    profile: str | None = None,
    protocol: str | None = None,
    order: str | None = None,
    n_max: int | None = None,
    test_fraction: float = 0.2,
    test_per_class: int | None = None,
    val_fraction: float = 0.1,
    groups: GroupRule | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
) -> Prepared:
    """Splits a source.

    1. Test: the source's own if it brings one, used as it is; otherwise held out of train, stratified:
       `test_per_class` images of every class (digits: 60), or `test_fraction`, at least 1. Classes of 1 to 3 images
       stay whole. Images that have an exact copy are held out last.
    2. Long tail: with `imbalance_factor`, a profile is cut out of what is left (:func:`long_tail`).
    3. Validation: the source's own, without exact copies of training images; otherwise, where a profile was cut, images
       that it dropped, the same number of every class as far as they reach (`val_fraction` of the largest class);
       otherwise `val_fraction` of every class of at least 20 images.

    Args:
        source: as for :func:`load`.
        size: of all images, int or (height, width); None = one common size, see :mod:`imbdiff.data.decode`.
        resize: crop, pad or stretch.
        imbalance_factor: largest / smallest training class; None = the source's default (benchmarks have one),
            otherwise as the source is. 0.01 means 100.
        profile: exponential, pareto or step; None = the source's default, otherwise exponential.
        protocol: "imbdiff" or "cifar-lt", see :func:`long_tail`; None = the source's default, otherwise imbdiff. The
            literature's lists are those of seed 0.
        order: "label" or "size"; None = the source's default, otherwise label for a balanced source, size for another.
        n_max: images of the largest class; None = digits 110, cifar-lt N / C, otherwise the most that all classes can
            serve, less `val_fraction` if validation has to come from what is dropped.
        test_fraction: in [0, 1); ignored where the source has a test split.
        test_per_class: in place of the fraction.
        val_fraction: in [0, 1); 0 = no validation split.
        groups: Groups, {name: class names}, or a function of the training statistics; None = the source's default,
            otherwise Groups.default.
        seed: of every draw.
        cache: where decoded images are kept, see :meth:`Source.read_all`.

    Raises:
        DataError: unusable images, a class without images, nothing left for the test.
        ConfigError: an option out of range.
    """
    check_fraction("test_fraction", test_fraction)
    check_fraction("val_fraction", val_fraction)
    opened = load(source)
    own = opened.defaults
    sets, notes = opened.read_all(size, resize, cache=cache)
    full = sets["train"]
    warnings = [*opened.warnings, *own.notes, *notes, *_tiny_classes(full.stats, "test" in sets)]

    rest, test, test_from = _hold_out_test(opened, sets, test_fraction, test_per_class, seed)
    kept, cut = np.arange(len(rest)), {}
    imbalance_factor = own.imbalance_factor if imbalance_factor is None else imbalance_factor
    profile, protocol = profile or own.profile, protocol or own.protocol
    if imbalance_factor is not None:
        order = order or own.order or ("label" if opened.balanced else "size")
        if n_max is None:
            reserve = 0.0 if "val" in sets else val_fraction
            n_max = _default_n_max(opened, rest.stats, profile, protocol, imbalance_factor, order, reserve)
        kept = long_tail(
            rest.labels,
            imbalance_factor=imbalance_factor,
            profile=profile,
            protocol=protocol,
            seed=seed,
            order=order,
            n_max=n_max,
        )
        warnings += about_cut(own.imbalance_factor, imbalance_factor)
        cut = {
            "imbalance_factor": parse_imbalance_factor(imbalance_factor),
            "profile": profile,
            "protocol": protocol,
            "order": order,
            "n_max": int(np.bincount(rest.labels[kept]).max()),
        }
        if protocol == "cifar-lt" and seed != 0:
            warnings.append(f"the literature's CIFAR-LT lists are those of seed 0, these are of seed {seed}")
    val, left, val_from = _validation(sets, rest, kept, bool(cut), val_fraction, seed)
    train = rest.select(left)
    train, val, test, found = _duplicates(train, val, test, warnings)
    pool = rest if cut and opened.balanced else None

    stats = train.stats
    partition = _groups(groups or own.groups, stats)
    tested = np.bincount(test.labels, minlength=stats.num_classes)
    claimable = tuple(bool(t > 0 and n > TINY) for t, n in zip(tested, full.stats.counts, strict=True))
    untested = [name for name, t in zip(stats.names, tested, strict=True) if t == 0]
    if untested:
        warnings.append(
            f"{counted(len(untested), 'class has', 'classes have')} no test image, no claim is made about "
            f"{'it' if len(untested) == 1 else 'them'}:\n{listing(untested)}"
        )
    manifest = {
        "source": {"name": opened.name, "kind": opened.kind, "splits": list(opened.splits)},
        "shape": list(train.shape),
        "resize": resize,
        "seed": seed,
        "long_tail": cut or None,
        "test_from": test_from,
        "val_from": val_from,
        "class_names": list(stats.names),
        **_contents({"train": train, "val": val, "test": test, "pool": pool}),
        "duplicates": found,
        "groups": partition.to_json(),
        "claimable": list(claimable),
    }
    # not the ids: the same images from another kind of source are the same split
    deciding = ("shape", "class_names", "counts", "digests", "groups", "claimable")
    manifest["hash"] = digest({key: manifest[key] for key in deciding})
    return Prepared(train, val, test, pool, stats, partition, claimable, tuple(warnings), manifest, opened.flippable)


def _tiny_classes(stats: ClassStats, test_given: bool) -> list[str]:
    tiny = [f"{name!r}: {n}" for name, n in zip(stats.names, stats.counts, strict=True) if n <= TINY]
    if not tiny:
        return []
    them = "it" if len(tiny) == 1 else "them"
    what = f"no claim is made about {them}" if test_given else "all stay in training, none is tested, no claim is made"
    return [f"{counted(len(tiny), 'class has', 'classes have')} at most {TINY} images ({what}):\n{listing(tiny)}"]


def _hold_out_test(
    opened: Source, sets: Mapping[str, ImageSet], fraction: float, per_class: int | None, seed: int
) -> tuple[ImageSet, ImageSet, str]:
    """What is left of train, the test split, and where it comes from."""
    full = sets["train"]
    if "test" in sets:
        return full, sets["test"], "given"
    per_class = opened.defaults.test_per_class if per_class is None else per_class
    wanted = test_counts(full.stats.counts, fraction, per_class, full.class_names)
    if not any(wanted):
        raise DataError(
            f"{opened.name} has no test split, and nothing can be held out of it: "
            + ("test_fraction is 0" if fraction == 0 else f"no class has more than {TINY} images"),
            "add images, give a test split, or raise test_fraction",
        )
    often = Counter(full.hashes)
    copied = np.array([often[key] > 1 for key in full.hashes])
    chosen = held_out(full.labels, wanted, seed, "test", last=copied)
    rest = np.setdiff1d(np.arange(len(full)), chosen)
    how = f"{per_class} per class" if per_class else f"{fraction:g} of each class"
    return full.select(rest), full.select(chosen), f"held out of the training images, {how}"


def _default_n_max(
    opened: Source, stats: ClassStats, profile: str, protocol: str, factor: float, order: str, reserve: float
) -> int | None:
    """Images of the largest class: the source's own default, or the most possible less the share `reserve`."""
    if protocol == "cifar-lt":
        return None
    most = largest_n_max(stats.counts, profile, factor, order)
    if opened.defaults.n_max is not None and opened.defaults.n_max <= most:
        return opened.defaults.n_max
    return max(1, round(most * (1 - reserve)))


def _validation(
    sets: Mapping[str, ImageSet], rest: ImageSet, kept: np.ndarray, cut: bool, fraction: float, seed: int
) -> tuple[ImageSet | None, np.ndarray, str]:
    """The validation split, the indices of `rest` that remain for training, and where validation comes from."""
    if "val" in sets:
        return sets["val"], kept, "given"
    if fraction == 0:
        return None, kept, "none: val_fraction is 0"
    if cut:
        dropped = np.setdiff1d(np.arange(len(rest)), kept)
        each = max(1, round(fraction * int(np.bincount(rest.labels[kept]).max())))
        chosen = dropped[held_out(rest.labels[dropped], [each] * len(rest.class_names), seed, "val")]
        if not len(chosen):
            return None, kept, "none: the long-tail profile dropped no image"
        source = f"images that the long-tail profile dropped, up to {each} per class"
        return rest.select(chosen), kept, source
    wanted = val_counts(rest.stats.counts, fraction)
    chosen = held_out(rest.labels, wanted, seed, "val")
    if not len(chosen):
        return None, kept, f"none: no class has {LEAST_FOR_VAL} training images"
    left = np.setdiff1d(kept, chosen)
    source = f"held out of the training images, {fraction:g} of each class of at least {LEAST_FOR_VAL} images"
    return rest.select(chosen), left, source


def _duplicates(
    train: ImageSet, val: ImageSet | None, test: ImageSet, warnings: list[str]
) -> tuple[ImageSet, ImageSet | None, ImageSet, dict[str, Any]]:
    """Removes from val what train or test hold too; reports the same between train and test, and changes nothing there.

    The test split stays as it is, because numbers on a changed test set cannot be compared with anyone else's.
    """
    found: dict[str, Any] = {"train_test": [list(pair) for pair in copies_across(train, test)]}
    if found["train_test"]:
        rows = [f"{a} = {b}" for a, b in found["train_test"]]
        one = "test image is an exact copy of a training image; it stays"
        stay = counted(len(rows), one, "test images are exact copies of training images; they stay")
        warnings.append(f"{stay} in the test split:\n{listing(rows)}")
    if len(train) * len(test) <= NEAR_DUPLICATE_PAIRS:
        near = near_duplicates.across(train, test).sentence("train", "test")
        warnings += [near] if near else []
    found["train_val_removed"] = found["test_val_removed"] = []
    if val is not None:
        found["train_val_removed"] = [list(pair) for pair in copies_across(train, val)]
        found["test_val_removed"] = [list(pair) for pair in copies_across(test, val)]
        gone = {b for _, b in found["train_val_removed"] + found["test_val_removed"]}
        if gone:
            keep = [i for i, name in enumerate(val.ids) if name not in gone]
            val = val.select(keep) if keep else None
            one = "validation image is an exact copy of a training or test image and was"
            were = counted(len(gone), one, "validation images are exact copies of training or test images and were")
            warnings.append(f"{were} removed from validation:\n{listing(sorted(gone))}")
    found["within_train"] = copies_within(train)
    conflicts = conflicting_copies(train)
    if conflicts:
        rows = [" = ".join(names) for names in conflicts]
        occur = counted(len(rows), "training image occurs", "training images occur")
        warnings.append(f"{occur} under more than one class:\n{listing(rows)}")
    return train, val, test, found


def _groups(rule: GroupRule | None, stats: ClassStats) -> Groups:
    if rule is None:
        return Groups.default(stats)
    made = (
        rule if isinstance(rule, Groups) else Groups.explicit(stats, rule) if isinstance(rule, Mapping) else rule(stats)
    )
    if len(made.of_class) != stats.num_classes:
        raise ConfigError(f"the groups cover {len(made.of_class)} classes, the data have {stats.num_classes}")
    return made


def _contents(sets: Mapping[str, ImageSet | None]) -> dict[str, Any]:
    """Counts per class, ids and pixel digests of every split; None where a split is absent. The pool's ids are long
    and follow from the rest: only its counts and digest are kept."""
    counts: dict[str, list[int] | None] = {}
    ids: dict[str, list[str] | None] = {}
    digests: dict[str, str | None] = {}
    for split, images in sets.items():
        if images is None:
            counts[split] = digests[split] = None
        else:
            counts[split] = np.bincount(images.labels, minlength=len(images.class_names)).tolist()
            digests[split] = images.fingerprint
        if split != "pool":
            ids[split] = None if images is None else list(images.ids)
    return {"counts": counts, "ids": ids, "digests": digests}
