"""Did the synthetic images help? The rule is fixed here, before any result is seen, and printed with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted
from imbdiff.data.stats import Groups
from imbdiff.recognition.intervals import (
    LEVEL,
    REPLICATES,
    holm,
    holm_steps,
    paired_interval,
    paired_replicates,
    percentile_p,
    percentiles,
)

__all__ = ["OUTCOMES", "choose_control", "no_loss", "paired_interval", "verdict"]

LEAST_TEST_IMAGES = 20
"""Test images of a scope for an outcome: with fewer, "no difference" would only say that they are few."""
MARGIN = 0.01
"""A loss of accuracy over all test images that would count as one; smaller ones are nothing that is lost."""
OUTCOMES = ("helped", "no difference", "hurt", "not measured")


def choose_control(
    arms: Sequence[Mapping[str, Any]], val: ImageSet | None, claimable: Sequence[bool]
) -> dict[str, Any]:
    """The arm without synthetic images to compare with: the best balanced accuracy on validation images.

    Where validation images of some claimable class are missing, a choice would be made without the very classes that
    matter: then every arm without synthetic images is a control, and helping means beating all of them. The same where
    no class is claimable: there is nothing to choose by.

    Returns:
        "arm" (None if all), "arms" (the controls), "chosen_by" (a sentence), "scores" (validation, may be empty).
    """
    names = [arm["name"] for arm in arms if not arm["needs_synthetic"]]
    missing = [k for k, c in enumerate(claimable) if c and (val is None or not (val.labels == k).any())]
    if val is None or missing or not any(claimable):
        if val is None:
            why = "there are no validation images"
        elif missing:
            why = f"{counted(len(missing), 'class has', 'classes have')} no validation image"
        else:
            why = "no claim can be made of any class"
        return {"arm": None, "arms": names, "chosen_by": f"{why}: every arm without synthetic images", "scores": {}}
    found = {arm["name"]: arm["val"]["balanced_accuracy"] for arm in arms if not arm["needs_synthetic"]}
    best = max(names, key=lambda name: found[name])
    chosen_by = f"best mean balanced accuracy on {counted(len(val), 'validation image')}; ties: the simpler arm"
    return {"arm": best, "arms": [best], "chosen_by": chosen_by, "scores": found}


def verdict(
    predictions: Mapping[str, np.ndarray],
    test: ImageSet,
    groups: Groups,
    claimable: Sequence[bool],
    control: Mapping[str, Any],
    primary: str,
    synthetic_arms: Sequence[str],
) -> dict[str, Any]:
    """Compares `primary` with the control(s), and the other synthetic arms likewise, for information.

    Args:
        predictions: per arm (S, N) predicted classes of the test images, seeds in the same order.
        control: of :func:`choose_control`.
        primary: the arm whose comparison is the verdict.
        synthetic_arms: the arms with synthetic images that were trained, `primary` among them.

    Returns:
        "sentence", "primary", "against" (list), "per_group" ({scope: outcome, difference, low, high, against, n,
        reason, corrected, p, p_adjusted}, the scope "all" first), "other_arms" (the same for each further synthetic
        arm), "no_loss" (of :func:`no_loss`, for `primary` and all), "rule". In a scope, "against" is the control that
        decided the outcome, and the numbers are those against it. "reason" is None, or why the outcome is "not
        measured", and then the numbers are None. `primary` in the scope "all" is the one comparison declared
        beforehand; all others are "corrected" for their number (Holm 1979): "p_adjusted", and their intervals have the
        level of their step, so that an interval excludes 0 where "p_adjusted" is below 0.05, and only there.
    """
    controls = list(control["arms"])
    if primary not in predictions:
        return {
            "sentence": "There are no synthetic images, so there is nothing to judge.",
            "primary": primary,
            "against": controls,
            "per_group": {},
            "other_arms": {},
            "no_loss": None,
            "rule": _rule(primary, controls, control["chosen_by"], 0),
        }
    compared = _compared(synthetic_arms, controls, predictions, test, groups, claimable)
    rows, size = _judged(compared, (primary, "all"))
    results = {name: {scope: row for (arm, scope), row in rows.items() if arm == name} for name in synthetic_arms}
    return {
        "sentence": _sentence(primary, controls, results[primary], len(predictions[primary]), size),
        "primary": primary,
        "against": controls,
        "per_group": results[primary],
        "other_arms": {name: found for name, found in results.items() if name != primary},
        "no_loss": no_loss(results[primary]["all"]),
        "rule": _rule(primary, controls, control["chosen_by"], size),
    }


def no_loss(row: Mapping[str, Any], margin: float = MARGIN) -> dict[str, Any] | None:
    """Whether the interval of a comparison rules out a loss of `margin` and more; None where it was not measured.

    With several controls the interval is that against the control which decides: the one with the lowest lower end,
    unless the outcome is "hurt".
    """
    if row["low"] is None:
        return None
    return {"margin": margin, "shown": row["low"] > -margin, "low": row["low"]}


@dataclass(frozen=True, eq=False)
class _Compared:
    """An arm in one scope: per control the mean difference, its bootstrap replicates and its name; none: `reason`."""

    n: int
    found: tuple[tuple[float, np.ndarray, str], ...] = ()
    reason: str | None = None

    @property
    def p(self) -> float:
        """Below an error exactly where :meth:`row` at that error has an outcome: hurt by one, helped against all."""
        if not self.wide:
            return 1.0
        above, below = zip(*(percentile_p(replicates) for _, replicates, _ in self.found), strict=True)
        return min(1.0, len(self.found) * min(max(above), min(below)))

    @property
    def wide(self) -> bool:
        """Whether the interval that decides has a width."""
        row = self.row(1 - LEVEL)
        return bool(row["low"] != row["high"])

    def row(self, error: float) -> dict[str, Any]:
        """Outcome and numbers; the controls share the chance `error` of a wrong outcome."""
        level = 1 - error / len(self.found)
        at = [((mean, *percentiles(replicates, level)), name) for mean, replicates, name in self.found]
        outcome, (difference, low, high), against = _decide(at)
        return {"outcome": outcome, "difference": difference, "low": low, "high": high, "against": against}


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
    scopes = ["all", *groups.present]
    pairs = [(name, control) for name in arms for control in controls]
    # the smallest error of a Holm step, shared by the controls, must lie within the replicates
    replicates = max(REPLICATES, 100 * len(pairs) * len(scopes))
    result: dict[tuple[str, str], _Compared] = {}
    for scope in scopes:
        mine = usable if scope == "all" else usable & (of_class == groups.names.index(scope))
        n = int(mine.sum())
        if n < LEAST_TEST_IMAGES:
            reason = counted(n, "test image") if n else "no test images"
            if not n and (scope == "all" or (of_class == groups.names.index(scope)).any()):
                reason = "no class that a claim can be made of"
            result |= {(name, scope): _Compared(n, reason=reason) for name in arms}
            continue
        labels = test.labels[mine]
        right = {name: (predictions[name][:, mine] == labels).astype(np.int8) for name in (*arms, *controls)}
        difference = np.stack([right[name] - right[control] for name, control in pairs])
        drawn = paired_replicates(difference, labels, replicates=replicates)
        means = difference.mean(axis=(1, 2))
        for name in arms:
            found = [(float(means[i]), drawn[i], pair[1]) for i, pair in enumerate(pairs) if pair[0] == name]
            result[name, scope] = _Compared(n, tuple(found))
    return result


def _judged(compared: Mapping[tuple[str, str], _Compared], declared: tuple[str, str]) -> tuple[dict[Any, Any], int]:
    """Rows by (arm, scope), and how many comparisons the correction is for: all that were made but `declared`."""
    p = {key: one.p for key, one in compared.items() if one.found}
    family = [key for key in p if key != declared]
    adjusted = dict(zip(family, holm([p[key] for key in family]), strict=True))
    errors = dict(zip(family, holm_steps([p[key] for key in family], 1 - LEVEL), strict=True))
    rows = {}
    for key, one in compared.items():
        numbers: dict[str, Any] = {"outcome": "not measured"}
        numbers |= dict.fromkeys(("difference", "low", "high", "against", "p", "p_adjusted"))
        reason = one.reason
        if one.found and one.wide:
            numbers = one.row(errors.get(key, 1 - LEVEL)) | {"p": p[key], "p_adjusted": adjusted.get(key, p[key])}
        elif one.found:
            reason = f"{counted(one.n, 'test image')}, an interval without width"
        rows[key] = {**numbers, "n": one.n, "reason": reason, "corrected": key != declared}
    return rows, len(family)


def _decide(
    found: Sequence[tuple[tuple[float, float, float], str]],
) -> tuple[str, tuple[float, float, float], str]:
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


def _rule(primary: str, controls: Sequence[str], chosen_by: str, size: int) -> str:
    """`size`: comparisons beside the one declared beforehand; 0 leaves them out."""
    several = len(controls) > 1
    level = 1 - (1 - LEVEL) / len(controls)
    others = counted(size, "other comparison is", "other comparisons (groups, other arms) are")
    return (
        f'Fixed beforehand: "{primary}" is compared with {_names(controls)} ({chosen_by}), over all test images. '
        f"Difference of accuracy on the same test images and seeds, {100 * level:.3g} % bootstrap interval over seeds "
        "and, within classes, test images. "
        "helped: the interval is above 0"
        + (" against every control" if several else "")
        + "; hurt: it is below 0"
        + (" against one of them" if several else "")
        + f"; otherwise no difference was shown. not measured: fewer than {LEAST_TEST_IMAGES} test images, or an "
        "interval without width. "
        + ("The interval given is that against the control that decides. " if several else "")
        + (
            f"The {others} corrected for their number by Holm's method, their intervals widened with it. "
            if size
            else ""
        )
        + f"Nothing is lost overall where the interval lies above -{100 * MARGIN:g} point."
    )


def _sentence(primary: str, controls: Sequence[str], result: Mapping[str, Any], seeds: int, size: int) -> str:
    against = _names(controls)
    whole = result["all"]
    verbs = {
        "helped": "helped",
        "hurt": "hurt",
        "no difference": "made no difference that these test images could show",
    }
    if whole["outcome"] == "not measured":
        if not whole["n"]:
            return "No claim can be made of any class: none has test images and enough images altogether."
        least = f"; at least {LEAST_TEST_IMAGES} test images are needed" if whole["n"] < LEAST_TEST_IMAGES else ""
        return f"Whether synthetic images helped was not measured: {whole['reason']}{least}."
    several = len(controls) > 1
    text = f"Synthetic images {verbs[whole['outcome']]} overall ({_interval(whole, several)})"
    parts = []
    for outcome in ("helped", "hurt", "no difference"):
        named = [scope for scope in result if scope != "all" and result[scope]["outcome"] == outcome]
        if named:
            listed = ", ".join(f"{scope} ({_interval(result[scope], several)})" for scope in named)
            parts.append(f"{outcome} for {listed}")
    unmeasured = [f"{scope} ({row['reason']})" for scope, row in result.items() if row["outcome"] == "not measured"]
    text += f"; by group, corrected for {counted(size, 'comparison')}: " + "; ".join(parts) if parts else ""
    noise = "" if seeds > 1 else " One seed only: the spread between trainings is not in the intervals."
    end = f"; not measured for {', '.join(unmeasured)}" if unmeasured else ""
    return f'{text}: "{primary}" against {against}, {counted(seeds, "seed")}{end}.{noise}'


def _interval(row: Mapping[str, Any], named: bool) -> str:
    against = f' against "{row["against"]}"' if named else ""
    return f"{100 * row['difference']:+.1f} points, {100 * row['low']:+.1f} to {100 * row['high']:+.1f}{against}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
