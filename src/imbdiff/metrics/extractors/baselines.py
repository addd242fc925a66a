"""Free baselines: raw pixels and a fixed random convolutional network. They need no weights and have seen no image."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch.nn import functional

from imbdiff.metrics.extractors.base import Extractor, as_tensor, hash_weights, same_shape, to_unit
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.streams import torch_rng


class RawPixels(Extractor):
    """The pixels themselves, in [-1, 1], as (H * W * C) features.

    Args:
        shape: (H, W, C) of the images.
    """

    trained_on_note = "nothing: it has no weights"
    preprocessing = "pixels / 127.5 - 1"

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = tuple(shape)
        self.name, self.role, self.dim = "raw-pixels", "judge", int(np.prod(self.shape))
        self.fingerprint = hash_weights(f"raw-pixels {self.shape}", [])

    def _check(self, shape: tuple[int, ...]) -> None:
        same_shape(self.name, self.shape, shape)

    def _batch(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1).astype(np.float32) / 127.5 - 1


class RandomConv(Extractor):
    """A fixed random convolutional network: three 3x3 layers with ReLU, then the mean of each map.

    It is the same for everybody who gives the same `seed`, needs no weights and has seen no image, so it can be used on
    any folder; it knows nothing of what matters in the images and is for ranking only.

    Args:
        channels: C of the images, 1 or 3.
        seed: of the weights.
        dim: D, number of maps of the last layer.
        device: where it runs; the weights are drawn on the CPU and are the same everywhere.
    """

    trained_on_note = "nothing: its weights are random"
    preprocessing = "pixels / 127.5 - 1, at the size of the image"

    def __init__(self, channels: int, seed: int = 0, dim: int = 32, *, device: str | torch.device = "cpu") -> None:
        self.channels = channels
        self.name, self.role, self.dim = "random-conv", "judge", dim
        self.device = torch.device(device)
        generator = torch_rng(seed, "random-conv", channels, dim)
        widths = [channels, 16, 32, dim]
        weights = []
        for c, o in itertools.pairwise(widths):
            w = torch.randn((o, c, 3, 3), generator=generator)
            # zero sum over space and input: the features tell structure, not brightness, from the second layer on
            w = w - w.mean(dim=(1, 2, 3), keepdim=True) if c != channels else w
            weights.append(w * (2 / (9 * c)) ** 0.5)
        self.fingerprint = hash_weights(f"random-conv {channels} {dim}", weights)
        self.weights = [w.to(self.device) for w in weights]

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape[-1] != self.channels:
            raise DataError(
                f"extractor {self.name} was made for {self.channels} channels, the images have {shape[-1]}",
                f"make RandomConv({shape[-1]})",
            )

    def _batch(self, x: np.ndarray) -> np.ndarray:
        h = to_unit(as_tensor(x, self.device))
        for layer, weight in enumerate(self.weights):
            h = functional.relu(functional.conv2d(h, weight, stride=1 if layer == 0 else 2, padding=1))
        return h.mean(dim=(2, 3)).cpu().numpy()
