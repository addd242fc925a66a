"""Tables of numbers by group: one board for each extractor and reference, a row for each scope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imbdiff.data.names import counted
from imbdiff.metrics.measures import Metric
from imbdiff.reporting.measured import Judge, Measured, Record, arrow, short_name, texts
from imbdiff.reporting.refusals import Refusals, template
from imbdiff.reporting.text import NOTHING, clean, number

SMALL = "†"


@dataclass(frozen=True)
class Column:
    """A number: its name, which way is better, what it is."""

    name: str
    arrow: str
    what: str


@dataclass(frozen=True)
class Shown:
    """A printed number.

    Attributes:
        value: the number, "refused", or an en dash where there is none.
        between: its interval.
        mark: of the note that says why it was refused, or what is special about it; "".
        title: how many images went in.
    """

    value: str
    between: str = ""
    mark: str = ""
    title: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Entry:
    """A number of the synthetic images and, beside it, of the real ones."""

    own: Shown
    yard: Shown | None


@dataclass(frozen=True)
class BoardRow:
    """A scope: its name, how many images it has, what was left out, and its numbers in the order of the columns."""

    scope: str
    counts: str
    left_out: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Part:
    """A table: the numbers that matter, or the others.

    `refusals` are the notes of the marks "1", "2", ...; `fewer` says which numbers took a part of the images only.
    """

    columns: tuple[Column, ...]
    rows: tuple[BoardRow, ...]
    refusals: tuple[str, ...]
    fewer: str


@dataclass(frozen=True)
class Board:
    """All numbers of one extractor against one reference.

    Attributes:
        main, more: the numbers that matter, and the others; None where there is none.
        notes: what the reader must know of all numbers.
        open: the board to read first: the main extractor against the first reference.
        yardstick: whether numbers of real images stand beside.
    """

    extractor: str
    fingerprint: str
    reference: str
    ranking_only: bool
    main: Part | None
    more: Part | None
    notes: tuple[str, ...]
    open: bool
    yardstick: bool

    @property
    def headline(self) -> str:
        """The first number of all classes that is printed: "FID 12.3 (11.9 to 12.8)"; "" where there is none."""
        if self.main is None or not self.main.rows:
            return ""
        for column, entry in zip(self.main.columns, self.main.rows[0].entries, strict=True):
            if not entry.own.refused and entry.own.value != NOTHING:
                return f"{column.name} {entry.own.value}" + (f" ({entry.own.between})" if entry.own.between else "")
        return ""


def boards(measured: Measured) -> list[Board]:
    """The main extractor and the first reference first; extractors that only rank last."""
    pairs = [(judge, reference) for judge in measured.judges for reference in measured.references]
    made = [_board(measured, judge, reference) for judge, reference in pairs if measured.kinds(judge, reference)]
    return [board for board in made if board.main or board.more]


def _board(measured: Measured, judge: Judge, reference: str) -> Board:
    kinds = measured.kinds(judge, reference)
    pairs = [(kind.name, scope, judge, reference) for kind in kinds for scope in measured.scopes]
    own = [record for pair in pairs if (record := measured.number(*pair)) is not None]
    yards = [record for pair in pairs if (record := measured.yardstick(*pair)) is not None]
    return Board(
        extractor=judge.name or "an extractor that is not named",
        fingerprint=clean(judge.fingerprint),
        reference=clean(reference),
        ranking_only=judge.ranking_only,
        main=_part(measured, [kind for kind in kinds if kind.main], judge, reference),
        more=_part(measured, [kind for kind in kinds if not kind.main], judge, reference),
        notes=tuple(_notes(own, yards)),
        open=judge == measured.main and reference == measured.references[0],
        yardstick=bool(yards),
    )


def _part(measured: Measured, kinds: Sequence[Metric], judge: Judge, reference: str) -> Part | None:
    if not kinds:
        return None
    refusals = Refusals()
    for kind in kinds:
        for scope in measured.scopes:
            own = measured.number(kind.name, scope, judge, reference)
            yard = measured.yardstick(kind.name, scope, judge, reference)
            for record, mark in ((own, ""), (yard, "*")):
                if record is not None and record.get("refused"):
                    refusals.add(short_name(record), clean(scope) + mark, clean(record["refused"]))
    said, places = refusals.notes()
    # a number that is refused everywhere is a note, not a column
    shown = [k for k in kinds if any(_printed(measured, k, scope, judge, reference) for scope in measured.scopes)]
    rows = tuple(_row(measured, shown, scope, judge, reference, places) for scope in measured.scopes)
    columns = tuple(_column(measured, kind, judge, reference) for kind in shown)
    return Part(columns, rows, tuple(said), _fewer(measured, shown, judge, reference))


def _printed(measured: Measured, kind: Metric, scope: str, judge: Judge, reference: str) -> bool:
    found = (get(kind.name, scope, judge, reference) for get in (measured.number, measured.yardstick))
    return any(record is not None and not record.get("refused") for record in found)


def _column(measured: Measured, kind: Metric, judge: Judge, reference: str) -> Column:
    every = (measured.number(kind.name, scope, judge, reference) for scope in measured.scopes)
    record = next(record for record in every if record is not None)
    return Column(short_name(record), arrow(record.get("direction")), kind.what)


def _row(
    measured: Measured,
    kinds: Sequence[Metric],
    scope: str,
    judge: Judge,
    reference: str,
    places: dict[tuple[str, str], int],
) -> BoardRow:
    entries = []
    for kind in kinds:
        own = measured.number(kind.name, scope, judge, reference)
        yard = measured.yardstick(kind.name, scope, judge, reference)
        entries.append(
            Entry(
                Shown(NOTHING) if own is None else shown(own, places),
                None if yard is None else shown(yard, places),
            )
        )
    every = (measured.number(k.name, scope, judge, reference) for k in measured.kinds(judge, reference))
    left_out = max((int(r.get("classes_left_out") or 0) for r in every if r is not None), default=0)
    counts = [number(n) for n in _most(measured, scope, judge, reference)]
    return BoardRow(
        clean(scope),
        f"{counts[0]} / {counts[1]}",
        f"{counted(left_out, 'class', 'classes')} left out" if left_out else "",
        tuple(entries),
    )


def shown(record: Record, places: dict[tuple[str, str], int]) -> Shown:
    """A record as it is printed; `places` are the notes of `Refusals`."""
    title = f"{number(record.get('n_synthetic') or 0)} images"
    if record.get("n_reference"):
        title += f" against {number(record['n_reference'])}"
    if record.get("n_effective"):
        title += f", effective n {number(round(record['n_effective']))}"
    if record.get("classes_left_out"):
        title += f", {counted(int(record['classes_left_out']), 'class', 'classes')} left out"
    if record.get("refused"):
        reason = clean(record["refused"])
        place = places.get((short_name(record), template(reason)))
        return Shown("refused", "", "" if place is None else str(place), f"{reason}; {title}", refused=True)
    mark = SMALL if (record.get("extra") or {}).get("small_sample") else ""
    return Shown(*texts(record), mark, title)


def _notes(records: Sequence[Record], yards: Sequence[Record]) -> list[str]:
    """What the reader must know of all numbers of a board."""
    notes = []
    if any((r.get("extra") or {}).get("small_sample") for r in (*records, *yards)):
        notes.append(
            f"{SMALL} A small-sample estimate: extrapolated from fewer images than FD asks for; read its interval."
        )
    if any(r.get("ranking_only") for r in records):
        notes.append("This extractor did not learn from images like these: its numbers rank generators, no more.")
    if any(r.get("judge_saw_reference") for r in records):
        notes.append("The extractor was trained on these reference images, which flatters whatever is like them.")
    return notes


def _fewer(measured: Measured, kinds: Sequence[Metric], judge: Judge, reference: str) -> str:
    """Numbers that take a part of the images only, with how many: "diversity 512 / 600 (all)"."""
    found: dict[str, list[str]] = {}
    for scope in measured.scopes:
        most = _most(measured, scope, judge, reference)
        for kind in kinds:
            r = measured.number(kind.name, scope, judge, reference)
            if r is None or r.get("refused") or kind.name == "CAS":
                continue
            n = [int(r.get(key) or 0) for key in ("n_synthetic", "n_reference")]
            if any(0 < a < b for a, b in zip(n, most, strict=True)):
                text = " / ".join(number(a) if a else NOTHING for a in n) + f" ({clean(scope)})"
                found.setdefault(short_name(r), []).append(text)
    by_text: dict[str, list[str]] = {}
    for name, texts_ in found.items():
        by_text.setdefault(", ".join(texts_), []).append(name)
    said = "; ".join(f"{', '.join(names)} {text}" for text, names in by_text.items())
    return f"Of fewer images than the first column says: {said}." if said else ""


def _most(measured: Measured, scope: str, judge: Judge, reference: str) -> list[int]:
    """The largest numbers of images, synthetic and reference, that any number of the scope took."""
    every = [measured.number(k.name, scope, judge, reference) for k in measured.kinds(judge, reference)]
    records = [r for r in every if r is not None and r["metric"] != "CAS"]
    return [max((int(r.get(key) or 0) for r in records), default=0) for key in ("n_synthetic", "n_reference")]
