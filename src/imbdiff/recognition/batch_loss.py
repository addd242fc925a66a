"""The loss of a batch: that of its rows, by recipe, with the weights of classes and of images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from imbdiff.recognition.losses import balanced_softmax, class_weights, cross_entropy, focal, ldam, ldam_margins
from imbdiff.recognition.losses import log_prior as log_of
from imbdiff.recognition.mixing import Mixed
from imbdiff.recognition.recipes import Recipe


class BatchLoss:
    """The loss that a recipe minimises.

    Args:
        recipe: says which.
        counts: (C,) images of each class, above 0; None where the recipe needs none.
        device: of the tensors.
    """

    def __init__(self, recipe: Recipe, counts: np.ndarray | None, device: torch.device) -> None:
        self.recipe = recipe
        self.class_weights = self.log_prior = self.margins = None
        if counts is None:
            return
        self.log_prior = log_of(counts / counts.sum(), device)
        if recipe.weighting != "none":
            found = class_weights(recipe.weighting, counts, recipe.beta)
            self.class_weights = torch.from_numpy(found).float().to(device)
        if recipe.loss == "ldam":
            self.margins = torch.from_numpy(ldam_margins(counts)).float().to(device)

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
        loss, scale = self._rows(logits, y, weights)
        if own is not None:
            loss = loss * own
        if mixed is not None:
            other, other_scale = self._rows(logits, y[mixed.partner], weights)
            if own is not None:
                other = other * own[mixed.partner]
            loss = mixed.weight * loss + (1 - mixed.weight) * other
            if scale is not None and other_scale is not None:
                scale = mixed.weight * scale + (1 - mixed.weight) * other_scale
        return loss.mean() if scale is None else loss.sum() / scale.sum()

    def _rows(self, logits: Tensor, y: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B,) loss per row, times the weight of its class; and these weights, None where there are none."""
        recipe = self.recipe
        if recipe.loss == "balanced-softmax":
            assert self.log_prior is not None
            found = balanced_softmax(logits, y, self.log_prior, recipe.tau)
        elif recipe.loss == "focal":
            found = focal(logits, y, recipe.gamma)
        elif recipe.loss == "ldam":
            assert self.margins is not None
            found = ldam(logits, y, self.margins)
        else:
            found = cross_entropy(logits, y)
        return (found, None) if weights is None else (found * weights[y], weights[y])
