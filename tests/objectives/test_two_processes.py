"""One process of 16 rows and two of 8 give the same losses and the same gradients, for what is coupled over rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.dispersive import Dispersive
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.reweighting import EffectiveNumber, Focal
from imbdiff.objectives.unconditional_contrast import UnconditionalContrast
from imbdiff.runtime.dist import Dist
from tests.contract.cases import make_batches, make_step, one_of_two

OBJECTIVES: dict[str, list[Objective]] = {
    "contrast": [Denoising(), UnconditionalContrast()],
    "contrast in blocks": [Denoising(), UnconditionalContrast(block=5, tau=1.0)],
    "alignment": [Alignment()],
    "dispersive": [Denoising(), Dispersive()],
    "dispersive, cosine": [Denoising(), Dispersive(distance="cosine")],
    "effective number": [EffectiveNumber()],
    "focal": [Focal()],
    "ccua": [Denoising(), UnconditionalContrast(weight=0.3), Alignment(weight=0.2), Dispersive()],
}
KINDS = ("ddpm", "flow")
Result = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def run(name: str, kind: str, dist: Dist) -> Result:
    step = make_step(OBJECTIVES[name], PROCESSES[kind])
    module = step if dist.world == 1 else torch.nn.parallel.DistributedDataParallel(step)
    out = module(make_batches(step, PROCESSES[kind], dist=dist))
    out["loss"].backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in step.named_parameters()}
    return {n: dist.total(v) / dist.world for n, v in out.items()}, grads


def worker(rank: int, folder: str) -> None:
    with one_of_two(rank, folder) as dist:
        torch.save({(n, k): run(n, k, dist) for n in OBJECTIVES for k in KINDS}, Path(folder) / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Result]]:
    folder: Path = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_equal_one(name: str, kind: str, on_two: list[dict[Any, Result]]) -> None:
    losses, grads = run(name, kind, Dist())
    largest = max(float(g.abs().max()) for g in grads.values())
    assert largest > 1e-6
    for results in on_two:
        found, found_grads = results[name, kind]
        assert found.keys() == losses.keys()
        for term, value in losses.items():
            assert float(found[term]) == pytest.approx(float(value), rel=1e-9), term
        for parameter, grad in grads.items():
            gap = float((found_grads[parameter] - grad).abs().max())
            assert gap <= 1e-9 * max(float(grad.abs().max()), 1e-3 * largest), parameter
