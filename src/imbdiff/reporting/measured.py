"""What metrics.json holds, as the page and the terminal show it: where a number belongs, and tables by group."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imbdiff.data.names import counted
from imbdiff.metrics.measures import METRICS, Metric
from imbdiff.metrics.numbers import Number, Origin
from imbdiff.reporting.text import MINUS, NOTHING, number

if TYPE_CHECKING:
    from rich.table import Table

ARROWS = {"higher": "↑", "lower": "↓", "nearer 1": "→ 1"}
SMALL = "†"
MAX_TERMINAL_NOTES = 4
LONG = 30
"""Characters from the first to the last number that differs, above which only the first of several is written."""
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


def metric_of(origin: Origin) -> Metric:
    """Its row of the table; of a user's own measure a row of its own, among the lesser numbers."""
    return METRICS.get(origin.metric) or Metric(origin.metric, origin.direction)


def heading(origin: Origin, name: str = "") -> str:
    """Its name, and which way is better."""
    return f"{name or origin.short} {ARROWS.get(origin.direction, '')}".rstrip()


def texts(value: float | None, low: float | None, high: float | None, decimals: int | None = None) -> tuple[str, str]:
    """A number and its interval ("0.05 to 0.20", or nothing), with equally many decimals: as many as its size asks."""
    known = [abs(x) for x in (value, low, high) if x is not None and math.isfinite(x)]
    size = max(known, default=0.0)
    if decimals is None:  # three digits of the largest, two where all are small
        decimals = min(8, max(0, (2 if size >= 0.1 else 1) - math.floor(math.log10(size)))) if size else 2

    def text(x: float | None) -> str:
        return NOTHING if x is None or not math.isfinite(x) else f"{x:,.{decimals}f}".replace("-", MINUS)

    return text(value), "" if low is None or high is None else f"{text(low)} to {text(high)}"


def printed(n: Number) -> tuple[str, str]:
    """:func:`texts` of a number."""
    return texts(n.value, n.low, n.high, metric_of(n).decimals)


def with_interval(n: Number) -> str:
    value, between = printed(n)
    return f"{value} ({between})" if between else value


def is_small_sample(n: Number) -> bool:
    return bool(n.extra.get("small_sample"))


def counts_of(n: Number) -> str:
    """How many images went into it."""
    text = f"{number(n.n_synthetic)} images"
    text += f" against {number(n.n_reference)}" if n.n_reference else ""
    text += f", effective n {number(round(n.n_effective))}" if n.n_effective else ""
    return text + (f", {counted(n.classes_left_out, 'class', 'classes')} left out" if n.classes_left_out else "")


@dataclass(frozen=True)
class Judge:
    """An extractor that numbers are made with."""

    name: str
    fingerprint: str
    ranking_only: bool


Key = tuple[str, str, str, str]
"""Metric, scope, fingerprint of the extractor, reference."""


@dataclass(frozen=True)
class Measured:
    """The numbers of one evaluation and those of real images (baselines), found by metric, scope, judge and reference.

    Attributes:
        found: what `imbdiff.metrics.evaluate.evaluate` gave.
        judges: extractors; those that may judge quality before those that only rank, otherwise in the order given.
        references: the one that the synthetic images were compared with first, before others such as the training set.
        scopes: "all", then groups.
    """

    found: Mapping[str, Any]
    judges: tuple[Judge, ...]
    references: tuple[str, ...]
    scopes: tuple[str, ...]
    _numbers: Mapping[Key, Number] = field(repr=False)
    _baselines: Mapping[Key, Number] = field(repr=False)

    @classmethod
    def of(cls, found: Mapping[str, Any] | None) -> Measured | None:
        """None where there are no numbers."""
        numbers = [Number.from_json(row) for row in (found or {}).get("numbers") or ()]
        if found is None or not numbers:
            return None
        baselines = [Number.from_json(row) for row in found.get("baselines") or ()]
        own = [n for n in numbers if not metric_of(n).alone and n.metric != "CAS"] or numbers
        judges = {n.fingerprint: Judge(n.extractor, n.fingerprint, n.ranking_only) for n in own}
        ordered = sorted(judges.values(), key=lambda judge: judge.ranking_only)
        references = list(dict.fromkeys(n.reference for n in own))
        first = str((found.get("protocol") or {}).get("reference") or "")
        references.sort(key=lambda name: name != first)

        def index(rows: Iterable[Number]) -> dict[Key, Number]:
            """What looks at no reference is found with the first; CAS, which has no extractor, with the main one."""
            made: dict[Key, Number] = {}
            for n in rows:
                reference = references[0] if metric_of(n).alone else n.reference
                judge = ordered[0].fingerprint if n.metric == "CAS" else n.fingerprint
                made.setdefault((n.metric, n.scope, judge, reference), n)
            return made

        scopes = tuple(dict.fromkeys(n.scope for n in numbers))
        return cls(found, tuple(ordered), tuple(references), scopes, index(numbers), index(baselines))

    @property
    def main(self) -> Judge:
        """The extractor whose numbers are shown first."""
        return self.judges[0]

    @property
    def rarest(self) -> str:
        """The group whose classes have the fewest training images on average; "all" where there are no groups."""
        classes = self.found.get("classes") or {}
        counts: dict[str, list[int]] = {}
        for group, n in zip(classes.get("group") or (), classes.get("n_train") or (), strict=False):
            counts.setdefault(str(group), []).append(int(n))
        groups = [scope for scope in self.scopes if scope != "all"]
        if not groups:
            return "all"
        return min(groups[::-1], key=lambda g: sum(counts[g]) / len(counts[g]) if g in counts else math.inf)

    def number(
        self, metric: str, scope: str, judge: Judge | None = None, reference: str | None = None
    ) -> Number | None:
        """That of the synthetic images, by default of the main extractor against the first reference."""
        return self._numbers.get((metric, scope, (judge or self.main).fingerprint, reference or self.references[0]))

    def baseline(
        self, metric: str, scope: str, judge: Judge | None = None, reference: str | None = None
    ) -> Number | None:
        """The same number of real images: the training images; for what looks at no reference, the reference images."""
        return self._baselines.get((metric, scope, (judge or self.main).fingerprint, reference or self.references[0]))

    def tables(self) -> list[GroupTable]:
        """The main extractor and the first reference first; extractors that only rank last."""
        pairs = [(judge, reference) for judge in self.judges for reference in self.references]
        return [table for pair in pairs if (table := GroupTable(self, *pair)).metrics]


@dataclass(frozen=True)
class GroupTable:
    """All numbers of one extractor against one reference, a row for each scope."""

    measured: Measured
    judge: Judge
    reference: str

    @property
    def metrics(self) -> list[str]:
        """Names of what there is, in the order of the table of metrics, unknown ones last."""
        found = dict.fromkeys(k[0] for k in self.measured._numbers if k[2:] == (self.judge.fingerprint, self.reference))
        order = [*METRICS, *found]
        return sorted(found, key=order.index)

    def own(self, metric: str, scope: str) -> Number | None:
        return self.measured.number(metric, scope, self.judge, self.reference)

    def real(self, metric: str, scope: str) -> Number | None:
        return self.measured.baseline(metric, scope, self.judge, self.reference)

    def every(self, *get: Callable[[str, str], Number | None]) -> list[Number]:
        return [
            n for one in get or (self.own,) for m in self.metrics for s in self.measured.scopes if (n := one(m, s))
        ]  # fmt: skip

    def part(self, main: bool) -> Part | None:
        """The numbers that matter, or the others."""
        chosen = [m for m in self.metrics if (m in METRICS and METRICS[m].main) is main]
        return Part(self, chosen) if chosen else None

    @property
    def has_baseline(self) -> bool:
        return bool(self.every(self.real))

    @property
    def headline(self) -> str:
        """The first number of all classes that is printed: "FID 12.3 (11.9 to 12.8)"; "" where there is none."""
        found = (self.own(metric, self.measured.scopes[0]) for metric in self.metrics)
        first = next((n for n in found if n is not None and metric_of(n).main and n.value is not None), None)
        return "" if first is None else f"{first.short} {with_interval(first)}"

    @property
    def notes(self) -> list[str]:
        """What the reader must know of all numbers of the table."""
        own, notes = self.every(), []
        if any(is_small_sample(n) for n in self.every(self.own, self.real)):
            notes.append(
                f"{SMALL} A small-sample estimate: extrapolated from fewer images than FD asks for; read its interval."
            )
        if any(n.ranking_only for n in own):
            notes.append("This extractor did not learn from images like these: its numbers rank generators, no more.")
        if any(n.judge_saw_reference for n in own):
            notes.append("The extractor was trained on these reference images, which flatters whatever is like them.")
        return notes

    def most(self, scope: str) -> list[int]:
        """The largest numbers of images, synthetic and reference, that any number of the scope took."""
        own = [n for m in self.metrics if m != "CAS" and (n := self.own(m, scope))]
        return [max((getattr(n, key) for n in own), default=0) for key in ("n_synthetic", "n_reference")]

    def counts(self, scope: str) -> str:
        return " / ".join(number(n) for n in self.most(scope))

    def left_out(self, scope: str) -> str:
        n = max((found.classes_left_out for m in self.metrics if (found := self.own(m, scope))), default=0)
        return f"{counted(n, 'class', 'classes')} left out" if n else ""


class Part:
    """Some of the metrics of a table.

    Attributes:
        metrics: those that any scope has a value of; one that is refused everywhere is a note, not a column.
        refusals: sentences; :meth:`mark` gives the number, from 1, of the one that a refused number belongs to.
    """

    def __init__(self, table: GroupTable, metrics: Sequence[str]) -> None:
        self.table = table
        scopes = table.measured.scopes
        found = {m: [n for s in scopes for n in (table.own(m, s), table.real(m, s)) if n] for m in metrics}
        self.metrics = [m for m in metrics if any(not n.refused for n in found[m])]
        refused = [
            (n, scope + star)
            for m in metrics
            for scope in scopes
            for n, star in ((table.own(m, scope), ""), (table.real(m, scope), "*"))
            if n is not None and n.refused
        ]
        self.refusals, self._places = explained([(n.short, scope, n.refused or "") for n, scope in refused])

    def mark(self, n: Number) -> str:
        """Of the note that says why it was refused, or what is special about it."""
        if n.refused:
            place = self._places.get((n.short, pattern(n.refused)))
            return "" if place is None else str(place)
        return SMALL if is_small_sample(n) else ""

    @property
    def heads(self) -> list[tuple[str, str]]:
        """(name with its arrow, what it is) of each column."""
        made = []
        for m in self.metrics:
            n = next(n for s in self.table.measured.scopes if (n := self.table.own(m, s)))
            made.append((heading(n), metric_of(n).what))
        return made

    @property
    def fewer(self) -> str:
        """Numbers that take a part of the images only, with how many: "diversity 512 / 600 (all)"."""
        found: dict[str, list[str]] = {}
        for scope in self.table.measured.scopes:
            most = self.table.most(scope)
            for m in self.metrics:
                n = self.table.own(m, scope)
                if n is None or n.refused or m == "CAS":
                    continue
                own = [n.n_synthetic, n.n_reference]
                if any(0 < a < b for a, b in zip(own, most, strict=True)):
                    text = " / ".join(number(a) if a else NOTHING for a in own) + f" ({scope})"
                    found.setdefault(n.short, []).append(text)
        by_text: dict[str, list[str]] = {}
        for short, parts in found.items():
            by_text.setdefault(", ".join(parts), []).append(short)
        listed = "; ".join(f"{', '.join(names)} {text}" for text, names in by_text.items())
        return f"Of fewer images than the first column says: {listed}." if listed else ""


def pattern(reason: str) -> str:
    """The reason with its numbers taken out: what reasons must share to be given as one."""
    return _NUMBER.sub("#", reason)


def merged(reasons: Sequence[tuple[str, str]]) -> str:
    """One sentence for (scope, reason) pairs of one pattern.

    Numbers in which they differ are listed with the scopes they belong to: "50 images are needed; here 12 (few),
    40 (medium)".
    """
    first = reasons[0][1]
    spans = [[m.span() for m in _NUMBER.finditer(reason)] for _, reason in reasons]
    found = [[reason[a:b] for a, b in own] for (_, reason), own in zip(reasons, spans, strict=True)]
    differ = [i for i in range(len(spans[0])) if len({own[i] for own in found}) > 1]
    if not differ:
        return first
    i, j = differ[0], differ[-1]
    parts: dict[str, list[str]] = {}
    for (scope, reason), own in zip(reasons, spans, strict=True):
        parts.setdefault(reason[own[i][0] : own[j][1]], []).append(scope)
    if len(parts) > 2 and max(map(len, parts)) > LONG:
        text, names = next(iter(parts.items()))
        others = dict.fromkeys(scope for own in list(parts.values())[1:] for scope in own)
        listed = f"{text} ({', '.join(names)}; and likewise {', '.join(others)})"
    else:
        listed = ", ".join(f"{text} ({', '.join(dict.fromkeys(names))})" for text, names in parts.items())
    return first[: spans[0][i][0]] + listed + first[spans[0][j][1] :]


def explained(refused: Sequence[tuple[str, str, str]]) -> tuple[list[str], dict[tuple[str, str], int]]:
    """Reasons why numbers are not printed, each given once, however many scopes and metrics it holds for.

    Args:
        refused: (metric, scope, reason).

    Returns:
        the sentences, and the number (from 1) of the one that belongs to (metric, pattern of the reason).
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for metric, scope, reason in refused:
        found.setdefault((metric, pattern(reason)), []).append((scope, reason))
    by_text: dict[str, list[str]] = {}
    for (metric, _), reasons in found.items():
        by_text.setdefault(merged(reasons), []).append(metric)
    places = {key: list(by_text).index(merged(reasons)) + 1 for key, reasons in found.items()}
    return [f"{', '.join(names)}: {text}." for text, names in by_text.items()], places


def numbers_table(found: Mapping[str, Any]) -> list[Table]:
    """For the terminal, of what `evaluate` gave: the main numbers of each extractor against the first reference.

    Extractors that only rank are left to the page where another one is at hand. Under each table is why numbers were
    refused. Next to "all" are the same numbers of real images.
    """
    measured = Measured.of(found)
    if measured is None:
        return []
    made = [t for t in measured.tables() if t.reference == measured.references[0] and t.part(main=True)]
    return [_terminal_table(table) for table in [t for t in made if not t.judge.ranking_only] or made]


def _terminal_table(table: GroupTable) -> Table:
    from rich.table import Table
    from rich.text import Text

    part, scopes = table.part(main=True), table.measured.scopes
    assert part is not None
    title = Text(f"{table.judge.name} against {table.reference}")
    made = Table(title=title, title_justify="left", caption_justify="left")
    made.add_column("number", no_wrap=True)
    used = set()
    for scope in scopes:
        made.add_column(Text(f"{scope}\n{table.counts(scope)}"), justify="right")
        if scope == "all" and table.has_baseline:
            made.add_column("real\nimages", justify="right", style="dim")
    for metric, (name, _) in zip(part.metrics, part.heads, strict=True):
        cells = [Text(name)]
        for scope in scopes:
            own, real = table.own(metric, scope), table.real(metric, scope)
            if own is None:
                cells.append(Text(NOTHING))
            elif own.refused:
                used.add(part.mark(own))
                cells.append(Text(f"refused {part.mark(own)}", style="dim"))
            else:
                value, between = printed(own)
                text = Text(value + part.mark(own), style="bold")
                cells.append(text.append(f"\n{between}", style="not bold dim") if between else text)
            if scope == "all" and table.has_baseline:
                cells.append(Text(NOTHING if real is None or real.refused else printed(real)[0]))
        made.add_row(*cells)
    columns = {name.split(" ")[0] for name, _ in part.heads}
    notes = [
        f"{i} {text}"
        for i, text in enumerate(part.refusals, start=1)
        if str(i) in used or text.split(":")[0] not in columns  # not those of real images alone
    ]
    more = len(notes) - MAX_TERMINAL_NOTES
    said = notes[:MAX_TERMINAL_NOTES] + [f"... and {more} more reasons on the page"] * (more > 0)
    said += ["* of real images"] * ("*)" in "".join(notes)) + table.notes
    if said:
        made.min_width = 72
        made.caption = Text("\n".join(said))
    return made
