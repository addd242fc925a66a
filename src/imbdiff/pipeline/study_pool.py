"""The images of a study: one pool, drawn by the run's model, of which every cell has the first ones or those it keeps.

The pool goes on where the run's own samples end: an image depends on its class, its number and the run's seed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.generate import generate_batches
from imbdiff.diffusion.model import load_model
from imbdiff.pipeline import samples
from imbdiff.pipeline.curation import candidates_to_draw
from imbdiff.recognition.curation import curate, parse_policy
from imbdiff.recognition.grid import Cell, first_of
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.working import working_extractor
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import atomic, digest, read_json, write_json
from imbdiff.runtime.progress import Progress

_log = logging.getLogger(__name__)
FORMAT = 1


def with_draw(config: RunConfig, draw: float) -> RunConfig:
    """`config` with so many candidates per image wanted."""
    return replace(config, curate=replace(config.curate, draw=draw))


def pool_counts(cells: Sequence[Cell], config: RunConfig, draw: float) -> tuple[int, ...]:
    """(C,) images of the pool: what the largest number wants of each class, x `draw` where that cell is curated."""
    config = with_draw(config, draw)
    needs = [cell.wanted if cell.curation == "none" else candidates_to_draw(cell.wanted, config) for cell in cells]
    return tuple(np.max(np.array(needs), axis=0).tolist())


def plan_pool(
    folder: Path, counts: Sequence[int], prepared: Prepared, config: RunConfig, identity: str
) -> dict[str, Any]:
    """What is to be drawn into `folder`: at least `counts` (C,), and no fewer than an earlier grid had drawn there."""
    names, how = prepared.train.class_names, samples.sampling(config)
    todo = samples.plan(counts, names, how, config.seed, identity)
    if (folder / "plan.json").exists():
        before = read_json(folder / "plan.json")
        if samples._alike(before, todo):
            more = [max(n, m) for n, m in zip(counts, before["counts"], strict=True)]
            todo = samples.plan(more, names, how, config.seed, identity)
    return todo


def at_hand(todo: dict[str, Any], own: Path, run: Path) -> tuple[int, dict[str, str]]:
    """What need not be drawn: how many images `own` has, and of the others those of the run's samples: file -> sha256.

    Samples of other weights, seeds or another sampler are none of them.
    """
    have = {row["file"] for row in todo["images"] if (own / row["file"]).exists()}
    if not (run / "manifest.json").exists():
        return len(have), {}
    manifest = read_json(run / "manifest.json")
    bare = {**manifest, "images": [{k: v for k, v in row.items() if k != "sha256"} for row in manifest["images"]]}
    if not samples._alike(bare, todo):
        return len(have), {}
    asked = {row["file"] for row in todo["images"]} - have
    return len(have), {row["file"]: row["sha256"] for row in manifest["images"] if row["file"] in asked}


def draw_pool(
    todo: dict[str, Any], folder: Path, run: Path, config: RunConfig, model: Path, *, quiet: bool = False
) -> None:
    """Brings everything that `todo` says into `folder`: images of the run's samples are copied, the others drawn."""
    if samples.finished(folder, todo):
        return
    samples._open(folder, todo)
    for file, sha256 in at_hand(todo, folder, run)[1].items():
        data = (run / file).read_bytes() if (run / file).exists() else b""
        if hashlib.sha256(data).hexdigest() == sha256:  # one that was altered is drawn again
            with atomic(folder / file, sync=False) as aside:
                aside.write_bytes(data)
    rows = todo["images"]
    missing = [row for row in rows if not samples._readable(folder / row["file"])]
    if missing:
        how, done = samples.sampling(config), len(rows) - len(missing)
        network = load_model(model, device=resolve_device(config.device))
        labels, seeds = ([row[what] for row in missing] for what in ("label", "seed"))
        with Progress("draw", len(rows), start=done, quiet=quiet) as progress:
            for indices, images in generate_batches(
                network, labels, seeds, sampler=how.sampler, steps=how.steps, guidance=how.guidance(network),
                batch_size=how.batch_size,
            ):  # fmt: skip
                for i, image in zip(indices, images, strict=True):
                    with atomic(folder / missing[i]["file"], sync=False) as aside:
                        aside.write_bytes(samples.encode_png(image))
                done += len(indices)
                progress.update(done)
    drawn = [{**row, "sha256": hashlib.sha256((folder / row["file"]).read_bytes()).hexdigest()} for row in rows]
    write_json(folder / "manifest.json", {**todo, "images": drawn})


def chooser(
    pool: ImageSet, prepared: Prepared, config: RunConfig, draw: float, plan: FitPlan, folder: Path, device: str
) -> Callable[[Cell], ImageSet]:
    """Gives the images of a cell: the first ones of each class; under a policy, those that it keeps of the first
    wanted x `draw`, as the stage `curate` of a run with the same options does.

    Args:
        folder: where each choice and the working classifier are kept.
    """
    config = with_draw(config, draw)
    known: dict[tuple[str, tuple[int, ...]], ImageSet] = {}

    def images(cell: Cell) -> ImageSet:
        key = (cell.curation, cell.wanted)
        if key not in known:
            if cell.curation == "none":
                known[key] = first_of(pool, cell.wanted)
            else:
                candidates = first_of(pool, candidates_to_draw(cell.wanted, config))
                known[key] = candidates.select(_kept(candidates, cell, prepared, config, plan, folder, device))
        return known[key]

    return images


def _kept(
    candidates: ImageSet, cell: Cell, prepared: Prepared, config: RunConfig, plan: FitPlan, folder: Path, device: str
) -> list[int]:
    names = parse_policy(cell.curation)
    extractor = working_extractor(prepared.train, plan, seed=config.seed, device=device, folder=folder)
    least = config.curate.confidence if "confident" in names else None
    deciding = [FORMAT, candidates.fingerprint, list(cell.wanted), list(names), least, config.seed]
    key = digest([*deciding, prepared.train.fingerprint, extractor.fingerprint])
    path = folder / f"{cell.curation}-{key[:16]}.json"
    if path.exists():
        try:
            found = read_json(path)
            if found["input"] == key:
                return [int(i) for i in found["kept"]]
        except (RunError, KeyError, TypeError):
            _log.warning("%s is damaged: the images are chosen again", path)
    chosen = curate(
        candidates, cell.wanted, prepared.train, cell.curation, extractor,
        confidence=config.curate.confidence, seed=config.seed,
    )  # fmt: skip
    reasons = {reason: chosen.reason.count(reason) for reason in sorted(set(chosen.reason))}
    kept = [int(i) for i in chosen.kept]
    write_json(path, {"input": key, "policy": cell.curation, "number": cell.number, "reasons": reasons, "kept": kept})
    return kept
