"""Every miniature under eps, v and flow: value and gradient against its oracle, on one process and on two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.objective import Answer

from . import oracles
from .cases import CASES, KINDS, STATS, N, Result, make_batches, make_step, oracle, run, step_of
from .miniatures import SampledBalancing

each_kind = pytest.mark.parametrize("kind", KINDS)
each_case = pytest.mark.parametrize("case", CASES)
_RUNS: dict[tuple[str, str], Result] = {}


def on_one(case: str, kind: str) -> Result:
    if (case, kind) not in _RUNS:
        _RUNS[case, kind] = run(case, kind)
    return _RUNS[case, kind]


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor to `tolerance` of its largest entry; tensors that are next to nothing beside the largest of all
    to a thousandth of that."""
    assert got.keys() == expected.keys()
    largest = max(float(v.abs().max()) for v in expected.values())
    assert largest > 1e-6, "nothing to compare"
    for name, value in expected.items():
        scale = max(float(value.abs().max()), 1e-3 * largest)
        assert float((got[name] - value).abs().max()) <= tolerance * scale, name


@each_kind
@each_case
def test_value_and_gradient_equal_the_formula(case: str, kind: str) -> None:
    result = on_one(case, kind)
    step = step_of(case, kind)
    losses, grads = oracle(step, make_batches(step, PROCESSES[kind]), kind)
    assert all(v.dtype == torch.float64 for v in [*result.losses.values(), *result.grads.values()])
    for name, value in losses.items():
        assert float(result.losses[name]) == pytest.approx(float(value), rel=1e-6), name
    assert_same(result.grads, grads, 1e-6)


@each_kind
@each_case
def test_two_processes_equal_one(case: str, kind: str, on_two: list[dict[Any, Any]]) -> None:
    one = on_one(case, kind)
    for rank in range(2):
        two = on_two[rank][case, kind]
        for name, value in one.losses.items():
            assert float(two["losses"][name]) == pytest.approx(float(value), rel=1e-9), name
        assert_same(two["grads"], one.grads, 1e-9)


@each_case
def test_one_wrapped_forward_and_stated_passes(case: str, on_two: list[dict[Any, Any]]) -> None:
    one, two = on_one(case, "ddpm"), on_two[1][case, "ddpm"]
    assert one.forwards == 1
    assert (two["forwards"], two["wrapped"]) == (1, 1)
    expected = CASES[case].calls
    if case == "chunked":  # 48 rows, the first 32 of which need a prediction
        assert one.calls["model"] == ((10, 10), (10, 10), (10, 10), (10, 2), (8, 0))
        return
    assert one.calls == expected
    halves = {name: tuple((rows // 2, predicted // 2) for rows, predicted in calls) for name, calls in expected.items()}
    assert two["calls"] == halves
    assert one.usage.passes == sum(len(calls) for calls in expected.values())
    assert one.usage.rows == sum(rows for calls in expected.values() for rows, _ in calls)
    assert one.usage.predicted_rows == sum(predicted for calls in expected.values() for _, predicted in calls)


def test_the_cases_are_not_trivial() -> None:
    """Some labels are dropped and some not; T2H moves targets, and refuses to; pairs differ; groups share t."""
    for kind in KINDS:
        step = step_of("everything", kind)
        batches = make_batches(step, PROCESSES[kind])
        raw = oracles.Raw(kind, batches["main"], STATS.counts)
        assert 0 < sum(raw.dropped) < N
        moved = oracles.transfers(raw)
        assert any(raw.labels[z] != raw.labels[i] for i, z in enumerate(moved))
        assert moved != oracles.transfers(raw, "full")
        pairing = sorted(range(N), key=lambda i: raw.draws["pairing"][i])
        assert any(raw.labels[pairing[i]] != raw.labels[i] for i in range(N))
        grouped = batches["grouped"]
        assert all(len(set(grouped.t[grouped.group == g].tolist())) == 1 for g in range(4))
        assert len(set(grouped.t.tolist())) == 4


@each_kind
def test_stop_gradients_route_each_term_to_its_own_branch(kind: str) -> None:
    process = PROCESSES[kind]
    objective = ClassBalancing()
    batch = make_batches(make_step([objective], process), process)["main"]
    h, other = (torch.randn(batch.x0.shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    answers = [Answer(h, {}, batch.condition, None), Answer(other, {}, batch.draws["comparison"], None)]
    terms = objective.terms(batch, answers)
    assert torch.autograd.grad(terms["pull"].sum(), other, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(terms["commit"].sum(), h, allow_unused=True, retain_graph=True)[0] is None
    # both gradients, by hand: d/dh of w mean((h - h')^2)
    raw = oracles.Raw(kind, batch, STATS.counts)
    (to_h,) = torch.autograd.grad(terms["pull"].sum(), h, retain_graph=True)
    (to_other,) = torch.autograd.grad(terms["commit"].sum(), other)
    for i in range(N):
        w = 0.0 if raw.dropped[i] else raw.level[i]
        expected = 2 * w * (h[i] - other[i]).detach() / h[i].numel()
        assert torch.allclose(to_h[i], expected, rtol=1e-6, atol=1e-14)
        assert torch.allclose(to_other[i], -0.25 * expected, rtol=1e-6, atol=1e-14)


def test_sampled_rows_are_unbiased_and_as_likely_as_said() -> None:
    """Over a fine grid of the one random number of a stratum, for weights of which one is certain to be taken."""
    process = PROCESSES["flow"]
    objective = SampledBalancing(k=3, stratum=8)
    batch = make_batches(make_step([objective], process), process)["main"]
    level = torch.tensor([0.9, 0.02, 0.03, 0.9, 0.05, 0.01, 0.2, 0.1] * 2)
    batch = replace(batch, noise_level=level, dropped=torch.zeros(N, dtype=torch.bool))
    pi = objective.inclusion(batch).flatten()
    assert torch.allclose(
        pi, torch.tensor(oracles.inclusion(level[:8].tolist(), 3) * 2, dtype=torch.float64), rtol=1e-4
    )
    assert (pi == 1).sum() == 4
    assert (pi <= 1).all()
    grid, estimates, seen = 2000, torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    for i in range(grid):
        draws = {**batch.draws, "systematic": torch.full((N, 1), (i + 0.5) / grid)}
        index = objective.rows(replace(batch, draws=draws)).index
        assert len(set(index.tolist())) == 6
        seen[index] += 1 / grid
        estimates[index] += (level[index] / pi[index]) / grid
    assert torch.allclose(seen, pi, atol=2 / grid)
    assert torch.allclose(estimates, level.double(), rtol=0.05)
