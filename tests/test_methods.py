"""The table of methods: every row trains, costs what it says, and has the constants of its source; several at once are
trained together in merged passes, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import imbdiff
from imbdiff.config import override
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.methods import METHODS, get_method
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.recipe import Phase, constants
from imbdiff.runtime.errors import ConfigError
from imbdiff.training.parts import Part
from imbdiff.training.step import TrainingStep
from tests.contract.cases import STATS, N, make_batches, make_step
from tests.pipeline.conftest import SMALL

ONE_PHASE = [
    name
    for name, m in METHODS.items()
    if len(m.phases) == 1 and not m.phases[0].frozen and all(not part.groups for part in m.phases[0].parts)
]


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-v", "flow"])
@pytest.mark.parametrize("name", ONE_PHASE)
def test_every_row_takes_a_step_at_its_stated_cost(name: str, kind: str) -> None:
    phase = METHODS[name].phases[0]
    step = make_step(phase.objectives(), PROCESSES[kind], dtype=torch.float32)
    if phase.make is not None:
        step.networks["model"] = phase.make(step.networks["model"], 1)  # type: ignore[arg-type]
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


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ccua", {"unconditional_contrast.tau": 0.1, "unconditional_contrast.weight": 1.0, "main.factor": 0.1,
                  "unconditional_contrast.time": "noise", "unconditional_contrast.block": 0, "alignment.weight": 1.0,
                  "alignment.time": "noise", "alignment.space": "native", "main.distribution": "tempered"}),
        ("ccua-v1", {"unconditional_contrast.time": "none", "main.distribution": "natural", "alignment.time": "noise"}),
        ("dispersive", {"dispersive.tau": 0.5, "dispersive.weight": 0.5, "dispersive.distance": "l2"}),
        ("ddpm-effective-number", {"effective_number.beta": 0.9999}),
        ("ddpm-focal", {"focal.beta": 0.2, "focal.gamma": 1.0, "focal.against": "noise_level"}),
        ("cbdm-ada", {"training.ada": 0.12, "class_balancing.tau": 1.0, "class_balancing.gamma": 0.25}),
    ],
)  # fmt: skip
def test_rows_have_the_constants_of_their_papers(name: str, values: dict[str, Any]) -> None:
    found = constants(METHODS[name])
    assert {key: found[key].default for key in values} == values


def three_phases(name: str) -> dict[str, Phase]:
    phases = METHODS[name].phases
    assert [phase.name for phase in phases] == ["source", "target", "encoder"]
    return {phase.name: phase for phase in phases}


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-v", "flow"])
@pytest.mark.parametrize("name", ["diffrc", "diffrc-paper"])
def test_every_phase_of_diffrc_takes_a_step_at_its_stated_cost(name: str, kind: str) -> None:
    """Rows per image of the run: a source's, the target's with as many grouped rows again and the source's of them."""
    cost, rows = 0.0, {"source": 1, "target": 3, "encoder": 1}
    for phase in METHODS[name].phases:
        step = make_step(phase.objectives() if not phase.make else [Denoising()], PROCESSES[kind], dtype=torch.float32)
        assert set(step.frozen) == set(phase.frozen)
        if phase.make:
            model = step.networks["model"]
            assert isinstance(model, DiffusionModel)
            step = TrainingStep({"model": phase.make(model, 3)}, phase.objectives())
        out = step(make_batches(step, PROCESSES[kind], dtype=torch.float32))
        out["loss"].backward()
        assert all(bool(v.isfinite()) for v in out.values())
        trained = [p for p in step.parameters() if p.requires_grad]
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in trained)
        assert step.usage.rows / N == rows[phase.name]
        cost += phase.share * step.usage.rows / N
    assert sum(phase.share for phase in METHODS[name].phases) == pytest.approx(1)
    assert cost == pytest.approx(METHODS[name].cost)


@pytest.mark.parametrize(("name", "dropout"), [("diffrc-paper", 1.0), ("diffrc", None)])
def test_the_rows_of_diffrc_have_the_papers_constants(name: str, dropout: float | None) -> None:
    phases, method = three_phases(name), METHODS[name]
    source, target, encoder = phases["source"], phases["target"], phases["encoder"]
    assert (source.parts, source.label_dropout, source.start) == ((Part(of="head"),), 1.0, None)
    assert (target.start, target.frozen, target.label_dropout) == ("source", ("source",), dropout)
    assert (target.finish is None) == (source.finish is None) == (dropout is None)
    grouped = Part("grouped", groups=8, group_size=8, of="non-head")
    assert target.parts == (Part(), grouped)
    made = {o.name: o for o in target.objectives()}
    assert made.keys() == {"denoising", "pair_diversity"}
    pairs = made["pair_diversity"]
    assert (pairs.gamma, pairs.reduction, pairs.temperature) == (0.1, "sum", 1.0)
    assert pairs.weight == (0.5 if name == "diffrc-paper" else 0.05)
    (contrast,) = encoder.objectives()
    assert (contrast.tau, contrast.momentum, contrast.prior) == (0.07, 0.999, True)
    assert (encoder.gives, encoder.start, encoder.parts) == ("guide", None, (Part(),))
    assert method.target is target
    assert method.guidance_constants == {"prototype.scale": 0.6 if name == "diffrc-paper" else "0.6,many=0"}
    assert method.guidance == "prototype+classifier-free"
    paper = name == "diffrc-paper"
    assert (method.sampler, method.steps) == ("ddpm", 250)
    assert method.omega == (0.0 if paper else 0.8)
    assert "many-shot" in method.needs


@pytest.mark.parametrize("name", METHODS)
def test_every_phase_of_every_row_takes_a_step_on_a_transformer(name: str) -> None:
    """The features that its objectives name are there, and its network is made of this one."""
    process, shape = PROCESSES["flow"], (1, 8, 8)
    for phase in METHODS[name].phases:
        networks = {n: build_model("dit-tiny", process, shape, STATS, seed=1) for n in ("model", *phase.frozen)}
        model = networks["model"] if phase.make is None else phase.make(networks["model"], 1)
        step = TrainingStep({**networks, "model": model}, phase.objectives(), frozen=phase.frozen)
        out = step(make_batches(step, process, dtype=torch.float32, shape=shape))
        out["loss"].backward()
        assert all(bool(v.isfinite()) for v in out.values())
        for where, p in step.named_parameters():
            assert not p.requires_grad or (p.grad is not None and bool(p.grad.isfinite().all())), where


def test_diffrc_goes_with_methods_of_one_phase_but_not_without_labels() -> None:
    both = get_method("cbdm+diffrc")
    assert [phase.name for phase in both.phases] == ["source", "target", "encoder"]
    assert [o.name for o in both.target.objectives()] == ["denoising", "class_balancing", "pair_diversity"]
    assert both.guidance == "prototype+classifier-free"
    with pytest.raises(ConfigError, match="without labels"):
        get_method("cbdm+diffrc-paper")
    with pytest.raises(ConfigError, match="several phases"):
        get_method("diffrc+diffrc-paper")


@pytest.mark.parametrize("name", ["cbdm+ccua", "dispersive", "ddpm-effective-number", "ddpm-focal"])
def test_a_run_trains_on_the_network_that_users_get(name: str, tmp_path: Path) -> None:
    """With the U-Net of a preset: its features are named as the objective names them, and its terms are in the log."""
    config = override(imbdiff.preset("tiny"), {**SMALL, "method": name})
    imbdiff.run("digits", tmp_path / "run", config, wanted=("train",), quiet=True)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    terms = {
        "cbdm+ccua": ("class_balancing/pull", "unconditional_contrast/repel", "alignment/gap", "denoising/mse"),
        "dispersive": ("dispersive/spread",),
    }
    for term in terms.get(name, (f"{name.removeprefix('ddpm-').replace('-', '_')}/mse",)):
        assert f'"{term}"' in log


# ---- several methods at once


def taken(name: str, kind: str = "ddpm") -> tuple[dict[str, torch.Tensor], Any]:
    """The losses of one step of a method's model phase, and what it cost."""
    step = make_step(get_method(name).target.objectives(), PROCESSES[kind])
    losses = step(make_batches(step, PROCESSES[kind]))
    return losses, step.usage


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-v", "flow"])
@pytest.mark.parametrize("names", [("cbdm", "ccua"), ("ccua", "cbdm", "dispersive"), ("diffrop", "cbdm", "coral")])
def test_a_combination_has_every_term_and_shares_the_passes(names: tuple[str, ...], kind: str) -> None:
    together, usage = taken("+".join(names), kind)
    alone = [taken(name, kind)[0] for name in names]
    for losses in alone:
        for term in losses.keys() - {"loss"}:
            assert torch.allclose(together[term], losses[term], rtol=1e-9), term
    # the denoising loss is in each of them, and in all of them once
    base = alone[0]["denoising/mse"]
    expected = sum(losses["loss"] - base for losses in alone) + base
    assert torch.allclose(together["loss"], expected, rtol=1e-9)
    assert usage.passes == 1
    assert usage.rows / 16 == get_method("+".join(names)).cost == 1 + sum(METHODS[n].cost - 1 for n in names)


def test_what_stands_for_the_denoising_loss_replaces_it() -> None:
    found = {o.name for o in get_method("cbdm+t2h").target.objectives()}
    assert found == {"class_balancing", "transfer"}
    assert {o.name for o in get_method("ddpm-focal+coral").target.objectives()} == {"focal", "supervised_contrast"}


def test_the_one_distribution_that_is_not_natural_is_taken() -> None:
    assert get_method("cbdm+ddpm-brs").target.parts == (Part(distribution="tempered", factor=0.1),)
    assert get_method("ddpm-brs+cbdm").target.parts == (Part(distribution="tempered", factor=0.1),)
    assert get_method("ccua+ddpm-brs").target.parts == (Part(distribution="tempered", factor=0.1),)
    assert get_method("cbdm+coral").target.parts == (Part(),)


def test_the_first_one_says_how_to_sample() -> None:
    assert get_method("cbdm+ccua").omega == METHODS["cbdm"].omega != METHODS["ccua"].omega
    assert get_method("ccua+cbdm").omega == METHODS["ccua"].omega
    assert get_method("coral+cbdm-finetune").init == "required"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cbdm+cbdm", "named twice"),
        ("cbdm+nothing", "unknown name 'nothing' among the methods"),
        ("cbdm+", "unknown name '' among the methods"),
        ("ccua+ddpm-balanced", "ccua samples its rows tempered .0.1., ddpm-balanced samples them balanced"),
        ("t2h+ddpm-focal", "t2h and ddpm-focal each replace the denoising loss"),
        ("ccua+ccua-v1", "both bring unconditional_contrast, with other constants"),
        ("cbdm+cbdm-finetune", "both bring class_balancing, with other constants"),
        ("t2h+h2t", "both bring transfer, with other constants"),
        ("diffrop+diffrop-released", "both bring [a-z_]*overlap[a-z_]*, with other constants"),
    ],
)
def test_what_excludes_each_other_is_refused_with_the_reason(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        get_method(name)
