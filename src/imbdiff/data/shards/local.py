"""Shards in WebDataset's form: ``train-{000000..000009}.tar``, with the image and the label of a sample side by side.

Every shard is looked through once, from header to header; where its images lie is kept in an index beside the cache.
From then on any image is read by seeking, so nothing is unpacked and memory stays constant.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np

from imbdiff.data.decode import UnusableImageError
from imbdiff.data.encoded import EncodedSource, Reader, Records
from imbdiff.data.listed import labels
from imbdiff.data.names import counted
from imbdiff.data.parallel import in_chunks
from imbdiff.data.shards import indexes
from imbdiff.data.shards import names as shard_names
from imbdiff.data.shards.tar_index import VERSION, Choice, DamagedTarError, index_tar
from imbdiff.data.source import Source
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import DataError, listing
from imbdiff.runtime.progress import Progress

KNOWN = ("image", "label", "names", "val", "test")

_BYTES_PER_SAMPLE = 2**14  # a guess that decides whether processes are worth starting


def open_source(spec: Spec, flippable: bool) -> Source:
    choice, names, others = options(spec)
    return ShardSource(splits_of(spec.rest, others, spec.text), spec.text, choice, names, flippable)


def options(spec: Spec) -> tuple[Choice, str | None, dict[str, str]]:
    """Images and labels, the file of class names, and the patterns of further splits."""
    choice = Choice(spec.take("image"), spec.take("label"))
    names = spec.take("names")
    others = {split: spec.take(split) for split in ("val", "test")}
    spec.finish(KNOWN)
    return choice, names, {split: pattern for split, pattern in others.items() if pattern is not None}


def splits_of(pattern: str, others: Mapping[str, str], where: str) -> dict[str, list[str]]:
    """The local shards of each split.

    Args:
        pattern: a file, braces, wildcards, or a folder of shards.
        others: {split: pattern} beside train; where given, names of shards decide nothing.
    """
    shards = shard_names.shards_of_folder(os.path.expanduser(pattern)) or shard_names.local_shards(pattern)
    shard_names.refuse_packed(shards, where)
    if not others:
        return shard_names.by_split(shards, where)
    found = {split: shard_names.local_shards(text) for split, text in others.items()}
    for own in found.values():
        shard_names.refuse_packed(own, where)
    elsewhere = {os.path.realpath(shard) for own in found.values() for shard in own}
    return {"train": [shard for shard in shards if os.path.realpath(shard) not in elsewhere], **found}


@dataclass(frozen=True)
class ShardReader(Reader):
    """Images in local tar files; a place is (path of the shard, first byte, number of bytes).

    Attributes:
        states: {path: (size in bytes, time of change in nanoseconds)} of the shards when they were indexed.
    """

    states: Mapping[str, tuple[int, int]]

    def open(self, place: tuple[str, int, int]) -> BinaryIO:
        path, offset, size = place
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) != self.states[path]:
                raise UnusableImageError("the shard has changed since it was indexed")
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise UnusableImageError("the shard was cut off after it had been indexed")
        return BytesIO(data)

    def bring(self, places: Sequence[tuple[str, int, int]]) -> tuple[Reader, Sequence[tuple[str, int, int]]]:
        return ShardReader({path: self.states[path] for path, *_ in places}), places

    def stamp(self, place: tuple[str, int, int]) -> str:
        path, offset, _ = place
        try:
            found = os.stat(path)
        except OSError as error:
            return str(error.errno)
        return f"{found.st_size} {found.st_mtime_ns} {offset}"


class ShardSource(EncodedSource):
    """Local WebDataset shards.

    Labels are the ``.cls`` member of a sample (an integer or text), otherwise a key of its ``.json``; they become
    classes as :func:`imbdiff.data.listed.labels.encode` says.

    Args:
        shards: {split: paths of its tar files}.
        name: how messages call it.
        choice: which members are images and labels.
        names: a file of class names, see :func:`imbdiff.data.listed.labels.read_names`.

    Raises:
        DataError: shards that are damaged, cut off or compressed; samples without image or label, with several images,
            that occur twice; links, devices, sparse files and names that leave the archive; all listed.
    """

    kind = "shards"

    def __init__(
        self,
        shards: Mapping[str, Sequence[str]],
        name: str,
        choice: Choice = Choice(),  # noqa: B008 - frozen
        names: str | None = None,
        flippable: bool = False,
    ) -> None:
        paths = [path for own in shards.values() for path in own]
        found = dict(zip(paths, _indexed(paths, choice), strict=True))
        check_indexes(found, name)
        self.reader = ShardReader({path: index["state"] for path, index in found.items()})
        texts = {split: [text for path in own for text in found[path]["labels"]] for split, own in shards.items()}
        class_names, codes, notes = class_labels(texts, names, name)
        root = common_folder(paths)
        self.records = {}
        for split, own in shards.items():
            ids = [
                f"{path[root:].replace(os.sep, chr(47))}/{member}" for path in own for member in found[path]["names"]
            ]
            places = [
                (path, offset, size)
                for path in own
                for offset, size in zip(found[path]["offsets"], found[path]["sizes"], strict=True)
            ]
            self.records[split] = Records(ids, codes[split], places)
        super().__init__(name, class_names, flippable, (*ignored(found.values(), name), *notes))


def common_folder(paths: Sequence[str]) -> int:
    """The number of characters of the folder that all `paths` are in, with its last slash; addresses too."""
    folders = [path.replace(os.sep, "/").split("/")[:-1] for path in paths]
    same = 0
    while same < min(map(len, folders)) and len({folder[same] for folder in folders}) == 1:
        same += 1
    return sum(len(part) + 1 for part in folders[0][:same])


def check_indexes(found: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Refuses damaged shards, then refused members and incomplete samples, each with all of them."""
    damaged = [f"{path}: {index['damage']}" for path, index in found.items() if "damage" in index]
    if damaged:
        raise DataError(
            f"{where}: {counted(len(damaged), 'shard cannot be used', 'shards cannot be used')}:\n{listing(damaged)}",
            "fetch or write these shards again; samples before the damage are not used silently",
        )
    problems = [f"{os.path.basename(path)}: {line}" for path, index in found.items() for line in index["problems"]]
    if problems:
        raise DataError(
            f"{where}: {counted(len(problems), 'sample or member', 'samples or members')} cannot be used:\n"
            f"{listing(problems)}",
            "every sample needs one image and one label of the same name (0001.jpg, 0001.cls); choose them by "
            "?image=ENDING and ?label=cls, txt or a key of .json, or write the shards again",
        )
    if not any(index["names"] for index in found.values()):
        seen: Counter[str] = sum((Counter(index["ignored"]) for index in found.values()), Counter())
        rows = [f"{what}: {n}" for what, n in seen.most_common()]
        raise DataError(
            f"{where}: no sample with an image" + (f"; there are:\n{listing(rows)}" if rows else ""),
            "images are recognised by their endings (jpg, png, webp, ...); another one: ?image=ENDING",
        )


def ignored(found: Iterable[Mapping[str, Any]], where: str) -> tuple[str, ...]:
    """What was left aside in all indexes, as one warning."""
    total: Counter[str] = sum((Counter(index["ignored"]) for index in found), Counter())
    if not total:
        return ()
    return (f"ignored in {where}: " + ", ".join(f"{n} x {what}" for what, n in total.most_common(5)),)


def class_labels(
    texts: Mapping[str, Sequence[str]], names: str | None, where: str
) -> tuple[tuple[str, ...], dict[str, np.ndarray], tuple[str, ...]]:
    """Class names, {split: (N,) int64} and notes of labels that are texts; `names` is a file of class names."""
    for split, own in texts.items():
        if not own:
            raise DataError(f"{where}: the {split} split has no image", "check the shards of this split")
    found = labels.encode(texts, names and labels.read_names(user_path(names), names), where)
    return found.names, found.labels, found.notes


def _indexed(paths: Sequence[str], choice: Choice) -> list[dict[str, Any]]:
    """The index of each shard, kept or made now, with its "state" of then; those with many bytes in processes."""
    found: dict[str, dict[str, Any]] = {}
    states: dict[str, tuple[int, int]] = {}
    todo: list[tuple[str, Any, int]] = []
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError as error:
            found[path] = {"damage": f"cannot be read: {error.strerror}"}
            continue
        states[path] = (stat.st_size, stat.st_mtime_ns)
        key = ["shard", VERSION, os.path.abspath(path), stat.st_size, stat.st_mtime_ns, asdict(choice)]
        kept = indexes.recall(key)
        if kept is None:
            todo.append((path, key, stat.st_size))
        else:
            found[path] = kept
    guess = sum(size for *_, size in todo) // _BYTES_PER_SAMPLE
    tasks = ((path, size, choice) for path, _, size in todo)
    with Progress("index", len(todo), "shards", quiet=guess < 20_000) as bar:
        for (path, key, _), index in zip(todo, in_chunks(_index, tasks, guess), strict=True):
            found[path] = index if "damage" in index else indexes.keep(key, index)
            bar.update(bar.done + 1)
    return [{**found[path], "state": states.get(path)} for path in paths]


def _index(path: str, size: int, choice: Choice) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return index_tar(file, size, choice)
    except DamagedTarError as error:
        return {"damage": str(error)}
    except OSError as error:
        return {"damage": f"cannot be read: {error.strerror or error}"}
