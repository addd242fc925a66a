"""Small image folders and arrays for the tests of this room."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from imbdiff.data.imageset import ImageSet


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def noisy(x: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(np.rint(x + np.random.default_rng(9).normal(0, sigma, x.shape)), 0, 255).astype(np.uint8)


def smooth(n: int, seed: int, size: int = 32) -> np.ndarray:
    """Colour images with the spectrum of photographs."""
    g = np.random.default_rng(seed)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    spectrum = np.fft.fft2(g.normal(size=(n, 3, size, size))) / (f + 1 / size) ** 1.2
    x = np.fft.ifft2(spectrum).real
    x = (x - x.mean(axis=(2, 3), keepdims=True)) / x.std(axis=(2, 3), keepdims=True)
    return np.clip(128 + 45 * x, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def digits() -> tuple[ImageSet, ImageSet]:
    """Of scikit-learn, the first 1,297 and the other 500."""
    x, y = load_digits(return_X_y=True)
    x = np.round(x.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    names = tuple(str(k) for k in range(10))
    first, second = (ImageSet(x[s], y[s].astype(np.int64), names) for s in (slice(1297), slice(1297, None)))
    return first, second


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
