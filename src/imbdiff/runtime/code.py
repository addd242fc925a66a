"""Code that is run because a name says so: ``module:PACKAGE.MODULE:NAME``.

A command runs what was typed on its command line, and what stands in a run folder that this user made by typing it. A
name in any other file, such as another person's run folder or configuration, is refused unless ``--allow-code`` is
given. A program that uses this package runs what it is given.
"""

from __future__ import annotations

import hmac
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from imbdiff.runtime.errors import ConfigError, ImbdiffError
from imbdiff.runtime.files import write_text

T = TypeVar("T")
PREFIX = "module:"
SEAL = ".allowed"
"""The file by which a folder shows that its user has allowed what it names."""
IMPORTED: set[str] = set()
"""Files of the modules that were imported by name."""
_ALLOWED: list[set[str]] = []
"""Of the command that runs, the names that may be imported; empty: any, as in a program."""
_NAMED_IN: dict[str, Path] = {}


def code_in(text: str) -> set[str]:
    """The names of code in a text, such as a word of the command line or a YAML file."""
    return {word for word in re.split(r"[\s+?,'\"\[\]{}=]+", text) if word.startswith(PREFIX)}


@contextmanager
def only_typed(words: Iterable[str], anything: bool = False) -> Iterator[None]:
    """Within it code may be imported that `words` name, or a folder of this user; or `anything`."""
    _ALLOWED.extend([] if anything else [{name for word in words for name in code_in(word)}])
    try:
        yield
    finally:
        _ALLOWED.clear()


def check_allowed(name: str, what: str) -> None:
    """Refuses code that a file names.

    Raises:
        ConfigError: names it, and the file; `what` it is used for stands in front.
    """
    if any(name not in allowed for allowed in _ALLOWED):
        place = f", named in {_NAMED_IN[name]}," if name in _NAMED_IN else ""
        raise ConfigError(
            f"{what}: {name!r}{place} is code, which would be run",
            "if you trust it, repeat the command with --allow-code",
        )


def found_in(file: Path, text: str) -> None:
    """Notes for `check_allowed` what code the text of a file names; allows it where the seal beside the file fits."""
    names = code_in(text)
    _NAMED_IN.update(dict.fromkeys(names, file))
    seal = file.with_name(SEAL)
    if names and seal.is_file() and hmac.compare_digest(seal.read_bytes(), _seal(names)):
        for allowed in _ALLOWED:
            allowed.update(names)


def seal_beside(file: Path, text: str) -> None:
    """Where all the code that the text of a file names is allowed, writes the seal that allows it from now on."""
    names = code_in(text)
    if names and all(names <= allowed for allowed in _ALLOWED):
        with suppress(OSError, RuntimeError):
            write_text(file.with_name(SEAL), _seal(names).decode())


def _seal(names: set[str]) -> bytes:
    """What only the holder of a user's key can make; the key is made where there is none.

    Nothing fits where no key can be kept."""
    place = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "imbdiff" / "key"
    try:
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            own = partial(os.open, mode=0o600)
            with suppress(FileExistsError), open(place, "xb", opener=own) as handle:
                handle.write(os.urandom(32))
        key = place.read_bytes()
    except (OSError, RuntimeError):
        key = b""
    key = key if len(key) == 32 else os.urandom(32)
    return hmac.new(key, "\n".join(sorted(names)).encode(), "sha256").hexdigest().encode()


def called(name: str, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """What a function from outside returns.

    Raises:
        ConfigError: it failed.
    """
    try:
        return function(*arguments, **options)
    except ImbdiffError:
        raise
    except Exception as error:  # whatever it raises
        told = f"{name} failed: {type(error).__name__}: {error}"
        raise ConfigError(told, "correct the function, or the options that it is called with") from error


def failed_outside(error: BaseException) -> ConfigError | None:
    """What to say of an error that was raised in a module that was imported by name; None for any other."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in IMPORTED]
    if not frames:
        return None
    place = f"{frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}"
    return ConfigError(f"{place}: {type(error).__name__}: {error}", "correct it, and repeat the command")
