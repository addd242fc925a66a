"""A classifier without training: an image's mean over each third of its columns is a feature and a logit."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import ClassifierFeatures

NAMES = ("left", "middle", "<b>right</b>")


class Thirds(nn.Module):
    """Features: means of the three column blocks of (B, 1, 4, 6)."""

    feature_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(4 * torch.eye(3))
            self.head.bias.zero_()

    def features(self, x: Tensor) -> Tensor:
        return torch.stack([x[..., 2 * k : 2 * k + 2].mean(dim=(1, 2, 3)) for k in range(3)], dim=1)


def draw(counts: tuple[int, ...], seed: int, names: tuple[str, ...] = NAMES) -> ImageSet:
    """Images whose block number `label` is bright."""
    g = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts).astype(np.int64)
    x = g.normal(70, 30, (len(labels), 4, 6, 1))
    for i, k in enumerate(labels):
        x[i, :, 2 * k : 2 * k + 2] += 100
    return ImageSet(np.clip(x, 0, 255).astype(np.uint8), labels, names)


def joined(*sets: ImageSet) -> ImageSet:
    return ImageSet(
        np.concatenate([s.images for s in sets]), np.concatenate([s.labels for s in sets]), sets[0].class_names
    )


def relabelled(images: ImageSet, label: int) -> ImageSet:
    return ImageSet(images.images, np.full(len(images), label), images.class_names)


def extractor_of(train: ImageSet, role: str = "working") -> ClassifierFeatures:
    return ClassifierFeatures(
        Thirds(), "thirds", role, shape=train.shape, trained_on=frozenset(train.hashes)  # type: ignore[arg-type]
    )  # fmt: skip
