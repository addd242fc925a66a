"""What every classifier network is: a body that gives features, and a head on top of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from imbdiff.runtime.errors import ConfigError

NORM_FLOOR = 1e-6
"""Features and class weights shorter than this count as zero: their cosine is 0 and their gradient stays finite."""


class Classifier(nn.Module):
    """A body that gives features and a head, linear unless it is replaced.

    Args:
        body: (B, C, H, W) -> (B, feature_dim).
        feature_dim: D.
        num_classes: of the head.

    Attributes:
        first: what is done to the images before the body; nothing, or :class:`Normalised`.
        feature_dim: D.
        pretrained: whether it began from weights that others trained, which may have seen the test images.
    """

    def __init__(self, body: nn.Module, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.first: nn.Module = nn.Identity()
        self.body = body
        self.feature_dim = feature_dim
        self.head: nn.Module = nn.Linear(feature_dim, num_classes)
        self.pretrained = False

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, D)."""
        return self.body(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, num_classes) logits."""
        return self.head(self.features(x))

    @classmethod
    def of(cls, module: nn.Module, num_classes: int) -> Classifier:
        """A network made elsewhere as a classifier, with its weights.

        One that has `features`, `head` and `feature_dim` is taken as it is: the very object is returned. Of any other,
        the last ``nn.Linear`` with `num_classes` outputs becomes the head and the rest, which is changed in place, the
        body.

        Raises:
            ConfigError: it has neither.
        """
        if callable(getattr(module, "features", None)) and all(hasattr(module, n) for n in ("head", "feature_dim")):
            if not hasattr(module, "pretrained"):
                module.pretrained = False  # type: ignore[assignment]
            return module  # type: ignore[return-value]
        heads = [
            (k, m) for k, m in module.named_modules() if isinstance(m, nn.Linear) and m.out_features == num_classes
        ]
        if not heads:
            raise ConfigError(
                f"{type(module).__name__} has no linear layer of {num_classes} outputs that could be its head",
                "end it in nn.Linear(features, num_classes), or give it `features`, `head` and `feature_dim`",
            )
        name, head = heads[-1]
        body = without(module, name)
        # made without drawing: the head is there already
        found = cls.__new__(cls)
        nn.Module.__init__(found)
        found.first, found.body, found.head = nn.Identity(), body, head
        found.feature_dim, found.pretrained = head.in_features, False
        return found


def without(module: nn.Module, name: str) -> nn.Module:
    """`module` with its layer `name`, as ``named_modules`` calls it, replaced by the identity, in place."""
    if not name:
        return nn.Identity()
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Identity())
    return module


class CosineHead(nn.Module):
    """Cosines between features and class weights: f_k(x) = w_k . x / (||w_k|| ||x||), without a bias.

    The normalised linear layer of LDAM (Cao et al. 2019, arXiv 1906.07413), weights drawn as in its code: uniform in
    (-1, 1), then brought to length 1. Its scale (30) belongs to the loss. Where features are all 0 so are the cosines.

    Args:
        dim: D.
        classes: C.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.in_features, self.out_features = dim, classes
        with torch.no_grad():
            self.weight = nn.Parameter(_unit(torch.empty(classes, dim).uniform_(-1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, C) in [-1, 1]."""
        return functional.linear(_unit(x), _unit(self.weight))


def _unit(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norm.where(norm > NORM_FLOOR, 1.0)


class Normalised(nn.Module):
    """The literature's standardisation of each channel: ((x + 1) / 2 - mean) / std for x in [-1, 1].

    Args:
        mean, std: of pixels in [0, 1], one per channel or one for all.

    Raises:
        ConfigError: different lengths, or a std that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not mean or len(mean) != len(std) or not min(std) > 0:
            raise ConfigError(
                f"images cannot be standardised by mean {tuple(mean)} and std {tuple(std)}",
                "give as many means as standard deviations, above 0, of pixels in [0, 1]",
            )
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor([float(v) for v in values]).reshape(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> the same shape, standardised."""
        return ((x + 1) / 2 - self.mean) / self.std
