"""Mixing against what its papers say of each pixel and each label."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from imbdiff.recognition.batch_loss import BatchLoss
from imbdiff.recognition.mixing import Mixed, mix
from imbdiff.recognition.recipes import RECIPES

B, C, H, W = 7, 2, 9, 14
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])
COUNTS = torch.tensor([100.0, 34.0, 10.0])


def _batch() -> Tensor:
    """Every value occurs once."""
    return torch.arange(B * C * H * W, dtype=torch.float32).reshape(B, C, H, W)


def _mix(kind: str, seed: int, labels: Tensor = LABELS, counts: Tensor = COUNTS) -> Mixed | None:
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


def test_cutmix_boxes_are_everywhere() -> None:
    seen = torch.zeros(H, W)
    for seed in range(300):
        found = _mix("cutmix", seed)
        if found is None:
            continue
        row = next(i for i, other in enumerate(found.partner.tolist()) if i != other)
        seen += found.x[row, 0] == _batch()[int(found.partner[row]), 0]
    assert (seen > 0).all()
    assert (seen[0].sum() - seen[-1].sum()).abs() < 0.5 * seen[0].sum()


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
            mine, theirs = float(COUNTS[LABELS[row]]), float(COUNTS[LABELS[other]])
            expected = share
            if mine / theirs >= kappa and share < tau:
                expected = 0.0
            elif mine / theirs <= 1 / kappa and 1 - share < tau:
                expected = 1.0
            assert float(found.weight[row]) == expected
            acted[expected if expected in acted else 0.5] += 1
    assert min(acted.values()) > 10


def test_remix_gives_mixed_head_and_tail_images_the_label_of_the_tail() -> None:
    """Two rows, one of each class: with a share below one half the head row is labelled as tail, and never the tail."""
    labels, counts = torch.tensor([0, 1]), torch.tensor([50.0, 2.0])
    below = above = 0
    for seed in range(60):
        found, plain = _mix("remix", seed, labels, counts), _mix("mixup", seed, labels, counts)
        assert found is not None
        assert plain is not None
        if found.partner.tolist() == [0, 1]:
            continue
        share = float(plain.weight[0])
        head, tail = found.weight.tolist()
        if share < 0.5:
            below += 1
            assert (head, tail) == (0.0, pytest.approx(share))
        else:
            above += 1
            assert (head, tail) == (pytest.approx(share), 1.0)
    assert min(below, above) > 5


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


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "remix"])
def test_equal_generators_give_equal_batches(kind: str) -> None:
    before = torch.random.get_rng_state()
    seeds = [seed for seed in range(10) if _mix(kind, seed) is not None]
    a, b, c = (_mix(kind, seed) for seed in (seeds[0], seeds[0], seeds[1]))
    assert a is not None
    assert b is not None
    assert c is not None
    assert torch.equal(a.x, b.x)
    assert torch.equal(a.partner, b.partner)
    assert torch.equal(a.weight, b.weight)
    assert not torch.equal(a.x, c.x)
    assert torch.equal(before, torch.random.get_rng_state())


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match="stir"):
        _mix("stir", 0)
