"""Decoded images in a file: made once at the training size, resumed where it was stopped, checked by hash.

A cache is a folder: ``images.u8``, the images one after the other; ``journal.jsonl``, one line for each chunk of images
that is complete, with a hash of each of its images; ``about.json``. Workers write a chunk into its
place and only then is its line written, so a process killed at any moment leaves nothing that is taken for complete.
Opening a cache reads all of it once and compares hashes; a chunk that fails is made again.

The folder's name is a hash of the source, of the names of its images, of what their files' sizes and times are, and of
the target: a source that changed gets a new folder. Old ones may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from imbdiff.data.imageset import StoredImages
from imbdiff.data.reading import Decoding, in_chunks
from imbdiff.data.spec import user_path
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.files import is_disk_full, write_json
from imbdiff.runtime.progress import Progress

VERSION = 1
LEAST = 512 * 2**20
"""Bytes of decoded images from which a source keeps them on disk unless told otherwise."""
CHUNK_BYTES = 4 * 2**20


def default_folder() -> Path:
    """``IMBDIFF_CACHE`` ("off" for none), otherwise ``imbdiff`` in the user's cache folder."""
    given = os.environ.get("IMBDIFF_CACHE")
    if given:
        return user_path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imbdiff"


def chosen(option: str | Path | None, nbytes: int) -> Path | None:
    """The folder for caches, or None for none.

    Args:
        option: "off", a folder, or None: the default folder for `nbytes` of at least 512 MiB.
    """
    if "off" in (option, os.environ.get("IMBDIFF_CACHE")):
        return None
    if option is not None:
        return user_path(option)
    return default_folder() if nbytes >= LEAST else None


def kept(
    folder: Path, shape: tuple[int, int, int, int], decoding: Decoding, places: Sequence[Any], about: dict[str, Any]
) -> tuple[StoredImages, dict[int, str]]:
    """The images at `places`, made or found in `folder`.

    Args:
        shape: (N, H, W, C) of all.
        decoding: makes a chunk.
        about: written next to them, for people.

    Returns:
        The stored images, and {number: why} of the unusable; chunks with unusable images are not kept as complete.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    n, *image = shape
    per = max(1, min(1024, CHUNK_BYTES // int(np.prod(image))))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            store = _Store(folder, shape, per)
            store.start(about)
            todo = [start for start in range(0, n, per) if start not in store.done]
            bad: dict[int, str] = {}
            if todo:
                tasks = ((store.data, start, decoding, places[start : start + per]) for start in todo)
                with Progress("decode", n, start=n - sum(min(per, n - s) for s in todo)) as bar:
                    for start, (line, wrong) in zip(todo, in_chunks(_make, tasks, len(todo) * per), strict=True):
                        bad |= {start + i: why for i, why in wrong.items()}
                        if wrong and decoding.own is not None:  # the sample's one size was wrong, or a file is damaged
                            shutil.rmtree(folder, ignore_errors=True)
                            break
                        if not wrong:
                            store.add(line)
                        bar.update(bar.done + min(per, n - start))
            return StoredImages(store.data, shape, store.keys()), bad
    except OSError as error:
        if is_disk_full(error):
            raise DataError(f"no space left for decoded images in {folder}", _REMEDY) from error
        raise DataError(f"cannot keep decoded images in {folder}: {error.strerror or error}", _REMEDY) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time works on a cache; the others wait, and say so."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=2)
    except Timeout:
        print(f"waiting for another process that decodes into {folder}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


_REMEDY = "free some space, or set IMBDIFF_CACHE to another folder, or to off: then images stay in memory"


class _Store:
    """The files of one cache, in the hands of the process that holds its lock."""

    def __init__(self, folder: Path, shape: tuple[int, int, int, int], per: int) -> None:
        self.folder, self.shape, self.per = folder, shape, per
        self.data, self.journal = folder / "images.u8", folder / "journal.jsonl"
        self.image_bytes = int(np.prod(shape[1:]))
        self.done: dict[int, dict[str, Any]] = {}

    def start(self, about: dict[str, Any]) -> None:
        """Finds what is complete, and makes room for the rest."""
        size = self.shape[0] * self.image_bytes
        if self.data.exists() and self.data.stat().st_size == size:
            self.done = {line["start"]: line for line in self._lines() if self._holds(line)}
        if len(self.done) * self.per < self.shape[0]:
            missing = size - len(self.done) * self.per * self.image_bytes
            if not self.done and shutil.disk_usage(self.folder).free < missing:
                raise DataError(f"{missing / 2**30:.1f} GiB of decoded images do not fit into {self.folder}", _REMEDY)
            with open(self.data, "ab"):
                pass
            os.truncate(self.data, size)
            # begins anew with the lines that hold: a torn last line would swallow the next one
            text = "".join(json.dumps(line) + "\n" for line in self.done.values())
            aside = self.folder / "journal.partial"
            aside.write_text(text)
            os.replace(aside, self.journal)
            write_json(self.folder / "about.json", {**about, "version": VERSION, "shape": list(self.shape)})

    def add(self, line: dict[str, Any]) -> None:
        with open(self.journal, "a") as handle:
            handle.write(json.dumps(line) + "\n")
        self.done[line["start"]] = line

    def keys(self) -> np.ndarray:
        """(N, 16) uint8 hashes of the images; zeros where a chunk is missing."""
        keys = np.zeros((self.shape[0], 16), np.uint8)
        for start, line in self.done.items():
            here = np.frombuffer(bytes.fromhex(line["hashes"]), np.uint8).reshape(-1, 16)
            keys[start : start + len(here)] = here
        return keys

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.journal.exists():
            return
        with open(self.journal, errors="replace") as handle:
            for text in handle:
                try:
                    line = json.loads(text)
                except (ValueError, RecursionError):
                    continue  # torn by a kill
                if (
                    isinstance(line, dict)
                    and isinstance(line.get("start"), int)
                    and isinstance(line.get("hashes"), str)
                ):
                    yield line

    def _holds(self, line: dict[str, Any]) -> bool:
        start = line["start"]
        n = min(self.per, self.shape[0] - start)
        if start < 0 or start % self.per or n <= 0 or len(line["hashes"]) != 32 * n:
            return False
        with open(self.data, "rb") as handle:
            handle.seek(start * self.image_bytes)
            data = handle.read(n * self.image_bytes)
        return len(data) == n * self.image_bytes and _hashes(data, n) == line["hashes"]


def _make(path: Path, start: int, decoding: Decoding, places: Sequence[Any]) -> tuple[dict[str, Any], dict[int, str]]:
    """Decodes a chunk and writes it into its place; gives its line of the journal."""
    x, bad = decoding(places)
    data = x.data.cast("B")
    with open(path, "r+b") as handle:
        handle.seek(start * (x[0].nbytes if len(x) else 0))
        handle.write(data)
    return {"start": start, "hashes": _hashes(data, len(x))}, bad


def _hashes(data: bytes | memoryview, n: int) -> str:
    """The hashes of `n` images that lie one after the other, as :attr:`ImageSet.hashes` has them, joined."""
    size = len(data) // n
    whole = memoryview(data)
    return "".join(hashlib.sha256(whole[i * size : (i + 1) * size]).hexdigest()[:32] for i in range(n))
