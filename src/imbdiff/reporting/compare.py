"""Several runs on one page, and whether their numbers may be compared at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from imbdiff.metrics.numbers import Direction, Number
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.answer import answer
from imbdiff.reporting.classifier import (
    ADJUSTMENT,
    accuracy_plot,
    arm_cells,
    arms_of,
    columns,
    few_images,
    pair,
    verdict_sentence,
)
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.images import sample_set
from imbdiff.reporting.measured import GroupTable, Measured, best_of, counts_of, heading, printed
from imbdiff.reporting.pictures import scaled_down, spread
from imbdiff.reporting.text import MINUS, NOTHING, flatten, number, seconds, with_sd
from imbdiff.runtime.errors import ConfigError

MAX_CLASSES = 6
MAX_RUNS = 12
MAX_OPTIONS = 8
OF_THE_METHOD = (
    "method", "constants", "seed", "preset", "track", "sample.start", "sample.strength", "sample.sources",
)  # fmt: skip
"""Beginnings of the options that runs may differ in and be compared."""


def build_comparison(runs: Sequence[ReportData]) -> str:
    """Runs side by side as one HTML page: verdicts, accuracy of every arm, metrics, images of the same classes.

    What makes numbers incomparable is on top: other splits, other judges, other references, other numbers of images.
    At most 12 runs; images of 6 classes spread over the size ranking of the first run.

    Raises:
        ConfigError: fewer than two runs, or more than fit on a page.
    """
    if not 2 <= len(runs) <= MAX_RUNS:
        raise ConfigError(f"{len(runs)} runs to compare", f"name 2 to {MAX_RUNS} run folders")
    titles = [run.title for run in runs]
    if len(set(titles)) < len(titles):
        titles = [f"{title} ({run.run})" for title, run in zip(titles, runs, strict=True)]
    differ = differences(runs)
    top: list[ui.Block] = [ui.Text("These runs differ in more than the method:", "verdict bad"), ui.Items(differ)]
    if not differ:
        same = "Same training images, same split, same groups, same judge where there is one"
        top = [ui.Text(f"{same}: the numbers below may be compared.", "verdict none")]
    best = "Bold: the best of a row; whether it is more than chance, the spread or the interval says."
    accuracies = f"Test accuracy, mean ± standard deviation over seeds. {best}"
    numbers = (
        "With 95 % interval; arrows say which way is better. All are made with one extractor against the same "
        f"reference images. A refused number is one that its sample size cannot support. {best}"
    )
    sections = [
        _overview(runs, titles),
        _options(runs, titles),
        _with_and_without(runs, titles),
        _lines("Classifier accuracy by arm", "arm", arm_lines(runs), titles, accuracies, "classify"),
        _lines(
            "Quality of the synthetic images",
            "metric",
            metric_lines(runs),
            titles,
            numbers,
            "evaluate",
            "Measured, but no number is printed: the sample sizes do not support any."
            if any(Measured.of(run.metrics) for run in runs)
            else "",
        ),
        _images(runs, titles),
        ui.Section("repeat", "Repeat these runs", [ui.Text("", command=run.command) for run in runs]),
    ]
    return ui.render("comparison", f"{len(runs)} runs compared", top, sections)


def differences(runs: Sequence[ReportData], seeds: bool = True) -> list[str]:
    """Sentences on what differs between the runs that must be equal for their numbers to be compared.

    Args:
        seeds: those of classifiers must be equal too.
    """
    found = []
    if _several(run.stats for run in runs):
        found.append("The training images are not the same: class names or counts differ.")
    elif _several(run.manifest.get("hash") for run in runs):
        found.append("The splits differ (other hash): accuracies and distances belong to other test images.")
    if _several(run.groups.of_class for run in runs):
        found.append("The groups are not the same classes: compare no number of a group.")
    tables = [measured.main for run in runs if (measured := Measured.of(run.metrics)) is not None]
    if _several(map(made_with, tables)):
        found.append(
            "The extractors or references differ: the numbers made with others than the first run's are left out."
        )
    if _several(table.most("all")[0] for table in tables):
        found.append("Distances are of different numbers of synthetic images, which biases them differently.")
    for key in ("steps", "batch_size", "network", "augmentation", *["seeds"] * seeds):
        if _several(run.classifier["protocol"].get(key) for run in runs if run.classifier):
            found.append(f"The classifiers were trained with different {key.replace('_', ' ')}.")
    said = {"classify.steps", "classify.batch_size", "classify.network", "classify.seeds"}
    options = [row for row in differing(runs) if row[0] not in said and not row[0].startswith(OF_THE_METHOD)]
    found += [f"The option {name} differs: {', '.join(values)}." for name, *values in options[:MAX_OPTIONS]]
    if len(options) > MAX_OPTIONS:
        found.append(f"{len(options) - MAX_OPTIONS} further options differ, see the table of options.")
    return found


def differing(runs: Sequence[ReportData]) -> list[list[str]]:
    """(option, its value in each run) of those that are not equal in all."""
    every = [dict(flatten(run.config)) for run in runs]
    names = dict.fromkeys(name for one in every for name in one)
    rows = [[name, *(one.get(name, NOTHING) for one in every)] for name in names]
    return [row for row in rows if len(set(row[1:]) - {NOTHING} if any(not one for one in every) else set(row[1:])) > 1]


def same_but_seed(runs: Sequence[ReportData]) -> list[list[int]]:
    """Runs that differ in nothing but the seed, together, in the order of the first of each."""
    found: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        rows = [row for row in flatten(run.config) if row[0] != "seed"]
        found.setdefault(repr((run.method, run.source, rows, None if rows else i)), []).append(i)
    return list(found.values())


def _several(values: Iterable[Any]) -> bool:
    """Whether known values differ; a run without one agrees with all."""
    return len({repr(value) for value in values if value is not None}) > 1


def made_with(table: GroupTable) -> tuple[Any, ...]:
    """What must be equal for numbers to be compared: extractor, reference images and how many."""
    return table.judge.fingerprint, table.reference, table.images, table.most("all")[1]


def _overview(runs: Sequence[ReportData], titles: Sequence[str]) -> ui.Section:
    columns: list[dict[str, ui.Cell | str]] = []
    for run in runs:
        sentence, tone = verdict_sentence(run.classifier)
        said = _word(run) or sentence or ui.joined(["not computed:", ui.code("imbdiff classify")])
        columns.append({
            "Method": run.method,
            "Source": run.source,
            "Training images": number(run.stats.total),
            "Imbalance factor": number(run.stats.imbalance_factor, 1),
            "Synthetic images": number(sum(run.filled)),
            "Images seen in training": number(run.log[-1].get("images")) if run.log else NOTHING,
            "Split hash": str(run.manifest.get("hash") or NOTHING)[:16],
            "Time": seconds(sum(run.timings.values())) if run.timings else NOTHING,
            "Verdict": ui.Cell(said, style=tone),
        })  # fmt: skip
    table = [[what, *(column[what] for column in columns)] for what in columns[0]]
    heads = [ui.Cell(ui.breakable(title), style="run") for title in titles]
    return ui.Section("runs", "Runs", [ui.Table(["of the run", *heads], table, "compare")], "Runs")


def _word(run: ReportData) -> str:
    told = answer(run.classifier, run.run) if run.classifier else None
    return f"{told.word}. {told.text}" if told else ""


def _options(runs: Sequence[ReportData], titles: Sequence[str]) -> ui.Section | None:
    """Every option that is not the same in all."""
    rows: list[ui.Cells] = [[ui.code(name), *values] for name, *values in differing(runs)]
    if not rows:
        return None
    heads: ui.Cells = ["option", *(ui.Cell(ui.breakable(title), style="run") for title in titles)]
    return ui.Section("options", "Every option that differs", [ui.Table(heads, rows, "compare")], "Options")


def _with_and_without(runs: Sequence[ReportData], titles: Sequence[str]) -> ui.Section | None:
    """The judged arm of each run and its control; the mean over runs that differ in the seed alone."""
    arms, found = [], {}
    for i, (run, title) in enumerate(zip(runs, titles, strict=True)):
        for arm in pair(arms_of(run.classifier)):
            what = "with" if arm.judged else "without"
            arms.append(replace(arm, name=f"{title}: {what}", kind="single", control=False))
            found[i, what] = arm.mean.accuracy
    if not arms:
        return None
    scopes = ["all", *(group for group in runs[0].groups.present if group not in few_images(runs[0].classifier))]
    alike, means = same_but_seed(runs), []
    for members in alike:
        known = {what: [v for i in members if (v := found.get((i, what))) is not None] for what in ("with", "without")}
        cells = [
            ui.Cell(*with_sd(float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else None)) if v
            else ui.Cell(NOTHING) for v in known.values()
        ]  # fmt: skip
        means.append(cells)
    marked = [_marked(dict(enumerate(column))) for column in zip(*means, strict=True)]
    rows: list[ui.Cells] = [
        [", ".join(titles[i] for i in members), number(len(members)), *(column[row] for column in marked)]
        for row, members in enumerate(alike)
    ]
    heads: ui.Cells = ["runs that differ in the seed alone", ui.Column("runs")]
    heads += [ui.Column(f"accuracy {what} synthetic images") for what in ("with", "without")]
    return ui.Section("with", "With and without synthetic images", [
        ui.legend(real="without", synthetic="with synthetic images"),
        ui.Figures([accuracy_plot(arms, scopes)]),
        ui.Table(heads, rows),
        ui.note(
            "Of each run the arm that is judged, and the best it is compared with. Mean ± standard deviation: in the "
            "plot over the classifiers of a run, in the table over runs. Bold: the best of a column."
        ),
    ], "With and without")  # fmt: skip


def _value(cell: ui.Cell) -> float | None:
    try:
        return float(cell.text.replace(MINUS, "-").replace(",", ""))
    except ValueError:
        return None


def _marked(cells: dict[int, ui.Cell], direction: Direction = "higher") -> dict[int, ui.Cell]:
    """The best cells in bold, as printed."""
    best = best_of({i: v for i, cell in cells.items() if (v := _value(cell)) is not None}, direction)
    return {i: replace(cell, style="best") if i in best else cell for i, cell in cells.items()}


Line = tuple[str, str, Direction, dict[int, ui.Cell]]
"""What, in which scope, which way is better, and a cell for each run that has it."""
HOW: dict[str, Direction] = {"ECE": "lower", ADJUSTMENT: "none"}


def arm_lines(runs: Sequence[ReportData]) -> list[Line]:
    """Every arm and scope that any run has."""
    found: dict[tuple[str, str], dict[int, ui.Cell]] = {}
    for i, run in enumerate(runs):
        shown = columns(run.groups)
        for arm in arms_of(run.classifier):
            for column, cell in zip(shown, arm_cells(arm, shown, few_images(run.classifier)), strict=True):
                found.setdefault((arm.name, column), {})[i] = cell
    order = list(dict.fromkeys(arm for arm, _ in found))
    rows = sorted(found.items(), key=lambda item: order.index(item[0][0]))
    return [(arm, scope, HOW.get(scope, "higher"), cells) for (arm, scope), cells in rows]


def metric_lines(runs: Sequence[ReportData]) -> list[Line]:
    """The main numbers of each run's main extractor against its first reference.

    Those of runs with another extractor or reference than the first that has any are left out.
    """
    tables = {i: measured.main for i, run in enumerate(runs) if (measured := Measured.of(run.metrics)) is not None}
    if not tables:
        return []
    first = next(iter(tables.values()))
    same = {i: table for i, table in tables.items() if made_with(table) == made_with(first)}
    lines = []
    for metric in dict.fromkeys(metric for table in same.values() for metric in table.printable(main=True)):
        for scope in dict.fromkeys(scope for table in same.values() for scope in table.scopes):
            found = {i: n for i, table in same.items() if (n := table.own.get((metric, scope))) is not None}
            if any(not n.refused for n in found.values()):
                name = heading(n := next(iter(found.values())), n.label)
                lines.append((name, scope, n.direction, {i: _cell(n) for i, n in found.items()}))
    return lines


def _cell(n: Number) -> ui.Cell:
    if n.refused:
        return ui.Cell("refused", title=n.refused, style="refused")
    return ui.Cell(*printed(n), title=counts_of(n))


def _lines(
    title: str, what: str, lines: Sequence[Line], titles: Sequence[str], note: str, verb: str, refused: str = ""
) -> ui.Section:
    nav, anchor = title.split(" ")[0], f"{what}s"
    if not lines:
        text = refused or ui.joined(["Not computed in any of these runs:", ui.code(f"imbdiff {verb} RUN")])
        return ui.Section(anchor, title, [ui.Text(text, "missing")], nav)
    rows: list[ui.Cells] = []
    before = None
    for name, scope, direction, found in lines:
        cells = _marked(found, direction)
        head = ui.Cell(ui.span(name, "again") if name == before else name, style="" if name == before else "first")
        rows.append([head, scope, *(cells.get(i, ui.Cell(NOTHING)) for i in range(len(titles)))])
        before = name
    table = ui.Table([what, "scope", *(ui.Column(ui.breakable(one)) for one in titles)], rows, "compare")
    return ui.Section(anchor, title, [ui.note(note), table], nav)


def _images(runs: Sequence[ReportData], titles: Sequence[str]) -> ui.Section:
    """For a few classes of the first run: the same class in every run that has it, by name."""
    title = "Synthetic images of the same classes"
    shapes = dict.fromkeys(run.synthetic.shape for run in runs if run.synthetic is not None)
    if not shapes:
        none = ui.joined(["No run has synthetic images:", ui.code("imbdiff sample RUN")])
        return ui.Section("images", title, [ui.Text(none, "missing")], "Images")
    made = {run.stats.names[k] for run in runs for k, n in enumerate(run.filled) if n}
    ranked = list(dict.fromkeys(run.stats.names[k] for run in runs for k in run.by_size))
    known = [name for name in ranked if name in made]
    names = [known[i] for i in spread(range(len(known)), MAX_CLASSES)]
    text = (
        "Classes that have synthetic images, spread over the size ranking of the first run; images chosen at random "
        "with a fixed seed."
    )
    shelves = [
        ui.Shelf([sample_set(run.synthetic, one, at) for run, at in zip(runs, titles, strict=True)], one)
        for one in names
    ]
    small = ui.note(" ".join([text, *map(scaled_down, shapes)]))
    return ui.Section("images", title, [small, *shelves], "Images")
