"""Several runs on one page, and whether their numbers may be compared at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from imbdiff.metrics.measures import METRICS
from imbdiff.metrics.numbers import Number
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.classifier import EXTRAS, arm_cells, columns, verdict_sentence
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.measured import counts_of, heading, metric_of, printed
from imbdiff.reporting.pictures import spread
from imbdiff.reporting.report import sample_set, scaled_down, stage_times
from imbdiff.reporting.text import NOTHING, number, seconds
from imbdiff.runtime.errors import ConfigError

MAX_CLASSES = 6
MAX_NUMBERS = 120
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
    titles = [str(run.title) for run in runs]
    if len(set(titles)) < len(titles):
        titles = [f"{title} ({run.run})" for title, run in zip(titles, runs, strict=True)]
    differ = differences(runs)
    top: list[ui.Block] = [ui.Text("These runs differ in more than the method:", "verdict bad"), ui.Items(differ)]
    if not differ:
        same = "Same training images, same split, same groups, same judge where there is one"
        top = [ui.Text(f"{same}: the numbers below may be compared.", "verdict none")]
    sections = [
        _overview(runs, titles),
        _numbers("Classifier accuracy by arm", "arm", arm_rows(runs), titles,
                 "Test accuracy, mean ± standard deviation over seeds.", "classify"),
        _numbers("Quality of the synthetic images", "metric", metric_rows(runs), titles,
                 "With 95 % interval; arrows say which way is better. Numbers share a line only where extractor, "
                 "reference and number of reference images are the same. A refused number is one that its sample size "
                 "cannot support.", "evaluate"),
        _images(runs, titles),
        ui.Section("repeat", "Repeat these runs", [ui.Text("", command=run.command) for run in runs]),
    ]  # fmt: skip
    return ui.render(ui.Page("comparison", f"{len(runs)} runs compared", top, sections))


def differences(runs: Sequence[ReportData]) -> list[str]:
    """Sentences on what differs between the runs that must be equal for their numbers to be compared."""
    found = []
    if _several(run.stats for run in runs):
        found.append("The training images are not the same: class names or counts differ.")
    elif _several(run.manifest.get("hash") for run in runs):
        found.append("The splits differ (other hash): accuracies and distances belong to other test images.")
    if _several(run.groups.of_class for run in runs):
        found.append("The groups are not the same classes: compare no number of a group.")
    measured = [_measured(run) for run in runs]
    if _several(sorted({n.reference for n in own}) or None for own in measured):
        found.append("The references behind numbers of the same name differ: their distances cannot be compared.")
    for what, key in (("extractors", "fingerprint"), ("reference sizes", "n_reference")):
        if _disagree(measured, key):
            found.append(f"The {what} behind numbers of the same name differ: these numbers are on lines of their own.")
    if _disagree(measured, "n_synthetic"):
        found.append(
            "Distances were measured with different numbers of synthetic images, which biases them differently."
        )
    for key in ("steps", "batch_size", "network", "seeds", "augmentation"):
        if _several(((run.classifier or {}).get("protocol") or {}).get(key) for run in runs):
            found.append(f"The classifiers were trained with different {key.replace('_', ' ')}.")
    return found


def _measured(run: ReportData) -> list[Number]:
    return [Number.from_json(row) for row in (run.metrics or {}).get("numbers") or ()]


def _several(values: Iterable[Any]) -> bool:
    """Whether known values differ; a run without one agrees with all."""
    return len({repr(value) for value in values if value is not None}) > 1


def _disagree(measured: Sequence[Sequence[Number]], key: str) -> bool:
    """Whether numbers of one metric, scope and reference differ in `key` between runs that both have them."""
    seen: dict[tuple[str, ...], list[Any]] = {}
    for own in measured:
        for n in own:
            seen.setdefault((n.label, n.scope, n.reference), []).append(getattr(n, key))
    return any(_several(values) for values in seen.values())


def _runs(titles: Sequence[str], style: str = "run") -> list[ui.Cell]:
    return [ui.Cell(title, style=style) for title in titles]


def _overview(runs: Sequence[ReportData], titles: Sequence[str]) -> ui.Section:
    def time(run: ReportData) -> str:
        spent = stage_times(run.timings)
        return seconds(sum(spent.values())) if spent else NOTHING

    def judged(run: ReportData) -> ui.Cell:
        sentence, tone = verdict_sentence(run.classifier)
        return (
            ui.Cell(sentence, style=tone)
            if sentence
            else ui.Cell(ui.joined(["not computed:", ui.code("imbdiff classify")]))
        )

    rows: list[tuple[str, Callable[[ReportData], ui.Cell | str]]] = [
        ("Method", lambda r: r.method),
        ("Source", lambda r: r.source),
        ("Training images", lambda r: number(r.stats.total)),
        ("Imbalance factor", lambda r: number(r.stats.imbalance_factor, 1)),
        ("Synthetic images", lambda r: number(sum(r.filled))),
        ("Images seen in training", lambda r: number(r.log[-1].get("images")) if r.log else NOTHING),
        ("Split hash", lambda r: str(r.manifest.get("hash") or NOTHING)[:16]),
        ("Time", time),
        ("Verdict", judged),
    ]
    table = [[what, *(get(run) for run in runs)] for what, get in rows]
    return ui.Section("runs", "Runs", [ui.Table(["", *_runs(titles)], table, "compare")], "Runs")


Line = tuple[str, str, dict[int, ui.Cell]]
"""What, in which scope, and a cell for each run that has it."""


def arm_rows(runs: Sequence[ReportData]) -> list[Line]:
    """Every arm and scope that any run has; of the numbers besides accuracies those that all runs with arms have."""
    found: dict[tuple[str, str], dict[int, ui.Cell]] = {}
    trained = [columns(run.classifier, run.groups) for run in runs if run.classifier and run.classifier.get("arms")]
    extras = [x for x in EXTRAS if trained and all(x in shown for shown in trained)]
    for i, run in enumerate(runs):
        shown = [s for s in columns(run.classifier or {}, run.groups) if s not in EXTRAS or s in extras]
        for arm in (run.classifier or {}).get("arms", ()):
            for scope, cell in zip(shown, arm_cells(arm, shown), strict=True):
                found.setdefault((str(arm.get("name", "")), scope), {})[i] = cell
    order = list(dict.fromkeys(arm for arm, _ in found))  # as first met, all scopes of an arm together
    return [(*key, cells) for key, cells in sorted(found.items(), key=lambda item: order.index(item[0][0]))]


def metric_rows(runs: Sequence[ReportData]) -> list[Line]:
    """One line per number and scope that at least one run has, the main numbers first.

    Numbers of equal name are on one line only if they were made with the same extractor (by fingerprint) against the
    same reference with equally many reference images; otherwise each has a line of its own, that says what differs.
    """
    lines: dict[tuple[str, ...], dict[int, Number]] = {}
    for i, run in enumerate(runs):
        for n in _measured(run):
            lines.setdefault(_same(n, run.metrics or {}), {})[i] = n
    twice = Counter(line[:3] for line in lines)
    order = list(METRICS)
    made: list[tuple[tuple[Any, ...], Line]] = []
    for place, (line, found) in enumerate(lines.items()):
        n = next(iter(found.values()))
        if all(one.refused for one in found.values()) or (n.metric in METRICS and not METRICS[n.metric].main):
            continue  # what no run could print, and the lesser numbers, are on the runs' own pages
        name, where = heading(n, n.label), n.scope
        if not metric_of(n).alone and n.metric != "CAS":
            name += f" against {n.reference}"
        if twice[line[:3]] > 1:
            _, _, _, fingerprint, images, size = line
            name += f" (extractor {fingerprint[:8]}" + (f", images {images[:8]})" if images else ")")
            where += f", {size} reference images" if size != "0" else ""
        rank = order.index(n.metric) if n.metric in order else len(order)
        sort = (n.ranking_only, n.reference == "train", rank, place)
        made.append((sort, (name, where, {i: _cell(one) for i, one in found.items()})))
    # a number's scopes stay together: the place of its first line counts
    first: dict[str, tuple[Any, ...]] = {}
    for sort, (name, _, _) in sorted(made, key=lambda pair: pair[0]):
        first.setdefault(name, sort)
    made.sort(key=lambda pair: (first[pair[1][0]], pair[0]))
    return [line for _, line in made][:MAX_NUMBERS]


def _same(n: Number, metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """What must be equal for two numbers to be on one line: the last three are extractor, reference and its n."""
    fingerprints = (metrics.get("protocol") or {}).get("fingerprints") or {}
    images = str(fingerprints.get(n.reference) or fingerprints.get("reference") or "")
    alone = metric_of(n).alone  # of the synthetic images, whatever the reference
    own = ("", "0") if alone else (images, str(n.n_reference))
    return (n.label, n.scope, n.reference, n.fingerprint, *own)


def _cell(n: Number) -> ui.Cell:
    if n.refused:
        return ui.Cell("refused", title=n.refused, style="refused")
    return ui.Cell(*printed(n), title=counts_of(n))


def _numbers(title: str, what: str, lines: Sequence[Line], titles: Sequence[str], note: str, verb: str) -> ui.Section:
    anchor = f"{what}s"
    if not lines:
        text = ui.joined(["Not computed in any of these runs:", ui.code(f"imbdiff {verb} RUN")])
        return ui.Section(anchor, title, [ui.Text(text, "missing")], title.split(" ")[0])
    rows, before = [], None
    for name, scope, cells in lines:
        first = name != before
        row: ui.Cells = [name if first else "", scope, *(cells.get(i, ui.Cell(NOTHING)) for i in range(len(titles)))]
        rows.append(ui.Row(row, "first" if first else ""))
        before = name
    table = ui.Table([what, "scope", *(ui.Column(one) for one in titles)], rows, "compare")
    return ui.Section(anchor, title, [ui.note(note), table], title.split(" ")[0])


def _images(runs: Sequence[ReportData], titles: Sequence[str]) -> ui.Section:
    """For a few classes of the first run: the same class in every run that has it, by name."""
    title = "Synthetic images of the same classes"
    if all(run.synthetic is None for run in runs):
        text = ui.joined(["No run has synthetic images:", ui.code("imbdiff sample RUN")])
        return ui.Section("images", title, [ui.Text(text, "missing")], "Images")
    names = [runs[0].stats.names[k] for k in spread(runs[0].by_size, MAX_CLASSES)]
    small = dict.fromkeys(scaled_down(run.synthetic.shape) for run in runs if run.synthetic is not None)
    about = " ".join([
        "Classes spread over the size ranking of the first run; images chosen at random with a fixed seed.",
        *(one for one in small if one)])  # fmt: skip
    shelves = [
        ui.Shelf([sample_set(run.synthetic, one, at) for run, at in zip(runs, titles, strict=True)], one)
        for one in names
    ]
    return ui.Section("images", title, [ui.note(about), ui.Images(shelves)], "Images")
