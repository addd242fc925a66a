"""Compiling: refused where gradients differ, harmless otherwise, and never repeated within a run."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from imbdiff.config import TrainConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.diffusion.backbones import _unet
from imbdiff.diffusion.model import ModelSpec, from_spec
from imbdiff.diffusion.process import DDPM
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.unconditional_contrast import UnconditionalContrast
from imbdiff.runtime import compiling
from imbdiff.runtime.dist import Dist
from imbdiff.training.parts import Part
from imbdiff.training.step import TrainingStep
from imbdiff.training.trainer import Trainer
from imbdiff.training.update import compile_checked

CONFIG = TrainConfig(images=16 * 5, batch_size=16, lr=1e-3)


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(compiling, "DEVICES", ("cpu",))
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep every line of it


def trainer(
    backbone: str, config: TrainConfig, objectives: list[Objective], said: list[str], dropout: float = 0.0
) -> Trainer:
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), (20, 8, 3)).astype(np.int64)
    images = ImageSet(generator.integers(0, 256, (31, 8, 8, 1)).astype(np.uint8), labels, ("a", "b", "c"))
    kind, arguments = ("mlp", {}) if backbone == "mlp" else ("unet", _unet((8, 8), (), 1, 4, dropout))
    model = from_spec(ModelSpec(kind, arguments, (1, 8, 8), DDPM().to_json(), images.stats))
    return Trainer(
        step=TrainingStep({"model": model}, objectives), data=images, groups=Groups.by_quantile(images.stats),
        parts=[Part()], config=config, device="cpu", notify=said.append,
    )  # fmt: skip


def weights(t: Trainer) -> list[torch.Tensor]:
    return [p.detach() for p in t.run().parameters()]


def test_it_changes_nothing_where_the_compiler_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    said: list[str] = []
    objectives = [Denoising(), ClassBalancing()]
    compiled = weights(trainer("mlp", CONFIG, objectives, said))
    assert any("compiled: the gradients" in line for line in said)
    monkeypatch.setattr(compiling, "DEVICES", ())
    plain = weights(trainer("mlp", CONFIG, [Denoising(), ClassBalancing()], said))
    for a, b in zip(compiled, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
    """A compiler with the known fault: part of the network gets no gradient."""

    def run(*arguments: torch.Tensor) -> object:
        with torch.no_grad():
            out = graph(*arguments)
        first = out[0]
        conv = next(a for a in arguments if isinstance(a, nn.Parameter))
        return (first + 0 * conv.sum(), *out[1:])

    return run


@pytest.mark.parametrize("must", [True, False])
def test_wrong_gradients_are_refused(monkeypatch: pytest.MonkeyPatch, must: bool) -> None:
    monkeypatch.setattr(compiling, "BACKEND", broken)
    said: list[str] = []
    made = trainer("mlp", CONFIG, [Denoising()], said)
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])

    def loss() -> torch.Tensor:
        return made.step.networks["model"](x, torch.arange(4), labels)[0].square().mean()

    before = loss().detach()
    assert not compile_checked(made.step, loss, notify=said.append)
    assert any("7 without, 1 compiled" in line for line in said)
    assert torch.equal(loss().detach(), before)
    loss().backward()
    assert all(p.grad is not None for p in made.step.networks["model"].backbone.outer.parameters())


@pytest.mark.parametrize(
    ("found", "why"),
    [({"a": 1.0, "b": 0.0}, "1 of 2 are 0, such as that of b"), ({"a": 1.1, "b": 1.0}, "they differ by")],
)
def test_what_is_compared(found: dict[str, float], why: str) -> None:
    expected = {"a": torch.ones(3), "b": torch.ones(2)}
    got = {k: torch.full_like(expected[k], v) for k, v in found.items()}
    assert why in compiling.difference(got, expected, compiling.FP32)
    assert not compiling.difference(expected, expected, compiling.FP32)
    nearly = {k: v * (1 + 1e-4) for k, v in expected.items()}
    assert not compiling.difference(nearly, expected, compiling.FP32)
    assert "2 without, 1 compiled" in compiling.difference({"a": expected["a"]}, expected, 1.0)


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        raise RuntimeError("no C compiler here")

    monkeypatch.setattr(compiling, "BACKEND", fails)
    said: list[str] = []
    trainer("mlp", CONFIG, [Denoising()], said).run()
    assert any("no C compiler here" in line for line in said)


def test_nothing_recompiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label dropout, sampled rows and taps: all in the shapes of the first step. What is compiled, is so before it."""
    graphs: list[int] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(len(inputs))
        return graph

    monkeypatch.setattr(compiling, "BACKEND", counting)
    objectives = [Denoising(), ClassBalancing(rows=0.4), Alignment(rows=0.4), UnconditionalContrast()]
    at: list[int] = []
    # label dropout 0.5: steps of all kinds; 83 images in batches of 16: the run's last batch is whole too
    config = replace(CONFIG, images=83, label_dropout=0.5)
    made = trainer("unet", config, objectives, [], dropout=0.1)
    made.step.register_forward_hook(lambda *_: at.append(len(graphs)))
    made.run()
    assert len(at) >= 8
    assert at[-1] > 0
    # eager and compiled without dropout for the check, then once with it: nothing after the first step
    first = len(at) - made.config.steps
    assert at[first] == at[-1], at


def test_torch_does_not_give_up_compiling_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own limit, 8 graphs of one function, counts those of all trainings of a process."""
    graphs: list[int] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(1)
        return graph

    monkeypatch.setattr(compiling, "BACKEND", counting)
    for size in range(4, 14):
        before = len(graphs)
        said: list[str] = []
        made = trainer("mlp", replace(CONFIG, batch_size=size, images=size), [Denoising()], said)
        made.run()
        assert any(line.startswith("compiled") for line in said)
        assert len(graphs) > before, size


def test_one_wrong_tensor_among_many_is_seen() -> None:
    expected = {"large": torch.full((10_000,), 1.0), "small": torch.full((100,), 0.1), "tiny": torch.full((4,), 1e-7)}
    wrong = {**expected, "small": expected["small"] * 0.5}
    assert "that of small differs by 50.0%" in compiling.difference(wrong, expected, compiling.BF16)
    rounded = {**expected, "tiny": expected["tiny"] * 2}
    assert not compiling.difference(rounded, expected, compiling.BF16)


def test_a_step_without_a_diffusion_model_compiles_nothing() -> None:
    step = TrainingStep({"model": torch.nn.Linear(2, 2)}, [Denoising()])
    assert not compile_checked(step, lambda: torch.zeros(()))


def test_no_process_compiles_where_another_found_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    made = trainer("mlp", CONFIG, [Denoising()], [])
    network, said = made.step.networks["model"], []
    x, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])

    def loss() -> torch.Tensor:
        return network(x, torch.arange(4), labels)[0].square().mean()

    with monkeypatch.context() as patch:
        patch.setattr(Dist, "gather_objects", lambda self, value: ["", "there it differs by 4.0%"])
        assert not compile_checked(made.step, loss, notify=said.append)
    assert said == ["not compiled, gradients of one batch compared: there it differs by 4.0%"]
    assert network.backbone._compiled_call_impl is None
    assert compile_checked(made.step, loss, notify=said.append), "alone, it is right"
