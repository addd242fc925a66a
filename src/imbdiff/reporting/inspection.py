"""The page of `imbdiff inspect SOURCE --out FOLDER`: what is in a set of images, with pictures."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from imbdiff.data.decode import Target
from imbdiff.data.inspect import Inspection, one_of_each
from imbdiff.data.names import counted
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.pictures import spread
from imbdiff.reporting.plots import class_histogram, is_wide
from imbdiff.reporting.text import label, number, shorten

MAX_ROWS, SMALLEST = 200, 50
MAX_CLASSES, PER_CLASS = 30, 8
MAX_LISTED = 50
MAX_SIZES = 12
MAX_PAIRS = 24
LARGEST = 48

Place = tuple[str, int]
"""A split and the number of an image among its usable ones."""


class Inspected:
    """An inspected set as the sections need it: its report, an estimate of a run, the order of classes, its pictures.

    Args:
        seen: what was inspected.
        estimate: what :func:`imbdiff.pipeline.inspection.run_estimate` gave.
    """

    def __init__(self, seen: Inspection, estimate: Mapping[str, Any] | None) -> None:
        self.seen = seen
        self.report: Mapping[str, Any] = seen.report
        self.estimate = estimate or {}
        rows = self.report["classes"]
        self.order = sorted(range(len(rows)), key=lambda k: -rows[k]["counts"]["train"])
        self.target = picture_size([(h, w) for h, w, _ in self.report["sizes"]])
        self._place: dict[str, Place] = {}
        for split, images in reversed(seen.usable.items()):
            self._place.update((image, (split, i)) for i, image in enumerate(images.ids))

    def place(self, image: str, split: str | None = None) -> Place:
        """Where the image of that id is; of one that several splits have, in `split`."""
        found = self._place[image]
        if split is not None and found[0] != split:
            return split, self.seen.usable[split].ids.index(image)
        return found

    def class_name(self, place: Place) -> str:
        return self.seen.source.class_names[int(self.seen.usable[place[0]].labels[place[1]])]

    def pictures(self, places: Sequence[Place]) -> dict[Place, ui.Picture]:
        """Decoded together, split by split."""
        made = {}
        for split in dict.fromkeys(split for split, _ in places):
            numbers = list(dict.fromkeys(i for s, i in places if s == split))
            own = self.seen.usable[split]
            grey = self.report["channels"] == 1
            images = self.seen.source.pictures(split, own.rows[np.array(numbers)], self.target, grey)
            for i, image in zip(numbers, images, strict=True):
                made[split, i] = ui.Picture(image, f"{own.ids[i]}, {self.class_name((split, i))}")
        return made

    def side_by_side(self, found: Sequence[tuple[Sequence[Place], Sequence[str], bool]], total: int) -> list[ui.Block]:
        """Groups of pictures (places, lines below, whether to frame them), and how many are not shown of `total`."""
        made = self.pictures([place for places, _, _ in found for place in places])
        groups = [
            ui.Group([made[place] for place in places], lines, "other" if framed else "")
            for places, lines, framed in found
        ]
        blocks: list[ui.Block] = [ui.Images([ui.Shelf([ui.PictureSet(groups)])])] if groups else []
        if total > len(groups):
            blocks.append(ui.note(f"Shown are {len(groups)} of {number(total)}; the others are in the JSON report."))
        return blocks


def picture_size(sizes: Sequence[tuple[int, int]]) -> Target:
    """What every picture becomes: its own size where all have one of at most 48 pixels; otherwise it is scaled down."""
    if len(sizes) != 1:
        return Target(LARGEST, LARGEST, "pad")
    h, w = sizes[0]
    scale = min(1.0, LARGEST / max(h, w))
    return Target(max(1, round(h * scale)), max(1, round(w * scale)), "stretch")


def build_inspection(seen: Inspection, estimate: Mapping[str, Any] | None, command: str) -> str:
    """The page as HTML text, UTF-8, with no reference to anything outside it.

    Caps, all stated on the page: 200 classes in the table and 30 with pictures, 24 pairs of each kind of duplicates, 24
    suspicious labels, 50 rows of other lists. The JSON report holds the rest.

    Args:
        seen: what was inspected.
        estimate: what :func:`imbdiff.pipeline.inspection.run_estimate` gave.
        command: the command line that repeats it.
    """
    it = Inspected(seen, estimate)
    sections = [
        _findings_section(it),
        _classes(it),
        _images(it),
        _sizes(it),
        _damaged(it),
        _duplicates(it),
        _labels(it),
        _next(it, command),
    ]
    return ui.render(
        ui.Page("inspection", shorten(it.report["source"]["name"], 200), [_facts(it)], [s for s in sections if s])
    )


def _facts(it: Inspected) -> ui.Items:
    report = it.report
    counts = [row["counts"]["train"] for row in report["classes"]]
    several = len(report["source"]["splits"]) > 1
    each = ", ".join(f"{n:,} {split}" for split, n in report["images"].items()) if several else ""
    facts = [
        ui.fact(number(len(counts)), "classes", f"{min(counts):,} to {max(counts):,} images"),
        ui.fact(number(sum(report["images"].values())), "images", each),
        ui.fact(number(report["imbalance_factor"], 1), "imbalance factor", "largest class / smallest"),
        ui.fact(number(report["normalised_entropy"]), "normalised entropy", "1: balanced"),
    ]
    if report["bad"]:
        facts.append(ui.fact(number(len(report["bad"])), "unusable files", "not counted"))
    return ui.Items(facts, "facts")


def _findings_section(it: Inspected) -> ui.Section:
    found, notes = findings(it.report), it.report["warnings"]
    blocks: list[ui.Block] = [ui.Items([ui.link(anchor, text) for anchor, text in found])] if found else []
    if not found:
        text = "every file can be read, no two images are equal or nearly so beyond chance, and no label stands out."
        blocks.append(ui.Text(f"Nothing: {text}"))
    if notes:
        shown = [shorten(text, 600) for text in notes[:MAX_LISTED]]
        head = counted(len(notes), "note") + ui.of_all(len(shown), len(notes))
        blocks.append(ui.Fold(head, [ui.Items(shown)], len(notes) <= 6))
    return ui.Section("findings", "What deserves a look", blocks, "Findings")


def findings(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(anchor, sentence) of what deserves a look."""
    labels = report["labels"]
    found: list[tuple[str, str, str, Any]] = [
        ("damaged", "unusable file", ": a run refuses the set as it is", report["bad"]),
        ("duplicates", "group", " of equal images", report["duplicates"]),
        (
            "duplicates",
            "group",
            " of equal images in more than one split",
            [g for g in report["duplicates"] if in_several(g)],
        ),
        ("labels", "group", " of equal images under more than one class", conflicts(report)),
    ]
    rows = [(anchor, counted(len(what), noun) + text) for anchor, noun, text, what in found if what]
    rows += [("duplicates", _near_head(row)) for row in _near_rows(report) if row["beyond_chance"]]
    for key, noun, text in (
        ("suspicious", ("image", ""), " among images of one other class"),
        ("names", ("class name", "class names"), " to look at"),
    ):
        if n := labels[key]["found"] if key == "suspicious" else len(labels[key]):
            rows.append(("labels", counted(n, *noun) + text))
    if len(report["sizes"]) > 1:
        rows.append(("sizes", f"{len(report['sizes']):,} different sizes: a run needs --data.size"))
    return rows


def in_several(group: Mapping[str, Sequence[str]]) -> bool:
    """Whether equal images are in more than one split."""
    return len(set(group["splits"])) > 1


def conflicts(report: Mapping[str, Any]) -> list[dict[str, list[str]]]:
    """Groups of equal images under more than one class."""
    return [group for group in report["duplicates"] if len(set(group["classes"])) > 1]


def _classes(it: Inspected) -> ui.Section:
    report, order, splits = it.report, it.order, it.report["source"]["splits"]
    rows = [report["classes"][k] for k in order]
    names = [label(row["name"], f"#{k}") for k, row in zip(order, rows, strict=True)]
    counts, group = [row["counts"]["train"] for row in rows], [row["group"] for row in rows]
    known = list(dict.fromkeys(group))
    layers = [
        ([n if g == one else 0 for n, g in zip(counts, group, strict=True)], ("real", "muted", "synthetic")[min(i, 2)])
        for i, one in enumerate(known)
    ]
    plot = class_histogram(names, counts, layers, group, is_wide([max(1, n) for n in counts]))
    shown = order if len(order) <= MAX_ROWS else [*order[: MAX_ROWS - SMALLEST], *order[-SMALLEST:]]
    sampled = it.estimate.get("draw")
    columns = [ui.Column(s if len(splits) > 1 else "images") for s in splits]
    columns += [ui.Column("share"), ui.Column("effective, 0.999"), ui.Column("effective, 0.9999")]
    columns += [ui.Column("a run would sample")] if sampled else []
    table = []
    for k in shown:
        row = report["classes"][k]
        cells = [
            ui.name(row["name"]),
            row["group"],
            *(number(row["counts"][s]) for s in splits),
            f"{100 * row['share']:.3g} %",
        ]
        cells += [number(row["effective"][beta], 1) for beta in ("0.999", "0.9999")]
        table.append([*cells, number(int(sampled[k]))] if sampled else cells)
    left = f"{ui.of_all(len(shown), len(order), 'classes')[:-1]}: the largest and the {SMALLEST} smallest)"
    effective = Markup(
        "Effective number of images: (1 − β<sup>n</sup>) / (1 − β) of n training images, for β = 0.999 and 0.9999 "
        "(Cui et al. 2019). Normalised entropy of the class shares: {} (1: balanced)."
    ).format(number(report["normalised_entropy"]))
    return ui.Section("classes", "Classes", [
        ui.Figures([plot]),
        ui.note(f"Groups: {report['group_rule']}. Colours are those of the groups."),
        ui.Fold("Table" + (left if len(shown) < len(order) else ""), [ui.Table(["class", "group", *columns], table)],
             len(shown) <= 30),
        ui.note(effective),
    ], "Classes")  # fmt: skip


def _images(it: Inspected) -> ui.Section:
    """At most 30 classes spread over the ranking by size; of each the images of the lowest hashes."""
    train = it.seen.usable["train"]
    by_hash = np.argsort(np.array(train.hashes), kind="stable")
    rows = it.report["classes"]
    classes = spread([k for k in it.order if rows[k]["counts"]["train"]], MAX_CLASSES)
    mine = {k: by_hash[train.labels[by_hash] == k][:PER_CLASS].tolist() for k in classes}
    made = it.pictures([("train", i) for own in mine.values() for i in own])
    shelves = [
        ui.Shelf(
            [ui.PictureSet([ui.Group([made["train", i]]) for i in own])],
            it.seen.source.class_names[k],
            f"{rows[k]['group']} · {counted(rows[k]['counts']['train'], 'image')}",
        )
        for k, own in mine.items()
    ]
    few = f"; {len(shelves)} of {number(len(rows))} classes, spread over the ranking by size" * (
        len(shelves) < len(rows)
    )
    own_size = len(it.report["sizes"]) == 1 and tuple(it.report["sizes"][0][:2]) == it.target.shape
    scaled = "" if own_size else f" Pictures are scaled to {it.target.height} × {it.target.width} pixels."
    text = ui.note(f"Chosen by hash, not picked{few}.{scaled}")
    return ui.Section("images", "Images", [text, ui.Images(shelves)], "Images")


def _sizes(it: Inspected) -> ui.Section:
    report, resize = it.report, it.report["resize"]
    rows = [[f"{h} × {w}", number(n)] for h, w, n in report["sizes"][:MAX_SIZES]]
    if len(report["sizes"]) > MAX_SIZES:
        rows.append([f"{number(len(report['sizes']) - MAX_SIZES)} more sizes", ""])
    modes = ", ".join(f"{mode} ({number(n)})" for mode, n in sorted(report["modes"].items()))
    facts = [("Modes", f"{modes}; read as {'grey' if report['channels'] == 1 else 'colour'}")]
    if report["suggested_size"]:
        h, w = report["suggested_size"]
        facts.append(
            ("Suggested size", f"{h} × {w}: {report['size_reason']}. Twice the side takes four times as long.")
        )
    cropping: str = "cuts off more than a quarter of no image"
    if resize["cut_much"]:
        cut = f"would cut off more than a quarter of {number(resize['cut_much'])} of {number(resize['images'])} images"
        cropping = ui.joined([f"{cut}: look at", ui.code("--data.resize pad")]) if resize["policy"] == "pad" else cut
    facts.append(("Cropping", cropping))
    table = ui.Table(["height × width", ui.Column("images")], rows, "short")
    return ui.Section("sizes", "Sizes", [table, ui.Definitions(facts)], "Sizes")


def _damaged(it: Inspected) -> ui.Section | None:
    """Unusable files: how many for each reason, and at most 50, the first of every reason before the second of any."""
    bad: Mapping[str, str] = it.report["bad"]
    if not bad:
        return None
    turn: Counter[str] = Counter()
    ranked = []
    for file, why in sorted(bad.items()):
        ranked.append((turn[why], file, why))
        turn[why] += 1
    shown = [[shorten(file, 300), shorten(why, 300)] for _, file, why in sorted(ranked)[:MAX_LISTED]]
    left = (
        f"{ui.of_all(len(shown), len(bad))[:-1]}; the others are in the JSON report)" if len(shown) < len(bad) else ""
    )
    return ui.Section("damaged", "Unusable files", [
        ui.Text(f"{number(len(bad))} in all. They are in no count on this page, and a run refuses the set until they "
             "are replaced or removed."),
        ui.Table([], [[shorten(why, 300), number(n)] for why, n in turn.most_common(MAX_SIZES)], "short"),
        ui.Fold(f"Files{left}", [ui.Table(["file", "why"], shown)], len(shown) <= 12),
    ], "Damaged files")  # fmt: skip


def _near_rows(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in report["near_duplicates"] if row["near"]]


def _near_head(row: Mapping[str, Any]) -> str:
    looked = "" if row["looked_up"] == row["total"] else f", {row['looked_up']:,} of {row['total']:,} looked up"
    looked += "" if row["beyond_chance"] else ", no more than chance may give"
    if row["first"] == row["second"]:
        return f"{counted(row['near'], 'pair')} of near duplicates inside {row['first']}{looked}"
    return f"{counted(row['near'], 'image')} of {row['second']} nearly equal to images of {row['first']}{looked}"


def _duplicates(it: Inspected) -> ui.Section:
    found, near = it.report["duplicates"], _near_rows(it.report)
    blocks: list[ui.Block] = []
    equal = sorted(((group["images"], in_several(group)) for group in found), key=lambda group: not group[1])
    if equal:
        groups = []
        for ids, across in equal[:MAX_PAIRS]:
            lines = [shorten(image, 60) for image in ids[:2]] + [f"and {len(ids) - 2} more"] * (len(ids) > 2)
            groups.append(([it.place(image) for image in ids[:2]], lines, across))
        said = f"Groups of equal images across splits (framed): {number(sum(map(in_several, found)))}; inside a split: "
        blocks += [
            ui.Heading("Equal pixel for pixel"),
            ui.note(f"{said}{number(sum(not in_several(group) for group in found))}."),
        ]
        blocks += it.side_by_side(groups, len(equal))
    else:
        blocks.append(ui.Text("No two images are equal pixel for pixel."))
    for row in near:
        groups = []
        for first, second, ratio in row["pairs"][:MAX_PAIRS]:
            places = [it.place(first, row["first"]), it.place(second, row["second"])]
            other = it.class_name(places[0]) != it.class_name(places[1])
            lines = [shorten(first, 60), shorten(second, 60), f"ratio {ratio:.2f}" + ", different classes" * other]
            groups.append((places, lines, other))
        blocks += [ui.Heading(_near_head(row)), *it.side_by_side(groups, row["near"])]
    for row in it.report["near_duplicates"]:
        if not row["near"]:
            inside = row["first"] == row["second"]
            where = f"inside {row['first']}" if inside else f"of {row['first']} in {row['second']}"
            n = f"{number(row['looked_up'])} of {number(row['total'])} images looked up"
            blocks.append(ui.note(f"No near duplicates {where} ({n})."))
    if near:
        blocks.append(ui.note(
            "Near duplicates: as a small picture (8 × 8 blocks, equal brightness and contrast, mirrored or not) the "
            "distance to the nearest image is below a limit of the mean distance to the next of the 50 nearest "
            "(ratio). About 1 % of images that nobody copied may be below it where images are alike: a few pairs may "
            "be chance. Framed: the two carry different labels."))  # fmt: skip
    return ui.Section("duplicates", "Duplicates", blocks, "Duplicates")


def _labels(it: Inspected) -> ui.Section:
    labels = it.report["labels"]
    blocks: list[ui.Block] = []
    if labels["names"]:
        rows = [
            ui.joined([", ".join(f"“{shorten(one, 80)}”" for one in row["names"][:10]), row["why"]], ": ")
            for row in labels["names"][:MAX_LISTED]
        ]
        blocks += [ui.Heading("Class names"), ui.Items(rows)]
    different = conflicts(it.report)
    if different:
        groups = []
        for group in different[:MAX_PAIRS]:
            row = one_of_each(group)[:3]
            groups.append(([it.place(image) for image, _ in row], [shorten(name, 40) for _, name in row], True))
        blocks.append(ui.Heading("Equal images under different classes"))
        blocks += it.side_by_side(groups, len(different))
    odd = labels["suspicious"]
    if odd["images"]:
        groups = []
        for row in odd["images"][:MAX_PAIRS]:
            places = [it.place(image, "train") for image in (row["image"], *row["neighbours"])]
            lines = [f"label: {shorten(row['label'], 40)}", f"near: {shorten(row['other'], 40)}"]
            groups.append((places, [*lines, f"{shorten(row['image'], 60)}: {row['votes']} of {odd['k']}"], True))
        blocks += [
            ui.Heading("Images among images of one other class"),
            ui.note(
                "Left the image, then the nearest images of the other class, as 8 × 8 blocks see them. At least 9 of "
                "its 10 nearest carry that other label. Something to look at, not an error: unusual images of a class "
                f"look like this too. {number(odd['looked_up'])} of {number(odd['total'])} training images were "
                "looked up."
            ),
            *it.side_by_side(groups, odd["found"]),
        ]
    if odd["not_judged"] and odd["looked_up"]:
        why = "too few images, or in small they look like those of other classes"
        text = f"Labels of {counted(len(odd['not_judged']), 'class', 'classes')} are not judged by neighbours: {why}."
        blocks.append(ui.note(text))
    return ui.Section("labels", "Labels", blocks or [ui.Text("Nothing stands out.")], "Labels")


def _next(it: Inspected, command: str) -> ui.Section:
    estimate = it.estimate
    blocks: list[ui.Block] = []
    if estimate.get("refused"):
        blocks.append(ui.Text("A run would refuse this source as it is:", "alert"))
        blocks.append(ui.Text(shorten(estimate["refused"], 600)))
    elif estimate:
        classes = counted(sum(n > 0 for n in estimate["draw"]), "class", "classes")
        sampled = f"{number(sum(estimate['draw']))} images for {classes}"
        rows = [
            ("Training images", number(sum(estimate["training"]))),
            ("Validation, test", f"{number(estimate['validation'])}, {number(estimate['test'])}"),
            ("To be sampled", f"{sampled} (strategy {estimate['strategy']}: every class filled to the largest)"),
        ]
        cost = estimate.get("cost") or {}
        if "refused" in cost:
            rows.append(("Cost", f"not measured: {shorten(cost['refused'], 400)}"))
        rows += [(what, text) for what, text in cost.get("rows", ()) if what not in ("source", "per class")]
        blocks += [ui.Definitions(rows), *(ui.note(note) for note in estimate["notes"])]
    blocks.append(ui.Heading("Next"))
    blocks += [ui.Text(f"{what}:", command=text) for what, text in next_steps(it.report)]
    blocks += [ui.Heading("Repeat this inspection"), ui.Text("", command=command)]
    return ui.Section("next", "What a run would do", blocks, "Next")


def next_steps(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what for, command)."""
    options = ""
    if len(report["sizes"]) > 1 and report["suggested_size"]:
        options += f" --data.size {report['suggested_size'][0]}"
        options += " --data.resize pad" if report["resize"]["policy"] == "pad" else ""
    run = f"imbdiff run {shlex.quote(report['source']['name'])}{options}"
    return [
        ("What a run would do, and how long it would take; writes nothing", f"{run} --dry-run"),
        ("Everything: train, sample, measure, classify, report", run),
    ]
