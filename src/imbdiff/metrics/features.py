"""Features of an image set, extracted once: kept on disk in blocks, never taken for another set's."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import Extractor
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import DataError, RunError
from imbdiff.runtime.files import atomic, digest, is_disk_full

BLOCK = 2048
"""Images whose features make one file: what a stopped extraction loses at most."""
_log = logging.getLogger(__name__)

OnImages = Callable[[int, int], None]
"""Called with the images done and their number in all."""


class FeatureSource(Protocol):
    """A set of images that features can be had of: images at hand, or what :mod:`imbdiff.metrics.reference` stored."""

    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def hashes(self) -> Sequence[str]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int: ...


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
        self, images: ImageSet | FeatureSource, extractor: Extractor, progress: OnImages | None = None
    ) -> np.ndarray:
        """(N, D) float32 features.

        The key of a file is made of the extractor's fingerprint and the hashes of its images in order. It is in the
        name and in the file, a zip with checksums: features of other images or weights, or a damaged file, are never
        used. A stopped extraction goes on with the block where it was.

        Raises:
            DataError: the extractor cannot read these images, or gave numbers that are not finite.
            RunError: the disk is full; what was extracted until then is kept.
        """
        stored = getattr(images, "stored", None)
        if stored is not None:
            return stored(extractor)
        assert isinstance(images, ImageSet)
        extractor.check(images.shape)
        n, world = len(images), self.dist.world
        size = -(-n // (BLOCK * world)) * BLOCK  # of each process: whole blocks
        first = self.dist.rank * size
        rows = np.zeros((size if world > 1 else n, extractor.dim), np.float32)
        for start in range(first, min(n, first + size), BLOCK):
            end = min(start + BLOCK, n)
            rows[start - first : end - first] = self._block(images, extractor, start, end)
            if progress is not None:
                progress(min(n, (end - first) * world), n)
        return self.dist.gather_array(rows)[:n] if world > 1 else rows

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
            try:
                with atomic(path) as aside, open(aside, "wb") as handle:
                    np.savez(handle, features=rows, key=key)
            except OSError as error:
                if is_disk_full(error):
                    raise RunError(
                        f"no space left while writing {path}; the features before are kept",
                        "free some space and repeat the command: it goes on there",
                    ) from error
                raise
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
