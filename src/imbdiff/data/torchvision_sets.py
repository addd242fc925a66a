"""The labelled image sets of torchvision: ``torchvision:CIFAR10?root=DIR``. The extra is `torchvision`.

Any class of ``torchvision.datasets`` will do whose items are (PIL image, integer) and that knows its labels without
decoding. Nothing is downloaded unless ``download=1``. What the class does to its own files is its business: CIFAR's
are pickles, which torchvision reads after it has compared their MD5 sums with the published ones.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from imbdiff.data.arrays import encode_labels
from imbdiff.data.decode import UnusableImageError
from imbdiff.data.encoded import EncodedSource, Reader, Records
from imbdiff.data.source import Source
from imbdiff.data.spec import Spec
from imbdiff.runtime.errors import ConfigError, DataError, ImbdiffError, listing
from imbdiff.runtime.files import digest
from imbdiff.runtime.optional import optional

_LABELS = ("targets", "labels", "_labels", "y")
_OURS = frozenset({"root", "download", "transform", "target_transform", "loader", "transforms", "is_valid_file"})
# how sets that know splits by name call them
_SPLITS = {"train": ("train", "trainval"), "val": ("val", "valid", "validation"), "test": ("test",)}
Options = tuple[tuple[str, Any], ...]


def open_source(spec: Spec, flippable: bool) -> Source:
    root, download = spec.take("root"), spec.flag("download")
    kind = _class(spec.rest, spec.text)
    parameters = _parameters(kind)
    more = {name: spec.options.pop(name) for name in list(spec.options) if name in set(parameters) - _OURS}
    spec.finish(("root", "download", *(name for name in parameters if name not in _OURS)))
    if root is None:
        raise ConfigError(f"{spec.text} does not say where its files are", "write ?root=FOLDER (and &download=1)")
    fixed: dict[str, Any] = {"root": os.path.expanduser(root)}
    if "download" in parameters:
        fixed["download"] = download
    elif download:
        raise ConfigError(f"{spec.text}: torchvision cannot download this set", "see its page for where to get it")
    return TorchvisionSource(spec.rest, {**more, **fixed}, spec.text, flippable)


class TorchvisionSource(EncodedSource):
    """A set of torchvision.

    Args:
        set_name: of the class in ``torchvision.datasets``.
        options: arguments of the class, except for what tells the splits apart.
        name: how messages call it.

    Raises:
        ConfigError: torchvision is not installed or does not import, has no such set, or the set wants another option.
        DataError: its files are not there; its items are no images with one label each.
    """

    kind = "torchvision"

    def __init__(self, set_name: str, options: dict[str, Any], name: str, flippable: bool = False) -> None:
        splits = _find_splits(set_name, options, name)
        raw, self.records, states = {}, {}, {}
        for split, arguments in splits.items():
            dataset = _dataset(set_name, arguments)
            _check_item(dataset, name)
            raw[split] = _labels(dataset, name)
            states[split] = _state(dataset, raw[split])
        given = class_names_of(_dataset(set_name, splits["train"]), raw)
        names, labels = encode_labels(raw, given, name)
        for split, y in labels.items():
            places = [(split, i) for i in range(len(y))]
            self.records[split] = Records([f"{split}/{i}" for i in range(len(y))], y, places)
        self.reader = TorchvisionReader(set_name, tuple(splits.items()), tuple(states.items()))
        super().__init__(name, names, flippable)


@dataclass(frozen=True)
class TorchvisionReader(Reader):
    """Items of the set, which every process opens once; a place is (split, number)."""

    set_name: str
    splits: tuple[tuple[str, Options], ...]
    states: tuple[tuple[str, str], ...]

    def open(self, place: tuple[str, int]) -> BinaryIO:
        split, number = place
        dataset = _dataset(self.set_name, dict(self.splits)[split])
        try:
            image, _ = dataset[number]
        except Exception as error:  # a set's own reader raises anything on damaged files
            raise UnusableImageError(f"damaged: {error or type(error).__name__}") from error
        return as_file(image)

    def stamp(self, place: tuple[str, int]) -> str:
        return f"{dict(self.states)[place[0]]} {place[1]}"


_PNG = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def as_file(image: Image.Image) -> BinaryIO:
    """A decoded image, written as it is, so that one decoder makes the decisions for all sources."""
    file = BytesIO()
    upright = ImageOps.exif_transpose(image)
    upright.save(file, "PNG" if upright.mode in _PNG else "TIFF", compress_level=0)
    return file


def _class(name: str, where: str) -> Any:
    remedy = "use the set in another form: a folder of class folders, an .npz file, hf:OWNER/NAME"
    module = optional("torchvision.datasets", "torchvision", "a source that begins with torchvision:", remedy)
    found = getattr(module, name, None) if name.isidentifier() and not name.startswith("_") else None
    if not inspect.isclass(found) or not issubclass(found, module.VisionDataset):
        known = sorted(
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, module.VisionDataset) and value is not module.VisionDataset
        )
        near = [key for key in known if key.lower() == name.lower()]
        hint = f"did you mean {near[0]}?" if near else f"torchvision here has:\n{listing(known, 100)}"
        raise ConfigError(f"{where}: torchvision has no data set {name!r}", hint)
    return found


def _parameters(kind: Any) -> list[str]:
    """The names of the arguments of a class, and of the classes that it hands further ones on to."""
    found: list[str] = []
    for base in kind.__mro__:
        if "__init__" in vars(base):
            named = inspect.signature(base.__init__).parameters
            found += [name for name, p in named.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
            if not any(p.kind == p.VAR_KEYWORD for p in named.values()):
                break
    return [name for name in dict.fromkeys(found) if name != "self"]


@lru_cache(maxsize=4)
def _dataset(set_name: str, arguments: Options) -> Any:
    module = optional("torchvision.datasets", "torchvision", "a source that begins with torchvision:")
    return getattr(module, set_name)(**dict(arguments))


def _find_splits(set_name: str, options: dict[str, Any], where: str) -> dict[str, Options]:
    """The arguments that give each split: by ``train``, or by those values of ``split`` that the set takes."""
    parameters = _parameters(_class(set_name, where))
    tried: dict[str, list[dict[str, Any]]]
    if "train" in parameters:
        tried = {"train": [{"train": True}], "test": [{"train": False}]}
    elif "split" in parameters and "split" not in options:
        tried = {split: [{"split": word} for word in words] for split, words in _SPLITS.items()}
    else:
        tried = {"train": [{}]}
    found: dict[str, Options] = {}
    refused = ""
    for split, ways in tried.items():
        for way in ways:
            arguments = tuple(sorted({**options, **way}.items()))
            try:
                _dataset(set_name, arguments)
            except ImbdiffError:
                raise
            except (ValueError, TypeError) as error:  # no such split, or an argument is missing
                refused = refused or str(error)
                continue
            except Exception as error:
                hint = "" if options.get("download") or "download" not in parameters else ", or add download=1"
                why = next(iter(str(error).splitlines()), "") or type(error).__name__
                raise DataError(
                    f"{where}: torchvision cannot open it: {why}",
                    f"give the folder that holds its files: ?root=FOLDER{hint}",
                ) from error
            found[split] = arguments
            break
    if "train" not in found:
        takes = ", ".join(name for name in parameters if name not in _OURS)
        raise ConfigError(f"{where}: torchvision does not open it so: {refused}", f"it takes the options {takes}")
    return found


def _check_item(dataset: Any, where: str) -> None:
    if not len(dataset):
        raise DataError(f"{where}: torchvision finds no image", "check its root folder")
    try:
        item = dataset[0]
    except Exception as error:
        raise DataError(f"{where}: its first image cannot be read: {error}", "check its root folder") from error
    pair = isinstance(item, tuple) and len(item) == 2
    if not pair or not hasattr(item[0], "convert") or not isinstance(item[1], int | np.integer):
        what = ", ".join(type(part).__name__ for part in item) if isinstance(item, tuple) else type(item).__name__
        raise DataError(
            f"{where}: its items are ({what}), not an image and a class number",
            "it is no set for classification, or needs another target_type",
        )


def _labels(dataset: Any, where: str) -> np.ndarray:
    for name in _LABELS:
        found = getattr(dataset, name, None)
        if found is not None and hasattr(found, "__len__") and len(found) == len(dataset):
            y = np.asarray(found)
            if y.ndim == 1 and y.dtype.kind in "iu":
                return y.astype(np.int64)
    samples = getattr(dataset, "_samples", None) or getattr(dataset, "samples", None) or ()
    labels = [sample[-1] for sample in samples if isinstance(sample, Sequence) and len(sample) == 2]
    if len(labels) == len(dataset) and all(isinstance(label, int) for label in labels):
        return np.array(labels, dtype=np.int64)
    raise DataError(
        f"{where}: torchvision gives its labels with the images only",
        "use this set in another form: a folder of class folders, or hf:OWNER/NAME",
    )


def class_names_of(dataset: Any, raw: dict[str, np.ndarray]) -> list[str] | None:
    """The names that the set brings, where there is one for each label."""
    names = getattr(dataset, "classes", None)
    highest = max(int(y.max()) for y in raw.values())
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) <= highest:
        return None
    texts = [" / ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in names]
    return texts if len(set(texts)) == len(texts) else None


def _state(dataset: Any, labels: np.ndarray) -> str:
    """Changes when the set does: its pixels where they are in memory, otherwise its files' sizes and times."""
    data = getattr(dataset, "data", None)
    if data is not None and hasattr(data, "shape"):
        pixels = hashlib.sha256(np.ascontiguousarray(np.asarray(data)).tobytes()).hexdigest()
        return digest([pixels, labels.tolist()])[:32]
    files = []
    for folder, _, names in os.walk(dataset.root):
        for name in names:
            found = os.stat(os.path.join(folder, name))
            files.append([os.path.join(folder, name), found.st_size, found.st_mtime_ns])
    return digest([sorted(files), labels.tolist()])[:32]
