"""Several runs on one page, and whether their numbers may be compared at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.measures import METRICS
from imbdiff.metrics.numbers import Origin
from imbdiff.reporting import tables
from imbdiff.reporting.content import ReportData, spread
from imbdiff.reporting.measured import arrow, kind_of, texts
from imbdiff.reporting.report import render
from imbdiff.reporting.sprites import Sprite, pack, page_size, scaled_down
from imbdiff.reporting.tables import Cell
from imbdiff.reporting.text import NOTHING, clean, number
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import rng

MAX_CLASSES = 6
MAX_NUMBERS = 120
MAX_RUNS = 12
IMAGES = 8


def build_comparison(runs: Sequence[ReportData]) -> str:
    """Runs side by side as one HTML page: verdicts, accuracy of every arm, metrics, images of the same classes.

    What makes numbers incomparable is said on top: other splits, other judges, other references, other numbers of
    images. At most 12 runs; images of 6 classes spread over the size ranking of the first run.

    Raises:
        ConfigError: fewer than two runs, or more than fit on a page.
    """
    if not 2 <= len(runs) <= MAX_RUNS:
        raise ConfigError(f"{len(runs)} runs to compare", f"name 2 to {MAX_RUNS} run folders")
    titles = [clean(run.title) for run in runs]
    if len(set(titles)) < len(titles):
        titles = [f"{title} ({clean(run.run)})" for title, run in zip(titles, runs, strict=True)]
    return render(
        "compare.html.j2",
        title=f"{len(runs)} runs compared",
        names=titles,
        runs=runs,
        verdicts=[tables.verdict(run.classifier) for run in runs],
        differences=differences(runs),
        overview=_overview(runs),
        arms=_arms(runs),
        metrics=_metrics(runs),
        strips=_images(runs),
        scaled_down=list(dict.fromkeys(scaled_down(run.synthetic.shape) for run in runs if run.synthetic is not None)),
        commands=[clean(run.command) for run in runs],
    )


def differences(runs: Sequence[ReportData]) -> list[str]:
    """Sentences on what differs between the runs that must be equal for their numbers to be compared."""

    found = []
    if _several(run.stats for run in runs):
        found.append("The training images are not the same: class names or counts differ.")
    elif _several(run.manifest.get("hash") for run in runs):
        found.append("The splits differ (other hash): accuracies and distances belong to other test images.")
    if _several(run.groups.of_class for run in runs):
        found.append("The groups are not the same classes: compare no number of a group.")
    if _several(_references(run) for run in runs):
        found.append("The references behind numbers of the same name differ: their distances cannot be compared.")
    for what, key in (("extractors", "fingerprint"), ("reference sizes", "n_reference")):
        if _disagree(runs, key):
            found.append(
                f"The {what} behind numbers of the same name differ: these numbers stand on lines of their own."
            )
    if _disagree(runs, "n_synthetic"):
        found.append(
            "Distances were measured with different numbers of synthetic images, which biases them differently."
        )
    for key in ("steps", "batch_size", "network", "seeds", "augmentation"):
        if _several(((run.classifier or {}).get("protocol") or {}).get(key) for run in runs):
            found.append(f"The classifiers were trained with different {key.replace('_', ' ')}.")
    return found


def _several(values: Iterable[Any]) -> bool:
    """Whether known values differ; a run without one agrees with all."""
    return len({repr(value) for value in values if value is not None}) > 1


def _references(run: ReportData) -> list[str] | None:
    if run.metrics is None:
        return None
    return sorted({str(entry.get("reference")) for entry in run.metrics.get("numbers") or ()})


def _disagree(runs: Sequence[ReportData], key: str) -> bool:
    """Whether numbers of one metric, scope and reference differ in `key` between runs that both have them."""
    seen: dict[tuple[str, ...], list[Any]] = {}
    for run in runs:
        for entry in (run.metrics or {}).get("numbers") or ():
            what = (Origin.from_json(entry).label, *(str(entry.get(part)) for part in ("scope", "reference")))
            seen.setdefault(what, []).append(entry.get(key))
    return any(_several(values) for values in seen.values())


def _overview(runs: Sequence[ReportData]) -> list[tuple[str, list[str]]]:
    """Rows of the first table: label and one text per run."""
    rows: list[tuple[str, Callable[[ReportData], str]]] = [
        ("Method", lambda r: clean(r.method)),
        ("Source", lambda r: clean(r.source)),
        ("Training images", lambda r: number(r.stats.total)),
        ("Imbalance factor", lambda r: number(r.stats.imbalance_factor, 1)),
        ("Synthetic images", lambda r: number(sum(r.filled))),
        ("Images seen in training", lambda r: number(r.log[-1].get("images")) if r.log else NOTHING),
        ("Split hash", lambda r: clean(r.manifest.get("hash") or NOTHING)[:16]),
        ("Time", lambda r: tables.timing_rows(r.timings)[-1][1] if r.timings else NOTHING),
    ]
    return [(name, [get(run) for run in runs]) for name, get in rows]


@dataclass(frozen=True)
class CompareRow:
    """One line of a comparison table: what, in which scope, one cell per run."""

    name: str
    scope: str
    synthetic: bool
    cells: tuple[Cell, ...]


def _arms(runs: Sequence[ReportData]) -> list[CompareRow]:
    """Every arm and scope that any run has; of the numbers beside accuracies those that all runs with arms have."""
    found: dict[tuple[str, str, bool], dict[int, Cell]] = {}
    trained = [
        tables.columns(run.classifier, run.groups) for run in runs if run.classifier and run.classifier.get("arms")
    ]
    extras = [x for x in tables.EXTRAS if trained and all(x in columns for columns in trained)]
    for i, run in enumerate(runs):
        shown = tables.columns(run.classifier or {}, run.groups)
        scopes = [scope for scope in shown if scope not in tables.EXTRAS or scope in extras]
        for arm in tables.arm_rows(run.classifier or {}, scopes):
            for scope, cell in zip(scopes, arm.cells, strict=True):
                found.setdefault((arm.name, scope, arm.synthetic), {})[i] = cell
    return _filled(found, len(runs))


def _metrics(runs: Sequence[ReportData]) -> list[CompareRow]:
    """One line per number and scope that at least one run has, the main numbers first.

    Numbers of equal name stand on one line only if they were made with the same extractor (by fingerprint) against the
    same reference with equally many reference images; otherwise each has a line of its own, that says what differs.
    """
    lines: dict[tuple[str, ...], dict[int, Mapping[str, Any]]] = {}
    for i, run in enumerate(runs):
        for record in (run.metrics or {}).get("numbers") or ():
            lines.setdefault(_same(record, run.metrics or {}), {})[i] = record
    twice = Counter(line[:3] for line in lines)
    order = list(METRICS)
    made: list[tuple[tuple[Any, ...], CompareRow]] = []
    for place, (line, found) in enumerate(lines.items()):
        metric, scope, reference, fingerprint, images, size = line
        record = next(iter(found.values()))
        kind = kind_of(record)
        if all(r.get("refused") for r in found.values()) or (kind.name in METRICS and not kind.main):
            continue  # what no run could print, and the lesser numbers, are on the runs' own pages
        name = f"{clean(metric)} {arrow(record.get('direction'))}".rstrip()
        if not kind.alone and kind.name != "CAS":
            name += f" against {clean(reference)}"
        where = clean(scope)
        if twice[line[:3]] > 1:
            name += f" (extractor {clean(fingerprint)[:8]}" + (f", images {clean(images)[:8]})" if images else ")")
            where += f", {clean(size)} reference images" if size not in ("0", "None") else ""
        cells = tuple(_cell(found[i]) if i in found else Cell(NOTHING) for i in range(len(runs)))
        rank = order.index(kind.name) if kind.name in order else len(order)
        sort = (bool(record.get("ranking_only")), reference == "train", rank, place)
        made.append((sort, CompareRow(name, where, True, cells)))
    # a number's scopes stay together: the place of its first line counts
    first: dict[str, tuple[Any, ...]] = {}
    for sort, row in sorted(made, key=lambda pair: pair[0]):
        first.setdefault(row.name, sort)
    made.sort(key=lambda pair: (first[pair[1].name], pair[0]))
    return [row for _, row in made][:MAX_NUMBERS]


def _same(record: Mapping[str, Any], metrics: Mapping[str, Any]) -> tuple[str, ...]:
    """What must be equal for two numbers to stand on one line: the last three are extractor, reference and its n."""
    reference = str(record.get("reference"))
    fingerprints = (metrics.get("protocol") or {}).get("fingerprints") or {}
    images = str(fingerprints.get(reference) or fingerprints.get("reference") or "")
    name, alone = Origin.from_json(record).label, kind_of(record).alone  # of the synthetic images alone
    size = "0" if alone else str(record.get("n_reference"))
    return (name, str(record.get("scope")), reference, str(record.get("fingerprint")), "" if alone else images, size)


def _cell(record: Mapping[str, Any]) -> Cell:
    if record.get("refused"):
        return Cell("refused", clean(record["refused"]), refused=True)
    value, between = texts(record)
    return Cell(value, between, f"{number(record.get('n_synthetic'))} images")


def _filled(found: dict[tuple[str, str, bool], dict[int, Cell]], n: int) -> list[CompareRow]:
    order = list(dict.fromkeys(name for name, _, _ in found))  # as first met, all scopes of a name together
    return [
        CompareRow(name, scope, synthetic, tuple(cells.get(i, Cell(NOTHING)) for i in range(n)))
        for (name, scope, synthetic), cells in sorted(found.items(), key=lambda item: order.index(item[0][0]))
    ]


@dataclass(frozen=True)
class RunStrip:
    """Synthetic images of one class by one run; `sprite` is None where there are none."""

    run: str
    sprite: Sprite | None
    width: int
    height: int
    scale: int
    count: int


def _images(runs: Sequence[ReportData]) -> list[tuple[str, list[RunStrip]]]:
    """For a few classes of the first run: the same class in every run that has it, by name."""
    if not any(run.synthetic is not None for run in runs):
        return []
    first = runs[0]
    shown = []
    for k in spread(first.by_size, MAX_CLASSES):
        name = first.stats.names[k]
        shown.append((clean(name), [image_strip(clean(run.title), run.synthetic, name) for run in runs]))
    return shown


def image_strip(title: str, images: ImageSet | None, name: str) -> RunStrip:
    """At most 8 images of the class `name`, at random with a fixed seed."""
    if images is None or name not in images.class_names:
        return RunStrip(title, None, 0, 0, 1, 0)
    own = np.flatnonzero(images.labels == images.class_names.index(name))
    if not len(own):
        return RunStrip(title, None, 0, 0, 1, 0)
    if len(own) > IMAGES:
        own = np.sort(rng(0, "compare", name).choice(own, IMAGES, replace=False))
    h, w = page_size(images.shape)
    scale = max(1, round(48 / max(h, w)))
    return RunStrip(title, pack(list(images.images[own])), w * scale, h * scale, scale, len(own))
