"""A small problem with an answer: the class is where the bright square is; the tail is short."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.recognition.networks import Classifier

NAMES = ("left", "middle", "right")


def make_set(counts: tuple[int, ...], seed: int, noise: float = 40) -> ImageSet:
    g = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts).astype(np.int64)
    x = g.normal(90, noise, (len(labels), 8, 10, 1))
    for i, k in enumerate(labels):
        x[i, 2:6, 3 * k : 3 * k + 3] += 60
    return ImageSet(np.clip(x, 0, 255).astype(np.uint8), labels, NAMES)


def make_prepared(val: ImageSet | None, train_counts: tuple[int, int, int] = (40, 10, 4)) -> Any:
    train = make_set(train_counts, 0)
    groups = Groups.explicit(train.stats, {"many": ["left"], "few": ["middle", "right"]})
    pool = make_set((60, 60, 60), 3)
    test = make_set((30, 30, 30), 2)
    return SimpleNamespace(
        train=train, val=val, test=test, pool=pool, stats=train.stats, groups=groups, claimable=(True,) * 3
    )


@pytest.fixture
def prepared() -> Any:
    return make_prepared(make_set((8, 8, 8), 1))


def tiny(shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A network of two convolutions and batch normalisations that sees where things are; some ms per step."""
    body = nn.Sequential(
        nn.Conv2d(shape[2], 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d((2, 3)), nn.Flatten(),
    )  # fmt: skip
    return Classifier(body, 72, num_classes)
