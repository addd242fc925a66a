"""The images of a study: one pool, drawn by the run's model, of which every cell has the first ones or those it keeps.

The pool goes on where the run's own samples end: an image depends on its class, its number and the run's seed.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.saved import load_model
from imbdiff.pipeline import samples
from imbdiff.pipeline.curation import candidates_to_draw, curate_run
from imbdiff.pipeline.sampling import guide_of, sampling
from imbdiff.recognition.curation import parse_policy
from imbdiff.recognition.grid import Cell, first_of
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.working import working_extractor
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.study import MAX_POLICIES, Curated
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import atomic, digest, read_json, write_json
from imbdiff.runtime.progress import Progress

_log = logging.getLogger(__name__)
FORMAT = 2


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
    names = prepared.train.class_names
    todo = samples.plan_in(folder, counts, names, config, identity)
    if (folder / "plan.json").exists():
        before = read_json(folder / "plan.json")
        if samples.alike(before, todo):
            more = [max(n, m) for n, m in zip(counts, before["counts"], strict=True)]
            todo = samples.plan_in(folder, more, names, config, identity)
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
    bare["batch_size"] = todo["batch_size"]  # of another one they differ by rounding alone
    if not samples.alike(bare, todo):
        return len(have), {}
    asked = {row["file"] for row in todo["images"]} - have
    return len(have), {row["file"]: row["sha256"] for row in manifest["images"] if row["file"] in asked}


def draw_pool(
    todo: dict[str, Any],
    folder: Path,
    run: Path,
    config: RunConfig,
    model: Path,
    prepared: Prepared,
    *,
    quiet: bool = False,
) -> None:
    """Brings everything that `todo` says into `folder`: images of the run's samples are copied, the others drawn."""
    if samples.finished(folder, todo):
        return
    samples.make_ready(folder, todo)
    for file, sha256 in at_hand(todo, folder, run)[1].items():
        data = (run / file).read_bytes() if (run / file).exists() else b""
        if hashlib.sha256(data).hexdigest() == sha256:  # one that was altered is drawn again
            with atomic(folder / file, sync=False) as aside:
                aside.write_bytes(data)
    rows = todo["images"]
    missing = [row for row in rows if not samples.readable(folder / row["file"])]
    if missing:
        how, done = sampling(config), len(rows) - len(missing)
        network = load_model(model, device=resolve_device(config.device))
        guidance = guide_of(how, network, prepared, config, run.parent / "curation")
        say: Callable[[str], None] = (lambda _: None) if quiet else print
        with Progress("draw", len(rows), start=done, quiet=quiet) as progress:
            for drawn in samples.sample_rows(network, missing, folder, how, guidance=guidance, say=say):
                done += drawn
                progress.update(done)
    samples.record(folder, todo)


class Chooser:
    """Gives the images of a cell: the first ones of each class; under a policy, those that it keeps of the first
    wanted x `draw`, as the stage `curate` of a run with the same options does.

    Attributes:
        made: of each choice so far its policy, number, the name of its file, reasons, and images wanted, asked about
            and kept.

    Args:
        folder: where each choice, with all scores of its candidates, and the working classifier are kept.
    """

    def __init__(
        self, pool: ImageSet, prepared: Prepared, config: RunConfig, draw: float, plan: FitPlan, folder: Path,
        device: str,
    ) -> None:  # fmt: skip
        self._pool, self._prepared, self._config = pool, prepared, with_draw(config, draw)
        self._plan, self._folder, self._device = plan, folder, device
        self._known: dict[tuple[str, tuple[int, ...]], ImageSet] = {}
        self.made: list[dict[str, Any]] = []

    def __call__(self, cell: Cell) -> ImageSet:
        key = (cell.curation, cell.wanted)
        if key not in self._known:
            if cell.curation == "none":
                self._known[key] = first_of(self._pool, cell.wanted)
            else:
                candidates = first_of(self._pool, candidates_to_draw(cell.wanted, self._config))
                path, found = self._manifest(cell, candidates)
                self._known[key] = candidates.select([i for i, row in enumerate(found["images"]) if row["kept"]])
                counts = {name: sum(values) for name, values in found["counts"].items()}
                row = {"policy": cell.curation, "number": cell.number, "file": path.name, "reasons": found["reasons"]}
                self.made.append({**row, **counts})
        return self._known[key]

    def examples(self, number: str | None) -> list[Curated]:
        """One choice per policy, at most :data:`~imbdiff.reporting.study.MAX_POLICIES`: of `number` where it is given
        and was chosen of, otherwise the choice with most images wanted."""
        shown = []
        for policy in list(dict.fromkeys(row["policy"] for row in self.made))[:MAX_POLICIES]:
            own = [row for row in self.made if row["policy"] == policy]
            row = max(own, key=lambda r: (r["number"] == number, r["wanted"]))
            found = read_json(self._folder / row["file"])
            candidates = first_of(self._pool, found["counts"]["candidates"])
            about = ReportData(
                title="", command="", method="", source="", stats=self._prepared.stats, groups=self._prepared.groups,
                curated={**found, "candidates": candidates},
            )  # fmt: skip
            shown.append(Curated(policy, row["number"], f"{self._folder.name}/{row['file']}", about))
        return shown

    def _manifest(self, cell: Cell, candidates: ImageSet) -> tuple[Path, dict[str, Any]]:
        """The file of a choice, and what it holds: the manifest of the stage `curate`; made where it is not there."""
        config, train = self._config, self._prepared.train
        names = parse_policy(cell.curation)
        extractor = working_extractor(train, self._plan, seed=config.seed, device=self._device, folder=self._folder)
        least = config.curate.confidence if "confident" in names else None
        deciding = [FORMAT, candidates.fingerprint, list(cell.wanted), list(names), least, config.seed]
        key = digest([*deciding, train.fingerprint, extractor.fingerprint])
        path = self._folder / f"{cell.curation}-{key[:16]}.json"
        if path.exists():
            try:
                found = read_json(path)
                if found["input"] == key and [row["file"] for row in found["images"]] == list(candidates.ids):
                    return path, found
            except (RunError, KeyError, TypeError):
                pass
            _log.warning("%s is damaged: the images are chosen again", path)
        config = replace(
            config,
            sample=replace(config.sample, strategy=cell.number),
            curate=replace(config.curate, policy=cell.curation),
        )
        drawn = candidates.fingerprint
        found = curate_run(self._prepared, candidates, drawn, config, self._folder, device=self._device)
        warnings = [text.replace("--curate.draw", "--draw") for text in found["warnings"]]
        reasons = dict(sorted(Counter(row["reason"] for row in found["images"]).items()))
        found = {"input": key, "number": cell.number, "reasons": reasons, **found, "warnings": warnings}
        write_json(path, found)
        return path, found
