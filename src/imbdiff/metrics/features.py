"""Features of an image set, extracted once: kept on disk in blocks, or as reference statistics in place of the images.

A reference folder, which `imbdiff reference` makes and `evaluate` takes, holds

==================  ======================================================================
reference.json      source, class names, labels, image hashes, size and resize, extractors, fingerprints
NAME.npy            (N, D) float32 feature rows of one extractor, read memory-mapped
NAME.moments.npz    mu (D,) and sigma (D, D) float64 of all rows, as the field's tools take
==================  ======================================================================
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imbdiff.data.decode import parse_size
from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.frechet import moments_of
from imbdiff.metrics.rows import Rows
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError, DataError, ImbdiffError, RunError
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_json

BLOCK = 2048
"""Images whose features make one file: what a stopped extraction loses at most."""
FORMAT = 1
RECORD = "reference.json"
AGAIN = "make it again with `imbdiff reference`"
_log = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, eq=False)
class StoredReference:
    """A reference folder; takes the place of an :class:`ImageSet` in `evaluate`, without the images.

    Attributes:
        path: the folder.
        name: what was measured, as given when it was made.
        labels: (N,) int64.
        class_names: in label order.
        hashes: (N,) of the images.
        shape: (H, W, C) of the images.
        extractors: name -> file, hash, fingerprint, of those it has features of.
        asked: how these extractors were asked for, to ask for them again.
        size: side in pixels, or "24x32" (height x width), that its images were brought to; None: they are as they were.
        resize: how they were brought to it: crop, pad or stretch.
    """

    path: Path
    name: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    hashes: tuple[str, ...]
    shape: tuple[int, int, int]
    extractors: Mapping[str, Mapping[str, str]]
    asked: tuple[str, ...] = ()
    size: int | str | None = None
    resize: Literal["crop", "pad", "stretch"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        return _fingerprint(self)

    def stored(self, extractor: Extractor) -> np.ndarray:
        """(N, D) features of `extractor`, memory-mapped.

        Raises:
            DataError: there are none, they are those of other weights, or the file was changed.
        """
        known = self.extractors.get(extractor.name, {})
        if known.get("fingerprint") != extractor.fingerprint:
            there = "those of other weights or another version" if known else f"those of {', '.join(self.extractors)}"
            raise DataError(
                f"the reference {self.path} has no features of this {extractor.name}, but {there}",
                f"evaluate with what it was made with, or {AGAIN}",
            )
        file = self.path / known["file"]
        if not file.is_file() or sha256_file(file) != known["sha256"]:
            raise DataError(f"{file} is missing or is not what `imbdiff reference` wrote", AGAIN)
        return np.load(file, mmap_mode="r")


@dataclass(frozen=True)
class FeatureStore:
    """Feature rows by (extractor, images).

    Attributes:
        folder: where they are kept, a file ``NAME-KEY.npz`` for each block of images; None: in memory only.
        batch_size: images per network call.
        dist: with several processes each extracts its part of the blocks, and all get all rows.
    """

    folder: Path | None = None
    batch_size: int = 256
    dist: Dist = field(default_factory=Dist)

    def features(
        self,
        images: ImageSet | StoredReference,
        extractor: Extractor,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """(N, D) float32 features.

        The key of a file, a zip with checksums, is made of the extractor's fingerprint and the hashes of its images in
        order: features of other images or weights, or a damaged file, are never used.

        Raises:
            DataError: the extractor cannot read these images, or gave numbers that are not finite.
            RunError: the disk is full; what was extracted until then is kept.
        """
        if isinstance(images, StoredReference):
            return images.stored(extractor)
        extractor.check(images.shape)
        n, world = len(images), self.dist.world
        size = -(-n // (BLOCK * world)) * BLOCK  # of each process: whole blocks
        first = min(n, self.dist.rank * size)
        rows = np.empty((min(n, first + size) - first, extractor.dim), np.float32)
        for start in range(0, len(rows), BLOCK):
            end = min(start + BLOCK, len(rows))
            rows[start:end] = self._block(images, extractor, first + start, first + end)
            if progress is not None:
                progress(min(n, end * world), n)
        return np.concatenate(self.dist.gather_objects(rows)) if world > 1 else rows

    def _block(self, images: ImageSet, extractor: Extractor, start: int, end: int) -> np.ndarray:
        path, key = None, ""
        if self.folder is not None:
            hashes = list(images.hashes[start:end])
            key = digest([extractor.name, extractor.fingerprint, list(images.shape), hashes])
            path = Path(self.folder) / f"{file_stem(extractor.name)[:60]}-{key[:32]}.npz"
            found = _read(path, key, (end - start, extractor.dim))
            if found is not None:
                return found
        rows = extractor.features(images.images[start:end], self.batch_size)
        if not np.isfinite(rows).all():
            bad = start + int((~np.isfinite(rows).all(axis=1)).argmax())
            raise DataError(
                f"extractor {extractor.name} gives numbers that are not finite for image {images.ids[bad]!r}",
                "look at the image, or take other weights",
            )
        if path is not None:
            with atomic(path) as aside, open(aside, "wb") as handle:
                np.savez(handle, features=rows, key=key)
        return rows


def _read(path: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            rows, of = file["features"], str(file["key"])
        if of == key and rows.shape == shape and rows.dtype == np.float32:
            return rows
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    _log.warning("%s is damaged or of other images: the features are extracted again", path)
    return None


def file_stem(name: str) -> str:
    """An extractor's name as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def make_reference(
    images: ImageSet,
    extractors: Sequence[Extractor],
    folder: Path,
    *,
    name: str,
    asked: Sequence[str] = (),
    size: int | str | None = None,
    resize: str | None = None,
    store: FeatureStore | None = None,
    progress: OnProgress | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the reference folder of `images`.

    Args:
        name: printed with every number made with it, such as "cifar10 test".
        asked: how the extractors were asked for; kept, so that they need not be named again.
        size, resize: how the images were brought to their size; kept, to do the same to images compared with them.
        store: where features may be stored already. With several processes, the first one writes.
        overwrite: replace the reference of other images that is there.

    Raises:
        ConfigError: two extractors have one name.
        RunError: the folder holds something else, or the reference of other images.
        DataError: there are fewer than two images.
    """
    folder = Path(folder)
    if len(images) < 2:
        raise DataError(f"a reference needs at least two images, {name} has {len(images)}", "give more images")
    stems = [file_stem(e.name) for e in extractors]
    if len(set(stems)) < len(stems):
        raise ConfigError(f"two extractors have one name: {', '.join(stems)}", "name each extractor once")
    _refuse_other(folder, images, overwrite)
    store = store or FeatureStore()
    for extractor in extractors:  # before the first long work
        extractor.check(images.shape)
    entries: dict[str, dict[str, str]] = {}
    for extractor, stem in zip(extractors, stems, strict=True):
        what = f"{extractor.name}: features of {name}"
        rows = store.features(images, extractor, partial(progress, what) if progress else None)
        if not store.dist.main:
            continue
        with atomic(folder / f"{stem}.npy") as aside, open(aside, "wb") as handle:
            np.save(handle, rows)
        moments = moments_of(Rows.of(rows, images.labels, hashes=images.hashes))
        with atomic(folder / f"{stem}.moments.npz") as aside, open(aside, "wb") as handle:
            np.savez(handle, mu=moments.mean, sigma=moments.covariance)
        sha256 = sha256_file(folder / f"{stem}.npy")
        entries[extractor.name] = {"file": f"{stem}.npy", "sha256": sha256, "fingerprint": extractor.fingerprint}
    if store.dist.main:
        record = {
            "format": FORMAT, "name": name, "labels": images.labels.tolist(), "class_names": images.class_names,
            "hashes": images.hashes, "shape": images.shape, "extractors": entries, "asked": asked, "size": size,
            "resize": resize,
        }  # fmt: skip
        write_json(folder / RECORD, record)
    store.dist.barrier()
    return folder


def _fingerprint(images: ImageSet | StoredReference) -> str:
    return digest([list(images.hashes), images.labels.tolist(), list(images.class_names)])


def _refuse_other(folder: Path, images: ImageSet, overwrite: bool) -> None:
    """Raises RunError where the folder holds anything but an unusable reference or one of these images."""
    if not is_reference(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} exists and is not a reference folder", "give another --out")
        return
    try:
        known = load_reference(folder)
    except DataError:
        return
    if known.fingerprint != _fingerprint(images) and not overwrite:
        raise RunError(
            f"{folder} is a reference of other images ({known.name}: {len(known):,} images)",
            "give another --out, or --replace to replace it",
        )


def is_reference(path: str | Path) -> bool:
    """Whether `path` is a reference folder."""
    return (Path(path) / RECORD).is_file()


def load_reference(path: str | Path) -> StoredReference:
    """Opens a reference folder.

    Raises:
        DataError: it is none, is of a later version, or contradicts itself.
    """
    folder = Path(path)
    try:
        known: dict[str, Any] = read_json(folder / RECORD)
        if known.pop("format") != FORMAT:
            raise ValueError(f"this version reads format {FORMAT}")
        labels = np.asarray(known.pop("labels"), dtype=np.int64)
        lists: dict[str, Any] = {key: tuple(known.pop(key)) for key in ("class_names", "hashes", "shape", "asked")}
        texts = (*lists["class_names"], *lists["hashes"], *lists["asked"])
        numbers = (*lists["shape"], *(parse_size(known["size"]) if known["size"] is not None else []))
        files = [entry[key] for entry in known["extractors"].values() for key in ("file", "sha256", "fingerprint")]
        if not all(isinstance(t, str) for t in (*texts, *files)) or not all(isinstance(n, int) for n in numbers):
            raise ValueError("a name, hash, size or extractor is damaged")
        if len(lists["shape"]) != 3 or len(labels) != len(lists["hashes"]):
            raise ValueError("shape, labels and hashes do not belong together")
        if not 0 <= labels.min() <= labels.max() < len(lists["class_names"]):
            raise ValueError("labels and class names do not belong together")
        return StoredReference(folder, labels=labels, **lists, **known)
    except (ImbdiffError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder} is no usable reference: {error}", AGAIN) from error
