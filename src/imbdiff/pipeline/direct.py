"""`imbdiff evaluate FAKE --reference REAL` and `imbdiff reference SOURCE`: measuring without a run folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.config import MeasureOptions
from imbdiff.data.decode import Size, parse_size
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted
from imbdiff.data.plain import EVERYTHING, ONE_CLASS, Measurable, align, read_any
from imbdiff.data.stats import Groups
from imbdiff.metrics.evaluate import check_sets, evaluate
from imbdiff.metrics.extractors import Extractor, efficientnet, make_extractors
from imbdiff.metrics.extractors.inception import find_inception_weights
from imbdiff.metrics.features import FeatureStore, StoredReference, is_reference, load_reference, make_reference
from imbdiff.metrics.measures import choose_measures
from imbdiff.pipeline.folder import RunFolder
from imbdiff.reporting.report import build_evaluation
from imbdiff.runtime.device import resolve_device, start
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import read_json, write_json, write_text
from imbdiff.runtime.progress import PartProgress

Images = str | Path | ImageSet | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Measuring(MeasureOptions):
    """How images are read and measured, by the options that `evaluate` and `reference` share.

    Attributes:
        command: what was typed, to be printed on the page.
    """

    command: str | None = None

    def names(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        """The extractors that are asked for, or those that are at hand for images of `shape`."""
        if self.extractor:
            return self.extractor
        cached = self.inception_weights is not None or find_inception_weights() is not None
        photographs = efficientnet.installed() and efficientnet.photographs(shape)
        return ("inception",) * cached + (efficientnet.NAME,) * photographs + ("random-conv",)

    def make(self, shape: tuple[int, int, int], names: tuple[str, ...] = ()) -> list[Extractor]:
        """The extractors for images of `shape`; errors in names, weights and shapes come here, before any long work."""
        names = names or self.names(shape)
        return make_extractors(names, self.inception_weights, shape, resolve_device(self.device))

    def log(self, text: str) -> None:
        if not self.quiet and Dist.current().main:
            print(text, flush=True)


def evaluate_any(
    fake: Images,
    reference: Images,
    train: Images | None = None,
    *,
    how: Measuring | None = None,
    fake_split: str | None = None,
    reference_split: str | None = None,
    train_split: str | None = "train",
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Measures images against a reference: any two of folders, .npz and .npy files, arrays, run and reference folders.

    Args:
        fake: the synthetic images. A run folder means its samples.
        reference: real images, or a folder that `imbdiff reference` made.
        train: the images the generator was trained on, for memorisation, groups and as a second reference.
        fake_split: which images of `fake`. Default: all it has, of all splits.
        reference_split: which images of `reference`. Default: its test images where it brings some, otherwise all.
        out: folder for metrics.json, report.html and kept features; a repeated call goes on where it was.
        overwrite: replace the numbers of other images there.

    Returns:
        What :func:`imbdiff.metrics.evaluate.evaluate` gives.

    Where only some of the sets are grey, these are measured as RGB, with a note.

    Raises:
        DataError: the sets do not belong together: other sizes, other classes, colours against a stored grey reference.
        ConfigError: a size or resize that contradicts those of a stored reference.
        RunError: `out` holds other things, or the numbers of other images.
    """
    how = how or Measuring()
    measures = choose_measures(how.measures)
    dist = start(how.device)
    folder = None if out is None else Path(out)
    stored = _stored(reference)
    how, notes = (how, ()) if stored is None else _as_stored(stored, reference, how)
    others = {"synthetic": _read(_samples(fake), fake_split or EVERYTHING, how)}
    size = others["synthetic"].images.shape[:2]  # for images of different sizes
    of_stored: Any = stored  # it stands for its images
    real = Measurable(of_stored, of_stored.name, notes) if stored else _read(reference, reference_split, how, size)
    if train is not None:
        others["train"] = _read(train, train_split, how, size)
    sets = _in_one_mode(_in_classes_of(real, others))
    said: set[str] = set()  # of two splits of one source once
    for label, found in sets.items():
        n, shape = len(found.images), "x".join(map(str, found.images.shape))
        classes = counted(len(found.images.class_names), "class", "classes")
        how.log(f"{label}: {found.name}: {n:,} images of {classes}, {shape}")
        for note in (note for note in found.notes if note not in said):
            how.log(f"  note: {note}")
        said |= set(found.notes)
    synthetic, real_images = sets["synthetic"].images, sets["reference"].images
    train_images = sets["train"].images if train is not None else None
    groups = None
    if train_images is not None and len(train_images.class_names) > 1:
        groups = Groups.default(train_images.stats)
    check_sets(synthetic, real_images, train_images, groups)
    if folder is not None:
        _check_out(folder, overwrite, {"synthetic": synthetic.fingerprint, "reference": real_images.fingerprint})
    asked = real_images.asked if isinstance(real_images, StoredReference) and not how.extractor else ()
    extractors = how.make(real_images.shape, asked)
    store = FeatureStore(None if folder is None else folder / "features", how.batch_size, dist)
    result = evaluate(
        synthetic, real_images, train_images, groups, extractors, reference_name=real.name, seed=how.seed, store=store,
        measures=measures, progress=PartProgress(how.quiet or not dist.main),
    )  # fmt: skip
    result["protocol"]["synthetic"] = sets["synthetic"].name
    used = any(e.name == efficientnet.NAME for e in extractors)
    result["protocol"]["pretrained_judge"] = efficientnet.note(real_images.shape, used)
    shape = " x ".join(map(str, () if how.size is None else parse_size(how.size)))
    resized = f"to {shape} pixels: {how.resize or 'crop, or pad where that would cut off much'}" if shape else "no"
    result["protocol"]["resized"] = resized
    left = len(others["synthetic"].images) - len(synthetic)
    if 2 * left > len(others["synthetic"].images):
        result["warnings"].append(
            f"{left:,} of {left + len(synthetic):,} synthetic images were left out, whose classes {real.name} lacks: "
            "the numbers are of the rest; call the class folders of both alike, or put all into one folder"
        )
    if folder is not None and dist.main:
        write_json(folder / "metrics.json", result)
        title = f"{sets['synthetic'].name} against {result['protocol']['reference']}"
        page = build_evaluation(
            result, title=title, command=how.command or "", synthetic=synthetic, train=train_images
        )  # fmt: skip
        write_text(folder / "report.html", page)
    return result


def reference_any(
    source: Images, out: str | Path, *, how: Measuring | None = None, split: str | None = None, overwrite: bool = False
) -> Path:
    """Makes a reference folder of `source`: see :mod:`imbdiff.metrics.features`."""
    how = how or Measuring()
    how = replace(how, resize=how.resize or "crop")  # kept with the features, for the images compared with them
    dist = start(how.device)
    real = _read(source, split, how)
    for note in real.notes:
        how.log(f"  note: {note}")
    names = how.names(real.images.shape)
    extractors = how.make(real.images.shape, names)
    folder = make_reference(
        real.images, extractors, Path(out), name=real.name, asked=names, size=how.size, resize=how.resize,
        store=FeatureStore(None, how.batch_size, dist), progress=PartProgress(how.quiet or not dist.main),
        overwrite=overwrite,
    )  # fmt: skip
    made = ", ".join(f"{e.name} ({e.dim} features)" for e in extractors)
    how.log(f"reference: {folder}: {len(real.images):,} images of {real.name}, by {made}")
    return folder


def _read(source: Images, split: str | None, how: Measuring, otherwise: Size | None = None) -> Measurable:
    return read_any(source, split, how.size, how.resize or "auto", otherwise)


def _samples(fake: Images) -> Images:
    """The samples of a run folder; anything else as it is."""
    if isinstance(fake, ImageSet | np.ndarray) or not (Path(fake) / "config.yaml").is_file():
        return fake
    samples = Path(fake) / "samples"
    if not (samples / "manifest.json").is_file():
        raise RunError(
            f"the run {fake} has no finished samples", f"run `{RunFolder(Path(fake)).command('sample')}` first"
        )
    return samples


def _stored(reference: Images) -> StoredReference | None:
    """What `imbdiff reference` made; None where it is images."""
    if isinstance(reference, ImageSet | np.ndarray) or not is_reference(reference):
        return None
    return load_reference(reference)


def _as_stored(stored: StoredReference, reference: Images, how: Measuring) -> tuple[Measuring, tuple[str, ...]]:
    """How the others are read: as the stored reference was, where nothing else is asked for; and a note.

    Raises:
        ConfigError: a size or policy is asked for that is not that of the stored reference.
    """
    remedy = "leave the option out, or make the reference again with it: imbdiff reference"
    h, w, _ = stored.shape
    if how.size is not None and (h, w) != parse_size(how.size):
        raise ConfigError(f"--size {how.size}, but the images of the reference {reference} are {h} x {w}", remedy)
    notes: tuple[str, ...] = ()
    if stored.size is not None:
        if how.resize is not None and how.resize != stored.resize:
            raise ConfigError(f"--resize {how.resize}, but {reference} was made with --resize {stored.resize}", remedy)
        how = replace(how, size=stored.size, resize=stored.resize)
        notes = (f"the others are read as it was made: --size {stored.size} --resize {stored.resize}",)
    return how, notes


def _in_classes_of(real: Measurable, others: dict[str, Measurable]) -> dict[str, Measurable]:
    """All sets with the classes of the reference; as one class if one of them has none."""
    sets = {"reference": real, **others}
    if any(m.images.class_names == (ONE_CLASS,) for m in sets.values()):
        if any(m.images.class_names != (ONE_CLASS,) for m in sets.values()):
            unused = "classes are not used: one of the sets has no class folders or labels"
            sets["reference"] = replace(real, notes=(*real.notes, unused))
        for name, m in sets.items():
            zeros = np.zeros(len(m.images), np.int64)
            sets[name] = replace(m, images=replace(m.images, labels=zeros, class_names=(ONE_CLASS,)))
    for name in others:
        m = sets[name]
        images, note = align(m.images, sets["reference"].images.class_names, m.name, real.name)
        sets[name] = replace(m, images=images, notes=(*m.notes, note) if note else m.notes)
    return sets


def _in_one_mode(sets: dict[str, Measurable]) -> dict[str, Measurable]:
    """All sets as RGB where only some are grey; of a stored grey reference the others as grey where nothing is lost."""
    wanted = max(m.images.shape[-1] for m in sets.values())
    stored: Any = sets["reference"].images
    wanted = stored.shape[-1] if isinstance(stored, StoredReference) else wanted
    for name, m in sets.items():
        channels = m.images.shape[-1]
        if channels == wanted:
            continue
        x = np.asarray(m.images.images)
        if wanted == 1 and (x != x[..., :1]).any():
            continue  # check_sets refuses them
        x = x[..., :1] if wanted == 1 else x.repeat(3, axis=-1)
        mode = "grey" if wanted == 1 else "RGB (three equal channels)"
        note = f"{'RGB' if wanted == 1 else 'grey'} images, measured as {mode}, as the other images are"
        sets[name] = replace(m, images=replace(m.images, images=x), notes=(*m.notes, note))
    return sets


def _check_out(folder: Path, overwrite: bool, fingerprints: dict[str, str]) -> None:
    """Raises RunError unless the folder is new, empty or holds an earlier evaluation, of others only to `overwrite`."""
    if folder.is_file():
        raise RunError(f"--out {folder} is a file", "give a new or an empty folder")
    files = list(folder.iterdir()) if folder.exists() else []
    own = ("features", *("metrics.json", "report.html") * (folder / "metrics.json").exists())
    others = [p for p in files if p.name not in own]
    if others:
        raise RunError(f"--out {folder} holds other files, such as {others[0]}", "give a new or an empty folder")
    if overwrite or not (folder / "metrics.json").exists():
        return
    known = read_json(folder / "metrics.json")
    protocol = known.get("protocol") if isinstance(known, dict) else None
    protocol = protocol if isinstance(protocol, dict) else {}
    before = protocol.get("fingerprints")
    if not isinstance(before, dict) or any(before.get(name) != own for name, own in fingerprints.items()):
        raise RunError(
            f"{folder / 'metrics.json'} has the numbers of other images: "
            f"{protocol.get('synthetic', 'unknown ones')} against {protocol.get('reference', 'unknown ones')}",
            "give another --out, or --replace to replace them",
        )
