"""CORAL: what the contrast is worth in cases that can be worked out, its own projection, and the released variants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from imbdiff.diffusion.model import ModelSpec, from_spec
from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Answer
from imbdiff.objectives.supervised_contrast import SupervisedContrast
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import check_objective, example_batch
from imbdiff.training.step import TrainingStep

from ..contract.cases import KINDS, LABELS, STATS, N
from .peers import one_batch

each_kind = pytest.mark.parametrize("kind", KINDS)
variants = pytest.mark.parametrize(
    "options", [{}, {"drop": True}, {"released": True}, {"drop": True, "released": True}]
)
UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D",) * 2,
    "layers_per_block": 1,
}
DIT = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 12, "patch_size": 2, "norm_num_groups": 4}


def identity(width: int = 4, **options: object) -> SupervisedContrast:
    """With a projection that changes nothing."""
    objective = SupervisedContrast(width=width, dim=width, **options)  # type: ignore[arg-type]
    assert objective.head is not None
    with torch.no_grad():
        objective.head.weight.copy_(torch.eye(width))
        objective.head.bias.zero_()
    return objective.double()


def term(objective: SupervisedContrast, batch: NoisyBatch, h: Tensor) -> Tensor:
    return objective.terms(batch, [Answer(None, {objective.tap: h}, batch.condition, None)])["supcon"]


@variants
def test_conforms(options: dict[str, bool]) -> None:
    check_objective(SupervisedContrast(width=128, **options))  # type: ignore[arg-type]


@each_kind
def test_known_values(kind: str) -> None:
    """Rows all alike: log(N - 1). Each class at a corner of its own: log(n_y - 1 + (N - n_y) e^(-1 / tau))."""
    objective = identity()
    batch = one_batch(objective, kind)
    w = ((1 - batch.noise_level.double()) / 0.3).exp()
    same = term(objective, batch, torch.ones(N, 4, dtype=torch.float64))
    assert torch.allclose(same, w * math.log(N - 1), rtol=1e-6)
    n = torch.bincount(LABELS)[LABELS].double()
    assert n.tolist().count(2) == 4
    apart = term(objective, batch, 7 * torch.eye(4, dtype=torch.float64)[LABELS])
    assert torch.allclose(apart, w * torch.log(n - 1 + (N - n) * math.exp(-10)), rtol=1e-6)


def test_the_weight_in_time_is_the_papers() -> None:
    """28 where clean, 1 where all is noise; 0.405 on average over uniform times with the released constants."""
    objective = identity()
    batch = one_batch(objective, "flow")
    level = torch.linspace(0, 1, N)
    got = term(objective, replace(batch, noise_level=level), torch.ones(N, 4, dtype=torch.float64)) / math.log(N - 1)
    got = got.detach()
    assert float(got[0]) == pytest.approx(math.exp(1 / 0.3))
    assert float(got[-1]) == pytest.approx(1.0)
    times = (torch.arange(N * 50) / (N * 50)).reshape(50, N)
    mean = torch.stack(
        [term(objective, replace(batch, noise_level=s), torch.ones(N, 4).double()).mean() for s in times]
    )
    assert objective.weight * float(mean.detach().mean()) / math.log(N - 1) == pytest.approx(0.405, abs=2e-3)


def test_released_averages_over_rows_with_a_partner_and_times_apart() -> None:
    plain, released = identity(), identity(released=True)
    batch = one_batch(plain, "ddpm")
    labels = LABELS.clone()
    labels[LABELS == 3] = torch.tensor([3, 2])  # one row alone of its class
    batch = replace(batch, labels=labels)
    h = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    w = ((1 - batch.noise_level.double()) / 0.3).exp()
    rows = term(plain, batch, h) / w
    assert (rows == 0).sum() == 1
    expected = float((w.mean() * rows.sum() / (N - 1)).detach())
    assert float(term(released, batch, h).detach()) == pytest.approx(expected, rel=1e-6)


def test_a_row_alone_of_its_class_gives_nothing_and_is_still_kept_away_from() -> None:
    objective = identity()
    batch = one_batch(objective, "ddpm")
    labels = LABELS.clone()
    labels[labels == 3] = 2
    labels[5] = 3
    h = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    rows = term(objective, replace(batch, labels=labels), h)
    assert float(rows[5].detach()) == 0
    (grad,) = torch.autograd.grad(rows.sum(), h)
    assert float(grad[5].norm()) > 1e-3


def test_dropped_rows_take_no_part_if_so_wished() -> None:
    for drop in (False, True):
        objective = identity(drop=drop)
        batch = one_batch(objective, "ddpm")
        assert 0 < int(batch.dropped.sum()) < N
        h = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (grad,) = torch.autograd.grad(term(objective, batch, h).sum(), h)
        assert bool((grad[batch.dropped] == 0).all()) == drop
        assert bool((grad[~batch.dropped] != 0).any(1).all())


def test_descent_brings_a_class_together_and_classes_apart() -> None:
    objective = identity()
    batch = one_batch(objective, "ddpm")
    h = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    same = (LABELS[:, None] == LABELS) & ~torch.eye(N, dtype=torch.bool)

    def cosines() -> tuple[float, float]:
        c = nn.functional.normalize(h.detach(), dim=1)
        return float((c @ c.T)[same].mean()), float((c @ c.T)[LABELS[:, None] != LABELS].mean())

    before = cosines()
    for _ in range(300):
        (grad,) = torch.autograd.grad(term(objective, batch, h).mean(), h)
        h = (h - 0.05 * grad).detach().requires_grad_()
    after = cosines()
    assert after[0] > before[0] + 0.2
    assert after[1] < before[1]


@pytest.mark.parametrize(
    ("backbone", "config", "shape", "tap", "width"),
    [
        ("mlp", {"width": 40}, (1, 2, 3), "mid", 40),
        ("unet", UNET, (3, 8, 8), "mid", 64),
        ("dit", DIT, (4, 8, 8), "block1", 24),
    ],
)
def test_the_projection_is_built_for_the_network(
    backbone: str, config: dict[str, object], shape: tuple[int, int, int], tap: str, width: int
) -> None:
    process = PROCESSES["ddpm"]
    model = from_spec(ModelSpec(backbone, config, shape, process.to_json(), STATS), seed=1)
    model.train()
    state, heads = torch.random.get_rng_state(), []
    for _ in range(2):
        objective = SupervisedContrast(tap=tap)
        objective.prepare({"model": model})
        heads.append(objective.head)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training
    assert isinstance(heads[0], nn.Linear)
    assert isinstance(heads[1], nn.Linear)
    assert (heads[0].in_features, heads[0].out_features) == (width, 128)
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert (
        float(heads[0].weight.detach().abs().max()) <= width**-0.5 < 1.1 * float(heads[0].weight.detach().abs().max())
    )
    step = TrainingStep({"model": model}, [Denoising(), objective])
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0))
    batch = replace(example_batch(objective, process, rows=6), x0=x, noise=x, x_t=x)
    step({"main": batch})["loss"].backward()
    assert heads[1].weight.grad is not None
    assert float(heads[1].weight.grad.norm()) > 0


def test_features_are_pooled_over_pixels_and_tokens() -> None:
    objective = identity()
    batch = one_batch(objective, "ddpm")
    h = torch.randn(N, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = term(objective, batch, h.mean((2, 3)))
    assert torch.allclose(term(objective, batch, h), expected)
    assert torch.allclose(term(objective, batch, h.flatten(2).transpose(1, 2)), expected)


def test_half_precision_around_it_does_not_reach_it() -> None:
    objective = SupervisedContrast(width=16)
    batch = one_batch(objective, "ddpm", dtype=torch.float32)
    objective.float()
    h = torch.randn(N, 16, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = term(objective, batch, h)
    assert inside.dtype == torch.float32
    exact = term(objective.double(), batch, h.double())
    assert torch.allclose(inside.double(), exact, rtol=1e-5)


def test_refuses_what_it_cannot_do() -> None:
    batch = one_batch(identity(), "ddpm")
    with pytest.raises(ConfigError, match="no projection"):
        term(SupervisedContrast(), batch, torch.ones(N, 4))
    with pytest.raises(ConfigError, match="width"):
        SupervisedContrast().prepare({"model": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match="tau"):
        SupervisedContrast(width=4, tau=0)
    with pytest.raises(ConfigError, match="dimensions"):
        SupervisedContrast(width=0)
