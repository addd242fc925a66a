"""Choosing among many arms by validation images alone; test images are read afterwards, of two arms.

These are what was chosen, and the best without synthetic images: their numbers are as honest as if nothing else had
been tried. The arms are trained as in any comparison (:mod:`imbdiff.recognition.comparison`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.arms import WITHOUT, Arm, check_arms, check_sets, missing_classes, with_controls
from imbdiff.recognition.comparison import (
    ArmResult,
    Summary,
    check_classes,
    check_networks,
    decide,
    judged,
    left_out,
    looked,
    plain_of,
    protocol_of,
)
from imbdiff.recognition.decision import Decision
from imbdiff.recognition.jobs import Conditions, Predicted, train_arms
from imbdiff.recognition.learned import Learned
from imbdiff.recognition.networks import Classifier
from imbdiff.recognition.verdict import TIE, Control, Verdict
from imbdiff.runtime.errors import DataError, NonFiniteLossError

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

RULE = (
    "highest mean balanced accuracy over seeds on validation images; of equal ones the simpler: none without synthetic "
    "images first, then fewer of them, then no curation"
)


@dataclass(frozen=True)
class Choice:
    """`recommended` of all `compared` arms, and `control`, the best without synthetic images; `equal` to the first are
    others."""

    recommended: str
    control: str
    compared: int
    equal: tuple[str, ...] = ()


def choose(rows: Sequence[ArmResult]) -> Choice:
    """The choice by :data:`RULE`, from validation numbers alone; of arms that are equally simple too, the first."""
    scored = [row for row in rows if row.val is not None]

    def equals(some: Sequence[ArmResult]) -> list[ArmResult]:
        top = max(row.score for row in some)
        found = [row for row in some if row.score >= top - TIE]
        return sorted(found, key=lambda row: (row.images, row.arm.curation != "none"))

    best, without = equals(scored), equals([row for row in scored if not row.images])
    return Choice(best[0].arm.name, without[0].arm.name, len(scored), tuple(row.arm.name for row in best[1:]))


@dataclass(frozen=True)
class Studied:
    """What :func:`study` found.

    Attributes:
        rows: arms without synthetic images, then those of the grid.
        missing: classes without validation images; nothing is chosen then.
        choice: what is recommended, by validation images.
        numbers: of the two that the choice names, their scores on test images.
        verdict: their comparison, the recommended one against the control, of "all" test images and of each group: that
            of all is the one declared beforehand. None where both are the same, or nothing was chosen.
        learned: what was learned at all, by one network of the recommended recipe that saw real images alone.
    """

    protocol: Mapping[str, Any]
    groups: Sequence[str]
    rows: tuple[ArmResult, ...]
    missing: tuple[str, ...]
    choice: Choice | None
    numbers: Mapping[str, Summary]
    verdict: Verdict | None
    learned: Learned | None

    def to_json(self) -> dict[str, Any]:
        choice, recommendation, test = self.choice, None, None
        if choice is not None:
            score = {row.arm.name: row.score for row in self.rows}
            recommendation = {
                **asdict(choice), "name": choice.recommended, "score": score[choice.recommended],
                "control_score": score[choice.control], "rule": RULE,
            }  # fmt: skip
            said, learned = self.verdict, self.learned
            test = {
                "numbers": {name: found.to_json() for name, found in self.numbers.items()},
                "scopes": None if said is None else {name: asdict(row) for name, row in said.per_group.items()},
                "remedy": "" if said is None else said.remedy,
                "learned": None if learned is None else asdict(learned),
            }
        return {
            "protocol": dict(self.protocol),
            "groups": list(self.groups),
            "rows": [row.to_json(self.protocol["seeds"]) for row in self.rows],
            "missing": list(self.missing),
            "recommendation": recommendation,
            "test": test,
        }


def check_study(conditions: Conditions, arms: Sequence[Arm]) -> None:
    """Refuses what would fail later, or could show nothing; see :func:`study`."""
    prepared = conditions.prepared
    check_arms(arms, conditions.seeds)
    check_sets(prepared, None)
    if prepared.val is None or not len(prepared.val):
        raise DataError(
            "there are no validation images to choose by, so that a study could show nothing",
            "hold some out in a new run (--data.val_fraction)",
        )
    for arm in arms:
        if arm.wanted:
            check_classes([arm], arm.wanted, prepared)
    check_networks(prepared, conditions.plan, arms)


def study(
    conditions: Conditions,
    grid: Sequence[Arm],
    images: Callable[[Arm], ImageSet],
    *,
    without: Sequence[str] = WITHOUT,
    adjust: bool = True,
) -> Studied:
    """Trains every arm of the grid and every recipe without synthetic images, at equal optimizer steps, and chooses.

    Args:
        conditions: the same for all. Where validation images of a class that claims are made of are missing, nothing is
            chosen.
        grid: of :func:`~imbdiff.recognition.arms.make_grid`. An arm without images (curation may leave none) is not
            trained. One of whose trainings the loss became infinite in is reported, and not chosen.
        images: gives the synthetic images of an arm; called for all before the first training.
        without: recipes without synthetic images; those of the grid are always added.
        adjust: see :func:`classify`.

    Raises:
        ConfigError: bad seeds, or a recipe, use and network that do not fit each other.
        NonFiniteLossError: the training of every arm without synthetic images failed.
        DataError: no test images, no validation images, synthetic images of other classes.
    """
    prepared, arms = conditions.prepared, with_controls(grid, without)
    check_study(conditions, arms)
    sets = {arm: images(arm) if arm.needs_synthetic else None for arm in arms}
    for made in sets.values():
        check_sets(prepared, made)
    plain = {plain_of(arm, arms) for arm in grid}
    conditions = replace(conditions, keep=tuple(sorted(arm.name for arm in plain)))
    networks: dict[str, Classifier] = {}
    able = {arm: made for arm, made in sets.items() if not left_out(arm, made)}
    trained = train_arms(able, conditions, keep_going=True, made=networks)
    done, decisions = decide(trained, prepared, adjust=adjust, parts=("val",))
    rows = tuple(_row(arm, made, done.get(arm), decisions.get(arm, ()), prepared) for arm, made in sets.items())
    if not any(row.val is not None and not row.arm.needs_synthetic for row in rows):
        raise NonFiniteLossError(
            f"no arm without synthetic images could be trained: {next(row.reason for row in rows if row.reason)}",
            "use a smaller --classify.lr",
        )
    missing = tuple(missing_classes(prepared))
    choice = None if missing else choose(rows)
    numbers: dict[str, Summary] = {}
    verdict = learned = None
    if choice is not None:
        # the only reading of predictions on test images
        of = {arm.name: arm for arm in trained}
        finalists = {of[name]: trained[of[name]] for name in (choice.recommended, choice.control)}
        two, _ = decide(finalists, prepared, adjust=adjust, parts=("test",))
        numbers = {arm.name: Summary.of(runs, "test", prepared) for arm, runs in two.items()}
        if len(two) > 1:
            control, best = Control(choice.control, (choice.control,), RULE, {}), of[choice.recommended]
            if (made := sets[best]) is not None and not trained[plain_of(best, arms)][0].failed:
                learned = looked(plain_of(best, arms), made, conditions, networks)
            lack = None if learned is None else learned.lack
            verdict = judged(two, prepared, control, best.name, [best.name], lack)
    return Studied(protocol_of(conditions), prepared.groups.present, rows, missing, choice, numbers, verdict, learned)


def _row(
    arm: Arm,
    made: ImageSet | None,
    done: Sequence[Predicted] | None,
    decisions: tuple[Decision, ...],
    prepared: Prepared,
) -> ArmResult:
    """What a choice may see of an arm: no number of test images."""
    have = np.zeros(len(arm.wanted)) if made is None else np.bincount(made.labels, minlength=len(arm.wanted))
    short = int((have < np.asarray(arm.wanted)).sum())
    row = ArmResult(arm, 0 if made is None else len(made), short)
    if done is None:
        return replace(row, reason=left_out(arm, made))
    failed = next((run.failed for run in done if run.failed), None)
    if failed is not None:
        return replace(row, reason=f"not compared, its training failed: {failed}")
    return replace(row, val=Summary.of(done, "val", prepared), decisions=decisions)
