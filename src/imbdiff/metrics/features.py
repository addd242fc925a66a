"""Features of an image set, extracted once: kept on disk, read memory-mapped, never taken for another set's."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import Extractor
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import DataError, ImbdiffError
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_json

FORMAT = 1
BLOCK = 2048
"""Images between two notes of how far an extraction has come."""
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
        folder: where they are kept, as ``NAME-KEY.npy`` with a record beside it; None: nowhere, in memory only.
        batch_size: images per network call.
        dist: with several processes each extracts its part of the images; all get all rows.
    """

    folder: Path | None = None
    batch_size: int = 256
    dist: Dist = field(default_factory=Dist)

    def features(
        self, images: ImageSet | FeatureSource, extractor: Extractor, progress: OnImages | None = None
    ) -> np.ndarray:
        """(N, D) float32 features, read-only where they come from a file.

        The file's key is made of the extractor's fingerprint and the hash of every image in order, and the file is
        checked against its record: features of other images or weights, or a damaged file, are never used. A stopped
        extraction goes on where it was.

        Raises:
            DataError: the extractor cannot read these images, or gave numbers that are not finite.
        """
        stored = getattr(images, "stored", None)
        if stored is not None:
            return stored(extractor)
        assert isinstance(images, ImageSet)
        extractor.check(images.shape)
        key = digest([FORMAT, extractor.name, extractor.fingerprint, list(images.shape), list(images.hashes)])
        path = None if self.folder is None else Path(self.folder) / f"{_safe(extractor.name)}-{key[:24]}.npy"
        if path is not None:
            found = _read(path, key, (len(images), extractor.dim))
            if all(self.dist.gather_objects(found is not None)):
                assert found is not None
                return found
        rows = self._own(images, extractor, path, key, progress)
        if path is None or not self.dist.main:
            return rows
        with atomic(path) as aside, open(aside, "wb") as handle:
            np.save(handle, rows)
        facts = {"key": key, "sha256": sha256_file(path), "extractor": extractor.name, "images": len(images)}
        write_json(path.with_suffix(".json"), {**facts, "fingerprint": extractor.fingerprint})
        _part(path, self.dist).unlink(missing_ok=True)
        return np.load(path, mmap_mode="r")

    def _own(
        self, images: ImageSet, extractor: Extractor, path: Path | None, key: str, progress: OnImages | None
    ) -> np.ndarray:
        """All rows, of which this process extracts its share."""
        n, world = len(images), self.dist.world
        size = -(-n // world)
        mine = range(min(n, self.dist.rank * size), min(n, (self.dist.rank + 1) * size))
        rows = np.zeros((size, extractor.dim), np.float32)
        done = 0
        part = None if path is None else _part(path, self.dist)
        if part is not None and (begun := _begun(part, key, rows.shape)) is not None:
            done = len(begun)
            rows[:done] = begun
        while done < len(mine):
            end = min(done + max(self.batch_size, BLOCK // self.batch_size * self.batch_size), len(mine))
            block = extractor.features(images.images[mine[done] : mine[end - 1] + 1], self.batch_size)
            if not np.isfinite(block).all():
                bad = mine[done] + int((~np.isfinite(block).all(axis=1)).argmax())
                raise DataError(
                    f"extractor {extractor.name} gives numbers that are not finite for image {images.ids[bad]!r}",
                    "look at the image, or take other weights",
                )
            rows[done:end] = block
            done = end
            if part is not None and done < len(mine):
                with atomic(part, sync=False) as aside, open(aside, "wb") as handle:
                    handle.write(key.encode() + rows[:done].tobytes())
            if progress is not None:
                progress(min(n, done * world), n)
        if world == 1:
            return rows
        with torch.no_grad():
            return self.dist.gather(torch.from_numpy(rows)).numpy()[:n]


def _part(path: Path, dist: Dist) -> Path:
    return path.with_suffix(f".begun-{dist.rank}-of-{dist.world}")


def _begun(part: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    if not part.is_file():
        return None
    data = part.read_bytes()
    head, body = data[: len(key)], data[len(key) :]
    width = 4 * shape[1]
    if head != key.encode() or len(body) % width or len(body) > width * shape[0]:
        return None
    return np.frombuffer(body, np.float32).reshape(-1, shape[1])


def _read(path: Path, key: str, shape: tuple[int, int]) -> np.ndarray | None:
    record = path.with_suffix(".json")
    if not path.is_file() or not record.is_file():
        return None
    try:
        known: dict[str, Any] = read_json(record)
        if known["key"] != key or known["sha256"] != sha256_file(path):
            raise ValueError
        rows = np.load(path, mmap_mode="r")
        if rows.shape != shape or rows.dtype != np.float32:
            raise ValueError
        return rows
    except (ImbdiffError, OSError, ValueError, KeyError, TypeError):
        _log.warning("%s is damaged or of other images: the features are extracted again", path)
        return None


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60]
