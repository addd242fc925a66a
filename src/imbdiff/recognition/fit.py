"""Training one classifier, and what it says of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.loop import Loop, Trained
from imbdiff.recognition.networks import Classifier
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import RECIPES, Recipe
from imbdiff.recognition.use import Mixture, Use
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.log import JsonLog


def train_classifier(
    real: ImageSet,
    plan: FitPlan,
    recipe: Recipe,
    *,
    synthetic: ImageSet | None = None,
    use: Use | None = None,
    prior: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    val: ImageSet | None = None,
    looks: int = 0,
    seed: int = 0,
    device: str | torch.device = "cpu",
    stop: Callable[[], bool] | None = None,
    name: str = "classifier",
    store: CheckpointStore | None = None,
    log: JsonLog | None = None,
    identity: str = "",
) -> Trained:
    """Trains a network; equal arguments give equal weights, bit for bit on a CPU at one thread count.

    Args:
        real: the training images.
        synthetic, use: generated images, and how they take part.
        prior: (C,) shares of the classes for losses that need them; None: those that `use` says.
        weights: (N,) of the real images in the loss, all 1 where None.
        val, looks: so many times, evenly spaced, the balanced accuracy on `val` is looked at, and the best weights are
            kept beside the last.
        seed: of weights, batches, augmentation and mixing; the streams do not depend on what else is compared.
        stop: asked now and then; training ends early where it says True (its result is then worthless).
        name: for error messages.
        store, log: where checkpoints and the loss go; a repeated call continues from there.
        identity: a hash of what is trained: checkpoints of another are not continued.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite.
        ConfigError: recipe, network and use do not fit each other.
    """
    use = use or Use()
    mixture = Mixture(real, synthetic, use, plan.batch_size, seed, weights)
    counts = real_counts = None
    if prior is not None:
        counts = real_counts = prior * (len(real) / prior.sum())
    elif recipe.needs_prior:
        counts, real_counts = mixture.counts(use.prior), mixture.counts("train")
    training = Loop(
        mixture,
        plan,
        recipe,
        counts,
        real_counts,
        seed,
        torch.device(device),
        val,
        looks,
        stop,
        name,
        store,
        log,
        identity,
    )
    return training.run()


def fit(
    images: ImageSet,
    plan: FitPlan,
    *,
    law: str = "natural",
    prior: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    stop: Callable[[], bool] | None = None,
    name: str = "classifier",
) -> Classifier:
    """:func:`train_classifier` by cross-entropy, or by balanced softmax where `prior` (C,) is given; the last network.

    Args:
        law: of the batch sampler.
        weights: (N,) of the loss of each image. Divided by their mean, so that the learning rate keeps its meaning.
    """
    recipe = replace(RECIPES["ce" if prior is None else "balanced-softmax"], law=law)
    found = train_classifier(
        images, plan, recipe, prior=prior, weights=weights, seed=seed, device=device, stop=stop, name=name
    )
    return found.last
