"""Images that are arrays already: checked at once, with an error that says which key or axis is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from imbdiff.data.decode import Target, eight_bit, fit
from imbdiff.data.imageset import ImageSet
from imbdiff.data.source import Scan, Source, Survey, check_classes, pixel_hash, smaller
from imbdiff.runtime.errors import DataError, listing


class ArraySource(Source):
    """Arrays of images and labels by split.

    Args:
        data: {split: (images, labels)}; images (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4) uint8, labels
            (N,) integers, or strings that name the classes. A fourth channel is transparency, put on white.
        class_names: names of the labels 0..C-1. Without them every distinct training label is a class, in sorted
            order, named by its value.
        name: how messages call it.
        ids: {split: (N,) names of the images}; "train/0", ... without.

    Raises:
        DataError: wrong shape, axis order or type; labels out of range; one class only; a class without training image.
    """

    kind = "arrays"

    def __init__(
        self,
        data: Mapping[str, tuple[np.ndarray, np.ndarray]],
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
        ids: Mapping[str, Sequence[str]] | None = None,
        flippable: bool = False,
    ) -> None:
        self._images = {}
        raw = {}
        for split, (x, y) in data.items():
            x, y = np.asarray(x), np.asarray(y)
            check_images(x.shape, x.dtype, f"{name}, {split} images")
            raw[split] = check_labels(y, len(x), f"{name}, {split} labels")
            self._images[split] = x
        names, self._labels = encode_labels(raw, class_names, name)
        super().__init__(name, names, flippable)
        self._ids = {split: tuple(str(i) for i in given) for split, given in (ids or {}).items()}

    @classmethod
    def of(cls, images: ImageSet, flippable: bool = False) -> ArraySource:
        return cls(
            {"train": (images.images, images.labels)},
            images.class_names,
            ids={"train": images.ids},
            flippable=flippable,
        )

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self._labels)

    def labels(self, split: str = "train") -> np.ndarray:
        self.check_split(split)
        return self._labels[split].copy()

    def ids(self, split: str = "train") -> tuple[str, ...]:
        self.check_split(split)
        return self._ids.get(split) or tuple(f"{split}/{i}" for i in range(len(self._labels[split])))

    def array(self, split: str) -> np.ndarray:
        """The images of a split as they were given."""
        return self._images[split]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{split: (N, H, W) or (N, H, W, channels)}."""
        return {split: x.shape for split, x in self._images.items()}

    def survey(self) -> Survey:
        return self._survey

    @cached_property
    def _survey(self) -> Survey:
        sizes: dict[tuple[int, int], int] = {}
        modes: dict[str, int] = {}
        for n, h, w, *rest in self.shapes().values():
            mode = {1: "L", 3: "RGB", 4: "RGBA"}[rest[0] if rest else 1]
            sizes[h, w] = sizes.get((h, w), 0) + n
            modes[mode] = modes.get(mode, 0) + n
        return Survey(sizes, modes, set(modes) == {"L"})

    def scan(self, split: str) -> Scan:
        x = self.array(split)
        images, bad = self._decode(split, Target(x.shape[1], x.shape[2], "crop"), self.survey().grey)
        return Scan([pixel_hash(i) for i in images], np.stack([smaller(i) for i in images]), bad)

    def _decode(
        self,
        split: str,
        target: Target,
        grey: bool,
        store: Path | None = None,
        own: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, dict[str, str]]:
        x = self.array(split)
        if x.ndim == 3:
            x = x[..., None]
        channels = 1 if grey else 3
        if x.shape[1:3] == target.shape and x.shape[3] in (1, channels):
            return np.ascontiguousarray(np.broadcast_to(x, (*x.shape[:3], channels))), {}
        out = np.empty((len(x), *target.shape, channels), dtype=np.uint8)
        for i, image in enumerate(x):
            flat = eight_bit(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image))
            out[i] = np.asarray(fit(flat.convert("L" if grey else "RGB"), target)).reshape(out.shape[1:])
        return out, {}


def check_images(shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    """Refuses what is not (N, H, W[, 1, 3 or 4]) uint8, naming the likely mistake."""
    if len(shape) == 4 and shape[1] in (1, 3) and (shape[3] not in (1, 3) or shape[1] < 4 < shape[2]):
        raise DataError(
            f"{where} have shape {shape}: the channels seem to come first (N, C, H, W)",
            "put them last: x.transpose(0, 2, 3, 1)",
        )
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        raise DataError(
            f"{where} have shape {shape}, not (N, height, width) or (N, height, width, 1, 3 or 4)",
            "reshape flat rows: x.reshape(-1, height, width)" if len(shape) == 2 else "reshape the array",
        )
    if dtype != np.uint8:
        remedy = "convert them: x.astype(np.uint8) if they are 0..255, (x * 255).round().astype(np.uint8) if 0..1"
        raise DataError(f"{where} are {dtype}, not uint8 values 0..255", remedy)
    if shape[0] == 0:
        raise DataError(f"{where} are empty: shape {shape}", "give at least one image, or leave this split out")


def check_labels(y: np.ndarray, n: int, where: str) -> np.ndarray:
    """(n,) integer or string labels; (n, 1) is flattened.

    Raises:
        DataError: another length, shape or type.
    """
    if y.shape == (n, 1):
        y = y[:, 0]
    if y.ndim == 2 and len(y) == n:
        raise DataError(f"{where} have shape {y.shape}: they look one-hot", "give class numbers: y.argmax(axis=1)")
    if y.shape != (n,):
        raise DataError(f"{where} have shape {y.shape}, but there are {n} images", "give one label per image")
    if y.dtype.kind not in "iuU":
        raise DataError(f"{where} are {y.dtype}, neither integers nor strings", "convert them: y.astype(np.int64)")
    return y


def encode_labels(
    raw: Mapping[str, np.ndarray], class_names: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names and {split: (N,) int64 labels in [0, C)} of checked labels.

    Raises:
        DataError: a negative label, one beyond the class names, a class in val or test that train lacks, a class
            without training image, fewer than two classes.
    """
    if "train" not in raw:
        raise DataError(f"{where} has no training images", "name them x_train and y_train")
    if len({y.dtype.kind == "U" for y in raw.values()}) > 1:
        raise DataError(f"{where}: some splits have labels that are strings, others integers", "use one kind")
    text = raw["train"].dtype.kind == "U"
    if class_names is None:
        values = np.unique(raw["train"])
        if not text and values[0] < 0:
            raise DataError(
                f"{where}: labels out of range: {values[values < 0].tolist()[:20]}", "number classes from 0"
            )
    else:
        names = [str(name) for name in class_names]
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise DataError(f"{where}: class names occur twice: {twice[:20]}", "give every class a name of its own")
        # Sorted for the search below; `order` leads back to the order in which the names were given.
        values = np.asarray(names) if text else np.arange(len(names))
    order = np.argsort(values, kind="stable")
    labels = {}
    for split, y in raw.items():
        strange = np.setdiff1d(y, values).tolist()
        if strange and class_names is not None:
            known = f"0..{len(values) - 1}" if not text else "the class names"
            raise DataError(
                f"{where}: labels of {split} out of range ({known}): {strange[:20]}",
                f"there are {len(values)} class names; relabel the images or name all classes",
            )
        if strange:
            raise DataError(
                f"{where}: these classes are in {split} but not in train:\n{listing(map(repr, strange))}",
                "add training images of them, or remove them from the split",
            )
        labels[split] = order[np.searchsorted(values, y, sorter=order)].astype(np.int64)
    final = tuple(str(value) for value in (values.tolist() if class_names is None else class_names))
    check_classes(np.bincount(labels["train"], minlength=len(final)), final, where)
    return final, labels
