"""The contrasts of features (CCUA, CORAL, dispersive): cases that can be worked out, digits, memory, and the
projection. Their formulas are in `tests.contract.oracles`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.dispersive import Dispersive
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.supervised_contrast import SupervisedContrast
from imbdiff.objectives.unconditional_contrast import UnconditionalContrast
from imbdiff.testing import example_batch
from imbdiff.training.step import TrainingStep
from tests.contract.cases import LABELS, STATS, N

from .answers import Largest, answer, example, gradients, leaf


def repel(h: Tensor) -> Tensor:
    batch = example()
    return UnconditionalContrast(time="none").terms(batch, [answer(batch, mid=h)])["repel"]


def spread(z: Tensor, **options: Any) -> Tensor:
    batch = example()
    return Dispersive(**options).terms(batch, [answer(batch, quarter=z)])["spread"]


def identity(width: int = 4, **options: Any) -> SupervisedContrast:
    """With a projection that changes nothing."""
    objective = SupervisedContrast(width=width, dim=width, **options)
    assert objective.head is not None
    with torch.no_grad():
        objective.head.weight.copy_(torch.eye(width))
        objective.head.bias.zero_()
    return objective.double()


def term(objective: SupervisedContrast, batch: NoisyBatch, h: Tensor) -> Tensor:
    return objective.terms(batch, [answer(batch, mid=h)])["supcon"]


# -- unconditional


def test_it_is_infonce_whose_positive_is_its_anchor() -> None:
    """Value and gradient of -log(e^(1/tau) / (e^(1/tau) + sum)), by PyTorch's cross-entropy over [positive, others]."""
    h, again = leaf(16, 6), leaf(16, 6)
    z, tau = F.normalize(again, dim=1), 0.1
    logits = torch.cat([(z * z.detach()).sum(1, keepdim=True), z @ z.T], 1) / tau
    logits[:, 1:].fill_diagonal_(-math.inf)
    nce = F.cross_entropy(logits, torch.zeros(16, dtype=torch.long), reduction="none")
    assert torch.allclose(repel(h), nce, rtol=1e-9)
    (to_h,), (to_again,) = gradients(repel(h).sum(), h), gradients(nce.sum(), again)
    assert torch.allclose(to_h, to_again, rtol=1e-7, atol=1e-12)


# -- dispersive


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_all_the_same_is_zero_and_has_no_gradient(distance: str) -> None:
    z = torch.ones(16, 6, dtype=torch.float64).requires_grad_()
    assert spread(z, distance=distance).item() == pytest.approx(0, abs=1e-12)
    assert gradients(spread(z, distance=distance), z)[0].abs().max() < 1e-12


def test_far_apart_is_minus_log_n_and_stays_finite() -> None:
    """Also in float32 and where every exp(-D) but the diagonal's underflows."""
    z = (1e4 * torch.randn(16, 32, generator=torch.Generator().manual_seed(0))).requires_grad_()
    value = spread(z)
    assert value.item() == pytest.approx(-math.log(16), rel=1e-6)
    assert gradients(value, z)[0].isfinite().all()


def test_features_far_from_zero_and_nearly_equal_rows_keep_their_digits() -> None:
    """|| z ||^2 is 10,000 times the distances: products without a common centre would lose them in float32. Under
    autocast, products in bfloat16 would set nearly equal rows apart."""
    z = torch.randn(8, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.cat([z, z + 0.001])
    assert spread((100 + z).float()).item() == pytest.approx(spread(100 + z).item(), rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        found = spread((10 * z).float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(spread(10 * z).item(), rel=1e-4)


# -- supervised


def test_known_values_of_the_supervised_contrast() -> None:
    """Rows all alike: log(N - 1). Each class at a corner of its own: log(n_y - 1 + (N - n_y) e^(-1 / tau))."""
    objective = identity()
    batch = example("ddpm", objective)
    w = ((1 - batch.noise_level.double()) / 0.3).exp()
    same = term(objective, batch, torch.ones(N, 4, dtype=torch.float64))
    assert torch.allclose(same, w * math.log(N - 1), rtol=1e-6)
    n = torch.bincount(LABELS)[LABELS].double()
    apart = term(objective, batch, 7 * torch.eye(4, dtype=torch.float64)[LABELS])
    assert torch.allclose(apart, w * torch.log(n - 1 + (N - n) * math.exp(-10)), rtol=1e-6)


def test_a_row_alone_of_its_class_gives_nothing_and_is_still_kept_away_from() -> None:
    """Released, the mean is over rows that have a partner, and apart from that of the weights in time."""
    plain, released = identity(), identity(released=True)
    batch = example("ddpm", plain)
    labels = torch.where(LABELS == 3, 2, LABELS)
    labels[5] = 3
    batch = replace(batch, labels=labels)
    h = leaf(N, 4, seed=1)
    rows = term(plain, batch, h)
    assert float(rows[5].detach()) == 0
    assert float(gradients(rows.sum(), h)[0][5].norm()) > 1e-3
    w = ((1 - batch.noise_level.double()) / 0.3).exp()
    expected = float((w.mean() * (rows / w).sum() / (N - 1)).detach())
    assert float(term(released, batch, h).detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("backbone", "shape", "tap", "width"),
    [("mlp", (1, 2, 3), "mid", 128), ("unet-8", (3, 8, 8), "mid", 64), ("dit-tiny", (4, 8, 8), "block1", 128)],
)
def test_the_projection_is_built_for_the_network(
    backbone: str, shape: tuple[int, int, int], tap: str, width: int
) -> None:
    process = PROCESSES["ddpm"]
    model = build_model(backbone, process, shape, STATS, seed=1).train()
    state, heads = torch.random.get_rng_state(), []
    for _ in range(2):
        objective = SupervisedContrast(tap=tap)
        objective.prepare({"model": model})
        assert isinstance(objective.head, nn.Linear)
        heads.append(objective.head)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert (heads[0].in_features, heads[0].out_features) == (width, 128)
    assert torch.equal(heads[0].weight, heads[1].weight)
    largest = float(heads[0].weight.detach().abs().max())
    assert largest <= width**-0.5 < 1.1 * largest
    step = TrainingStep({"model": model}, [Denoising(), objective])
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    batch = replace(example_batch(objective, process, rows=6), x0=x, noise=x, x_t=x)
    step({"main": batch})["loss"].backward()
    assert heads[1].weight.grad is not None
    assert float(heads[1].weight.grad.norm()) > 0


def test_features_are_pooled_over_pixels_and_tokens() -> None:
    objective = identity()
    batch = example("ddpm", objective)
    h = leaf(N, 4, 3, 5).detach()
    expected = term(objective, batch, h.mean((2, 3)))
    assert torch.allclose(term(objective, batch, h), expected)
    assert torch.allclose(term(objective, batch, h.flatten(2).transpose(1, 2)), expected)


# -- all


@pytest.mark.parametrize("objective", [UnconditionalContrast(), Dispersive()], ids=lambda o: o.name)
def test_memory_is_rows_by_rows_and_not_by_features(objective: Any) -> None:
    batch, h = example(), torch.randn(16, 1, 32, 32, requires_grad=True)
    with Largest() as seen:
        (value,) = objective.terms(batch, [answer(batch, **{objective.tap: h})]).values()
        value.sum().backward()
    assert seen.numel == h.numel()  # 16 x 1024; all differences would be 16 x 16 x 1024


@pytest.mark.parametrize("objective", [UnconditionalContrast(), SupervisedContrast(width=64)], ids=lambda o: o.name)
def test_half_precision_around_it_does_not_reach_it(objective: Objective) -> None:
    """Under autocast a product in bfloat16 would round cosines near 1 to 1 or 0.996."""
    batch = example(dtype=torch.float32)
    h = 1 + 0.05 * torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = objective.float().terms(batch, [answer(batch, mid=h)]).values()
    assert found.dtype == torch.float32
    (exact,) = objective.double().terms(batch, [answer(batch, mid=h.double())]).values()
    assert torch.allclose(found.double(), exact.double(), rtol=1e-4)
