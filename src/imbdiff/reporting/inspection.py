"""The page of `imbdiff inspect SOURCE --out FOLDER`: what is in a set of images, with pictures."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from imbdiff.data.decode import Target
from imbdiff.data.inspect import Inspection
from imbdiff.data.names import counted
from imbdiff.data.symmetry import SYMMETRIES, unasked
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.class_plot import Classes, class_plot
from imbdiff.reporting.pictures import COLUMNS, in_turn, spread
from imbdiff.reporting.text import number, shorten

MAX_ROWS, MAX_CLASSES, MAX_LISTED, MAX_SIZES, MAX_GROUPS, MAX_TURNED = 200, 30, 50, 12, 24, 6
LARGEST = 48

Found = Mapping[str, Any]
Place = tuple[str, int]
"""A split and the number of an image among its usable ones."""
Shown = tuple[Sequence[Place], Sequence[str], bool]
"""Pictures that belong together, lines below them, whether to frame them."""


def build_inspection(seen: Inspection, estimate: Found, command: str) -> str:
    """The page as HTML text, UTF-8, with no reference to anything outside it.

    Caps, all stated on the page: 200 classes in the table and 30 with pictures, 24 pairs of each kind of duplicates, 24
    suspicious labels, 50 rows of other lists. The JSON report holds the rest.

    Args:
        seen: what was inspected.
        estimate: what :func:`imbdiff.pipeline.inspection.run_estimate` gave.
        command: the command line that repeats it.
    """
    report, pictures = seen.report, Pictures(seen)
    rows = report["classes"]
    order = sorted(range(len(rows)), key=lambda k: -rows[k]["counts"]["train"])
    sections = [
        _findings(report),
        _classes(report, order, estimate),
        _images(seen, pictures, order),
        _sizes(report),
        _damaged(report["bad"]),
        _duplicates(report, pictures),
        _labels(report["labels"], pictures),
        _changes(seen, pictures, order),
        _next(report, estimate, command),
    ]
    return ui.render("inspection", shorten(report["source"]["name"], 200), [_facts(report)], sections)


class Pictures:
    """The pictures of an inspected set, decoded when they are shown, at most 48 pixels large."""

    def __init__(self, seen: Inspection) -> None:
        self.seen = seen
        self.target = picture_size([(h, w) for h, w, _ in seen.report["sizes"]])
        self._number = {split: {one: i for i, one in enumerate(own.ids)} for split, own in seen.usable.items()}

    def place(self, image: str, split: str) -> Place:
        """Where the image of that id is; several splits may have one of the same id."""
        return split, self._number[split][image]

    def class_name(self, place: Place) -> str:
        return self.seen.source.class_names[int(self.seen.usable[place[0]].labels[place[1]])]

    def decoded(self, places: Sequence[Place]) -> dict[Place, ui.Picture]:
        """Decoded together, split by split."""
        made = {}
        for split in dict.fromkeys(split for split, _ in places):
            numbers = list(dict.fromkeys(i for s, i in places if s == split))
            own = self.seen.usable[split]
            grey = self.seen.report["channels"] == 1
            images = self.seen.source.pictures(split, own.rows[np.array(numbers)], self.target, grey)
            for i, image in zip(numbers, images, strict=True):
                made[split, i] = ui.Picture(image, f"{own.ids[i]}, {self.class_name((split, i))}")
        return made

    def groups(self, shown: Sequence[Shown], total: int) -> list[ui.Block]:
        """Groups of pictures, and how many of `total` are not shown."""
        made = self.decoded([place for places, _, _ in shown for place in places])
        groups = [
            ui.Group([made[place] for place in places], lines, "other" if framed else "")
            for places, lines, framed in shown
        ]
        blocks: list[ui.Block] = [ui.Shelf([ui.PictureSet(groups)])] if groups else []
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


def _facts(report: Found) -> ui.Items:
    counts = [row["counts"]["train"] for row in report["classes"]]
    each = ", ".join(f"{n:,} {split}" for split, n in report["images"].items())
    facts = [
        ui.fact(number(len(counts)), "classes", f"{min(counts):,} to {max(counts):,} images"),
        ui.fact(number(sum(report["images"].values())), "images", each if len(report["images"]) > 1 else ""),
        ui.fact(number(report["imbalance_factor"], 1), "imbalance factor", "largest class / smallest"),
        ui.fact(number(report["normalised_entropy"]), "normalised entropy", "1: balanced"),
    ]
    if report["bad"]:
        facts.append(ui.fact(number(len(report["bad"])), "unusable files", "not counted"))
    return ui.Items(facts, "facts")


def _findings(report: Found) -> ui.Section:
    found, notes = findings(report), report["warnings"]
    text = "Nothing: every file can be read, no two images are equal or nearly so beyond chance, no label stands out."
    blocks: list[ui.Block] = [ui.Items([ui.link(anchor, text) for anchor, text in found]) if found else ui.Text(text)]
    if notes:
        shown = [shorten(text, 600) for text in notes[:MAX_LISTED]]
        head = counted(len(notes), "note") + ui.of_all(len(shown), len(notes))
        blocks.append(ui.Fold(head, [ui.Items(shown)], len(notes) <= 6))
    return ui.Section("findings", "Findings", blocks, "Findings")


def findings(report: Found) -> list[tuple[str, str]]:
    """(anchor, sentence) of what should be checked."""
    equal, labels = report["duplicates"], report["labels"]
    counts = [
        ("damaged", len(report["bad"]), "unusable file", ": a run refuses the set as it is"),
        ("duplicates", len(equal), "group", " of equal images"),
        ("duplicates", sum(map(_several_splits, equal)), "group", " of equal images in more than one split"),
        ("duplicates", sum(map(_several_classes, equal)), "group", " of equal images under more than one class"),
        ("labels", labels["suspicious"]["found"], "image", " among images of one other class"),
        ("labels", len(labels["names"]), "group", " of class names to check"),
    ]
    rows = [(anchor, counted(n, noun) + text) for anchor, n, noun, text in counts if n]
    rows += [
        ("duplicates", _near_text(row)) for row in report["near_duplicates"] if row["near"] and row["beyond_chance"]
    ]
    if len(report["sizes"]) > 1:
        rows.append(("sizes", f"{len(report['sizes']):,} different sizes: a run needs --data.size"))
    return rows


def _several_splits(group: Found) -> bool:
    return len(set(group["splits"])) > 1


def _several_classes(group: Found) -> bool:
    return len(set(group["classes"])) > 1


def _classes(report: Found, order: Sequence[int], estimate: Found) -> ui.Section:
    rows, splits, sampled = [report["classes"][k] for k in order], report["source"]["splits"], estimate.get("sampled")
    counts, group = [row["counts"]["train"] for row in rows], [row["group"] for row in rows]
    heads = [*(splits if len(splits) > 1 else ["images"]), "share", "effective, 0.999", "effective, 0.9999"]
    heads += ["a run would sample"] if sampled else []
    table = []
    for k, row in list(zip(order, rows, strict=True))[:MAX_ROWS]:
        cells = [ui.name(row["name"]), row["group"], *(number(row["counts"][s]) for s in splits)]
        cells += [f"{100 * row['share']:.3g} %", *(number(row["effective"][b], 1) for b in ("0.999", "0.9999"))]
        table.append([*cells, number(sampled[k])] if sampled else cells)
    left = ui.of_all(len(table), len(order), "classes, the largest")
    text = (
        f"Groups: {report['group_rule']}. Effective number of images: (1 − βⁿ) / (1 − β) of n training images, for "
        f"β = 0.999 and 0.9999 (Cui et al. 2019)."
    )
    folded = ui.Fold(f"Table{left}", [ui.Table(["class", "group", *map(ui.Column, heads)], table)], len(table) <= 30)
    classes = Classes(order, [row["name"] for row in rows], group, counts)
    plot = ui.Figures([class_plot(classes, layers=[(counts, "real")])])
    return ui.Section("classes", "Classes", [plot, ui.note(text), folded], "Classes")


def _images(seen: Inspection, pictures: Pictures, order: Sequence[int]) -> ui.Section:
    """At most 30 classes spread over the ranking by size; of each the images of the lowest hashes."""
    train, rows = seen.usable["train"], seen.report["classes"]
    by_hash = np.argsort(np.array(train.hashes), kind="stable")
    classes = spread([k for k in order if rows[k]["counts"]["train"]], MAX_CLASSES)
    mine = {k: by_hash[train.labels[by_hash] == k][:COLUMNS].tolist() for k in classes}
    made = pictures.decoded([("train", i) for own in mine.values() for i in own])
    shelves = [
        ui.Shelf(
            [ui.PictureSet([ui.Group([made["train", i]]) for i in own])],
            rows[k]["name"],
            f"{rows[k]['group']} · {counted(rows[k]['counts']['train'], 'image')}",
        )
        for k, own in mine.items()
    ]
    few = ui.of_all(len(shelves), len(rows), "classes, spread over the ranking by size")
    text = f"Chosen by hash, not picked{few}. At most {LARGEST} pixels: larger images are scaled down."
    return ui.Section("images", "Images", [ui.note(text), *shelves], "Images")


def _sizes(report: Found) -> ui.Section:
    resize, sizes = report["resize"], report["sizes"]
    rows = [[f"{h} × {w}", number(n)] for h, w, n in sizes[:MAX_SIZES]]
    if len(sizes) > MAX_SIZES:
        rows.append([f"{number(len(sizes) - MAX_SIZES)} more sizes", ""])
    modes = ", ".join(f"{mode} ({number(n)})" for mode, n in sorted(report["modes"].items()))
    cut = "would cut off more than a quarter of no image"
    if resize["cut_much"]:
        cut = f"would cut off more than a quarter of {number(resize['cut_much'])} of {number(resize['images'])} images"
        cut += ": a run pads them" if resize["policy"] == "pad" else ""
    size = report["suggested_size"]
    facts = [
        ("Modes", f"{modes}; read as {'grey' if report['channels'] == 1 else 'colour'}"),
        ("Size of a run", f"{size[0]} × {size[1]}: {report['size_reason']}" if size else ""),
        ("Cropping", cut if len(sizes) > 1 else ""),
    ]
    table = ui.Table(["height × width", ui.Column("images")], rows, "short")
    return ui.Section("sizes", "Sizes", [table, ui.Definitions(facts)], "Sizes")


def _damaged(bad: Mapping[str, str]) -> ui.Section | None:
    """Unusable files: how many for each reason, and at most 50, the first of every reason before the second of any."""
    if not bad:
        return None
    shown = in_turn(sorted(bad.items()), lambda item: item[1])[:MAX_LISTED]
    files = [[shorten(file, 300), shorten(why, 300)] for file, why in shown]
    reasons = [[shorten(why, 300), number(n)] for why, n in Counter(bad.values()).most_common(MAX_SIZES)]
    text = "They are in no count on this page, and a run refuses the set until they are replaced or removed."
    left = ui.of_all(len(files), len(bad), "files; all are in the JSON report")
    return ui.Section("damaged", "Unusable files", [
        ui.Text(f"{number(len(bad))} in all. {text}"),
        ui.Table([], reasons, "short"),
        ui.Fold(f"Files{left}", [ui.Table(["file", "why"], files)], len(files) <= 12),
    ], "Damaged files")  # fmt: skip


def _near_text(row: Found) -> str:
    searched = "" if row["looked_up"] == row["total"] else f", {row['looked_up']:,} of {row['total']:,} searched"
    searched += "" if row["beyond_chance"] else ", no more than chance may give"
    if row["first"] == row["second"]:
        return f"{counted(row['near'], 'pair')} of near duplicates inside {row['first']}{searched}"
    return f"{counted(row['near'], 'image')} of {row['second']} nearly equal to images of {row['first']}{searched}"


def _duplicates(report: Found, pictures: Pictures) -> ui.Section:
    """Of equal images those of several classes come first, then those in several splits."""
    equal = sorted(report["duplicates"], key=lambda group: (not _several_classes(group), not _several_splits(group)))
    blocks: list[ui.Block] = [ui.Text("No two images are equal pixel for pixel.")]
    if equal:
        shown: list[Shown] = []
        for group in equal[:MAX_GROUPS]:
            two = [0, next((i for i, one in enumerate(group["classes"]) if one != group["classes"][0]), 1)]
            lines = [f"{shorten(group['images'][i], 60)} ({shorten(group['classes'][i], 40)})" for i in two]
            lines += [f"in {', '.join(dict.fromkeys(group['splits']))}"] * _several_splits(group)
            lines += [f"{len(group['images'])} in all"] * (len(group["images"]) > 2)
            places = [pictures.place(group["images"][i], group["splits"][i]) for i in two]
            shown.append((places, lines, _several_classes(group)))
        framed = ui.note("Framed: images of different classes, so at least one label is wrong.")
        blocks = [ui.heading("Equal pixel for pixel"), framed, *pictures.groups(shown, len(equal))]
    near = [row for row in report["near_duplicates"] if row["near"]]
    for row in near:
        pairs: list[Shown] = []
        for first, second, ratio in row["pairs"][:MAX_GROUPS]:
            places = [pictures.place(first, row["first"]), pictures.place(second, row["second"])]
            other = pictures.class_name(places[0]) != pictures.class_name(places[1])
            lines = [shorten(first, 60), shorten(second, 60), f"ratio {ratio:.2f}" + ", different classes" * other]
            pairs.append((places, lines, other))
        blocks += [ui.heading(_near_text(row)), *pictures.groups(pairs, row["near"])]
    text = "No near duplicates were found."
    if near:
        text = (
            "Near duplicates: as a small picture (8 × 8 blocks, equal brightness and contrast, mirrored or not) the "
            "distance to the nearest image is below a limit of the mean distance to the next of the 50 nearest "
            "(ratio). About 1 % of images that are no copies may be below it: a few pairs may be chance. Framed: the "
            "two carry different labels."
        )
    return ui.Section("duplicates", "Duplicates", [*blocks, ui.note(text)], "Duplicates")


def _labels(labels: Found, pictures: Pictures) -> ui.Section:
    blocks: list[ui.Block] = []
    if labels["names"]:
        rows = [
            ui.joined([", ".join(f"“{shorten(one, 80)}”" for one in row["names"][:10]), row["why"]], ": ")
            for row in labels["names"][:MAX_LISTED]
        ]
        blocks += [ui.heading("Class names"), ui.Items(rows)]
    odd = labels["suspicious"]
    if odd["images"]:
        shown: list[Shown] = []
        for row in odd["images"][:MAX_GROUPS]:
            places = [pictures.place(image, "train") for image in (row["image"], *row["neighbours"])]
            lines = [f"label: {shorten(row['label'], 40)}", f"near: {shorten(row['other'], 40)}"]
            shown.append((places, [*lines, f"{shorten(row['image'], 60)}: {row['votes']} of {odd['k']}"], True))
        text = (
            "Left the image, then the nearest images of the other class, as 8 × 8 blocks. At least 9 of its 10 nearest "
            "carry that other label. Not an error by itself: unusual images of a class look like this too. "
            f"{number(odd['looked_up'])} of {number(odd['total'])} training images were searched."
        )
        blocks += [ui.heading("Images among images of one other class"), ui.note(text)]
        blocks += pictures.groups(shown, odd["found"])
    if odd["not_judged"] and odd["looked_up"]:
        why = "too few images, or in small they look like those of other classes"
        text = f"Labels of {counted(len(odd['not_judged']), 'class', 'classes')} are not judged by neighbours: {why}."
        blocks.append(ui.note(text))
    return ui.Section("labels", "Labels", blocks or [ui.Text("Nothing stands out.")], "Labels")


def _changes(seen: Inspection, pictures: Pictures, order: Sequence[int]) -> ui.Section:
    """What may be done to images without changing what they show: the user sees, and says so by --data.augment."""
    train, report = seen.usable["train"], seen.report
    own = unasked(report["source"]["flippable"])
    by_hash = np.argsort(np.array(train.hashes), kind="stable")
    classes = spread([k for k in order if report["classes"][k]["counts"]["train"]], MAX_TURNED)
    places: list[Place] = [("train", int(by_hash[train.labels[by_hash] == k][0])) for k in classes]
    made = pictures.decoded(places)

    def turned(heading: str, change: Callable[[np.ndarray], np.ndarray]) -> ui.PictureSet:
        shown = [ui.Picture(change(_square(made[place].image)), f"{made[place].title}, {heading}") for place in places]
        return ui.PictureSet([ui.Group([one]) for one in shown], heading)

    sets = [
        turned("as they are", np.asarray), turned("mirrored", np.fliplr),
        turned("upside down", lambda x: np.rot90(x, 2)), turned("turned by a quarter", np.rot90),
    ]  # fmt: skip
    options = [
        (
            ui.joined([ui.code(f"--data.augment {name}"), ui.span("unasked", "badge") if name == own else ""]),
            f"Images are {allowed.always}; where more is done, rotated {allowed.rotated}. Right for {allowed.suits}.",
        )
        for name, allowed in SYMMETRIES.items()
    ]
    known = "This source is known to allow mirroring."
    if not report["source"]["flippable"]:
        known = "Nothing is known of what these images allow, so that a run mirrors none of them unasked."
    return ui.Section("changes", "Which changes keep the meaning of these images?", [
        ui.Text(
            f"{known} Variety helps the generator and the classifiers, but only where an image goes on showing its "
            "class. No guess is made from pixels: only you can say. Compare: do the mirrored ones, those upside down, "
            "and those turned by a quarter still show the same?"
        ),
        *([ui.Shelf(sets)] if places else []),
        ui.heading("Options of imbdiff run"),
        ui.Definitions(options),
        ui.note(
            "More is done in two places: images are rotated, scaled, stretched and moved where the generator is "
            "conditioned on these changes (as with --method ddpm-augmented; what it generates is not changed), and, "
            "with the probability --classify.changes, where classifiers are trained with synthetic images, and in "
            "their controls."
        ),
    ], "Changes")  # fmt: skip


def _square(image: np.ndarray) -> np.ndarray:
    """(S, S, C): an image in the middle of a black square, as `pad` brings it to a size, which quarter turns need."""
    h, w, _ = image.shape
    more = [(max(0, other - own) // 2, -(-max(0, other - own) // 2)) for own, other in ((h, w), (w, h))]
    return np.pad(image, [*more, (0, 0)])


def _next(report: Found, estimate: Found, command: str) -> ui.Section:
    blocks: list[ui.Block] = [ui.Definitions([(what, shorten(text, 600)) for what, text in estimate["rows"]])]
    run = shlex.join(["imbdiff", "run", report["source"]["name"], *estimate.get("options", [])])
    blocks += [
        ui.Text("What a run would do, and how long it would take; writes nothing:", command=f"{run} --dry-run"),
        ui.Text("Everything: train, sample, measure, classify, report:", command=run),
        ui.heading("Repeat this inspection"),
        ui.Text("", command=command),
    ]
    return ui.Section("next", "What a run would do", blocks, "Next")
