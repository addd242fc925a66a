"""What the library `datasets` reads: sets of the Hugging Face hub, Parquet files, WebDataset shards. The extra is `hf`.

    hf:OWNER/NAME                    a set of the hub, which the library downloads and keeps in its own cache
    hf:FOLDER                        a folder of Parquet files or shards, an image folder, or what save_to_disk wrote
    train.parquet, data/*.parquet    files, also at an address (https://...), which the library downloads
    shards/train-{000..009}.tar      the same; or a folder of .tar files

Columns of labels are read at once; images stay encoded in the library's memory-mapped Arrow files, and our decoder
opens them, one at a time, by the rules that hold for every source (`Image(decode=False)`). No code of a data set is
run, and the library unpickles nothing. Paths that a table names in place of images are followed only inside the set.
"""

from __future__ import annotations

import glob
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from imbdiff.data.arrays import item_records
from imbdiff.data.byproducts import KEEP, is_byproduct, left_out_byproducts
from imbdiff.data.decode import LARGEST, File, UnusableImageError
from imbdiff.data.folder import is_inside
from imbdiff.data.grouping import is_group_column, of_values, unused_columns
from imbdiff.data.labels import check_file, read_names, several_labels
from imbdiff.data.names import counted, display_name, named
from imbdiff.data.reading import Reader
from imbdiff.data.source import Source
from imbdiff.data.spec import Spec, user_path
from imbdiff.data.split_names import MANY, SPELLINGS, assigned, of_cells, split_column
from imbdiff.runtime.errors import ConfigError, DataError, listing
from imbdiff.runtime.files import digest
from imbdiff.runtime.tables import optional

OPTIONS = ("image", "label", "names", "split", "group", "several", "train", "val", "test", "config", "revision", KEEP)
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
LABELS = ("label", "class", "cls", "json.label", "json.cls", "txt")
"""Columns that are taken without an option where no other, or several, have the type of an image or a class label."""
LARGEST_RATIO = 100
"""A Parquet file of more than 256 MiB that is packed better than so is refused: images hardly get smaller."""
LABEL_TYPES = ("int", "uint", "string", "large_string", "bool")
_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def open_source(spec: Spec) -> Source:
    """A set that the library `datasets` opens.

    Options of `spec`: image, label, split and group (columns; ``json.KEY`` for a key of shards' .json files), several
    (what to do with images of several labels), names (file of class names), train, val and test (names of the set's
    splits; for files, val and test are further files), config and revision (hub).

    Raises:
        ConfigError: the library is not installed.
        DataError: it cannot be loaded; columns or splits that are not there or not clear; images without labels.
    """
    where, options = spec.text, spec.options
    sets, roots, notes = _opened(spec)
    flat = {split: _flattened(found) for split, found in sets.items()}
    features = flat["train"].features
    image, label = (column_of(features, what, options.get(what), where) for what in ("image", "label"))
    if image_columns := [name for name, kind in features.items() if _is_image(kind) and name != image]:
        notes.append(f"the images of {where} are those of the column {image!r}; not used: {named(image_columns)}")
    for split, found in flat.items():
        if any(str(found.features.get(column)) != str(features[column]) for column in (image, label)):
            raise DataError(f"{where}: the columns or class names of {split} and train differ", "make them the same")
    flat, sets, found = _by_column(flat, sets, (image, label), spec)
    notes += found
    labels, more = _labels(flat, label, where)
    several, found = several_labels((v for y in labels.values() for v in y), where, options.get("several"))
    notes += [*more, *found]
    rows = {split: [i for i, v in enumerate(y) if v not in several] for split, y in labels.items()}
    for split, kept in rows.items():
        called = _names(sets[split], flat[split], image, labels[split])
        chosen = [called[i] for i in kept] if called else []
        lost, more = left_out_byproducts(chosen, f"{where}, {split}", 0, options.get(KEEP) == "keep")
        rows[split], notes = [i for i in kept if not lost or called[i] not in lost], [*notes, *more]
        if len(rows[split]) < len(labels[split]):
            flat[split], sets[split] = flat[split].select(rows[split]), sets[split].select(rows[split])
            labels[split] = [labels[split][i] for i in rows[split]]
    splits = {split: item_records(split, y, _ids(flat[split], split, image)) for split, y in labels.items()}
    if group := options.get("group"):
        values = {split: _values(flat[split], _existing(flat[split], group, "group", where)) for split in splits}
        splits = {s: replace(one, groups=of_values(values[s], one.ids, s)) for s, one in splits.items()}
    elif group is None:
        others = [name for name in _scalars(flat["train"]) if name not in (image, label) and is_group_column(name)]
        some = {name: _values(flat["train"], name) for name in others}
        notes += unused_columns(some, len(set(labels["train"])), where)
    used = {split: _encoded(sets[split], image) for split in splits}
    reader = ArrowReader(used, image, tuple(roots), digest([_state(found) for found in used.values()])[:32])
    names = read_names(user_path(options["names"])) if options.get("names") else class_names(features[label])
    kind = "hf" if spec.scheme == "hf" else "parquet" if ".parquet" in spec.rest else "webdataset"
    return Source(where, kind, splits, reader, names, notes)


@dataclass(frozen=True, eq=False)
class ArrowReader(Reader):
    """Images in a column of bytes; a place is (split, row). Data sets travel as the names of their Arrow files."""

    sets: Mapping[str, Any]
    column: str
    roots: tuple[str, ...]
    identity: str

    def open(self, place: tuple[str, int]) -> File:
        split, row = place
        cell: dict[str, Any] = self.sets[split][row][self.column] or {}
        data, path = cell.get("bytes"), cell.get("path")
        if data is None:
            if path is None:
                raise UnusableImageError("no image")
            real = os.path.realpath(path)
            if not any(is_inside(real, os.path.realpath(root)) for root in self.roots):
                raise UnusableImageError(f"only a path, which leads out of the data set: {display_name(path, 200)}")
            return Path(real)
        if len(data) > LARGEST:
            raise UnusableImageError(f"{len(data):,} bytes, more than {LARGEST // 2**20} MiB")
        return BytesIO(data)

    def stamp(self, place: tuple[str, int]) -> str:
        return str(place)  # the identity changes with the files


def _opened(spec: Spec) -> tuple[dict[str, Any], list[str], list[str]]:
    """{train, val, test: datasets.Dataset}, folders in which images may be, and notes.

    Raises:
        DataError: it cannot be loaded: no network, no such set, gated, or files that the library cannot read.
    """
    datasets = optional("datasets", "hf", "this kind of source")
    from huggingface_hub import constants

    text, path, options = spec.text, user_path(spec.rest or "?").absolute(), spec.options
    asked = {split: options[split] for split in SPELLINGS if split in options}
    folder = path if os.path.isdir(path) else None
    cache = str(datasets.config.HF_DATASETS_CACHE)
    if folder is None and spec.scheme == "hf" and (_ID.fullmatch(spec.rest) is None or os.path.exists(path)):
        raise DataError(
            f"{text}: there is no such folder, and it is no id of the hub",
            "write hf:FOLDER, or hf:OWNER/NAME as on huggingface.co/datasets; a file without hf:",
        )
    files: dict[str, list[str]] = {}
    if folder is None and spec.scheme != "hf":
        address = f"{spec.scheme}:{spec.rest}" if spec.scheme else str(user_path(spec.rest))
        files, asked = _files(text, {**asked, "train": address}), {}
    try:
        if folder is None and not files:
            _ask_hub(spec.rest, options.get("revision"), cache)
        inside = [str(file) for file in folder.rglob("*.parquet")] if folder else []
        _refuse_bombs(inside + [file for some in files.values() for file in some])
        if folder is not None and any((folder / saved).exists() for saved in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(folder))
        elif files:  # one by one: of several the library believes the first one's class names
            kind = "parquet" if files["train"][0].lower().endswith(".parquet") else "webdataset"
            found = {
                split: datasets.load_dataset(kind, data_files={split: some})[split] for split, some in files.items()
            }
        else:
            revision = None if folder else options.get("revision")
            found = datasets.load_dataset(str(folder or spec.rest), name=options.get("config"), revision=revision)
    except DataError:
        raise
    except Exception as error:  # the library raises a dozen kinds, its own and pyarrow's
        while error.__cause__ is not None and "while generating" in str(error):
            error = error.__cause__  # type: ignore[assignment]
        line = (str(error).strip().splitlines() or [""])[0].rstrip(".").replace("\x1b", "")
        raise DataError(
            f"{text} cannot be loaded: {type(error).__name__}: {line[:300]}",
            "check that these are whole files: Parquet, WebDataset shards, a folder of these or of class folders"
            if folder or files
            else "check the id, config and revision; log in (hf auth login) where it is private or gated; without a "
            "network, give a folder of its files or what its save_to_disk wrote: hf:FOLDER",
        ) from error
    every = dict(found) if isinstance(found, dict) else {"train": found}
    chosen, notes = which_splits(list(every), asked, text)
    roots = [str(folder)] if folder else [cache, str(constants.HF_HUB_CACHE)]
    return {ours: every[theirs] for ours, theirs in chosen.items()}, roots, notes


def _ask_hub(repository: str, revision: str | None, cache: str) -> None:
    """One question to the hub, unless the set is in the cache: the library asks for half a minute before it fails."""
    import huggingface_hub

    folder = repository.replace("/", "___")
    if not any(any(Path(cache).glob(f"{name}/*")) for name in (folder, folder.lower())):
        huggingface_hub.HfApi().dataset_info(repository, revision=revision, timeout=10.0)


def _files(text: str, patterns: Mapping[str, str]) -> dict[str, list[str]]:
    """{split: files} of patterns.

    Raises:
        DataError: a file that is not there or compressed; files of two kinds.
        ConfigError: an address with a password.
    """
    files = {split: expanded(pattern) for split, pattern in patterns.items()}
    every = [file for found in files.values() for file in found]
    missing = [patterns[split] for split, found in files.items() if not found]
    if missing:
        raise DataError(f"{text}: no file is called {missing[0]}", "check the pattern and the folder")
    for file in every:
        if not re.match("https?:", file):
            check_file(Path(file))
        elif re.search(r"//[^/]*@", file):
            raise ConfigError(f"{text}: the address holds a password", "a run folder would remember it; leave it out")
        else:
            optional("aiohttp", "hf", "a source at an address")
        if file.lower().endswith((".gz", ".tgz")):
            raise DataError(f"{file} is compressed", "unpack it (gunzip): images are compressed already")
    if len({file.lower().endswith(".parquet") for file in every}) > 1:
        raise DataError(f"{text}: some files are Parquet and some shards", "give files of one kind")
    return files


def expanded(pattern: str) -> list[str]:
    """The files that a pattern names: ``{000..009}`` as in a shell, and ``*`` on a disk."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if span and int(span[2]) - int(span[1]) >= 100_000:
        raise DataError(f"{pattern} names more than 100,000 files", "give fewer, larger files")
    if span:
        numbers = range(int(span[1]), int(span[2]) + 1)
        each = [f"{pattern[: span.start()]}{n:0{len(span[1])}d}{pattern[span.end() :]}" for n in numbers]
        return [file for name in each for file in expanded(name)]
    if re.match("https?:", pattern):
        return [pattern]
    return [os.path.abspath(name) for name in (sorted(glob.glob(pattern)) if "*" in pattern else [pattern])]


def _refuse_bombs(files: Sequence[str]) -> None:
    """Refuses Parquet files that would unpack to far more than images do, by what their footers say."""
    import pyarrow.parquet as pq

    for file in files:
        if not file.lower().endswith(".parquet") or re.match("https?:", file):
            continue
        metadata = pq.ParquetFile(file).metadata
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        size = sum(column.total_uncompressed_size for column in columns)
        if size > LARGEST and size > LARGEST_RATIO * sum(column.total_compressed_size for column in columns):
            raise DataError(
                f"{file} unpacks to {size:,} bytes: may be a decompression bomb",
                "look at it with a tool that you trust",
            )


def which_splits(present: Sequence[str], asked: Mapping[str, str], where: str) -> tuple[dict[str, str], list[str]]:
    """{train, val, test: name of the data set's own split}, and a note of those left out.

    Raises:
        DataError: a split asked for is not there, or twice; no training split; two that could be the same.
    """
    chosen, remedy = dict(asked), f"it has: {', '.join(present) or 'none'}; choose: ?train=NAME, val=NAME, test=NAME"
    if not set(asked.values()) <= set(present) or len(set(asked.values())) < len(asked):
        raise DataError(f"{where}: no such splits, or one twice: {', '.join(asked.values())}", remedy)
    for ours, found in assigned(name for name in present if name not in asked.values()).items():
        if ours not in asked and len(found) > 1:
            raise DataError(f"{where}: {' and '.join(found)} may both be the {ours} split", remedy)
        if ours not in asked and found:
            chosen[ours] = found[0]
    if len(present) == 1:
        chosen = {"train": present[0]}
    if "train" not in chosen:
        raise DataError(f"{where} has no training split", remedy)
    left = [name for name in present if name not in chosen.values()]
    notes = [f"left out of {where}: the splits {', '.join(left[:20])}"] if left else []
    return {split: chosen[split] for split in SPELLINGS if split in chosen}, notes


def _by_column(
    flat: dict[str, Any], sets: dict[str, Any], used: Sequence[str], spec: Spec
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """The sets parted by a column of splits, where one says them, and notes.

    Raises:
        DataError: rows of no split, or columns that contradict each other.
    """
    train, where, asked = flat["train"], spec.text, spec.options.get("split")
    if asked == "":
        return flat, sets, []
    if asked and len(flat) > 1:
        raise ConfigError(f"{where}: both a column and files or names say what is not for training", "give one of them")
    notes: list[str] = []
    if asked:
        column: str | None = _existing(train, asked, "split", where)
    else:
        names = [name for name in _scalars(train) if name not in used and _few(train, name)]
        columns = {name: _values(train, name) for name in names}
        column, notes = split_column(columns, where, given=len(flat) > 1)
    if column is None:
        return flat, sets, notes
    cells = _values(train, column)
    known = of_cells(column, cells)
    wrong = [f"train/{i}: {display_name(cell)!r} is no split" for i, cell in enumerate(cells) if cell not in known]
    if wrong:
        raise DataError(
            f"{where}, column {column!r}: {counted(len(wrong), 'row')} without a split:\n{listing(wrong)}",
            "complete or remove these rows; splits are train, val and test; SOURCE?split= (empty) takes all rows "
            "for training",
        )
    rows = {split: [i for i, cell in enumerate(cells) if known[cell] == split] for split in SPELLINGS}
    parted = ({s: some["train"].select(i) for s, i in rows.items() if i} for some in (flat, sets))
    return next(parted), next(parted), notes


def _scalars(dataset: Any) -> list[str]:
    """The columns of numbers or texts."""
    return [name for name, kind in dataset.features.items() if _dtype(kind).startswith(LABEL_TYPES)]


def _few(dataset: Any, name: str) -> bool:
    """Whether a column has few enough different values to say splits."""
    return len(set(dataset.select_columns([name])[: 10 * MANY][name])) <= MANY


def _values(dataset: Any, name: str) -> list[str]:
    """A column as texts, "" where there is no value; of class labels their names."""
    names = class_names(dataset.features[name])
    column = dataset.select_columns([name]).with_format("arrow")[:][name].to_pylist()
    return ["" if v is None else names[v] if names and 0 <= v < len(names) else str(v) for v in column]


def _existing(dataset: Any, name: str, option: str, where: str) -> str:
    if name not in _scalars(dataset):
        raise DataError(
            f"{where}: the column {name!r} is not there or holds no numbers or texts",
            f"it has: {', '.join(_scalars(dataset))}; say SOURCE?{option}=COLUMN",
        )
    return name


def _flattened(dataset: Any) -> Any:
    """The data set with the keys of records (the .json of shards) as columns ``json.KEY``."""
    records = [name for name, kind in dataset.features.items() if isinstance(kind, dict) and not _is_image(kind)]
    if not records:
        return dataset
    import datasets

    others = [name for name in dataset.column_names if name not in records]
    return datasets.concatenate_datasets(
        [dataset.select_columns(others), dataset.select_columns(records).flatten()], axis=1
    )


def column_of(features: Mapping[str, Any], what: str, asked: str | None, where: str) -> str:
    """The column of images or labels: the one asked for, the only one of the type, or the only one of a usual name.

    Raises:
        DataError: no such column, or it holds something else; none or several could be meant.
    """
    if what == "image":
        found = [name for name, kind in features.items() if _is_image(kind)]
        usable = [name for name, kind in features.items() if _is_image(kind) or _dtype(kind).endswith("binary")]
        found = found or [name for name in usable if name.lower() in IMAGES]
        if len(found) > 1:
            found = [name for name in found if not is_byproduct(name)] or found
    else:
        found = [name for name, kind in features.items() if class_names(kind) is not None]
        usable = [name for name, kind in features.items() if _dtype(kind).startswith(LABEL_TYPES)]
        found = found or [name for name in LABELS if name in usable][:1]
    if asked in usable or (asked is None and len(found) == 1):
        return asked or found[0]
    several = f"{len(found)} columns may be the {what}s: {', '.join(found)}"
    none = f"no column of {what}s found" if asked is None else f"the column {asked!r} is not there or holds no {what}s"
    columns = listing(f"{name}: {str(feature)[:100]}" for name, feature in features.items())
    if (
        asked is not None
        and asked in features
        and what == "label"
        and type(features[asked]).__name__ in ("List", "Sequence", "LargeList")
    ):
        none += ": it holds lists, several labels for each image, and one is needed"
    raise DataError(
        f"{where}: {none if asked is not None or not found else several}; the columns are:\n{columns}",
        f"choose one by ?{what}=COLUMN",
    )


def class_names(feature: Any) -> list[str] | None:
    """The names that a ClassLabel brings; None for another type."""
    names = getattr(feature, "names", None)
    return list(names) if type(feature).__name__ == "ClassLabel" and names is not None else None


def _dtype(feature: Any) -> str:
    """The type of the values of a column, "" for lists and records."""
    return str(feature.dtype) if type(feature).__name__ in ("Value", "ClassLabel") else ""


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image" or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def _labels(sets: Mapping[str, Any], name: str, where: str) -> tuple[dict[str, list[Any]], list[str]]:
    """{split: labels} of the splits that are labelled, and notes; test splits of competitions often are not.

    Raises:
        DataError: training images without labels; another split of which some images are labelled.
    """
    kept: dict[str, list[Any]] = {}
    notes, partly = [], []
    for split, found in sets.items():
        column = found.select_columns([name]).with_format("arrow")[:][name].to_pylist()
        missing = [i for i, value in enumerate(column) if value is None or value == -1 or str(value).strip() == ""]
        if len(missing) == len(column) and split != "train":
            notes.append(f"left out of {where}: {split}, whose {counted(len(column), 'image')} have no label")
        elif missing or not column:
            partly += [f"{split}/{i}" for i in missing]
        else:
            kept[split] = [int(value) if isinstance(value, bool) else value for value in column]
    if partly:
        raise DataError(
            f"{where}: {counted(len(partly), 'image has', 'images have')} no label:\n{listing(partly)}",
            "label them or leave them out, or choose another column by ?label=COLUMN",
        )
    return kept, notes


def _names(dataset: Any, flat: Any, column: str, labels: Sequence[Any]) -> list[str]:
    """``LABEL/NAME`` of each image, by the names of the files that the images were; [] where these are not known."""
    keys = _ids(flat, "", column)
    paths: Sequence[str | None] = [key.lstrip("/") for key in keys or ()]
    if not keys and _is_image(dataset.features[column]):
        parts = _encoded(dataset, column).flatten()
        paths = parts.select_columns([f"{column}.path"])[f"{column}.path"]
    if not any(paths):
        return []
    names = [posixpath.basename(path) if os.path.isabs(path) else path for path in (path or "" for path in paths)]
    return [f"{label}/{name}" for label, name in zip(labels, names, strict=True)]


def _encoded(dataset: Any, column: str) -> Any:
    """The column of images alone, as bytes or paths that are not decoded."""
    import datasets

    return dataset.select_columns([column]).cast_column(column, datasets.Image(decode=False))


def _ids(dataset: Any, split: str, image: str) -> list[str] | None:
    """Names of the images of shards: those of the files in them, if all are different."""
    if "__key__" not in dataset.column_names:
        return None
    keys = [f"{split}/{key}.{image}" for key in dataset.select_columns(["__key__"])["__key__"]]
    return keys if len(set(keys)) == len(keys) else None


def _state(dataset: Any) -> list[Any]:
    """Changes when the Arrow files of a set do."""
    names = sorted(entry["filename"] for entry in dataset.cache_files)
    return [dataset._fingerprint, [[name, os.stat(name).st_size, os.stat(name).st_mtime_ns] for name in names]]
