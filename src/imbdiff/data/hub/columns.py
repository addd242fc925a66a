"""Which columns of a Hugging Face data set are the images and the labels, and which of its splits is which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from imbdiff.data.names import counted
from imbdiff.runtime.errors import ConfigError, DataError, listing

SPLITS = {"train": ("train", "training"), "val": ("validation", "valid", "val", "dev"), "test": ("test", "testing")}
_IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "jpg", "png")
_LABEL_NAMES = ("label", "labels", "class", "target", "category", "cls", "y", "dx", "species")


def image_column(features: Mapping[str, Any], asked: str | None, where: str) -> str:
    """The column of images: the only one of type Image, otherwise a usual name that holds bytes.

    Raises:
        ConfigError: no such column.
        DataError: none, or more than one.
    """
    kinds = {name: _image_kind(feature) for name, feature in features.items()}
    if asked is not None:
        _check(asked, features, "image", where)
        if not kinds[asked]:
            raise DataError(
                f"{where}: the column {asked!r} holds no images, but {_kind(features[asked])}", _columns(features)
            )
        return asked
    found = [name for name, kind in kinds.items() if kind == "image"]
    found = found or [name for name, kind in kinds.items() if kind and name.lower() in _IMAGE_NAMES]
    return _only(found, features, "image", where)


def label_column(features: Mapping[str, Any], asked: str | None, where: str) -> str:
    """The column of labels: the only one of type ClassLabel, otherwise a usual name of integers or text.

    Raises:
        ConfigError: no such column.
        DataError: none, or more than one; lists, which are more than one label per image.
    """
    if asked is not None:
        _check(asked, features, "label", where)
        if not _is_label(features[asked]):
            raise DataError(
                f"{where}: the column {asked!r} holds no single label per image, but {_kind(features[asked])}",
                _columns(features),
            )
        return asked
    found = [name for name, feature in features.items() if class_names(feature) is not None]
    found = found or [name for name, feature in features.items() if name.lower() in _LABEL_NAMES and _is_label(feature)]
    return _only(found, features, "label", where)


def class_names(feature: Any) -> list[str] | None:
    """The names that a ClassLabel brings; None for another type."""
    names = getattr(feature, "names", None)
    return list(names) if type(feature).__name__ == "ClassLabel" and names is not None else None


def which_splits(
    present: Sequence[str], asked: Mapping[str, str], where: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """{train, val, test: name of the data set's own split}, and a note of those left out.

    Raises:
        ConfigError: a split asked for is not there.
        DataError: no training split; two that could be the same.
    """
    strange = [f"{ours}={name}" for ours, name in asked.items() if name not in present]
    if strange:
        raise ConfigError(f"{where}: no such split: {', '.join(strange)}", f"it has: {', '.join(present)}")
    chosen = {}
    for ours, words in SPLITS.items():
        found = [name for name in present if name.lower() in words and name not in asked.values()]
        if ours in asked:
            chosen[ours] = asked[ours]
        elif len(found) > 1:
            raise DataError(
                f"{where}: {' and '.join(found)} may both be the {ours} split", f"choose: ?{ours}={found[0]}"
            )
        elif found:
            chosen[ours] = found[0]
    if "train" not in chosen and len(present) == 1:
        chosen = {"train": present[0]}
    if "train" not in chosen:
        raise DataError(
            f"{where} has no training split; it has: {', '.join(present) or 'none'}",
            "say which it is: ?train=NAME (and val=NAME, test=NAME)",
        )
    twice = [name for name in chosen.values() if list(chosen.values()).count(name) > 1]
    if twice:
        raise ConfigError(f"{where}: the split {twice[0]!r} was chosen twice", "choose each once")
    left = [name for name in present if name not in chosen.values()]
    notes = (
        (f"left out of {where}: the {'split' if len(left) == 1 else 'splits'} {', '.join(left[:20])}",) if left else ()
    )
    return {ours: chosen[ours] for ours in SPLITS if ours in chosen}, notes


def _check(asked: str, features: Mapping[str, Any], option: str, where: str) -> None:
    if asked not in features:
        raise ConfigError(f"{where}: there is no column {asked!r} ({option}={asked})", _columns(features))


def _only(found: Sequence[str], features: Mapping[str, Any], what: str, where: str) -> str:
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{where}: no column of {what}s found", f"choose one by ?{what}=COLUMN. {_columns(features)}")
    raise DataError(
        f"{where}: {counted(len(found), 'column', 'columns')} may be the {what}s: {', '.join(found)}",
        f"choose one by ?{what}=COLUMN. {_columns(features)}",
    )


def _columns(features: Mapping[str, Any]) -> str:
    return "the columns are:\n" + listing(f"{name}: {_kind(feature)}" for name, feature in features.items())


def _kind(feature: Any) -> str:
    """The type of a column, in a few words."""
    names = class_names(feature)
    if names is not None:
        return f"ClassLabel of {counted(len(names), 'class', 'classes')}"
    if isinstance(feature, dict):
        return "a record of " + ", ".join(map(str, feature))
    dtype = getattr(feature, "dtype", None)
    return str(dtype) if type(feature).__name__ == "Value" else type(feature).__name__


def _image_kind(feature: Any) -> str:
    """ "image" for the type itself, "bytes" for what may hold one, "" otherwise."""
    if type(feature).__name__ == "Image":
        return "image"
    if isinstance(feature, dict):
        return "image" if set(feature) == {"bytes", "path"} else ""
    return "bytes" if str(getattr(feature, "dtype", "")) in ("binary", "large_binary") else ""


def _is_label(feature: Any) -> bool:
    if class_names(feature) is not None:
        return True
    dtype = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "Value" and dtype.startswith(("int", "uint", "string", "large_string", "bool"))
