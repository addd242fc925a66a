"""Several runs on one page, and whether their numbers may be compared at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from imbdiff.metrics.numbers import Number
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.classifier import arm_cells, arms_of, columns, verdict_sentence
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.images import sample_set
from imbdiff.reporting.measured import GroupTable, Measured, counts_of, heading, printed
from imbdiff.reporting.pictures import scaled_down, spread
from imbdiff.reporting.text import NOTHING, number, seconds
from imbdiff.runtime.errors import ConfigError

MAX_CLASSES = 6
MAX_RUNS = 12


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
    accuracies = "Test accuracy, mean ± standard deviation over seeds."
    numbers = (
        "With 95 % interval; arrows say which way is better. All are made with one extractor against the same "
        "reference images. A refused number is one that its sample size cannot support."
    )
    sections = [
        _overview(runs, titles),
        _lines("Classifier accuracy by arm", "arm", arm_lines(runs), titles, accuracies, "classify"),
        _lines("Quality of the synthetic images", "metric", metric_lines(runs), titles, numbers, "evaluate"),
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
    return found


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
        columns.append({
            "Method": run.method,
            "Source": run.source,
            "Training images": number(run.stats.total),
            "Imbalance factor": number(run.stats.imbalance_factor, 1),
            "Synthetic images": number(sum(run.filled)),
            "Images seen in training": number(run.log[-1].get("images")) if run.log else NOTHING,
            "Split hash": str(run.manifest.get("hash") or NOTHING)[:16],
            "Time": seconds(sum(run.timings.values())) if run.timings else NOTHING,
            "Verdict": ui.Cell(sentence or ui.joined(["not computed:", ui.code("imbdiff classify")]), style=tone),
        })  # fmt: skip
    table = [[what, *(column[what] for column in columns)] for what in columns[0]]
    heads = [ui.Cell(title, style="run") for title in titles]
    return ui.Section("runs", "Runs", [ui.Table(["", *heads], table, "compare")], "Runs")


Line = tuple[str, str, dict[int, ui.Cell]]
"""What, in which scope, and a cell for each run that has it."""


def arm_lines(runs: Sequence[ReportData]) -> list[Line]:
    """Every arm and scope that any run has."""
    found: dict[tuple[str, str], dict[int, ui.Cell]] = {}
    for i, run in enumerate(runs):
        shown = columns(run.groups)
        for arm in arms_of(run.classifier):
            for column, cell in zip(shown, arm_cells(arm, shown), strict=True):
                found.setdefault((arm.name, column), {})[i] = cell
    order = list(dict.fromkeys(arm for arm, _ in found))
    return [(*key, cells) for key, cells in sorted(found.items(), key=lambda item: order.index(item[0][0]))]


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
                lines.append((name, scope, {i: _cell(n) for i, n in found.items()}))
    return lines


def _cell(n: Number) -> ui.Cell:
    if n.refused:
        return ui.Cell("refused", title=n.refused, style="refused")
    return ui.Cell(*printed(n), title=counts_of(n))


def _lines(title: str, what: str, lines: Sequence[Line], titles: Sequence[str], note: str, verb: str) -> ui.Section:
    nav, anchor = title.split(" ")[0], f"{what}s"
    if not lines:
        text = ui.joined(["Not computed in any of these runs:", ui.code(f"imbdiff {verb} RUN")])
        return ui.Section(anchor, title, [ui.Text(text, "missing")], nav)
    rows: list[ui.Cells] = []
    before = None
    for name, scope, cells in lines:
        head = ui.Cell("" if name == before else name, style="" if name == before else "first")
        rows.append([head, scope, *(cells.get(i, ui.Cell(NOTHING)) for i in range(len(titles)))])
        before = name
    table = ui.Table([what, "scope", *(ui.Column(one) for one in titles)], rows, "compare")
    return ui.Section(anchor, title, [ui.note(note), table], nav)


def _images(runs: Sequence[ReportData], titles: Sequence[str]) -> ui.Section:
    """For a few classes of the first run: the same class in every run that has it, by name."""
    title = "Synthetic images of the same classes"
    shapes = dict.fromkeys(run.synthetic.shape for run in runs if run.synthetic is not None)
    if not shapes:
        none = ui.joined(["No run has synthetic images:", ui.code("imbdiff sample RUN")])
        return ui.Section("images", title, [ui.Text(none, "missing")], "Images")
    names = [runs[0].stats.names[k] for k in spread(runs[0].by_size, MAX_CLASSES)]
    text = "Classes spread over the size ranking of the first run; images chosen at random with a fixed seed."
    shelves = [
        ui.Shelf([sample_set(run.synthetic, one, at) for run, at in zip(runs, titles, strict=True)], one)
        for one in names
    ]
    small = ui.note(" ".join([text, *map(scaled_down, shapes)]))
    return ui.Section("images", title, [small, *shelves], "Images")
