"""CIFAR-10 and CIFAR-100 as their authors distribute them: the binary version, or the python one.

The python version are pickles: they are read by an unpickler that knows nothing but numpy's arrays.
"""

from __future__ import annotations

import codecs
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from imbdiff.data.arrays import ArraySource
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


def read_cifar(name: str, root: Path, classes: int) -> CifarSource | list[str]:
    """CIFAR-10 or CIFAR-100 from the first form that is whole, or what was looked for.

    Raises:
        DataError: a file is damaged.
    """
    missing = []
    for form in FORMS[classes]:
        for folder in (root / form.folder, root):
            gone = [file for file in form.files if not (folder / file).is_file()]
            if not gone:
                return _read(name, folder, form)
            if len(gone) < len(form.files):
                missing.append(f"{folder}: has no {', '.join(gone)}")
        missing.append(f"{form.folder}/ with {', '.join(form.files)}")
    return missing


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
    if not isinstance(x, np.ndarray) or x.shape[1:] != (PIXELS,) or not len(x) or x.dtype != np.uint8:
        raise _damaged(path, f"it has no data of shape (images, {PIXELS}), uint8")
    if not isinstance(y, list) or len(y) != len(x) or not all(type(k) is int and 0 <= k < 2**31 for k in y):
        raise _damaged(path, f"its {key} are not one number for each of its {len(x):,} images")
    return x, _checked(path, np.array(y, np.int64), classes)


def _checked(path: Path, labels: np.ndarray, classes: int) -> np.ndarray:
    if labels.max() >= classes:
        raise _damaged(path, f"it has the label {labels.max()}, and there are the names of {classes} classes")
    return labels


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays, numbers, texts, lists and dictionaries; a pickle can name nothing else to be called."""

    KNOWN: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(
            ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
            np.empty(0).__reduce__()[0],
        ),
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        "_codecs.encode": codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is never called")
        return self.KNOWN[f"{module}.{name}"]


def read_values(path: Path) -> dict[str, Any]:
    """The dictionary in a file of the python version, its keys as text.

    Raises:
        DataError: damaged, or it holds something else than numbers, texts and arrays.
    """
    try:
        with open(path, "rb") as handle:
            found = _ArraysOnly(handle, encoding="latin1").load()
        texts = {key: key.decode("latin1") if isinstance(key, bytes) else key for key in found}
        return {text: found[key] for key, text in texts.items() if isinstance(text, str)}
    except Exception as error:  # a damaged pickle raises anything
        raise _damaged(path, f"{type(error).__name__}: {str(error)[:200]}") from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}", "unpack the original archive again")
