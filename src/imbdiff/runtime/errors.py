"""Errors with a remedy.

Every error a user can cause names the value, class or file concerned and the remedy. The command line prints both
without a traceback and exits with status 2; anything else that is raised is a defect of this package.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class ImbdiffError(Exception):
    """A problem that the user can solve.

    Args:
        message: what is wrong, naming the value, class or file concerned; passwords in addresses are left out.
        remedy: what to do about it, as an instruction.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        self.message, self.remedy = (re.sub(r"(https?://)[^/@\s]+@", r"\1...@", text) for text in (message, remedy))
        super().__init__(f"{self.message}\n  -> {self.remedy}" if remedy else self.message)


class DataError(ImbdiffError):
    """Images, labels or class folders that cannot be used as they are."""


class ConfigError(ImbdiffError):
    """An option, preset or combination of options that makes no sense."""


class RunError(ImbdiffError):
    """A run folder, checkpoint or manifest that does not fit what was asked."""


class NonFiniteLossError(ImbdiffError):
    """The loss became NaN or infinite; nothing was updated with it."""


def listing(items: Iterable[object], limit: int = 20) -> str:
    """`items`, one per line, at most `limit` of them, with a count of those left out."""
    rows = [str(item) for item in items]
    text = "\n".join(f"  {row}" for row in rows[:limit])
    return text + (f"\n  ... and {len(rows) - limit} more" if len(rows) > limit else "")


def nearest(name: str, known: Iterable[str], otherwise: str, prefix: str = "", most: int = 1) -> str:
    """A remedy for an unknown name: the `most` nearest of those known, with what stands before them, or `otherwise`."""
    names = list(known)
    lower = {one.lower(): one for one in names}
    found = difflib.get_close_matches(name, names, n=most)
    found = found or [lower[one] for one in difflib.get_close_matches(name.lower(), lower, n=most)]
    near = [prefix + one for one in found]
    return f"did you mean {' or '.join(near)}?" if near else otherwise
