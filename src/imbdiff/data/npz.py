"""``.npz`` files: labels are read at once, images when they are asked for, nothing is unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from imbdiff.data.arrays import ArraySource, check_images, check_labels, encode_labels
from imbdiff.data.source import Source
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


class NpzSource(ArraySource):
    """An ``.npz`` file with ``x_train, y_train[, x_val, y_val][, x_test, y_test]``, ``images, labels`` or ``x, y``.

    ``class_names`` may be among them: an array of strings. Shapes, types and labels are as in :class:`ArraySource` and
    are checked on opening, from the headers; the images themselves are loaded by :meth:`read`.

    Raises:
        DataError: no such file or a damaged one, missing keys, object arrays, and what ArraySource refuses.
    """

    kind = "npz"

    def __init__(self, path: Path, name: str | None = None, flippable: bool = False) -> None:
        self.path = Path(path)
        where = name or str(path)
        headers = _headers(self.path)
        self._keys = self._find(set(headers), where)
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
        names = self._load("class_names") if "class_names" in headers else None
        if names is not None and (names.ndim != 1 or names.dtype.kind != "U"):
            raise DataError(
                f"{where}: class_names has shape {names.shape} {names.dtype}, not (C,) strings",
                "save np.array(class_names, dtype=str)",
            )
        class_names, self._labels = self._encode(raw, None if names is None else names.tolist(), where)
        self._ids = {}
        ignored = sorted(set(headers) - used)
        notes = [f"ignored in {where}: the arrays {', '.join(ignored[:20])}"] if ignored else []
        Source.__init__(self, where, class_names, flippable, notes)

    def _find(self, keys: set[str], where: str) -> Mapping[str, tuple[str, str | None]]:
        """{split: (key of the images, key of the labels)}."""
        return find_layout(keys, where)

    def _encode(
        self, raw: Mapping[str, np.ndarray], names: Sequence[str] | None, where: str
    ) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
        """Class names, and {split: (N,) int64 labels} of the labels in the file."""
        return encode_labels(raw, names, where)

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


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """{key: (shape, dtype)} of an npz file, without loading its arrays."""
    headers = {}
    try:
        with zipfile.ZipFile(path) as file:
            for info in file.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                with file.open(info) as handle:
                    version = np.lib.format.read_magic(handle)
                    read = (
                        np.lib.format.read_array_header_1_0
                        if version == (1, 0)
                        else np.lib.format.read_array_header_2_0
                    )
                    shape, _, dtype = read(handle)
                # A header that promises more than the file holds would make numpy ask for that much memory.
                if not dtype.hasobject and math.prod(shape) * dtype.itemsize > info.file_size:
                    raise ValueError(f"{info.filename} is shorter than its header says")
                headers[info.filename[: -len(".npy")]] = (shape, dtype)
    except _DAMAGE as error:
        raise DataError(f"{path} is no readable .npz file: {error}", "write it with np.savez") from error
    return headers


def find_layout(keys: set[str], where: str) -> dict[str, tuple[str, str]]:
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
