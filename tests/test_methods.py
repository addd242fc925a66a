"""The table of methods: every row trains, costs what it says, and has the constants of its source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import imbdiff
from imbdiff.config import override
from imbdiff.diffusion.process import PROCESSES
from imbdiff.methods import METHODS
from imbdiff.objectives.contract import Objective
from imbdiff.training.parts import Part
from tests.contract.cases import make_batches, make_step
from tests.pipeline.conftest import SMALL

ONE_PHASE = [
    name
    for name, m in METHODS.items()
    if len(m.phases) == 1 and not m.phases[0].frozen and all(not part.groups for part in m.phases[0].parts)
]


def objectives(name: str) -> dict[str, Any]:
    return {o.name: o for o in METHODS[name].phases[-1].objectives()}


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-v", "flow"])
@pytest.mark.parametrize("name", ONE_PHASE)
def test_every_row_takes_a_step_at_its_stated_cost(name: str, kind: str) -> None:
    phase = METHODS[name].phases[0]
    step = make_step(phase.objectives(), PROCESSES[kind], dtype=torch.float32)
    batches = make_batches(step, PROCESSES[kind], dtype=torch.float32)
    out = step(batches)
    out["loss"].backward()
    assert all(bool(v.isfinite()) for v in out.values())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in step.parameters())
    assert step.usage.passes == 1
    assert step.usage.rows / len(batches["main"]) == METHODS[name].cost


@pytest.mark.parametrize("name", METHODS)
def test_every_row_makes_new_objectives_each_time(name: str) -> None:
    for phase in METHODS[name].phases:
        first, second = phase.objectives(), phase.objectives()
        assert all(isinstance(o, Objective) for o in first)
        assert not {id(o) for o in first} & {id(o) for o in second}


def test_the_rows_of_ccua_are_its_two_versions() -> None:
    for name, time, law in (("ccua", "noise", Part(law="tempered", factor=0.1)), ("ccua-v1", "none", Part())):
        made = objectives(name)
        assert set(made) == {"denoising", "unconditional_contrast", "alignment"}
        contrast, alignment = made["unconditional_contrast"], made["alignment"]
        assert (contrast.tau, contrast.weight, contrast.time, contrast.block) == (0.1, 1.0, time, 0)
        assert (alignment.weight, alignment.time, alignment.space) == (1.0, "noise", "eps")
        assert METHODS[name].phases[0].parts == (law,)
        assert METHODS[name].omega == 1.5


def test_the_rows_of_the_baselines_have_their_constants() -> None:
    dispersive = objectives("dispersive")["dispersive"]
    assert (dispersive.tau, dispersive.weight, dispersive.distance) == (0.5, 0.5, "l2")
    assert objectives("ddpm-effective-number").keys() == {"effective_number"}
    assert objectives("ddpm-effective-number")["effective_number"].beta == 0.9999
    focal = objectives("ddpm-focal")["focal"]
    assert objectives("ddpm-focal").keys() == {"focal"}
    assert (focal.beta, focal.gamma, focal.against) == (0.2, 1.0, "noise_level")


@pytest.mark.parametrize("name", ["ccua", "dispersive", "ddpm-effective-number", "ddpm-focal"])
def test_a_run_trains_on_the_network_that_users_get(name: str, tmp_path: Path) -> None:
    """With the U-Net of a preset: its features are named as the objective names them, and its terms are in the log."""
    config = override(imbdiff.preset("tiny"), {**SMALL, "method": name})
    imbdiff.run("digits", tmp_path / "run", config, wanted=("train",), quiet=True)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    terms = {"ccua": ("unconditional_contrast/repel", "alignment/gap"), "dispersive": ("dispersive/spread",)}
    for term in terms.get(name, (f"{name.removeprefix('ddpm-').replace('-', '_')}/mse",)):
        assert f'"{term}"' in log
