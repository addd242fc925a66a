"""CIFAR-10 and CIFAR-100 as their authors distribute them, by an unpickler that knows nothing but numpy's arrays."""

from __future__ import annotations

import codecs
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from imbdiff.data.arrays import ArraySource
from imbdiff.data.benchmark_files import Files
from imbdiff.data.source import Source
from imbdiff.runtime.errors import DataError


@dataclass(frozen=True)
class Cifar:
    """CIFAR as its authors distribute it, the python version; ids are "train/0" and so on, in the official order.

    Attributes:
        folder: that its archive unpacks into.
        splits: {split: files, in order}.
        meta: the file with the names of the classes.
        labels, names: keys of these in the files.
    """

    folder: str
    splits: dict[str, tuple[str, ...]]
    meta: str
    labels: str
    names: str

    def __call__(self, files: Files) -> Source:
        wanted = [*(file for some in self.splits.values() for file in some), self.meta]
        folders = [f for f in files.below(self.folder) if all((f / file).is_file() for file in wanted)]
        if not folders:
            raise files.missing([f"{self.folder}/ with {', '.join(wanted)}"])
        data = {}
        for split, some in self.splits.items():
            parts = [self._read(folders[0] / file) for file in some]
            x = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
            labels = np.array([label for _, own in parts for label in own])
            data[split] = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), labels
        names = read_values(folders[0] / self.meta).get(self.names)
        if not isinstance(names, list):
            raise _damaged(folders[0] / self.meta, "it does not hold the names of the classes")
        texts = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in names]
        return ArraySource(data, texts, files.text, None, "benchmark")

    def _read(self, path: Path) -> tuple[np.ndarray, list[int]]:
        found = read_values(path)
        x, y = found.get("data"), found.get(self.labels)
        if not isinstance(x, np.ndarray) or x.shape[1:] != (3072,) or x.dtype != np.uint8:
            raise _damaged(path, "it has no data of shape (images, 3072), uint8")
        if not isinstance(y, list) or len(y) != len(x) or not all(type(k) is int and 0 <= k < 1000 for k in y):
            raise _damaged(path, f"its {self.labels} are not one number for each of its {len(x):,} images")
        return x, y


CIFAR10 = Cifar(
    "cifar-10-batches-py",
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "batches.meta", "labels", "label_names",
)  # fmt: skip
CIFAR100 = Cifar(
    "cifar-100-python", {"train": ("train",), "test": ("test",)}, "meta", "fine_labels", "fine_label_names"
)


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
    """The dictionary in a pickle, its keys as text.

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
