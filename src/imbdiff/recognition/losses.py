"""Losses of the classifier: per row, so that synthetic images can weigh less."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imbdiff.runtime.errors import ConfigError

LOSSES = ("cross-entropy", "balanced-softmax")
PRIORS = ("train", "effective")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) -log softmax(logits)[label] for logits (B, C)."""
    return functional.cross_entropy(logits, labels, reduction="none")


def balanced_softmax(logits: Tensor, labels: Tensor, log_prior: Tensor, tau: float = 1.0) -> Tensor:
    """(B,) cross-entropy of logits + tau log(prior), in training only.

    Equation: -log( pi_y e^{z_y} / sum_k pi_k e^{z_k} ) at tau = 1 (Ren et al. 2020, balanced meta-softmax; Menon et al.
    2021, logit adjustment). The logits themselves, without the prior, then decide as if all classes were equally
    frequent.
    """
    return functional.cross_entropy(logits + tau * log_prior, labels, reduction="none")


def class_prior(
    name: str, real_labels: np.ndarray, synthetic_labels: np.ndarray | None, weight: float, num_classes: int
) -> np.ndarray:
    """(C,) float64 prior that sums to 1.

    Args:
        name: "train": counts of the real training images; "effective": real + `weight` x synthetic, the mix that the
            loss in fact sees: flat, and so without effect, where classes are filled to one size at weight 1.

    Raises:
        ConfigError: an unknown name, or a class of prior 0.
    """
    if name not in PRIORS:
        raise ConfigError(f"unknown prior {name!r}", f"choose one of {', '.join(PRIORS)}")
    counts = np.bincount(real_labels, minlength=num_classes).astype(np.float64)
    if name == "effective" and synthetic_labels is not None:
        counts += weight * np.bincount(synthetic_labels, minlength=num_classes)
    if (counts <= 0).any():
        missing = np.flatnonzero(counts <= 0).tolist()
        raise ConfigError(f"classes {missing[:20]} have no training image, so their prior is 0")
    return counts / counts.sum()


def log_prior(prior: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(C,) float32 logarithm of `prior` on `device`."""
    return torch.from_numpy(np.log(prior)).float().to(device)
