"""Features of an image set, extracted once: kept on disk, read memory-mapped, never taken for another set's."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import Extractor
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import DataError, ImbdiffError, RunError
from imbdiff.runtime.files import atomic, digest, is_disk_full, read_json, sha256_file, write_json

FORMAT = 1
BLOCK = 2048
"""Images between two notes of how far an extraction has come, and rows that pass between processes at a time."""
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
        dist: with several processes each extracts its part of the images; all get all rows: from the file that the
            first one writes, or, where they cannot see that, in memory.
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
            RunError: the disk is full; what was extracted until then is kept.
        """
        stored = getattr(images, "stored", None)
        if stored is not None:
            return stored(extractor)
        assert isinstance(images, ImageSet)
        extractor.check(images.shape)
        key = digest([FORMAT, extractor.name, extractor.fingerprint, list(images.shape), list(images.hashes)])
        shape = (len(images), extractor.dim)
        if self.folder is None:
            return self._own(images, extractor, None, key, progress)
        path = Path(self.folder) / f"{file_stem(extractor.name)[:60]}-{key[:24]}.npy"
        found = _read(path, key, shape)
        if not self.dist.broadcast(found is not None):  # the first process decides: the others may not see its folder
            self._own(images, extractor, path, key, progress)
            found = _read(path, key, shape)
        return self._shared(found, path, shape)

    def _own(
        self, images: ImageSet, extractor: Extractor, path: Path | None, key: str, progress: OnImages | None
    ) -> np.ndarray:
        """Extracts all rows, this process its share; in memory where there is no path, otherwise nothing but the file.

        The first process writes the file. It is there when this returns, and no process has a part left.
        """
        n, world = len(images), self.dist.world
        size = -(-n // world)
        mine = range(min(n, self.dist.rank * size), min(n, (self.dist.rank + 1) * size))
        part = _Part(None if path is None else _part_of(path, self.dist), key, len(mine), extractor.dim)
        while part.done < len(mine):
            end = min(part.done + max(self.batch_size, BLOCK // self.batch_size * self.batch_size), len(mine))
            block = extractor.features(images.images[mine[part.done] : mine[end - 1] + 1], self.batch_size)
            if not np.isfinite(block).all():
                bad = mine[part.done] + int((~np.isfinite(block).all(axis=1)).argmax())
                raise DataError(
                    f"extractor {extractor.name} gives numbers that are not finite for image {images.ids[bad]!r}",
                    "look at the image, or take other weights",
                )
            part.append(block)
            if progress is not None:
                progress(min(n, part.done * world), n)
        blocks = self._blocks(part, n, size)
        if path is None:
            if world == 1:
                return part.read(0, n)
            rows = np.empty((n, extractor.dim), np.float32)
            for at, block in blocks:
                rows[at : at + len(block)] = block
            return rows
        if self.dist.main:
            _write(path, (n, extractor.dim), blocks)
            facts = {"key": key, "sha256": sha256_file(path), "extractor": extractor.name, "images": n}
            write_json(path.with_suffix(".json"), {**facts, "fingerprint": extractor.fingerprint})
        else:
            for _ in blocks:
                pass
        self.dist.barrier()
        part.remove()
        if self.dist.main:
            for left in path.parent.glob(f"{path.stem}.begun-*"):  # of an earlier call with other processes
                left.unlink(missing_ok=True)
        return np.empty((0, extractor.dim), np.float32)

    def _blocks(self, part: _Part, n: int, size: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) until all rows of all processes are there, a block at a time; all processes take part."""
        for start in range(0, size, BLOCK):
            end = min(start + BLOCK, size)
            every = self.dist.gather_array(part.read(start, end))
            for rank in range(self.dist.world):
                at = rank * size + start
                rows = every[rank * (end - start) : (rank + 1) * (end - start)]
                yield at, rows[: max(0, n - at)]

    def _shared(self, found: np.ndarray | None, path: Path, shape: tuple[int, int]) -> np.ndarray:
        """`found`, or for processes that cannot see the first one's file its rows, sent in blocks."""
        have = self.dist.gather_objects(found is not None)
        if not have[0]:
            raise RunError(f"{path} cannot be read, though it was written", "see whether the disk is sound")
        if all(have):
            assert found is not None
            return found
        rows = np.empty(shape if found is None else (0, shape[1]), np.float32)
        for start in range(0, shape[0], BLOCK):
            block = self.dist.broadcast(None if found is None else np.array(found[start : start + BLOCK]))
            if found is None:
                rows[start : start + BLOCK] = block
        return rows if found is None else found


class _Part:
    """The rows of one process, in order: appended to a file, from which a stopped extraction goes on, or in memory.

    The file is a line with the key and the length of a row, and the rows. A row that was not written to its end is
    dropped.

    Args:
        path: None: in memory.
        key: of images and extractor; a file of another is begun again.
        count: rows in the end.
        dim: numbers in a row.
    """

    def __init__(self, path: Path | None, key: str, count: int, dim: int) -> None:
        self.path, self.count, self.dim, self.done = path, count, dim, 0
        self.head = f"{FORMAT} {key} {dim}\n".encode()
        self.rows = np.zeros((count if path is None else 0, dim), np.float32)
        if path is not None:
            self.done = self._begun(path)

    def _begun(self, path: Path) -> int:
        """Whole rows in the file, which holds nothing else after this."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            with open(path, "r+b") as handle:
                if handle.read(len(self.head)) == self.head:
                    done = (os.fstat(handle.fileno()).st_size - len(self.head)) // (4 * self.dim)
                    if done <= self.count:
                        handle.truncate(len(self.head) + done * 4 * self.dim)
                        return done
        path.write_bytes(self.head)
        return 0

    def append(self, block: np.ndarray) -> None:
        if self.path is None:
            self.rows[self.done : self.done + len(block)] = block
        else:
            try:
                with open(self.path, "ab") as handle:
                    handle.write(np.ascontiguousarray(block, np.float32).data)
                    handle.flush()
                    os.fsync(handle.fileno())
            except OSError as error:
                if is_disk_full(error):
                    raise RunError(
                        f"no space left while writing {self.path}; the rows before are kept",
                        "free some space and repeat the command: it goes on there",
                    ) from error
                raise
        self.done += len(block)

    def read(self, start: int, end: int) -> np.ndarray:
        """(end - start, dim), with zeros where this process has no more rows."""
        if self.path is None and end <= self.done:
            return self.rows[start:end]
        out = np.zeros((end - start, self.dim), np.float32)
        n = max(0, min(end, self.done) - start)
        if self.path is None:
            out[:n] = self.rows[start : start + n]
        elif n:
            skip = len(self.head) + start * 4 * self.dim
            out[:n] = np.fromfile(self.path, np.float32, n * self.dim, offset=skip).reshape(n, self.dim)
        return out

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _part_of(path: Path, dist: Dist) -> Path:
    return path.with_suffix(f".begun-{dist.rank}-of-{dist.world}")


def _write(path: Path, shape: tuple[int, int], blocks: Iterator[tuple[int, np.ndarray]]) -> None:
    """An ``.npy`` file from blocks of rows in any order. No memory map: on a full disk that would kill the process."""
    with atomic(path) as aside, open(aside, "wb") as handle:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(handle, header)
        begin = handle.tell()
        for at, rows in blocks:
            handle.seek(begin + at * 4 * shape[1])
            handle.write(np.ascontiguousarray(rows).data)


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


def file_stem(name: str) -> str:
    """An extractor's name as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)
