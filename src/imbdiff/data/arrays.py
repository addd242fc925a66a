"""Images that are arrays: given from Python, in an ``.npz`` file, or scikit-learn's digits.

They are checked at once, with an error that says which key or axis is wrong; nothing is unpickled.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imbdiff.data.decode import Target, eight_bit, fit
from imbdiff.data.imageset import ImageSet
from imbdiff.data.labels import encode
from imbdiff.data.source import Defaults, Records, Scan, Source, Survey, pixel_hash, smaller
from imbdiff.runtime.errors import DataError

# {split: (images, labels)} of each layout; the first whose training keys are there is taken.
LAYOUTS: tuple[dict[str, tuple[str, str]], ...] = (
    {split: (f"x_{split}", f"y_{split}") for split in ("train", "val", "test")},
    {split: (f"{split}_images", f"{split}_labels") for split in ("train", "val", "test")},  # MedMNIST's names
    {"train": ("images", "labels")},
    {"train": ("x", "y")},
    {"train": ("X", "y")},
)
_DAMAGE = (ValueError, OSError, EOFError, SyntaxError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)


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
        names, labels = encode(raw, None if class_names is None else [str(n) for n in class_names], name)
        super().__init__(name, names, numbered_records(labels, ids or {}), flippable)

    @classmethod
    def of(cls, images: ImageSet, flippable: bool = False) -> ArraySource:
        data = {"train": (np.asarray(images.images), images.labels)}
        return cls(data, images.class_names, ids={"train": images.ids}, flippable=flippable)

    def array(self, split: str) -> np.ndarray:
        """The images of a split as they were given."""
        return self._images[split]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{split: (N, H, W) or (N, H, W, channels)}."""
        return {split: x.shape for split, x in self._images.items()}

    def _look(self) -> Survey:
        sizes: dict[tuple[int, int], int] = {}
        modes: dict[str, int] = {}
        for n, h, w, *rest in self.shapes().values():
            mode = {1: "L", 3: "RGB", 4: "RGBA"}[rest[0] if rest else 1]
            sizes[h, w] = sizes.get((h, w), 0) + n
            modes[mode] = modes.get(mode, 0) + n
        return Survey(sizes, modes, set(modes) == {"L"})

    def scan(self, split: str) -> Scan:
        _, h, w, *_ = self.shapes()[split]
        images, bad = self._decode(split, Target(h, w, "crop"), self.survey().grey)
        return Scan([pixel_hash(i) for i in images], np.stack([smaller(i) for i in images]), bad)

    def pictures(self, split: str, rows: np.ndarray, target: Target, grey: bool) -> np.ndarray:
        return _fitted(self.array(split)[rows], target, grey)

    def _decode(
        self, split: str, target: Target, grey: bool, store: Path | None = None, own: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, dict[str, str]]:
        return _fitted(self.array(split), target, grey), {}


class NpzSource(ArraySource):
    """An ``.npz`` file with ``x_train, y_train[, x_val, y_val][, x_test, y_test]``, ``images, labels`` or ``x, y``.

    ``class_names`` may be among them: an array of strings. Shapes, types and labels are as in :class:`ArraySource` and
    are checked on opening, from the headers; the images themselves are loaded by :meth:`read`.

    Args:
        strict: for training. To measure images, one class, a test split alone, and no labels at all are enough; then
            the images are one class, "all images".

    Raises:
        DataError: no such file or a damaged one, missing keys, object arrays, and what ArraySource refuses.
    """

    kind = "npz"

    def __init__(self, path: Path, name: str | None = None, flippable: bool = False, *, strict: bool = True) -> None:
        self.path = Path(path)
        where = name or str(path)
        headers = _headers(self.path)
        self._keys = (_layout if strict else _any_layout)(set(headers), where)
        used = {key for pair in self._keys.values() for key in pair if key} | {"class_names"}
        objects = sorted(key for key in used & set(headers) if headers[key][1].hasobject)
        if objects:
            raise DataError(
                f"{where}: {', '.join(objects)} hold Python objects, which are never unpickled",
                "save plain arrays: uint8 images of one size, integer labels, np.array(class_names, dtype=str)",
            )
        raw, self._shapes = {}, {}
        for split, (x_key, y_key) in self._keys.items():
            shape, dtype = headers[x_key]
            check_images(shape, dtype, f"{where}: {x_key}")
            if y_key is not None:
                raw[split] = check_labels(self._load(y_key), shape[0], f"{where}: {y_key}")
            self._shapes[split] = shape
        given = self._load("class_names") if "class_names" in headers else None
        if given is not None and (given.ndim != 1 or given.dtype.kind != "U"):
            raise DataError(
                f"{where}: class_names has shape {given.shape} {given.dtype}, not (C,) strings",
                "save np.array(class_names, dtype=str)",
            )
        if raw:
            names, labels = encode(raw, None if given is None else given.tolist(), where, strict=strict)
        else:
            names, labels = (ONE_CLASS,), {split: np.zeros(shape[0], np.int64) for split, shape in self._shapes.items()}
        ignored = sorted(set(headers) - used)
        notes = [f"ignored in {where}: the arrays {', '.join(ignored[:20])}"] if ignored else []
        Source.__init__(self, where, names, numbered_records(labels, {}), flippable, notes)

    def array(self, split: str) -> np.ndarray:
        return self._load(self._keys[split][0])

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return dict(self._shapes)

    def _load(self, key: str) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                return np.asarray(file[key])
        except _DAMAGE as error:
            raise DataError(f"{self.path}: {key} is damaged: {error}", "write the file again") from error


class DigitsSource(ArraySource):
    """scikit-learn's handwritten digits (UCI, 1,797 images of 8 x 8 grey pixels, 10 classes): the built-in default.

    The values 0..16 are scaled to 0..255. `prepare` holds out 60 test images per class; a long tail starts at 110
    images, which leaves at least 4 of every class for validation.
    """

    kind = "digits"
    defaults = Defaults(test_per_class=60, n_max=110)

    def __init__(self, flippable: bool = False) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        images = np.round(data.images * (255 / 16)).astype(np.uint8)
        ids = [f"digits/{i:04d}" for i in range(len(images))]
        names = [str(k) for k in range(10)]
        super().__init__({"train": (images, data.target)}, names, "digits", {"train": ids}, flippable)


ONE_CLASS = "all images"


def numbered_records(labels: Mapping[str, np.ndarray], ids: Mapping[str, Sequence[str]]) -> dict[str, Records]:
    """{split: records} of images without names of their own: "train/0" and so on, unless `ids` gives them."""
    return {
        split: Records([str(i) for i in ids.get(split, ())] or [f"{split}/{i}" for i in range(len(y))], y)
        for split, y in labels.items()
    }


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


def _fitted(x: np.ndarray, target: Target, grey: bool) -> np.ndarray:
    """(N, H, W, 1 or 3) uint8 of that size."""
    x = x[..., None] if x.ndim == 3 else x
    channels = 1 if grey else 3
    if x.shape[1:3] == target.shape and x.shape[3] in (1, channels):
        return np.ascontiguousarray(np.broadcast_to(x, (*x.shape[:3], channels)))
    out = np.empty((len(x), *target.shape, channels), dtype=np.uint8)
    for i, image in enumerate(x):
        flat = eight_bit(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image))
        out[i] = np.asarray(fit(flat.convert("L" if grey else "RGB"), target)).reshape(out.shape[1:])
    return out


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """{key: (shape, dtype)} of an npz file, without loading its arrays."""
    form = np.lib.format
    headers = {}
    try:
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                with file.open(info) as handle:
                    old = form.read_magic(handle) == (1, 0)
                    shape, _, dtype = (form.read_array_header_1_0 if old else form.read_array_header_2_0)(handle)
                # A header that promises more than the file holds would make numpy ask for that much memory.
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize > info.file_size:
                    raise ValueError(f"{info.filename} is shorter than its header says")
                headers[info.filename[: -len(".npy")]] = (shape, dtype)
    except _DAMAGE as error:
        raise DataError(f"{path} is no readable .npz file: {error}", "write it with np.savez") from error
    return headers


def _layout(keys: set[str], where: str) -> dict[str, tuple[str, str | None]]:
    """{split: (key of the images, key of the labels)}."""
    # A layout whose images are there comes before one of which only the labels are ("X, y" before "x, y").
    begun = [layout for layout in LAYOUTS if layout["train"][0] in keys]
    for layout in begun or [layout for layout in LAYOUTS if layout["train"][1] in keys]:
        for split, pair in layout.items():
            missing = [key for key in pair if key not in keys]
            if missing and (split == "train" or len(missing) == 1):
                raise DataError(
                    f"{where} has {', '.join(sorted(keys))}, but no {' and no '.join(missing)}",
                    "give images and labels under matching names, such as x_train and y_train",
                )
        return {split: pair for split, pair in layout.items() if pair[0] in keys}
    raise DataError(
        f"{where} has the arrays {', '.join(sorted(keys)) or '(none)'}: no images and labels among them",
        "name them x_train, y_train (and x_val, y_val, x_test, y_test), or images and labels, or x and y",
    )


def _any_layout(keys: set[str], where: str) -> dict[str, tuple[str, str | None]]:
    """As :func:`_layout`, where any split will do and no labels need to be there; ``arr_0`` is what savez writes."""
    for layout in (*LAYOUTS, {"train": ("arr_0", "")}):
        found = {split: pair for split, pair in layout.items() if pair[0] in keys}
        if found and not any(y in keys for _, y in layout.values()):
            return {split: (x, None) for split, (x, _) in found.items()}
        if found and all(y in keys for _, y in found.values()):
            return dict(found)
    return _layout(keys, where)  # which says what is missing
