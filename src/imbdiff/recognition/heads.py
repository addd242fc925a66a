"""Heads of classifiers: LDAM's of cosines, and what recipes do to a head when its body is trained (Kang et al. 2020).

What decides at the end is a plain head: scales and adjustments are folded into weights and bias.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imbdiff.recognition.losses import LDAM_SCALE
from imbdiff.recognition.recipes import Recipe
from imbdiff.runtime.errors import ConfigError

TAU = 1.0
"""Of tau-normalisation: all class weights get norm 1. Kang et al. choose it on validation data; here nothing is chosen,
because the rarest classes have none."""
NORM_FLOOR = 1e-6
"""Features and class weights shorter than this count as zero: their cosine is 0 and their gradient stays finite."""


class CosineHead(nn.Module):
    """Cosines between features and class weights: f_k(x) = w_k . x / (||w_k|| ||x||), without a bias.

    The normalised linear layer of LDAM (Cao et al. 2019, arXiv 1906.07413), weights drawn as in its code: uniform in
    (-1, 1), then brought to length 1. Its scale belongs to the loss while it is trained. Where features are all 0 so
    are the cosines.

    Args:
        dim: D.
        classes: C.

    Attributes:
        scale: what cosines are multiplied by.
    """

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.scale = 1.0
        with torch.no_grad():
            self.weight = nn.Parameter(_unit(torch.empty(classes, dim).uniform_(-1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, C) in [-1, 1] times the scale."""
        return functional.linear(_unit(x), _unit(self.weight)) * self.scale


def _unit(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / norm.where(norm > NORM_FLOOR, 1.0)


class ScaledHead(nn.Module):
    """A fixed linear head whose logits are multiplied by a learned scale per class (LWS, Kang et al. 2020, Eq. 6)."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.fixed = head.requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(head.out_features, device=head.weight.device))

    def forward(self, features: Tensor) -> Tensor:
        return self.fixed(features) * self.scale

    def folded(self) -> nn.Linear:
        """The same as a linear layer."""
        return changed(self.fixed, self.fixed.weight * self.scale[:, None], self.fixed.bias * self.scale)


def linear_head(head: nn.Module, what: str) -> nn.Linear:
    """`head`, if it is a linear layer with a bias.

    Raises:
        ConfigError: it is something else, which `what` cannot change.
    """
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise ConfigError(f"{what} needs a linear head with a bias", "use a network whose last layer is nn.Linear")
    return head


def changed(head: nn.Linear, weight: Tensor, bias: Tensor) -> nn.Linear:
    """A copy of `head` with other values; a new layer would draw from the global generator."""
    made = copy.deepcopy(head).requires_grad_(True)
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made


def tau_normalised(head: nn.Linear, tau: float = TAU) -> nn.Linear:
    """w_k / ||w_k||^tau, without bias (Kang et al. 2020, Eq. 5)."""
    norms = head.weight.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return changed(head, head.weight / norms**tau, torch.zeros_like(head.bias))


def adjusted(head: nn.Linear, prior: np.ndarray, tau: float) -> nn.Linear:
    """Logits less tau log(prior), which then decide as if classes were equally frequent (Menon et al. 2021, Eq. 9)."""
    return changed(head, head.weight, head.bias - tau * torch.from_numpy(np.log(prior)).to(head.bias))


def finished_head(head: nn.Module, recipe: Recipe, counts: np.ndarray | None) -> nn.Module:
    """The head that decides: a plain one, with what `recipe` does to it after training; `head` is left as it is.

    Args:
        counts: (C,) images of each class, for recipes that adjust.
    """
    if isinstance(head, ScaledHead):
        head = head.folded()
    if recipe.second == "tau-norm":
        head = tau_normalised(linear_head(head, recipe.label))
    if recipe.adjust:
        assert counts is not None
        head = adjusted(linear_head(head, recipe.label), counts / counts.sum(), recipe.tau)
    if recipe.loss == "ldam":  # trained with the scale, so that it is what probabilities are made of
        assert isinstance(head, CosineHead)
        head = copy.deepcopy(head)
        head.scale = LDAM_SCALE
    return head
