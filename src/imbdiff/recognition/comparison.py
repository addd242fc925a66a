"""Comparing arms: all are trained and adjusted alike, and judged by a fixed rule.

What was trained with synthetic images is compared with the best arm without them, chosen by validation images. A larger
grid, of which one arm is chosen beforehand: :mod:`imbdiff.recognition.choice`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import named
from imbdiff.recognition.arms import (
    LEADING,
    PRIMARY,
    Arm,
    check_arms,
    check_sets,
    make_arms,
    with_controls,
)
from imbdiff.recognition.decision import Decision, choose_decision, log_prior_of
from imbdiff.recognition.fitting import check_trainings
from imbdiff.recognition.jobs import Conditions, Predicted, Progress, jobs_of, train_arms
from imbdiff.recognition.learned import Lack, Learned, look
from imbdiff.recognition.networks import Classifier, is_pretrained
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.saved import ImageClassifier, Member
from imbdiff.recognition.scores import Scores, mean_of, scores, sd_of
from imbdiff.recognition.use import EMPTIED
from imbdiff.recognition.verdict import Control, Verdict, choose_control, verdict
from imbdiff.runtime.errors import ConfigError

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared


@dataclass(frozen=True)
class Summary:
    """Scores of an arm's classifiers on one set of images, in the order of the seeds."""

    runs: tuple[Scores, ...]

    @classmethod
    def of(cls, found: Sequence[Predicted], part: str, prepared: Prepared) -> Summary:
        """Of the probabilities of "test" or "val" images."""
        images: ImageSet = getattr(prepared, part)

        def one(p: np.ndarray) -> Scores:
            return scores(p.argmax(axis=1), images.labels, prepared.groups, prepared.claimable, p.max(axis=1))

        return cls(tuple(one(getattr(classifier, part)) for classifier in found))

    @property
    def mean(self) -> Scores:
        return mean_of(self.runs)

    @property
    def sd(self) -> Scores:
        return sd_of(self.runs)

    def to_json(self) -> dict[str, Any]:
        """Mean and standard deviation of "balanced", "accuracy" and "groups", and "seeds", balanced of each."""
        made: dict[str, Any] = {"seeds": [run.balanced_accuracy for run in self.runs]}
        for what, one in (("mean", self.mean), ("sd", self.sd)):
            made[what] = {"balanced": one.balanced_accuracy, "accuracy": one.accuracy, "groups": one.groups}
        return made


@dataclass(frozen=True)
class ArmResult:
    """What came out of an arm.

    Attributes:
        images: synthetic ones that it was trained with.
        short: classes that have fewer than were wanted.
        reason: why it has no numbers.
        val, test: scores on validation and test images; None where there are none, or where they may not be read.
        decisions: of each seed's classifier, how its probabilities decide.
    """

    arm: Arm
    images: int = 0
    short: int = 0
    reason: str | None = None
    val: Summary | None = None
    test: Summary | None = None
    decisions: tuple[Decision, ...] = ()

    @property
    def score(self) -> float:
        """Mean balanced accuracy on validation images, 0 where it is not known."""
        return 0.0 if self.val is None else self.val.mean.balanced_accuracy or 0.0

    def to_json(self, seeds: Sequence[int]) -> dict[str, Any]:
        arm = self.arm
        made = {
            **arm.to_json(),
            "number": arm.number,
            "wanted": sum(arm.wanted),
            "images": self.images,
            "short": self.short,
            "curation": arm.curation if arm.needs_synthetic else None,
            "reason": self.reason,
            "validation": None if self.val is None else self.val.to_json(),
            "decisions": [asdict(decision) for decision in self.decisions],
        }
        if arm.use is not None and arm.number is not None:
            made["use"]["words"] = arm.use.describe()
        if self.test is not None:
            runs = [{"seed": int(seed), **run.to_json()} for seed, run in zip(seeds, self.test.runs, strict=True)]
            made |= {"runs": runs, "mean": self.test.mean.to_json(), "sd": self.test.sd.to_json()}
        return made


def protocol_of(conditions: Conditions) -> dict[str, Any]:
    """What one must know of a comparison to repeat it."""
    prepared, plan = conditions.prepared, conditions.plan
    pretrained = is_pretrained(plan.network)
    groups, counts = prepared.groups, np.asarray(prepared.stats.counts)
    usable = np.asarray(prepared.claimable, dtype=bool)[prepared.test.labels]
    of_class = np.asarray(groups.of_class)[prepared.test.labels[usable]]
    return {
        **plan.to_json(),
        "seeds": [int(s) for s in conditions.seeds],
        "n_train": len(prepared.train),
        "n_val": 0 if prepared.val is None else len(prepared.val),
        "n_test": len(prepared.test),
        "n_test_groups": {group: int((of_class == groups.names.index(group)).sum()) for group in groups.present},
        "rarest_group": min(groups.present, key=lambda group: counts[groups.classes(group)].mean()),
        "groups": groups.rule,
        "equal": "optimizer steps, batch size, seeds, learning rate and weight decay of every network in all arms; "
        "augmentation too, but for the geometric changes that some arms have on top",
        "chosen_on_test": "nothing",
        "pretrained": "yes: the weights come from other images, perhaps from test images" if pretrained else "no",
    }


def judged(
    done: Mapping[Arm, Sequence[Predicted]], prepared: Prepared, control: Control, primary: str, leading: Sequence[str],
    lack: Lack | None = None,
) -> Verdict:  # fmt: skip
    """The verdict from the predictions of test images."""
    said = {
        arm.name: np.stack([run.test.argmax(axis=1) for run in runs if run.test is not None])
        for arm, runs in done.items()
    }
    return verdict(said, prepared.test, prepared.groups, prepared.claimable, control, primary, leading, lack)


def decide(
    done: Mapping[Arm, Sequence[Predicted]], prepared: Prepared, *, adjust: bool, parts: Sequence[str] = ("val", "test")
) -> tuple[dict[Arm, list[Predicted]], dict[Arm, tuple[Decision, ...]]]:
    """Every arm's probabilities as they decide, and how: each classifier's adjustment is chosen on validation images,
    in every arm alike; without `adjust`, none.

    Args:
        parts: "val", "test": whose probabilities are read and given; the others are None.
    """
    log_prior = log_prior_of(prepared.train)
    decided: dict[Arm, list[Predicted]] = {}
    decisions: dict[Arm, tuple[Decision, ...]] = {}
    for arm, found in done.items():
        own = [
            choose_decision(one.val, prepared.val, log_prior, prepared.claimable) if adjust else Decision()
            for one in found
        ]
        decisions[arm] = tuple(own)
        decided[arm] = [_as_decided(one, how, log_prior, parts) for how, one in zip(own, found, strict=True)]
    return decided, decisions


def _as_decided(found: Predicted, how: Decision, log_prior: np.ndarray, parts: Sequence[str]) -> Predicted:
    made: dict[str, np.ndarray | None] = {"test": None, "val": None}
    for part in parts:
        p = getattr(found, part)
        made[part] = None if p is None else how.probabilities(p, log_prior)
    return Predicted(**made, failed=found.failed)


# -- what is refused beforehand


def _networks(arms: Sequence[Arm]) -> list[Arm]:
    """All that is trained for these arms, teachers too."""
    found = [one for arm in arms for one, _ in arm.networks(0)]
    teachers = [one.teacher for one in found if one.teacher is not None]
    return [*found, *(_networks(teachers) if teachers else ())]


def check_networks(prepared: Prepared, plan: FitPlan, arms: Sequence[Arm]) -> None:
    check_trainings(prepared.train, plan, [(one.recipe, one.use) for one in _networks(arms)])


def check_classes(arms: Sequence[Arm], counts: Sequence[int] | np.ndarray, prepared: Prepared) -> None:
    """Refuses (C,) `counts` of synthetic images that an arm cannot use."""
    for one in _networks(arms):
        if one.use is not None and one.sees_synthetic:
            one.use.check_classes(counts, prepared.train.class_names)


def left_out(arm: Arm, made: ImageSet | None) -> str:
    """Why `arm` cannot be trained with these synthetic images, of which curation may have left none; "" if it can."""
    if made is None:
        return ""
    counts = np.bincount(made.labels, minlength=len(made.class_names))
    uses = [one.use for one in _networks([arm]) if one.use is not None and one.sees_synthetic]
    none = next((found for use in uses if (found := use.lacking(counts, made.class_names))), [])
    which = f" of {named(none)}, which the prior per domain needs" if none else "" if len(made) else " at all"
    return which and f"curation left no image{which}, so that nothing was trained"


# -- the default grid, and its verdict


@dataclass(frozen=True)
class Classified:
    """What :func:`classify` found; its JSON is ``classifier/results.json``.

    Attributes:
        learned: what was learned at all; None without synthetic images.
        classifiers: by the names of their arms, where networks were kept; the first is the one to use.
    """

    protocol: Mapping[str, Any]
    arms: tuple[ArmResult, ...]
    control: Control
    verdict: Verdict
    learned: Learned | None = None
    classifiers: Mapping[str, ImageClassifier] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        arms = [arm.to_json(self.protocol["seeds"]) for arm in self.arms]
        facts: dict[str, Any] = {"control": asdict(self.control), "verdict": asdict(self.verdict)}
        facts["learned"] = None if self.learned is None else asdict(self.learned)
        kept = list(self.classifiers)
        return {"protocol": dict(self.protocol), "arms": arms, "kept": kept, **facts}


def classify(
    prepared: Prepared,
    synthetic: ImageSet | None,
    *,
    plan: FitPlan | None = None,
    arms: Sequence[Arm] | None = None,
    primary: str = PRIMARY,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    folder: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    adjust: bool = True,
    keep_weights: bool = False,
    **changed: Any,
) -> Classified:
    """Trains every arm with every seed, at equal optimizer steps, batch size and augmentation, and compares them.

    Args:
        prepared: the splits; the test split is looked at once per trained network and chooses nothing.
        synthetic: generated images; None leaves out the arms that need them.
        plan: network, steps, rates, augmentation: the same in every arm. None: a small network for 500 steps, with
            shifts by 1/8 of the shorter side and no flips.
        arms: recipes and how synthetic images are used in them, to which those that no comparison may lack are added;
            None: those of `make_arms`.
        primary: name of the arm whose verdict leads.
        seeds, device, folder, progress, workers: see :class:`imbdiff.recognition.jobs.Conditions`.
        adjust: choose the strength of logit adjustment of every classifier on validation images, see
            :mod:`imbdiff.recognition.decision`.
        keep_weights: of the first seed, for :attr:`Classified.classifiers`: see :func:`kept_arms`.
        changed: attributes of the plan in place of its own, such as ``steps=300``.

    Raises:
        ConfigError: no seeds or the same one twice, arms of one name, no arm of the primary's name, an unknown recipe
            or network.
        DataError: no test images, a class without real images, or synthetic images of other classes or another shape.
    """
    check_sets(prepared, synthetic)
    arms = make_arms() if arms is None else with_controls(arms)
    check_arms(arms, seeds)
    plan = replace(plan or FitPlan(shift=max(1, min(prepared.train.shape[:2]) // 8)), **changed)
    arms = [arm for arm in arms if synthetic is not None or not arm.needs_synthetic]
    leading = [arm.name for arm in arms if arm.needs_synthetic]
    if leading and primary not in leading:
        raise ConfigError(f"no arm with synthetic images is called {primary!r}", f"choose one of {leading} to lead")
    check_networks(prepared, plan, arms)
    reasons = {arm: reason for arm in arms if arm.needs_synthetic and (reason := left_out(arm, synthetic))}
    leading = [name for name in leading if name not in {arm.name for arm in reasons}]
    # without synthetic images the arm that is used is not known before
    keep = [arm.name for arm in (kept_arms(arms, primary) if primary in leading else arms)] if keep_weights else []
    plain = None
    if synthetic is not None:  # one network of real images alone looks at them
        plain = plain_of(next(arm for arm in arms if arm.name == primary), arms)
        keep = list(dict.fromkeys((*keep, plain.name)))
    conditions = Conditions(plan, prepared, tuple(seeds), device, folder, workers, progress, tuple(keep), adjust)
    made: dict[str, Classifier] = {}
    sets = {arm: synthetic if arm.needs_synthetic else None for arm in arms if arm not in reasons}
    trained = train_arms(sets, conditions, made=made)
    done, decisions = decide(trained, prepared, adjust=adjust)
    n = 0 if synthetic is None else len(synthetic)
    results = tuple(
        ArmResult(arm, reason=reasons[arm])
        if arm in reasons
        else ArmResult(
            arm, n if arm.needs_synthetic else 0, test=Summary.of(done[arm], "test", prepared),
            val=None if prepared.val is None else Summary.of(done[arm], "val", prepared), decisions=decisions[arm],
        )
        for arm in arms
    )  # fmt: skip
    alone = {r.arm.name: r.score for r in results if not r.arm.needs_synthetic}
    control = choose_control(alone, prepared.val, prepared.claimable)
    protocol = {**protocol_of(conditions), "n_synthetic": n}
    classifiers: dict[str, ImageClassifier] = {}
    if keep_weights:
        by_arm = {result.arm: result for result in results}
        for arm in kept_arms(list(sets), primary if primary in leading else control.arm):
            classifiers[arm.name] = _classifier(by_arm[arm], synthetic, conditions, made)
    found = None
    if synthetic is not None and plain is not None:
        found = looked(plain, synthetic, conditions, made)
    lack = found.lack if found else None
    lack = next((Lack(why, EMPTIED) for arm, why in reasons.items() if arm.name == primary), lack)
    verdict_ = judged(done, prepared, control, primary, leading, lack)
    return Classified(protocol, results, control, verdict_, found, classifiers)


def plain_of(arm: Arm, arms: Sequence[Arm]) -> Arm:
    """The arm of the same recipe of which a single network sees real images alone."""
    return next(one for one in arms if replace(one, label="") == Arm(arm.recipe))


def looked(plain: Arm, synthetic: ImageSet, conditions: Conditions, made: Mapping[str, Classifier]) -> Learned:
    """Whether anything was learned, by the network of `plain` and the first seed, which was kept."""
    network = jobs_of(plain, int(conditions.seeds[0]), None, conditions)[0].network(made)
    return look(network, plain.name, conditions.plan, synthetic, conditions.prepared)


def kept_arms(arms: Sequence[Arm], leading: str | None) -> list[Arm]:
    """The arms that are worth having as classifiers: `leading` first, then ensembles and what was distilled from them.

    Args:
        leading: a name; None where nothing chose among arms without synthetic images: the first ensemble then, or
            without one the recipe of the published ensembles.
    """
    several = [arm for arm in arms if arm.teacher is not None or arm.members]
    several = [arm for arm in several if not any(one.placebo for one in arm.members)]
    if leading is None:
        first = [*several, *(arm for arm in arms if arm.recipe == LEADING)][:1]
    else:
        first = [arm for arm in arms if arm.name == leading]
    return list(dict.fromkeys((*first, *several)))


def _classifier(
    result: ArmResult, synthetic: ImageSet | None, conditions: Conditions, made: Mapping[str, Classifier]
) -> ImageClassifier:
    """The classifier of an arm and the first seed."""
    arm, seed, prepared = result.arm, int(conditions.seeds[0]), conditions.prepared
    members = [
        Member(job.network(made), conditions.plan.network, job.weights)
        for job in jobs_of(arm, seed, synthetic, conditions)
    ]
    train = prepared.train
    about: dict[str, Any] = {"arm": arm.name, "seed": seed}
    if result.test is not None:
        about |= {"balanced_accuracy": result.test.runs[0].balanced_accuracy, "test_images": len(prepared.test)}
    return ImageClassifier(
        members, np.array(train.class_names), train.shape, result.decisions[0], log_prior_of(train),
        prepared.manifest.get("resize", "crop"), frozenset(train.hashes), about,
    )  # fmt: skip
