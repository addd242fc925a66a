"""Shards on a web server: ``https://host/train-{000..099}.tar``, streamed twice and never stored.

The first pass over a shard finds its samples, labels and the images' headers, and is kept (one index a shard, so it
goes on where it was stopped). The second reads the images that the cache of decoded ones lacks.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from imbdiff.data.shards import indexes
from imbdiff.data.shards import names as shard_names
from imbdiff.data.shards.download import ChangedError, Download, State, host_of
from imbdiff.data.shards.local import check_indexes, class_labels, common_folder, ignored, options
from imbdiff.data.shards.stream import Records, StreamedSource, StreamReader, unpack_headers
from imbdiff.data.shards.tar_index import VERSION, Choice, DamagedTarError, index_tar
from imbdiff.data.source import Source
from imbdiff.data.spec import Spec
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.progress import Progress

READ = ("https", "http", "file")
_BUFFER = 2**20


def open_source(spec: Spec, flippable: bool) -> Source:
    if spec.scheme not in READ:
        raise ConfigError(
            f"{spec.text}: addresses that begin with {spec.scheme}: are not read"
            + (
                " (a command in the name of a data set would be run by whoever opens the run)" * (spec.scheme == "pipe")
            ),
            "give https:, http: or file: addresses, or download the shards and give their folder",
        )
    choice, names, others = options(spec)
    shards = {"train": [f"{spec.scheme}:{spec.rest}"], **{split: [text] for split, text in others.items()}}
    found = {split: [url for text in own for url in shard_names.braces(text)] for split, own in shards.items()}
    for own in found.values():
        _check(own, spec.text)
    splits = found if others else shard_names.by_split(found["train"], spec.text)
    return RemoteShardSource(splits, spec.text, choice, names, flippable)


def _check(urls: Sequence[str], where: str) -> None:
    shard_names.refuse_packed(urls, where)
    for url in urls:
        if url.partition(":")[0] not in READ:
            raise ConfigError(f"{where}: {url} is no https:, http: or file: address", "give one")
        if "@" in host_of(url):
            raise ConfigError(
                f"{where}: the address holds a user's name or password, and run folders remember it",
                "use an address that needs none, or download the shards",
            )


class RemoteReader(StreamReader):
    """Images in tar files on servers; a place is (address of the shard, first byte, number of bytes).

    Args:
        states: {address: (bytes, tag)} of the shards when they were indexed.
        choice: that they were indexed with; the index of a shard that has changed is removed.
    """

    def __init__(self, states: Mapping[str, State], choice: Choice) -> None:
        super().__init__()
        self.states, self.choice = states, choice
        self._url = ""
        self._file: io.BufferedIOBase = io.BytesIO()

    def fetch(self, place: tuple[str, int, int]) -> bytes:
        url, offset, size = place
        if url != self._url:
            self._file.close()
            self._url, self._file = url, io.BufferedReader(Download(url, self.states[url]), _BUFFER)
        try:
            self._file.seek(offset)
            data = self._file.read(size)
            if len(data) < size:
                raise ChangedError(f"{url} is shorter than it was", "start again: it is looked through anew")
        except ChangedError:
            indexes.place_of(_key(url, self.choice)).unlink(missing_ok=True)
            raise
        return data

    def close(self) -> None:
        with self._one:
            self._file.close()
            self._url = ""

    def stamp(self, place: tuple[str, int, int]) -> str:
        url, offset, _ = place
        return f"{self.states[url]} {offset}"


class RemoteShardSource(StreamedSource):
    """WebDataset shards on a server. What is refused is what local shards are refused for.

    Raises:
        DataError: as for :class:`~imbdiff.data.shards.ShardSource`; a shard that was not yet indexed cannot be reached.
    """

    kind = "remote shards"

    def __init__(
        self, shards: Mapping[str, Sequence[str]], name: str, choice: Choice, names: str | None, flippable: bool
    ) -> None:
        urls = [url for own in shards.values() for url in own]
        found = {}
        with Progress("index", len(urls), "shards", quiet=len(urls) < 2) as bar:
            for url in urls:
                found[url] = _indexed(url, choice)
                bar.update(bar.done + 1)
        check_indexes(found, name)
        texts = {split: [text for url in own for text in found[url]["labels"]] for split, own in shards.items()}
        class_names, codes, notes = class_labels(texts, names, name)
        root = common_folder(urls)
        self.reader = RemoteReader({url: (index["bytes"], index["tag"]) for url, index in found.items()}, choice)
        self.records, self.found = {}, {}
        for split, own in shards.items():
            ids = [f"{url[root:]}/{member}" for url in own for member in found[url]["names"]]
            places = [
                (url, offset, size)
                for url in own
                for offset, size in zip(found[url]["offsets"], found[url]["sizes"], strict=True)
            ]
            self.records[split] = Records(ids, codes[split], places)
            self.found[split] = [
                header for url in own for header in unpack_headers(found[url]["headers"], found[url]["header"])
            ]
        super().__init__(name, class_names, flippable, (*ignored(found.values(), name), *notes))


def _key(url: str, choice: Choice) -> Any:
    return ["remote shard", VERSION, url, asdict(choice)]


def _indexed(url: str, choice: Choice) -> dict[str, Any]:
    kept = indexes.recall(_key(url, choice))
    if kept is not None:
        return kept
    download = Download(url)
    size, tag = download.state
    try:
        with io.BufferedReader(download, _BUFFER) as file:
            index = index_tar(file, size, choice, look=True)
    except DamagedTarError as error:
        return {"damage": str(error)}
    return indexes.keep(_key(url, choice), {**index, "bytes": size, "tag": tag})
