"""Transfer, supervised contrast and overlap: value and gradient against their formulas, on one process and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.overlap import ClassOverlap
from imbdiff.objectives.supervised_contrast import SupervisedContrast
from imbdiff.objectives.transfer import Transfer
from imbdiff.training.step import TrainingStep

from ..contract import cases
from ..contract.cases import KINDS, Result, make_batches
from ..contract.test_miniatures import assert_same
from .peers import PEERS, expected, two_processes

each_kind = pytest.mark.parametrize("kind", KINDS)
each_case = pytest.mark.parametrize("case", PEERS)


@pytest.fixture(scope="module", autouse=True)
def _these_cases() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "CASES", {name: case for name, (case, _) in PEERS.items()})
        yield


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder: Path = tmp_path_factory.mktemp("peers")
    torch.multiprocessing.spawn(two_processes, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@each_kind
@each_case
def test_value_and_gradient_equal_the_formula(case: str, kind: str) -> None:
    result = cases.run(case, kind)
    step = cases.step_of(case, kind)
    losses, grads = expected(case, kind, step, make_batches(step, PROCESSES[kind])["main"])
    assert all(v.dtype == torch.float64 for v in [*result.losses.values(), *result.grads.values()])
    assert result.losses.keys() == losses.keys()
    for name, value in losses.items():
        assert float(result.losses[name]) == pytest.approx(float(value), rel=1e-6), name
    assert_same(result.grads, grads, 1e-6)
    assert result.calls == PEERS[case][0].calls


@each_kind
@each_case
def test_two_processes_equal_one(case: str, kind: str, on_two: list[dict[Any, Any]]) -> None:
    one: Result = cases.run(case, kind)
    for rank in range(2):
        two = on_two[rank][case, kind]
        for name, value in one.losses.items():
            assert float(two["losses"][name]) == pytest.approx(float(value), rel=1e-9), name
        assert_same(two["grads"], one.grads, 1e-9)


@each_kind
def test_together_they_share_one_pass_and_add_up(kind: str) -> None:
    """Two labels for every row, whoever asks; loss and gradient are the weighted sums of what each gives alone."""
    process = PROCESSES[kind]

    def grads(objectives: list[Objective]) -> tuple[TrainingStep, dict[str, torch.Tensor]]:
        step = cases.make_step(objectives, process)
        step(make_batches(step, process))["loss"].backward()
        return step, {n: p.grad for n, p in step.networks.named_parameters() if p.grad is not None}

    def each() -> list[Objective]:
        return [Transfer(weight=0.5), SupervisedContrast(width=128, weight=0.3), ClassOverlap(weight=0.7)]

    step, together = grads(each())
    assert (step.usage.passes, step.usage.rows, step.usage.predicted_rows) == (1, 32, 32)
    alone = [grads([objective])[1] for objective in each()]
    zero = torch.zeros((), dtype=torch.float64)
    assert_same(together, {n: sum((g[n] for g in alone if n in g), zero) for n in together}, 1e-9)
