"""A run's log, one JSON object per line, cut back to the checkpoint on resume; and trackers, which get every line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.files import write_text

#: prefixes of a training log's columns: a term's share of the gradient, and its cosine with that of the base loss
SHARE, COSINE = "share/", "cosine/"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All complete lines of `path` up to one that is no JSON object, as where a crash cut it; [] without a file."""
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


#: variables by which trackers that would send things away keep them here, and the values; one that is set is kept
LOCAL = {
    "wandb": ("WANDB_MODE", "offline"), "clearml": ("CLEARML_OFFLINE_MODE", "1"), "swanlab": ("SWANLAB_MODE", "local"),
    "comet_ml": ("COMET_START_ONLINE", "0"),
}  # fmt: skip


class JsonLog:
    """Appends rows to a JSONL file.

    Args:
        also: called with each row: `Trackers.log`.
    """

    def __init__(self, path: Path, also: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self.path, self.also = Path(path), also

    def cut(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Rewrites the file with the leading rows for which `keep` holds."""
        if self.path.exists():
            rows = list(takewhile(keep, read_jsonl(self.path)))
            self.restore(rows)

    def restore(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rewrites the file with `rows`."""
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def write(self, **row: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row, allow_nan=False) + "\n")
        if self.also is not None:
            self.also(row)


class Trackers:
    """accelerate's trackers, such as tensorboard and wandb, of one run. Used from the main thread of the first process.

    Nothing leaves the machine unless the user's environment says so, such as ``WANDB_MODE=online``. They start with the
    first row: accelerate's own state, which the trainer makes, has to be there before.

    Args:
        names: of `accelerate.tracking`.
        title: of the run.
        folder: for those that write files.
        options: what the run was made with, flat.
    """

    def __init__(self, names: Sequence[str], title: str, folder: Path, options: Mapping[str, Any]) -> None:
        self.names, self.title, self.folder = tuple(names), title, folder
        self.options = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in options.items()}
        self.open: list[Any] = []

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.names:
            if name in LOCAL:
                os.environ.setdefault(*LOCAL[name])
            kind = _known()[name]
            place = {"logging_dir": self.folder} if kind.requires_logging_directory else {}
            tracker = kind(self.title, **place)
            if hasattr(tracker, "start"):
                tracker.start()
            tracker.store_init_configuration(self.options)
            self.open.append(tracker)

    def log(self, row: Mapping[str, Any], prefix: str = "") -> None:
        """Sends the numbers of a row, by the images seen, their names behind `prefix`."""
        if not self.open:
            self._start()
        numbers = {k: v for k, v in row.items() if isinstance(v, int | float) and k not in ("images", "step")}
        values = {prefix + name: value for name, value in numbers.items()}
        for tracker in self.open:
            tracker.log(values, step=int(row["images"]))

    def close(self) -> None:
        for tracker in self.open:
            tracker.finish()


def _known() -> Mapping[str, Any]:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    return LOGGER_TYPE_TO_CLASS


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that accelerate does not know, or whose package is not installed.

    Raises:
        ConfigError: with the names that there are, or what to install.
    """
    if not names:
        return
    from accelerate.tracking import get_available_trackers

    for name in names:
        if name not in _known():
            raise ConfigError(f"unknown tracker {name!r}", f"choose some of {', '.join(_known())}")
        if name not in {str(getattr(found, "value", found)) for found in get_available_trackers()}:
            install = f"pip install 'imbalanced-diffusion[track]' (tensorboard, wandb), or pip install {name}"
            raise ConfigError(f"the package of the tracker {name} is not installed", install)
