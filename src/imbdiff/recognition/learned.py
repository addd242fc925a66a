"""Was anything learned? Where classifiers or generator learned nothing, a comparison says nothing of synthetic images.

Asked of the classifiers' predictions, of one network that was trained on real images alone, and of the images
themselves. None of it chooses an arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.nearest import hash_keys
from imbdiff.metrics.extractors import RandomConv
from imbdiff.metrics.memorisation import capped_rows
from imbdiff.recognition.networks import Classifier, predict
from imbdiff.recognition.plan import FitPlan
from imbdiff.runtime.streams import rng

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

ERROR = 0.05
LEAST = 20
"""Images for a statement."""
FITTED, PASSES = 1 / 3, 30
"""A classifier that puts less than this share of its own training images right, beyond chance, and has seen them fewer
times than this, was trained too briefly. Of 4,307 skin lesions 0.18 after 0.4 passes, 0.48 after 4.5; of 305 digits
0.24 after 2 passes, 0.72 after 8, 0.97 after 21."""
WELL_FITTED, FEW_PASSES = 0.9, 10
"""The same, as a warning."""
NOISE = 0.25
"""Distance from real images, in units of that of noise, from which on images are noise. Digits of generators that saw
640, 3,200, 10,000, 30,000 and 90,000 images: 0.68, 0.42, 0.32, 0.08, 0; real photographs blurred by a sixteenth of
their side 0.02 to 0.1, with other brightness, contrast or colour 0 to 0.07 (CIFAR-10, skin lesions)."""
SMALL, LARGEST = 8, 500
"""Images that are compared, at least and at most."""
RECOGNISED = 0.9
"""Share of synthetic images in the class asked for below which a warning compares it with real images."""


@dataclass(frozen=True)
class Lack:
    """Why nothing can be said of the synthetic images, and what to do."""

    reason: str
    remedy: str


@dataclass(frozen=True)
class Learned:
    """What one network that saw real images alone, and the images themselves, say.

    Attributes:
        classifier: the arm of that network.
        fitted: its balanced accuracy on its own training images, 0..1; `passes`: how often it saw each.
        noise: distance of the synthetic images from real ones of the same classes, in units of that of noise: about 0
            for real images, 1 for noise. None: too few images.
        agreement: share of the synthetic images that it puts into the class asked for.
        real: the share of held-out real images, in the class mix of the synthetic ones; None: there are too few.
        lack: why there is no verdict.
        warnings: sentences.
    """

    classifier: str
    fitted: float
    passes: float
    noise: float | None
    agreement: float
    real: float | None
    lack: Lack | None
    warnings: tuple[str, ...]


def at_chance(predictions: Mapping[str, np.ndarray], labels: np.ndarray) -> Lack | None:
    """Where no arm's balanced accuracy is beyond what predictions that know nothing of the images reach.

    Always naming one class has the balanced accuracy 1 / K. Of independent predictions the hits of class k are
    binomial; the limit is one-sided at 0.05 over all arms (Bonferroni), and seeds do not narrow it.

    Args:
        predictions: per arm (S, N) classes; labels: (N,) of K classes.
    """
    known, n = np.unique(labels, return_counts=True)
    if len(known) < 2:
        return None
    z = _normal_quantile(1 - ERROR / len(predictions))
    best = (-1.0, 0.0, "")
    for name, found in predictions.items():
        p = np.array([(found == k).mean() for k in known])
        value = float(np.mean([(found[:, labels == k] == k).mean() for k in known]))
        limit = float(p.mean() + z * math.sqrt((p * (1 - p) / n).sum()) / len(known))
        if value > limit:
            return None
        best = max(best, (value, limit, name))
    value, limit, name = best
    return Lack(
        f"no classifier is better than chance: the best balanced accuracy is {value:.3f} ({name}), chance is "
        f"{1 / len(known):.3f}, up to {limit:.3f} with these test images",
        "train the classifiers longer (--classify.steps), or give more images per class",
    )


def _normal_quantile(q: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(q)


def look(network: Classifier, name: str, plan: FitPlan, synthetic: ImageSet, prepared: Prepared) -> Learned:
    """Looks at the images with `network`, trained by the arm `name` on real images alone."""
    train, labels = prepared.train, synthetic.labels
    own = train.select(capped_rows(train.labels, 4 * LARGEST, hash_keys(train.hashes)))
    fitted = float(np.mean(list(_recalls(predict(network, own), own.labels).values())))
    passes = plan.steps * plan.batch_size / len(train)
    predicted = predict(network, synthetic)
    agreement = float((predicted == labels).mean())
    real, spread = _recognised(network, labels, prepared)
    noise = noise_of(synthetic, prepared)
    beyond = (fitted * len(train.class_names) - 1) / max(1, len(train.class_names) - 1)
    lack = None
    shown = f"the classifiers put {100 * fitted:.0f} % of their own training images right (classes counted alike)"
    longer = f"train them longer: imbdiff classify RUN --replace --classify.steps {_enough(plan, len(train))}"
    if beyond < FITTED and passes < PASSES:
        lack = Lack(f"{shown}, after {passes:.1f} passes: they were not trained long enough", longer)
    elif noise is not None and noise > NOISE:
        lack = Lack(
            f"the synthetic images look like noise: {100 * noise:.0f} % as far from real images as noise is",
            "train the generator longer (--train.images, in a new run folder)",
        )
    elif _independent(predicted, labels):
        lack = Lack(
            f"the synthetic images do not show the classes asked for: a classifier of the real images finds "
            f"{100 * agreement:.0f} % of them there, no more than chance",
            "train the generator longer (--train.images, in a new run folder)",
        )
    warnings = []
    below = real is None or agreement < real - 2 * math.hypot(spread, _error(agreement, len(labels)))
    if len(labels) >= LEAST and agreement < RECOGNISED and below:
        against = "" if real is None else f"; of held-out real images {100 * (1 - real):.0f} %"
        warnings.append(
            f"{100 * (1 - agreement):.0f} % of {len(labels):,} synthetic images look like another class than "
            f"the one asked for, to a classifier trained on the real images alone{against}: keep those that agree "
            "(imbdiff curate RUN --curate.policy agreement --replace, then imbdiff classify RUN), or train the "
            "generator longer (--train.images)"
        )
    if beyond < WELL_FITTED and passes < FEW_PASSES:
        warnings.append(f"{shown}, after {passes:.1f} passes: longer training may change the verdict ({longer})")
    return Learned(name, fitted, passes, noise, agreement, real, lack, tuple(warnings))


def _enough(plan: FitPlan, n: int) -> int:
    """Steps of as many passes as settle it."""
    return 10 * math.ceil(PASSES * n / plan.batch_size / 10)


def _error(share: float, n: int) -> float:
    """Standard error of a share, which 0 and 1 have too."""
    p = (share * n + 1) / (n + 2)
    return math.sqrt(p * (1 - p) / n)


def _recalls(predicted: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    return {int(k): float((predicted[labels == k] == k).mean()) for k in np.unique(labels)}


def _recognised(network: Classifier, asked: np.ndarray, prepared: Prepared) -> tuple[float | None, float]:
    """The share of held-out real images that are put into their class, in the class mix of `asked` (N,), and its
    error: of validation images where these have all classes, else of test images."""
    classes, mix = np.unique(asked, return_counts=True)
    val = prepared.val
    held = val if val is not None and np.isin(classes, val.labels).all() else prepared.test
    if not np.isin(classes, held.labels).all() or np.isin(held.labels, classes).sum() < LEAST:
        return None, 0.0
    recalls, n = _recalls(predict(network, held), held.labels), np.bincount(held.labels)
    weights = mix / mix.sum()
    value = sum(float(w) * recalls[int(k)] for w, k in zip(weights, classes, strict=True))
    errors = [float(w) * _error(recalls[int(k)], int(n[k])) for w, k in zip(weights, classes, strict=True)]
    return value, math.hypot(*errors)


def _independent(predicted: np.ndarray, asked: np.ndarray) -> bool:
    """Whether the predictions agree with the classes asked for no more than if they knew nothing of them."""
    n, c = len(asked), int(max(predicted.max(), asked.max())) + 1
    p, q = np.bincount(predicted, minlength=c) / n, np.bincount(asked, minlength=c) / n
    if n < LEAST or (q > 0).sum() < 2:
        return False
    chance = float(p @ q)
    limit = chance + _normal_quantile(1 - ERROR) * math.sqrt(chance * (1 - chance) / n)
    return float((predicted == asked).mean()) <= limit


# -- noise


def noise_of(synthetic: ImageSet, prepared: Prepared) -> float | None:
    """Energy distance of synthetic from real images over that of noise from them: about 0 for real images, 1 for noise.

    Noise: the same real images, the pixels of each in random order. Real images are of the classes and in the class mix
    of the synthetic ones. Of every image brightness, tint and contrast are made equal first, so that structure alone
    counts; features are those of :class:`RandomConv`.

    Returns:
        None for fewer than 8 images on either side.
    """
    h, w, channels = synthetic.shape
    most = int(np.clip(LARGEST * 64 * 64 / (h * w), 100, LARGEST))  # larger images cost more
    own = synthetic.select(capped_rows(synthetic.labels, most, hash_keys(synthetic.hashes)))
    parts = [images.select(np.flatnonzero(np.isin(images.labels, own.labels)))
             for images in (prepared.train, prepared.val, prepared.test) if images is not None]  # fmt: skip
    labels = np.concatenate([part.labels for part in parts])
    hashes = [key for part in parts for key in part.hashes]
    if not len(labels):
        return None
    rows = capped_rows(labels, most, hash_keys(hashes))
    pixels = np.concatenate([part.images for part in parts])[rows]
    count = np.bincount(labels[rows], minlength=len(synthetic.class_names))
    mix = np.where(count > 0, np.bincount(own.labels, minlength=len(count)), 0)
    weights = (mix / np.maximum(count, 1))[labels[rows]]
    weights = weights / weights.sum()
    if len(own) < SMALL or 1 / (weights**2).sum() < SMALL:
        return None
    extractor, generator = RandomConv(channels), rng(0, "noise")
    order = np.argsort(generator.random((len(rows), h * w)), axis=1)[:, :, None]
    shuffled = np.take_along_axis(pixels.reshape(len(rows), h * w, channels), order, axis=1).reshape(pixels.shape)

    def features(images: np.ndarray) -> np.ndarray:
        flat = np.zeros(len(images), dtype=np.int64)
        return extractor.features(ImageSet(_toned(images), flat, ("image",))).astype(np.float64)

    real, noise, made = features(pixels), features(shuffled), features(own.images)
    scale = real.std(axis=0) + 1e-6
    equal = np.full(len(made), 1 / len(made))
    far = energy_distance(real / scale, noise / scale, weights, weights)
    return None if far <= 0 else energy_distance(real / scale, made / scale, weights, equal) / far


def _toned(images: np.ndarray) -> np.ndarray:
    """(N, H, W, C) uint8 of equal mean of each channel and equal contrast; those without contrast are flat."""
    x = images.astype(np.float64)
    x -= x.mean(axis=(1, 2), keepdims=True)
    spread = np.sqrt((x * x).mean(axis=(1, 2, 3), keepdims=True))
    return np.clip(np.rint(128 + 48 * x / np.maximum(spread, 2)), 0, 255).astype(np.uint8)


def energy_distance(a: np.ndarray, b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray) -> float:
    """2 E|A - B| - E|A - A'| - E|B - B'| of rows with weights that add up to 1, unbiased (Szekely and Rizzo 2013)."""
    from scipy.spatial.distance import cdist

    def inside(x: np.ndarray, w: np.ndarray) -> float:
        return float(w @ cdist(x, x) @ w / (1 - w @ w))

    return 2 * float(weights_a @ cdist(a, b) @ weights_b) - inside(a, weights_a) - inside(b, weights_b)
