"""Did the synthetic images help? In a word, two accuracies and what to do next: for the page and for the terminal."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imbdiff.data.names import counted
from imbdiff.recognition.verdict import Comparison
from imbdiff.reporting.text import NOTHING, number, shorten

Found = Mapping[str, Any]
"""What `imbdiff.recognition.comparison.classify` gave, as JSON."""
RARE = {"helped": "better", "hurt": "worse", "no difference": "no difference shown"}


@dataclass(frozen=True)
class Answer:
    """The first thing to read.

    Attributes:
        word: "Yes", "No", "Not measured", or one of these and for whom.
        text: what was compared and what came out; `rare`: the same of the rarest classes, may be empty.
        measured: with how many trainings and test images.
        next: what to do; `command`: for that, may be empty.
        warnings: what casts doubt on it.
        accuracies: (what, with, without, what came out) of all classes and of the rarest.
    """

    word: str
    text: str
    rare: str
    measured: str
    next: str
    command: str
    warnings: tuple[str, ...]
    accuracies: tuple[tuple[str, str, str, str], ...]

    def lines(self) -> list[str]:
        """For the terminal, at most 5."""
        then = f"next: {self.next}" + (f": {self.command}" if self.command else "")
        lines = [f"{self.word}. {self.text}", self.rare, self.measured, *self.warnings[:1], then]
        return [line for line in lines if line]


def comparisons(rows: Mapping[str, Found]) -> dict[str, Comparison]:
    return {scope: Comparison(**row) for scope, row in rows.items()}


def arm_text(name: str) -> str:
    """The name of an arm for reading; of an ensemble how many networks it has and what some of them have more.

    `imbdiff predict --arm` takes the name itself."""
    found = re.fullmatch(r"(\d+) x (.+?) \+ (\d+) x (?:\((synthetic|repeated real) \+ \2\)|\2, (.+))", name)
    if found is None:
        return name
    n, base, more, images, other = found.groups()
    return f"{int(n) + int(more)} x {base}, {more} of them with {other or f'{images} images'}"


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def answer(found: Found, run: str) -> Answer | None:
    """The answer of a comparison; None where there were no synthetic images.

    Args:
        run: the run folder, for commands.
    """
    verdict, protocol = found["verdict"], found["protocol"]
    rows = comparisons(verdict["per_group"])
    if "all" not in rows:
        return None
    whole, last = rows["all"], protocol.get("rarest_group") or list(rows)[-1]
    rare = rows[last] if last != "all" and len(rows) > 2 else None
    n = protocol.get("n_synthetic")
    images = f"{number(n)} synthetic images" if n else "synthetic images"
    word, text = _outcome(whole, rare, images)
    names = "a classifier" if len(verdict["against"]) > 1 else f"“{arm_text(verdict['against'][0])}”"
    seeds = len(found["arms"][0]["runs"])
    measured = f"Measured with {counted(seeds, 'training')} of each, on {counted(whole.n, 'test image')}"
    measured += "." if seeds > 1 else "; the spread between trainings is not known."
    kept = found.get("kept") or []
    command = ""
    if whole.outcome == "not measured":
        then = verdict.get("remedy") or "see below what is missing"
        then = then.replace(" RUN ", f" {shlex.quote(run)} ")
    elif word.startswith("Yes"):
        then, command = "use the classifier that saw them", f"imbdiff predict {shlex.quote(run)} IMAGES"
    else:
        alone = f"“{arm_text(whole.against)}”" if whole.against else names
        then = f"use {alone}, trained on the real images alone"
        if whole.against in kept:
            command = f"imbdiff predict {shlex.quote(run)} IMAGES --arm {shlex.quote(str(whole.against))}"
        else:
            then += ", or try for better images: longer training (--train.images), or curation"
            command = f"imbdiff curate {shlex.quote(run)} --curate.policy agreement --replace"
    learned = found.get("learned") or {}
    warnings = [] if learned.get("lack") else [*learned.get("warnings", ())]
    warnings = [text.replace(" RUN", f" {shlex.quote(run)}") for text in warnings]
    shown = [("all classes", whole)] + ([(f"rare classes ({shorten(last, 24)})", rare)] if rare else [])
    table = tuple(
        (what, percent(row.accuracy), percent(row.without), _cell(row, whole))
        for what, row in shown if row.accuracy is not None
    )  # fmt: skip
    about = f"Rare classes ({shorten(last, 24)}): {_pair(rare)}{_said(rare, whole)}." if rare is not None else ""
    return Answer(word, text, about, measured, then, command, tuple(warnings), table)


def _outcome(whole: Comparison, rare: Comparison | None, images: str) -> tuple[str, str]:
    between = f": {_pair(whole)}" if whole.accuracy is not None else ""
    few = "no difference" if rare is None else rare.outcome
    if whole.outcome == "not measured":
        word = "Not measured"
        return word, f"{_capital(whole.reason or '')}." + (f" Accuracy{between}." if between else "")
    if whole.outcome == "helped":
        word = "Yes, but not for rare classes" if few == "hurt" else "Yes"
        return word, f"Adding {images} improved accuracy{between}."
    if whole.outcome == "hurt":
        return "No", f"Adding {images} lowered accuracy{between}."
    word = "Yes, for rare classes" if few == "helped" else "No"
    return word, f"Adding {images} made no difference over all classes that these test images can show{between}."


def _pair(row: Comparison) -> str:
    return f"{percent(row.accuracy)} with them, {percent(row.without)} without"


def _said(row: Comparison, whole: Comparison) -> str:
    if row.outcome == "not measured":
        return "" if row.reason == whole.reason else f"; not measured ({row.reason})"
    return f": {RARE[row.outcome]}"


def _cell(row: Comparison, whole: Comparison) -> str:
    """The reason of all classes stands above already."""
    if row.outcome == "not measured" and row.reason != whole.reason:
        return row.reason or row.outcome
    return RARE.get(row.outcome, row.outcome)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
