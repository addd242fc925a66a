"""Sources that are Python objects: data sets of (image, label) items, arrays, and what functions of one's own return.

``imbdiff.load(dataset)``, ``module:PACKAGE.MODULE:NAME?option=value``, entry points of the group ``imbdiff.sources``.
NAME is a function or class that is called with the options, whose values are texts, or the thing itself:

- a :class:`Source`, or an :class:`ImageSet`;
- (images, labels) or (images, labels, class names), arrays as :class:`ArraySource` takes them;
- any object with a length whose items are (image, label), such as a ``torch.utils.data.Dataset`` or a set of
  torchvision: images of Pillow, arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) or tensors (C, H, W), uint8. Its
  labels are read from ``targets`` or ``labels`` where it has them, otherwise with the images; its class names from
  ``classes``. A set of the library `datasets` too, whose columns of images and labels are found by their types;
- {"train": ..., "val": ..., "test": ...} of image sets, pairs or such objects; "train" must be there.

Items are read in this process, and their images kept in memory: how such a set changes is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imbdiff.data.arrays import ArraySource, ItemReader, checked_labels, item_records
from imbdiff.data.imageset import ImageSet
from imbdiff.data.source import Source
from imbdiff.data.spec import Spec
from imbdiff.runtime.code import called
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.tables import lookup

OPTIONS = None
SPLITS = ("train", "val", "test")


def open_source(spec: Spec) -> Source:
    """The source that an object or function in another package gives.

    Raises:
        ConfigError: there is no such object, or it does not take the options.
        DataError: it gives nothing that is a source, or its images or labels cannot be used.
    """
    name = f"{spec.scheme}:{spec.rest}" if spec.scheme else spec.rest
    table: dict[str, Any] = {}
    found = lookup("sources", table, name)
    if isinstance(found, type) or (callable(found) and not _is_content(found)):
        found = called(f"{spec.text}: {name}", found, **spec.options)
    elif spec.options:
        raise ConfigError(f"{spec.text}: unknown option {', '.join(spec.options)}", f"{name} is no function")
    return as_source(found, spec.text)


def as_source(found: Any, name: str) -> Source:
    """A source of what an object from outside gave; see the module's text.

    Raises:
        DataError: it is nothing of the kind, or its images or labels cannot be used.
    """
    if isinstance(found, Source):
        return found
    parts = dict(found) if isinstance(found, Mapping) else {"train": found}
    if parts and all(hasattr(part, "column_names") and hasattr(part, "features") for part in parts.values()):
        from imbdiff.data.datasets_source import which_splits

        splits, _ = which_splits([str(split) for split in parts], {}, name)
        parts = {ours: _Columns(parts[theirs], name) for ours, theirs in splits.items()}
    if "train" not in parts or not set(parts) <= set(SPLITS) or not all(_is_content(part) for part in parts.values()):
        what = f"splits {', '.join(map(str, parts))}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise DataError(
            f"{name}: {what} is no source",
            "give a path, a Source, an ImageSet, (images, labels[, class names]), a data set of (image, label), or "
            "{'train': ..., 'val': ..., 'test': ...} of these",
        )
    arrays = [split for split, part in parts.items() if isinstance(part, ImageSet | tuple)]
    if arrays and len(arrays) < len(parts):
        raise DataError(f"{name} gives arrays in some splits and data sets in others", "give all in one form")
    if arrays:
        return _of_arrays(parts, name)
    raw = {split: _labels(one, f"{name}, {split}") for split, one in parts.items()}
    names = _class_names(parts["train"], raw) if all(y.dtype.kind in "iu" for y in raw.values()) else None
    records = {split: item_records(split, y) for split, y in raw.items()}
    return Source(name, "dataset", records, ItemReader(parts), names)


class _Columns:
    """A set of the library `datasets` in memory as (image, label) items."""

    def __init__(self, dataset: Any, where: str) -> None:
        from imbdiff.data.datasets_source import class_names, column_of

        image, label = (column_of(dataset.features, what, None, where) for what in ("image", "label"))
        self.images, self.targets = dataset.select_columns([image]), list(dataset[label])
        self.column, self.classes = image, class_names(dataset.features[label])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return self.images[row][self.column], self.targets[row]


def _is_content(found: Any) -> bool:
    """An image set, (images, labels[, names]), or a data set with a length."""
    if isinstance(found, ImageSet | tuple):
        return isinstance(found, ImageSet) or (len(found) in (2, 3) and all(hasattr(x, "__len__") for x in found))
    indexed = hasattr(found, "__len__") and hasattr(found, "__getitem__")
    return indexed and not isinstance(found, type | str | bytes | np.ndarray | Mapping)


def _of_arrays(parts: Mapping[str, Any], name: str) -> ArraySource:
    data, ids, given = {}, {}, []
    for split, part in parts.items():
        if isinstance(part, ImageSet):
            data[split], ids[split] = (np.asarray(part.images), part.labels), part.ids
            given.append(list(part.class_names))
        else:
            data[split] = part[:2]
            given += [[str(k) for k in part[2]]] if len(part) == 3 else []
    if any(names != given[0] for names in given):
        raise DataError(f"{name}: the splits have different class names", "give the same in every split")
    return ArraySource(data, given[0] if given else None, name, ids)


def _labels(found: Any, where: str) -> np.ndarray:
    """(N,) integers or strings: of an attribute where there is one, otherwise of the items."""
    n = len(found)
    if not n:
        raise DataError(f"{where} is empty", "give at least one image, or leave this split out")
    for attribute in ("targets", "labels"):
        y = getattr(found, attribute, None)
        if y is not None and hasattr(y, "__len__") and len(y) == n:
            return checked_labels(y, n, f"{where} labels")
    values = []
    for i in range(n):
        try:
            _, label = found[i]
        except Exception as error:
            raise DataError(
                f"{where}: item {i} of {n} is no (image, label): {type(error).__name__}: {error}",
                "every item from 0 to its length must be a pair",
            ) from error
        values.append(label.item() if hasattr(label, "item") else label)
    return checked_labels(values, n, f"{where} labels")


def _class_names(dataset: Any, raw: Mapping[str, np.ndarray]) -> list[str] | None:
    """The names that the set brings, where there is one for each label."""
    names = getattr(dataset, "classes", None)
    highest = max(int(y.max()) for y in raw.values())
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) <= highest:
        return None
    texts = [" / ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in names]
    return texts if len(set(texts)) == len(texts) else None
