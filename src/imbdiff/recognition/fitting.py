"""What a training builds, and whether it fits the data: it can be built beforehand, and nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.batch_norm import split_batch_norm
from imbdiff.recognition.decoupled import linear_head
from imbdiff.recognition.networks import Classifier, build_network
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import Recipe, get_recipe
from imbdiff.recognition.timeline import stages_of
from imbdiff.recognition.use import Mixture, Use

Networks = dict[tuple[Any, ...], Classifier]
"""Those that were built, by what they depend on besides the images."""


def new_network(plan: FitPlan, recipe: Recipe, images: ImageSet, seed: int, *, split: bool) -> Classifier:
    """What a training begins with: weights drawn from `seed`; `split`: batch statistics of synthetic images apart."""
    made = build_network(
        plan.network, images.shape, len(images.class_names), seed, head=recipe.head, normalise=plan.normalise
    )
    return split_batch_norm(made) if split else made


def check_head(network: Classifier, recipe: Recipe) -> None:
    """Raises ConfigError where the recipe does something to the head that only a linear one takes."""
    if recipe.second != "none" or recipe.adjust:
        linear_head(network.head, recipe.label)


def check_training(
    train: ImageSet, plan: FitPlan, recipe: Recipe, use: Use | None, synthetic: bool, *, built: Networks | None = None
) -> None:
    """Refuses what :class:`imbdiff.recognition.loop.Loop` would refuse after the expensive part.

    Args:
        train: the training images; their shape and classes matter, and one image is read.
        use: how synthetic images take part; None: they do not.
        synthetic: whether there are any.
        built: networks of earlier calls for the same images, which are not built again.

    Raises:
        ConfigError: plan, recipe, use and images do not fit each other.
    """
    use, built = use or Use(), {} if built is None else built
    one = train.select([0])
    mixture = Mixture(one, one if synthetic else None, use, plan.batch_size, 0)
    stages_of(plan, recipe, use, synthetic)
    network = plan.network if isinstance(plan.network, str) else id(plan.network)  # not all that is called has a hash
    key = (network, plan.normalise, recipe.head, mixture.split)
    if key not in built:
        built[key] = new_network(plan, recipe, train, 0, split=mixture.split)
    check_head(built[key], recipe)


def check_trainings(train: ImageSet, plan: FitPlan, arms: Iterable[tuple[str, Use | None]]) -> None:
    """:func:`check_training` of every recipe, by name, with its use; where that is None there are no synthetic images.

    Raises:
        ConfigError: one does not fit.
    """
    built: Networks = {}
    for name, use in dict.fromkeys(arms):
        check_training(train, plan, get_recipe(name), use, use is not None, built=built)
