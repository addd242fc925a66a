"""`imbdiff evaluate FAKE --reference REAL` and `imbdiff reference SOURCE`: measuring without a run folder."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.plain import Measurable, align, read_any
from imbdiff.data.stats import Groups
from imbdiff.metrics.checks import MODES, check_sets
from imbdiff.metrics.evaluate import evaluate
from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.extractors.inception import find_inception_weights
from imbdiff.metrics.features import FeatureStore
from imbdiff.metrics.lpips_diversity import lpips_distance, lpips_report
from imbdiff.metrics.reference import StoredReference, is_reference, load_reference, make_reference
from imbdiff.metrics.scopes import scopes
from imbdiff.metrics.tables import merge
from imbdiff.pipeline.extractors import make_extractors
from imbdiff.reporting.evaluation import build_evaluation
from imbdiff.runtime.device import make_accelerator, prepare_cpu, resolve_device
from imbdiff.runtime.dist import Dist, launched
from imbdiff.runtime.errors import DataError, RunError
from imbdiff.runtime.files import write_json, write_text
from imbdiff.runtime.progress import Progress

SHORT = 2.0
"""Seconds of work from which its end is worth a line."""


@dataclass(frozen=True)
class Measuring:
    """How images are read and measured; the options that `evaluate` and `reference` share.

    Attributes:
        extractors: names as :func:`make_extractor` takes them; empty: the fixed random network, and FID's Inception
            where its weights are at hand.
        inception_weights: file with FID's Inception weights.
        size, resize: bring all images to this side in pixels, and how; None: as they are.
        lpips: also LPIPS between images of a class.
        batch_size: images per network call.
        device: auto, cpu, cuda or cuda:N.
        seed: of image keys, halvings and clusterings.
        quiet: prints nothing but errors.
        command: what was typed, to be printed on the page.
    """

    extractors: tuple[str, ...] = ()
    inception_weights: str | None = None
    size: int | None = None
    resize: str = "crop"
    lpips: bool = False
    batch_size: int = 256
    device: str = "auto"
    seed: int = 0
    quiet: bool = False
    command: str | None = None

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

    def say(self, text: str) -> None:
        if not self.quiet and Dist.current().main:
            print(text, flush=True)


def evaluate_any(
    fake: str | Path | ImageSet | np.ndarray,
    reference: str | Path | ImageSet | np.ndarray,
    train: str | Path | ImageSet | np.ndarray | None = None,
    *,
    how: Measuring | None = None,
    reference_split: str | None = None,
    train_split: str | None = "train",
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Measures images against a reference: any two of folders, .npz and .npy files, arrays, run and reference folders.

    Args:
        fake: the synthetic images. A run folder means its samples.
        reference: real images, or a folder that `imbdiff reference` made.
        train: the images the generator was trained on, for memorisation, groups and as a second reference.
        out: folder for metrics.json, report.html and kept features; a repeated call goes on where it was.

    Returns:
        What :func:`imbdiff.metrics.evaluate.evaluate` gives.

    Raises:
        DataError: the sets do not belong together: grey and RGB, other sizes, other classes.
    """
    how = how or Measuring()
    dist = _begin(how.device)
    folder = None if out is None else usable(Path(out))
    sets = _read(fake, reference, train, how, reference_split, train_split)
    for name in ("synthetic", "reference", "train"):
        found = sets.get(name)
        if found is not None:
            n, shape = len(found.images), "x".join(map(str, found.images.shape))
            how.say(f"{name}: {found.name}: {n:,} images of {len(found.images.class_names)} classes, {shape}")
            for note in getattr(found, "notes", ()):
                how.say(f"  note: {note}")
    synthetic, real, known = sets["synthetic"].images, sets["reference"].images, sets.get("train")
    train_images = None if known is None else known.images
    groups = None
    if train_images is not None and len(train_images.class_names) > 1:
        groups = Groups.default(train_images.stats)
    check_sets(synthetic, real, train_images, groups)
    known_to = real.asked if isinstance(real, StoredReference) and not how.extractors else ()
    extractors = how.make(real.shape, list(known_to))
    distance = lpips_distance() if how.lpips else None
    if how.lpips and not isinstance(real, ImageSet):
        raise DataError("LPIPS compares images, and a reference folder has none", "give --reference the images")
    store = FeatureStore(None if folder is None else folder / "features", how.batch_size, dist)
    watching = Watching(how.quiet or not dist.main)
    found = evaluate(
        synthetic, real, train_images, groups, extractors,
        reference_name=sets["reference"].name, seed=how.seed, store=store, progress=watching,
    )  # fmt: skip
    found["protocol"]["synthetic"] = sets["synthetic"].name
    if distance is not None and isinstance(real, ImageSet):
        merge(found, "LPIPS", lpips_report(
            synthetic, real, list(scopes(real.class_names, groups)),
            reference_name=sets["reference"].name, seed=how.seed, distance=distance,
        ))  # fmt: skip
    if folder is not None and dist.main:
        write_json(folder / "metrics.json", found)
        write_text(folder / "report.html", build_evaluation(
            found, title=f"{sets['synthetic'].name} against {sets['reference'].name}", command=how.command or "",
            synthetic=synthetic, train=train_images,
        ))  # fmt: skip
    return found


@dataclass(frozen=True, eq=False)
class _Stored:
    """A stored reference where a :class:`Measurable` is expected."""

    images: StoredReference
    name: str
    notes: tuple[str, ...] = field(default=())


def _read(
    fake: Any, reference: Any, train: Any, how: Measuring, reference_split: str | None, train_split: str | None
) -> dict[str, Any]:
    """The sets by name, in the reference's classes; without labels if one of them has none."""
    stored = not isinstance(reference, ImageSet | np.ndarray) and is_reference(reference)
    real: Any
    if stored:
        opened = load_reference(reference)
        real = _Stored(opened, opened.name)
    else:
        real = read_any(reference, reference_split, how.size, how.resize)
    synthetic = read_any(_samples(fake), None, how.size, how.resize)
    more = {} if train is None else {"train": read_any(train, _split_of(train, train_split), how.size, how.resize)}
    sets: dict[str, Any] = {"synthetic": synthetic, **more}
    if not stored and (real.unlabelled or synthetic.unlabelled or any(m.unlabelled for m in more.values())):
        if not all(m.unlabelled for m in (real, *sets.values())):
            unused = "classes are not used: one of the sets has no class folders"
            real = replace(real.without_labels(), notes=(*real.notes, unused))
        sets = {name: m.without_labels() for name, m in sets.items()}
    for name, m in sets.items():
        _check_alike(m, real)
        images, note = align(m.images, real.images.class_names, m.name, real.name)
        sets[name] = replace(m, images=images, notes=(*m.notes, *([note] if note else [])))
    return {**sets, "reference": real}


def _check_alike(one: Measurable, real: Any) -> None:
    """Raises DataError where images differ in mode or size from the reference's."""
    a, b = one.images.shape, real.images.shape
    if a[2] != b[2]:
        raise DataError(
            f"{one.name} is {MODES[a[2]]} and {real.name} is {MODES[b[2]]}",
            "save both as grey or both as RGB: features of the two cannot be compared",
        )
    if a != b:
        raise DataError(
            f"the images of {one.name} are {a[0]} x {a[1]} pixels, those of {real.name} {b[0]} x {b[1]}",
            f"give --size {min(a[0], a[1], b[0], b[1])}, which brings both to one size and is printed in the protocol",
        )


def _samples(fake: Any) -> Any:
    """The samples of a run folder; anything else as it is."""
    if isinstance(fake, ImageSet | np.ndarray) or not (Path(fake) / "config.yaml").is_file():
        return fake
    samples = Path(fake) / "samples"
    if not (samples / "manifest.json").is_file():
        raise RunError(f"the run {fake} has no finished samples", f"run `imbdiff sample {fake}` first")
    return samples


def _split_of(train: Any, split: str | None) -> str | None:
    """Only sources with splits can be asked for one."""
    return None if isinstance(train, ImageSet | np.ndarray) else split


def reference_any(
    source: str | Path | ImageSet | np.ndarray,
    out: str | Path,
    *,
    how: Measuring | None = None,
    split: str | None = None,
) -> Path:
    """Makes a reference folder of `source`: see :mod:`imbdiff.metrics.reference`."""
    how = how or Measuring()
    dist = _begin(how.device)
    real = read_any(source, split, how.size, how.resize)
    for note in real.notes:
        how.say(f"  note: {note}")
    extractors = how.make(real.images.shape)
    with Progress("features", len(real.images) * len(extractors), quiet=how.quiet or not dist.main) as bar:
        done = [0]

        def count(now: int, total: int) -> None:
            bar.update(done[0] + now)
            done[0] += total if now == total else 0

        store = FeatureStore(None, how.batch_size, dist)
        folder = make_reference(
            real.images, extractors, Path(out), name=real.name, asked=how.names, store=store, progress=count
        )
    names = ", ".join(f"{e.name} ({e.dim} features)" for e in extractors)
    how.say(f"reference: {folder}: {len(real.images):,} images of {real.name}, by {names}")
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
            self._bar.quiet |= time.monotonic() - self._began < SHORT  # nobody waited for it
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


def _begin(device: str) -> Dist:
    prepare_cpu()
    if launched():
        make_accelerator(device)
    return Dist.current()
