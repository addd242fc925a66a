"""What a classifier says of images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import to_unit
from imbdiff.recognition.networks import Classifier


@torch.no_grad()
def probabilities(network: Classifier, images: ImageSet, batch_size: int = 512) -> np.ndarray:
    """(N, C) float32 softmax of the logits, the prior of the images taken as flat where the loss took it so."""
    device = next(network.parameters()).device
    network.eval()
    parts: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        x = to_unit(torch.from_numpy(np.array(images.images[start : start + batch_size], order="C")).to(device))
        parts.append(functional.softmax(network(x.contiguous(memory_format=torch.channels_last)).float(), dim=1).cpu())
    return torch.cat(parts).numpy() if parts else np.zeros((0, len(images.class_names)), np.float32)


def predict(network: Classifier, images: ImageSet, batch_size: int = 512) -> np.ndarray:
    """(N,) int64 predicted class of each image; the largest logit, the prior of the test images taken as flat."""
    return probabilities(network, images, batch_size).argmax(axis=1).astype(np.int64)
