"""The last features of a classifier of this project, and its decisions."""

from __future__ import annotations

from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from imbdiff.metrics.extractors.base import (
    Extractor,
    Role,
    as_tensor,
    hash_weights,
    in_chunks,
    same_shape,
    softmax,
    to_unit,
)
from imbdiff.runtime.errors import ConfigError


class FeatureNetwork(Protocol):
    """What a classifier must offer to be an extractor: its last features and the layer on top of them."""

    feature_dim: int
    head: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float in [-1, 1] -> (B, feature_dim)."""
        ...


class ClassifierFeatures(Extractor):
    """The last features of a classifier, and its decisions.

    Args:
        network: in evaluation mode already or not; it is switched to it.
        name: for ``FD[name]``.
        role: "judge" only if it is used for nothing else.
        fingerprint: of the weights; computed where not given.
        shape: (H, W, C) that it was trained for, or None where any will do.
        trained_on: hashes of the images it was trained on.
        trained_on_note: what it was trained on, in words, where the hashes are not known.
        classes: names of its classes, where they may not be those of the data set at hand.
        device: where the network runs.
    """

    ranking_only = False
    preprocessing = "pixels / 127.5 - 1, at the size of the image"

    def __init__(
        self,
        network: nn.Module,
        name: str,
        role: Role,
        fingerprint: str | None = None,
        *,
        shape: tuple[int, int, int] | None = None,
        trained_on: frozenset[str] = frozenset(),
        trained_on_note: str = "",
        classes: tuple[str, ...] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if role not in ("judge", "working"):
            raise ConfigError(f"unknown extractor role {role!r}", 'it is "judge" or "working"')
        self.network = network.eval().to(device)
        self._net = cast(FeatureNetwork, self.network)
        self.name, self.role, self.dim, self.shape = name, role, self._net.feature_dim, shape
        self.device = torch.device(device)
        self.trained_on, self.trained_on_note, self.classes = trained_on, trained_on_note, classes
        self.fingerprint = fingerprint or hash_weights(
            f"classifier {shape} {self.preprocessing}", network.state_dict().values()
        )

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.shape is not None:
            same_shape(self.name, self.shape, shape)

    def _batch(self, x: np.ndarray) -> np.ndarray:
        self.network.eval()
        return self._net.features(self._prepare(as_tensor(x, self.device))).float().cpu().numpy()

    def _prepare(self, x: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> what the network takes."""
        return to_unit(x)

    def logits(self, features: np.ndarray) -> Tensor:
        """(N, C) float32 on the CPU."""
        self.network.eval()
        with torch.no_grad():
            width = self._net.head(torch.zeros((1, self.dim), device=self.device)).shape[1]
        return in_chunks(features, width, self._net.head, self.device)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N,) int64."""
        return self.logits(features).argmax(dim=1).numpy().astype(np.int64)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(N, C) float64: softmax of the logits."""
        return softmax(self.logits(features))
