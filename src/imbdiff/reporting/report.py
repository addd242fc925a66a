"""The page of a run, and that of `imbdiff evaluate FAKE --reference REAL`: lists of sections.

A new section is a function from results to a :class:`~imbdiff.reporting.blocks.Section` (or None) in its own file, and
one line in :func:`build_report`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.classifier import classifiers, verdict
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.copies import copies
from imbdiff.reporting.curated import curation
from imbdiff.reporting.pictures import fitting, page_size, spread
from imbdiff.reporting.plots import class_histogram, finite, is_wide, loss_curve
from imbdiff.reporting.quality import quality
from imbdiff.reporting.text import NOTHING, flatten, label, number, seconds, shorten
from imbdiff.runtime.log import COSINE, SHARE
from imbdiff.runtime.streams import rng

__all__ = ["ReportData", "build_evaluation", "build_report"]

MAX_WARNINGS = 20
MAX_TERMS = 12
MAX_CLASS_ROWS = 1000
MAX_CLASSES, MAX_COLUMNS = 30, 8
SAMPLED_CLASSES = 12
BYTES_PER_KIND = 50_000  # of raw pixels of a class: keeps a page of 10 classes below 3 MB and one of 30 below 10 MB
NOT_TERMS = frozenset(
    {"step", "images", "epoch", "lr", "learning_rate", "time", "wall", "wall_s", "seconds", "elapsed", "images_per_s"}
    | {"images_per_second", "grad_norm", "gradient_norm", "memory", "rank", "batch", "compared"}
)  # columns of the training log that are not losses
IDLE = 0.01
"""Share of the gradient's norm below which, for a whole training, a term is said to have done next to nothing."""


def build_report(data: ReportData) -> str:
    """The page as HTML text, UTF-8, with no reference to anything outside it.

    What was not computed is said so, with the command that computes it. Caps, all stated on the page: 30 classes of
    images spread over the size ranking, 64 pixels on the longer side of an image, 1,000 rows of classes, 12 tables of
    numbers, 12 loss curves.
    """
    run = shlex.quote(str(data.run))
    sections = [
        _classes(data, run),
        _images(data, run),
        curation(data),
        copies(data),
        classifiers(data, run),
        quality(data.metrics, run, data.memorisation),
        _training(data, run),
        _protocol(data),
        _warnings(data),
        _repeat("Repeat this run", data.command),
    ]
    top = [*verdict(data, run), _facts(data)]
    return ui.render(ui.Page("report", data.title, top, [section for section in sections if section]))


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
    sections = [
        quality(found, "RUN", data.memorisation),
        _images(data, "RUN") if train is not None else _samples(synthetic),
        copies(data),
        _repeat("Repeat this evaluation", command),
    ]
    protocol = found.get("protocol") or {}
    facts = [
        ui.fact(number(protocol.get(f"n_{key}")), f"{what} images", protocol.get(key) or "")
        for key, what in (("synthetic", "synthetic"), ("reference", "reference"), ("train", "training"))
        if key != "train" or protocol.get("n_train") is not None
    ]
    classes = len((found.get("classes") or {}).get("names") or ())
    top: list[ui.Block] = [ui.Items(facts + ([ui.fact(number(classes), "classes")] if classes > 1 else []), "facts")]
    if data.memorisation is None:
        top.append(ui.note("Copies were not looked for: no training images were given (--train)."))
    return ui.render(ui.Page("evaluation", title, top, [section for section in sections if section]))


def _evaluated(
    found: Mapping[str, Any], title: str, command: str, synthetic: ImageSet | None, train: ImageSet | None
) -> ReportData:
    """As a run's page has it; where there are no training images, the reference's counts stand for theirs."""
    classes = found.get("classes") or {}
    names = tuple(str(one) for one in classes.get("names") or ("all",))
    counts = classes.get("n_train") or classes.get("n_reference") or (1,) * len(names)
    stats = ClassStats(names, tuple(max(1, int(n)) for n in counts))
    group = classes.get("group")
    known = tuple(dict.fromkeys(group or ("all classes",)))
    groups = Groups(known, tuple(known.index(g) for g in group) if group else (0,) * len(names), "")
    return ReportData(
        title, command, "", "", stats, groups, sampled=tuple(int(n) for n in classes.get("n_synthetic") or ()),
        train=train, synthetic=synthetic, nearest=found.get("memorisation"), metrics=found,
    )  # fmt: skip


def _facts(data: ReportData) -> ui.Items:
    after = [n + m for n, m in zip(data.stats.counts, data.filled, strict=True)]
    c, counts = data.stats.num_classes, data.stats.counts
    facts = [
        ui.fact(number(c), "class" if c == 1 else "classes", f"{min(counts):,} to {max(counts):,} images"),
        ui.fact(number(data.stats.total), "real training images"),
        ui.fact(number(data.stats.imbalance_factor, 1), "imbalance factor", "largest class / smallest"),
    ]
    if any(data.filled):
        facts.append(ui.fact(number(sum(data.filled)), "synthetic images"))
        facts.append(ui.fact(number(max(after) / min(after), 1), "imbalance factor after"))
    return ui.Items(facts, "facts")


def _classes(data: ReportData, run: str) -> ui.Section:
    """Class histogram on linear counts and, where their range is large, on logarithmic ones; all classes as a table."""
    order, sampled = data.by_size, any(data.sampled)
    real = [data.stats.counts[k] for k in order]
    both = [data.stats.counts[k] + data.filled[k] for k in order]
    names, group = [label(data.stats.names[k], f"#{k}") for k in order], [data.group(k) for k in order]
    scales = [False, True] if is_wide(data.stats.counts) else [False]
    what = "Images per class, real and synthetic stacked"
    layers = [(both, "synthetic"), (real, "real")]
    plots = [class_histogram(names, real, layers, group, log, what) for log in scales]
    rows = [
        [ui.name(data.stats.names[k]), data.group(k), number(n), number(data.filled[k]), number(m)]
        for k, n, m in list(zip(order, real, both, strict=True))[:MAX_CLASS_ROWS]
    ]
    left = f" (the {number(len(rows))} largest of {number(len(order))})" if len(rows) < len(order) else ""
    columns: ui.Cells = ["class", "group", ui.Column("real"), ui.Column("synthetic"), ui.Column("together")]
    blocks: list[ui.Block] = [
        ui.legend(real="real training images (before)", synthetic="synthetic images on top (after)" if sampled else ""),
        ui.Figures(plots, ("linear", "log")[: len(plots)]),
        *([ui.note("On the log scale read the tops of the bars, not their areas.")] if len(plots) > 1 else []),
        *([] if data.sampled else [ui.missing("No synthetic images have been sampled.", f"imbdiff sample {run}")]),
        ui.Fold(f"All classes as a table{left}", [ui.Table(columns, rows)]),
    ]
    return ui.Section("classes", "Images per class, before and after filling", blocks, "Classes")


@dataclass(frozen=True)
class Neighbour:
    """The training image nearest to a synthetic one; the distance is None where it was not recorded."""

    index: int
    distance: float | None


def neighbours(nearest: Mapping[str, Any] | None) -> dict[int, Neighbour]:
    """Reads what memorisation found as {synthetic index: neighbour among all training images, of any class}."""
    if not nearest or "index" not in nearest:
        return {}
    rows = zip(nearest["index"], nearest["any_train_index"], nearest["any_distance"], strict=True)
    return {int(i): Neighbour(int(t), None if d is None else float(d)) for i, t, d in rows}


def _images(data: ReportData, run: str) -> ui.Section:
    """For each shown class real images, synthetic ones, and below each its nearest training image.

    Images are chosen at random with a fixed seed, so that nobody picked them; synthetic ones whose nearest neighbour is
    known come before the others.
    """
    title = "Real and synthetic images"
    if data.train is None:
        return ui.Section("images", title, [ui.Text("The images were not given to this page.", "missing")], "Images")
    near = neighbours(data.nearest or (data.metrics or {}).get("memorisation"))
    limit = fitting(data.train.shape, BYTES_PER_KIND, 3, MAX_COLUMNS)
    shelves = [_class_shelf(data, data.train, k, near, limit) for k in spread(data.by_size, MAX_CLASSES)]
    groups = [group for shelf in shelves for one in shelf.sets[1:] for group in one.groups]
    with_near = any(len(group.pictures) > 1 for group in groups)
    copied = sum(group.frame == "copied" for group in groups)
    small = scaled_down(data.train.shape)
    small = f". {small}" if small else "; pixels are enlarged, not smoothed."
    shown = (
        f"Shown are {len(shelves)} of {number(data.stats.num_classes)} classes, spread evenly over the ranking by size."
        if len(shelves) < data.stats.num_classes
        else "Classes are sorted by size."
    )
    texts = [
        f"Images are chosen at random with a fixed seed, not picked{small}",
        shown,
        f"At most {limit} images of each kind.",
        "Below each synthetic image is the training image nearest to it: a synthetic image that equals its neighbour "
        "is a copy, not a new one." * with_near,
        "Where the neighbour belongs to another class, it has a yellow frame."
        * any("other" in p.frame for group in groups for p in group.pictures),
    ]  # fmt: skip
    blocks: list[ui.Block] = [ui.Text(" ".join(text for text in texts if text))]
    if copied:
        equal = "equals" if copied == 1 else "equal"
        blocks.append(
            ui.Text(f"{copied} of the synthetic images shown {equal} a training image exactly (framed).", "alert")
        )
    if groups and not with_near:
        blocks.append(ui.missing("The nearest training images have not been looked up.", f"imbdiff evaluate {run}"))
    if not groups:
        blocks.append(ui.missing("There are no synthetic images to show.", f"imbdiff sample {run}"))
    return ui.Section("images", title, [*blocks, ui.Images(shelves)], "Images")


def scaled_down(shape: tuple[int, int, int]) -> str:
    """A sentence where images of `shape` are not shown at their own size; otherwise empty."""
    shown = page_size(shape)
    if shown == shape[:2]:
        return ""
    return f"Images of {shape[0]} × {shape[1]} pixels (height × width) are scaled down to {shown[0]} × {shown[1]}."


def some(indices: np.ndarray, limit: int, *stream: str | int) -> list[int]:
    """At most `limit` of `indices` at random, in ascending order, the same at each call."""
    if len(indices) > limit:
        indices = np.sort(rng(0, *stream).choice(indices, limit, replace=False))
    return indices.tolist()


def _class_shelf(data: ReportData, train: ImageSet, k: int, near: Mapping[int, Neighbour], limit: int) -> ui.Shelf:
    real = [
        ui.Group([ui.Picture(train.images[i], f"real: {train.ids[i]}")])
        for i in some(np.flatnonzero(train.labels == k), limit, "report", "real", k)
    ]
    groups = []
    synthetic = data.synthetic
    if synthetic is not None and synthetic.shape == train.shape:
        own = np.flatnonzero(synthetic.labels == k)
        known = np.array([i for i in own if int(i) in near], dtype=np.int64)
        for i in some(known if len(known) else own, limit, "report", "synthetic", k):
            head = ui.Picture(synthetic.images[i], f"synthetic: {synthetic.ids[i]}")
            groups.append(_with_neighbour(head, near.get(i), train, k))
    sets = [ui.PictureSet(real, "real", kind="real")]
    if synthetic is not None:
        small = "above its nearest training image" if any(len(group.pictures) > 1 for group in groups) else ""
        empty = "no synthetic images of this class"
        sets.append(ui.PictureSet(groups, "synthetic", small, "synthetic", empty))
    n = f"{number(data.stats.counts[k])} real" + (f" + {number(data.filled[k])} synthetic" if data.filled[k] else "")
    return ui.Shelf(sets, data.stats.names[k], f"{data.group(k)} · {n}")


def _with_neighbour(head: ui.Picture, found: Neighbour | None, train: ImageSet, k: int) -> ui.Group:
    if found is None or not 0 <= found.index < len(train):
        return ui.Group([head])
    away = "" if found.distance is None else f", distance {number(found.distance)}"
    other = int(train.labels[found.index])
    away += "" if other == k else f", of class {train.class_names[other]}"
    title = f"nearest training image: {train.ids[found.index]}{away}"
    below = ui.Picture(train.images[found.index], title, "near" if other == k else "near other")
    return ui.Group([head, below], frame="copied" if found.distance == 0 else "")


def sample_set(images: ImageSet | None, class_name: str, heading: str = "") -> ui.PictureSet:
    """At most 8 images of the class, at random with a fixed seed."""
    if images is None or class_name not in images.class_names:
        return ui.PictureSet([], heading)
    own = np.flatnonzero(images.labels == images.class_names.index(class_name))
    chosen = some(own, MAX_COLUMNS, "compare", class_name)
    return ui.PictureSet(
        [ui.Group([ui.Picture(images.images[i], f"synthetic image of {class_name}")]) for i in chosen], heading
    )


def _samples(synthetic: ImageSet | None) -> ui.Section | None:
    """A few synthetic images of at most 12 classes, spread over the labels."""
    if synthetic is None:
        return None
    names = [synthetic.class_names[k] for k in spread(range(len(synthetic.class_names)), SAMPLED_CLASSES)]
    shelves = [ui.Shelf([sample_set(synthetic, one)], one if len(names) > 1 else "") for one in names]
    few = f" Shown are {len(names)} of {number(len(synthetic.class_names))} classes." * (
        len(names) < len(synthetic.class_names)
    )
    text = f"Chosen at random with a fixed seed, not picked.{few} {scaled_down(synthetic.shape)}"
    return ui.Section("images", "Synthetic images", [ui.note(text), ui.Images(shelves)], "Images")


def _training(data: ReportData, run: str) -> ui.Section:
    curves = loss_columns(data.log)
    blocks: list[ui.Block] = []
    if curves:
        plots = [loss_curve("total loss" if term == "loss" else term, *curve) for term, curve in curves.items()]
        blocks = [ui.Figures(plots)]
        blocks.append(ui.note("Line: median of short stretches of the log; band: 10th to 90th percentile within them."))
    else:
        blocks.append(ui.missing("No training log.", f"imbdiff train {run}"))
    shares = term_shares(data.log)
    if shares:
        table: list[ui.Cells] = []
        for row in shares:
            head = ui.Cell(row.term, "next to nothing" if row.idle else "")
            cosine = NOTHING if row.cosine is None else f"{row.cosine:+.2f}"
            spread_out = f"{100 * row.least:.1f} to {100 * row.most:.1f} %"
            table.append([head, f"{100 * row.mean:.1f} %", spread_out, cosine])
        heads: ui.Cells = [
            "term",
            ui.Column("share of the gradient"),
            ui.Column("range"),
            ui.Column("cosine with the base loss"),
        ]
        blocks += [
            ui.Heading("What each loss term did"),
            ui.Table(heads, table, "short"),
            ui.note("Norm of each weighted term's gradient over the sum of all norms, mean of "
                 f"{counted(shares[0].times, 'measurement')} during training. A negative cosine: the term pulls "
                 "against the denoising loss."),
        ]  # fmt: skip
    timings = stage_times(data.timings)
    if timings:
        longest = max(timings.values()) or 1.0
        times: list[ui.Cells] = [
            [stage, seconds(spent), Markup('<i class="bar" style="width:{:.0f}px"></i>').format(320 * spent / longest)]
            for stage, spent in timings.items()
        ]
        times += [["total", seconds(sum(timings.values())), ""]] if len(times) > 1 else []
        blocks += [ui.Heading("Time per stage"), ui.Table(["stage", ui.Column("time"), ""], times, "short")]
    return ui.Section("training", "Training", blocks, "Training")


def loss_columns(log: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """(images seen, values) of the total loss, then of each named term, at most 12."""
    found: dict[str, tuple[list[float], list[float]]] = {"loss": ([], [])}
    for i, row in enumerate(log):
        for key, value in row.items():
            if key not in NOT_TERMS and not key.startswith((SHARE, COSINE)) and finite(value):
                images, values = found.setdefault(key, ([], []))
                images.append(float(row.get("images", row.get("step", i))))
                values.append(float(value))
    return {term: curve for term, curve in list(found.items())[:MAX_TERMS] if curve[0]}


@dataclass(frozen=True)
class TermShare:
    """What a term of the loss had to do with the gradient.

    Attributes:
        term: objective/term.
        mean, least, most: share of the gradient's norm over the training.
        cosine: its mean cosine with the base loss's gradient; None for a term of that loss.
        times: how often it was measured.
    """

    term: str
    mean: float
    least: float
    most: float
    cosine: float | None
    times: int

    @property
    def idle(self) -> bool:
        """Whether it did next to nothing all the time."""
        return self.most < IDLE


def term_shares(log: Sequence[Mapping[str, Any]]) -> list[TermShare]:
    """A row for each term that the log speaks of, the largest share first; empty where one term trained alone."""
    values: dict[str, list[float]] = {}
    for row in log:
        for key, value in row.items():
            if key.startswith((SHARE, COSINE)) and finite(value):
                values.setdefault(key, []).append(float(value))
    rows = []
    for key, shares in values.items():
        if key.startswith(SHARE):
            term = key.removeprefix(SHARE)
            cosines = values.get(COSINE + term)
            mean = float(np.mean(cosines)) if cosines else None
            rows.append(TermShare(term, float(np.mean(shares)), min(shares), max(shares), mean, len(shares)))
    return sorted(rows, key=lambda row: -row.mean)


def idle_notes(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each term that never had as much as a hundredth of the gradient."""
    return [
        f"the loss term {row.term} never had more than {row.most:.2%} of the gradient's norm ({row.times} "
        "measurements): it did next to nothing. Its weight can be set: `imbdiff methods NAME` lists the constants"
        for row in term_shares(log)
        if row.idle
    ]


def stage_times(timings: Mapping[str, Any]) -> dict[str, float]:
    """Seconds per stage; a value may be seconds or {"seconds": ...}."""
    found = {stage: v.get("seconds") if isinstance(v, Mapping) else v for stage, v in timings.items()}
    return {stage: float(spent) for stage, spent in found.items() if spent is not None and finite(spent)}


def _protocol(data: ReportData) -> ui.Section:
    """What one must know to repeat the numbers: split, groups, method, judge, classifier, environment."""
    m, stats = data.manifest, data.stats
    counts = ", ".join(f"{_total(n)} {split}" for split, n in (m.get("counts") or {}).items() if n)
    classes = counted(stats.num_classes, "class", "classes")
    machine = flatten(data.environment)
    known = [f"{k.rsplit('.', 1)[-1]} {text}" for k, text in machine if text not in ("", NOTHING)]
    rows = [
        *data.protocol.items(),
        ("Source", data.source),
        ("Training images", f"{stats.total:,} in {classes}, imbalance factor {number(stats.imbalance_factor, 1)}"),
        ("Split sizes", counts),
        ("Split hash", m.get("hash") or ""),
        ("Groups", data.groups.rule),
        ("Method", "" if "Method" in data.protocol else data.method),
        ("Long tail", ", ".join(f"{k} {text}" for k, text in flatten(m.get("long_tail") or {}))),
        ("Test images", m.get("test_from") or ""),
        ("Validation", m.get("val_from") or ""),
        ("Split seed", str(m.get("seed", ""))),
        ("Environment", shorten(", ".join(known), 240)),
    ]
    blocks: list[ui.Block] = [ui.Definitions([(key, str(text)) for key, text in rows if text])]
    blocks += [
        ui.Fold(what, [ui.Definitions(flat)])
        for what, flat in (("Configuration", flatten(data.config)), ("Environment", machine))
        if flat
    ]
    return ui.Section("protocol", "Protocol", blocks, "Protocol")


def _total(value: Any) -> str:
    """A split's size from a number, a list of counts per class, or {class: count}."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        value = sum(int(n) for n in value if isinstance(n, int | float))
    return number(value) if isinstance(value, int | float) else str(value)


def _warnings(data: ReportData) -> ui.Section | None:
    every = [*data.warnings, *idle_notes(data.log)]
    if not every:
        return None
    blocks: list[ui.Block] = [ui.Items(every[:MAX_WARNINGS])]
    rest = [shorten(text, 2000) for text in every[MAX_WARNINGS:]]
    blocks += [ui.Fold(f"{len(rest)} more", [ui.Items(rest)])] if rest else []
    return ui.Section("warnings", "Warnings", blocks, f"Warnings ({len(every)})")


def _repeat(title: str, command: str) -> ui.Section:
    return ui.Section("repeat", title, [ui.Text("", command=command)], "Repeat")
