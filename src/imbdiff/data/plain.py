"""Any images to measure, with or without classes: folders, arrays, splits of a source. Training is stricter.

What :func:`imbdiff.data.sources.load` refuses because nothing can be learned from it, can be measured: one class only,
images without class folders or without labels, classes that another set lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from imbdiff.data.encoded import PathReader
from imbdiff.data.folder import FolderSource, FolderTree
from imbdiff.data.imageset import ImageSet, join
from imbdiff.data.layout import OUTSIDE, SPLIT_FOLDERS, Listing, class_order, class_records
from imbdiff.data.names import counted, named
from imbdiff.data.npz import LAYOUTS, NpzSource, find_layout
from imbdiff.data.source import Source
from imbdiff.data.sources import load
from imbdiff.data.spec import user_path
from imbdiff.runtime.errors import DataError

ONE_CLASS = "all images"
EVERYTHING = "all"
"""In place of a split: all images of all splits."""


class PlainFolder(FolderSource):
    """Images in class folders, or directly in the folder: then they are one class, "all images".

    Raises:
        DataError: no image, links that lead out of the folder, names that are not valid text.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = Path(folder)
        listed = Listing(FolderTree(self.folder), strict=False)
        classes = {k: v for k, v in listed.classes["train"].items() if v}
        if not classes:
            classes = {ONE_CLASS: listed.beside()}
            listed.ignored.pop(OUTSIDE, None)  # these are the images that are taken
        names = sorted(classes, key=class_order(classes))
        Source.__init__(self, name or str(folder), names, False, listed.warnings())
        self.reader = PathReader(self.folder)
        self.records = {"train": class_records(names, classes)}
        if not self.records["train"].ids:
            raise DataError(f"there is no image in {folder}", "give a folder of images, or of one folder per class")


class PlainNpz(NpzSource):
    """An ``.npz`` file of images, with labels or without; one class is enough, and so is a test split.

    Keys and labels are as of :class:`NpzSource`. Without labels the images are one class, "all images", under
    ``x_train``, ``x_val``, ``x_test`` (or MedMNIST's ``train_images`` and so on), ``images``, ``x``, ``X`` or
    ``arr_0``, as ``np.savez(file, images)`` names them. Classes without any image are left out.

    Raises:
        DataError: as of NpzSource; labels of some splits only.
    """

    def _find(self, keys: set[str], where: str) -> Mapping[str, tuple[str, str | None]]:
        for layout in (*LAYOUTS, {"train": ("arr_0", "")}):
            found = {split: pair for split, pair in layout.items() if pair[0] in keys}
            labelled = [y for _, y in layout.values() if y in keys]
            if found and not labelled:
                return {split: (x, None) for split, (x, _) in found.items()}
            if found and all(x in keys and y in keys for x, y in found.values()):
                return dict(found)
        return find_layout(keys, where)  # which says what is missing

    def _encode(
        self, raw: Mapping[str, np.ndarray], names: Sequence[str] | None, where: str
    ) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
        if not raw:
            return (ONE_CLASS,), {split: np.zeros(shape[0], np.int64) for split, shape in self.shapes().items()}
        if len({y.dtype.kind == "U" for y in raw.values()}) > 1:
            raise DataError(f"{where}: some splits have labels that are strings, others integers", "use one kind")
        values = np.unique(np.concatenate(list(raw.values())))
        known = [str(v) for v in values.tolist()] if names is None else [str(name) for name in names]
        if len(set(known)) < len(known):
            raise DataError(f"{where}: class names occur twice", "give every class a name of its own")
        if values.dtype.kind == "U":
            strange = [v for v in values.tolist() if v not in known]
        else:
            strange = [v for v in values.tolist() if v < 0 or (names is not None and v >= len(known))]
        if strange:
            raise DataError(
                f"{where}: labels out of range: {strange[:20]}",
                "number classes from 0" if names is None else f"there are {len(known)} class names; name all classes",
            )
        # in the order of the names given; one that no image has is left out
        order = values.tolist()
        if names is not None and values.dtype.kind == "U":
            order = [name for name in known if name in set(order)]
        used = tuple(order if values.dtype.kind == "U" else [known[v] if names is not None else str(v) for v in order])
        rank = {v: k for k, v in enumerate(order)}
        of_value = np.array([rank[v] for v in values.tolist()], np.int64)
        return used, {split: of_value[np.searchsorted(values, y)] for split, y in raw.items()}


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
    notes: tuple[str, ...] = field(default=())

    @property
    def unlabelled(self) -> bool:
        return self.images.class_names == (ONE_CLASS,)

    def without_labels(self) -> Measurable:
        """The same images as one class."""
        zeros = np.zeros(len(self.images), np.int64)
        return replace(self, images=ImageSet(self.images.images, zeros, (ONE_CLASS,), self.images.ids))


def read_any(source: str | Path | ImageSet | np.ndarray, split: str | None = None, size: int | None = None,
             resize: str = "crop") -> Measurable:  # fmt: skip
    """Reads images to measure.

    Args:
        source: an image set; (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8; "digits"; the path of a folder, of an .npz
            file, or of an .npy file with such an array.
        split: "train", "val" or "test" of a source that has splits, or "all": everything there is, of all splits.
            Default: its test images where it brings some, otherwise all there is.
        size: side in pixels to bring all images to. Default: as they are, if all have one size.
        resize: crop, pad or stretch.

    Raises:
        DataError: nothing usable there, no such split, mixed sizes and no size given.
    """
    if isinstance(source, ImageSet):
        return Measurable(source, "images")
    if isinstance(source, np.ndarray):
        return Measurable(_of_array(source, "the array"), "array")
    path, text = user_path(source), str(source)
    if path.suffix.lower() == ".npy" and path.is_file():
        try:
            array = np.load(path, mmap_mode="r")
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{source} is no plain array: {error}", "save uint8 images with numpy.save") from error
        return Measurable(_of_array(array, text), text)
    opened: Source
    if path.is_dir() and text != "digits":
        names = {f.name.lower() for f in path.iterdir() if f.is_dir()}
        has_splits = any(n in names for n in SPLIT_FOLDERS["train"])
        opened = load(path) if has_splits else PlainFolder(path, text)
    elif path.suffix.lower() == ".npz" and path.is_file():
        opened = PlainNpz(path, text)
    else:
        opened = load(source)
    if split == EVERYTHING:
        wanted = opened.splits
    else:
        wanted = (split or ("test" if "test" in opened.splits else opened.splits[0]),)
        opened.check_split(wanted[0])
    sizes = opened.survey().sizes
    target = next(iter(sizes)) if size is None and len(sizes) == 1 else size
    sets, notes = opened.read_all(target, resize, splits=wanted)
    name = text if len(opened.splits) == 1 else f"{text} {' and '.join(wanted)}"
    return Measurable(_joined([sets[one] for one in wanted]), name, (*opened.warnings, *notes))


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
    note = None
    if strange:
        dropped = len(images) - len(keep)
        note = f"{counted(dropped, 'image')} of {what} left out: {other} has no class {named(strange, 5)}"
    ids = tuple(images.ids[i] for i in keep.tolist())
    return ImageSet(images.select(keep).images, labels[keep], names, ids), note


def _of_array(x: np.ndarray, what: str) -> ImageSet:
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[-1] not in (1, 3)):
        raise DataError(
            f"{what} is {x.shape} {x.dtype}, not images", "give (N, H, W), (N, H, W, 1) or (N, H, W, 3) uint8, 0..255"
        )
    x = x[..., None] if x.ndim == 3 else x
    return ImageSet(x, np.zeros(len(x), np.int64), (ONE_CLASS,))
