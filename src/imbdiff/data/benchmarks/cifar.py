"""CIFAR-10 and CIFAR-100 as their authors distribute them: the binary version, or the python one, never unpickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.arrays import ArraySource
from imbdiff.data.benchmarks.opcodes import read_values
from imbdiff.data.benchmarks.opening import Places
from imbdiff.runtime.errors import DataError

SIDE = 32
PIXELS = 3 * SIDE * SIDE


class CifarSource(ArraySource):
    """The images in the official order, on which the literature's index lists depend; ids are "train/0" and so on."""

    kind = "benchmark"


@dataclass(frozen=True)
class Form:
    """One way in which CIFAR is distributed.

    Attributes:
        folder: that its archive unpacks into.
        splits: {split: files, in order}.
        meta: the file with the names of the classes.
        labels: bytes of labels before each image, of which the last counts; 0 = the python version.
        keys: of labels and names in the python version.
    """

    folder: str
    splits: dict[str, tuple[str, ...]]
    meta: str
    labels: int
    keys: tuple[str, str] = ("", "")

    @property
    def files(self) -> list[str]:
        return [*(file for files in self.splits.values() for file in files), self.meta]


def _batches(ending: str) -> dict[str, tuple[str, ...]]:
    return {"train": tuple(f"data_batch_{i}{ending}" for i in range(1, 6)), "test": (f"test_batch{ending}",)}


FORMS: dict[int, tuple[Form, ...]] = {
    10: (
        Form("cifar-10-batches-bin", _batches(".bin"), "batches.meta.txt", 1),
        Form("cifar-10-batches-py", _batches(""), "batches.meta", 0, ("labels", "label_names")),
    ),
    100: (
        Form("cifar-100-binary", {"train": ("train.bin",), "test": ("test.bin",)}, "fine_label_names.txt", 2),
        Form("cifar-100-python", {"train": ("train",), "test": ("test",)}, "meta", 0,
             ("fine_labels", "fine_label_names")),
    ),
}  # fmt: skip
"""{classes: forms}, the one that is read faster first."""


def read_cifar(name: str, places: Places) -> CifarSource:
    """CIFAR-10 or CIFAR-100, whichever `places.name` says, from the first form that is whole.

    Raises:
        DataError: no form is whole, or a file is damaged.
    """
    classes = 100 if places.name.startswith("cifar100") else 10
    missing = []
    for form in FORMS[classes]:
        for folder in (places.root / form.folder, places.root):
            gone = [file for file in form.files if not (folder / file).is_file()]
            if not gone:
                return _read(name, folder, form)
            if len(gone) < len(form.files):
                missing.append(f"{folder}: has no {', '.join(gone)}")
        missing.append(f"{form.folder}/ with {', '.join(form.files)}")
    raise places.missing(missing)


def _read(name: str, folder: Path, form: Form) -> CifarSource:
    names = _names(folder / form.meta, form)
    data = {}
    for split, files in form.splits.items():
        parts = [(_binary if form.labels else _python)(folder / file, form, len(names)) for file in files]
        x = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, SIDE, SIDE)
        data[split] = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), np.concatenate([labels for _, labels in parts])
    return CifarSource(data, names, name, flippable=True)


def _names(path: Path, form: Form) -> list[str]:
    if form.labels:
        names: Any = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    else:
        found = read_values(path).get(form.keys[1])
        names = [n.decode(errors="replace") if isinstance(n, bytes) else n for n in found] if found else []
    if not names or not all(isinstance(n, str) for n in names) or len(set(names)) < len(names):
        raise _damaged(path, "it does not hold the names of the classes, each once")
    return list(names)


def _binary(path: Path, form: Form, classes: int) -> tuple[np.ndarray, np.ndarray]:
    raw = np.fromfile(path, np.uint8)
    record = form.labels + PIXELS
    if not len(raw) or len(raw) % record:
        raise _damaged(path, f"its {len(raw):,} bytes are no multiple of {record:,}, the bytes of an image with labels")
    rows = raw.reshape(-1, record)
    return rows[:, form.labels :], _checked(path, rows[:, form.labels - 1].astype(np.int64), classes)


def _python(path: Path, form: Form, classes: int) -> tuple[np.ndarray, np.ndarray]:
    found = read_values(path)
    key = form.keys[0]
    x, y = found.get("data"), found.get(key)
    if not isinstance(x, np.ndarray) or x.ndim != 2 or x.shape[1] != PIXELS or not len(x):
        raise _damaged(path, f"it has no data of shape (images, {PIXELS})")
    if not isinstance(y, list) or len(y) != len(x) or not all(type(k) is int and 0 <= k < 2**31 for k in y):
        raise _damaged(path, f"its {key} are not one number for each of its {len(x):,} images")
    return x, _checked(path, np.array(y, np.int64), classes)


def _checked(path: Path, labels: np.ndarray, classes: int) -> np.ndarray:
    if labels.max() >= classes:
        raise _damaged(path, f"it has the label {labels.max()}, and there are the names of {classes} classes")
    return labels


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}", "unpack the original archive again")
