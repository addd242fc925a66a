"""`imbdiff inspect`: what is in a source, and what a run on it would train on, sample and cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from imbdiff.config import SampleConfig
from imbdiff.data.arrays import ArraySource
from imbdiff.data.inspect import Inspection, examine, format_inspection, listed
from imbdiff.data.names import counted
from imbdiff.data.splits import prepare
from imbdiff.data.symmetry import SYMMETRIES, unasked
from imbdiff.pipeline.strategy import STRATEGIES, images_to_draw
from imbdiff.runtime.errors import ConfigError, ImbdiffError
from imbdiff.runtime.files import write_json, write_text

STRATEGY = SampleConfig().strategy


def inspect_any(
    source: str,
    *,
    cost: bool = False,
    out: str | None = None,
    page: str | None = None,
    as_json: bool = False,
    command: str = "imbdiff inspect SOURCE",
) -> None:
    """Inspects a source, prints what was found, and writes a page where one is asked for.

    Args:
        source: as for :func:`imbdiff.data.sources.load`.
        cost: measure what a run would cost, too.
        out: folder for report.html and inspection.json.
        page: file for the page alone.
        as_json: print the report as JSON, and nothing else.
        command: the command line that repeats it, for the page.

    Raises:
        ConfigError: `page` or `out` cannot be written there; before anything is read.
        DataError: the source cannot be opened.
    """
    if page is not None and (not page or Path(page).is_dir()):
        raise ConfigError(f"{page or repr(page)} is a folder or nothing", "give --page a file, such as inspection.html")
    pages = [] if page is None else [Path(page)]
    pages += [] if out is None else [Path(out) / "report.html"]
    for file in pages:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{file.parent} cannot be made: {error.strerror}", "choose another folder") from error
    seen = examine(source)
    seen.report["run"] = estimate = run_estimate(seen, cost=cost)
    if pages:
        from imbdiff.reporting.inspection import build_inspection

        html = build_inspection(seen, estimate, command)
        for file in pages:
            write_text(file, html)
    if out is not None:
        pages.append(Path(out) / "inspection.json")
        write_json(pages[-1], seen.report)
    if as_json:
        print(json.dumps(seen.report, indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(format_inspection(seen.report))
    for what, text in estimate["rows"]:
        print(f"{what}: {text}")
    for file in pages:
        print(f"written: {file}")


def run_estimate(seen: Inspection, *, cost: bool = False) -> dict[str, Any]:
    """What `imbdiff run` would do by default.

    The split is made as for a run, on the small versions of the usable images: counts are those of the run, up to exact
    copies that differ in small. Nothing is decoded again and torch is not loaded, unless `cost`: then the images are
    read as for a run and a few training steps are measured, a minute or so.

    Returns:
        strategy, training (C,) images per class after the hold-out, sampled (C,) synthetic images per class,
        validation, test, cost (None, or the plan's rows and seconds), and rows [what, text] that say the same. Where a
        run would refuse the source: strategy, refused (the reason) and rows.
    """
    lost = [row["name"] for row in seen.report["classes"] if not row["counts"]["train"]]
    if lost:
        return _refused(f"no usable training image of {listed(lost)}")
    data = {split: (images.images, images.labels) for split, images in seen.usable.items() if len(images)}
    ids = {split: images.ids for split, images in seen.usable.items()}
    try:
        small = ArraySource(data, seen.source.class_names, str(seen.source.name), ids)
        small.defaults = seen.source.defaults
        made = prepare(small)
    except ImbdiffError as error:
        return _refused(str(error))
    sampled = [int(n) for n in images_to_draw(STRATEGY, made.stats)]
    estimate = {
        "strategy": STRATEGY,
        "training": list(made.stats.counts),
        "sampled": sampled,
        "validation": 0 if made.val is None else len(made.val),
        "test": len(made.test),
    }
    splits = (
        f"{made.stats.total:,} training, {estimate['validation']:,} validation and {estimate['test']:,} test images"
    )
    how = STRATEGIES.get(STRATEGY, f"--sample.strategy {STRATEGY}")
    classes = counted(sum(n > 0 for n in sampled), "class", "classes")
    rows = [
        ["a run with default options", splits],
        ["to be sampled", f"{sum(sampled):,} images for {classes} ({how})"],
    ]
    rows += _changes(seen.source.flippable)
    if seen.report["bad"]:
        rows.append(["unusable files", "not counted; a run refuses them until they are replaced or removed"])
    costs = _cost(seen) if cost else None
    if costs is not None:
        rows += [["cost", f"not measured: {costs['refused']}"]] if "refused" in costs else costs["rows"]
    return {**estimate, "cost": costs, "rows": rows}


def _changes(flippable: bool) -> list[list[str]]:
    """What a run does to images while training, and how to have more or less of it."""
    own, mirror, turns = unasked(flippable), SYMMETRIES["mirror"], SYMMETRIES["turns"]
    why = "this source is known to allow it" if flippable else "nothing is known of what these images allow"
    less = f"--data.augment none switches it off ({SYMMETRIES['none'].suits})"
    more = f"--data.augment mirror, if images show the same when mirrored ({mirror.suits})"
    return [
        [
            "changed at random while training",
            f"images are {SYMMETRIES[own].always}: {why}. A generator that is conditioned on changes (as with --method "
            f"ddpm-augmented), and classifiers under --classify.changes, see them rotated {SYMMETRIES[own].rotated}, "
            "scaled, stretched and moved, too",
        ],
        [
            "to change that",
            f"{less if flippable else more}; --data.augment turns, if also when upside down ({turns.suits})",
        ],
    ]


def _refused(reason: str) -> dict[str, Any]:
    return {"strategy": STRATEGY, "refused": reason, "rows": [["a run would refuse this source as it is", reason]]}


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
