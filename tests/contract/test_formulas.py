"""Every objective and its variants under eps, v and flow: value and gradient against its formula, on one process and on
two; alone and together."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imbdiff.diffusion.process import PROCESSES

from . import oracles
from .cases import CASES, KINDS, STATS, WEIGHTS, N, Result, make_batches, oracle, run, step_of, two_processes

each_kind = pytest.mark.parametrize("kind", KINDS)
each_case = pytest.mark.parametrize("case", CASES)


@cache
def on_one(case: str, kind: str) -> Result:
    return run(case, kind)


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """Results of every case on two processes, by rank: the only place where the tests of the core start processes."""
    folder: Path = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(two_processes, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor to `tolerance` of its largest entry; tensors far below the largest of all
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
    result, of = on_one(case, kind), CASES[case]
    step = step_of(case, kind)
    state: dict[str, Any] = {}
    if of.network == "encoder":  # prototypes move from step to step
        state = {"sums": [torch.zeros(128, dtype=torch.float64) for _ in STATS.counts]}
    for i in range(of.steps):
        losses, grads = oracle(step, of, make_batches(step, PROCESSES[kind], seed=46 + i, size=of.size), kind, **state)
    assert all(v.dtype == torch.float64 for v in [*result.losses.values(), *result.grads.values()])
    assert result.losses.keys() == losses.keys()
    for name, value in losses.items():
        assert float(result.losses[name]) == pytest.approx(float(value), rel=1e-6, abs=1e-12), name
    assert_same(result.grads, grads, 1e-6)
    for sums in result.buffers.values():
        assert torch.allclose(sums, torch.stack(state["sums"]), rtol=1e-9, atol=1e-15)


@each_kind
@each_case
def test_two_processes_equal_one(case: str, kind: str, on_two: list[dict[Any, Any]]) -> None:
    one = on_one(case, kind)
    for rank in range(2):
        two = on_two[rank][case, kind]
        for name, value in one.losses.items():
            assert float(two["losses"][name]) == pytest.approx(float(value), rel=1e-9), name
        assert_same(two["grads"], one.grads, 1e-9)
        for name, value in one.buffers.items():
            assert torch.allclose(two["buffers"][name], value, rtol=1e-9, atol=1e-18), name


@each_case
def test_one_wrapped_forward_and_stated_passes(case: str, on_two: list[dict[Any, Any]]) -> None:
    one, two, calls = on_one(case, "ddpm"), on_two[1][case, "ddpm"], CASES[case].calls
    assert one.forwards == 1
    assert (two["forwards"], two["wrapped"]) == (1, 1)
    assert one.calls == calls
    assert two["calls"] == tuple((rows // 2, predicted // 2) for rows, predicted in calls)
    extra = sum(case.startswith(("pair", "everything")) for _ in range(1))  # the frozen source's pass
    detached = case == "capacity anchor"
    assert one.usage.passes == len(calls) + extra + detached
    assert one.usage.rows == sum(rows for rows, _ in calls) + N * (extra + detached)
    assert one.usage.predicted_rows == sum(predicted for _, predicted in calls) + N * (extra + detached)


def test_the_cases_are_not_trivial() -> None:
    """Some labels are dropped and some not; transfer moves targets and refuses to; pairs differ; groups share t; and
    every variant of an objective gives another loss."""
    for kind in KINDS:
        step = step_of("everything", kind)
        batches = make_batches(step, PROCESSES[kind])
        raw = oracles.Raw(kind, batches["main"], STATS.counts)
        assert 0 < sum(raw.dropped) < N
        moved = {direction: oracles.sources(raw, direction) for direction in ("t2h", "h2t", "full")}
        assert all(any(raw.labels[z] != raw.labels[i] for i, z in enumerate(m)) for m in moved.values())
        assert moved["t2h"] != moved["full"] != moved["h2t"]
        assert any(raw.labels[j] != raw.labels[i] for i, j in enumerate(oracles.next_on_cycle(raw.draws["cycle"])))
        grouped = batches["grouped"]
        assert bool(grouped.dropped.any())
        assert set(grouped.labels.tolist()) == {1, 2, 3}
        assert all(len(set(grouped.t[grouped.group == g].tolist())) == 1 for g in range(4))
        assert len(set(grouped.t.tolist())) == 4
    for kind in ("ddpm-v", "flow"):
        by_objective: dict[Any, list[tuple[float, ...]]] = {}
        for case, of in CASES.items():
            if len(of.objectives) == 1:
                losses = on_one(case, kind).losses
                values = tuple(round(float(v), 7) for n, v in losses.items() if n != "loss")
                grads = round(sum(float(g.abs().sum()) for g in on_one(case, kind).grads.values()), 6)
                by_objective.setdefault(of.objectives[0][0], []).append((*values, grads))
        for values in by_objective.values():
            assert len(set(values)) == len(values), "a switch that switches nothing"


def test_constants_are_the_papers() -> None:
    """Weights, which are no part of the formulas; the other defaults are those of the formulas above."""
    for case in CASES.values():
        for made, (kind, options) in zip(case.make(), case.objectives, strict=True):
            assert made.weight == options.get("weight", WEIGHTS.get(kind, 1.0))
