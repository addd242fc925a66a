"""The section on quality: what the numbers say, each class against its size, tables by group, the protocol box."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imbdiff.reporting.boards import Board, boards
from imbdiff.reporting.class_plot import MAX_SINGLE, class_plot, class_rows, class_view, panel_notes
from imbdiff.reporting.measured import Measured
from imbdiff.reporting.measuring import Box, protocol_box
from imbdiff.reporting.plots import Plot
from imbdiff.reporting.summary import Saying, sayings

MAX_BOARDS = 12
MAX_CLASS_ROWS = 1000


@dataclass(frozen=True)
class Quality:
    """What the template shows.

    Attributes:
        ranking_only: whether even the main extractor only orders generators.
        sayings: questions and answers.
        plot: each class against its size; None for fewer than two classes.
        panels: head of the table behind the plot; `classes` its rows, `more_classes` how many are left out.
        counted: of which images the classes are ordered by.
        medians: whether the plot shows running medians.
        boards: tables, the first of them open; `more_boards` left out.
    """

    ranking_only: bool
    sayings: tuple[Saying, ...]
    plot: Plot | None
    panel_names: tuple[str, ...]
    panel_notes: tuple[str, ...]
    classes: tuple[Any, ...]
    num_classes: int
    more_classes: int
    counted: str
    yardstick: bool
    medians: bool
    boards: tuple[Board, ...]
    more_boards: int
    box: Box | None


def quality(metrics: Mapping[str, Any] | None) -> Quality | None:
    """The section of `evaluate(...)`; None where nothing was measured. Caps: 12 tables, 1,000 classes in a table."""
    measured = Measured.of(metrics)
    if measured is None:
        return None
    view = class_view(measured)
    made = boards(measured)
    return Quality(
        ranking_only=measured.main.ranking_only,
        sayings=tuple(sayings(measured)),
        plot=None if view is None else class_plot(view),
        panel_names=() if view is None else tuple(f"{p.name} {p.arrow}".rstrip() for p in view.panels),
        panel_notes=() if view is None else tuple(panel_notes(view)),
        classes=() if view is None else tuple(class_rows(view, MAX_CLASS_ROWS)),
        num_classes=0 if view is None else len(view.order),
        more_classes=0 if view is None else max(0, len(view.order) - MAX_CLASS_ROWS),
        counted="" if view is None else view.counted,
        yardstick=view is not None and any(p.yard is not None for p in view.panels),
        medians=view is not None and len(view.order) > MAX_SINGLE,
        boards=tuple(made[:MAX_BOARDS]),
        more_boards=max(0, len(made) - MAX_BOARDS),
        box=protocol_box(measured.metrics),
    )
