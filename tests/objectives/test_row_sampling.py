"""Losses estimated from some rows: probabilities, samples, and above all that nothing is biased."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imbdiff.diffusion.low_rank import LowRankModel
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.methods import METHODS
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.batch import NoisyBatch, noisy_batch
from imbdiff.objectives.capacity import CapacityManipulation
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.row_sampling import RowSampled, inclusion, systematic
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import SHAPE, STATS
from imbdiff.training.step import TrainingStep
from tests.contract.oracles import inclusion as inclusion_by_clipping

Make = Callable[[float], RowSampled]
SAMPLED: dict[str, Make] = {
    "class_balancing": lambda rows: ClassBalancing(rows=rows),
    "alignment": lambda rows: Alignment(rows=rows),
    "capacity": lambda rows: CapacityManipulation(rows=rows, bound=0.02),
}
each = pytest.mark.parametrize("name", SAMPLED)


weights = st.lists(st.floats(1e-3, 1.0, allow_subnormal=False), min_size=2, max_size=40)


@given(weights, st.data())
@settings(deadline=None, max_examples=50)
def test_probabilities_are_those_of_iterative_clipping(w: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(w)))
    pi = inclusion(torch.tensor([w]), k)[0]
    assert float(pi.sum()) == pytest.approx(k)
    expected = inclusion_by_clipping(torch.tensor(w).double().tolist(), k)
    assert pi.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@given(weights, st.data())
@settings(deadline=None, max_examples=20)
def test_every_row_is_sampled_as_often_as_it_should(w: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(w)))
    n, grid = len(w), 4000
    pi = inclusion(torch.tensor([w]), k).expand(grid, -1)
    u = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    rows = systematic(pi, k, u[:, None])
    assert rows.shape == (grid, k)
    assert all(len(set(row)) == k for row in rows[:: grid // 50].tolist())
    share = torch.zeros(n, dtype=torch.float64).index_add_(0, rows.flatten(), torch.ones(grid * k).double()) / grid
    # a row is in the sample for at most two intervals of u
    assert torch.allclose(share, pi[0], atol=4 / grid)


def test_rows_without_weight_are_sampled_only_to_fill_up() -> None:
    w = torch.zeros(3, 32)
    w[0, 4:24] = torch.linspace(0.1, 1, 20)
    w[1, [3, 17]] = 1.0
    pi = inclusion(w, 6)
    assert torch.equal(pi.sum(1).round(decimals=9), torch.full((3,), 6.0, dtype=torch.float64))
    assert float(pi[0][w[0] == 0].max()) < 1e-7
    assert torch.equal(pi[1, [3, 17]], torch.ones(2, dtype=torch.float64))
    assert torch.allclose(pi[2], torch.full((32,), 6 / 32, dtype=torch.float64))  # nobody has a weight
    for u in (0.0, 0.5, 1 - 2**-24):
        rows = systematic(pi, 6, torch.full((3, 1), u))
        assert {3, 17} <= set(rows[1].tolist())
        assert all(len(set(line)) == 6 and max(line) < 32 for line in rows.tolist())


def batch_of(objective: RowSampled, kind: str, n: int = 32, u: float | None = None, dropout: float = 0.3) -> NoisyBatch:
    generator = torch.Generator().manual_seed(3)
    batch = noisy_batch(
        torch.randn(n, *SHAPE, generator=generator), torch.arange(n) % STATS.num_classes,
        process=PROCESSES[kind], stats=STATS, seed=1, step=2, draws=objective.draws, label_dropout=dropout,
    )  # fmt: skip
    return batch if u is None else replace(batch, draws={**batch.draws, objective._draw: torch.full((n, 1), u)})


def step_of(objective: RowSampled, kind: str) -> TrainingStep:
    model = build_model("mlp", PROCESSES[kind], SHAPE, STATS)
    network = LowRankModel.of(model, 0) if objective.name == "capacity" else model
    for name, p in network.named_parameters():  # a low-rank part starts as nothing
        if float(p.detach().abs().sum()) == 0:
            torch.nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return TrainingStep({"model": network}, [objective])


def gradient(step: TrainingStep, batch: NoisyBatch) -> Tensor:
    step.zero_grad()
    step({"main": batch})["loss"].backward()
    return torch.cat([p.grad.flatten().double() for p in step.parameters() if p.grad is not None])


@pytest.mark.parametrize(("name", "kind"), [("class_balancing", "ddpm"), ("alignment", "flow"), ("capacity", "ddpm-v")])
def test_its_gradient_is_unbiased(name: str, kind: str) -> None:
    """The mean over many draws is the full gradient within its standard error, in direction after direction."""
    objective = SAMPLED[name](0.3)
    step, full = step_of(objective, kind), step_of(SAMPLED[name](1.0), kind)
    full.load_state_dict(step.state_dict())
    whole = gradient(full, batch_of(SAMPLED[name](1.0), kind))
    assert float(whole.norm()) > 1e-4
    draws = torch.rand(300, generator=torch.Generator().manual_seed(0)).tolist()
    found = torch.stack([gradient(step, batch_of(objective, kind, u=u)) for u in draws])
    directions = torch.randn(len(whole), 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    directions = torch.cat([directions / directions.norm(dim=0), (whole / whole.norm())[:, None]], 1)
    error = (found.mean(0) - whole) @ directions
    standard = (found @ directions).std(0) / len(draws) ** 0.5
    assert float(standard.max()) > 0, "every draw gives the same gradient: nothing is sampled"
    assert bool((error.abs() <= 4.5 * standard + 1e-12).all()), (error / standard).tolist()
    # and a factor that is a tenth off would be seen along the gradient itself
    assert float(standard[-1]) < 0.1 / 4.5 * float(whole.norm())


@each
def test_all_rows_are_the_loss_itself(name: str) -> None:
    objective, plain = SAMPLED[name](1.0), SAMPLED[name](0.4)
    assert set(plain.draws) - set(objective.draws) == {f"rows of {name}"}
    plain.sample_rows(1.0)
    assert plain.draws == objective.draws
    batch = batch_of(objective, "ddpm")
    assert all(r.rows is None for r in objective.requests(batch))
    # with all rows certain the estimate is the loss as well
    almost = SAMPLED[name](0.999)
    one, two = (gradient(step_of(o, "ddpm"), batch_of(o, "ddpm")) for o in (objective, almost))
    assert torch.allclose(one, two, rtol=1e-5, atol=1e-8)


@each
def test_rows_that_are_evaluated(name: str) -> None:
    """With the denoising loss: B rows, and 0.4 B more, in one pass; the shape is the same whatever was dropped."""
    objective = SAMPLED[name](0.4)
    network = step_of(objective, "ddpm").networks["model"]
    step = TrainingStep({"model": network}, [Denoising(), objective])
    for dropout in (0.0, 0.3, 1.1):
        step({"main": batch_of(objective, "ddpm", dropout=dropout)})
        assert (step.usage.passes, step.usage.rows) == (1, 32 + 13)


def test_what_compares_rows_refuses_with_its_reason() -> None:
    for method in METHODS.values():
        for objective in (o for phase in method.phases for o in phase.objectives()):
            if objective.all_rows is not None:
                with pytest.raises(ConfigError, match=f"{objective.name} cannot be estimated") as refused:
                    objective.sample_rows(0.5)
                assert objective.all_rows in str(refused.value)
    named = {o.name: o for m in METHODS.values() for p in m.phases for o in p.objectives()}
    assert {n for n, o in named.items() if o.all_rows is None} == {"class_balancing", "alignment", "capacity"}


def test_losses_that_keep_all_rows_are_named() -> None:
    from imbdiff.config import override
    from imbdiff.pipeline.training import check_branches
    from imbdiff.presets import preset

    def of(method: str, share: float) -> dict[str, str]:
        return check_branches(override(preset("tiny"), {"method": method, "train.branch_rows": share}))

    assert of("ccua", 1.0) == {}
    assert of("cbdm", 0.4) == {}
    assert list(of("ccua", 0.4)) == ["unconditional_contrast"]
    with pytest.raises(ConfigError, match=r"no loss of t2h can be estimated.*transfer.*other losses compare"):
        of("t2h", 0.4)
