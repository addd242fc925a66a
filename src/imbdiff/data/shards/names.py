"""Names of shards: braces and wildcards, and which split a shard belongs to by its name."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import PurePath

from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.names import counted
from imbdiff.runtime.errors import ConfigError, DataError, listing

MOST = 100_000
"""Shards that braces may stand for."""
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")

_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "val"
)
_INNERMOST = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)


def braces(text: str) -> list[str]:
    """What braces stand for: ``a-{08..10}`` is a-08, a-09, a-10, ``{a,b}`` is a, b; they may be nested.

    Raises:
        ConfigError: more than 100,000 names.
    """
    found = list(islice(_expand(text), MOST + 1))
    if len(found) > MOST:
        raise ConfigError(f"{text} stands for more than {MOST:,} shards", "check the numbers in braces")
    return list(dict.fromkeys(found))


def _expand(text: str) -> Iterator[str]:
    for match in _INNERMOST.finditer(text):
        values = _values(match.group(1))
        if values is not None:
            before, after = text[: match.start()], text[match.end() :]
            for value in values:
                yield from _expand(before + value + after)
            return
    yield text


def _values(inside: str) -> Iterator[str] | None:
    """The values of one pair of braces; None where they are plain characters of a name."""
    if "," in inside:
        return iter(inside.split(","))
    match = _RANGE.fullmatch(inside)
    if match is None or max(map(len, match.groups())) > 18:
        return None
    first, last = match.groups()
    width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
    step = 1 if int(first) <= int(last) else -1
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + step, step))


def local_shards(pattern: str) -> list[str]:
    """The files that `pattern` stands for: braces in their order, wildcards sorted by name.

    Raises:
        DataError: nothing fits, or files named by braces do not exist, all listed.
    """
    pattern = os.path.expanduser(pattern)
    if os.path.isfile(pattern):
        return [pattern]
    found: list[str] = []
    missing: list[str] = []
    for text in braces(pattern):
        if os.path.isfile(text):
            found.append(text)
        elif glob.has_magic(text):
            here = sorted(path for path in glob.glob(text, recursive=True) if os.path.isfile(path))
            found += here
            missing += [] if here else [text]
        else:
            missing.append(text)
    if missing:
        lead = counted(len(missing), "of the shards does", "of the shards do") if found else "no shard"
        what = f"{lead} not exist" if found else f"{lead} is there"
        raise DataError(
            f"{pattern}: {what}:\n{listing(missing)}",
            "check the path and the numbers in braces: shards/x-{000..009}.tar",
        )
    return list(dict.fromkeys(found))


def shards_of_folder(folder: str | os.PathLike[str]) -> list[str] | None:
    """The shards in a folder that holds ``.tar`` files, no folders and no images; None for another folder."""
    shards = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                ending = os.path.splitext(entry.name)[1].lower()
                if entry.is_dir() or ending in EXTENSIONS:
                    return None
                if ending == ".tar" or entry.name.lower().endswith(PACKED):
                    shards.append(entry.path)
    except OSError:
        return None  # whoever lists it next says why
    return sorted(shards) or None


def by_split(shards: Sequence[str], where: str) -> dict[str, list[str]]:
    """Shards by the split that their names begin with, or their folders are called: train-000.tar, val/000.tar.

    Where none is named train, those without the name of a split are; where all have one name, they are the training
    set, whatever that name is: they were asked for.

    Raises:
        DataError: shards of no split beside shards named train.
    """
    found: dict[str, list[str]] = {}
    for shard in shards:
        found.setdefault(_split_of(shard), []).append(shard)
    if len(found) == 1:
        return {"train": list(shards)}
    loose = found.pop("", [])
    if loose and "train" in found:
        raise DataError(
            f"{where}: {counted(len(loose), 'shard belongs', 'shards belong')} to no split, beside shards named "
            f"train:\n{listing(loose)}",
            "rename them, or name the training shards alone and the others by ?val=PATTERN&test=PATTERN",
        )
    if loose:
        found["train"] = loose
    if "train" not in found:
        raise DataError(
            f"{where}: there are shards for {' and '.join(sorted(found))}, but none for training",
            "name the training shards as well",
        )
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _split_of(shard: str) -> str:
    path = PurePath(shard)
    word = re.match(r"[a-z]*", path.name.lower())
    # a folder "test_of_shards" is no test split
    return _SPLITS.get(word.group() if word else "") or _SPLITS.get(path.parent.name.lower(), "")


def refuse_packed(shards: Sequence[str], where: str) -> None:
    """Compressed tar files can only be read from their start."""
    packed = [shard for shard in shards if shard.lower().endswith(PACKED)]
    if packed:
        raise DataError(
            f"{where}: {counted(len(packed), 'shard is', 'shards are')} compressed, so that no image in it can be "
            f"reached without unpacking all before it:\n{listing(packed)}",
            "unpack them to plain .tar files (gunzip, unxz, unzstd); images are compressed already",
        )
