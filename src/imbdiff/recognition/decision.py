"""From the probabilities of a network, or of an ensemble, to a decision: the strength of the prior, and calibration.

A network trained on a long tail keeps some of its prior, a re-balanced one may have lost too much of it. How much is
right is chosen on validation images, in the same way for every arm of a comparison: without it, re-balancing is
mistaken for a gain. What decides is

    q_k proportional to (p_k / pi_k^tau)^(1 / T)

p the probabilities, pi the classes' shares of the real training images, tau the *adjustment* (Menon et al. 2021, Eq. 9,
post-hoc logit adjustment) and T the temperature (Guo et al. 2017), which changes confidences and no decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import named
from imbdiff.recognition.networks import Classifier

A = TypeVar("A", np.ndarray, Tensor)
STRENGTHS = tuple(round(0.1 * i, 1) for i in range(-4, 21))
"""Adjustments to choose from."""
TEMPERATURES = tuple(float(t) for t in np.round(np.geomspace(0.25, 4, 17), 4))
EQUAL = 1e-9
"""Likelihoods that are nearer than this are equal: those of every adjustment where the prior is flat."""
FLOOR = 1e-12
"""Smaller probabilities count as this: float32 has them as 0 now and then."""


@dataclass(frozen=True)
class Decision:
    """How probabilities decide.

    Attributes:
        tau: strength of the adjustment.
        temperature: T > 0.
        chosen_by: a sentence.
    """

    tau: float = 0.0
    temperature: float = 1.0
    chosen_by: str = ""

    def logits(self, log_p: A, log_prior: A) -> A:
        """(N, C) logits of q, of (N, C) log p and (C,) log pi: arrays or tensors."""
        return (log_p - self.tau * log_prior) / self.temperature

    def probabilities(self, p: np.ndarray, log_prior: np.ndarray) -> np.ndarray:
        """(N, C) float64 probabilities q of (N, C) p; the largest of a row decides.

        Args:
            log_prior: (C,) log pi.
        """
        return _softmax(self.logits(_log(p), log_prior))


def _log(p: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.maximum(p.astype(np.float64), FLOOR)))


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def mean_probabilities(members: Sequence[np.ndarray]) -> np.ndarray:
    """(N, C) float32 mean of the probabilities of an ensemble's networks; of one, its own."""
    return np.stack(members).mean(axis=0, dtype=np.float64).astype(np.float32)


class Ensemble:
    """Networks that decide together: the mean of their probabilities, adjusted.

    Args:
        networks: in eval mode, on one device.
        decision: how the mean decides.
        log_prior: (C,) log pi.
    """

    def __init__(self, networks: Sequence[Classifier], decision: Decision, log_prior: np.ndarray) -> None:
        self.networks, self.decision, self.log_prior = networks, decision, log_prior

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C) float32 probabilities of (B, ch, H, W) images in [-1, 1]; without gradients."""
        with torch.no_grad():
            p = torch.stack([network(x).float().softmax(dim=1) for network in self.networks]).mean(0)
            prior = torch.from_numpy(self.log_prior).to(p)
            return self.decision.logits(p.clamp_min(FLOOR).log(), prior).softmax(dim=1)


def log_prior_of(images: ImageSet) -> np.ndarray:
    """(C,) float64 log of the classes' shares of `images`, each of which has some."""
    counts = np.bincount(images.labels, minlength=len(images.class_names)).astype(np.float64)
    return np.asarray(np.log(counts / counts.sum()))


def choose_decision(
    p: np.ndarray | None, val: ImageSet | None, log_prior: np.ndarray, claimable: Sequence[bool]
) -> Decision:
    """The adjustment and the temperature of the highest class-balanced likelihood of validation images.

    Likelihood and not accuracy: a hundred validation images have a dozen of a rare class, and accuracies of so few tie
    and jump.

    Where a class that claims are made of has no validation image, nothing is chosen: tau = 0 and T = 1. The choice
    would be made without the very classes that matter.

    Args:
        p: (N, C) probabilities of the validation images.
        val: these images.
        log_prior: (C,) of the training images.
        claimable: (C,) classes that claims are made of.
    """
    reason = why_not(val, claimable) or ("the training failed" if p is None else "")
    if reason or p is None or val is None:
        return Decision(chosen_by=f"not adjusted: {reason}")
    # images of classes that no claim is made of decide nothing
    known = np.asarray(claimable, dtype=bool)
    mine = known[val.labels]
    log_p, labels = _log(p[mine]), val.labels[mine]
    weights = (1 / np.maximum(np.bincount(labels, minlength=len(known)), 1))[labels]

    def likelihood(decision: Decision) -> float:
        q = _softmax(decision.logits(log_p, log_prior))
        return float((weights * np.log(np.maximum(q[np.arange(len(q)), labels], FLOOR))).sum())

    # the first of equals: the nearest to no adjustment, and to no change of confidences
    grid = [
        Decision(tau, temperature)
        for tau in sorted(STRENGTHS, key=lambda tau: (abs(tau), tau))
        for temperature in sorted(TEMPERATURES, key=lambda t: (abs(np.log(t)), t))
    ]
    found = [likelihood(decision) for decision in grid]
    best = next(decision for decision, value in zip(grid, found, strict=True) if value >= max(found) - EQUAL)
    return Decision(best.tau, best.temperature, f"chosen on {len(labels)} validation images")


def why_not(val: ImageSet | None, claimable: Sequence[bool]) -> str:
    """Why nothing can be chosen on validation images; empty where it can."""
    if val is None or not len(val):
        return "there are no validation images"
    if not any(claimable):
        return "no claim can be made of any class"
    missing = [val.class_names[k] for k in unvalidated(val, claimable)]
    return f"there are no validation images of {named(missing)}" if missing else ""


def unvalidated(val: ImageSet | None, claimable: Sequence[bool]) -> list[int]:
    """Classes that claims are made of and that no validation image has."""
    have = set() if val is None else set(val.labels.tolist())
    return [k for k, claimed in enumerate(claimable) if claimed and k not in have]
