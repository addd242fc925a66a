"""Reference statistics: the features of a set of real images, in a folder that `evaluate` takes in place of the images.

==================  ======================================================================
reference.json      source, class names, labels, image hashes, size and resize, extractors, fingerprints
NAME.npy            (N, D) float32 feature rows of one extractor, read memory-mapped
NAME.moments.npz    mu (D,) and sigma (D, D) float64 of all rows, as the field's tools take
==================  ======================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import Extractor
from imbdiff.metrics.features import FeatureStore, OnImages, file_stem
from imbdiff.metrics.frechet import moments_of
from imbdiff.metrics.rows import Rows
from imbdiff.runtime.errors import ConfigError, DataError, ImbdiffError, RunError
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_json

FORMAT = 1
RECORD = "reference.json"
AGAIN = "make it again with `imbdiff reference`"


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
        asked: how these extractors were asked for, to ask for them again; empty where that is not known.
        size: side in pixels that its images were brought to; None: they are as they were, or it is not known.
        resize: how they were brought to it: crop, pad or stretch; None: not known.
    """

    path: Path
    name: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    hashes: tuple[str, ...]
    shape: tuple[int, int, int]
    extractors: dict[str, dict[str, Any]]
    asked: tuple[str, ...] = ()
    size: int | None = None
    resize: str | None = None

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
        known = self.extractors.get(extractor.name)
        if known is None:
            raise DataError(
                f"the reference {self.path} has no features of {extractor.name}, but of {', '.join(self.extractors)}",
                f"evaluate with one of these, or {AGAIN}",
            )
        if known["fingerprint"] != extractor.fingerprint:
            raise DataError(
                f"the reference {self.path} has features of another {extractor.name}: fingerprint "
                f"{known['fingerprint'][:12]} there, {extractor.fingerprint[:12]} here",
                f"use the same weights and version, or {AGAIN}",
            )
        file = self.path / known["file"]
        if not file.is_file() or sha256_file(file) != known["sha256"]:
            raise DataError(f"{file} is missing or is not what `imbdiff reference` wrote", AGAIN)
        return np.load(file, mmap_mode="r")


def make_reference(
    images: ImageSet,
    extractors: Sequence[Extractor],
    folder: Path,
    *,
    name: str,
    asked: Sequence[str] = (),
    size: int | None = None,
    resize: str | None = None,
    store: FeatureStore | None = None,
    progress: OnImages | None = None,
) -> Path:
    """Writes the reference folder of `images`.

    Args:
        name: printed with every number made with it, such as "cifar10 test".
        asked: how the extractors were asked for; kept, so that they need not be named again.
        size, resize: how the images were brought to their size; kept, to do the same to images compared with them.
        store: where features may be stored already. With several processes, the first one writes.

    Raises:
        ConfigError: two extractors have one name.
        RunError: the folder holds something else, or the reference of other images.
        DataError: there are fewer than two images.
    """
    folder = Path(folder)
    if len(images) < 2:
        raise DataError(f"a reference needs at least two images, {name} has {len(images)}", "give more images")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / RECORD).exists())):
        raise RunError(f"{folder} exists and is not a reference folder", "give another --out; nothing was changed")
    names = [e.name for e in extractors]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(f"two extractors are called {', '.join(twice)}", "name each extractor once")
    _refuse_other(folder, images)
    store = store or FeatureStore()
    for extractor in extractors:  # before the first long work
        extractor.check(images.shape)
    entries: dict[str, dict[str, Any]] = {}
    for extractor in extractors:
        rows = store.features(images, extractor, progress)
        if not store.dist.main:
            continue
        stem = file_stem(extractor.name)
        if any(e["file"] == f"{stem}.npy" for e in entries.values()):  # "a:b" after "a-b"
            stem += f"-{extractor.fingerprint[:8]}"
        with atomic(folder / f"{stem}.npy") as aside, open(aside, "wb") as handle:
            np.save(handle, np.asarray(rows))
        moments = moments_of(Rows.of(rows, images.labels, hashes=images.hashes))
        with atomic(folder / f"{stem}.moments.npz") as aside, open(aside, "wb") as handle:
            np.savez(handle, mu=moments.mean, sigma=moments.covariance)
        sha256 = sha256_file(folder / f"{stem}.npy")
        entries[extractor.name] = {"file": f"{stem}.npy", "sha256": sha256, "fingerprint": extractor.fingerprint}
    if store.dist.main:
        known = {"name": name, "extractors": entries, "asked": list(asked), "size": size, "resize": resize}
        of_images = {"class_names": list(images.class_names), "shape": list(images.shape)}
        rows_of = {"labels": images.labels.tolist(), "hashes": list(images.hashes)}
        write_json(folder / RECORD, {"format": FORMAT, **known, **of_images, **rows_of})
    store.dist.barrier()
    return folder


def _fingerprint(images: ImageSet | StoredReference) -> str:
    return digest([list(images.hashes), images.labels.tolist(), list(images.class_names)])


def _refuse_other(folder: Path, images: ImageSet) -> None:
    """Raises RunError where the folder is a sound reference of other images than these."""
    try:
        known = load_reference(folder)
    except ImbdiffError:
        return  # there is none, or nothing that can be used
    if known.fingerprint != _fingerprint(images):
        raise RunError(
            f"{folder} is a reference of other images ({known.name}: {len(known):,} images)",
            "give another --out, or remove it; nothing was changed",
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
        r = read_json(folder / RECORD)
        if r["format"] != FORMAT:
            raise DataError(f"{folder} has reference format {r['format']}, this version reads {FORMAT}")
        labels = np.asarray(r["labels"], dtype=np.int64)
        names, hashes = tuple(map(str, r["class_names"])), tuple(map(str, r["hashes"]))
        h, w, c = (int(v) for v in r["shape"])
        if len(labels) != len(hashes) or (len(labels) and labels.max() >= len(names)):
            raise ValueError("labels, hashes and class names do not belong together")
        return StoredReference(folder, str(r["name"]), labels, names, hashes, (h, w, c), dict(r["extractors"]),
                               tuple(map(str, r["asked"])), r.get("size"), r.get("resize"))  # fmt: skip
    except DataError:
        raise
    except (ImbdiffError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder} is no usable reference: {error}", AGAIN) from error
