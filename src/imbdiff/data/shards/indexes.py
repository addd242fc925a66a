"""What was found out about something large, kept beside the cache so that it is found out once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from imbdiff.data.cache import default_folder
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest, write_text


def place_of(key: Any) -> Path:
    """The file that belongs to `key`, any JSON value: all that the contents depend on."""
    return default_folder() / "indexes" / f"{digest(key)[:32]}.json"


def recall(key: Any) -> dict[str, Any] | None:
    """What was kept under `key`; None where there is nothing or it is damaged."""
    try:
        head, _, text = place_of(key).read_text(encoding="utf-8").partition("\n")
        if head != _digest(text):
            return None
        found = json.loads(text)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def remembered(key: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was kept under `key`, or what `make` gives, which is kept. JSON values only."""
    found = recall(key)
    return keep(key, make()) if found is None else found


def keep(key: Any, value: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(value, ensure_ascii=False)
    with suppress(OSError, RunError):  # a full or write-protected disk: it is found out again the next time
        write_text(place_of(key), f"{_digest(text)}\n{text}")
    return value


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
