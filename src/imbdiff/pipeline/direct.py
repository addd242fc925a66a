"""`imbdiff evaluate FAKE --reference REAL` and `imbdiff reference SOURCE`: measuring without a run folder."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.decode import POLICIES, SMALLEST
from imbdiff.data.imageset import ImageSet
from imbdiff.data.plain import EVERYTHING, ONE_CLASS, Measurable, align, read_any
from imbdiff.data.stats import Groups
from imbdiff.metrics.evaluate import MODES, check_sets, evaluate
from imbdiff.metrics.extractors import Extractor, make_extractors
from imbdiff.metrics.extractors.inception import find_inception_weights
from imbdiff.metrics.features import FeatureStore
from imbdiff.metrics.measures import choose_measures
from imbdiff.metrics.reference import StoredReference, is_reference, load_reference, make_reference
from imbdiff.reporting.report import build_evaluation
from imbdiff.runtime.device import resolve_device, start
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError, DataError, RunError
from imbdiff.runtime.files import read_json, write_json, write_text
from imbdiff.runtime.progress import Progress

Splits = tuple[str | None, str | None, str | None]
LARGEST = 4096
"""Pixels that a side may be brought to."""
SHORT = 2.0
"""Seconds of work from which its end is worth a line."""


@dataclass(frozen=True)
class Measuring:
    """How images are read and measured; the options that `evaluate` and `reference` share.

    Attributes:
        extractors: names as :func:`make_extractor` takes them; empty: the fixed random network, and FID's Inception
            where its weights are at hand.
        inception_weights: file with FID's Inception weights.
        size, resize: bring all images to this side in pixels, and how: crop (the default), pad or stretch; None: as
            they are, or as the images of a stored reference were brought to theirs.
        batch_size: images per network call.
        device: auto, cpu, cuda or cuda:N.
        seed: of image keys, halvings and clusterings.
        quiet: prints nothing but errors.
        command: what was typed, to be printed on the page.
        measures: more of them, as :func:`imbdiff.metrics.measures.choose_measures` takes them.

    Raises:
        ConfigError: a number out of range, or a word that is none of these.
    """

    extractors: tuple[str, ...] = ()
    inception_weights: str | None = None
    size: int | None = None
    resize: str | None = None
    batch_size: int = 256
    device: str = "auto"
    seed: int = 0
    quiet: bool = False
    command: str | None = None
    measures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size {self.batch_size} is not a number of images", "give 1 or more")
        if self.size is not None and not SMALLEST <= self.size <= LARGEST:
            raise ConfigError(f"--size {self.size} is out of range", f"give {SMALLEST} to {LARGEST} pixels")
        if self.resize is not None and self.resize not in POLICIES:
            raise ConfigError(f"--resize {self.resize} is unknown", f"use one of: {', '.join(POLICIES)}")

    @property
    def names(self) -> list[str]:
        """The extractors that are asked for, or those that cost nothing."""
        if self.extractors:
            return list(self.extractors)
        cached = self.inception_weights is not None or find_inception_weights() is not None
        return ["inception", "random-conv"] if cached else ["random-conv"]

    def make(self, shape: tuple[int, int, int], names: list[str] | None = None) -> list[Extractor]:
        """The extractors for images of `shape`; errors in names, weights and shapes come here, before any long work."""
        names = names or self.names
        return make_extractors(names, self.inception_weights, shape, str(resolve_device(self.device)))

    def log(self, text: str) -> None:
        if not self.quiet and Dist.current().main:
            print(text, flush=True)


def evaluate_any(
    fake: str | Path | ImageSet | np.ndarray,
    reference: str | Path | ImageSet | np.ndarray,
    train: str | Path | ImageSet | np.ndarray | None = None,
    *,
    how: Measuring | None = None,
    fake_split: str | None = None,
    reference_split: str | None = None,
    train_split: str | None = "train",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Measures images against a reference: any two of folders, .npz and .npy files, arrays, run and reference folders.

    Args:
        fake: the synthetic images. A run folder means its samples.
        reference: real images, or a folder that `imbdiff reference` made.
        train: the images the generator was trained on, for memorisation, groups and as a second reference.
        fake_split: which images of `fake`. Default: all it has, of all splits.
        reference_split: which images of `reference`. Default: its test images where it brings some, otherwise all.
        out: folder for metrics.json, report.html and kept features; a repeated call goes on where it was.

    Returns:
        What :func:`imbdiff.metrics.evaluate.evaluate` gives.

    Raises:
        DataError: the sets do not belong together: grey and RGB, other sizes, other classes.
        ConfigError: a size or resize that contradicts those of a stored reference.
        RunError: `out` holds other things, or the numbers of other images.
    """
    how = how or Measuring()
    measures = choose_measures(how.measures)
    dist = start(how.device)
    folder = None if out is None else usable(Path(out))
    sets = read_sets(fake, reference, train, (fake_split, reference_split, train_split), how.size, how.resize)
    for label in ("synthetic", "reference", "train"):
        found = sets.get(label)
        if found is not None:
            n, shape = len(found.images), "x".join(map(str, found.images.shape))
            how.log(f"{label}: {found.name}: {n:,} images of {len(found.images.class_names)} classes, {shape}")
            for note in getattr(found, "notes", ()):
                how.log(f"  note: {note}")
    synthetic, real, known = sets["synthetic"].images, sets["reference"].images, sets.get("train")
    train_images = None if known is None else known.images
    groups = None
    if train_images is not None and len(train_images.class_names) > 1:
        groups = Groups.default(train_images.stats)
    check_sets(synthetic, real, train_images, groups)
    if folder is not None:
        refuse_other(folder, {"synthetic": synthetic.fingerprint, "reference": real.fingerprint})
    known_to = real.asked if isinstance(real, StoredReference) and not how.extractors else ()
    extractors = how.make(real.shape, list(known_to))
    store = FeatureStore(None if folder is None else folder / "features", how.batch_size, dist)
    watching = Watching(how.quiet or not dist.main)
    found = evaluate(
        synthetic, real, train_images, groups, extractors,
        reference_name=sets["reference"].name, seed=how.seed, store=store, measures=measures, progress=watching,
    )  # fmt: skip
    name = found["protocol"]["reference"]
    found["protocol"]["synthetic"] = sets["synthetic"].name
    made = real if isinstance(real, StoredReference) else None
    size = how.size or (made.size if made else None)
    policy = how.resize or (made.resize if made else None) or "crop"
    found["protocol"]["resized"] = "no" if size is None else f"to {size} x {size} pixels: {policy}"
    if folder is not None and dist.main:
        write_json(folder / "metrics.json", found)
        write_text(folder / "report.html", build_evaluation(
            found, title=f"{sets['synthetic'].name} against {name}", command=how.command or "",
            synthetic=synthetic, train=train_images,
        ))  # fmt: skip
    return found


def reference_any(
    source: str | Path | ImageSet | np.ndarray,
    out: str | Path,
    *,
    how: Measuring | None = None,
    split: str | None = None,
) -> Path:
    """Makes a reference folder of `source`: see :mod:`imbdiff.metrics.reference`."""
    how = how or Measuring()
    dist = start(how.device)
    resize = how.resize or "crop"
    real = read_any(source, split, how.size, resize)
    for note in real.notes:
        how.log(f"  note: {note}")
    extractors = how.make(real.images.shape)
    with Progress("features", len(real.images) * len(extractors), quiet=how.quiet or not dist.main) as bar:
        done = [0]

        def count(now: int, total: int) -> None:
            bar.update(done[0] + now)
            done[0] += total if now == total else 0

        store = FeatureStore(None, how.batch_size, dist)
        folder = make_reference(
            real.images, extractors, Path(out), name=real.name, asked=how.names, size=how.size, resize=resize,
            store=store, progress=count,
        )  # fmt: skip
    names = ", ".join(f"{e.name} ({e.dim} features)" for e in extractors)
    how.log(f"reference: {folder}: {len(real.images):,} images of {real.name}, by {names}")
    return folder


class Watching:
    """Shows how far `evaluate` is, with the time left, one line or bar per part of the work."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self._what, self._bar = "", Progress("", 1, quiet=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            unit = "images" if "features" in what else "parts"
            self._what, self._bar = what, Progress(what, total, unit, quiet=self.quiet)
            self._bar.__enter__()
            self._began = time.monotonic()
        self._bar.update(done)
        if done >= total:
            self._bar.quiet |= time.monotonic() - self._began < SHORT  # too short to be worth a line
            self._bar.__exit__(None, None, None)


def usable(folder: Path) -> Path:
    """`folder`, if it is new, empty or of an earlier evaluation.

    Raises:
        RunError: it holds something else.
    """
    if folder.is_file():
        raise RunError(f"{folder} is a file", "give another --out")
    ours = {"metrics.json", "report.html", "features"}
    others = [p.name for p in folder.iterdir() if p.name not in ours] if folder.exists() else []
    if others:
        raise RunError(f"{folder} holds other files, such as {others[0]!r}", "give an empty or a new folder as --out")
    return folder


def refuse_other(folder: Path, fingerprints: dict[str, str]) -> None:
    """Raises RunError where the numbers in `folder` are of other images, saying which folder to give instead."""
    known = _protocol_in(folder)
    if known is None or _same_images(known, fingerprints):
        return
    others = (folder.with_name(f"{folder.name}-{k}") for k in itertools.count(2))
    free = next(p for p in others if not p.exists() or _same_images(_protocol_in(p) or {}, fingerprints))
    raise RunError(
        f"{folder / 'metrics.json'} has the numbers of other images: "
        f"{known.get('synthetic', 'unknown ones')} against {known.get('reference', 'unknown ones')}",
        f"give --out {free}; nothing was changed",
    )


def _protocol_in(folder: Path) -> dict[str, Any] | None:
    """The protocol of the numbers in the folder; None: there are none."""
    path = folder / "metrics.json"
    found = read_json(path) if path.exists() else None
    if found is None:
        return None
    protocol = found.get("protocol") if isinstance(found, dict) else None
    return protocol if isinstance(protocol, dict) else {}


def _same_images(protocol: dict[str, Any], fingerprints: dict[str, str]) -> bool:
    known = protocol.get("fingerprints") or {}
    return {name: known.get(name) for name in fingerprints} == fingerprints


@dataclass(frozen=True, eq=False)
class Stored:
    """A stored reference where a :class:`Measurable` is expected."""

    images: StoredReference
    name: str
    notes: tuple[str, ...] = field(default=())

    @property
    def unlabelled(self) -> bool:
        return self.images.class_names == (ONE_CLASS,)

    def without_labels(self) -> Stored:
        """The same images as one class."""
        zeros = np.zeros(len(self.images), np.int64)
        return replace(self, images=replace(self.images, labels=zeros, class_names=(ONE_CLASS,)))


def read_sets(
    fake: Any, reference: Any, train: Any, splits: Splits, size: int | None, resize: str | None
) -> dict[str, Any]:
    """The sets "synthetic", "reference" and, if given, "train", in the reference's classes; all without labels if one
    has none.

    Args:
        fake, reference, train: what :func:`read_any` takes; a run folder for `fake`, a reference folder for
            `reference`; None for `train`.
        splits: of these three. None: everything there is; the test images; as of :func:`read_any`.
        size, resize: see :class:`Measuring`.

    Raises:
        DataError, ConfigError, RunError: see :func:`evaluate_any`.
    """
    of_fake, of_reference, of_train = splits
    real: Measurable | Stored
    if not isinstance(reference, ImageSet | np.ndarray) and is_reference(reference):
        opened = load_reference(reference)
        size, resize = _as_stored(opened, size, resize)
        as_made = f"the others are read as it was made: --size {size} --resize {resize}"
        real = Stored(opened, opened.name, () if opened.size is None else (as_made,))
    else:
        real = read_any(reference, of_reference, size, resize or "crop")
    sets = {"synthetic": read_any(_samples(fake), of_fake or EVERYTHING, size, resize or "crop")}
    if train is not None:
        sets["train"] = read_any(train, of_train, size, resize or "crop")
    every = (real, *sets.values())
    if any(m.unlabelled for m in every):
        if not all(m.unlabelled for m in every):
            unused = "classes are not used: one of the sets has no class folders or labels"
            real = replace(real.without_labels(), notes=(*real.notes, unused))
        sets = {name: m.without_labels() for name, m in sets.items()}
    for name, m in sets.items():
        _check_alike(m, real)
        images, note = align(m.images, real.images.class_names, m.name, real.name)
        sets[name] = replace(m, images=images, notes=(*m.notes, *([note] if note else [])))
    return {**sets, "reference": real}


def _as_stored(stored: StoredReference, size: int | None, resize: str | None) -> tuple[int | None, str | None]:
    """Size and policy for the images that are compared with a stored reference: its own where not given.

    Raises:
        ConfigError: those given are not those of the reference.
    """
    h, w, _ = stored.shape
    again = "leave the option out, or make the reference again with it: imbdiff reference"
    if size is not None and (h, w) != (size, size):
        raise ConfigError(f"--size {size}, but the images of the reference {stored.path} are {h} x {w} pixels", again)
    if stored.size is None:  # nothing was done to its images
        return size, resize
    if resize is not None and stored.resize is not None and resize != stored.resize:
        raise ConfigError(
            f"--resize {resize}, but the reference {stored.path} was made with --resize {stored.resize}", again
        )
    return stored.size, stored.resize or resize


def _check_alike(one: Measurable, real: Measurable | Stored) -> None:
    """Raises DataError where images differ in mode or size from the reference's."""
    a, b = one.images.shape, real.images.shape
    if a[2] != b[2]:
        raise DataError(
            f"{one.name} is {MODES[a[2]]} and {real.name} is {MODES[b[2]]}",
            "save both as grey or both as RGB: features of the two cannot be compared",
        )
    if a == b:
        return
    side = min(a[0], a[1], b[0], b[1])
    remedy = f"give --size {side}, which brings both to one size and is printed in the protocol"
    if isinstance(real, Stored):
        remedy = f"give --size {b[0]}" if b[0] == b[1] else f"bring those of {one.name} to that size"
    raise DataError(
        f"the images of {one.name} are {a[0]} x {a[1]} pixels, those of {real.name} {b[0]} x {b[1]}", remedy
    )


def _samples(fake: Any) -> Any:
    """The samples of a run folder; anything else as it is."""
    if isinstance(fake, ImageSet | np.ndarray) or not (Path(fake) / "config.yaml").is_file():
        return fake
    samples = Path(fake) / "samples"
    if not (samples / "manifest.json").is_file():
        raise RunError(f"the run {fake} has no finished samples", f"run `imbdiff sample {fake}` first")
    return samples
