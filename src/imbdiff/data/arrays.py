"""Images that are arrays: given from Python, in an ``.npz`` file, or scikit-learn's digits.

They are checked at once, with an error that says which key or axis is wrong; nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imbdiff.data.decode import File, UnusableImageError
from imbdiff.data.labels import Names, check_file, without_missing
from imbdiff.data.reading import Decoding, Reader
from imbdiff.data.source import Defaults, Records, Source, Survey
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import ConfigError, DataError

OPTIONS = ("group",)
ONE_CLASS = "all images"
"""The class of images without labels."""
# {split: (images, labels)} of each layout; the first of which training images, or else any, are there is taken.
LAYOUTS: tuple[dict[str, tuple[str, str]], ...] = (
    {split: (f"x_{split}", f"y_{split}") for split in ("train", "val", "test")},
    {split: (f"{split}_images", f"{split}_labels") for split in ("train", "val", "test")},  # MedMNIST's names
    {"train": ("images", "labels")},
    {"train": ("x", "y")},
    {"train": ("X", "y")},
    {"train": ("arr_0", "arr_1")},  # what savez calls arrays without names
)
_DAMAGE = (ValueError, OSError, EOFError, SyntaxError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


class ArraySource(Source):
    """Arrays of images and labels by split.

    Args:
        data: {split: (images, labels)}; images (N, H, W), (N, H, W, 1), (N, H, W, 3) or (N, H, W, 4) uint8, labels
            (N,) or (N, 1) integers, strings that name the classes, or None: all are one class. A fourth channel is
            transparency, put on white.
        class_names: names of the labels 0..C-1. Without them every distinct training label is a class, in sorted
            order, named by its value.
        name: what messages call it.
        ids: {split: (N,) names of the images}; "train/0", ... without.
        kind, warnings, strict: as for :class:`Source`.

    Raises:
        DataError: wrong shape, axis order or type; labels out of range; one class only; a class without training image.
    """

    def __init__(
        self,
        data: Mapping[str, tuple[Any, Any]],
        class_names: Names | None = None,
        name: str = "arrays",
        ids: Mapping[str, Sequence[str]] | None = None,
        kind: str = "arrays",
        warnings: Sequence[str] = (),
        *,
        strict: bool = True,
    ) -> None:
        self._images: dict[str, np.ndarray] = {}
        splits = {}
        for split, (x, y) in data.items():
            images = checked_images(np.asarray(x), f"{name}, {split} images")
            self._images[split] = images[..., None] if images.ndim == 3 else images
            n = len(images)
            labels = [ONE_CLASS] * n if y is None else checked_labels(y, n, f"{name}, {split} labels")
            splits[split] = item_records(split, labels, (ids or {}).get(split))
        reader = ItemReader({split: x[:, None] for split, x in self._images.items()})
        super().__init__(name, kind, splits, reader, class_names, warnings, strict=strict)

    def _stamps(self, split: str) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._images[split]).data).hexdigest()

    @cached_property
    def _survey(self) -> Survey:
        sizes: Counter[tuple[int, int]] = Counter()
        for x in self._images.values():
            sizes[x.shape[1], x.shape[2]] += len(x)
        return Survey(sizes, all(x.shape[3] == 1 for x in self._images.values()))

    def _decode(self, split: str, decoding: Decoding, store: Path | None) -> tuple[Any, dict[int, str]]:
        x, channels = self._images[split], 1 if decoding.grey else 3
        if x.shape[1:3] == decoding.target.shape and x.shape[3] in (1, channels):  # at once
            return np.ascontiguousarray(np.broadcast_to(x, (*x.shape[:3], channels))), {}
        return super()._decode(split, decoding, store)


class ItemReader(Reader):
    """Images of objects with items (image, ...), which need not be picklable; a place is (split, number)."""

    in_process = True

    def __init__(self, sets: Mapping[str, Any]) -> None:
        self.sets = sets

    def open(self, place: tuple[str, int]) -> File:
        split, number = place
        try:
            image = self.sets[split][number][0]
        except Exception as error:  # whatever the object's own reader raises
            raise UnusableImageError(f"cannot be read: {type(error).__name__}: {error}") from error
        return _picture(image)


def item_records(split: str, labels: Any, ids: Sequence[str] | None = None) -> Records:
    """Images by number; their ids are "train/0" and so on unless they are given."""
    n = len(labels)
    given = [] if ids is None else [str(one) for one in ids]
    return Records(given or [f"{split}/{i}" for i in range(n)], labels, [(split, i) for i in range(n)])


def _picture(image: Any) -> Image.Image:
    """An item's image.

    Raises:
        UnusableImageError: it is no image of Pillow, no uint8 array and no uint8 tensor.
    """
    if isinstance(image, Image.Image):
        return image
    tensor = hasattr(image, "permute") and hasattr(image, "numpy")
    x = image.numpy() if tensor else np.asarray(image)
    if tensor and x.ndim == 3:
        x = x.transpose(1, 2, 0)
    if x.dtype != np.uint8 or not (x.ndim == 2 or (x.ndim == 3 and x.shape[2] in (1, 3, 4))) or not x.size:
        raise UnusableImageError(
            f"a {type(image).__name__} {x.shape} of {x.dtype} is no image: give Pillow's images, uint8 arrays (H, W, C)"
            " or uint8 tensors (C, H, W), without a transform"
        )
    return Image.fromarray(np.ascontiguousarray(x[..., 0] if x.ndim == 3 and x.shape[2] == 1 else x))


def open_source(spec: Spec) -> ArraySource:
    """ "digits", or the path of an ``.npz`` file."""
    if not spec.built_in:
        return open_npz(user_path(spec.rest), spec.text, spec.options.get("group"), strict=spec.strict)
    if spec.options:
        raise ConfigError(f"{spec.text}: unknown option {', '.join(spec.options)}", "digits takes no options")
    return digits()


def digits() -> ArraySource:
    """scikit-learn's handwritten digits, 1,797 images of 8 x 8 grey pixels, 0..16 scaled to 0..255.

    A long tail starts at 110 images, which leaves at least 4 of every class for validation.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    ids = [f"digits/{i:04d}" for i in range(len(images))]
    names = [str(k) for k in range(10)]
    source = ArraySource({"train": (images, data.target)}, names, "digits", {"train": ids}, "digits")
    source.defaults = Defaults(test_per_class=60, n_max=110)
    return source


def open_npz(path: Path, where: str, group: str | None = None, *, strict: bool = True) -> ArraySource:
    """An ``.npz`` file of arrays under the names in LAYOUTS, and ``class_names``, an array of strings, if it is there.

    `group` is the name of an array that says what belongs together, or of one for each split: NAME_train or train_NAME.

    Raises:
        DataError: no such file or a damaged one, missing keys, object arrays, and what ArraySource refuses.
    """
    check_file(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            layout = _layout(set(file.files), where, strict)
            data = {split: (file[x], file[y] if y else None) for split, (x, y) in layout.items()}
            names = np.asarray(file["class_names"]) if "class_names" in file.files else None
            groups = _groups(file, group, list(layout), where) if group else {}
            used = {key for pair in layout.values() for key in pair} | {"class_names", *groups}
            ignored = sorted(set(file.files) - used)
    except (*_DAMAGE, AttributeError, TypeError) as error:  # the last two: a .npy file of that name
        if str(error).startswith("Object arrays"):
            raise DataError(
                f"{where} holds Python objects, which are never unpickled",
                "save plain arrays: uint8 images of one size, integer labels, np.array(class_names, dtype=str)",
            ) from error
        raise DataError(f"{where} is no readable .npz file: {error}", "write it with np.savez") from error
    if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
        raise DataError(
            f"{where}: class_names has shape {names.shape} {names.dtype}, not (C,) strings",
            "save np.array(class_names, dtype=str)",
        )
    notes = [f"ignored in {where}: the arrays {', '.join(ignored[:20])}"] if ignored else []
    given = None if names is None or not any(y for _, y in layout.values()) else names.tolist()
    opened = ArraySource(data, given, where, None, "npz", notes, strict=strict)
    if groups:
        opened.group_by(dict(zip(layout, groups.values(), strict=True)))
    return opened


def _groups(file: Mapping[str, np.ndarray], name: str, splits: Sequence[str], where: str) -> dict[str, np.ndarray]:
    """{name of the array: groups of a split}, in the order of the splits."""
    keys = {split: [key for key in (f"{name}_{split}", f"{split}_{name}") if key in file] for split in splits}
    if len(splits) == 1 and name in file:
        keys[splits[0]] = [name]
    if missing := [split for split, found in keys.items() if not found]:
        raise DataError(
            f"{where} has no array {name}_{missing[0]} for group={name}",
            f"it has: {', '.join(sorted(file))}; one for each of {', '.join(splits)} is needed",
        )
    return {found[0]: np.asarray(file[found[0]]) for found in keys.values()}


def checked_images(x: np.ndarray, where: str) -> np.ndarray:
    """Refuses what is not (N, H, W[, 1, 3 or 4]) uint8, naming the likely mistake."""
    shape = x.shape
    if len(shape) == 4 and shape[1] in (1, 3) and (shape[3] not in (1, 3) or shape[1] < 4 < shape[2]):
        raise DataError(
            f"{where} have shape {shape}: the channels seem to come first (N, C, H, W)",
            "put them last: np.asarray(x).transpose(0, 2, 3, 1)",
        )
    if len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
        raise DataError(
            f"{where} have shape {shape}, not (N, height, width) or (N, height, width, 1, 3 or 4)",
            "reshape the array; of flat rows: x.reshape(-1, height, width)",
        )
    if x.dtype != np.uint8:
        remedy = "convert them: np.asarray(x).astype(np.uint8) if they are 0..255, or if they are 0..1 "
        remedy += "np.uint8(np.round(np.asarray(x) * 255))"
        raise DataError(f"{where} are {x.dtype}, not uint8 values 0..255", remedy)
    if shape[0] == 0:
        raise DataError(f"{where} are empty: shape {shape}", "give at least one image, or leave this split out")
    return x


def checked_labels(labels: Any, n: int, where: str) -> np.ndarray:
    """(n,) integer or string labels; (n, 1) is flattened.

    Raises:
        DataError: another length, shape or type; missing labels.
    """
    y = without_missing(labels, where)
    y = y[:, 0] if y.shape == (n, 1) else y
    if y.shape != (n,):
        raise DataError(
            f"{where} have shape {y.shape}, but there are {n} images",
            "give one label per image; of one-hot labels the class numbers: np.argmax(y, axis=1)",
        )
    if y.dtype.kind not in "iuU":
        whole = y.dtype.kind == "b" or (y.dtype.kind == "f" and bool((y == np.rint(y)).all()))
        remedy = (
            "convert them: np.asarray(y).astype(np.int64)"
            if whole
            else "labels are classes, not measured values: np.digitize"
        )
        raise DataError(f"{where} are {y.dtype}, neither integers nor strings", remedy)
    return y


def _layout(keys: set[str], where: str, strict: bool) -> dict[str, tuple[str, str]]:
    """{split: (key of the images, key of the labels)}; the latter is "" where all splits may do without and do."""
    layouts = [{split: pair for split, pair in layout.items() if pair[0] in keys} for layout in LAYOUTS]
    found = max(layouts, key=lambda layout: ("train" in layout, bool(layout)))  # the first of these
    missing = [y for _, y in found.values() if y not in keys]
    if found and not strict and len(missing) == len(found):
        return {split: (x, "") for split, (x, _) in found.items()}
    if missing or not found or (strict and "train" not in found):
        lacks = missing[0] if missing else "images for training" if strict else "images"
        raise DataError(
            f"{where} has the arrays {', '.join(sorted(keys)) or '(none)'}, but no {lacks}",
            "name them x_train, y_train (and x_val, y_val, x_test, y_test), or images and labels, or x and y",
        )
    return found
