"""The loss of a batch: weights of classes, of images and of mixed rows, against torch and literal sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from imbdiff.recognition.batch_loss import BatchLoss
from imbdiff.recognition.losses import class_weights, ldam_margins
from imbdiff.recognition.mixing import Mixed
from imbdiff.recognition.recipes import RECIPES

CPU = torch.device("cpu")
COUNTS = np.array([90.0, 20.0, 4.0])
Y = torch.tensor([0, 0, 2, 1, 0, 2])
OWN = torch.tensor([1.0, 0.5, 2.0, 1.0, 0.25, 1.5])


def _logits(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(6, 3, generator=torch.Generator().manual_seed(1))


def _per_row(name: str, z: Tensor, y: Tensor) -> list[float]:
    """Literal losses in float64, without weights."""
    found = []
    margins = 0.5 * (COUNTS.min() / COUNTS) ** 0.25
    for row, k in zip(z.double().numpy(), y.tolist(), strict=True):
        if name == "balanced-softmax":
            row = row + np.log(COUNTS / COUNTS.sum())
        elif name == "ldam":
            row = 30 * (row - margins[k] * np.eye(3)[k])
        p = np.exp(row)[k] / np.exp(row).sum()
        found.append(-np.log(p) * ((1 - p) if name == "focal" else 1))
    return found


def test_class_weights_give_torchs_weighted_mean() -> None:
    z = _logits()
    w = torch.from_numpy(class_weights("effective", COUNTS)).float()
    loss = BatchLoss(RECIPES["reweighting"], COUNTS, CPU)
    torch.testing.assert_close(loss(z, Y, None, None), functional.cross_entropy(z, Y, weight=w))
    # before their time they do not count
    torch.testing.assert_close(loss(z, Y, None, None, weighted=False), functional.cross_entropy(z, Y))
    assert not torch.isclose(loss(z, Y, None, None), functional.cross_entropy(z, Y), rtol=0.02)


def test_ldam_drw_is_that_of_its_authors_code() -> None:
    """Cao et al.: index_float, margins of the label, cross_entropy(s * output, target, weight=...)."""
    cosines = torch.tanh(_logits())
    w = torch.from_numpy(class_weights("effective", COUNTS)).float()
    margins = torch.from_numpy(ldam_margins(COUNTS)).float()
    index = torch.zeros_like(cosines, dtype=torch.bool).scatter_(1, Y.view(-1, 1), True)
    output = torch.where(index, cosines - margins[Y].view(-1, 1), cosines)
    loss = BatchLoss(RECIPES["ldam-drw"], COUNTS, CPU)
    torch.testing.assert_close(loss(cosines, Y, None, None), functional.cross_entropy(30 * output, Y, weight=w))
    torch.testing.assert_close(loss(cosines, Y, None, None, weighted=False), functional.cross_entropy(30 * output, Y))


@pytest.mark.parametrize("recipe", ["ce", "focal", "cb-focal", "ldam", "ldam-drw", "balanced-softmax", "remix-drw"])
@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("mixing", [False, True])
def test_equals_literal_sums(recipe: str, images: bool, mixing: bool) -> None:
    row = RECIPES[recipe]
    z = _logits(0.5)
    own = OWN if images else None
    partner, weight = torch.tensor([3, 2, 1, 0, 5, 4]), torch.tensor([0.7, 0.7, 0.0, 1.0, 0.7, 0.2])
    mixed = Mixed(z[:, :, None, None], partner, weight) if mixing else None
    found = BatchLoss(row, COUNTS, CPU)(z, Y, own, mixed)
    classes = class_weights(row.weighting, COUNTS)
    v = OWN.double().numpy() if images else np.ones(6)
    mine, theirs = _per_row(row.loss, z, Y), _per_row(row.loss, z, Y[partner])
    top, bottom = 0.0, 0.0
    for i in range(6):
        j = int(partner[i])
        share = float(weight[i]) if mixing else 1.0
        a, b = classes[Y[i]], classes[Y[j]]
        top += share * v[i] * a * mine[i] + (1 - share) * v[j] * b * theirs[i]
        bottom += share * a + (1 - share) * b
    assert float(found) == pytest.approx(top / bottom, rel=1e-5)


def test_plain_cross_entropy_needs_no_counts_and_tau_reaches_the_loss() -> None:
    z = _logits()
    torch.testing.assert_close(BatchLoss(RECIPES["ce"], None, CPU)(z, Y, None, None), functional.cross_entropy(z, Y))
    half = BatchLoss(replace(RECIPES["balanced-softmax"], tau=0.5), COUNTS, CPU)(z, Y, None, None)
    shifted = z + 0.5 * torch.from_numpy(np.log(COUNTS / COUNTS.sum())).float()
    torch.testing.assert_close(half, functional.cross_entropy(shifted, Y))
    hard = BatchLoss(replace(RECIPES["focal"], gamma=2.0), None, CPU)(z, Y, None, None)
    p = z.softmax(1)[torch.arange(6), Y]
    torch.testing.assert_close(hard, (-((1 - p) ** 2) * p.log()).mean())
