"""Extractors: images -> features. A number made with one carries its name and fingerprint.

A *judge* is frozen and never used for curation, tuning, early stopping or guidance. A *working* extractor has seen the
training split only and may be used for those; it may not judge (``docs/metrics.md``).
"""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from typing import Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imbdiff.data.imageset import ImageSet
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.streams import torch_rng

Role = Literal["judge", "working"]


class FeatureNetwork(Protocol):
    """What a classifier must offer to be an extractor: its last features and the layer on top of them."""

    feature_dim: int
    head: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float in [-1, 1] -> (B, feature_dim)."""
        ...


class Extractor(ABC):
    """Images to feature rows.

    Attributes:
        name: stands in the metric's name, ``FD[name]``.
        fingerprint: a hash of weights and preprocessing: equal fingerprints give equal features.
        role: "judge" or "working".
        dim: D, length of a feature row.
        ranking_only: the features were not learned from images like these: numbers order generators, no more.
        trained_on: hashes (:attr:`ImageSet.hashes`) of the images it learned from, so that it never judges by them.
    """

    name: str
    fingerprint: str
    role: Role
    dim: int
    ranking_only: bool = True
    trained_on: frozenset[str] = frozenset()

    def features(self, images: ImageSet | np.ndarray, batch_size: int = 256) -> np.ndarray:
        """(N, D) float32 features of `images`: an ImageSet, or (N, H, W, C) uint8.

        Raises:
            DataError: the images are not uint8, or do not have the shape the extractor was made for.
        """
        x = images.images if isinstance(images, ImageSet) else images
        if x.ndim != 4 or x.dtype != np.uint8:
            raise DataError(f"extractor {self.name} takes (N, H, W, C) uint8 images, not {x.shape} {x.dtype}")
        self._check(x.shape[1:])
        parts = [self._batch(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
        return np.concatenate([np.zeros((0, self.dim), np.float32), *parts]).astype(np.float32, copy=False)

    def predict(self, features: np.ndarray) -> np.ndarray | None:
        """(N,) int64 class of each feature row, or None where the extractor does not classify."""
        return None

    @abstractmethod
    def _check(self, shape: tuple[int, ...]) -> None:
        """Raises DataError where images of `shape` (H, W, C) cannot be read."""

    @abstractmethod
    def _batch(self, x: np.ndarray) -> np.ndarray: ...


class RawPixels(Extractor):
    """The pixels themselves, in [-1, 1], as (H * W * C) features.

    Args:
        shape: (H, W, C) of the images.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = tuple(shape)
        self.name, self.role, self.dim = "raw-pixels", "judge", int(np.prod(self.shape))
        self.fingerprint = _hash(f"raw-pixels {self.shape}", [])

    def _check(self, shape: tuple[int, ...]) -> None:
        _same_shape(self.name, self.shape, shape)

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
    """

    def __init__(self, channels: int, seed: int = 0, dim: int = 32) -> None:
        self.channels = channels
        self.name, self.role, self.dim = "random-conv", "judge", dim
        generator = torch_rng(seed, "random-conv", channels, dim)
        widths = [channels, 16, 32, dim]
        self.weights = []
        for c, o in itertools.pairwise(widths):
            w = torch.randn((o, c, 3, 3), generator=generator)
            # zero sum over space and input: the features tell structure, not brightness, from the second layer on
            w = w - w.mean(dim=(1, 2, 3), keepdim=True) if c != channels else w
            self.weights.append(w * (2 / (9 * c)) ** 0.5)
        self.fingerprint = _hash(f"random-conv {channels} {dim}", self.weights)

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape[-1] != self.channels:
            raise DataError(
                f"extractor {self.name} was made for {self.channels} channels, the images have {shape[-1]}",
                f"make RandomConv({shape[-1]})",
            )

    @torch.no_grad()
    def _batch(self, x: np.ndarray) -> np.ndarray:
        h = to_unit(torch.from_numpy(np.ascontiguousarray(x)))
        for layer, weight in enumerate(self.weights):
            h = functional.relu(functional.conv2d(h, weight, stride=1 if layer == 0 else 2, padding=1))
        return h.mean(dim=(2, 3)).numpy()


class ClassifierFeatures(Extractor):
    """The last features of a classifier, and its decisions.

    Args:
        network: in evaluation mode already or not; it is switched to it.
        name: for ``FD[name]``.
        role: "judge" only if it is used for nothing else.
        fingerprint: of the weights; computed where not given.
        shape: (H, W, C) that it was trained for, or None where any will do.
        trained_on: hashes of the images it was trained on.
    """

    ranking_only = False

    def __init__(
        self,
        network: nn.Module,
        name: str,
        role: Role,
        fingerprint: str | None = None,
        *,
        shape: tuple[int, int, int] | None = None,
        trained_on: frozenset[str] = frozenset(),
        device: str | torch.device = "cpu",
    ) -> None:
        if role not in ("judge", "working"):
            raise ConfigError(f"unknown extractor role {role!r}", 'it is "judge" or "working"')
        self.network = network.eval().to(device)
        self._net = cast(FeatureNetwork, self.network)
        self.name, self.role, self.dim, self.shape = name, role, self._net.feature_dim, shape
        self.device = torch.device(device)
        self.trained_on = trained_on
        self.fingerprint = fingerprint or _hash(f"classifier {shape}", list(network.state_dict().values()))

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.shape is not None:
            _same_shape(self.name, self.shape, shape)

    @torch.no_grad()
    def _batch(self, x: np.ndarray) -> np.ndarray:
        self.network.eval()
        h = to_unit(torch.from_numpy(np.ascontiguousarray(x)).to(self.device))
        return self._net.features(h).float().cpu().numpy()

    @torch.no_grad()
    def predict(self, features: np.ndarray) -> np.ndarray:
        z = self._net.head(torch.from_numpy(features).to(self.device))
        return z.argmax(dim=1).cpu().numpy().astype(np.int64)


def to_unit(x: Tensor) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [-1, 1]."""
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1


def _same_shape(name: str, made_for: tuple[int, ...], shape: tuple[int, ...]) -> None:
    if tuple(shape) != tuple(made_for):
        raise DataError(f"extractor {name} was made for images {tuple(made_for)} (H, W, C), not {tuple(shape)}")


def _hash(kind: str, weights: list[Tensor]) -> str:
    h = hashlib.sha256(kind.encode())
    for w in weights:
        h.update(str(tuple(w.shape)).encode())
        h.update(w.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()
