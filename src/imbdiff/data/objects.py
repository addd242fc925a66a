"""Sources that are Python objects: data sets of (image, label) items, arrays, and what functions of one's own return.

``imbdiff.load(dataset)``, ``module:PACKAGE.MODULE:NAME?option=value``, entry points of the group ``imbdiff.sources``.
NAME is a function or class that is called with the options, whose values are texts, or the thing itself:

- a :class:`Source`, or an :class:`ImageSet`;
- (images, labels) or (images, labels, class names), arrays as :class:`ArraySource` takes them;
- any object with a length whose items are (image, label), such as a ``torch.utils.data.Dataset`` or a set of
  torchvision: images of Pillow, arrays (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) or tensors (C, H, W), uint8. Its
  labels are read from ``targets`` or ``labels`` where it has them, otherwise with the images; its class names from
  ``classes``;
- {"train": ..., "val": ..., "test": ...} of image sets, pairs or such objects; "train" must be there.

Items are read in this process, and their images kept in memory: how such a set changes is not known, so that nothing
of it is kept on disk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from imbdiff.data.arrays import ArraySource, check_labels, numbered_records
from imbdiff.data.decode import File, UnusableImageError
from imbdiff.data.imageset import ImageSet
from imbdiff.data.labels import encode
from imbdiff.data.reading import Reader
from imbdiff.data.source import EncodedSource, Source
from imbdiff.data.spec import Spec
from imbdiff.runtime.errors import ConfigError, DataError, ImbdiffError
from imbdiff.runtime.tables import lookup

SPLITS = ("train", "val", "test")
HOW = "a Source, an ImageSet, (images, labels[, class names]), a data set of (image, label), or splits of these"
_PNG = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def open_source(spec: Spec, flippable: bool) -> Source:
    """The source that an object of somebody else's gives.

    Raises:
        ConfigError: there is no such object, it does not take the options, or gives nothing that is a source.
        DataError: its images or labels cannot be used.
    """
    name = f"{spec.scheme}:{spec.rest}" if spec.scheme else spec.rest
    table: dict[str, Any] = {}
    found = lookup("sources", table, name)
    if isinstance(found, type) or (callable(found) and not is_content(found)):
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
    if strange or "train" not in parts or not all(is_content(part) for part in parts.values()):
        what = f"splits {', '.join(map(str, parts))}" if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise ConfigError(f"{name} gives {what}, which is no source", f"give {HOW}")
    held = {isinstance(part, ImageSet | tuple) for part in parts.values()}
    if len(held) > 1:
        raise ConfigError(f"{name} gives arrays in some splits and data sets in others", "give all in one form")
    return _of_arrays(parts, name, flippable) if held == {True} else DatasetSource(parts, name, flippable)


def is_content(found: Any) -> bool:
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
        given = _class_names(sets["train"], raw) if all(y.dtype.kind in "iu" for y in raw.values()) else None
        names, labels = encode(raw, given, name)
        super().__init__(name, names, numbered_records(labels, {}), DatasetReader(dict(sets)), flippable)


@dataclass(frozen=True, eq=False)
class DatasetReader(Reader):
    """Items of the objects; a place is "train/17"."""

    sets: Mapping[str, Any] = field(repr=False)
    stays = True  # the objects need not be picklable

    def open(self, place: str) -> File:
        split, _, number = place.partition("/")
        try:
            image = self.sets[split][int(number)][0]
        except Exception as error:  # whatever the object's own reader raises
            raise UnusableImageError(f"cannot be read: {type(error).__name__}: {error}") from error
        # written as it is, so that one decoder makes the decisions for all sources
        file = BytesIO()
        upright = ImageOps.exif_transpose(_picture(image))
        upright.save(file, "PNG" if upright.mode in _PNG else "TIFF", compress_level=0)
        return file

    def stamp(self, place: str) -> str:
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


def _class_names(dataset: Any, raw: Mapping[str, np.ndarray]) -> list[str] | None:
    """The names that the set brings, where there is one for each label."""
    names = getattr(dataset, "classes", None)
    highest = max(int(y.max()) for y in raw.values())
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) <= highest:
        return None
    texts = [" / ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in names]
    return texts if len(set(texts)) == len(texts) else None
