"""The page of a run, and that of `imbdiff evaluate FAKE --reference REAL`: lists of sections.

A new section is a function from results to a :class:`~imbdiff.reporting.blocks.Section` (or None) in its own file, and
one line in :func:`build_report`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.class_plot import Classes, class_plot
from imbdiff.reporting.classifier import classifiers, verdict
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.copies import copies
from imbdiff.reporting.curated import curation
from imbdiff.reporting.images import images
from imbdiff.reporting.quality import quality
from imbdiff.reporting.text import flatten, number
from imbdiff.reporting.training import idle_notes, training

MAX_WARNINGS = 20
MAX_CLASS_ROWS = 1000


def build_report(data: ReportData) -> str:
    """The page as HTML text, UTF-8, with no reference to anything outside it.

    For what was not computed the page names the command that computes it. Caps, all stated on the page: 30 classes of
    images spread over the size ranking, 64 pixels on the longer side of an image, 1,000 rows of classes, 12 tables of
    numbers, 12 loss curves.
    """
    run = shlex.quote(str(data.run))
    sections = [
        _classes(data, run),
        images(data, run),
        curation(data),
        copies(data),
        classifiers(data, run),
        quality(data.metrics, run),
        training(data, run),
        _protocol(data),
        _warnings(data),
        _repeat("Repeat this run", data.command),
    ]
    return ui.render("report", data.title, [*verdict(data.classifier, run), _facts(data)], sections)


def build_evaluation(
    found: Mapping[str, Any],
    *,
    title: str,
    command: str,
    synthetic: ImageSet | None = None,
    train: ImageSet | None = None,
) -> str:
    """The page of any two sets of images, no run, perhaps no classes, as :func:`build_report` makes it.

    Args:
        found: what :func:`imbdiff.metrics.evaluate.evaluate` gave, with or without training images, groups and classes.
        title: the page's heading.
        command: the command line that repeats it.
        synthetic: the measured images, for the pictures; all of them, as memorisation names them by their place.
        train: the training images, for the pictures of what is nearest to them.
    """
    data = _evaluated(found, title, command, synthetic, train)
    protocol = found["protocol"]
    facts = [
        ui.fact(number(protocol.get(f"n_{key}")), f"{what} images", protocol.get(key) or "")
        for key, what in (("synthetic", "synthetic"), ("reference", "reference"), ("train", "training"))
        if protocol.get(f"n_{key}") is not None
    ]
    if data.stats.num_classes > 1:
        facts.append(ui.fact(number(data.stats.num_classes), "classes"))
    top: list[ui.Block] = [ui.Items(facts, "facts")]
    if data.memorisation is None:
        top.append(ui.note("No copies were searched: no training images were given (--train)."))
    sections = [
        quality(found, "RUN"),
        images(data, "RUN") if synthetic is not None else None,
        copies(data),
        _repeat("Repeat this evaluation", command),
    ]
    return ui.render("evaluation", title, top, sections)


def _evaluated(
    found: Mapping[str, Any], title: str, command: str, synthetic: ImageSet | None, train: ImageSet | None
) -> ReportData:
    """As a run's page has it; where there are no training images, the reference's counts stand for theirs."""
    classes = found.get("classes") or {}
    names = tuple(str(one) for one in classes.get("names") or ("all",))
    counts = classes.get("n_train") or classes.get("n_reference") or (1,) * len(names)
    stats = ClassStats(names, tuple(max(1, int(n)) for n in counts))
    group = classes.get("group") or ("all classes",) * len(names)
    known = tuple(dict.fromkeys(group))
    groups = Groups(known, tuple(known.index(one) for one in group), "")
    return ReportData(title, command, "", "", stats, groups, train=train, synthetic=synthetic, metrics=found)


def _facts(data: ReportData) -> ui.Items:
    counts = data.stats.counts
    facts = [
        ui.fact(number(len(counts)), "classes", f"{min(counts):,} to {max(counts):,} images"),
        ui.fact(number(data.stats.total), "real training images"),
        ui.fact(number(data.stats.imbalance_factor, 1), "imbalance factor", "largest class / smallest"),
    ]
    if any(data.filled):
        after = [n + m for n, m in zip(counts, data.filled, strict=True)]
        facts.append(ui.fact(number(sum(data.filled)), "synthetic images"))
        facts.append(ui.fact(number(max(after) / min(after), 1), "imbalance factor with them", "real + synthetic"))
    return ui.Items(facts, "facts")


def _classes(data: ReportData, run: str) -> ui.Section:
    """Class histogram, and all classes as a table."""
    order, names, counts, filled = data.by_size, data.stats.names, data.stats.counts, data.filled
    real, both = [counts[k] for k in order], [counts[k] + filled[k] for k in order]
    layers = [(both, "synthetic"), (real, "real")]
    plot = class_plot(Classes(order, [names[k] for k in order], [data.group(k) for k in order], real), layers=layers)
    rows = [
        [ui.name(names[k]), data.group(k), *(number(n) for n in (counts[k], filled[k], counts[k] + filled[k]))]
        for k in order[:MAX_CLASS_ROWS]
    ]
    columns: ui.Cells = ["class", "group", *(ui.Column(text) for text in ("real", "synthetic", "both"))]
    blocks: list[ui.Block] = [
        ui.legend(real="real training images", synthetic="synthetic images, on top" if any(filled) else ""),
        ui.Figures([plot]),
        *([] if any(filled) else [ui.missing("No synthetic images have been sampled.", f"imbdiff sample {run}")]),
        ui.Fold(f"All classes as a table{ui.of_all(len(rows), len(order), 'classes')}", [ui.Table(columns, rows)]),
    ]
    return ui.Section("classes", "Real and synthetic images per class", blocks, "Classes")


def _protocol(data: ReportData) -> ui.Section:
    """What one must know to repeat the numbers: split, groups, method, judge, classifier, environment."""
    m, stats = data.manifest, data.stats
    counts = ", ".join(f"{sum(n):,} {split}" for split, n in (m.get("counts") or {}).items() if n)
    rows = {
        "Method": data.method,
        **data.protocol,
        "Source": data.source,
        "Training images": f"{stats.total:,} in {counted(stats.num_classes, 'class', 'classes')}, imbalance factor "
        f"{number(stats.imbalance_factor, 1)}",
        "Split sizes": counts,
        "Split hash": m.get("hash") or "",
        "Groups": data.groups.rule,
        "Long tail": ", ".join(f"{k} {text}" for k, text in flatten(m.get("long_tail") or {}) if k),
        "Test images": m.get("test_from") or "",
        "Validation": m.get("val_from") or "",
        "Split seed": str(m.get("seed", "")),
    }
    blocks: list[ui.Block] = [ui.Definitions(list(rows.items()))]
    for what, values in (("Configuration", data.config), ("Environment", data.environment)):
        if values:
            blocks.append(ui.Fold(what, [ui.Definitions(flatten(values))]))
    return ui.Section("protocol", "Protocol", blocks, "Protocol")


def _warnings(data: ReportData) -> ui.Section | None:
    every = [*data.warnings, *idle_notes(data.log)]
    if not every:
        return None
    more = [f"and {len(every) - MAX_WARNINGS} more"] * (len(every) > MAX_WARNINGS)
    return ui.Section("warnings", "Warnings", [ui.Items(every[:MAX_WARNINGS] + more)], f"Warnings ({len(every)})")


def _repeat(title: str, command: str) -> ui.Section:
    return ui.Section("repeat", title, [ui.Text("", command=command)], "Repeat")
