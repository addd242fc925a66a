"""Opening a source of labelled images: the digits that come with scikit-learn, a folder, an .npz file, arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from imbdiff.data.arrays import ArraySource
from imbdiff.data.folder import FolderSource
from imbdiff.data.imageset import ImageSet
from imbdiff.data.npz import NpzSource
from imbdiff.data.source import Source, Survey
from imbdiff.runtime.errors import DataError

__all__ = ["ArraySource", "DigitsSource", "FolderSource", "NpzSource", "Source", "Survey", "load"]


def load(
    source: str | Path | Source | ImageSet | tuple[np.ndarray, np.ndarray], *, flippable: bool | None = None
) -> Source:
    """Opens a source of labelled images.

    Args:
        source: "digits" (scikit-learn's 1,797 handwritten digits, 8 x 8, grey, no download; a folder of that name is
            "./digits"), the path of a folder of class folders or of an .npz file, an ImageSet, a pair (X, y) of
            arrays as in :class:`ArraySource`, or a source, which is returned as it is.
        flippable: whether images mean the same when mirrored; None = no.

    Raises:
        DataError: nothing there, or not usable as it is; the message says why and what to do.
    """
    if isinstance(source, Source):
        if flippable is not None:
            source.flippable = flippable
        return source
    flip = bool(flippable)
    if isinstance(source, ImageSet):
        return ArraySource.of(source, flip)
    if isinstance(source, tuple):
        if len(source) != 2:
            raise DataError(f"a tuple of {len(source)} values is no source", "give a pair of arrays (X, y)")
        return ArraySource({"train": source}, flippable=flip)
    if source == "digits":
        return DigitsSource(flip)
    if not isinstance(source, str | Path):
        raise DataError(f"a {type(source).__name__} is no source", "give 'digits', a path, or a pair of arrays (X, y)")
    path = Path(source).expanduser()
    if path.is_dir():
        return FolderSource(path, str(source), flip)
    if path.suffix.lower() == ".npz" and path.is_file():
        return NpzSource(path, str(source), flip)
    if path.exists():
        raise DataError(f"{source} is neither a folder nor an .npz file", "give a folder of class folders, or an .npz")
    raise DataError(f"{source} does not exist", "give 'digits', a folder of class folders, or the path of an .npz file")


class DigitsSource(ArraySource):
    """scikit-learn's handwritten digits (UCI, 1,797 images of 8 x 8 grey pixels, 10 classes): the built-in default.

    The values 0..16 are scaled to 0..255. `prepare` holds out 60 test images per class; a long tail starts at 110
    images, which leaves at least 4 of every class for validation.
    """

    kind = "digits"
    test_per_class = 60
    n_max = 110

    def __init__(self, flippable: bool = False) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        images = np.round(data.images * (255 / 16)).astype(np.uint8)
        ids = [f"digits/{i:04d}" for i in range(len(images))]
        names = [str(k) for k in range(10)]
        super().__init__({"train": (images, data.target)}, names, "digits", {"train": ids}, flippable)
