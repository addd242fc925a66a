"""What is refused before a training is what the training itself refuses, with the same words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition import fitting
from imbdiff.recognition.fit import train_classifier
from imbdiff.recognition.fitting import check_training, check_trainings
from imbdiff.recognition.networks import Classifier
from imbdiff.recognition.plan import CIFAR_PIXELS, FitPlan
from imbdiff.recognition.recipes import RECIPES
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import ConfigError

from .conftest import make_set, tiny

TRAIN, SYNTHETIC = make_set((9, 5, 4), 0), make_set((0, 4, 5), 9)


class _Own(nn.Module):
    """Says for itself what it is, and uses its head or a copy of it."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, bias: bool, used: bool) -> None:
        super().__init__()
        self.feature_dim, self.used = int(np.prod(shape)), used
        self.head = nn.Linear(self.feature_dim, num_classes, bias=bias)
        self.other = nn.Linear(self.feature_dim, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.head if self.used else self.other)(self.features(x))


def own(bias: bool = True, used: bool = True) -> Callable[..., nn.Module]:
    return lambda shape, num_classes: _Own(shape, num_classes, bias, used)


def without_norm(shape: tuple[int, int, int], num_classes: int) -> Classifier:
    body = nn.Sequential(nn.Conv2d(shape[2], 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, 4, num_classes)


CASES: list[tuple[dict[str, Any], str, Use | None, str]] = [
    ({}, "ce", None, ""),
    ({}, "ldam-drw", Use(batch_norm="separate", share=0.5), ""),
    ({}, "lws", Use(schedule="head-last"), ""),
    ({"normalise": CIFAR_PIXELS}, "ce", None, "1 channels cannot be standardised by 3 means"),
    ({"normalise": ((0.5,), (0.2,))}, "ce", None, ""),
    ({"network": own(), "normalise": ((0.5,), (0.2,))}, "ce", None, "brings its own features"),
    ({}, "ce", Use(share=0.01), "synthetic share of 0.01 is 0 of 8 rows"),
    ({}, "ce", Use(share=0.99), "synthetic share of 0.99 is 8 of 8 rows"),
    ({"network": own(used=False)}, "ldam", None, "does not make its logits with its `head`"),
    ({"network": own()}, "ldam", None, ""),
    ({"network": own(used=False)}, "ce", None, ""),
    ({"network": own(bias=False)}, "logit-adjustment", None, "needs a linear head with a bias"),
    ({"network": own(bias=False)}, "crt", None, "cRT needs a linear head with a bias"),
    ({"network": own(bias=False)}, "ce", None, ""),
    ({"network": without_norm}, "ce", Use(batch_norm="separate"), "no layers of batch normalisation"),
    ({"network": without_norm}, "ce", Use(), ""),
    ({}, "mixup", Use(batch_norm="separate"), "mixes real and synthetic images"),
    ({}, "mixup", Use(), ""),
]


@pytest.mark.parametrize(("changes", "recipe", "use", "said"), CASES)
def test_a_training_and_the_check_before_it_refuse_the_same(
    changes: dict[str, Any], recipe: str, use: Use | None, said: str
) -> None:
    plan = replace(FitPlan(tiny, steps=10, batch_size=8), **changes)

    def refusal(call: Callable[[], Any]) -> str:
        try:
            call()
        except ConfigError as error:
            return str(error)
        return ""

    synthetic = None if use is None else SYNTHETIC
    trained = refusal(lambda: train_classifier(TRAIN, plan, RECIPES[recipe], synthetic=synthetic, use=use))
    assert refusal(lambda: check_training(TRAIN, plan, RECIPES[recipe], use, use is not None)) == trained
    assert refusal(lambda: check_trainings(TRAIN, plan, [("ce", None), (recipe, use)])) == trained
    assert said in trained
    assert bool(said) == bool(trained)
    # without synthetic images, what concerns them refuses nothing
    if use is not None:
        alone = refusal(lambda: train_classifier(TRAIN, plan, RECIPES[recipe], use=use))
        assert refusal(lambda: check_training(TRAIN, plan, RECIPES[recipe], use, False)) == alone == ""


def test_a_network_is_built_once_for_each_head_and_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    real = fitting.build_network

    def counted(*arguments: Any, **options: Any) -> Any:
        built.append(options.get("head", "linear"))
        return real(*arguments, **options)

    monkeypatch.setattr(fitting, "build_network", counted)
    uses = [None, Use(), Use(weight=0.5), Use(batch_norm="separate"), Use(batch_norm="separate", share=0.5)]
    names = [name for name, recipe in RECIPES.items() if recipe.mixing == "none"]
    check_trainings(TRAIN, FitPlan(tiny, batch_size=8), [(name, use) for name in names for use in uses])
    assert sorted(built) == ["cosine", "cosine", "linear", "linear"]


def test_it_reads_one_image_and_draws_no_global_numbers() -> None:
    images = np.broadcast_to(TRAIN.images[:1], (10**6, *TRAIN.shape))  # without memory of its own
    many = ImageSet(images, np.zeros(10**6, np.int64), TRAIN.class_names)
    before = torch.random.get_rng_state()
    check_training(many, FitPlan(tiny, batch_size=8), RECIPES["ldam"], Use(batch_norm="separate"), True)
    assert torch.equal(torch.random.get_rng_state(), before)
