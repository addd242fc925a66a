"""The numbers of an evaluation as the page and the terminal show them: by metric, group, extractor and reference."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from imbdiff.data.names import counted
from imbdiff.metrics.measures import METRICS, Metric
from imbdiff.metrics.numbers import Direction, Number, Origin
from imbdiff.reporting.text import NOTHING, estimate, number

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

ARROWS = {"higher": "↑", "lower": "↓", "nearer 1": "→ 1"}
SMALL = "†"

K = TypeVar("K")


def best_of(values: Mapping[K, float], direction: Direction) -> list[K]:
    """Those with the best of two or more values; none where no direction is better."""
    if len(values) < 2 or direction == "none":
        return []
    ranks: dict[str, Callable[[float], float]] = {
        "higher": lambda v: -v,
        "lower": float,
        "nearer 1": lambda v: abs(v - 1),
    }
    rank = {key: ranks[direction](value) for key, value in values.items()}
    return [key for key, place in rank.items() if place == min(rank.values())]


def metric_of(origin: Origin) -> Metric:
    """Its row of the table; of a user's own measure a row of its own, among the lesser numbers."""
    return METRICS.get(origin.metric) or Metric(origin.metric, origin.direction)


def heading(origin: Origin, name: str = "") -> str:
    """Its name, and which way is better."""
    return f"{name or origin.short} {ARROWS.get(origin.direction, '')}".rstrip()


def printed(n: Number) -> tuple[str, str]:
    """Value and interval."""
    return estimate(n.value, n.low, n.high, metric_of(n).decimals)


def with_interval(n: Number) -> str:
    value, between = printed(n)
    return f"{value} ({between})" if between else value


def counts_of(n: Number) -> str:
    """How many images went into it."""
    text = f"{number(n.n_synthetic)} images"
    text += f" against {number(n.n_reference)}" if n.n_reference else ""
    text += f", effective n {number(round(n.n_effective))}" if n.n_effective else ""
    return text + (f", {counted(n.classes_left_out, 'class', 'classes')} left out" if n.classes_left_out else "")


@dataclass(frozen=True)
class GroupTable:
    """The numbers of one extractor against one reference.

    Attributes:
        judge: any of its numbers.
        scopes: "all", then groups.
        images: fingerprint of the reference images.
        own, real: by (metric, scope), of the synthetic images and of real ones (the baseline).
    """

    judge: Number
    reference: str
    scopes: tuple[str, ...]
    images: str
    own: Mapping[tuple[str, str], Number]
    real: Mapping[tuple[str, str], Number]

    def metrics(self, main: bool) -> list[str]:
        """The metrics that matter most, or the others, in the order of their table; a user's own come last."""
        found = dict.fromkeys(metric for metric, _ in self.own)
        return [m for m in (*METRICS, *(m for m in found if m not in METRICS))
                if m in found and (m in METRICS and METRICS[m].main) is main]  # fmt: skip

    def head(self, metric: str) -> Number:
        """Any number of the metric."""
        return next(self.own[metric, scope] for scope in self.scopes if (metric, scope) in self.own)

    def printable(self, main: bool) -> list[str]:
        """Those of :meth:`metrics` that some scope has a value of: one refused everywhere is a note, not a column."""
        return [m for m in self.metrics(main) if any(
            (m, s) in found and not found[m, s].refused for s in self.scopes for found in (self.own, self.real)
        )]  # fmt: skip

    @property
    def notes(self) -> list[str]:
        """What the reader must know of all numbers of the table."""
        notes = []
        if any(n.extra.get("small_sample") for n in (*self.own.values(), *self.real.values())):
            notes.append(f"{SMALL} Extrapolated from fewer images than FD asks for; read its interval.")
        if self.judge.ranking_only:
            notes.append("This extractor did not learn from images like these: its numbers rank generators, no more.")
        if any(n.judge_saw_reference for n in self.own.values()):
            notes.append("The extractor was trained on these reference images, which flatters whatever is like them.")
        return notes

    def most(self, scope: str) -> tuple[int, int]:
        """The largest numbers of images, synthetic and reference, that any number of the scope took."""
        own = [n for (metric, s), n in self.own.items() if s == scope and metric != "CAS"]
        return max((n.n_synthetic for n in own), default=0), max((n.n_reference for n in own), default=0)

    def counts(self, scope: str) -> str:
        return " / ".join(map(number, self.most(scope)))


@dataclass(frozen=True)
class Measured:
    """The numbers of one evaluation.

    Attributes:
        found: what `imbdiff.metrics.evaluate.evaluate` gave.
        tables: the extractors that may judge quality before those that only rank; of each the reference that the
            synthetic images were compared with first, before others such as the training set.
    """

    found: Mapping[str, Any]
    tables: tuple[GroupTable, ...]

    @classmethod
    def of(cls, found: Mapping[str, Any] | None) -> Measured | None:
        """None where there are no numbers."""
        numbers = [Number.from_json(row) for row in (found or {}).get("numbers") or ()]
        if found is None or not numbers:
            return None
        baselines = [Number.from_json(row) for row in found.get("baselines") or ()]
        own = [n for n in numbers if not metric_of(n).alone and n.metric != "CAS"] or numbers
        protocol = found.get("protocol") or {}
        first = protocol.get("reference") or own[0].reference
        fingerprints = protocol.get("fingerprints") or {}
        judges = sorted({n.fingerprint: n for n in own}.values(), key=lambda n: n.ranking_only)
        references = sorted(dict.fromkeys(n.reference for n in own), key=lambda name: name != first)
        scopes = tuple(dict.fromkeys(n.scope for n in numbers))

        def part(rows: Iterable[Number], judge: Number, reference: str) -> dict[tuple[str, str], Number]:
            """What needs no reference belongs to the first; CAS, which has no extractor, to the main one."""
            return {
                (n.metric, n.scope): n for n in rows
                if (judges[0] if n.metric == "CAS" else n).fingerprint == judge.fingerprint
                and (references[0] if metric_of(n).alone else n.reference) == reference
            }  # fmt: skip

        tables = (
            GroupTable(
                judge, reference, scopes, str(fingerprints.get("train" if reference == "train" else "reference")),
                part(numbers, judge, reference), part(baselines, judge, reference),
            )
            for judge in judges for reference in references
        )  # fmt: skip
        return cls(found, tuple(table for table in tables if table.own))

    @property
    def main(self) -> GroupTable:
        return self.tables[0]


def reasons(refused: Sequence[Number]) -> list[str]:
    """Why numbers are not printed, in sentences; reasons that differ in their numbers alone are one sentence."""
    found: dict[str, list[Number]] = {}
    for n in refused:
        found.setdefault(re.sub(r"\d+(?:,\d{3})*(?:\.\d+)?", "#", n.refused or ""), []).append(n)
    sentences = []
    for same in found.values():
        metrics, scopes = (list(dict.fromkeys(getattr(n, key) for n in same)) for key in ("short", "scope"))
        likewise = f"; likewise {', '.join(scopes[1:])}" if len(scopes) > 1 else ""
        sentences.append(f"{', '.join(metrics)}: {same[0].refused} ({scopes[0]}{likewise}).")
    return sentences


def numbers_table(found: Mapping[str, Any]) -> Table | Text | None:
    """For the terminal, of what `evaluate` gave: the main numbers of the main extractor, next to those of real images.

    None where there are no numbers; where all are refused, why. All else is on the page.
    """
    from rich.table import Table
    from rich.text import Text

    measured = Measured.of(found)
    if measured is None:
        return None
    table = measured.main
    if not table.printable(main=True):
        why = reasons([n for (metric, _), n in table.own.items() if n.refused and metric_of(n).main])
        return Text("\n".join(["No number is printed: the sample sizes support none.", *why]))
    title = Text(f"{table.judge.extractor} against {table.reference}")
    made = Table(title=title, title_justify="left", caption_justify="left", min_width=72)
    made.add_column("number", no_wrap=True)
    for scope in table.scopes:
        made.add_column(Text(f"{scope}\n{table.counts(scope)}"), justify="right")
    if table.real:
        made.add_column("real images\n(all)", justify="right", style="dim")
    for metric in table.printable(main=True):
        cells = [Text(heading(table.head(metric)))]
        for n in (table.own.get((metric, scope)) for scope in table.scopes):
            value = NOTHING if n is None else "refused" if n.refused else "\n".join(filter(None, printed(n)))
            cells.append(Text(value))
        if table.real:
            real = table.real.get((metric, "all"))
            cells.append(Text(NOTHING if real is None else printed(real)[0]))
        made.add_row(*cells)
    made.caption = Text("\n".join(table.notes))
    return made
