"""Any images to measure, with or without classes: folders, arrays, splits of a source. Training is stricter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from imbdiff.data.arrays import ONE_CLASS
from imbdiff.data.decode import Size
from imbdiff.data.imageset import ImageSet, join
from imbdiff.data.names import counted, named
from imbdiff.data.sources import load
from imbdiff.data.spec import user_path
from imbdiff.runtime.errors import DataError

__all__ = ["EVERYTHING", "ONE_CLASS", "Measurable", "align", "read_any"]

EVERYTHING = "all"
"""In place of a split: all images of all splits."""


@dataclass(frozen=True, eq=False)
class Measurable:
    """Images to measure, of a size and a number of channels of their own.

    Attributes:
        images: decoded.
        name: what they are, to be printed: the source and the split.
        notes: what was ignored or changed.
    """

    images: ImageSet
    name: str
    notes: tuple[str, ...] = ()


def read_any(
    source: str | Path | ImageSet | np.ndarray,
    split: str | None = None,
    size: Size | None = None,
    resize: str = "auto",
    otherwise: Size | None = None,
) -> Measurable:
    """Reads images to measure.

    Args:
        source: an image set; (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8; a source as for
            :func:`imbdiff.data.sources.load`, where one class, or no classes at all, are enough; the path of an .npy
            file with such an array.
        split: "train", "val" or "test" of a source that has splits, or "all": everything there is, of all splits.
            Default: its test images where it brings some, otherwise all there is.
        size: pixels, int or (height, width), to bring all images to. Default: as they are, if all have one size.
        resize: crop, pad or stretch; auto: pad where cropping would cut off much, otherwise crop.
        otherwise: the size where none is given and images have different ones; None: as a run would choose.

    Raises:
        DataError: nothing usable there, no such split.
    """
    if isinstance(source, ImageSet):
        return Measurable(source, "images")
    if isinstance(source, np.ndarray):
        return Measurable(_of_array(source, "the array"), "array")
    path, text = user_path(source), str(source)
    if is_array(path):
        return Measurable(_of_array(read_array(path), text), text)
    opened = load(source, strict=False)
    wanted = (
        opened.splits if split == EVERYTHING else (split or ("test" if "test" in opened.splits else opened.splits[0]),)
    )
    sizes = opened.survey().sizes
    target = size if size is not None else next(iter(sizes)) if len(sizes) == 1 else otherwise
    try:
        sets, notes = opened.read_all(target, resize, splits=wanted)
    except DataError as error:  # the options are called otherwise there
        raise DataError(error.message, error.remedy.replace("--data.", "--")) from error
    name = text if len(opened.splits) == 1 else f"{text} {' and '.join(wanted)}"
    return Measurable(_joined([sets[one] for one in wanted]), name, (*opened.warnings, *notes))


def is_array(path: Path) -> bool:
    """Whether it is an .npy file."""
    return path.suffix.lower() == ".npy" and path.is_file()


def read_array(path: Path) -> np.ndarray:
    """The array in an .npy file, of which nothing is read yet; nothing is unpickled.

    Raises:
        DataError: it holds no plain array.
    """
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is no plain array: {error}", "save uint8 images with numpy.save") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path} is no plain array but a zip file of arrays", "call it .npz")
    return array


def _joined(sets: Sequence[ImageSet]) -> ImageSet:
    """The images of several splits of one source, one after the other."""
    if len(sets) == 1:
        return sets[0]
    labels = np.concatenate([s.labels for s in sets])
    return ImageSet(join([s.images for s in sets]), labels, sets[0].class_names, tuple(i for s in sets for i in s.ids))


def align(images: ImageSet, names: tuple[str, ...], what: str, other: str) -> tuple[ImageSet, str | None]:
    """The images whose class is among `names`, with labels of `names`; and a note about those left out.

    Raises:
        DataError: no class of `images` is among `names`.
    """
    if images.class_names == names:
        return images, None
    label = {name: k for k, name in enumerate(names)}
    used = [images.class_names[k] for k in np.unique(images.labels)]
    strange = [name for name in used if name not in label]
    if len(strange) == len(used):
        raise DataError(
            f"no class of {what} is in {other}: {named(used, 5)} there, {named(names, 5)} here",
            "give the class folders the same names, or put all images of both into folders without classes",
        )
    labels = np.array([label.get(name, -1) for name in images.class_names], np.int64)[images.labels]
    keep = np.flatnonzero(labels >= 0)
    left = counted(len(images) - len(keep), "image")
    note = f"{left} of {what} left out: {other} has no class {named(strange, 5)}" if strange else None
    return replace(images.select(keep), labels=labels[keep], class_names=names), note


def _of_array(x: np.ndarray, what: str) -> ImageSet:
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        raise DataError(
            f"{what} is {x.shape} {x.dtype}, not images", "give (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8, 0..255"
        )
    return ImageSet(x[..., None] if x.ndim == 3 else x, np.zeros(len(x), np.int64), (ONE_CLASS,))
