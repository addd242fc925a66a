"""Classification accuracy score: a classifier trained on synthetic images alone, tested on real ones.

CAS (Ravuri and Vinyals 2019) is the accuracy on real test images of a classifier that saw synthetic images only. It
punishes what label agreement forgives: images of a class that are right but all alike. Beside it stands the accuracy of
the same classifier trained on the real training images of the same classes, at equal steps and class-balanced batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.metrics.intervals import student95, wilson
from imbdiff.metrics.numbers import Found, Number, Of, Origin
from imbdiff.metrics.rows import Estimate, scopes
from imbdiff.recognition.fitting import fit
from imbdiff.recognition.jobs import default_workers, use_one_thread
from imbdiff.recognition.networks import predict
from imbdiff.recognition.plan import FitPlan
from imbdiff.runtime.device import prepare_threads
from imbdiff.runtime.files import digest

PROTOCOL = (
    "accuracy on real test images of a classifier trained on the synthetic images alone, class-balanced batches, over "
    "the classes that have at least {least} synthetic images; next to it the same classifier trained on the real "
    "training images of these classes; mean over {seeds} seeds; 95 % interval: Wilson over test images, widened by the "
    "spread of the seeds{together}"
)
TOGETHER = "; of test images that belong together, the effective number (Kish)"
MIN_SYNTHETIC = 10
"""Synthetic images of a class, for the class to take part."""
SOURCE = "Ravuri and Vinyals 2019"


def classification_accuracy_score(
    synthetic: ImageSet,
    train: ImageSet,
    test: ImageSet,
    groups: Groups | None,
    plan: FitPlan,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    reference_name: str = "test",
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Found, str]:
    """Trains one classifier per seed on the synthetic images and one on the training images.

    Returns:
        what was found, and how, to be added to what :func:`imbdiff.metrics.evaluate.evaluate` gives.
    """
    c = len(train.class_names)
    enough = np.bincount(synthetic.labels, minlength=c) >= MIN_SYNTHETIC
    enough &= np.bincount(train.labels, minlength=c) > 0
    classes = np.flatnonzero(enough)
    part = test.select(np.flatnonzero(enough[test.labels]))
    result = Found(c)
    sets: list[tuple[Of, ImageSet]] = [("synthetic", synthetic), ("train", train)]
    for n, (kind, images) in enumerate(sets):
        right = None
        if len(classes) >= 2 and len(part):
            train_one = partial(_predicted, images, part, classes, plan, device=device)
            prepare_threads()
            with ThreadPoolExecutor(default_workers(device), thread_name_prefix="cas") as pool:
                rows = []
                for found in pool.map(train_one, seeds):
                    rows.append(found == part.labels)
                    if progress is not None:
                        progress(n * len(seeds) + len(rows), 2 * len(seeds))
            right = np.array(rows)
        who = f"{plan.network}, trained on the {kind} images"
        origin = Origin(
            metric="CAS",
            reference=reference_name,
            extractor=who,
            fingerprint=digest(plan.to_json()),
            direction="higher",
        )
        for scope in scopes(train.class_names, groups):
            members = np.isin(scope.classes, classes)
            mine = np.isin(part.labels, scope.classes)
            together = None if part.groups is None else part.groups[mine]
            estimate = _estimate(right, mine, int(np.isin(images.labels, scope.classes[members]).sum()), together)
            result.add(Number.made(origin, scope.name, estimate, int((~members).sum())), scope, kind)
    how = {"least": MIN_SYNTHETIC, "seeds": len(seeds), "together": "" if test.groups is None else TOGETHER}
    return result, PROTOCOL.format(**how)


def _predicted(
    images: ImageSet, test: ImageSet, classes: np.ndarray, plan: FitPlan, seed: int, device: str
) -> np.ndarray:
    """(N,) classes of the test images by a classifier of `classes` only."""
    use_one_thread(device)
    place = np.full(len(images.class_names), -1)
    place[classes] = np.arange(len(classes))
    rows = np.flatnonzero(place[images.labels] >= 0)
    names = tuple(images.class_names[k] for k in classes.tolist())
    own = images.select(rows)
    seen = ImageSet(own.images, place[own.labels].astype(np.int64), names, own.ids)
    network = fit(seen, plan, "resampling", seed=seed, device=device, name=f"CAS, seed {seed}")
    asked = ImageSet(test.images, place[test.labels].astype(np.int64), names, test.ids)
    return classes[predict(network, asked)]


def _estimate(
    right: np.ndarray | None, mine: np.ndarray, n_trained: int, together: np.ndarray | None = None
) -> Estimate:
    """The share that is right (S, N) of the images `mine`, of which those of one value of `together` are one draw."""
    n = int(mine.sum())
    if right is None or n == 0 or n_trained == 0:
        reason = (
            f"at least two classes need {MIN_SYNTHETIC} synthetic images and a test image each"
            if right is None
            else f"no test image of a class with at least {MIN_SYNTHETIC} synthetic images"
        )
        return Estimate(None, refused=reason, n_synthetic=n_trained, n_reference=n)
    by_seed = right[:, mine].mean(axis=1)
    value = float(by_seed.mean())
    effective = float(n)
    if together is not None:
        sizes = np.unique(together, return_counts=True)[1]
        effective = n * n / float((sizes**2).sum())
    low, high = wilson(round(value * n) * effective / n, effective)
    wide = 0.0
    if len(by_seed) > 1:
        wide = student95(len(by_seed) - 1) * float(by_seed.std(ddof=1)) / math.sqrt(len(by_seed))
    below, above = math.hypot(max(value - low, 0), wide), math.hypot(max(high - value, 0), wide)
    return Estimate(
        value, max(0.0, value - below), min(1.0, value + above), None, n_trained, n, effective,
        {"seeds": len(by_seed), "sd_over_seeds": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else None},
    )  # fmt: skip
