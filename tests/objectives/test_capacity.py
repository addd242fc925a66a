"""CM's two terms: the formula, its bound, its weights, and the rows of the table that use it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.low_rank import LowRank, LowRankModel, merged
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES, Process
from imbdiff.methods import METHODS, get_method
from imbdiff.objectives.capacity import CapacityManipulation
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import check_objective
from imbdiff.training.parts import Part
from imbdiff.training.step import TrainingStep
from tests.contract.cases import SHAPE, STATS, make_batches, one_of_two
from tests.contract.oracles import Raw

from .against_formula import KINDS, answer, example, gradients, leaf

Result = tuple[dict[str, Tensor], dict[str, Tensor]]


def network(process: Process, spread: float = 0.5) -> LowRankModel:
    """A small network whose low-rank part is at work."""
    model = LowRankModel.of(build_model("mlp", process, SHAPE, STATS, seed=1), 2)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".up"):
                p.copy_(spread * torch.randn(p.shape, generator=generator))
    return model.train()


def build(name: str, process: Process) -> nn.Module:
    return network(process)


def step_of(objectives: list[Objective], kind: str, spread: float = 0.5) -> TrainingStep:
    return TrainingStep({"model": network(PROCESSES[kind], spread)}, objectives).double()


def formula(
    raw: Raw,
    model: Any,
    consistency: float = 1.0,
    diversity: float = 0.2,
    bound: float = 0.1,
    detach: bool = False,
    eps: bool = False,
) -> dict[str, Tensor]:
    """Means over the batch, row by row from the text."""
    classes = len(raw.counts)
    consistent, diverse, gaps = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for i in range(raw.n):
        if raw.dropped[i]:
            continue
        full, base = raw.call(model, i, raw.labels[i])[0], raw.call(model, i, raw.labels[i], base=True)[0]
        if eps:
            full, base = raw.eps(i, full), raw.eps(i, base)
        if detach:
            base = base.detach()
        gap = torch.zeros((), dtype=torch.float64)
        for a, b in zip(full.flatten(), base.flatten(), strict=True):
            gap = gap + (a - b) ** 2 / full.numel()
        n_y = raw.counts[raw.labels[i]]
        w_con = classes * n_y / sum(raw.counts)
        w_div = classes / (n_y * sum(1 / n for n in raw.counts))
        grown = gap if math.isinf(bound) else bound * gap / (bound + gap)
        consistent = consistent + consistency * w_con * gap / raw.n
        diverse = diverse - diversity * w_div * grown / raw.n
        gaps = gaps + gap.detach() / raw.n
    return {"consistent": consistent, "diverse": diverse, "gap": gaps}


def assert_follows(objective: CapacityManipulation, kind: str, **switches: Any) -> dict[str, float]:
    step = step_of([objective], kind)
    batches = make_batches(step, PROCESSES[kind])
    out = step(batches)
    out["loss"].backward()
    model = step.networks["model"]
    expected = formula(Raw(kind, batches["main"], STATS.counts), model, **switches)
    assert set(out) == {"loss", "capacity/consistent", "capacity/diverse", "capacity/gap"}
    for name, value in expected.items():
        assert float(out[f"capacity/{name}"]) == pytest.approx(float(value.detach()), rel=1e-6), name
    total = objective.weight * (expected["consistent"] + expected["diverse"])
    assert float(out["loss"].detach()) == pytest.approx(float(total.detach()), rel=1e-6)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(total, list(named.values()))
    largest = max(float(g.abs().max()) for g in grads)
    assert largest > 1e-6
    for (name, p), want in zip(named.items(), grads, strict=True):
        assert p.grad is not None, name
        scale = max(float(want.abs().max()), 1e-3 * largest)
        assert float((p.grad - want).abs().max()) <= 1e-6 * scale, name
    return {name: float(value.detach()) for name, value in expected.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_formula(kind: str) -> None:
    default = assert_follows(CapacityManipulation(), kind)
    free = assert_follows(CapacityManipulation(bound=math.inf), kind, bound=math.inf)
    assert default["diverse"] > free["diverse"] * 0.99, "the bound is not at work in this case"
    assert_follows(CapacityManipulation(detach_base=True, weight=0.7), kind, detach=True)
    assert_follows(
        CapacityManipulation(consistency=0.3, diversity=2.0, bound=0.02), kind,
        consistency=0.3, diversity=2.0, bound=0.02,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["ddpm-v", "flow"])
def test_eps_units(kind: str) -> None:
    eps = assert_follows(CapacityManipulation(space="eps"), kind, eps=True)
    assert assert_follows(CapacityManipulation(), kind)["gap"] > 1.05 * eps["gap"]


def test_conforms() -> None:
    check_objective(CapacityManipulation(), build=build)
    check_objective(CapacityManipulation(bound=math.inf, detach_base=True, space="eps"), build=build, ratio=False)


def test_equal_classes_and_equal_factors_leave_nothing_at_all() -> None:
    for n in (7, 49, 500):  # 1/49 added up 49 times is not 1
        stats = ClassStats(tuple("abcdefg"), (n,) * 7)
        batch = example(stats=stats)
        full, base = leaf(*batch.x0.shape), leaf(*batch.x0.shape, seed=1)
        objective = CapacityManipulation(consistency=0.3, diversity=0.3, bound=math.inf)
        terms = objective.terms(batch, [answer(batch, full), answer(batch, base)])
        loss = terms["consistent"].mean() + terms["diverse"].mean()
        assert float(loss.detach()) == 0
        assert float(terms["gap"].mean()) > 0.1
        assert not any(g.any() for g in gradients(loss, full, base))


def test_gradients_are_equal_and_opposite_or_into_the_full_weights_alone() -> None:
    batch = example("ddpm-v")
    full, base = leaf(*batch.x0.shape), leaf(*batch.x0.shape, seed=1)
    terms = CapacityManipulation().terms(batch, [answer(batch, full), answer(batch, base)])
    to_full, to_base = gradients((terms["consistent"] + terms["diverse"]).sum(), full, base)
    assert torch.equal(to_full, -to_base)
    assert torch.equal(to_full.flatten(1).abs().sum(1) > 0, ~batch.dropped)
    assert not terms["gap"].requires_grad
    asked = CapacityManipulation(detach_base=True).requests(batch)
    assert [(r.capacity, r.grad) for r in asked] == [("full", True), ("base", False)]
    assert [(r.capacity, r.grad) for r in CapacityManipulation().requests(batch)] == [("full", True), ("base", True)]


def pair(batch: Any, gap: Tensor | float) -> tuple[Tensor, Tensor]:
    """Predictions of eps whose rows are `gap` apart; half of the pixels are all of it."""
    base = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    apart = torch.zeros_like(base).flatten(1)
    apart[:, ::2] = torch.as_tensor(2 * gap, dtype=torch.float64).sqrt().reshape(-1, 1)
    return (base + apart.reshape(base.shape)).requires_grad_(), base.requires_grad_()


def test_the_bound_leaves_small_gaps_alone_and_holds_for_large_ones() -> None:
    batch = example(dropped=torch.zeros(16, dtype=torch.bool))
    counts = torch.tensor(STATS.counts, dtype=torch.float64)
    least = -0.2 * 4 / (counts * (1 / counts).sum()) * 0.1
    before = torch.zeros(16, dtype=torch.float64)
    for exponent in range(-8, 9):
        pairs = [answer(batch, x) for x in pair(batch, 10.0**exponent)]
        bounded = CapacityManipulation().terms(batch, pairs)["diverse"]
        free = CapacityManipulation(bound=math.inf).terms(batch, pairs)["diverse"]
        assert (bounded >= least[batch.labels] * (1 + 1e-12)).all()
        assert (bounded < before).all(), "a larger gap is still a lower loss"
        before = bounded
        if exponent <= -5:
            assert torch.allclose(bounded, free, rtol=2e-4, atol=0)
        if exponent == 8:
            assert torch.allclose(bounded, least[batch.labels], rtol=1e-6)
            assert (free < -1e5).all()


def test_a_rare_class_settles_and_a_frequent_one_closes_its_gap() -> None:
    """Of the classes of 40, 12, 4, 2 images two are to differ: by bound (sqrt(diversity w_div / w_con) - 1)."""
    batch = example(dropped=torch.zeros(16, dtype=torch.bool))
    ratio = [0.8 * (58 / n) / (n * sum(1 / m for m in STATS.counts)) for n in STATS.counts]
    assert [r > 1 for r in ratio] == [False, False, True, True]
    objective = CapacityManipulation(diversity=0.8)
    rest = torch.tensor([0.1 * (math.sqrt(r) - 1) if r > 1 else 0.0 for r in ratio], dtype=torch.float64)[batch.labels]

    def slope(gap: Tensor) -> Tensor:
        """(16,) of the loss along the difference."""
        full, base = pair(batch, gap)
        terms = objective.terms(batch, [answer(batch, full), answer(batch, base)])
        (grad,) = gradients((terms["consistent"] + terms["diverse"]).sum(), full)
        return (grad * (full - base).detach()).flatten(1).sum(1)

    rare = rest > 0
    assert 0 < int(rare.sum()) < 16
    assert slope(rest + 1e-30)[rare].abs().max() < 1e-12
    assert (slope(rest * 0.9 + 1e-30)[rare] < -1e-6).all()
    assert (slope(rest * 1.1 + 1e-9) > 0).all()


def test_rows_without_a_label_take_no_part() -> None:
    batch = example()
    assert 0 < int(batch.dropped.sum()) < 16
    terms = CapacityManipulation().terms(batch, [answer(batch, x) for x in pair(batch, 1.0)])
    for name, value in terms.items():
        assert torch.equal(value == 0, batch.dropped), name


def test_what_is_only_watched_is_no_part_of_the_loss() -> None:
    step = step_of([Denoising(), CapacityManipulation(weight=0.5)], "ddpm")
    out = step(make_batches(step, PROCESSES["ddpm"]))
    parts = out["denoising/mse"] + 0.5 * (out["capacity/consistent"] + out["capacity/diverse"])
    assert float(out["loss"].detach()) == pytest.approx(float(parts), rel=1e-12)
    assert float(out["capacity/gap"]) > 1e-3
    assert not out["capacity/gap"].requires_grad
    assert (step.usage.passes, step.usage.rows) == (1, 32)


def test_a_network_of_one_capacity_is_refused() -> None:
    step = TrainingStep(
        {"model": build_model("mlp", PROCESSES["ddpm"], SHAPE, STATS)}, [CapacityManipulation()]
    ).double()
    with pytest.raises(ConfigError, match="one capacity"):
        step(make_batches(step, PROCESSES["ddpm"]))


@pytest.mark.parametrize(
    "options", [{"consistency": -1.0}, {"diversity": math.inf}, {"bound": 0.0}, {"bound": math.nan}]
)
def test_constants_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        CapacityManipulation(**options)  # type: ignore[arg-type]


def test_the_rows_of_the_table_and_combinations() -> None:
    for name, base in (("cm", "denoising"), ("cm-oc", "transfer")):
        phase = METHODS[name].phases[0]
        first, cm = phase.objectives()
        assert (first.name, cm.name) == (base, "capacity")
        assert isinstance(cm, CapacityManipulation)
        assert (cm.weight, cm.consistency, cm.diversity, METHODS[name].omega) == (1.0, 1.0, 0.2, 1.5)
        assert (phase.make, phase.finish) == (LowRank(), merged)
    joined = get_method("ccua+cm").target
    assert [o.name for o in joined.objectives()] == ["denoising", "unconditional_contrast", "alignment", "capacity"]
    assert (joined.make, joined.finish) == (LowRank(), merged)
    assert joined.parts == (Part(law="tempered", factor=0.1),)
    step = step_of(joined.objectives(), "flow")
    out = step(make_batches(step, PROCESSES["flow"]))
    out["loss"].backward()
    assert all(p.grad is not None for p in step.parameters())
    assert (step.usage.passes, step.usage.rows) == (1, 48)
    assert [o.name for o in get_method("cm+cm-oc").target.objectives()] == ["capacity", "transfer"]


def run(kind: str, dist: Dist) -> Result:
    step = step_of([Denoising(), CapacityManipulation()], kind)
    module = step if dist.world == 1 else torch.nn.parallel.DistributedDataParallel(step)
    out = module(make_batches(step, PROCESSES[kind], dist=dist))
    out["loss"].backward()
    return {n: dist.total(v.detach()) / dist.world for n, v in out.items()}, {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in step.named_parameters()
    }


def worker(rank: int, folder: str) -> None:
    with one_of_two(rank, folder) as dist:
        torch.save({kind: run(kind, dist) for kind in ("ddpm", "flow")}, Path(folder) / f"rank{rank}.pt")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for kind in ("ddpm", "flow"):
        losses, grads = run(kind, Dist())
        for two_losses, two_grads in (results[kind] for results in found):
            for name, value in losses.items():
                assert float(two_losses[name]) == pytest.approx(float(value), rel=1e-9), name
            for name, grad in grads.items():
                assert float(grad.abs().max()) > 0, name
                assert torch.allclose(two_grads[name], grad, rtol=1e-9, atol=1e-12), name


def test_the_weights_are_per_class_and_have_mean_one() -> None:
    """Over classes both, over images w_div: a rare class's images make up for their number."""
    batch = example(labels=torch.arange(16) % 4, dropped=torch.zeros(16, dtype=torch.bool))
    pairs = [answer(batch, x) for x in pair(batch, 1.0)]
    terms = CapacityManipulation(diversity=1.0, bound=math.inf).terms(batch, pairs)
    terms = {name: value.detach() for name, value in terms.items()}
    assert float(terms["consistent"].mean()) == pytest.approx(1)
    assert float(terms["diverse"].mean()) == pytest.approx(-1)
    assert terms["consistent"][:4].tolist() == pytest.approx([4 * n / 58 for n in (40, 12, 4, 2)])
    shares = terms["diverse"][:4] * torch.tensor([40.0, 12, 4, 2], dtype=torch.float64)
    assert torch.allclose(shares, shares[0])
    other = replace(batch, stats=ClassStats(("a", "b", "c", "d"), (2, 4, 12, 40)))
    assert float(CapacityManipulation().terms(other, pairs)["consistent"][0].detach()) == pytest.approx(4 * 2 / 58)
