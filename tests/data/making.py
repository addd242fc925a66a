"""Small image folders and arrays for the tests of this room."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, pixels: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (8, 8), channels: int = 3) -> Path:
    """`counts` maps class folders ("cat", "train/cat") to numbers of images, all different."""
    for c, (name, n) in enumerate(counts.items()):
        for i in range(n):
            shape = size if channels == 1 else (*size, channels)
            write(root / name / f"{i:03d}.png", noise(*shape, seed=1000 * c + i))
    return root


def arrays(counts: list[int], side: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Grey images, all different, and labels in shuffled order."""
    y = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    return noise(len(y), side, side, seed=2), y


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    """An image file, as bytes."""
    buffer = BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, format, **options)
    return buffer.getvalue()


def zipped(path: Path, members: dict[str, bytes] | Iterable[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    """A zip file of these members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return path


def tarred(path: Path, members: dict[str, bytes] | Iterable[tuple[str | tarfile.TarInfo, bytes]]) -> Path:
    """A tar file of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return path
