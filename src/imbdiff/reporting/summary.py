"""What the main numbers say, in a sentence for each question that a newcomer asks; no more than the intervals allow."""

from __future__ import annotations

from dataclasses import dataclass

from imbdiff.metrics.measures import METRICS, QUESTIONS
from imbdiff.reporting.measured import Measured, Record, kind_of, short_name, texts
from imbdiff.reporting.text import clean, number

SIMILAR = 1.1
"""Sizes of two sets up to this ratio count as equal for numbers that depend on n."""


@dataclass(frozen=True)
class Saying:
    """A question and its answer."""

    question: str
    answer: str


def sayings(measured: Measured) -> list[Saying]:
    """At most four answers, each about all classes and about the rarest group, from the main extractor's numbers."""
    made = []
    for question, kinds in QUESTIONS:
        kind = next((k for k in kinds if _known(measured.number(k, "all"))), None)
        if kind is None:
            if any(measured.number(k, "all") for k in kinds):
                made.append(Saying(question, "There are too few images to say; the notes below say what is needed."))
            continue
        parts = [_about(measured, kind, "all")]
        rare = measured.rarest
        if rare != "all":
            parts.append(_about(measured, kind, rare))
        made.append(Saying(question, " ".join(part for part in parts if part)))
    return made


def _known(record: Record | None) -> bool:
    return record is not None and not record.get("refused") and record.get("value") is not None


def _about(measured: Measured, kind: str, scope: str) -> str:
    """A sentence with the interval, and how the number stands to that of real images."""
    record, yard = measured.number(kind, scope), measured.yardstick(kind, scope)
    if record is None:
        return ""
    where = "" if scope == "all" else f"In the {clean(scope)} group "
    if not _known(record):
        return f"{where}there are too few images to say."
    means = METRICS[kind].means
    if scope == "all":
        lead = f"{_with_interval(record)} {means}" if means else f"{short_name(record)}: {_named(record)}"
    else:
        lead = f"{where}it is {_with_interval(record)}"
    return f"{lead}{_against(kind, record, yard)}."


def _named(record: Record) -> str:
    what = kind_of(record).what
    return f"{_with_interval(record)}" + (f" ({what})" if what else "")


def _with_interval(record: Record) -> str:
    value, between = texts(record)
    return f"{value} ({between})" if between else value


def _against(kind: str, record: Record, yard: Record | None) -> str:
    """How the number stands to that of real images: a difference is claimed only where the intervals are apart."""
    if kind == "diversity":
        return _against_one(record)
    if yard is None:
        return ""
    who = METRICS[kind].baseline
    if not _known(yard):
        return f"; of {who} there are too few for this number"
    said = _with_interval(yard)
    n = [max(1, int(r.get("n_synthetic") or 0)) for r in (record, yard)]
    if METRICS[kind].by_n and max(n) > SIMILAR * min(n):
        return f"; {number(n[1])} {who}: {said}, a rough yardstick, as this number depends on n"
    low, high = record.get("low"), record.get("high")
    if None in (low, high, yard.get("low"), yard.get("high")):
        return f"; {who}: {said}"
    if high < yard["low"]:
        return f", lower than the {said} of {who}"
    if low > yard["high"]:
        return f", higher than the {said} of {who}"
    return f", not clearly different from the {said} of {who}"


def _against_one(record: Record) -> str:
    low, high = record.get("low"), record.get("high")
    if low is None or high is None:
        return ""
    if high < 1:
        return ", less varied than real images of a class (1)"
    if low > 1:
        return ", further apart than real images of a class (1), which noise brings about too"
    return ", not clearly different from real images of a class (1)"
