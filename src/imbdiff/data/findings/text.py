"""The report of an inspection for a terminal: at most 30 classes and 10 rows of any list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imbdiff.data.names import counted, display_name

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

SHOWN_CLASSES = 30
SHOWN_ROWS = 10
CHANGES = {"left_right": "left-right", "up_down": "up-down", "quarter_turn": "quarter turn"}
VERDICTS = {"safe": "nothing speaks against it", "against": "speaks against it", "unclear": "unclear"}


def format_inspection(report: dict[str, Any]) -> RenderableType:
    """The report for a terminal: of more than 30 classes the 20 largest and 10 smallest, 10 rows of any list."""
    from rich.console import Group
    from rich.text import Text

    splits = report["source"]["splits"]
    if len(splits) > 1:
        images = ", ".join(f"{n} {split}" for split, n in report["images"].items()) + " images"
    else:
        images = counted(sum(report["images"].values()), "image")
    if report["bad"]:
        images += f"; not counted: {counted(len(report['bad']), 'unusable file')}"
    head = [
        f"{display_name(report['source']['name'], 200)} ({report['source']['kind']}): "
        f"{counted(len(report['classes']), 'class', 'classes')}, {images}",
        f"imbalance factor {report['imbalance_factor']:.1f}; normalised entropy {report['normalised_entropy']:.3f} "
        f"(1 = balanced); groups: {report['group_rule']}",
    ]
    tail = [*_sizes(report), *_bad(report), *_duplicates(report), *_labels(report["labels"]), *symmetry_lines(report)]
    tail += [f"note: {note}" for note in report["warnings"]]
    return Group(*[Text(line) for line in head], _classes(report), *[Text(line) for line in tail])


def _classes(report: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    splits = report["source"]["splits"]
    columns = [*(splits if len(splits) > 1 else ["images"]), "share", "effective*"]
    table = Table("class", "group", title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    table.caption = "* effective number of images, beta = 0.999 (Cui et al. 2019)"
    classes = sorted(report["classes"], key=lambda row: -row["counts"]["train"])
    hidden = max(0, len(classes) - SHOWN_CLASSES)
    for i, row in enumerate(classes):
        if hidden and i == SHOWN_CLASSES - SHOWN_ROWS:
            table.add_row(Text(f"... {counted(hidden, 'more class', 'more classes')}"), *[""] * (len(columns) + 1))
        if hidden and SHOWN_CLASSES - SHOWN_ROWS <= i < len(classes) - SHOWN_ROWS:
            continue
        numbers = [str(row["counts"][s]) for s in splits]
        numbers += [f"{100 * row['share']:.3g} %", f"{row['effective']['0.999']:.1f}"]
        # Text, not str: rich would read markup in a class called "[red]"
        table.add_row(Text(display_name(row["name"], 40)), row["group"], *numbers)
    return table


def _sizes(report: dict[str, Any]) -> list[str]:
    if not report["sizes"]:
        return []
    lines = [
        "sizes (height x width): "
        + _capped([f"{h} x {w} ({n})" for h, w, n in report["sizes"]], ", ")
        + f"; {'grey' if report['channels'] == 1 else 'colour'}; modes "
        + ", ".join(f"{mode} ({n})" for mode, n in sorted(report["modes"].items())),
    ]
    if report["suggested_size"]:
        height, width = report["suggested_size"]
        lines.append(
            f"suggested size: {height} x {width} ({report['size_reason']}); larger sizes cost time in proportion to "
            f"the pixels: {2 * height} x {2 * width} takes 4 times as long"
        )
    return lines


def _bad(report: dict[str, Any]) -> list[str]:
    if not report["bad"]:
        return []
    rows = [f"{display_name(name, 120)}: {display_name(why, 200)}" for name, why in sorted(report["bad"].items())]
    return [f"{counted(len(rows), 'unusable file')}:\n  " + _capped(rows, "\n  ")]


def _duplicates(report: dict[str, Any]) -> list[str]:
    lines = []
    for kind, where in (("within", "within a split"), ("across", "across splits")):
        rows = [_equal(found) for found in report["duplicates"][kind]]
        if rows:
            lines.append(f"{counted(len(rows), 'group')} of exact duplicates {where}:\n  " + _capped(rows, "\n  "))
    for row in (*report["near_duplicates_within"], *report["near_duplicates"]):
        if not row["near"]:
            continue
        alike = [f"{display_name(a, 120)} ~ {display_name(b, 120)} ({ratio:.2f})" for a, b, ratio in row["pairs"]]
        alike += ["..."] * (row["near"] - len(alike))
        part = "" if row["looked_up"] == row["total"] else f" (looked up: {row['looked_up']:,} of {row['total']:,})"
        if row["first"] == row["second"]:
            what = f"{counted(row['near'], 'pair')} of near duplicates inside {row['first']}"
        else:
            what = f"{counted(row['near'], 'near duplicate')} of {row['first']} in {row['second']}"
        part += "" if row["beyond_chance"] else ", no more than chance may give"
        lines.append(f"{what}{part}, the most alike first:\n  " + _capped(alike, "\n  "))
    return lines


def _equal(names: list[str]) -> str:
    more = f" = and {len(names) - 4} more" if len(names) > 4 else ""
    return " = ".join(display_name(name, 120) for name in names[:4]) + more


def _labels(labels: dict[str, Any]) -> list[str]:
    lines = []
    names = [f"{', '.join(display_name(n, 60) for n in row['names'][:6])}: {row['why']}" for row in labels["names"]]
    if names:
        lines.append("class names to look at:\n  " + _capped(names, "\n  "))
    for kind, what, sign in (("duplicates", "exact copies", " = "), ("near_duplicates", "near duplicates", " ~ ")):
        rows = [
            sign.join(f"{display_name(image, 120)} [{display_name(name, 30)}]" for image, name in one_of_each(row)[:4])
            for row in labels[kind]
        ]
        if rows:
            lines.append(f"{what} with different labels ({len(rows)}):\n  " + _capped(rows, "\n  "))
    if labels["single"]:
        single = _capped([display_name(name, 40) for name in labels["single"]], ", ")
        lines.append(f"{counted(len(labels['single']), 'class', 'classes')} of a single image: {single}")
    found = labels["suspicious"]
    rows = [
        f"{display_name(row['image'], 120)} [{display_name(row['label'], 30)}]: {row['votes']} of its {found['k']} "
        f"nearest are {display_name(row['other'], 30)}"
        for row in found["images"]
    ]
    if rows:
        rows += ["..."] * (found["found"] - len(rows))
        looked = f"{found['looked_up']:,} of {found['total']:,} images looked up"
        head = f"labels to look at, not necessarily wrong ({found['found']}; {looked}), the most suspicious first"
        lines.append(f"{head}:\n  " + _capped(rows, "\n  "))
    if found["not_judged"] and found["looked_up"]:
        some = counted(len(found["not_judged"]), "class", "classes")
        lines.append(
            f"labels of {some} cannot be judged by neighbours: too few images, or in small they look like other classes"
        )
    return lines


def one_of_each(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(id, class) of the first image of every class: of many copies most may agree."""
    first: dict[str, str] = {}
    for image, name in zip(row["images"], row["classes"], strict=True):
        first.setdefault(name, image)
    return [(image, name) for name, image in first.items()]


def symmetry_lines(report: dict[str, Any]) -> list[str]:
    """What the test of symmetry found, and the suggestion that follows."""
    found = report["symmetry"]
    rows = [
        f"{what}: {VERDICTS[row['verdict']]} ({row['share']:.2f}, {row['low']:.2f} to {row['high']:.2f})"
        for key, what in CHANGES.items()
        if (row := found[key])["share"] is not None
    ]
    if not rows:
        return ["mirroring: too few images to tell whether mirrored ones look like images of the set"]
    return [
        "mirrored and turned images: " + "; ".join(rows) + ". Share of images whose nearest is an unchanged one: 0.5 = "
        "changed ones look like images of the set, 1 = they do not",
        "suggestion, to be confirmed by what the images show: " + advice(found["suggest"]),
    ]


def advice(suggest: str | None) -> str:
    return {
        None: "none; choose --data.augment none, mirror or turns by what you know",
        "none": "--data.augment none",
        "mirror": "--data.augment mirror",
        "turns": "--data.augment turns",
    }[suggest]


def _capped(rows: list[str], separator: str) -> str:
    more = len(rows) - SHOWN_ROWS
    return separator.join(rows[:SHOWN_ROWS]) + (f"{separator}... and {more} more" if more > 0 else "")
