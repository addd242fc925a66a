"""Latents in a file: each image encoded once, looked up by its pixels, continued after a kill, checked by hash.

The folder is one codec's: its name is the codec's fingerprint, which follows from weights, image size and precision.
``latents.f16`` holds latents one after the other; ``journal.u8`` 32 bytes for each: what it is of (a hash of the
pixels, after resizing, and of the symmetry) and a hash of the latent. So an edited image, another size, another way of
resizing or other weights never meet old latents, and an image that is added, or a second run on some of the images,
costs no more than what is new. Latents are written before their line of the journal, and all that are used are compared
with it: a process killed at any moment leaves nothing that is taken for complete. Old folders may be deleted at any
time.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from imbdiff.data.augment import Augmentation
from imbdiff.data.cache import LEAST, chosen
from imbdiff.data.imageset import KEY, ImageSet, Rows, StoredImages
from imbdiff.data.names import display_name
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.files import is_disk_full
from imbdiff.runtime.progress import Progress

TYPE = np.dtype(np.float16)
_REMEDY = "free some space, or set IMBDIFF_CACHE to another folder, or to off: then latents stay in memory"


_in_memory: dict[Any, np.ndarray] = {}
"""The last that were made without a folder: whitening and each phase of a training ask for them."""


class Stores(Protocol):
    """What of a codec is needed here."""

    @property
    def fingerprint(self) -> str:
        """Changes with whatever changes what is stored."""

    @property
    def stored(self) -> tuple[int, int, int]:
        """(k, h, w) of what is stored of an image."""

    def store(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, k, h, w) float16 on the same device."""


def latents(
    images: ImageSet,
    codec: Stores,
    augmentation: Augmentation,
    *,
    device: torch.device | str = "cpu",
    cache: str | Path | None = None,
    batch: int = 64,
    quiet: bool = False,
) -> tuple[Rows, int]:
    """The latents of all images, and of what mirroring and turning make of them: latents cannot be mirrored themselves.

    Args:
        augmentation: its symmetry is what counts.
        device: where to encode.
        cache: as of `imbdiff.data.cache.chosen`; "off": they stay in memory.
        batch: images per call of the codec, and between lines of the journal.

    Returns:
        Rows (N * V, h, w, k) float16, those of image i from row i * V on, and V, the variants of each.

    Raises:
        DataError: an image whose latent is not finite, no space left, or a folder that cannot be written.
    """
    height, width, channels = images.shape
    count = augmentation.variants((channels, height, width))
    keys = [_key(image, v) for image in images.hashes for v in range(count)]

    def encode(rows: Sequence[int]) -> np.ndarray:
        of, variant = np.divmod(np.asarray(rows, dtype=np.int64), count)
        x = torch.from_numpy(np.ascontiguousarray(images.images[of])).permute(0, 3, 1, 2)
        for v in set(variant.tolist()) - {0}:
            x[variant == v] = augmentation.as_variant(x[variant == v], v)
        made = codec.store(x.to(device))
        if not bool(made.isfinite().all()):
            bad = [display_name(images.ids[of[i]], 120) for i in torch.nonzero(~made.isfinite().flatten(1).all(1))]
            raise DataError(
                f"the autoencoder gives numbers that are not finite for {bad[0]}"
                + (f" and {len(bad) - 1} others of {len(rows)}" if len(bad) > 1 else ""),
                "its weights do not suit these images, or were damaged by half precision: the VAE in fp32 is needed, "
                "weights that were saved in float32",
            )
        return made.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    k, h, w = codec.stored
    place = chosen(cache, LEAST)
    if place is None:
        about = codec.fingerprint, hashlib.sha256(b"".join(keys)).digest()
        if about not in _in_memory:
            out = np.empty((len(keys), h, w, k), TYPE)
            for rows, made in _encoded(encode, range(len(keys)), batch, len(keys), quiet):
                out[rows] = made
            _in_memory.clear()
            _in_memory[about] = out
        return Rows([_in_memory[about]], np.arange(len(keys))), count
    folder = place / "latents" / codec.fingerprint[:32]
    where = _Folder(folder, (h, w, k))
    try:
        found = where.find(keys)
        if (found < 0).any():  # a complete one may be read only, or another's
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock"):
                found = where.find(keys)
                todo = list({keys[i]: i for i in np.flatnonzero(found < 0).tolist()}.values())  # equal images once
                where.make_ready(len(todo))
                for rows, made in _encoded(encode, todo, batch, len(keys), quiet):
                    where.append([keys[i] for i in rows], made)
            found = where.find(keys)
    except OSError as error:
        if is_disk_full(error):
            raise DataError(f"no space left for latents in {folder}; those that are whole stay", _REMEDY) from error
        raise DataError(f"cannot keep latents in {folder}: {error.strerror or error}", _REMEDY) from error
    return Rows([where.stored()], found), count


def lacking(
    images: ImageSet, codec: Stores, augmentation: Augmentation, cache: str | Path | None = None
) -> tuple[int, int]:
    """How many latents `latents` would make, and how many there are in all."""
    height, width, channels = images.shape
    keys = [_key(image, v) for image in images.hashes for v in range(augmentation.variants((channels, height, width)))]
    k, h, w = codec.stored
    place = chosen(cache, LEAST)
    if place is None:
        return len(keys), len(keys)
    found = _Folder(place / "latents" / codec.fingerprint[:32], (h, w, k)).find(keys)
    return len({keys[i] for i in np.flatnonzero(found < 0).tolist()}), len(keys)


def _key(image: str, variant: int) -> bytes:
    """What a latent is of; `image` is the hash of its pixels."""
    return hashlib.sha256(f"{image}/{variant}".encode()).digest()[:KEY]


def _encoded(encode: Any, todo: Sequence[int], batch: int, total: int, quiet: bool) -> Any:
    done = total - len(todo)
    with Progress("encode", total, start=done, quiet=quiet) as bar:
        for start in range(0, len(todo), batch):
            rows = list(todo[start : start + batch])
            yield rows, encode(rows)
            bar.update(done + start + len(rows))


class _Folder:
    """Latents of `shape` (h, w, k) and their journal."""

    def __init__(self, folder: Path, shape: tuple[int, int, int]) -> None:
        self.latents, self.journal = folder / "latents.f16", folder / "journal.u8"
        self.shape, self.size, self.rows = shape, math.prod(shape) * TYPE.itemsize, 0

    def lines(self) -> np.ndarray:
        """(M, 32) the whole lines of the journal."""
        data = self.journal.read_bytes() if self.journal.exists() else b""
        return np.frombuffer(data[: len(data) // (2 * KEY) * 2 * KEY], np.uint8).reshape(-1, 2 * KEY)

    def stored(self) -> StoredImages:
        lines = self.lines()[: self.latents.stat().st_size // self.size]
        return StoredImages(self.latents, (len(lines), *self.shape), lines[:, :KEY], TYPE)

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """(N,) the row of each, -1 where there is none that is whole."""
        lines = self.lines()
        rows = {line[:KEY].tobytes(): i for i, line in enumerate(lines)}  # of two, the later
        found = np.array([rows.get(key, -1) for key in keys], dtype=np.int64)
        whole = np.zeros(len(lines) + 1, bool)  # the last stands for -1
        if self.latents.exists():
            with open(self.latents, "rb") as handle:
                for row in np.unique(found[found >= 0]).tolist():
                    handle.seek(row * self.size)
                    whole[row] = _checksum(handle.read(self.size)) == lines[row, KEY:].tobytes()
        return np.where(whole[found], found, -1)

    def make_ready(self, n: int) -> None:
        """Cuts off what an earlier writer left of a line, and refuses at once if `n` more do not fit."""
        self.rows = len(self.lines())
        self._cut()
        if shutil.disk_usage(self.latents.parent).free < n * (self.size + 2 * KEY):
            raise DataError(
                f"{n * self.size / 2**30:.2f} GiB of latents do not fit into {self.latents.parent}", _REMEDY
            )

    def append(self, keys: Sequence[bytes], made: np.ndarray) -> None:
        data = [row.tobytes() for row in made]
        lines = [key + _checksum(row) for key, row in zip(keys, data, strict=True)]
        try:
            for path, size, rows in ((self.latents, self.size, data), (self.journal, 2 * KEY, lines)):
                with open(path, "r+b" if path.exists() else "wb") as handle:
                    handle.seek(self.rows * size)
                    handle.write(b"".join(rows))
        except OSError:
            with suppress(OSError):
                self._cut()
            raise
        self.rows += len(lines)

    def _cut(self) -> None:
        for path, size in ((self.latents, self.size), (self.journal, 2 * KEY)):
            if path.exists() and path.stat().st_size > self.rows * size:
                with open(path, "r+b") as handle:
                    handle.truncate(self.rows * size)


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:KEY]
