"""A run's log: one JSON object per line, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imbdiff.runtime.files import write_text

#: prefixes of a training log's columns: a term's share of the gradient, and its cosine with that of the base loss
SHARE, COSINE = "share/", "cosine/"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All complete lines of `path`; a last line that a crash cut short is left out. [] if there is no file."""
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class JsonLog:
    """Appends rows to a JSONL file."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def cut(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrites the file with the leading rows for which `keep` holds."""
        if not self.path.exists():
            return
        kept = []
        for row in read_jsonl(self.path):
            if not keep(row):
                break
            kept.append(json.dumps(row) + "\n")
        write_text(self.path, "".join(kept))

    def write(self, **row: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")
