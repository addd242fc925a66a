"""The page of `imbdiff inspect SOURCE --out FOLDER`: what is in a set of images, with pictures."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imbdiff.data.findings.text import CHANGES, VERDICTS, advice
from imbdiff.data.inspect import Inspection
from imbdiff.data.names import counted
from imbdiff.reporting import inspection_boards as boards
from imbdiff.reporting.content import spread
from imbdiff.reporting.gallery import Gallery, Sheet
from imbdiff.reporting.inspection_plot import counts_plot
from imbdiff.reporting.report import render
from imbdiff.reporting.strips import Tile
from imbdiff.reporting.text import clean, label, number, shorten

MAX_ROWS = 200
MAX_CLASSES = 30
PER_CLASS = 8
MAX_LISTED = 50
MAX_SIZES = 12
MAX_REASONS = 12


def build_inspection(seen: Inspection, estimate: Mapping[str, Any] | None, command: str) -> str:
    """The page as HTML text, UTF-8, with no reference to anything outside it.

    Caps, all stated on the page: 200 classes in the table and 30 with pictures, 24 pairs of each kind of duplicates, 24
    suspicious labels, 50 rows of other lists. The JSON report holds the rest.

    Args:
        seen: what was inspected.
        estimate: what :func:`imbdiff.pipeline.inspection.run_estimate` gave.
        command: the command line that repeats it.
    """
    report, gallery = seen.report, Gallery(seen)
    classes = sorted(range(len(report["classes"])), key=lambda k: -report["classes"][k]["counts"]["train"])
    rows = [report["classes"][k] for k in classes]
    splits = report["source"]["splits"]
    return render(
        "inspection.html.j2",
        title=clean(report["source"]["name"]),
        kind=report["source"]["kind"],
        report=report,
        facts=_facts(report),
        findings=_findings(report),
        plot=counts_plot(
            [label(row["name"], f"#{k}") for k, row in zip(classes, rows, strict=True)],
            [row["counts"]["train"] for row in rows],
            [row["group"] for row in rows],
        ),
        splits=splits,
        rows=_class_rows(report, estimate, classes),
        hidden=max(0, len(rows) - MAX_ROWS),
        strips=_strips(seen, gallery, classes),
        strip_cap=MAX_CLASSES,
        scaled=_scaled(report, gallery),
        sizes=[(f"{h} × {w}", number(n)) for h, w, n in report["sizes"][:MAX_SIZES]],
        more_sizes=max(0, len(report["sizes"]) - MAX_SIZES),
        bad=_bad(report["bad"]),
        reasons=[(shorten(why, 300), number(n)) for why, n in Counter(report["bad"].values()).most_common(MAX_REASONS)],
        exact=boards.exact(report, gallery),
        near=[(_near_head(row), boards.near(row, gallery)) for row in _near_rows(report)],
        conflicts=boards.conflicts(report, gallery),
        suspicious=boards.suspicious(report, gallery),
        names=[
            ([clean(name) for name in row["names"][:10]], row["why"]) for row in report["labels"]["names"][:MAX_LISTED]
        ],
        listed=_listed(report["labels"]),
        symmetry=_symmetry(report["symmetry"]),
        advice=advice(report["symmetry"]["suggest"]),
        drawn=bool((estimate or {}).get("draw")),
        refused=(estimate or {}).get("refused", ""),
        estimate_notes=(estimate or {}).get("notes", ()),
        estimate_rows=_estimate_rows(estimate),
        warnings=[clean(text) for text in report["warnings"]],
        next_steps=_next_steps(report),
        command=clean(command),
        max_listed=MAX_LISTED,
    )


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Key figures: (value, what, small print)."""
    splits = report["source"]["splits"]
    counts = [row["counts"]["train"] for row in report["classes"]]
    each = ", ".join(f"{n:,} {split}" for split, n in report["images"].items()) if len(splits) > 1 else ""
    facts = [
        (number(len(counts)), "classes", f"{min(counts):,} to {max(counts):,} images"),
        (number(sum(report["images"].values())), "images", each),
        (number(report["imbalance_factor"], 1), "imbalance factor", "largest class / smallest"),
        (number(report["normalised_entropy"]), "normalised entropy", "1: balanced"),
    ]
    if report["bad"]:
        facts.append((number(len(report["bad"])), "unusable files", "not counted"))
    return facts


def _findings(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(anchor, sentence) of what deserves a look."""
    labels, found = report["labels"], []
    if report["bad"]:
        found.append(("damaged", f"{counted(len(report['bad']), 'unusable file')}: a run refuses the set as it is"))
    for kind, where in (("within", "inside a split"), ("across", "in more than one split")):
        if n := len(report["duplicates"][kind]):
            found.append(("duplicates", f"{counted(n, 'group')} of equal images {where}"))
    for row in _near_rows(report):
        if row["beyond_chance"]:
            found.append(("duplicates", _near_head(row)))
    if n := len(labels["duplicates"]):
        found.append(("labels", f"{counted(n, 'image')} under more than one class"))
    if n := len(labels["near_duplicates"]):
        found.append(("labels", f"{counted(n, 'pair')} of near duplicates with different labels"))
    if n := labels["suspicious"]["found"]:
        found.append(("labels", f"{counted(n, 'image')} among images of one other class"))
    if n := len(labels["names"]):
        found.append(("labels", f"{counted(n, 'class name', 'class names')} to look at"))
    for key, what in (("single", "of a single image"), ("copies", "of mostly copies"), ("flat", "of one flat colour")):
        if n := len(labels[key]):
            found.append(("labels", f"{counted(n, 'class', 'classes')} {what}"))
    if len(report["sizes"]) > 1:
        found.append(("sizes", f"{len(report['sizes']):,} different sizes: a run needs --data.size"))
    return found


def _class_rows(
    report: Mapping[str, Any], estimate: Mapping[str, Any] | None, classes: Sequence[int]
) -> list[tuple[str, str, list[str], list[str]]]:
    """(name, group, counts per split, further numbers) of at most 200 classes, the 50 smallest among them."""
    shown = list(classes[:MAX_ROWS]) if len(classes) <= MAX_ROWS else [*classes[: MAX_ROWS - 50], *classes[-50:]]
    drawn = (estimate or {}).get("draw")
    rows = []
    for k in shown:
        row = report["classes"][k]
        more = [f"{100 * row['share']:.3g} %", *(number(row["effective"][beta], 1) for beta in ("0.999", "0.9999"))]
        more += [number(int(drawn[k]))] if drawn else []
        rows.append(
            (clean(row["name"]), row["group"], [number(row["counts"][s]) for s in report["source"]["splits"]], more)
        )
    return rows


def _bad(bad: Mapping[str, str]) -> list[tuple[str, str]]:
    """(file, why) of at most 50: the first of every reason before the second of any."""
    turn: Counter[str] = Counter()
    ranked = []
    for name, why in sorted(bad.items()):
        ranked.append((turn[why], name, why))
        turn[why] += 1
    return [(shorten(name, 300), shorten(why, 300)) for _, name, why in sorted(ranked)[:MAX_LISTED]]


def _near_rows(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in (*report["near_duplicates"], *report["near_duplicates_within"]) if row["near"]]


def _near_head(row: Mapping[str, Any]) -> str:
    looked = "" if row["looked_up"] == row["total"] else f", {row['looked_up']:,} of {row['total']:,} looked up"
    looked += "" if row["beyond_chance"] else ", no more than chance may give"
    if row["first"] == row["second"]:
        return f"{counted(row['near'], 'pair')} of near duplicates inside {row['first']}{looked}"
    near = counted(row["near"], "image")
    return f"{near} of {row['second']} nearly equal to images of {row['first']}{looked}"


def _strips(seen: Inspection, gallery: Gallery, classes: Sequence[int]) -> list[tuple[str, str, Sheet, list[Tile]]]:
    """(class, what, sheet, tiles) of at most 30 classes spread over the ranking by size; the lowest hashes."""
    train = seen.looks["train"]
    order = np.argsort(np.array(train.hashes), kind="stable")
    groups = [row["group"] for row in seen.report["classes"]]
    present = [k for k in classes if seen.report["classes"][k]["counts"]["train"]]
    strips = []
    for k in spread(present, MAX_CLASSES):
        mine = order[train.labels[order] == k][:PER_CLASS].tolist()
        sheet, tiles = gallery.sheet([("train", i) for i in mine], [train.ids[i] for i in mine])
        what = f"{groups[k]} · {counted(seen.report['classes'][k]['counts']['train'], 'image')}"
        strips.append((clean(seen.source.class_names[k]), what, sheet, tiles))
    return strips


def _listed(labels: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, names) of classes that are odd as a whole."""
    kinds = {
        "single": "Classes of a single image",
        "copies": "Classes of mostly exact copies",
        "flat": "Classes of images of one flat colour",
    }
    rows = []
    for key, what in kinds.items():
        if labels[key]:
            more = f" and {len(labels[key]) - MAX_LISTED} more" if len(labels[key]) > MAX_LISTED else ""
            rows.append((what, ", ".join(shorten(name, 60) for name in labels[key][:MAX_LISTED]) + more))
    if labels["suspicious"]["not_judged"] and labels["suspicious"]["looked_up"]:
        n = len(labels["suspicious"]["not_judged"])
        text = f"{counted(n, 'class', 'classes')}: too few images, or in small they look like those of other classes"
        rows.append(("Labels not judged by neighbours", text))
    return rows


def _symmetry(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """(change, share with interval, images, verdict)."""
    rows = []
    for key, what in CHANGES.items():
        row = found[key]
        if row["share"] is not None:
            share = f"{number(row['share'], 2)} ({number(row['low'], 2)} to {number(row['high'], 2)})"
            rows.append((what, share, number(row["images"]), VERDICTS[row["verdict"]]))
    return rows


def _estimate_rows(estimate: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not estimate or "refused" in estimate:
        return []
    classes = sum(n > 0 for n in estimate["draw"])
    drawn = f"{number(sum(estimate['draw']))} images for {counted(classes, 'class', 'classes')}"
    rows = [
        ("Training images", number(sum(estimate["training"]))),
        ("Validation, test", f"{number(estimate['validation'])}, {number(estimate['test'])}"),
        ("To be drawn", f"{drawn} (strategy {estimate['strategy']}: every class filled to the largest)"),
    ]
    cost = estimate.get("cost")
    if cost and "refused" in cost:
        rows.append(("Cost", f"not measured: {shorten(cost['refused'], 400)}"))
    elif cost:
        rows += [(clean(what), clean(text)) for what, text in cost["rows"] if what not in ("source", "per class")]
    return rows


def _scaled(report: Mapping[str, Any], gallery: Gallery) -> str:
    if len(report["sizes"]) == 1 and tuple(report["sizes"][0][:2]) == gallery.target.shape:
        return ""
    return f"Pictures are scaled to {gallery.target.height} × {gallery.target.width} pixels."


def _next_steps(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what for, command)."""
    source = shlex.quote(clean(report["source"]["name"]))
    options = ""
    if len(report["sizes"]) > 1 and report["suggested_size"]:
        options += f" --data.size {report['suggested_size'][0]}"
        options += " --data.resize pad" if report["resize"]["policy"] == "pad" else ""
    augment = advice(report["symmetry"]["suggest"]) if report["symmetry"]["suggest"] in ("mirror", "turns") else ""
    steps = [
        ("What a run would do, and how long it would take; writes nothing", f"imbdiff run {source}{options} --dry-run"),
        ("Everything: train, draw, measure, classify, report", f"imbdiff run {source}{options}"),
    ]
    if augment:
        what = "The same with images mirrored at random, if you agree that mirrored images mean the same"
        if report["symmetry"]["suggest"] == "turns":
            what = "The same with images mirrored and turned at random, if you agree that these mean the same"
        steps.append((what, f"imbdiff run {source}{options} {augment}"))
    return steps
