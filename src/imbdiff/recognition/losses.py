"""Losses of classifiers for long tails, per row; mixing of images and labels in a batch; and the loss of a batch.

The loss of a mixed row is lambda L(z, y_a) + (1 - lambda) L(z, y_b), which for cross-entropy is that of the mixed label
and leaves every other loss as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imbdiff.recognition.recipes import Recipe
from imbdiff.runtime.errors import ConfigError

LDAM_MARGIN = 0.5
"""The largest margin of LDAM, that of the rarest class (Cao et al. 2019, their code)."""
LDAM_SCALE = 30.0
"""s of LDAM: what cosines are multiplied by (their code)."""


def balanced_softmax(logits: Tensor, labels: Tensor, log_prior: Tensor, tau: float = 1.0) -> Tensor:
    """(B,) cross-entropy of logits + tau log(prior), in training only.

    Equation: -log( pi_y e^{z_y} / sum_k pi_k e^{z_k} ) at tau = 1 (Ren et al. 2020, balanced meta-softmax; Menon et al.
    2021, logit adjustment). The logits themselves, without the prior, then decide as if all classes were equally
    frequent.

    Args:
        log_prior: (C,), or (B, C) where rows have priors of their own.
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


def class_weights(counts: np.ndarray, beta: float = 0.9999) -> np.ndarray:
    """(C,) float64 weights of the classes in the loss, proportional to (1 - beta) / (1 - beta^n_k), the inverse of the
    effective number of images (Cui et al. 2019, class-balanced loss); they sum to C.

    Args:
        counts: (C,) images of each class, above 0; need not be whole.
    """
    # 1 - beta^n without loss of digits where beta^n is close to 1
    weights = (1 - beta) / -np.expm1(np.asarray(counts, dtype=np.float64) * np.log(beta))
    return weights * (len(counts) / weights.sum())


def distillation(logits: Tensor, soft: Tensor) -> Tensor:
    """(B,) cross-entropy with soft labels, -sum_k q_k log p_k (Hinton et al. 2015, arXiv 1503.02531, at temperature 1).

    Args:
        logits: (B, C).
        soft: (B, C) probabilities q that a teacher gives the same images, changed alike (Beyer et al. 2022, arXiv
            2106.05237).
    """
    return functional.cross_entropy(logits, soft, reduction="none")


# -- mixing

REMIX_KAPPA = 3.0
REMIX_TAU = 0.5
"""Constants of Remix (Chou et al. 2020, section 4.3)."""
CUTMIX_PROBABILITY = 0.5
"""Share of the batches that CutMix changes, as its authors' code does on CIFAR."""


@dataclass(frozen=True, eq=False)
class Mixed:
    """A mixed batch.

    Attributes:
        x: (B, C, H, W).
        partner: (B,) int64 row that each was mixed with.
        weight: (B,) float32 lambda of the row's own label; 1 - lambda is the partner's.
    """

    x: Tensor
    partner: Tensor
    weight: Tensor


def mix(kind: str, x: Tensor, labels: Tensor, counts: Tensor | None, generator: torch.Generator) -> Mixed | None:
    """Mixes the rows of a batch with a permutation of them; None where this batch stays as it is.

    One lambda ~ U(0, 1) (Beta(1, 1)) per batch, as the authors' codes draw it.

    * mixup (Zhang et al. 2018): x = lambda x_a + (1 - lambda) x_b, labels alike.
    * cutmix (Yun et al. 2019): a box of area 1 - lambda, its centre uniform, comes from x_b; lambda is then the share
      of the image that is left. In half of the batches.
    * remix (Chou et al. 2020, Eq. 6-7): images as mixup; with n_a / n_b >= kappa and lambda < tau the label is all
      y_b's, with n_a / n_b <= 1 / kappa and 1 - lambda < tau all y_a's: the rarer class.

    Args:
        kind: "mixup", "cutmix" or "remix".
        x: (B, C, H, W) float.
        labels: (B,).
        counts: (C,) images of each class, for remix.
        generator: on the CPU.
    """
    draws = torch.rand(4, generator=generator).tolist()
    partner = torch.randperm(len(x), generator=generator).to(x.device)
    share = draws[0]
    if kind == "cutmix":
        if draws[1] >= CUTMIX_PROBABILITY:
            return None
        h, w = x.shape[2:]
        side = (1 - share) ** 0.5
        rows, columns = _span(int(h * side), int(draws[2] * h), h), _span(int(w * side), int(draws[3] * w), w)
        x = x.clone()
        x[:, :, rows, columns] = x[partner][:, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return Mixed(x, partner, torch.full((len(x),), 1 - area / (h * w), device=x.device))
    mixed = share * x + (1 - share) * x[partner]
    weight = torch.full((len(x),), share, device=x.device)
    if kind == "remix":
        assert counts is not None
        ratio = counts[labels] / counts[labels[partner]]
        if share < REMIX_TAU:
            weight = torch.where(ratio >= REMIX_KAPPA, torch.zeros_like(weight), weight)
        if 1 - share < REMIX_TAU:
            weight = torch.where(ratio <= 1 / REMIX_KAPPA, torch.ones_like(weight), weight)
    return Mixed(mixed, partner, weight)


def _span(length: int, centre: int, size: int) -> slice:
    return slice(max(0, centre - length // 2), min(size, centre + length // 2))


# -- the loss of a batch


class BatchLoss:
    """The loss that a recipe minimises.

    Args:
        counts: (C,) images of each class, above 0; None where the recipe needs none.
        device: of the tensors.
        synthetic_rows: the last rows of a batch, in whose loss there is no prior (the prior per domain, see
            :class:`imbdiff.recognition.use.Use`).

    Raises:
        ConfigError: a prior per domain with a recipe that counts images otherwise than in balanced softmax.
    """

    def __init__(
        self, recipe: Recipe, counts: np.ndarray | None, device: torch.device, *, synthetic_rows: int = 0
    ) -> None:
        self.recipe, self.synthetic_rows = recipe, synthetic_rows
        if synthetic_rows and (recipe.mixing != "none" or (recipe.needs_prior and recipe.loss != "balanced-softmax")):
            raise ConfigError(
                f"{recipe.label} has no prior per domain",
                "use balanced-softmax or ce, or --classify.synthetic_prior train",
            )
        self.counts = self.class_weights = self.log_prior = self.margins = None
        if counts is None:
            return

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(values).float().to(device)

        self.counts, self.log_prior = tensor(counts), tensor(np.log(counts / counts.sum()))
        if recipe.weighted:
            self.class_weights = tensor(class_weights(counts, recipe.beta))
        if recipe.loss == "ldam":
            self.margins = tensor(ldam_margins(counts))

    def __call__(
        self, logits: Tensor, y: Tensor, own: Tensor | None, mixed: Mixed | None, *, weighted: bool = True
    ) -> Tensor:
        """The loss of the batch, a scalar.

        Equation: sum_i v_i w_i L_i / sum_i w_i with class weights w, as the authors' codes have it, and the mean of
        v_i L_i without; v are the weights of images. Of a mixed row, lambda of the row's own plus 1 - lambda of the
        partner's, in L, v and w alike.

        Args:
            logits: (B, C).
            y: (B,).
            own: (B,) weights of the images; None: 1.
            mixed: partners and lambdas, where rows were mixed.
            weighted: whether class weights hold already.
        """
        weights = self.class_weights if weighted else None
        loss, scale = self._rows(logits, y, own, weights)
        if mixed is not None:
            partner_own = None if own is None else own[mixed.partner]
            other, other_scale = self._rows(logits, y[mixed.partner], partner_own, weights)
            loss = mixed.weight * loss + (1 - mixed.weight) * other
            if scale is not None and other_scale is not None:
                scale = mixed.weight * scale + (1 - mixed.weight) * other_scale
        return loss.mean() if scale is None else loss.sum() / scale.sum()

    def _rows(
        self, logits: Tensor, y: Tensor, own: Tensor | None, weights: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B,) loss per row, times the weights of its class and image; and the former weights, where there are some."""
        recipe = self.recipe
        if recipe.loss == "balanced-softmax":
            assert self.log_prior is not None
            log_prior = self.log_prior.repeat(len(y), 1)
            log_prior[len(y) - self.synthetic_rows :] = 0
            found = balanced_softmax(logits, y, log_prior, recipe.tau)
        elif recipe.loss == "focal":
            found = focal(logits, y, recipe.gamma)
        elif recipe.loss == "ldam":
            assert self.margins is not None
            found = ldam(logits, y, self.margins)
        else:
            assert recipe.loss == "cross-entropy", recipe.loss
            found = functional.cross_entropy(logits, y, reduction="none")
        of_class = None if weights is None else weights[y]
        found = found if of_class is None else found * of_class
        return found if own is None else found * own, of_class
