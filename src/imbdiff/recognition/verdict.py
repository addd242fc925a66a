"""Did the synthetic images help? The rule is fixed here, before any result is seen, and printed with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.data.words import counted
from imbdiff.runtime.streams import rng

REPLICATES = 2000
LEVEL = 0.95
LEAST_TEST_IMAGES = 20
"""Test images of a scope for an outcome: with fewer, "no difference" would only say that they are few."""
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
        reason}, the scope "all" first), "other_arms" (the same for each further synthetic arm), "rule". In a scope,
        "against" is the control that decided the outcome, and the numbers are those against it. "reason" is None,
        or why the outcome is "not measured", and then the numbers are None.
    """
    controls = list(control["arms"])
    level = 1 - (1 - LEVEL) / len(controls)
    rule = _rule(primary, controls, control["chosen_by"], level)
    if primary not in predictions:
        return {
            "sentence": "There are no synthetic images, so there is nothing to judge.",
            "primary": primary,
            "against": controls,
            "per_group": {},
            "other_arms": {},
            "rule": rule,
        }
    results = {
        name: _against_all(name, controls, predictions, test, groups, claimable, level) for name in synthetic_arms
    }
    seeds = len(predictions[primary])
    return {
        "sentence": _sentence(primary, controls, results[primary], seeds),
        "primary": primary,
        "against": controls,
        "per_group": results[primary],
        "other_arms": {name: found for name, found in results.items() if name != primary},
        "rule": rule,
    }


def paired_interval(
    difference: np.ndarray, labels: np.ndarray, level: float = LEVEL, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `difference` (S, N) and its interval over seeds and test images.

    Bootstrap: images are drawn anew within each class, seeds anew as a whole; the deviations of seeds are widened by
    sqrt(S / (S - 1)), because drawing S of S values understates their variance by that much. Percentiles at `level`.

    Args:
        difference: correct in one arm minus correct in the other, -1, 0 or 1, per seed and test image.
        labels: (N,) class of each image.
    """
    s, n = difference.shape
    d = difference.astype(np.float64)
    centre = float(d.mean())
    generator = rng(seed, "verdict bootstrap")
    rows = [np.flatnonzero(labels == k) for k in np.unique(labels)]
    replicates = np.empty(REPLICATES)
    widen = np.sqrt(s / (s - 1)) if s > 1 else 1.0
    # several at a time: (chunk, N) weights
    for start in range(0, REPLICATES, 100):
        weights = np.zeros((100, n))
        for mine in rows:
            weights[:, mine] = generator.multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=100)
        per_seed = weights @ d.T / n
        mean = per_seed.mean(axis=1, keepdims=True)
        drawn = generator.integers(0, s, size=(100, s))
        replicates[start : start + 100] = mean[:, 0] + widen * np.take_along_axis(per_seed - mean, drawn, axis=1).mean(
            axis=1
        )
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return centre, float(low), float(high)


def _against_all(
    name: str,
    controls: Sequence[str],
    predictions: Mapping[str, np.ndarray],
    test: ImageSet,
    groups: Groups,
    claimable: Sequence[bool],
    level: float,
) -> dict[str, Any]:
    usable = np.asarray(claimable, dtype=bool)[test.labels]
    of_class = np.asarray(groups.of_class)[test.labels]
    result: dict[str, Any] = {}
    row: dict[str, Any]
    for scope in ["all", *groups.present]:
        mine = usable if scope == "all" else usable & (of_class == groups.names.index(scope))
        n = int(mine.sum())
        nothing = {"outcome": "not measured", "difference": None, "low": None, "high": None, "against": None, "n": n}
        if n < LEAST_TEST_IMAGES:
            reason = counted(n, "test image") if n else "no test images"
            if not n and (scope == "all" or (of_class == groups.names.index(scope)).any()):
                reason = "no class that a claim can be made of"
            result[scope] = {**nothing, "reason": reason}
            continue
        labels = test.labels[mine]
        right = predictions[name][:, mine] == labels
        found = []
        for control in controls:
            other = predictions[control][:, mine] == labels
            found.append((paired_interval(right.astype(int) - other.astype(int), labels, level), control))
        outcome, (difference, low, high), against = _decide(found)
        if low == high:
            reason = f"{counted(n, 'test image')}, an interval without width"
            result[scope] = {**nothing, "reason": reason}
            continue
        row = {"outcome": outcome, "difference": difference, "low": low, "high": high}
        result[scope] = {**row, "against": against, "n": n, "reason": None}
    return result


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


def _rule(primary: str, controls: Sequence[str], chosen_by: str, level: float) -> str:
    return (
        f'Fixed beforehand: "{primary}" is compared with {_names(controls)} ({chosen_by}). Difference of accuracy '
        f"on the same test images and seeds, {100 * level:.3g} % bootstrap interval over seeds and, within classes, "
        "test images. "
        "helped: the interval is above 0"
        + (" against every control" if len(controls) > 1 else "")
        + "; hurt: it is below 0"
        + (" against one of them" if len(controls) > 1 else "")
        + f"; otherwise no difference was shown. not measured: fewer than {LEAST_TEST_IMAGES} test images, or an "
        "interval without width. "
        + ("The interval given is that against the control that decides. " if len(controls) > 1 else "")
        + "Groups are not corrected for their number."
    )


def _sentence(primary: str, controls: Sequence[str], result: Mapping[str, Any], seeds: int) -> str:
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
    text += "; by group: " + "; ".join(parts) if parts else ""
    noise = "" if seeds > 1 else " One seed only: the spread between trainings is not in the intervals."
    end = f"; not measured for {', '.join(unmeasured)}" if unmeasured else ""
    return f'{text}: "{primary}" against {against}, {counted(seeds, "seed")}{end}.{noise}'


def _interval(row: Mapping[str, Any], named: bool) -> str:
    against = f' against "{row["against"]}"' if named else ""
    return f"{100 * row['difference']:+.1f} points, {100 * row['low']:+.1f} to {100 * row['high']:+.1f}{against}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
