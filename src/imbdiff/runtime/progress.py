"""Progress with speed and time left: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"


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
    """

    def __init__(
        self, what: str, total: int, unit: str = "images", *, start: int = 0, quiet: bool = False, every: float = 15.0
    ) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, start
        self.start, self.quiet, self.every = start, quiet, every
        self.note = ""
        self._terminal = sys.stderr.isatty()
        self._began = self._last = time.monotonic()

    def __enter__(self) -> Progress:
        self._began = self._last = time.monotonic()
        return self

    @property
    def speed(self) -> float:
        """Units per second since the start."""
        return (self.done - self.start) / max(time.monotonic() - self._began, 1e-9)

    @property
    def line(self) -> str:
        left = (self.total - self.done) / self.speed if self.done > self.start else float("nan")
        speed = f"{self.speed:,.0f}" if self.speed >= 10 else f"{self.speed:.2g}"
        text = f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {speed} {self.unit}/s"
        if left == left and self.done < self.total:
            text += f", {duration(left)} left"
        return text + (f", {self.note}" if self.note else "")

    def update(self, done: int, note: str = "") -> None:
        """Sets the count; shows it if it is time to."""
        self.done, self.note = done, note or self.note
        now = time.monotonic()
        if not self.quiet and now - self._last >= (0.2 if self._terminal else self.every):
            self._last = now
            self._show(end=False)

    def _show(self, *, end: bool) -> None:
        if self._terminal:
            width = 24
            full = int(width * min(self.done / max(self.total, 1), 1))
            bar = "█" * full + "·" * (width - full)
            sys.stderr.write(f"\r\x1b[2K{bar} {self.line}" + ("\n" if end else ""))
        else:
            sys.stderr.write(self.line + "\n")
        sys.stderr.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.quiet and self.done > self.start:
            self._show(end=True)
