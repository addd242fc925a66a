"""Comparing arms: `classify`, a small grid judged by a fixed rule, and `study`, a larger one chosen among beforehand.

Both train the same arms in the same way (:mod:`imbdiff.recognition.jobs`). `classify` says whether the images that a
run kept helped. `study` chooses, by validation images alone, how many images, which of them and used how. It reads
predictions on test images after the choice, and of two arms only: what was chosen, and the best without synthetic
images. Their numbers are then as honest as if nothing else had been tried.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.arms import (
    PRIMARY,
    WITHOUT,
    Arm,
    check_arms,
    check_sets,
    make_arms,
    missing_classes,
    recipes_alone,
)
from imbdiff.recognition.fitting import check_trainings
from imbdiff.recognition.jobs import Conditions, Predicted, Predictions, Progress, train_arms
from imbdiff.recognition.networks import is_pretrained
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.scores import Scores, mean_of, scores, sd_of
from imbdiff.recognition.verdict import Comparison, Control, Verdict, choose_control, verdict
from imbdiff.runtime.errors import ConfigError, DataError, NonFiniteLossError

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

TIE = 1e-12
"""Mean balanced accuracies that are nearer than this are equal."""
RULE = (
    "highest mean balanced accuracy over seeds on validation images; of equal ones the simpler: none without synthetic "
    "images first, then fewer of them, then no curation"
)


# -- what came out of an arm


@dataclass(frozen=True)
class RunResult:
    """One trained classifier of an arm: its scores after the last step.

    Attributes:
        step: of a network before the last one.
        best: the same at the best step by validation images; None where there was no validation.
    """

    test: Scores
    val: Scores | None
    seed: int | None = None
    step: int | None = None
    best: RunResult | None = None

    @classmethod
    def of(cls, found: Predicted, prepared: Prepared, seed: int | None = None) -> RunResult:
        assert found.test is not None
        best = None if found.best is None else cls.of(found.best, prepared)
        step = None if seed is not None else found.step
        test, val = (_scored(p, i, prepared) for p, i in ((found.test, prepared.test), (found.val, prepared.val)))
        assert test is not None
        return cls(test, val, seed, step, best)

    def to_json(self) -> dict[str, Any]:
        own = {"step": self.step} if self.seed is None else {"seed": self.seed}
        made = {**own, **self.test.to_json(), "val": None if self.val is None else self.val.to_json()}
        return made if self.seed is None else made | {"best": None if self.best is None else self.best.to_json()}


def _scored(found: Predictions | None, images: ImageSet | None, prepared: Prepared) -> Scores | None:
    if found is None or images is None:
        return None
    return scores(found.predicted, images.labels, prepared.groups, prepared.claimable, found.confidence)


@dataclass(frozen=True)
class ArmResult:
    """What came out of an arm on test images, and of validation images their mean."""

    arm: Arm
    runs: tuple[RunResult, ...]

    @classmethod
    def of(cls, arm: Arm, done: Sequence[Predicted], seeds: Sequence[int], prepared: Prepared) -> ArmResult:
        """The scores of predictions, one per seed."""
        return cls(arm, tuple(RunResult.of(run, prepared, int(seed)) for seed, run in zip(seeds, done, strict=True)))

    @property
    def mean(self) -> Scores:
        return mean_of([run.test for run in self.runs])

    @property
    def sd(self) -> Scores:
        return sd_of([run.test for run in self.runs])

    @property
    def val(self) -> dict[str, float | None] | None:
        """Accuracies on validation images, mean over seeds, and the standard deviation of the balanced one."""
        runs = [run.val for run in self.runs if run.val is not None]
        if not runs:
            return None
        mean, sd = mean_of(runs), sd_of(runs).balanced_accuracy
        return {"accuracy": mean.accuracy, "balanced_accuracy": mean.balanced_accuracy, "sd": sd}

    def to_json(self) -> dict[str, Any]:
        runs, spread = [run.to_json() for run in self.runs], {"mean": self.mean.to_json(), "sd": self.sd.to_json()}
        return {**self.arm.to_json(), "runs": runs, **spread, "val": self.val}


def protocol_of(conditions: Conditions) -> dict[str, Any]:
    """What one must know of a comparison to repeat it."""
    prepared, plan = conditions.prepared, conditions.plan
    pretrained = is_pretrained(plan.network)
    return {
        **plan.to_json(),
        "seeds": [int(s) for s in conditions.seeds],
        "n_train": len(prepared.train),
        "n_val": 0 if prepared.val is None else len(prepared.val),
        "n_test": len(prepared.test),
        "groups": prepared.groups.rule,
        "equal": "optimizer steps, batch size, augmentation, seeds, learning rate and weight decay in all arms",
        "chosen_on_test": "nothing",
        "pretrained": "yes: the weights come from other images, perhaps from test images" if pretrained else "no",
    }


# -- the default grid, and its verdict


@dataclass(frozen=True)
class Classified:
    """What :func:`classify` found; its JSON is ``classifier/results.json``."""

    protocol: Mapping[str, Any]
    arms: tuple[ArmResult, ...]
    control: Control
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return {
            "protocol": dict(self.protocol),
            "arms": [arm.to_json() for arm in self.arms],
            "control": self.control.to_json(),
            "verdict": self.verdict.to_json(),
        }


def classify(
    prepared: Prepared,
    synthetic: ImageSet | None,
    *,
    plan: FitPlan | None = None,
    arms: Sequence[Arm] | None = None,
    primary: str = PRIMARY,
    seeds: Sequence[int] = (0, 1, 2),
    validations: int = 0,
    device: str = "cpu",
    folder: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    **changed: Any,
) -> Classified:
    """Trains every arm with every seed, at equal optimizer steps, batch size and augmentation, and compares them.

    Args:
        prepared: the splits; the test split is looked at once per trained network and chooses nothing.
        synthetic: generated images; None leaves out the arms that need them.
        plan: network, steps, rates, augmentation: the same in every arm. None: a small network for 500 steps, with
            shifts by 1/8 of the shorter side and no flips.
        arms: recipes and how synthetic images are used in them; None: those of `make_arms`.
        primary: name of the arm whose verdict leads.
        seeds, validations, device, folder, progress, workers: see :class:`imbdiff.recognition.jobs.Conditions`. Where
            validation images of a class are missing there is no validation while training.
        changed: attributes of the plan in place of its own, such as ``steps=300``.

    Raises:
        ConfigError: no seeds or the same one twice, arms of one name or none without synthetic images, no arm of the
            primary's name, an unknown recipe or network.
        DataError: no test images, a class without real images, or synthetic images of other classes or another shape.
    """
    check_sets(prepared, synthetic)
    arms = make_arms() if arms is None else arms
    check_arms(arms, seeds)
    plan = plan or FitPlan(shift=max(1, min(prepared.train.shape[:2]) // 8))
    plan = replace(plan, **changed)
    arms = [arm for arm in arms if synthetic is not None or not arm.needs_synthetic]
    leading = [arm.name for arm in arms if arm.needs_synthetic]
    if leading and primary not in leading:
        raise ConfigError(f"no arm with synthetic images is called {primary!r}", f"choose one of {leading} to lead")
    val = prepared.val
    whole = val is not None and len(np.unique(val.labels)) == len(prepared.train.class_names)
    conditions = Conditions(
        plan, prepared, tuple(seeds), device, validations if whole else 0, folder, workers, progress
    )
    done = train_arms({arm: synthetic if arm.needs_synthetic else None for arm in arms}, conditions)
    results = tuple(ArmResult.of(arm, done[arm], seeds, prepared) for arm in arms)
    alone = {r.arm.name: r.val["balanced_accuracy"] if r.val else None for r in results if not r.arm.needs_synthetic}
    control = choose_control(alone, val, prepared.claimable)
    said = {arm.name: _stacked([found.test for found in done[arm]]) for arm in arms}
    judged = verdict(said, prepared.test, prepared.groups, prepared.claimable, control, primary, leading)
    facts = {"validations": conditions.validations, "n_synthetic": 0 if synthetic is None else len(synthetic)}
    return Classified({**protocol_of(conditions), **facts}, results, control, judged)


def _stacked(found: Sequence[Predictions | None]) -> np.ndarray:
    """(S, N) predicted classes."""
    return np.stack([one.predicted for one in found if one is not None])


# -- a larger grid, and the choice


@dataclass(frozen=True)
class Summary:
    """Accuracies of an arm over seeds: their scores, in the order of the seeds."""

    runs: tuple[Scores, ...]

    def to_json(self) -> dict[str, Any]:
        """Mean and standard deviation of "balanced", "accuracy" and "groups", and "seeds", balanced of each."""
        made: dict[str, Any] = {"seeds": [run.balanced_accuracy for run in self.runs]}
        for what, found in (("mean", mean_of(self.runs)), ("sd", sd_of(self.runs))):
            made[what] = {
                "balanced": found.balanced_accuracy, "accuracy": found.accuracy, "groups": found.groups,
            }  # fmt: skip
        return made


@dataclass(frozen=True)
class GridRow:
    """An arm of a study, with what a choice may see of it: no number of test images.

    Attributes:
        images: synthetic ones that it was trained with.
        short: classes that have fewer than were wanted.
        reason: why it has no numbers.
        validation: its accuracies on validation images.
    """

    arm: Arm
    images: int = 0
    short: int = 0
    reason: str | None = None
    validation: Summary | None = None

    @property
    def score(self) -> float:
        """Mean balanced accuracy on validation images."""
        return 0.0 if self.validation is None else float(mean_of(self.validation.runs).balanced_accuracy or 0.0)

    def to_json(self) -> dict[str, Any]:
        arm = self.arm
        return {
            "name": arm.name,
            "number": arm.number,
            "wanted": sum(arm.wanted),
            "images": self.images,
            "short": self.short,
            "curation": arm.curation if arm.needs_synthetic else None,
            "recipe": arm.recipe,
            "label": get_recipe(arm.recipe).label,
            "use": None if arm.use is None else {**asdict(arm.use), "words": arm.use.describe()},
            "reason": self.reason,
            "validation": None if self.validation is None else self.validation.to_json(),
        }


@dataclass(frozen=True)
class Choice:
    """`recommended` of all `compared` arms, and `control`, the best without synthetic images; `equal` to the first are
    others."""

    recommended: str
    control: str
    compared: int
    equal: tuple[str, ...] = ()


def choose(rows: Sequence[GridRow]) -> Choice:
    """The choice by :data:`RULE`, from validation numbers alone; of arms that are equally simple too, the first.

    Raises:
        ConfigError: there is no arm without synthetic images.
    """
    scored = [row for row in rows if row.validation is not None]
    without = [row for row in scored if not row.images]
    if not without:
        raise ConfigError("there is no arm without synthetic images to compare with", "name at least one recipe for it")

    def equals(some: Sequence[GridRow]) -> list[GridRow]:
        top = max(row.score for row in some)
        found = [row for row in some if row.score >= top - TIE]
        return sorted(found, key=lambda row: (row.images, row.arm.curation != "none"))

    best = equals(scored)
    equal = tuple(row.arm.name for row in best[1:])
    return Choice(best[0].arm.name, equals(without)[0].arm.name, len(scored), equal)


@dataclass(frozen=True)
class Studied:
    """What :func:`study` found.

    Attributes:
        rows: arms without synthetic images, then those of the grid.
        missing: classes without validation images; nothing is chosen then.
        choice: what is recommended, by validation images.
        numbers: of the two that the choice names, their accuracies on test images.
        scopes: their comparison, the recommended one against the control, of "all" test images and of each group: that
            of all is the one declared beforehand. None where both are the same, or nothing was chosen.
    """

    protocol: Mapping[str, Any]
    groups: Sequence[str]
    rows: tuple[GridRow, ...]
    missing: tuple[str, ...]
    choice: Choice | None
    numbers: Mapping[str, Summary]
    scopes: Mapping[str, Comparison] | None

    def to_json(self) -> dict[str, Any]:
        choice, recommendation, test = self.choice, None, None
        if choice is not None:
            score = {row.arm.name: row.score for row in self.rows}
            recommendation = {
                "name": choice.recommended,
                "score": score[choice.recommended],
                "control": choice.control,
                "control_score": score[choice.control],
                "compared": choice.compared,
                "equal": list(choice.equal),
                "rule": RULE,
            }
            scopes = None if self.scopes is None else {name: row.to_json() for name, row in self.scopes.items()}
            test = {"numbers": {name: found.to_json() for name, found in self.numbers.items()}, "scopes": scopes}
        return {
            "protocol": dict(self.protocol),
            "groups": list(self.groups),
            "rows": [row.to_json() for row in self.rows],
            "missing": list(self.missing),
            "recommendation": recommendation,
            "test": test,
        }


def grid_arms(grid: Sequence[Arm], without: Sequence[str] = WITHOUT) -> list[Arm]:
    """The arms without synthetic images that a grid is compared with, those of its recipes among them, and its own."""
    return [*(Arm(recipe) for recipe in recipes_alone(without, [arm.recipe for arm in grid])), *grid]


def check_study(
    prepared: Prepared, grid: Sequence[Arm], plan: FitPlan, without: Sequence[str], seeds: Sequence[int]
) -> None:
    """Refuses what would fail later, or could show nothing; see :func:`study`."""
    if not grid:
        raise ConfigError("the grid has no arm with synthetic images", "name at least one number")
    arms = grid_arms(grid, without)
    check_arms(arms, seeds)
    check_sets(prepared, None)
    if prepared.val is None or not len(prepared.val):
        raise DataError(
            "there are no validation images to choose by, so that a study could show nothing",
            "hold some out in a new run (--data.val_fraction)",
        )
    check_trainings(prepared.train, plan, [(arm.recipe, arm.use) for arm in arms])


def study(
    conditions: Conditions,
    grid: Sequence[Arm],
    images: Callable[[Arm], ImageSet],
    *,
    without: Sequence[str] = WITHOUT,
) -> Studied:
    """Trains every arm of the grid and every recipe without synthetic images, at equal optimizer steps, and chooses.

    Args:
        conditions: the same for all. Where validation images of a class that claims are made of are missing, nothing is
            chosen.
        grid: of :func:`~imbdiff.recognition.arms.make_grid`. An arm without images (curation may leave none) is not
            trained. One of whose trainings the loss became infinite in is reported, and not chosen.
        images: gives the synthetic images of an arm; called for all before the first training.
        without: recipes without synthetic images; those of the grid are always added.

    Raises:
        ConfigError: no arms, bad seeds, or a recipe, use and network that do not fit each other.
        NonFiniteLossError: the training of every arm without synthetic images failed.
        DataError: no test images, no validation images, synthetic images of other classes.
    """
    prepared = conditions.prepared
    check_study(prepared, grid, conditions.plan, without, conditions.seeds)
    rows: list[GridRow] = []
    sets: dict[Arm, ImageSet | None] = {}
    for arm in grid_arms(grid, without):
        found = images(arm) if arm.needs_synthetic else None
        if found is None:
            rows.append(GridRow(arm))
        else:
            check_sets(prepared, found)
            have = np.bincount(found.labels, minlength=len(arm.wanted))
            reason = None if len(found) else "curation left no image, so that nothing was trained"
            rows.append(GridRow(arm, len(found), int((have < np.asarray(arm.wanted)).sum()), reason))
        if found is None or len(found):
            sets[arm] = found
    done = train_arms(sets, conditions, keep_going=True)
    failed = {arm: next((run.failed for run in runs if run.failed), "") for arm, runs in done.items()}
    for i, row in enumerate(rows):
        if failed.get(row.arm):
            rows[i] = replace(row, reason=f"not compared, its training failed: {failed[row.arm]}")
        elif row.arm in done:
            runs = [_scored(run.val, prepared.val, prepared) for run in done[row.arm]]
            rows[i] = replace(row, validation=Summary(tuple(run for run in runs if run is not None)))
    if not any(row.validation is not None and not row.arm.needs_synthetic for row in rows):
        raise NonFiniteLossError(
            f"no arm without synthetic images could be trained: {next(filter(None, failed.values()))}",
            "use a smaller --classify.lr",
        )
    missing = tuple(missing_classes(prepared))
    choice = None if missing else choose(rows)
    numbers: dict[str, Summary] = {}
    scopes = None
    if choice is not None:
        # the only reading of predictions on test images
        named = {arm.name: done[arm] for arm in done if arm.name in (choice.recommended, choice.control)}
        said = {name: _stacked([run.test for run in named[name]]) for name in named}
        numbers, scopes = _on_test(choice, said, prepared)
    return Studied(protocol_of(conditions), prepared.groups.present, tuple(rows), missing, choice, numbers, scopes)


def _on_test(
    choice: Choice, said: Mapping[str, np.ndarray], prepared: Prepared
) -> tuple[dict[str, Summary], Mapping[str, Comparison] | None]:
    """The two that a choice names, on the test images: their accuracies, and their comparison."""
    test, groups, claimable = prepared.test, prepared.groups, prepared.claimable
    numbers = {
        name: Summary(tuple(scores(one, test.labels, groups, claimable) for one in said[name]))
        for name in dict.fromkeys([choice.recommended, choice.control])
    }
    if choice.recommended == choice.control:
        return numbers, None
    declared = Control(choice.control, (choice.control,), RULE, {})
    found = verdict(said, test, groups, claimable, declared, choice.recommended, [choice.recommended])
    return numbers, found.per_group
