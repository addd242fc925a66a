"""The arms of a comparison: what synthetic images are worth, beside what re-balancing alone is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import named
from imbdiff.recognition.jobs import Arm, Job, Progress, default_workers, run_all
from imbdiff.recognition.networks.identity import is_pretrained
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.scores import scores, spread
from imbdiff.recognition.use import Use
from imbdiff.recognition.verdict import choose_control, verdict
from imbdiff.runtime.errors import ConfigError, DataError

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

WITHOUT = ("ce", "resampling", "balanced-softmax")
WITH = ("ce", "balanced-softmax")
LEADING = "balanced-softmax"
"""The recipe whose arm with synthetic images leads; fixed here, before any result: it differs from the usual best
control by the synthetic images alone."""


def recipes_alone(without: Sequence[str], with_: Sequence[str]) -> list[str]:
    """The recipes that are trained without synthetic images: those that no comparison may lack, because filling classes
    re-balances them too; those asked for; and each that is used with synthetic images, because otherwise these would be
    credited with what the recipe does."""
    return list(dict.fromkeys((*WITHOUT, *without, *with_)))


def make_arms(without: Sequence[str] = WITHOUT, with_: Sequence[str] = WITH, use: Use | None = None) -> tuple[Arm, ...]:
    """Arms by the names of their recipes: first those without synthetic images, then those that use them so.

    The former are all of :func:`recipes_alone`.

    Raises:
        ConfigError: an unknown recipe, or one that is named twice.
    """
    for given in (without, with_):
        twice = [name for name in given if list(given).count(name) > 1]
        if twice:
            raise ConfigError(f"the recipe {twice[0]!r} is named twice", "name each recipe once")
    return (*(Arm(name) for name in recipes_alone(without, with_)), *(Arm(name, use or Use()) for name in with_))


ARMS = make_arms()
PRIMARY = Arm(LEADING, Use()).name


def classify(
    prepared: Prepared,
    synthetic: ImageSet | None,
    *,
    plan: FitPlan | None = None,
    arms: Sequence[Arm] | None = None,
    use: Use | None = None,
    primary: str = PRIMARY,
    seeds: Sequence[int] = (0, 1, 2),
    looks: int = 0,
    device: str = "cpu",
    folder: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    **changed: Any,
) -> dict[str, Any]:
    """Trains every arm with every seed, at equal optimizer steps, batch size and augmentation, and compares them.

    Args:
        prepared: the splits; the test split is looked at once per trained network and chooses nothing.
        synthetic: generated images; None leaves out the arms that need them.
        plan: network, steps, rates, augmentation: the same in every arm. None: a small network for 500 steps, with
            shifts by 1/8 of the shorter side and no flips.
        arms: recipes and how synthetic images are used in them; None: those of `make_arms`.
        use: how synthetic images are used in these.
        primary: name of the arm whose verdict leads.
        seeds: of weights, batches and augmentation; the same ones in every arm, so that arms are compared in pairs.
        looks: so many times while training, the balanced accuracy on validation images is looked at, and the best
            weights are reported beside the last; nobody looks where validation images of a class are missing.
        folder: where the result of each (arm, seed) is kept; what is there is not trained again if its inputs are the
            same, and what was begun goes on.
        progress: called with (finished, total, arm and seed just finished).
        workers: networks trained at a time, each on one CPU thread; default: one per core on a CPU, one on an
            accelerator. The results do not depend on it.
        changed: attributes of the plan in place of its own, such as ``steps=300``.

    Returns:
        JSON-able: "protocol", "arms" (name, recipe, use, needs_synthetic, sampler, loss, prior, runs, mean, sd, val),
        "control", "verdict"; see ``docs/metrics.md``.

    Raises:
        ConfigError: no seeds or the same one twice, arms of one name or none without synthetic images, no arm of the
            primary's name, an unknown recipe or network.
        DataError: no test images, a class without real images, or synthetic images of other classes or another shape.
    """
    check_sets(prepared, synthetic)
    arms = make_arms(use=use) if arms is None else arms
    check_arms(arms, seeds)
    plan = plan or FitPlan(augmentation=Augmentation(shift=max(1, min(prepared.train.shape[:2]) // 8)))
    plan = replace(plan, **changed)
    arms = [a for a in arms if synthetic is not None or not a.needs_synthetic]
    leading = [a.name for a in arms if a.needs_synthetic]
    if leading and primary not in leading:
        raise ConfigError(f"no arm with synthetic images is called {primary!r}", f"choose one of {leading} to lead")
    looks = looks if whole_validation(prepared) else 0
    jobs = [Job(arm, int(seed), plan, prepared, synthetic, device, folder, looks) for arm in arms for seed in seeds]
    done = run_all(jobs, workers or default_workers(device), progress)
    rows = []
    for arm in arms:
        runs = [done[arm.name, int(seed)] for seed in seeds]
        rows.append(arm_row(arm, runs, prepared))
    controls = choose_control(rows, prepared.val, prepared.claimable)
    predictions = {a.name: np.array([done[a.name, int(s)]["test"]["predicted"] for s in seeds]) for a in arms}
    return {
        "protocol": {
            **protocol_of(plan, prepared, seeds),
            "looks": looks,
            "n_synthetic": 0 if synthetic is None else len(synthetic),
        },
        "arms": rows,
        "control": controls,
        "verdict": verdict(
            predictions,
            prepared.test,
            prepared.groups,
            prepared.claimable,
            controls,
            primary,
            [arm.name for arm in arms if arm.needs_synthetic],
        ),
    }


def protocol_of(plan: FitPlan, prepared: Prepared, seeds: Sequence[int]) -> dict[str, Any]:
    """What one must know of a comparison to repeat it."""
    pretrained = is_pretrained(plan.network)
    return {
        **plan.to_json(),
        "seeds": [int(s) for s in seeds],
        "n_train": len(prepared.train),
        "n_val": 0 if prepared.val is None else len(prepared.val),
        "n_test": len(prepared.test),
        "groups": prepared.groups.rule,
        "equal": "optimizer steps, batch size, augmentation, seeds, learning rate and weight decay in all arms",
        "chosen_on_test": "nothing",
        "pretrained": "yes: the weights come from other images, perhaps from test images" if pretrained else "no",
    }


def arm_row(arm: Arm, runs: Sequence[dict[str, Any]], prepared: Prepared) -> dict[str, Any]:
    """What is reported of an arm: its runs, their mean and spread, and its mean on validation images."""
    scored = [_scored(run, prepared) for run in runs]
    row = {**arm.to_json(), "runs": [], **spread([run["test"] for run in scored]), "val": _validation(scored)}
    row["runs"] = [{"seed": run["seed"], **run["test"], "val": run["val"], "best": run["best"]} for run in scored]
    return row


def whole_validation(prepared: Prepared) -> bool:
    """Whether there are validation images of every class."""
    val = prepared.val
    return val is not None and len(np.unique(val.labels)) == len(prepared.train.class_names)


def check_arms(arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    """Raises ConfigError where seeds or arms cannot be compared."""
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"classifier seeds {list(seeds)}: at least one, and no two the same, are needed")
    names = [arm.name for arm in arms]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two arms are called {twice[0]!r}", "name each recipe once, or give arms labels")
    files = [arm.file for arm in arms]
    same = [arm.name for arm in arms if files.count(arm.file) > 1]
    if same:
        raise ConfigError(
            f"the arms {same[0]!r} and {same[1]!r} would be kept in the same file", "give them labels that differ more"
        )
    if all(arm.needs_synthetic for arm in arms):
        raise ConfigError("there is no arm without synthetic images to compare with", "name at least one recipe for it")
    alone = {arm.recipe for arm in arms if not arm.needs_synthetic}
    mixed_up = [arm for arm in arms if arm.needs_synthetic and arm.recipe not in alone]
    if mixed_up:
        raise ConfigError(
            f"the recipe {mixed_up[0].recipe!r} stands with synthetic images only, so that what it does and what they "
            "do could not be told apart",
            "add the arm of that recipe without them",
        )


def check_sets(prepared: Prepared, synthetic: ImageSet | None) -> None:
    """Refuses sets that do not belong together.

    Raises:
        DataError: no test images, a class without real images, or synthetic images of other classes or another shape,
            or that are test images.
    """
    train, test = prepared.train, prepared.test
    if not len(test):
        raise DataError("there are no test images, so classifiers cannot be compared", "hold some out when preparing")
    check_classes("test", test.class_names, train.class_names)
    if prepared.val is not None:
        check_classes("validation", prepared.val.class_names, train.class_names)
    counts = np.bincount(train.labels, minlength=len(train.class_names))
    if (counts == 0).any():
        missing = [train.class_names[k] for k in np.flatnonzero(counts == 0)]
        raise DataError(
            f"{len(missing)} classes have no real training image: {named(missing)}",
            "give each at least one, or leave the classes out",
        )
    if synthetic is None:
        return
    check_classes("synthetic", synthetic.class_names, train.class_names)
    if synthetic.shape != train.shape:
        raise DataError(
            f"the synthetic images are {synthetic.shape} (H, W, C), the training images {train.shape}",
            "draw them with the model of this run",
        )
    tests = set(test.hashes)
    leaked = [i for i, h in enumerate(synthetic.hashes) if h in tests and np.ptp(synthetic.images[i])]  # but for blanks
    if leaked:
        raise DataError(
            f"{len(leaked)} synthetic images equal test images, such as {synthetic.ids[leaked[0]]}",
            "leave them out, and find out how the generator came to see the test images",
        )


def check_classes(what: str, found: Sequence[str], expected: Sequence[str]) -> None:
    """Refuses images of `what` whose classes are not those of the training images, in order; says which differ."""
    if tuple(found) == tuple(expected):
        return
    more = [name for name in found if name not in set(expected)]
    fewer = [name for name in expected if name not in set(found)]
    parts = [
        f"classes that training lacks: {named(more)}" if more else "",
        f"classes that only training has: {named(fewer)}" if fewer else "",
        "" if more or fewer else "the same classes in another order, so that labels mean other classes",
    ]
    raise DataError(
        f"the {what} images have other classes than the training images: {'; '.join(p for p in parts if p)}",
        "use images of the same class names, in the same order",
    )


def _scored(run: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    groups, claimable = prepared.groups, prepared.claimable

    def of(found: dict[str, Any] | None, images: ImageSet | None) -> dict[str, Any] | None:
        if found is None or images is None:
            return None
        return scores(np.array(found["predicted"]), images.labels, groups, claimable, np.array(found["confidence"]))

    best = None
    if run["best"] is not None:
        found = of(run["best"]["test"], prepared.test) or {}
        best = {"step": run["best"]["step"], **found, "val": of(run["best"]["val"], prepared.val)}
    return {
        "seed": run["seed"],
        "test": of(run["test"], prepared.test),
        "val": of(run["val"], prepared.val),
        "best": best,
    }


def _validation(runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    if runs[0]["val"] is None:
        return None
    found = spread([run["val"] for run in runs])
    return {
        "accuracy": found["mean"]["accuracy"],
        "balanced_accuracy": found["mean"]["balanced_accuracy"],
        "sd": found["sd"]["balanced_accuracy"],
    }
