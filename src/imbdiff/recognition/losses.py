"""Losses of the classifier: per row, so that synthetic images can weigh less; and the class priors that they use."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imbdiff.runtime.errors import ConfigError

PRIORS = ("train", "effective")
WEIGHTINGS = ("none", "effective", "inverse")
LDAM_MARGIN = 0.5
"""The largest margin of LDAM, that of the rarest class (Cao et al. 2019, their code)."""
LDAM_SCALE = 30.0
"""s of LDAM: what cosines are multiplied by (their code)."""


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


def focal(logits: Tensor, labels: Tensor, gamma: float = 1.0) -> Tensor:
    """(B,) -(1 - p)^gamma log p, p the softmax probability of the label (Lin et al. 2017, over classes)."""
    log_p = -functional.cross_entropy(logits, labels, reduction="none")
    return -((1 - log_p.exp()).clamp(min=0) ** gamma) * log_p


def ldam(cosines: Tensor, labels: Tensor, margins: Tensor, scale: float = LDAM_SCALE) -> Tensor:
    """(B,) cross-entropy of s (z - margin of the label, at the label), label-distribution-aware margins.

    Equation: -log( e^{s (z_y - m_y)} / ( e^{s (z_y - m_y)} + sum_{k != y} e^{s z_k} ) ) (Cao et al. 2019), where z are
    cosines of features and class weights (the cosine head).
    """
    shifted = cosines - functional.one_hot(labels, cosines.shape[1]).to(cosines.dtype) * margins[labels, None]
    return functional.cross_entropy(scale * shifted, labels, reduction="none")


def ldam_margins(counts: np.ndarray, largest: float = LDAM_MARGIN) -> np.ndarray:
    """(C,) float64 margins proportional to n_k^(-1/4), scaled so that the rarest class has `largest`."""
    margins = np.asarray(counts, dtype=np.float64) ** -0.25
    return margins * (largest / margins.max())


def class_weights(weighting: str, counts: np.ndarray, beta: float = 0.9999) -> np.ndarray:
    """(C,) float64 weights of the classes in the loss; they sum to C.

    Args:
        weighting: "none": 1; "inverse": 1 / n_k; "effective": (1 - beta) / (1 - beta^n_k), the inverse of the
            effective number of images (Cui et al. 2019, class-balanced loss).
        counts: (C,) images of each class, above 0; need not be whole.

    Raises:
        ConfigError: an unknown weighting.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if weighting == "none":
        return np.ones(len(counts))
    if weighting == "inverse":
        weights = 1 / counts
    elif weighting == "effective":
        # 1 - beta^n without loss of digits where beta^n is close to 1
        weights = (1 - beta) / -np.expm1(counts * np.log(beta))
    else:
        raise ConfigError(f"unknown class weighting {weighting!r}", f"choose one of {', '.join(WEIGHTINGS)}")
    return weights * (len(counts) / weights.sum())


def class_counts(
    name: str, real_labels: np.ndarray, synthetic_labels: np.ndarray | None, weight: float, num_classes: int
) -> np.ndarray:
    """(C,) float64 images of each class, as losses for long tails count them.

    Args:
        name: "train": real training images; "effective": real + `weight` x synthetic, the mix that the loss in fact
            sees: flat, and so without effect, where classes are filled to one size at weight 1.

    Raises:
        ConfigError: an unknown name, or a class without images.
    """
    if name not in PRIORS:
        raise ConfigError(f"unknown prior {name!r}", f"choose one of {', '.join(PRIORS)}")
    counts = np.bincount(real_labels, minlength=num_classes).astype(np.float64)
    if name == "effective" and synthetic_labels is not None:
        counts += weight * np.bincount(synthetic_labels, minlength=num_classes)
    if (counts <= 0).any():
        missing = np.flatnonzero(counts <= 0).tolist()
        raise ConfigError(f"classes {missing[:20]} have no training image, so their prior is 0")
    return counts


def class_prior(
    name: str, real_labels: np.ndarray, synthetic_labels: np.ndarray | None, weight: float, num_classes: int
) -> np.ndarray:
    """(C,) float64 :func:`class_counts` as shares that sum to 1."""
    counts = class_counts(name, real_labels, synthetic_labels, weight, num_classes)
    return counts / counts.sum()


def log_prior(prior: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(C,) float32 logarithm of `prior` on `device`."""
    return torch.from_numpy(np.log(prior)).float().to(device)
