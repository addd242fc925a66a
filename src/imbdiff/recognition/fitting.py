"""Whether trainings fit their data: what a training builds is built beforehand, and nothing is trained."""

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
    Mixture(one, one if synthetic else None, use, plan.batch_size, 0)
    stages_of(plan, recipe, use, synthetic)
    split = synthetic and use.batch_norm == "separate"
    network = plan.network if isinstance(plan.network, str) else id(plan.network)  # not all that is called has a hash
    key = (network, plan.normalise, recipe.head, split)
    if key not in built:
        options: dict[str, Any] = {} if recipe.head == "linear" else {"head": recipe.head}
        if plan.normalise is not None:
            options["normalise"] = plan.normalise
        made = build_network(plan.network, train.shape, len(train.class_names), **options)
        built[key] = split_batch_norm(made) if split else made
    if recipe.second != "none" or recipe.adjust:
        linear_head(built[key].head, recipe.label)


def check_trainings(train: ImageSet, plan: FitPlan, arms: Iterable[tuple[str, Use | None]]) -> None:
    """:func:`check_training` of every recipe, by name, with its use; where that is None there are no synthetic images.

    Raises:
        ConfigError: one does not fit.
    """
    built: Networks = {}
    for name, use in dict.fromkeys(arms):
        check_training(train, plan, get_recipe(name), use, use is not None, built=built)
