"""Progress with speed and time left: rich's bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    s = round(seconds)
    if s < 3600:
        return f"{s} s" if s < 60 else f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"


SHORT = 2.0
"""Seconds of work from which its end is worth a line."""


class Timer:
    """Seconds that a `with` block took."""

    seconds = 0.0

    def __enter__(self) -> Timer:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.monotonic() - self._began


class Progress:
    """Counts towards `total`; use as a context manager.

    Args:
        what: shown in front, such as "train".
        total: the count at the end.
        unit: what is counted, such as "images".
        start: the count at the beginning (a resumed run); speed is measured from here.
        quiet: shows nothing (processes other than the first, tests).
        every: seconds between lines where the output is no terminal.
        interludes: how often other work is done in between, see :meth:`interlude`: the time left counts it.
    """

    _display: Any = None  # of all open bars: rich shows one display at a time

    def __init__(
        self,
        what: str,
        total: int,
        unit: str = "images",
        *,
        start: int = 0,
        quiet: bool = False,
        every: float = 15.0,
        interludes: int = 0,
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, start
        self.start, self.quiet, self.every = start, quiet, every
        self.note = ""
        self.interludes, self._other, self._others = interludes, 0.0, 0
        self._task: Any = None
        self._shown = -1
        self._began = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        self._began = self._last = time.monotonic()
        if not self.quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Display

            if Progress._display is None:
                Progress._display = Display(
                    BarColumn(24), TextColumn("{task.description}", markup=False),
                    console=Console(stderr=True), redirect_stdout=sys.stdout.isatty(),
                )  # fmt: skip
                Progress._display.start()
            self._task = Progress._display.add_task(self.line, total=self.total, completed=self.done)
        return self

    @property
    def line(self) -> str:
        speed = (self.done - self.start) / max(time.monotonic() - self._began - self._other, 1e-9)
        pace = f"{speed:,.0f} {self.unit}/s" if speed >= 10 else f"{speed:.2g} {self.unit}/s"
        if 0 < speed < 0.2:
            pace = f"{duration(1 / speed)} each"
        text = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {pace}"
        if self.start < self.done < self.total:
            others = max(0, self.interludes - self._others) * self._other / max(1, self._others)
            text += f", {duration((self.total - self.done) / speed + others)} left"
        return text + (f", {self.note}" if self.note else "")

    def update(self, done: int, note: str = "") -> None:
        """Sets the count; shows it if it is time to."""
        self.done, self.note = done, note or self.note
        now = time.monotonic()
        if not self.quiet and now - self._last >= (0.2 if self._task is not None else self.every):
            self._last = now
            self._show()

    @contextmanager
    def interlude(self, what: str) -> Iterator[None]:
        """Other work in between, which is announced; the speed does not count it, the time left does."""
        note, began = self.note, time.monotonic()
        self.note = what
        if not self.quiet:
            self._show()
        try:
            yield
        finally:
            self.note = note
            self._other += time.monotonic() - began
            self._others += 1
            self._last = time.monotonic() if self._task is None else self._last

    def _show(self) -> None:
        self._shown = self.done
        if self._task is not None:
            Progress._display.update(self._task, total=self.total, completed=self.done, description=self.line)
        else:
            sys.stderr.write(self.line + "\n")
            sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        took = time.monotonic() - self._began
        told = self._task is None and self._shown == self.done  # the last line says it already
        if (
            not (self.quiet or told)
            and self.done > self.start
            and (self._task is not None or took >= min(self.every, SHORT))
        ):
            self._show()
        if self._task is not None:
            Progress._display.stop_task(self._task)
            if all(task.stop_time is not None for task in Progress._display.tasks):
                Progress._display.stop()
                Progress._display = None


class PartProgress:
    """Called with (what is being done, how much is done, how much there is): shows a bar or line for each part."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self._what, self._bar = quiet, "", Progress("", 1, quiet=True)

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            unit = "images" if "features" in what else "parts"
            self._what, self._bar = what, Progress(what, total, unit, quiet=self.quiet).__enter__()
        self._bar.update(done)
        if done >= total:
            self._bar.__exit__(None)
