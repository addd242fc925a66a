"""The numbers for the terminal: one table per extractor, a row per number, a column per scope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from imbdiff.reporting.boards import Board, Entry, boards
from imbdiff.reporting.measured import Measured

MAX_NOTES = 4


def numbers_table(found: Mapping[str, Any]) -> list[Table]:
    """Tables of what `evaluate` gave: the main numbers of each extractor against the first reference, by group.

    Extractors that only rank are left to the page where another one is at hand. Under each table stands why numbers
    were refused. Beside "all" stand the same numbers of real images.
    """
    measured = Measured.of(found)
    if measured is None:
        return []
    made = [b for b in boards(measured) if b.reference == measured.references[0] and b.main]
    judged = [b for b in made if not b.ranking_only]
    return [_table(board, measured.scopes) for board in judged or made]


def _table(board: Board, scopes: tuple[str, ...]) -> Table:
    assert board.main is not None
    part = board.main
    table = Table(
        title=Text(f"{board.extractor} against {board.reference}"), title_justify="left", caption_justify="left"
    )
    table.add_column("number", no_wrap=True)
    for row in part.rows:
        table.add_column(Text(f"{row.scope}\n{row.counts}"), justify="right")
        if row.scope == "all" and board.yardstick:
            table.add_column("real\nimages", justify="right", style="dim")
    for i, column in enumerate(part.columns):
        cells: list[Text] = [Text(f"{column.name} {column.arrow}".rstrip())]
        for row in part.rows:
            entry = row.entries[i]
            cells.append(_own(entry))
            if row.scope == "all" and board.yardstick:
                cells.append(Text(entry.yard.value if entry.yard and not entry.yard.refused else "–"))
        table.add_row(*cells)
    used = {entry.own.mark for row in part.rows for entry in row.entries if entry.own.refused}
    names = {column.name for column in part.columns}
    notes = [
        f"{i} {text}"
        for i, text in enumerate(part.refusals, start=1)
        if str(i) in used or text.split(":")[0] not in names  # not those of real images alone
    ]
    more = [f"... and {len(notes) - MAX_NOTES} more reasons on the page"] if len(notes) > MAX_NOTES else []
    said = [*notes[:MAX_NOTES], *more, *(["* of real images"] if "*)" in "".join(notes) else []), *board.notes]
    if said:
        table.min_width = 72
        table.caption = Text("\n".join(said))
    return table


def _own(entry: Entry) -> Text:
    if entry.own.refused:
        return Text(f"refused {entry.own.mark}", style="dim")
    text = Text(entry.own.value + entry.own.mark, style="bold")
    if entry.own.between:
        text.append(f"\n{entry.own.between}", style="not bold dim")
    return text
