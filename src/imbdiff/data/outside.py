"""Sources from outside the package: ``module:PACKAGE.MODULE:NAME?option=value``, and entry points ``imbdiff.sources``.

NAME is a function or class that is called with the options, whose values are texts, or the thing itself:

- a :class:`Source`, or an :class:`ImageSet`;
- (images, labels) or (images, labels, class names), arrays as :class:`ArraySource` takes them;
- any object with a length whose items are (image, label), such as a ``torch.utils.data.Dataset``: images of Pillow,
  arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) or tensors (C, H, W), uint8. Its labels are read from ``targets`` or
  ``labels`` where it has them, otherwise with the images; its class names from ``classes``;
- {"train": ..., "val": ..., "test": ...} of image sets, pairs or such objects; "train" must be there.

Items are read in this process, and their images kept in memory: how such a set changes is not known, so that nothing
of it is kept on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imbdiff.data.arrays import ArraySource, check_labels, encode_labels
from imbdiff.data.decode import File, Target, UnusableImageError
from imbdiff.data.encoded import EncodedSource, Reader, Records
from imbdiff.data.imageset import ImageSet
from imbdiff.data.source import Source
from imbdiff.data.spec import Spec
from imbdiff.data.torchvision_sets import as_file, class_names_of
from imbdiff.runtime.errors import ConfigError, DataError, ImbdiffError
from imbdiff.runtime.tables import lookup

SPLITS = ("train", "val", "test")
HOW = "return a Source, an ImageSet, (images, labels[, class names]), a data set of (image, label), or splits of these"


def open_source(spec: Spec, flippable: bool) -> Source:
    """The source that an object of somebody else's gives.

    Raises:
        ConfigError: there is no such object, it does not take the options, or gives nothing that is a source.
        DataError: its images or labels cannot be used.
    """
    name = f"{spec.scheme}:{spec.rest}" if spec.scheme else spec.rest
    table: dict[str, Any] = {}
    found = lookup("sources", table, name)
    if isinstance(found, type) or (callable(found) and not _is_content(found)):
        try:
            found = found(**spec.options)
        except ImbdiffError:
            raise
        except Exception as error:  # whatever the user's own function raises
            raise ConfigError(
                f"{spec.text}: {name} failed: {type(error).__name__}: {error}",
                "correct the function, or the options behind the question mark, which it is called with",
            ) from error
    else:
        spec.finish(())
    return as_source(found, spec.text, flippable)


def as_source(found: Any, name: str, flippable: bool = False) -> Source:
    """A source of what an object from outside gave; see the module's text.

    Raises:
        ConfigError: it is nothing of the kind.
        DataError: its images or labels cannot be used.
    """
    if isinstance(found, Source):
        return found
    parts = dict(found) if isinstance(found, Mapping) else {"train": found}
    strange = [split for split in parts if split not in SPLITS]
    if strange or "train" not in parts or not all(_is_content(part) for part in parts.values()):
        what = f"splits {', '.join(map(str, parts))}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise ConfigError(f"{name} gives {what}, which is no source", HOW)
    if all(isinstance(part, ImageSet | tuple) for part in parts.values()):
        return _of_arrays(parts, name, flippable)
    if any(isinstance(part, ImageSet | tuple) for part in parts.values()):
        raise ConfigError(f"{name} gives arrays in some splits and data sets in others", "give all in one form")
    return DatasetSource(parts, name, flippable)


def _is_content(found: Any) -> bool:
    """A source, an image set, (images, labels[, names]), splits, or a data set with a length."""
    if isinstance(found, Source | ImageSet | Mapping):
        return True
    if isinstance(found, tuple):
        return len(found) in (2, 3)
    indexed = hasattr(found, "__len__") and hasattr(found, "__getitem__")
    return indexed and not isinstance(found, type | str | bytes | np.ndarray)


def _of_arrays(parts: Mapping[str, Any], name: str, flippable: bool) -> ArraySource:
    data, ids = {}, {}
    names: Sequence[str] | None = None
    for split, part in parts.items():
        if isinstance(part, ImageSet):
            data[split], ids[split] = (np.asarray(part.images), part.labels), part.ids
            given: Sequence[str] | None = part.class_names
        else:
            data[split] = (np.asarray(part[0]), np.asarray(part[1]))
            given = None if len(part) == 2 else [str(k) for k in part[2]]
        if given is not None and names is not None and list(given) != list(names):
            raise DataError(f"{name}: {split} has other class names than train", "give the same in every split")
        names = given if names is None else names
    return ArraySource(data, names, name, ids, flippable)


class DatasetSource(EncodedSource):
    """Objects of (image, label) items by split.

    Raises:
        DataError: a split is empty, its items are something else, or its labels cannot be used.
    """

    kind = "dataset"

    def __init__(self, sets: Mapping[str, Any], name: str, flippable: bool = False) -> None:
        raw = {split: _labels(found, f"{name}, {split}") for split, found in sets.items()}
        given = None
        if all(y.dtype.kind in "iu" for y in raw.values()):
            given = class_names_of(sets["train"], raw)
        names, labels = encode_labels(raw, given, name)
        self.records = {
            split: Records([f"{split}/{i}" for i in range(len(y))], y, [(split, i) for i in range(len(y))])
            for split, y in labels.items()
        }
        self.reader = DatasetReader(dict(sets))
        super().__init__(name, names, flippable)

    def _decode(
        self,
        split: str,
        target: Target,
        grey: bool,
        store: Path | None = None,
        own: tuple[int, int] | None = None,
    ) -> tuple[np.ndarray, dict[str, str]]:
        return super()._decode(split, target, grey, None, own)  # what changes when the images do is not known


@dataclass(frozen=True, eq=False)
class DatasetReader(Reader):
    """Items of the objects; a place is (split, number)."""

    sets: Mapping[str, Any] = field(repr=False)
    streams = True  # read here: the objects need not travel to other processes

    def open(self, place: tuple[str, int]) -> File:
        split, number = place
        try:
            image = self.sets[split][number][0]
        except Exception as error:  # whatever the object's own reader raises
            raise UnusableImageError(f"cannot be read: {type(error).__name__}: {error}") from error
        return as_file(_picture(image))

    def stamp(self, place: tuple[str, int]) -> str:
        raise NotImplementedError  # nothing is kept on disk


def _picture(image: Any) -> Image.Image:
    """The item's image.

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


def _labels(found: Any, where: str) -> np.ndarray:
    """(N,) integers or strings: of an attribute where there is one, otherwise of the items."""
    n = len(found)
    if not n:
        raise DataError(f"{where} is empty", "give at least one image, or leave this split out")
    for attribute in ("targets", "labels"):
        y = getattr(found, attribute, None)
        if y is not None and hasattr(y, "__len__") and len(y) == n:
            return check_labels(np.asarray(y), n, f"{where} labels")
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
    return check_labels(np.asarray(values), n, f"{where} labels")
