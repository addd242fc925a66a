"""Did the synthetic images help? The rule is fixed here, before any result is seen, and printed with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted
from imbdiff.data.stats import Groups
from imbdiff.recognition.decision import unvalidated
from imbdiff.recognition.intervals import LEVEL, REPLICATES, holm, paired_replicates, percentile_p, percentiles
from imbdiff.recognition.learned import Lack, at_chance

TIE = 1e-12
"""Mean balanced accuracies that are nearer than this are equal."""
LEAST_TEST_IMAGES = 20
"""Test images of a scope for an outcome: with fewer, "no difference" would only say that they are few."""
MARGIN = 0.01
"""A loss of accuracy over all test images that would count as one; smaller ones are no loss."""
Outcome = Literal["helped", "no difference", "hurt", "not measured"]


@dataclass(frozen=True)
class Control:
    """What synthetic images are compared with.

    Attributes:
        arm: the chosen arm without them; None: all of `arms`.
        arms: the controls.
        chosen_by: a sentence.
        scores: balanced accuracies on validation images, may be empty.
    """

    arm: str | None
    arms: tuple[str, ...]
    chosen_by: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """An arm against the control(s) in one scope: all test images, or those of a group.

    Attributes:
        outcome: by the rule; of "not measured", `reason` says why, and the other numbers are None.
        difference, low, high: of accuracy, and its interval.
        against: the control that decided, which the numbers are against.
        p, p_adjusted: two-sided p-value, and corrected for the number of comparisons (Holm 1979). The interval has the
            level of its step, so that it excludes 0 where `p_adjusted` is below 0.05, and only there.
        n: test images.
        corrected: False of the one comparison that was declared beforehand.
        accuracy, without: of the arm and of that control, where nothing was measured of the best one; mean over seeds.
    """

    outcome: Outcome
    difference: float | None
    low: float | None
    high: float | None
    against: str | None
    p: float | None
    p_adjusted: float | None
    n: int
    reason: str | None
    corrected: bool
    accuracy: float | None = None
    without: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The verdict of a comparison.

    Attributes:
        sentence, rule: to print.
        primary: the arm whose comparison leads.
        against: names of the controls.
        per_group: of `primary` by scope, "all" first; empty where there are no synthetic images.
        other_arms: the same of each further arm with synthetic images.
        no_loss: whether the interval of `primary` over all rules out a loss of a margin, and which; None: not measured.
        remedy: of what was not measured, what to do; "" where it was.
    """

    sentence: str
    primary: str
    against: tuple[str, ...]
    per_group: Mapping[str, Comparison]
    other_arms: Mapping[str, Mapping[str, Comparison]]
    no_loss: Mapping[str, Any] | None
    rule: str
    remedy: str = ""


def choose_control(scores: Mapping[str, float | None], val: ImageSet | None, claimable: Sequence[bool]) -> Control:
    """The arm without synthetic images to compare with: the best balanced accuracy on validation images.

    Where validation images of some claimable class are missing, a choice would be made without the very classes that
    matter: then every arm without synthetic images is a control, and helping means beating all of them. The same where
    no class is claimable: there is nothing to choose by.

    Args:
        scores: balanced accuracy on validation images of each arm without synthetic images; of equal ones, the first.
    """
    names, why = tuple(scores), ""
    missing = unvalidated(val, claimable)
    if val is None:
        why = "there are no validation images"
    elif missing:
        why = f"{counted(len(missing), 'class has', 'classes have')} no validation image"
    elif not any(claimable):
        why = "no claim can be made of any class"
    if val is None or why:
        return Control(None, names, f"{why}: every arm without synthetic images", {})
    found = {name: score for name, score in scores.items() if score is not None}
    best = next(name for name in found if found[name] >= max(found.values()) - TIE)
    chosen_by = f"best mean balanced accuracy on {counted(len(val), 'validation image')}; ties: the simpler arm"
    return Control(best, (best,), chosen_by, found)


def verdict(
    predictions: Mapping[str, np.ndarray],
    test: ImageSet,
    groups: Groups,
    claimable: Sequence[bool],
    control: Control,
    primary: str,
    synthetic_arms: Sequence[str],
    lack: Lack | None = None,
) -> Verdict:
    """Compares `primary` with the control(s), and the other synthetic arms likewise, for information.

    `primary` over all test images is the one comparison declared beforehand; all others are corrected for their number.

    Args:
        predictions: per arm (S, N) predicted classes of the test images, seeds in the same order.
        control: of :func:`choose_control`.
        primary: the arm whose comparison is the verdict.
        synthetic_arms: the arms with synthetic images that were trained, `primary` among them.
        lack: why there is no verdict, as :func:`imbdiff.recognition.learned.look` found; where no arm is better than
            chance there is none either.
    """
    controls = control.arms
    if primary not in predictions:
        rule = _rule(primary, control, 0, test.groups is not None)
        if lack is None:
            sentence = "There are no synthetic images, so there is nothing to judge."
            return Verdict(sentence, primary, controls, {}, {}, None, rule)
        nothing = {"all": Comparison("not measured", None, None, None, None, None, None, len(test), lack.reason, False)}
        sentence = _sentence(primary, controls, nothing, 0, 0, lack.remedy)
        return Verdict(sentence, primary, controls, nothing, {}, None, rule, lack.remedy)
    compared = _compared(synthetic_arms, controls, predictions, test, groups, claimable)
    if not compared[primary, "all"].reason:
        usable = np.asarray(claimable, dtype=bool)[test.labels]
        lack = at_chance({name: found[:, usable] for name, found in predictions.items()}, test.labels[usable]) or lack
        if lack is not None:
            compared = {key: replace(one, found=(), reason=one.reason or lack.reason) for key, one in compared.items()}
    rows, size = _judged(compared, (primary, "all"))
    results = {name: {scope: row for (arm, scope), row in rows.items() if arm == name} for name in synthetic_arms}
    whole = results[primary]["all"]
    remedy = ""
    if whole.outcome == "not measured":
        few = f"give at least {LEAST_TEST_IMAGES} test images, and several of each class"
        remedy = few if lack is None else lack.remedy
    return Verdict(
        sentence=_sentence(primary, controls, results[primary], len(predictions[primary]), size, remedy),
        primary=primary,
        against=controls,
        per_group=results[primary],
        other_arms={name: found for name, found in results.items() if name != primary},
        no_loss=None if whole.low is None else {"margin": MARGIN, "shown": whole.low > -MARGIN, "low": whole.low},
        rule=_rule(primary, control, size, test.groups is not None),
        remedy=remedy,
    )


@dataclass(frozen=True, eq=False)
class _Compared:
    """An arm in one scope: per control the mean difference, its bootstrap replicates and its name; none: `reason`.

    `accuracy` has those of the arm, by "", and of the controls; none where there are no images.
    """

    n: int
    accuracy: Mapping[str, float]
    found: tuple[tuple[float, np.ndarray, str], ...] = ()
    reason: str | None = None

    def decide(self, error: float) -> tuple[Outcome, tuple[float, float, float], str]:
        """Outcome, numbers and the control that decides; the controls share the chance `error` of a wrong outcome."""
        level = 1 - error / len(self.found)
        return _decide([((mean, *percentiles(replicates, level)), name) for mean, replicates, name in self.found])

    @property
    def wide(self) -> bool:
        """Whether the interval that decides has a width."""
        _, (_, low, high), _ = self.decide(1 - LEVEL)
        return low != high

    @property
    def p(self) -> float:
        """Below an error exactly where `decide` at that error has an outcome: hurt by one, helped against all."""
        if not self.wide:
            return 1.0
        above, below = zip(*(percentile_p(replicates) for _, replicates, _ in self.found), strict=True)
        return min(1.0, len(self.found) * min(max(above), min(below)))


def _compared(
    arms: Sequence[str],
    controls: Sequence[str],
    predictions: Mapping[str, np.ndarray],
    test: ImageSet,
    groups: Groups,
    claimable: Sequence[bool],
) -> dict[tuple[str, str], _Compared]:
    usable = np.asarray(claimable, dtype=bool)[test.labels]
    of_class = np.asarray(groups.of_class)[test.labels]
    pairs = [(name, control) for name in arms for control in controls]
    members = {"all": np.ones(len(test), dtype=bool)}
    members |= {group: of_class == groups.names.index(group) for group in groups.present}
    # the smallest error of a Holm step, shared by the controls, must lie within the replicates
    replicates = max(REPLICATES, 100 * len(pairs) * len(members))
    result: dict[tuple[str, str], _Compared] = {}
    for scope, own in members.items():
        mine = usable & own
        n = int(mine.sum())
        labels = test.labels[mine]
        right = {name: (predictions[name][:, mine] == labels).astype(np.int8) for name in (*arms, *controls)}
        shares = {name: {"": float(right[name].mean()), **{c: float(right[c].mean()) for c in controls}} if n else {}
                  for name in arms}  # fmt: skip
        groups_of = None if test.groups is None else test.groups[mine]
        units = n if groups_of is None else len(set(groups_of))
        if units < LEAST_TEST_IMAGES:
            reason = counted(n, "test image") if n else "no test images"
            if n and groups_of is not None:
                reason += f" of {counted(units, 'group')} that belong together"
            if not n and (scope == "all" or own.any()):
                reason = "no class that a claim can be made of"
            result |= {(name, scope): _Compared(n, shares[name], reason=reason) for name in arms}
            continue
        difference = np.stack([right[name] - right[control] for name, control in pairs])
        resampled = paired_replicates(difference, labels, replicates=replicates, groups=groups_of)
        means = difference.mean(axis=(1, 2))
        for name in arms:
            found = [(float(means[i]), resampled[i], pair[1]) for i, pair in enumerate(pairs) if pair[0] == name]
            result[name, scope] = _Compared(n, shares[name], tuple(found))
    return result


def _judged(
    compared: Mapping[tuple[str, str], _Compared], declared: tuple[str, str]
) -> tuple[dict[tuple[str, str], Comparison], int]:
    """Comparisons by (arm, scope), and how many the correction is for: all that were made but `declared`."""
    p = {key: one.p for key, one in compared.items() if one.found}
    family = [key for key in p if key != declared]
    corrected = dict(zip(family, zip(*holm([p[key] for key in family]), strict=True), strict=True))
    rows = {}
    for key, one in compared.items():
        if one.found and one.wide:
            adjusted, error = corrected.get(key, (p[key], 1 - LEVEL))
            outcome, numbers, against = one.decide(error)
            rows[key] = Comparison(
                outcome, *numbers, against, p[key], adjusted, one.n, None, key != declared, one.accuracy[""],
                one.accuracy[against],
            )  # fmt: skip
            continue
        reason = f"{counted(one.n, 'test image')}, an interval without width" if one.found else one.reason
        alone = max((value for name, value in one.accuracy.items() if name), default=None)
        rows[key] = Comparison(
            "not measured", None, None, None, None, None, None, one.n, reason, key != declared, one.accuracy.get(""),
            alone,
        )  # fmt: skip
    return rows, len(family)


def _decide(
    found: Sequence[tuple[tuple[float, float, float], str]],
) -> tuple[Outcome, tuple[float, float, float], str]:
    """The outcome against several controls, with the interval and the name of the control that it rests on.

    Below 0 against one of them is hurt: the one whose interval lies furthest below. Otherwise the one with the smallest
    margin, the lowest lower end, decides: above 0 it is above 0 against all, and where it is not, it contains 0.

    Args:
        found: per control (mean difference, low, high) and its name; at least one.
    """
    interval, against = min(found, key=lambda row: row[0][2])
    if interval[2] < 0:
        return "hurt", interval, against
    interval, against = min(found, key=lambda row: row[0][1])
    return ("helped" if interval[1] > 0 else "no difference"), interval, against


# -- in words


def _rule(primary: str, control: Control, size: int, grouped: bool = False) -> str:
    """The rule, to print; `size`: comparisons next to the one declared beforehand."""
    what = "whole groups of test images that belong together" if grouped else "test images"
    several = len(control.arms) > 1
    level = 100 * (1 - (1 - LEVEL) / len(control.arms))
    others = counted(size, "other comparison is", "other comparisons (groups, other arms) are")
    sentences = [
        f'Fixed beforehand: "{primary}" is compared with {_names(control.arms)} ({control.chosen_by}), over all test '
        f"images. Difference of accuracy on the same test images and seeds, {level:.3g} % bootstrap interval over "
        f"seeds and, within classes, {what}.",
        f"helped: the interval is above 0{' against every control' * several}; hurt: it is below 0"
        f"{' against one of them' * several}; otherwise no difference was shown. not measured: fewer than "
        f"{LEAST_TEST_IMAGES} {'such groups' if grouped else 'test images'}, an interval without width, classifiers "
        "that are no better than chance or do not fit their own training images yet, or synthetic images that are "
        "noise or do not show their classes.",
        "The interval given is that against the control that decides." * several,
        f"The {others} corrected for their number by Holm's method, their intervals widened with it." * (size > 0),
        f"Nothing is lost overall where the interval lies above -{100 * MARGIN:g} point.",
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def _sentence(
    primary: str, controls: Sequence[str], result: Mapping[str, Comparison], seeds: int, size: int, remedy: str
) -> str:
    whole = result["all"]
    if whole.outcome == "not measured":
        if not whole.n:
            return "No claim can be made of any class: none has test images and enough images altogether."
        return f"Whether synthetic images helped was not measured: {whole.reason}. To measure it, {remedy}."
    several = len(controls) > 1
    shown = whole.outcome != "no difference"
    verb = whole.outcome if shown else "made no difference that these test images could show"
    text = f"Synthetic images {verb} overall ({_interval(whole, several)})"
    parts = []
    for outcome in ("helped", "hurt", "no difference"):
        own = {scope: row for scope, row in result.items() if scope != "all" and row.outcome == outcome}
        if own:
            parts.append(f"{outcome} for " + ", ".join(f"{g} ({_interval(row, several)})" for g, row in own.items()))
    unmeasured = [f"{scope} ({row.reason})" for scope, row in result.items() if row.outcome == "not measured"]
    text += f"; by group, corrected for {counted(size, 'comparison')}: " + "; ".join(parts) if parts else ""
    end = f"; not measured for {', '.join(unmeasured)}" if unmeasured else ""
    noise = "" if seeds > 1 else " One seed only: the spread between trainings is not in the intervals."
    return f'{text}: "{primary}" against {_names(controls)}, {counted(seeds, "seed")}{end}.{noise}'


def _interval(row: Comparison, named: bool) -> str:
    against = f' against "{row.against}"' if named else ""
    difference, low, high = (100 * (value or 0.0) for value in (row.difference, row.low, row.high))
    return f"{difference:+.1f} points, {low:+.1f} to {high:+.1f}{against}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
