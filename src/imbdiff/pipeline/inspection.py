"""What a run on an inspected source would draw, and, where asked for, what it would cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imbdiff.data.arrays import ArraySource
from imbdiff.data.decode import Size
from imbdiff.data.inspect import Inspection, examine, format_inspection, listed
from imbdiff.data.splits import prepare
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.runtime.errors import ConfigError, ImbdiffError
from imbdiff.runtime.files import write_json, write_text

if TYPE_CHECKING:
    from rich.console import RenderableType

STRATEGY = "auto"
PAGE, REPORT = "report.html", "inspection.json"


@dataclass(frozen=True, eq=False)
class Inspected:
    """What `imbdiff inspect` shows and has written.

    Attributes:
        report: as :func:`imbdiff.data.inspect.inspect` gives it, and under "run" :func:`run_estimate`.
        text: for a terminal.
        files: that were written.
    """

    report: dict[str, Any]
    text: RenderableType
    files: tuple[Path, ...]


def inspect_any(
    source: str,
    *,
    size: Size | None = None,
    cost: bool = False,
    out: str | None = None,
    page: str | None = None,
    command: str = "imbdiff inspect SOURCE",
) -> Inspected:
    """Inspects a source, and writes a page where one is asked for.

    Args:
        source: as for :func:`imbdiff.data.sources.load`.
        size: as for :func:`imbdiff.data.inspect.inspect`.
        cost: measure what a run would cost, too.
        out: folder for report.html and inspection.json.
        page: file for the page alone.
        command: the command line that repeats it, for the page.

    Raises:
        ConfigError: `page` is a folder, or `out` a file; before anything is read.
        DataError: the source cannot be opened.
    """
    if page is not None and (not str(page) or Path(page).is_dir()):
        raise ConfigError(f"{page or repr(page)} is a folder or nothing", "give --page a file, such as inspection.html")
    if out is not None and Path(out).is_file():
        raise ConfigError(f"{out} is a file", "give --out a folder, or --page a file")
    folders = ([] if page is None else [Path(page).parent]) + ([] if out is None else [Path(out)])
    for folder in folders:
        try:  # before everything is decoded
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{folder} cannot be made: {error.strerror}", "choose another place") from error
    seen = examine(source, size=size)
    seen.report["run"] = estimate = run_estimate(seen, cost=cost)
    files = [Path(page)] if page is not None else []
    if out is not None:
        files.append(Path(out) / PAGE)
    if files:
        from imbdiff.reporting.inspection import build_inspection

        text = build_inspection(seen, estimate, command)
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
    if out is not None:
        files.append(Path(out) / REPORT)
        write_json(files[-1], seen.report)
    from rich.console import Group
    from rich.text import Text

    lines = [Text(line) for line in estimate_lines(estimate)]
    return Inspected(seen.report, Group(format_inspection(seen.report), *lines), tuple(files))


def run_estimate(seen: Inspection, *, cost: bool = False) -> dict[str, Any]:
    """What `imbdiff run` would do by default.

    The split is made as for a run, on the small versions of the usable images: counts are those of the run, up to exact
    copies that differ in small. Nothing is decoded again and torch is not loaded, unless `cost`: then the images are
    read as for a run and a few training steps are measured, a minute or so.

    Returns:
        strategy, training (C,) images per class after the hold-out, draw (C,) synthetic images per class, validation,
        test, notes; cost: None, or rows [what, text] of the plan and seconds. Where a run would refuse the source:
        refused, with the reason, in place of the numbers.
    """
    usable = seen.usable
    lost = [row["name"] for row in seen.report["classes"] if not row["counts"]["train"]]
    if lost:
        return {"strategy": STRATEGY, "refused": f"no usable training image of {listed(lost)}"}
    data = {split: (images.images, images.labels) for split, images in usable.items() if len(images)}
    ids = {split: images.ids for split, images in usable.items()}
    try:
        small = ArraySource(data, seen.source.class_names, str(seen.source.name), ids)
        small.defaults = seen.source.defaults
        made = prepare(small)
    except ImbdiffError as error:
        return {"strategy": STRATEGY, "refused": str(error)}
    notes = []
    if seen.report["bad"]:
        notes.append("counted without the unusable files; a run refuses them until they are fixed or removed")
    return {
        "strategy": STRATEGY,
        "training": list(made.stats.counts),
        "draw": list(images_to_draw(STRATEGY, made.stats)),
        "validation": 0 if made.val is None else len(made.val),
        "test": len(made.test),
        "notes": notes,
        "cost": _cost(seen) if cost else None,
    }


def _cost(seen: Inspection) -> dict[str, Any]:
    """The plan of the default method and preset, from a measured probe."""
    from imbdiff.pipeline.plan import default_preset, make_plan
    from imbdiff.pipeline.training import prepare_data
    from imbdiff.presets import preset

    sizes = seen.report["sizes"]
    # as `imbdiff run` chooses; mixed sizes need one, and get the suggested
    side = min(64, max(sizes[0][:2])) if len(sizes) == 1 else max(seen.report["suggested_size"] or [64])
    config = preset(default_preset(side))
    if len(sizes) > 1:
        config = replace(config, data=replace(config.data, size=side))
    try:
        plan = make_plan(prepare_data(seen.source, config.data), config, str(seen.source.name))
    except ImbdiffError as error:
        return {"refused": str(error)}
    return {"rows": [list(row) for row in plan.rows], "seconds": plan.seconds}


def estimate_lines(estimate: dict[str, Any]) -> list[str]:
    """The estimate for a terminal."""
    if "refused" in estimate:
        return [f"a run would refuse this source as it is: {estimate['refused']}"]
    train, draw = sum(estimate["training"]), sum(estimate["draw"])
    classes = sum(n > 0 for n in estimate["draw"])
    lines = [
        f"a run with default options: {train:,} training, {estimate['validation']:,} validation and "
        f"{estimate['test']:,} test images; it would draw {draw:,} images for {classes:,} classes "
        f"(strategy {estimate['strategy']}: every class filled to the largest)"
    ]
    lines += [f"note: {note}" for note in estimate["notes"]]
    cost = estimate["cost"]
    if cost is None:
        return lines
    if "refused" in cost:
        return [*lines, f"cost not measured: {cost['refused']}"]
    width = max(len(name) for name, _ in cost["rows"])
    return [*lines, *(f"  {name:<{width}}  {text}" for name, text in cost["rows"])]
