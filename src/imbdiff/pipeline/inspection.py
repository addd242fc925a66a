"""`imbdiff inspect`: what is in a source, and what a run on it would train on, sample and cost."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.config import DataConfig, SampleConfig
from imbdiff.data.arrays import ArraySource
from imbdiff.data.inspect import Inspection, examine, format_inspection, listed
from imbdiff.data.names import counted
from imbdiff.data.splits import prepare
from imbdiff.data.symmetry import SYMMETRIES, unasked
from imbdiff.pipeline.strategy import STRATEGIES, images_to_draw
from imbdiff.runtime.errors import ConfigError, ImbdiffError
from imbdiff.runtime.files import check_free, write_json, write_text

STRATEGY = SampleConfig().strategy


def inspect_any(
    source: str,
    data: DataConfig | None = None,
    *,
    cost: bool = False,
    out: str | None = None,
    page: str | None = None,
    as_json: bool = False,
    replace: bool = False,
    command: str = "imbdiff inspect SOURCE",
) -> None:
    """Inspects a source, prints what was found, and writes a page where one is asked for.

    Args:
        source: as for :func:`imbdiff.data.sources.load`.
        data: size, resize policy and channels of the run that is estimated.
        cost: measure what a run would cost, too.
        out: folder for report.html and inspection.json.
        page: file for the page alone.
        as_json: print the report as JSON, and nothing else.
        replace: replace files that are there.
        command: the command line that was given, for the page.

    Raises:
        ConfigError, RunError: `page` or `out` cannot be written there, or is there already; before anything is read.
        DataError: the source cannot be opened.
    """
    pages = [] if page is None else [Path(page)]
    pages += [] if out is None else [Path(out) / "report.html"]
    for file in pages:
        check_free(file, replace, "--page" if file is pages[0] and page is not None else "--out")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{file.parent} cannot be made: {error.strerror}", "choose another folder") from error
    data = data or DataConfig()
    seen = examine(source, data.size, data.resize, data.channels)
    seen.report["run"] = estimate = run_estimate(seen, data, cost=cost)
    if pages:
        from imbdiff.reporting.inspection import build_inspection

        html = build_inspection(seen, estimate, command if replace else f"{command} --replace")
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
    if "refused" not in estimate:
        print(f"next: {shlex.join(['imbdiff', 'run', source, *estimate['options']])}")
    for file in pages:
        print(f"written: {file}")


def run_estimate(seen: Inspection, data: DataConfig | None = None, *, cost: bool = False) -> dict[str, Any]:
    """What `imbdiff run` would do by default, with the size, resize policy and channels of `data`.

    The split is made as for a run, on the small versions of the usable images: counts are those of the run, up to exact
    copies that differ in small. Nothing is decoded again and torch is not loaded, unless `cost`: then the images are
    read as for a run and a few training steps are measured, a minute or so.

    Returns:
        options (of the command line), strategy, training (C,) images per class after the hold-out, sampled (C,)
        synthetic images per class, validation, test, cost (None, or the plan's rows and seconds), and rows [what, text]
        that say the same. Where a run would refuse the source: strategy, refused (the reason) and rows.
    """
    lost = [row["name"] for row in seen.report["classes"] if not row["counts"]["train"]]
    if lost:
        return _refused(f"no usable training image of {listed(lost)}")
    asked, unasked_for = data or DataConfig(), DataConfig()
    options = [
        word
        for name in ("size", "resize", "channels")
        if (value := getattr(asked, name)) != getattr(unasked_for, name)
        for word in (f"--data.{name}", str(value))
    ]
    splits = {split: (images.images, images.labels) for split, images in seen.usable.items() if len(images)}
    ids = {split: images.ids for split, images in seen.usable.items()}
    try:
        small = ArraySource(splits, seen.source.class_names, str(seen.source.name), ids)
        small.defaults = seen.source.defaults
        groups = {split: seen.source.records[split].groups for split in splits}
        if groups["train"] is not None:
            small.group_by({split: np.array(groups[split], object)[seen.usable[split].rows] for split in splits})
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
    how = STRATEGIES.get(STRATEGY, f"--sample.strategy {STRATEGY}")
    classes = counted(sum(n > 0 for n in sampled), "class", "classes")
    unusable, first = len(seen.report["bad"]), "a run with default options"
    rows = []
    if unusable:
        them = f"{counted(unusable, 'unusable file')}: replace or remove them"
        rows, first = [["a run would refuse this source as it is", them]], "a run without them"
    rows += [
        [first, made.parts],
        ["to be sampled", f"{sum(sampled):,} images for {classes} ({how})"],
    ]
    rows += _changes(seen.source.flippable)
    costs = _cost(seen, asked) if cost else None
    if costs is not None:
        rows += [["cost", f"not measured: {costs['refused']}"]] if "refused" in costs else costs["rows"]
    return {**estimate, "options": options, "cost": costs, "rows": rows}


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


def _cost(seen: Inspection, data: DataConfig) -> dict[str, Any]:
    """The plan of the default method and preset, from a measured probe."""
    from imbdiff.pipeline.plan import default_config, make_plan
    from imbdiff.pipeline.training import prepare_data

    config = replace(default_config(seen.source, data), data=data)
    try:
        plan = make_plan(prepare_data(seen.source, config.data), config, str(seen.source.name))
    except ImbdiffError as error:
        return {"refused": str(error)}
    return {"rows": [list(row) for row in plan.rows], "seconds": plan.seconds}
