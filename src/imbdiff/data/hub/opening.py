"""Data sets of the Hugging Face hub, or in its forms on disk: ``hf:ORG/NAME``, ``hf:FOLDER``. The extra is `hf`.

A folder is one of parquet files, an image folder, or what ``save_to_disk`` wrote. Columns of labels are read at once;
images stay encoded in memory-mapped Arrow files (the library's own cache) and are decoded by our rules, one at a time.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.arrays import encode_labels
from imbdiff.data.decode import UnusableImageError
from imbdiff.data.hub import columns as hub_columns
from imbdiff.data.listed.labels import Names, checked_names, encode, read_names
from imbdiff.data.names import counted
from imbdiff.data.source import Source
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import ConfigError, DataError, ImbdiffError, listing
from imbdiff.runtime.optional import optional

KNOWN = ("config", "revision", "image", "label", "names", "train", "val", "test", "streaming")
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_SECONDS = 10.0
_ELSEWHERE = "download it where there is a network (its save_to_disk, or its files) and give the folder: hf:FOLDER"


@dataclass(frozen=True)
class Wanted:
    """A set as it was asked for.

    Attributes:
        text: the whole of it, for messages.
        path: of a folder, or None.
        repository: id on the hub; "" for a folder.
        config, revision, image, label: as the options say.
        names: class names by option.
        splits: {train, val, test: name of the set's own split}, by option.
    """

    text: str
    path: Path | None
    repository: str
    config: str | None
    revision: str | None
    image: str | None
    label: str | None
    names: Names | None
    splits: Mapping[str, str]


def open_source(spec: Spec, flippable: bool) -> Source:
    streaming = spec.flag("streaming")
    wanted = _wanted(spec)
    optional("datasets", "hf", "a source that begins with hf:")
    if streaming:
        from imbdiff.data.hub.streamed import HubStream

        return HubStream(wanted, flippable)
    from imbdiff.data.hub.stored import HubSource

    return HubSource(wanted, flippable)


def _wanted(spec: Spec) -> Wanted:
    names = spec.take("names")
    splits = {ours: spec.take(ours) for ours in hub_columns.SPLITS}
    config, revision, image, label = (spec.take(key) for key in ("config", "revision", "image", "label"))
    spec.finish(KNOWN)
    # absolute, because the library takes "csv" or "parquet" for a kind of files and not for a folder
    path = user_path(spec.rest or "?").absolute()
    inside = os.path.isdir(path)  # no error for names that are too long
    if not inside:
        if os.path.exists(path):
            raise DataError(f"{spec.text}: {path} is a file", "give its folder, or the file itself without hf:")
        if _ID.fullmatch(spec.rest) is None:
            raise DataError(
                f"{spec.text}: there is no such folder, and it is no id of the hub",
                "write hf:FOLDER, or hf:OWNER/NAME as on huggingface.co/datasets",
            )
    return Wanted(
        spec.text,
        path if inside else None,
        "" if inside else spec.rest,
        config, revision, image, label,
        None if names is None else read_names(user_path(names), names),
        {ours: name for ours, name in splits.items() if name is not None},
    )  # fmt: skip


def load_sets(wanted: Wanted, streaming: bool = False) -> Mapping[str, Any]:
    """{split: datasets.Dataset or IterableDataset}, as the set has them.

    Raises:
        DataError: it cannot be loaded: no network, no such set, gated, or files that the library cannot read.
    """
    import datasets

    try:
        if wanted.path is not None and any((wanted.path / name).exists() for name in _SAVED):
            found = datasets.load_from_disk(str(wanted.path))
            if streaming:
                raise ConfigError(f"{wanted.text} is on this disk and read in place", "leave streaming=1 out")
        else:
            if wanted.path is None:
                _ask_hub(wanted)
            old = {"trust_remote_code": False} if int(datasets.__version__.partition(".")[0]) < 4 else {}
            found = datasets.load_dataset(
                wanted.repository or str(wanted.path),
                name=wanted.config, revision=wanted.revision, streaming=streaming, **old,
            )  # fmt: skip
    except ImbdiffError:
        raise
    except Exception as error:  # the library raises a dozen kinds, its own and pyarrow's
        raise DataError(f"{wanted.text} cannot be loaded: {first_line(error)}", _remedy(wanted)) from error
    return dict(found) if isinstance(found, dict) else {"train": found}


_SAVED = ("dataset_dict.json", "state.json")


def _remedy(wanted: Wanted) -> str:
    if wanted.path is None:
        return f"check the id, config and revision, or {_ELSEWHERE}"
    return "give a folder of parquet files, a folder of class folders, or one that save_to_disk wrote"


def _ask_hub(wanted: Wanted) -> None:
    """One question to the hub, because the library repeats its own for half a minute before it says that it failed."""
    import datasets
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi(endpoint=datasets.config.HF_ENDPOINT)
    try:
        api.dataset_info(wanted.repository, revision=wanted.revision, timeout=_SECONDS)
    except errors.GatedRepoError as error:
        raise DataError(
            f"{wanted.text} is gated: the hub gives it only to accounts whose request was granted",
            f"ask for access on its page and log in (hf auth login), or {_ELSEWHERE}",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DataError(f"{wanted.text}: the hub has no revision {wanted.revision!r} of it", "leave it out") from error
    except errors.RepositoryNotFoundError as error:
        raise DataError(
            f"{wanted.text}: the hub has no data set {wanted.repository!r}, or it is private",
            "check the id, or log in (hf auth login) if it is private",
        ) from error
    except Exception as error:
        # in the library's cache it may be all the same: then the library finds it there
        folder = wanted.repository.replace("/", "___")
        cached = Path(datasets.config.HF_DATASETS_CACHE)
        if not any(cached.glob(f"{folder.lower()}/*")) and not any(cached.glob(f"{folder}/*")):
            raise DataError(
                f"{wanted.text}: the hub cannot be reached ({first_line(error)}), and this set is not in the cache",
                _ELSEWHERE,
            ) from error


def first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    return (text[:300] or type(error).__name__).replace("\x1b", "")


@dataclass(frozen=True)
class Columns:
    """The columns of images and labels, and the class names that the set brings."""

    image: str
    label: str
    names: tuple[str, ...] | None


def columns_of(features: Mapping[str, Any], wanted: Wanted) -> Columns:
    image = hub_columns.image_column(features, wanted.image, wanted.text)
    label = hub_columns.label_column(features, wanted.label, wanted.text)
    own = hub_columns.class_names(features[label])
    return Columns(image, label, None if own is None else tuple(checked_names(own, wanted.text)))


def encoded_only(dataset: Any, columns: Columns) -> Any:
    """The columns used, with images as bytes or paths that nobody decodes."""
    import datasets

    kept = dataset.select_columns([columns.image, columns.label])
    if type(kept.features[columns.image]).__name__ == "Image":
        kept = kept.cast_column(columns.image, datasets.Image(decode=False))
    return kept


def class_labels(
    values: Mapping[str, Sequence[int | str | None]], names: Sequence[str] | None, wanted: Wanted
) -> tuple[tuple[str, ...], dict[str, np.ndarray], tuple[str, ...]]:
    """Class names, {split: (N,) int64 labels} of the splits that are labelled, and notes.

    A split of which no image is labelled (-1 or nothing, as test splits of competitions are) is left out.

    Args:
        values: the column of labels of each split.
        names: of a ClassLabel.

    Raises:
        DataError: training images without labels, all or some; another split of which some are labelled; what
            :func:`imbdiff.data.listed.labels.encode` refuses.
    """
    kept, notes = {}, []
    partly = []
    for split, column in values.items():
        missing = [i for i, value in enumerate(column) if value is None or value == -1]
        if not len(column):
            notes.append(f"left out of {wanted.text}: {split}, which is empty")
        elif len(missing) == len(column) and split != "train":
            notes.append(f"left out of {wanted.text}: {split}, whose {counted(len(column), 'image')} have no label")
        elif missing:
            partly += [f"{split}/{i}" for i in missing]
        else:
            kept[split] = column
    if partly:
        raise DataError(
            f"{wanted.text}: {counted(len(partly), 'image has', 'images have')} no label:\n{listing(partly)}",
            "label them or leave them out, or choose another column by ?label=COLUMN",
        )
    if "train" not in kept:
        raise DataError(f"{wanted.text} has no training image", "say which split is the training split: ?train=NAME")
    if names is not None and wanted.names is None:
        own, labels = encode_labels({split: np.array(column) for split, column in kept.items()}, names, wanted.text)
        return own, labels, tuple(notes)
    texts = {split: [str(value) for value in column] for split, column in kept.items()}
    found = encode(texts, wanted.names, wanted.text)
    return found.names, found.labels, (*notes, *found.notes)


def image_bytes(cell: Any) -> bytes:
    """The bytes of an image in a table.

    Raises:
        UnusableImageError: there are none. A path beside no bytes is not followed: it may lead anywhere.
    """
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if data is None:
        path = cell.get("path") if isinstance(cell, dict) else None
        raise UnusableImageError(f"no bytes in the table, only the path {path!r}" if path else "no image")
    return data
