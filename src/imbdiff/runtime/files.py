"""Files are written aside and renamed: a reader sees the old file or the whole new one, never a part."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imbdiff.runtime.errors import ConfigError, RunError

UMASK = os.umask(0)
os.umask(UMASK)

CHECKSUM = "checksum"


@contextlib.contextmanager
def atomic(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yields a path next to `path` to write to; renames it to `path` when the block ends without error.

    `sync` forces the bytes onto the disk first, for a power cut; a killed process is safe either way.

    Raises:
        RunError: the disk is full. The part written is removed and what stood at `path` before is untouched.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        for file in [aside] if aside.is_file() else aside.rglob("*"):
            if file.is_file():  # safetensors gives weights to their owner alone, whatever the umask says
                file.chmod(0o666 & ~UMASK)
        if sync and aside.is_file():
            with open(aside, "rb") as handle:
                os.fsync(handle.fileno())
        os.replace(aside, path)
    except BaseException as error:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink(missing_ok=True)
        if is_disk_full(error):
            raise RunError(
                f"no space left while writing {path}; what stood there before is unchanged",
                "free some space and repeat the same command: it continues from the last complete file",
            ) from error
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number and isinstance(error, Exception) and not isinstance(error, OSError):  # as of safetensors
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` means that the disk or quota is full, also where a library wrapped it in its own type."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left on device" in str(error)


def check_free(place: Path, replace: bool, option: str = "--out") -> None:
    """Refuses a file that is there, before the work for it begins.

    Args:
        place: the file that `option` names.
        replace: it may be replaced.

    Raises:
        ConfigError: it is a folder.
        RunError: it is there, and may not be replaced.
    """
    if place.is_dir():
        raise ConfigError(f"{option} {place} is a folder", f"give a file: {option} {place / 'new'}")
    if place.exists() and not replace:
        raise RunError(f"{place} is there already", f"give another {option}, or --replace to replace it")


def write_bytes(path: Path, data: bytes) -> None:
    with atomic(path) as aside:
        aside.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON. NaN and infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a checksum of itself, which `read_json` compares and takes away."""
    return {**value, CHECKSUM: digest(json.loads(json.dumps(value)))}


def unsealed(found: dict[str, Any]) -> dict[str, Any]:
    """What `sealed` was given; an object without checksum as it is. ValueError: they do not match."""
    if CHECKSUM in found and found.pop(CHECKSUM) != digest(found):
        raise ValueError("it was altered: its checksum is of other content")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        RunError: the file is missing, is not JSON, holds something else, or has a checksum that it does not match.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"an object is expected, not {str(found)[:20]!r}")
        return unsealed(found)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", "run the stage that writes it first") from error
    except IsADirectoryError as error:
        raise RunError(f"{path} is a folder", "move it away and repeat the command that writes this file") from error
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}", "remove it and repeat the command that wrote it") from error


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Refuses a record that has been read and of which nothing can be made within.

    Raises:
        RunError: something in it is missing, or of another type.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = f"{type(error).__name__} {error}"
        raise RunError(f"{path} is damaged: {what}", "remove it and repeat the command that wrote it") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: it is missing, is not YAML, or is not a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist", "give the path of a YAML file") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}", "give the path of a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not YAML: {error}", "correct it") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of options", "such as `train: {images: 100000}`")
    return values


def sha256_file(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest(value: Any) -> str:
    """A hash of any JSON value; equal values give equal hashes, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
