"""What is in one tar file of samples: where each image lies and what its label is, found from the headers alone.

The rules are WebDataset's: files of one sample have the same name up to the first dot of the base name, such as
``a/0001.jpg`` and ``a/0001.cls``. Nothing is unpacked, and nothing in the file is believed.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

from imbdiff.data.decode import EXTENSIONS, LARGEST, UnusableImageError, read_header
from imbdiff.runtime.errors import ConfigError

VERSION = 1
"""Raised whenever what an index holds changes."""
LARGEST_LABEL = 2**20
LONGEST_LABEL = 1000
IMAGES = frozenset(ending[1:] for ending in EXTENSIONS)

_BLOCK = 512
_BEHIND = 2**16  # bytes behind the end mark in which a second archive would begin
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's own entries
_DAMAGE = (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError, EOFError, IndexError)


class DamagedTarError(ValueError):
    """A tar file that cannot be trusted to its end, and from which byte on."""


@dataclass(frozen=True)
class Choice:
    """Which files of a sample are its image and its label.

    Attributes:
        image: ending of the images, such as "jpg" or "rgb.png"; any usual one where None.
        label: "cls", "txt", or a key of the sample's ``.json``; where None .cls, otherwise the keys label and cls.
    """

    image: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.image is not None and self.image.rpartition(".")[2] not in IMAGES:
            raise ConfigError(
                f"image={self.image}: files ending so are not read as images", f"one of {', '.join(sorted(IMAGES))}"
            )

    def is_image(self, ending: str) -> bool:
        return ending in IMAGES if self.image is None else ending == self.image

    def is_label(self, ending: str) -> bool:
        if self.label is None:
            return ending in ("cls", "json")
        return ending == (self.label if self.label in ("cls", "txt") else "json")


def index_tar(file: BinaryIO, size: int | None, choice: Choice, look: bool = False) -> dict[str, Any]:
    """The samples of an uncompressed tar file.

    Args:
        file: at its start; read forward, seeking over what is not needed.
        size: bytes of the file; None if not known.
        choice: of images and labels.
        look: reads the images' own headers too (a stream, which is passed over anyway).

    Returns:
        JSON-able: "names", "offsets", "sizes", "labels" (texts) of the images in the order of the file; with `look`
        "headers", distinct [height, width, mode, grey], and "header", a number or why not for each image; "problems",
        a line for each refused member or sample; "ignored", {what: how often}.

    Raises:
        DamagedTarError: cut off, damaged, compressed, or no tar file.
    """
    found = _Samples(choice, look)
    start = file.read(6)
    file.seek(0)
    for magic, packer in _PACKED.items():
        if start.startswith(magic):
            raise DamagedTarError(f"compressed with {packer}: unpack it to a plain .tar file")
    offset = 0
    try:
        tar = tarfile.open(fileobj=file, mode="r:", encoding="utf-8")  # noqa: SIM115 - does not own the file
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if info.size < 0 or info.offset < offset or (size is not None and info.offset_data + info.size > size):
                raise DamagedTarError(f"cut off or damaged from byte {info.offset} on")
            offset = info.offset + 1
            found.add(info, file)
        offset = tar.offset
    except DamagedTarError:
        raise
    except _DAMAGE as error:
        why = str(error) or type(error).__name__
        raise DamagedTarError(f"cut off or damaged from byte {offset // _BLOCK * _BLOCK} on ({why})") from error
    _check_end(file, offset)
    return found.result()


def _check_end(file: BinaryIO, offset: int) -> None:
    """tarfile takes any rubbish between members, and a missing rest, for the end."""
    file.seek(offset)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK:
        raise DamagedTarError(f"cut off at byte {offset + len(mark)}: the mark of the end is missing")
    if any(mark):
        raise DamagedTarError(f"damaged from byte {offset} on")
    if any(file.read(_BEHIND)):
        raise DamagedTarError(f"goes on behind the mark of its end at byte {offset}: two archives in one file?")


class _Samples:
    """Members by sample, as they come."""

    def __init__(self, choice: Choice, look: bool) -> None:
        self.choice, self.look = choice, look
        self.images: dict[str, list[tuple[str, int, int]]] = {}  # key: name, offset, size
        self.labels: dict[str, dict[str, bytes | None]] = {}  # key: ending: contents, None if too large
        self.seen: set[str] = set()
        self.headers: dict[tuple[Any, ...], int] = {}
        self.header: dict[int, int | str] = {}  # of the image at an offset
        self.problems: list[str] = []
        self.ignored: Counter[str] = Counter()

    def add(self, info: tarfile.TarInfo, file: BinaryIO) -> None:
        name = info.name
        why = _refused(info)
        if why:
            self.problems.append(f"{ascii(name)[1:-1]}: {why}")
            return
        if info.isdir():
            return
        while name.startswith("./"):
            name = name[2:]
        folder, base = posixpath.split(name)
        stem, dot, ending = base.partition(".")
        if not stem or not dot or _META.match(name):
            self.ignored["member that belongs to no sample"] += 1
            return
        key, ending = posixpath.join(folder, stem), ending.lower()
        full = f"{key}.{ending}"
        if full in self.seen:
            self.problems.append(f"{name}: occurs twice")
            return
        self.seen.add(full)
        if self.choice.is_image(ending):
            if info.size > LARGEST:
                self.problems.append(f"{name}: {info.size:,} bytes, more than {LARGEST // 2**20} MiB")
            self.images.setdefault(key, []).append((name, info.offset_data, info.size))
            if self.look and info.size <= LARGEST:
                self._look_at(info, file)
        elif self.choice.is_label(ending):
            data = _contents(info, file) if info.size <= LARGEST_LABEL else None
            self.labels.setdefault(key, {})[ending] = data
        else:
            self.ignored[f"file ending in .{ending}"] += 1

    def _look_at(self, info: tarfile.TarInfo, file: BinaryIO) -> None:
        try:
            header = read_header(BytesIO(_contents(info, file)))
        except UnusableImageError as error:
            self.header[info.offset_data] = str(error)
        else:
            values = (*header.size, header.mode, header.grey)
            self.header[info.offset_data] = self.headers.setdefault(values, len(self.headers))

    def result(self) -> dict[str, Any]:
        rows: list[tuple[str, int, int, str]] = []
        for key, images in self.images.items():
            if len(images) > 1:
                endings = ", ".join(posixpath.basename(name).partition(".")[2] for name, *_ in images)
                self.problems.append(f"{key}: several images ({endings}): say which by ?image=ENDING")
                continue
            (name, offset, size), *_ = images
            try:
                rows.append((name, offset, size, _label(self.labels.pop(key, {}), self.choice)))
            except ValueError as error:
                self.problems.append(f"{name}: {error}")
        for key, labels in self.labels.items():
            if key not in self.images and "cls" in labels:
                self.problems.append(f"{key}: a label and no image")
            elif key not in self.images:
                self.ignored[f"file ending in .{next(iter(labels))}"] += 1
        columns = zip(*rows, strict=True) if rows else ((), (), (), ())
        result: dict[str, Any] = dict(zip(("names", "offsets", "sizes", "labels"), map(list, columns), strict=True))
        if self.look:
            result["headers"] = [list(values) for values in self.headers]
            result["header"] = [self.header[offset] for offset in result["offsets"]]
        return {**result, "problems": self.problems, "ignored": dict(self.ignored)}


def _refused(info: tarfile.TarInfo) -> str:
    """Why a member is not taken; "" if it may be."""
    name = info.name
    if not is_plain_text(name):
        return "a name with control characters, or not valid UTF-8"
    if name.startswith("/") or ".." in name.split("/"):
        return "a name that leads out of the archive"
    if info.isdir():
        return ""
    if info.issym() or info.islnk():
        return "a link"
    if info.issparse() or not info.isreg():
        return "a sparse file" if info.issparse() else "neither a file nor a folder"
    return ""


def is_plain_text(text: str) -> bool:
    """Whether `text` can be written as UTF-8 and has no control characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


def _contents(info: tarfile.TarInfo, file: BinaryIO) -> bytes:
    file.seek(info.offset_data)
    data = file.read(info.size)
    if len(data) < info.size:
        raise DamagedTarError(f"cut off at byte {info.offset_data + len(data)}")
    return data


def _label(files: dict[str, bytes | None], choice: Choice) -> str:
    """The label of a sample as text.

    Raises:
        ValueError: it has none, or one that is no label.
    """
    plain = next((ending for ending in ("cls", "txt") if ending in files), None)
    ending = plain or ("json" if "json" in files else None)
    if ending is None:
        raise ValueError("no label")
    data = files[ending]
    if data is None:
        raise ValueError(f".{ending} has more than {LARGEST_LABEL // 2**20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f".{ending} is not valid UTF-8") from None
    if ending == "json":
        text = _from_json(text, ("label", "cls") if choice.label is None else (choice.label,))
    text = text.strip()
    if not text:
        raise ValueError("an empty label")
    if len(text) > LONGEST_LABEL or not is_plain_text(text):
        raise ValueError(f"a label of several lines, of control characters or of more than {LONGEST_LABEL} characters")
    return text


def _from_json(text: str, keys: tuple[str, ...]) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(".json cannot be read") from None
    if not isinstance(value, dict):
        raise ValueError(".json is no object with keys")
    for key in keys:
        if key in value:
            label = value[key]
            if isinstance(label, float) and label.is_integer():
                label = int(label)
            if isinstance(label, bool) or not isinstance(label, int | str):
                raise ValueError(f"the value of {key!r} in .json is neither an integer nor text")
            return str(label)
    has = ", ".join(map(repr, list(value)[:10]))
    raise ValueError(f"no label: .json has no {' and no '.join(map(repr, keys))}, but {has[:200] or 'nothing'}")
