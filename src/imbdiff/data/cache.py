"""Decoded images in a file: made once at the training size, continued after a kill, checked by hash.

A cache is a folder with ``images.u8``, the images one after the other, and ``keys.u8``, 16 bytes of hash of each, zeros
where an image is missing. A worker writes images before their keys, and opening a cache compares all of them: whatever
does not fit is decoded again, so a process killed at any moment leaves nothing that is taken for complete.

The folder's name is a hash of the source, of the names, sizes and times of its files, and of the target: a source that
changed gets a new folder. Old ones may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from imbdiff.data.imageset import KEY, StoredImages
from imbdiff.data.reading import Decoding, in_chunks
from imbdiff.data.spec import user_path
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.files import is_disk_full, write_json
from imbdiff.runtime.progress import Progress

LEAST = 512 * 2**20
"""Bytes of decoded images from which a source keeps them on disk unless it is given another choice."""
CHUNK_BYTES = 4 * 2**20
_REMEDY = "free some space, or set IMBDIFF_CACHE to another folder, or to off: then images stay in memory"


def chosen(option: str | Path | None, nbytes: int) -> Path | None:
    """The folder for caches, or None for none.

    Args:
        option: "off", a folder, or None: for `nbytes` of at least 512 MiB ``IMBDIFF_CACHE`` ("off" for none), otherwise
            ``imbdiff`` in the user's cache folder.
    """
    given = os.environ.get("IMBDIFF_CACHE")
    if "off" in (option, given) or (option is None and nbytes < LEAST):
        return None
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imbdiff"
    return user_path(option or given or own)


def kept(
    folder: Path, shape: tuple[int, int, int, int], decoding: Decoding, places: Sequence[Any], about: dict[str, Any]
) -> tuple[StoredImages, dict[int, str]]:
    """The images at `places`, made or found in `folder`.

    Args:
        shape: (N, H, W, C) of all.
        decoding: makes a chunk. Where it wants one size and meets another, or damage, nothing is kept.
        about: written next to them, for people.

    Returns:
        The stored images, and {number: why} of the unusable.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    n, image = shape[0], int(np.prod(shape[1:]))
    per = max(1, min(1024, CHUNK_BYTES // image))
    images, keys = folder / "images.u8", folder / "keys.u8"
    bad: dict[int, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            _make_room(images, n * image)
            _make_room(keys, n * KEY)
            todo = [start for start in range(0, n, per) if not _holds(images, keys, start, min(per, n - start), image)]
            missing = sum(min(per, n - start) for start in todo)
            if todo:
                write_json(folder / "about.json", about)
                tasks = ((images, keys, start, decoding, places[start : start + per]) for start in todo)
                made = in_chunks(_make, tasks, decoding.reader, missing)
                with Progress("decode", n, start=n - missing) as bar:
                    for start, wrong in zip(todo, made, strict=True):
                        bad |= {start + i: why for i, why in wrong.items()}
                        if wrong and decoding.own is not None:
                            shutil.rmtree(folder, ignore_errors=True)
                            return StoredImages(images, shape, np.zeros((n, KEY), np.uint8)), bad
                        bar.update(bar.done + min(per, n - start))
            return StoredImages(images, shape, np.fromfile(keys, np.uint8).reshape(n, KEY)), bad
    except OSError as error:
        if is_disk_full(error):
            raise DataError(f"no space left for decoded images in {folder}", _REMEDY) from error
        raise DataError(f"cannot keep decoded images in {folder}: {error.strerror or error}", _REMEDY) from error


def _make_room(path: Path, size: int) -> None:
    if path.exists() and path.stat().st_size == size:
        return
    if shutil.disk_usage(path.parent).free < size:
        raise DataError(f"{size / 2**30:.1f} GiB of decoded images do not fit into {path.parent}", _REMEDY)
    with open(path, "wb") as handle:
        handle.truncate(size)


def _holds(images: Path, keys: Path, start: int, n: int, image: int) -> bool:
    """Whether the `n` images from `start` on, of `image` bytes each, are there and have their hashes."""
    with open(keys, "rb") as handle:
        handle.seek(start * KEY)
        wanted = handle.read(n * KEY)
    if not any(wanted):
        return False
    with open(images, "rb") as handle:
        handle.seek(start * image)
        return b"".join(_hashes(handle.read(n * image), image)) == wanted


def _make(images: Path, keys: Path, start: int, decoding: Decoding, places: Sequence[Any]) -> dict[int, str]:
    """Decodes a chunk, writes its images, then the hashes of the usable ones; gives {number: why} of the others."""
    x, bad = decoding(places)
    found = [bytes(KEY) if i in bad else key for i, key in enumerate(_hashes(x.data.cast("B"), x[0].nbytes))]
    for path, at, data in ((images, start * x[0].nbytes, x.data), (keys, start * KEY, b"".join(found))):
        with open(path, "r+b") as handle:
            handle.seek(at)
            handle.write(data)
    return bad


def _hashes(data: bytes | memoryview, image: int) -> list[bytes]:
    """The hash of each image of `image` bytes in `data`, as :attr:`ImageSet.hashes` has it."""
    whole = memoryview(data)
    return [hashlib.sha256(whole[i : i + image]).digest()[:KEY] for i in range(0, len(whole), image)]
