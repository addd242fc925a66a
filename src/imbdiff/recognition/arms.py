"""The five arms: what synthetic images are worth to a classifier, beside what re-balancing alone is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.fit import FitPlan
from imbdiff.recognition.jobs import ARMS, Job, Progress, default_workers, run_all
from imbdiff.recognition.losses import PRIORS
from imbdiff.recognition.scores import scores, spread
from imbdiff.recognition.verdict import choose_control, verdict
from imbdiff.runtime.errors import ConfigError, DataError

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared


PRIMARY = ARMS[4].name
"""The arm whose verdict leads; fixed here, before any result: it differs from the usual best control by the synthetic
images alone."""


def classify(
    prepared: Prepared,
    synthetic: ImageSet | None,
    *,
    steps: int = 500,
    batch_size: int = 128,
    seeds: Sequence[int] = (0, 1, 2),
    network: str = "resnet-small",
    synthetic_weight: float = 1.0,
    prior: str = "train",
    learning_rate: float = 0.1,
    weight_decay: float = 5e-4,
    augmentation: Augmentation | None = None,
    device: str = "cpu",
    folder: Path | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Trains every arm with every seed, at equal optimizer steps, batch size and augmentation, and compares them.

    Args:
        prepared: the splits; the test split is looked at once per trained network and chooses nothing.
        synthetic: generated images; None leaves out the arms that need them.
        seeds: of weights, batches and augmentation; the same ones in every arm, so that arms are compared in pairs.
        synthetic_weight: w > 0, weight in the loss of a synthetic image; a real one weighs 1.
        prior: of the arm synthetic + balanced softmax: "train", counts of the real images, or "effective", with the
            synthetic ones at their weight; with classes filled to one size that is flat, which repeats synthetic + CE.
        augmentation: None means shifts by 1/8 of the shorter side and no flips.
        folder: where the result of each (arm, seed) is kept; what is there is not trained again if its inputs are the
            same.
        progress: called with (finished, total, arm and seed just finished).
        workers: networks trained at a time, each on one CPU thread; default: one per core on a CPU, one on an
            accelerator. The results do not depend on it.

    Returns:
        JSON-able: "protocol", "arms" (name, needs_synthetic, sampler, loss, prior, runs, mean, sd, val), "control",
        "verdict"; see ``docs/metrics.md``.

    Raises:
        ConfigError: no seeds or the same one twice, a weight that is not positive, an unknown prior or network.
        DataError: no test images, or synthetic images of other classes or another shape.
    """
    _check(prepared, synthetic, seeds, synthetic_weight, prior)
    shift = max(1, min(prepared.train.shape[:2]) // 8)
    plan = FitPlan(
        network=network,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        augmentation=augmentation if augmentation is not None else Augmentation(shift=shift),
    )
    arms = [replace(a, prior=prior) if a.name == PRIMARY else a for a in ARMS]
    arms = [a for a in arms if synthetic is not None or not a.needs_synthetic]
    jobs = [
        Job(arm, int(seed), plan, prepared, synthetic, synthetic_weight, device, folder)
        for arm in arms
        for seed in seeds
    ]
    done = run_all(jobs, workers or default_workers(device), progress)
    rows = []
    for arm in arms:
        runs = [done[arm.name, int(seed)] for seed in seeds]
        rows.append({**asdict(arm), "runs": [_scored(run, prepared) for run in runs]})
        rows[-1].update(spread([run["test"] for run in rows[-1]["runs"]]))
        rows[-1]["val"] = _validation(rows[-1]["runs"])
    controls = choose_control(rows, prepared.val, prepared.claimable)
    predictions = {arm.name: np.array([done[arm.name, int(s)]["test"] for s in seeds]) for arm in arms}
    for row in rows:
        row["runs"] = [{"seed": run["seed"], **run["test"], "val": run["val"]} for run in row["runs"]]
    return {
        "protocol": {
            **plan.to_json(),
            "seeds": [int(s) for s in seeds],
            "synthetic_weight": synthetic_weight,
            "n_train": len(prepared.train),
            "n_synthetic": 0 if synthetic is None else len(synthetic),
            "n_val": 0 if prepared.val is None else len(prepared.val),
            "n_test": len(prepared.test),
            "groups": prepared.groups.rule,
            "equal": "optimizer steps, batch size, augmentation, seeds, learning rate and weight decay in all arms",
            "chosen_on_test": "nothing",
        },
        "arms": rows,
        "control": controls,
        "verdict": verdict(
            predictions,
            prepared.test,
            prepared.groups,
            prepared.claimable,
            controls,
            PRIMARY,
            [arm.name for arm in arms if arm.needs_synthetic],
        ),
    }


def _check(
    prepared: Prepared, synthetic: ImageSet | None, seeds: Sequence[int], synthetic_weight: float, prior: str
) -> None:
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(f"classifier seeds {list(seeds)}: at least one, and no two the same, are needed")
    if not synthetic_weight > 0:
        raise ConfigError(
            f"synthetic weight {synthetic_weight} is not positive", "leave the synthetic images out instead"
        )
    if prior not in PRIORS:
        raise ConfigError(f"unknown prior {prior!r}", f"choose one of {', '.join(PRIORS)}")
    if not len(prepared.test):
        raise DataError("there are no test images, so classifiers cannot be compared", "hold some out when preparing")
    if synthetic is None:
        return
    if synthetic.class_names != prepared.train.class_names:
        raise DataError("the synthetic images have other classes than the training images")
    if synthetic.shape != prepared.train.shape:
        raise DataError(
            f"the synthetic images are {synthetic.shape} (H, W, C), the training images {prepared.train.shape}"
        )


def _scored(run: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    groups, claimable = prepared.groups, prepared.claimable
    val = prepared.val
    return {
        "seed": run["seed"],
        "test": scores(np.array(run["test"]), prepared.test.labels, groups, claimable),
        "val": None if val is None else scores(np.array(run["val"]), val.labels, groups, claimable),
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
