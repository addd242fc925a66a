"""How many synthetic images, which of them, and used how: a grid of trainings, chosen among on validation images.

Test images are looked at after the choice, and of two arms only: what was chosen, and the best without synthetic
images. Their numbers are then as honest as if nothing else had been tried. :func:`choose` is given validation numbers
alone, and :class:`Sealed` hands out predictions on test images for a choice only.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.arms import WITHOUT, check_classes, protocol_of
from imbdiff.recognition.grid import Cell, check_grid, missing_classes, recipes_without
from imbdiff.recognition.jobs import Arm, Job, Progress, default_workers, run_all
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.scores import scores, spread
from imbdiff.recognition.verdict import verdict
from imbdiff.runtime.errors import ConfigError, NonFiniteLossError, RunError

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

TIE = 1e-12
"""Mean balanced accuracies that are nearer than this are equal."""
RULE = (
    "highest mean balanced accuracy over seeds on validation images; of equal ones the simpler: none without synthetic "
    "images first, then fewer of them, then no curation"
)


class Tried(Job):
    """A training whose loss may become infinite without ending the others: "failed" then says so. It is not kept, and
    the next call tries again."""

    def train(self, stop: threading.Event) -> dict[str, Any] | None:
        try:
            return super().train(stop)
        except NonFiniteLossError as error:
            return {"seed": self.seed, "failed": error.message}


@dataclass(frozen=True)
class Entry:
    """What the choice sees of an arm or cell: its number of synthetic images, and its score on validation images."""

    name: str
    synthetic: int
    curated: bool
    score: float


@dataclass(frozen=True)
class Choice:
    """`recommended` of all `compared` entries, and `control`, the best without synthetic images; `equal` to the first
    are others."""

    recommended: str
    control: str
    compared: int
    equal: tuple[str, ...] = ()


def choose(entries: Sequence[Entry]) -> Choice:
    """The choice by :data:`RULE`, from validation numbers alone; of entries that are equally simple too, the first.

    Raises:
        ConfigError: there is no entry without synthetic images.
    """
    without = [e for e in entries if not e.synthetic]
    if not without:
        raise ConfigError("there is no arm without synthetic images to compare with", "name at least one recipe for it")

    def equals(rows: Sequence[Entry]) -> list[Entry]:
        top = max(e.score for e in rows)
        return sorted((e for e in rows if e.score >= top - TIE), key=lambda e: (e.synthetic, e.curated))

    best = equals(entries)
    return Choice(best[0].name, equals(without)[0].name, len(entries), tuple(e.name for e in best[1:]))


class Sealed:
    """What trained networks said, by name, one mapping per seed: of validation images for anyone, of test images for a
    choice."""

    def __init__(self, done: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self._done = done

    def validation(self, name: str) -> np.ndarray | None:
        """(S, N) predicted classes of the validation images; None where there are none."""
        runs = [run["val"] for run in self._done[name]]
        return None if any(run is None for run in runs) else np.array([run["predicted"] for run in runs])

    def test(self, name: str, choice: Choice) -> np.ndarray:
        """(S, N) predicted classes of the test images.

        Raises:
            RunError: the choice does not name it.
        """
        if name not in (choice.recommended, choice.control):
            raise RunError(f"the test images are not looked at for {name!r}: it was not chosen")
        return self.reveal(name)

    def reveal(self, name: str) -> np.ndarray:
        """The same for any name: once asked for, the test images say nothing of a choice made after that."""
        return np.array([run["test"]["predicted"] for run in self._done[name]])


def sweep(
    prepared: Prepared,
    images: Callable[[Cell], ImageSet],
    cells: Sequence[Cell],
    *,
    plan: FitPlan,
    without: Sequence[str] = WITHOUT,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    folder: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    reveal_test: bool = False,
) -> dict[str, Any]:
    """Trains every cell and every recipe without synthetic images, at equal optimizer steps, and chooses among them.

    Args:
        prepared: the splits. Where validation images of a class that claims are made of are missing, nothing is chosen.
        images: gives the synthetic images of a cell; called for all cells before the first training.
        cells: of :func:`~imbdiff.recognition.grid.make_cells`. A cell without images (curation may leave none) is not
            trained. One of whose trainings the loss became infinite in is reported, and not chosen.
        plan: network, steps, rates, augmentation: the same for all.
        without: recipes without synthetic images; those of the cells are always added.
        seeds: the same ones for all.
        folder: where the result of each training is kept, by its inputs: what is there is not trained again, whatever
            grid it was trained for, and what was begun goes on.
        progress: called with (finished, total, what was just finished).
        workers: networks trained at a time.
        reveal_test: adds the test numbers of all, which choose nothing.

    Returns:
        JSON-able: "protocol", "rows" (arms without, then cells: name, number, wanted, images, short, curation, recipe,
        label, use, reason, validation), "missing" (classes without validation image), "recommendation" (None, or name,
        control, score, compared, equal, rule), "test" (None, or of these two: see :func:`compare`), "exploratory".

    Raises:
        ConfigError: no cells, bad seeds, or a recipe, use and network that do not fit each other.
        NonFiniteLossError: the training of every arm without synthetic images failed.
        DataError: no test images, no validation images (unless `reveal_test`), synthetic images of other classes.
    """
    check_grid(prepared, cells, plan, without, seeds, reveal_test=reveal_test)
    rows: list[dict[str, Any]] = []
    arms: dict[str, tuple[Arm, ImageSet | None]] = {}
    for recipe in recipes_without(without, cells):
        arm = Arm(recipe)
        rows.append(_row(arm.name, None, None, prepared))
        rows[-1] |= {"recipe": recipe, "label": get_recipe(recipe).label}
        arms[arm.name] = (arm, None)
    for cell in cells:
        found = images(cell)
        check_classes("synthetic", found.class_names, prepared.train.class_names)
        rows.append(_row(cell.name, cell, found, prepared))
        if len(found):
            arms[cell.name] = (cell.arm, found)
    done = _trained(arms, prepared, plan, seeds, device, folder, progress, workers)
    failed = {name: run["failed"] for name, runs in done.items() for run in runs if "failed" in run}
    for row in rows:
        if row["name"] in failed:
            row["reason"] = f"not compared, its training failed: {failed[row['name']]}"
            del arms[row["name"]]
    if not any(row["number"] is None and row["name"] in arms for row in rows):
        raise NonFiniteLossError(
            f"no arm without synthetic images could be trained: {next(iter(failed.values()))}",
            "use a smaller --classify.lr",
        )
    sealed = Sealed(done)
    for row in rows:
        if row["name"] in arms:
            row["validation"] = _numbers(sealed.validation(row["name"]), prepared.val, prepared)
    missing = missing_classes(prepared)
    choice = None if missing else choose(entries_of(rows))
    return {
        "protocol": protocol_of(plan, prepared, seeds),
        "groups": prepared.groups.present,
        "rows": rows,
        "missing": missing,
        "recommendation": None if choice is None else _recommendation(choice, rows),
        "test": None if choice is None else compare(choice, sealed, prepared),
        "exploratory": _exploratory(list(arms), sealed, prepared) if reveal_test else None,
    }


def entries_of(rows: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """What the choice sees: rows with validation numbers."""
    return [
        Entry(row["name"], row["images"], row["curation"] not in (None, "none"), row["validation"]["mean"]["balanced"])
        for row in rows
        if row["validation"] is not None
    ]


def _trained(
    arms: Mapping[str, tuple[Arm, ImageSet | None]], prepared: Prepared, plan: FitPlan, seeds: Sequence[int],
    device: str, folder: Path | None, progress: Progress | None, workers: int | None,
) -> dict[str, list[Mapping[str, Any]]]:  # fmt: skip
    """By name, one result per seed. Equal inputs are one training, whose file is called by them."""
    jobs: dict[str, Job] = {}
    of: dict[str, list[str]] = {name: [] for name in arms}
    for name, (arm, found) in arms.items():
        for seed in seeds:
            job = Tried(arm, int(seed), plan, prepared, found, device, folder)
            identity = job.input_hash()
            jobs.setdefault(identity, replace(job, key=f"-{identity[:12]}"))
            of[name].append(identity)

    def shown(done: int, total: int, note: str) -> None:
        assert progress is not None
        progress(done, total, re.sub(r"-[0-9a-f]{12}(?=, seed )", "", note))

    done = run_all(list(jobs.values()), workers or default_workers(device), shown if progress else None)
    results = {identity: done[job.arm.name + job.key, job.seed] for identity, job in jobs.items()}
    return {name: [results[identity] for identity in found] for name, found in of.items()}


def _row(name: str, cell: Cell | None, found: ImageSet | None, prepared: Prepared) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "number": None, "wanted": 0, "images": 0, "short": 0, "curation": None}
    row |= {"recipe": None, "label": None, "use": None, "reason": None, "validation": None}
    if cell is None or found is None:
        return row
    have = np.bincount(found.labels, minlength=len(cell.wanted))
    return row | {
        "number": cell.number,
        "wanted": sum(cell.wanted),
        "images": len(found),
        "short": int((have < np.asarray(cell.wanted)).sum()),
        "curation": cell.curation,
        "recipe": cell.recipe,
        "label": get_recipe(cell.recipe).label,
        "use": {**cell.use.to_json(), "words": cell.use.words()},
        "reason": None if len(found) else "curation left no image, so that nothing was trained",
    }


def _numbers(predicted: np.ndarray | None, images: ImageSet | None, prepared: Prepared) -> dict[str, Any] | None:
    """Mean and standard deviation over seeds of "balanced", "accuracy" and "groups", and "seeds", balanced of each."""
    if predicted is None or images is None:
        return None
    runs = [scores(one, images.labels, prepared.groups, prepared.claimable) for one in predicted]
    found = spread(runs)
    kept = {
        what: {
            "balanced": block["balanced_accuracy"], "accuracy": block["accuracy"], "groups": block["groups"],
        }
        for what, block in found.items()
    }  # fmt: skip
    return {**kept, "seeds": [run["balanced_accuracy"] for run in runs]}


def _recommendation(choice: Choice, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    score = {row["name"]: row["validation"]["mean"]["balanced"] for row in rows if row["validation"] is not None}
    return {
        "name": choice.recommended,
        "score": score[choice.recommended],
        "control": choice.control,
        "control_score": score[choice.control],
        "compared": choice.compared,
        "equal": list(choice.equal),
        "rule": RULE,
    }


def compare(choice: Choice, sealed: Sealed, prepared: Prepared) -> dict[str, Any]:
    """The two that a choice names, on the test images: the only look at them.

    Returns:
        "numbers": by name, as of validation images; "scopes": None where both are the same, otherwise of "all" and each
        group a row of :func:`~imbdiff.recognition.verdict.verdict`: the comparison over all test images is the one
        declared beforehand, those of groups are corrected for their number (Holm), and their intervals widened with it.
    """
    test = prepared.test
    said = {name: sealed.test(name, choice) for name in dict.fromkeys([choice.recommended, choice.control])}
    numbers = {name: _numbers(predicted, test, prepared) for name, predicted in said.items()}
    if choice.recommended == choice.control:
        return {"numbers": numbers, "scopes": None}
    declared = {"arms": [choice.control], "chosen_by": RULE}
    found = verdict(said, test, prepared.groups, prepared.claimable, declared, choice.recommended, [choice.recommended])
    return {"numbers": numbers, "scopes": found["per_group"]}


def _exploratory(names: Sequence[str], sealed: Sealed, prepared: Prepared) -> dict[str, Any]:
    rows = [{"name": name, "numbers": _numbers(sealed.reveal(name), prepared.test, prepared)} for name in names]
    return {"compared": len(rows), "rows": rows}
