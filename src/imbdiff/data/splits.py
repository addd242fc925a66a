"""From a source to the splits of an experiment: test, validation, the long-tailed training set, and their manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.decode import Size, resolve
from imbdiff.data.grouping import hold_out
from imbdiff.data.imageset import FEW, ImageSet, by_classes, conflicting_copies, copies_across, copies_within
from imbdiff.data.names import counted, named
from imbdiff.data.near_duplicates import CopyFinder, across
from imbdiff.data.profiles import largest_n_max, long_tail, parse_imbalance_factor
from imbdiff.data.source import Source
from imbdiff.data.sources import load
from imbdiff.data.split_names import is_split_name
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.runtime.errors import ConfigError, DataError, listing
from imbdiff.runtime.files import digest
from imbdiff.runtime.streams import rng

TINY = 3  # a class of up to this many images stays whole in train
LEAST_FOR_VAL = 20  # a class of fewer images gives none to validation
NEAR_DUPLICATE_PAIRS = 10_000_000
"""Training times test images up to which near duplicates are looked for: seconds. ``imbdiff inspect`` looks further."""

GroupRule = Groups | Mapping[str, Sequence[str]] | Callable[[ClassStats], Groups]


@dataclass(frozen=True, eq=False)
class Prepared:
    """The splits of an experiment.

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

    @property
    def parts(self) -> str:
        """How many images are in each split, and in none."""
        val, total = 0 if self.val is None else len(self.val), self.manifest["source"]["images"]
        left = total - len(self.train) - val - len(self.test)
        why = "cut off by the long-tail profile, copies, or of a group in another split"
        return f"{len(self.train):,} training, {val:,} validation and {len(self.test):,} test images" + (
            f"; {left:,} of all {total:,} are in none ({why})" if left else ""
        )


def prepare(
    source: str | Path | Source | ImageSet | tuple[np.ndarray, np.ndarray],
    *,
    size: Size | None = None,
    resize: str = "auto",
    channels: str | None = "auto",
    imbalance_factor: float | None = None,
    profile: str | None = None,
    protocol: str | None = None,
    order: str | None = None,
    n_max: int | None = None,
    test_fraction: float = 0.2,
    test_per_class: int | None = None,
    val_fraction: float = 0.1,
    groups: GroupRule | None = None,
    group: Any = None,
    seed: int = 0,
    cache: str | Path | None = None,
) -> Prepared:
    """Splits a source.

    1. Test: the source's own if it brings one, used as it is; otherwise held out of train, stratified:
       `test_per_class` images of every class (digits: 60), or `test_fraction`, at least 1. Classes of 1 to 3 images
       stay whole. Images that have an exact copy are held out last.
       Where the source says which images belong together (`group`), whole groups are held out, and training images of
       a group that is in a given test split are left out.
    2. Long tail: with `imbalance_factor`, a profile is cut out of what is left (:func:`long_tail`).
    3. Validation: the source's own, without exact copies of training images; otherwise, where a profile was cut, images
       that it dropped, the same number of every class as far as they reach (`val_fraction` of the largest class);
       otherwise `val_fraction` of every class of at least 20 images.

    Args:
        source: as for :func:`load`.
        size: of all images, int or (height, width); None = chosen by their sizes: :func:`imbdiff.data.decode.resolve`.
        resize: crop, pad or stretch; auto = pad where cropping would cut off much, otherwise crop.
        channels: grey or colour; auto = grey where no image has a coloured pixel.
        imbalance_factor: largest / smallest training class; None = the source's default (benchmarks have one),
            otherwise as the source is. 0.01 means 100.
        profile: exponential, pareto or step; None = the source's default, otherwise exponential.
        protocol: "imbdiff" or "cifar-lt", see :func:`long_tail`; None = the source's default, otherwise imbdiff.
        order: "label" or "size"; None = the source's default, otherwise label for a balanced source, size for another.
        n_max: images of the largest class; None = digits 110, cifar-lt N / C, otherwise the most that all classes can
            serve, less `val_fraction` if validation has to come from what is dropped.
        test_fraction: in [0, 1); ignored where the source has a test split.
        test_per_class: in place of the fraction.
        val_fraction: in [0, 1); 0 = no validation split.
        groups: Groups, {name: class names}, or a function of the training statistics; None = the source's default,
            otherwise Groups.default.
        group: which images belong together, as for :func:`load`; no such group is in two splits.
        seed: of all random choices.
        cache: where decoded images are kept, see :meth:`Source.read_all`.

    Raises:
        DataError: unusable images, a class without images, nothing left for the test.
        ConfigError: an option out of range.
    """
    for name, value in (("test_fraction", test_fraction), ("val_fraction", val_fraction)):
        if not 0 <= value < 1:
            raise ConfigError(f"{name} {value!r} is not in [0, 1)", "give for example 0.2")
    opened = load(source, group=group)
    own = opened.defaults
    sets, notes = opened.read_all(size, resize, cache=cache, channels=channels)
    names = opened.class_names
    warnings = [*opened.warnings, *own.notes, *notes, *_names_of_splits(names)]
    full = _apart(sets["train"], [sets.get("test")], "training", warnings)
    warnings += _tiny_classes(full.stats, "test" in sets)

    rest, test, test_from = full, sets.get("test"), "given"
    if test is None:
        per_class = own.test_per_class if test_per_class is None else test_per_class
        rest, test, test_from = _hold_out_test(full, test_fraction, per_class, seed)
    val: ImageSet | None = sets.get("val")
    val_from = "given"
    pool: ImageSet | None = rest
    early = val is None and full.groups is not None
    if early:  # before the tail is cut: what is cut off shares groups with what is kept
        val, left, val_from = _hold_out_val(rest, np.arange(len(rest)), False, val_fraction, seed)
        rest = rest.select(left)
    kept, cut = np.arange(len(rest)), {}
    factor = own.imbalance_factor if imbalance_factor is None else imbalance_factor
    if factor is not None:
        factor = parse_imbalance_factor(factor)
        profile, protocol = profile or own.profile, protocol or own.protocol
        order = order or own.order or ("label" if opened.balanced else "size")
        if n_max is None and protocol != "cifar-lt":
            most = largest_n_max(rest.stats.counts, profile, factor, order)
            reserve = 0.0 if "val" in sets or early else val_fraction
            fits = own.n_max is not None and own.n_max <= most
            n_max = own.n_max if fits else max(1, round(most * (1 - reserve)))
        kept = long_tail(
            rest.labels,
            imbalance_factor=factor,
            profile=profile,
            protocol=protocol,
            seed=seed,
            order=order,
            n_max=n_max,
        )
        largest = int(np.bincount(rest.labels[kept]).max())
        cut = {
            "imbalance_factor": factor, "profile": profile, "protocol": protocol, "order": order, "n_max": largest
        }  # fmt: skip
        if own.imbalance_factor not in (None, factor):
            warnings.append(f"the imbalance factor is {factor:g}, and not {own.imbalance_factor:g}, the source's own")
        if protocol == "cifar-lt" and seed != 0:
            warnings.append(f"the literature's CIFAR-LT lists are those of seed 0, these are of seed {seed}")
    if "val" not in sets and not early:
        val, kept, val_from = _hold_out_val(rest, kept, bool(cut), val_fraction, seed)
    train = rest.select(kept)
    if val is not None and "val" in sets:
        apart = _apart(val, [train, test], "validation", warnings)
        val = apart if len(apart) else None
    val, found = _without_copies(train, val, test, warnings)
    pool = pool if cut and opened.balanced else None

    partition = _groups(groups or own.groups, train.stats)
    tested = np.bincount(test.labels, minlength=len(names))
    claimable = tuple(bool(t > 0 and n > TINY) for t, n in zip(tested, full.stats.counts, strict=True))
    untested = [name for name, t in zip(names, tested, strict=True) if t == 0]
    if untested:
        have = counted(len(untested), "class has", "classes have")
        warnings.append(f"{have} no test image, so no claim is made:\n{listing(untested)}")
    splits = {"train": train, "val": val, "test": test, "pool": pool}
    manifest = {
        "source": {
            "name": opened.name,
            "kind": opened.kind,
            "splits": list(opened.splits),
            "images": sum(map(len, sets.values())),
        },
        "shape": list(train.shape),
        "resize": resolve(opened.sizes(), size, resize, str(opened.name))[0].policy,
        "seed": seed,
        "long_tail": cut or None,
        "test_from": test_from,
        "val_from": val_from,
        "class_names": list(names),
        "counts": {split: None if x is None else _counts(x) for split, x in splits.items()},
        # the pool's ids are long and follow from the rest
        "ids": {split: None if x is None else list(x.ids) for split, x in splits.items() if split != "pool"},
        "digests": {split: None if x is None else x.fingerprint for split, x in splits.items()},
        "duplicates": found,
        "groups": partition.to_json(),
        "claimable": list(claimable),
    }
    if train.groups is not None:
        manifest["images_belong_together"] = {
            split: len(set(x.groups)) for split, x in splits.items() if x is not None and x.groups is not None
        }
    # not the ids: the same images from another kind of source are the same split
    deciding = ("shape", "class_names", "counts", "digests", "groups", "claimable")
    together = {} if test.groups is None else {"groups": np.unique(test.groups, return_inverse=True)[1].tolist()}
    manifest["hash"] = digest({key: manifest[key] for key in deciding} | together)
    return Prepared(train, val, test, pool, train.stats, partition, claimable, tuple(warnings), manifest,
                    opened.flippable)  # fmt: skip


def _counts(images: ImageSet) -> list[int]:
    return np.bincount(images.labels, minlength=len(images.class_names)).tolist()


def _names_of_splits(names: Sequence[str]) -> list[str]:
    """A warning of classes that bear the name of a split."""
    like = [name for name in names if is_split_name(name)]
    return [f"class names that look like those of splits: {named(like)}"] if like else []


def _apart(images: ImageSet, others: Sequence[ImageSet | None], what: str, warnings: list[str]) -> ImageSet:
    """The images of groups that are in none of the `others`, which come first: their numbers stay comparable.

    Raises:
        DataError: a class of training images has no others.
    """
    if images.groups is None:
        return images
    taken: set[str] = set().union(*(other.groups for other in others if other is not None and other.groups is not None))
    keep = [i for i, group in enumerate(images.groups) if group not in taken]
    left = images.select(keep)
    lost = set(images.labels.tolist()) - set(left.labels.tolist())
    if what == "training" and lost:
        raise DataError(
            f"all training images of these classes belong together with test images:\n"
            f"{listing(images.class_names[k] for k in sorted(lost))}",
            "give a test split of other groups, or leave the option group out (group=)",
        )
    if len(keep) < len(images):
        one, several = (
            f"{what} {text} of a group that is in another split, and left out" for text in ("image is", "images are")
        )
        warnings.append(counted(len(images) - len(keep), one, several))
    return left


def _tiny_classes(stats: ClassStats, test_given: bool) -> list[str]:
    tiny = [f"{name!r}: {n}" for name, n in zip(stats.names, stats.counts, strict=True) if n <= TINY]
    if not tiny:
        return []
    what = "no claim is made" if test_given else "all stay in training, none is tested, no claim is made"
    return [f"{counted(len(tiny), 'class has', 'classes have')} at most {TINY} images ({what}):\n{listing(tiny)}"]


def _held_out(images: ImageSet, wanted: Sequence[int], seed: int, name: str, last: np.ndarray) -> np.ndarray:
    """Sorted indices of `wanted`[k] images of each class k, all of them where there are fewer; or of whole groups.

    The choice in one class does not depend on the others. Images where `last` (N,) is True are taken only where the
    others do not suffice.
    """
    labels = images.labels
    if images.groups is not None:
        return hold_out(labels, images.groups, wanted, seed, name, last)
    parts = [np.empty(0, dtype=np.int64)]
    for k, n in enumerate(wanted):
        members = rng(seed, name, k).permutation(np.flatnonzero(labels == k))
        parts.append(members[np.argsort(last[members], kind="stable")][:n])
    return np.sort(np.concatenate(parts))


def _hold_out_test(full: ImageSet, fraction: float, per_class: int | None, seed: int) -> tuple[ImageSet, ImageSet, str]:
    """What is left of train, the test split, and where it comes from."""
    counts, names = full.stats.counts, full.class_names
    if per_class is None:
        wanted = [0 if n <= TINY or fraction == 0 else min(n - 1, max(1, round(fraction * n))) for n in counts]
        how = f"{fraction:g} of each class"
    else:
        if per_class < 1:
            raise ConfigError(f"{per_class} test images per class is not positive", "give at least 1")
        short = [f"{name!r}: {n} images" for name, n in zip(names, counts, strict=True) if TINY < n <= per_class]
        if short:
            raise DataError(
                f"{per_class} test images per class would leave these classes without training images:\n"
                f"{listing(short)}",
                "hold out fewer, or a fraction (test_fraction)",
            )
        wanted = [0 if n <= TINY else per_class for n in counts]
        how = f"{per_class} per class"
    if not any(wanted):
        few = max(counts) <= TINY
        why = f"no class has more than {TINY} images" if few else "test_fraction is 0"
        given = "give a test split: DIR/train/CLASS and DIR/test/CLASS, or SOURCE?test=LIST"
        raise DataError(
            f"there is no test split, and nothing can be held out for one: {why}",
            f"add images: classes of {TINY + 1} or more are split; or {given}" if few else f"raise it, or {given}",
        )
    # a copy that is left behind in the training split would make the test easier than it is
    often = Counter(full.hashes)
    copied = np.array([often[key] > 1 for key in full.hashes])
    chosen = _held_out(full, wanted, seed, "test", copied)
    if not len(chosen):
        raise DataError(
            "there is no test split, and none can be held out: every group of images that belong together is more than "
            "half of a class, or has images of a class that is too small for a test",
            "give a test split, add groups, or leave the option group out (group=)",
        )
    how += "" if full.groups is None else ", whole groups"
    rest = np.setdiff1d(np.arange(len(full)), chosen)
    return full.select(rest), full.select(chosen), f"held out of the training images, {how}"


def _hold_out_val(
    rest: ImageSet, kept: np.ndarray, cut: bool, fraction: float, seed: int
) -> tuple[ImageSet | None, np.ndarray, str]:
    """The validation split, the indices of `rest` that remain for training, and where validation comes from."""
    if fraction == 0:
        return None, kept, "none: val_fraction is 0"
    if cut:
        candidates = np.setdiff1d(np.arange(len(rest)), kept)
        each = max(1, round(fraction * int(np.bincount(rest.labels[kept]).max())))
        wanted = [each] * len(rest.class_names)
        val_from = f"images that the long-tail profile dropped, up to {each} per class"
        otherwise = "the long-tail profile dropped no image"
    else:
        candidates = np.arange(len(rest))
        wanted = [max(1, round(fraction * n)) if n >= LEAST_FOR_VAL else 0 for n in rest.stats.counts]
        val_from = f"held out of the training images, {fraction:g} of each class of at least {LEAST_FOR_VAL} images"
        otherwise = f"no class has {LEAST_FOR_VAL} training images"
    free = np.zeros(len(candidates), dtype=bool)
    chosen = candidates[_held_out(rest.select(candidates), wanted, seed, "val", free)]
    if not len(chosen):
        return None, kept, f"none: {otherwise if rest.groups is None else 'the groups are too large'}"
    val_from += "" if rest.groups is None else ", whole groups"
    return rest.select(chosen), np.setdiff1d(kept, chosen) if not cut else kept, val_from


def _without_copies(
    train: ImageSet, val: ImageSet | None, test: ImageSet, warnings: list[str]
) -> tuple[ImageSet | None, dict[str, Any]]:
    """Validation without exact copies of training or test images, and the duplicates that were found.

    The test split stays as it is, because numbers on a changed test set cannot be compared with anyone else's.
    """

    def warn(n: int, one: str, several: str, rows: Sequence[str], limit: int = 20) -> None:
        if n:
            warnings.append(f"{counted(n, one, several)}:\n{listing(rows, limit)}")

    present = [split for split in (train, val, test) if split is not None]
    of = {i: train.class_names[k] for s in present for i, k in zip(s.ids, s.labels.tolist(), strict=True)}
    sizes = Counter(of.values())
    in_test = copies_across(train, test)
    warn(
        len(in_test),
        "test image is an exact copy of a training image; it stays in the test split",
        "test images are exact copies of training images; they stay in the test split",
        by_classes((((a, of[a]), (b, of[b])) for a, b in in_test), sizes),
    )
    if 0 < len(train) * len(test) <= NEAR_DUPLICATE_PAIRS:
        near = across(CopyFinder(train.images, train.hashes), train, test)
        warnings += filter(None, [near.sentence()])
    from_train, from_test = ([] if val is None else copies_across(x, val) for x in (train, test))
    gone = {name for _, name in (*from_train, *from_test)}
    if val is not None and gone:
        keep = [i for i, name in enumerate(val.ids) if name not in gone]
        val = val.select(keep) if keep else None
    warn(
        len(gone),
        "validation image is an exact copy of a training or test image and was removed",
        "validation images are exact copies of training or test images and were removed",
        sorted(gone),
        FEW,
    )
    conflicts = conflicting_copies(train)
    warn(
        len(conflicts),
        "training image occurs under more than one class",
        "training images occur under more than one class",
        by_classes(([(name, of[name]) for name in names] for names in conflicts), sizes),
    )
    return val, {
        "train_test": [list(pair) for pair in in_test],
        "train_val_removed": [list(pair) for pair in from_train],
        "test_val_removed": [list(pair) for pair in from_test],
        "within_train": copies_within(train),
    }


def _groups(rule: GroupRule | None, stats: ClassStats) -> Groups:
    if isinstance(rule, Mapping):
        return Groups.explicit(stats, rule)
    groups = rule if isinstance(rule, Groups) else (rule or Groups.default)(stats)
    if len(groups.of_class) != stats.num_classes:
        raise ConfigError(f"the groups cover {len(groups.of_class)} classes, the data have {stats.num_classes}")
    return groups
