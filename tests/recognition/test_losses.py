"""Losses against loops written from the papers, in float64; mixing, pixel by pixel; and the loss of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from imbdiff.recognition.losses import (
    BatchLoss,
    Mixed,
    balanced_softmax,
    class_weights,
    focal,
    ldam,
    ldam_margins,
    mix,
)
from imbdiff.recognition.recipes import RECIPES

PRIOR = np.array([0.6, 0.25, 0.1, 0.05])
MARGINS = np.array([0.1, 0.2, 0.35, 0.5])


def _rows(n: int = 9, c: int = 4) -> tuple[Tensor, Tensor]:
    z = 2 * torch.randn(n, c, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return z, torch.arange(n) % c


def _plain(z: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(z, y, reduction="none")


def _normalised(e: list[float], k: int) -> float:
    return e[k] / sum(e)


FORMULAS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[list[float], int], float]]] = {
    "balanced-softmax": (
        lambda z, y: balanced_softmax(z, y, torch.from_numpy(np.log(PRIOR)), 0.7),
        lambda z, k: -math.log(_normalised([p**0.7 * math.exp(v) for p, v in zip(PRIOR, z, strict=True)], k)),
    ),
    "focal": (
        lambda z, y: focal(z, y, 1.5),
        lambda z, k: -((1 - (p := _normalised([math.exp(v) for v in z], k))) ** 1.5) * math.log(p),
    ),
    "ldam": (
        lambda z, y: ldam(torch.tanh(z), y, torch.from_numpy(MARGINS)),
        lambda z, k: (
            -math.log(_normalised([math.exp(30 * (math.tanh(v) - MARGINS[k] * (j == k))) for j, v in enumerate(z)], k))
        ),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_equal_their_formulas(name: str) -> None:
    found, of = FORMULAS[name]
    z, y = _rows()
    expected = [of(row, int(k)) for row, k in zip(z.tolist(), y.tolist(), strict=True)]
    np.testing.assert_allclose(found(z, y).numpy(), expected, rtol=1e-10)


def test_focal_weighs_easy_images_less_and_is_finite_at_certainty() -> None:
    easy, hard = torch.tensor([[4.0, 0.0]]).double(), torch.tensor([[0.1, 0.0]]).double()
    y = torch.tensor([0])
    share = [float(focal(z, y, 2.0) / _plain(z, y)) for z in (easy, hard)]
    assert share[0] < 0.001 < 0.2 < share[1]
    certain = torch.tensor([[200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    loss = focal(certain, torch.tensor([0, 0]))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(certain.grad).all()  # type: ignore[arg-type]


def test_margins_fall_with_the_fourth_root_of_the_count() -> None:
    # 16, 1 and 81 images: 1/2, 1 and 1/3
    np.testing.assert_allclose(ldam_margins(np.array([16, 1, 81])), [0.25, 0.5, 0.5 / 3], rtol=1e-14)
    found = ldam_margins(np.array([5000, 50]))
    assert found[1] == 0.5
    assert found[0] == pytest.approx(0.5 * (50 / 5000) ** 0.25)
    assert ldam_margins(np.array([16, 1]), largest=0.8).tolist() == pytest.approx([0.4, 0.8])


def test_class_weights_by_hand() -> None:
    # effective numbers at beta = 0.9: 1 and 1.9
    np.testing.assert_allclose(class_weights(np.array([1, 2]), 0.9), [3.8 / 2.9, 2 / 2.9], rtol=1e-12)
    found = class_weights(np.array([5000, 1077, 232.5, 50]))
    assert found.sum() == pytest.approx(4)
    assert (np.diff(found) > 0).all()


def test_effective_number_in_exact_arithmetic() -> None:
    beta, counts = Fraction(9999, 10000), [5000, 232, 1]
    numbers = [(1 - beta**n) / (1 - beta) for n in counts]
    total = sum(1 / e for e in numbers)
    expected = [float(3 / e / total) for e in numbers]
    np.testing.assert_allclose(class_weights(np.array(counts)), expected, rtol=1e-11)


# -- mixing

B, C, H, W = 7, 2, 9, 14
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])
IMAGES = torch.tensor([100.0, 34.0, 10.0])


def _batch() -> Tensor:
    """Every value occurs once."""
    return torch.arange(B * C * H * W, dtype=torch.float32).reshape(B, C, H, W)


def _mix(kind: str, seed: int, labels: Tensor = LABELS, counts: Tensor = IMAGES) -> Mixed | None:
    return mix(kind, _batch()[: len(labels)], labels, counts, torch.Generator().manual_seed(seed))


def test_mixup_of_pixels_and_its_loss_is_cross_entropy_with_mixed_labels() -> None:
    found = _mix("mixup", 4)
    assert found is not None
    share = float(found.weight[0])
    assert 0 < share < 1
    assert (found.weight == share).all()
    assert sorted(found.partner.tolist()) == list(range(B))
    x = _batch().double()
    for row, other in enumerate(found.partner.tolist()):
        torch.testing.assert_close(found.x[row].double(), share * x[row] + (1 - share) * x[other], rtol=1e-6, atol=1e-3)
    logits = torch.randn(B, 3, generator=torch.Generator().manual_seed(0))
    soft = torch.zeros(B, 3)
    for row, other in enumerate(found.partner.tolist()):
        soft[row, LABELS[row]] += share
        soft[row, LABELS[other]] += 1 - share
    loss = BatchLoss(RECIPES["mixup"], None, torch.device("cpu"))(logits, LABELS, None, found)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, soft))


def test_lambda_is_uniform() -> None:
    drawn = [float(_mix("mixup", seed).weight[0]) for seed in range(500)]  # type: ignore[union-attr]
    assert stats.kstest(drawn, "uniform").pvalue > 0.01


def test_cutmix_takes_a_box_of_the_partner_and_lambda_is_what_is_left() -> None:
    x = _batch()
    changed, areas, drawn = 0, [], []
    for seed in range(300):
        found = _mix("cutmix", seed)
        if found is None:
            continue
        changed += 1
        share = float(_mix("mixup", seed).weight[0])  # type: ignore[union-attr]  # the same draws
        boxes = []
        for row, other in enumerate(found.partner.tolist()):
            if row == other:
                assert torch.equal(found.x[row], x[row])
                continue
            inside = found.x[row] == x[other]
            assert torch.equal(found.x[row], torch.where(inside, x[other], x[row]))
            assert torch.equal(inside[0], inside[1])
            boxes.append(inside[0])
        assert all(torch.equal(box, boxes[0]) for box in boxes)
        box = boxes[0]
        across = box.any(0).nonzero().ravel().tolist()
        down = box.any(1).nonzero().ravel().tolist()
        assert int(box.sum()) == len(across) * len(down)
        assert across == list(range(across[0], across[-1] + 1)) if across else not down
        area = int(box.sum()) / (H * W)
        assert (found.weight == torch.tensor(1 - area)).all()
        # at most the box of the authors' code, less where it reaches over the border
        height, width = int(H * math.sqrt(1 - share)), int(W * math.sqrt(1 - share))
        assert len(down) <= height
        assert len(across) <= width
        areas.append(area)
        drawn.append(1 - share)
    assert torch.equal(x, _batch())  # the batch itself is as it was
    # half of the batches, and boxes that grow with 1 - lambda
    assert stats.binomtest(changed, 300, 0.5).pvalue > 0.001
    assert stats.spearmanr(areas, drawn).statistic > 0.7
    assert max(areas) > 0.5


def test_remix_labels_by_its_rule() -> None:
    kappa, tau = 3, 0.5
    acted = {0.0: 0, 1.0: 0, 0.5: 0}
    for seed in range(60):
        found, plain = _mix("remix", seed), _mix("mixup", seed)
        assert found is not None
        assert plain is not None
        assert torch.equal(found.x, plain.x)
        share = float(plain.weight[0])
        for row, other in enumerate(found.partner.tolist()):
            mine, theirs = float(IMAGES[LABELS[row]]), float(IMAGES[LABELS[other]])
            expected = share
            if mine / theirs >= kappa and share < tau:
                expected = 0.0
            elif mine / theirs <= 1 / kappa and 1 - share < tau:
                expected = 1.0
            assert float(found.weight[row]) == expected
            acted[expected if expected in acted else 0.5] += 1
    assert min(acted.values()) > 10


@pytest.mark.parametrize(("rare", "acts"), [(10.0, True), (10.2, False)])
def test_remix_acts_from_three_times_on(rare: float, acts: bool) -> None:
    labels, counts = torch.tensor([0, 1]), torch.tensor([30.0, rare])
    changed = [
        found.weight[0] != found.weight[1]
        for found in (_mix("remix", seed, labels, counts) for seed in range(40))
        if found is not None and found.partner.tolist() == [1, 0]
    ]
    assert len(changed) > 5
    assert all(changed) if acts else not any(changed)


# -- the loss of a batch

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
    w = torch.from_numpy(class_weights(COUNTS)).float()
    loss = BatchLoss(RECIPES["reweighting"], COUNTS, CPU)
    torch.testing.assert_close(loss(z, Y, None, None), functional.cross_entropy(z, Y, weight=w))
    # before their time they do not count
    torch.testing.assert_close(loss(z, Y, None, None, weighted=False), functional.cross_entropy(z, Y))
    assert not torch.isclose(loss(z, Y, None, None), functional.cross_entropy(z, Y), rtol=0.02)


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
    classes = class_weights(COUNTS) if row.weighted else np.ones(3)
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
