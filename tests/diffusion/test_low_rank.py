"""Low-rank capacity: the network as it was at the start, row by row, merged at the end, and trained in between."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import imbdiff
from imbdiff.config import override
from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.backbones import UNetBackbone
from imbdiff.diffusion.low_rank import LowRank, LowRankLayer, LowRankModel, merged
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import save_model
from imbdiff.methods import METHODS
from imbdiff.objectives.capacity import CapacityManipulation
from imbdiff.objectives.denoising import Denoising
from imbdiff.pipeline.training import build_step, prepare_data
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.errors import ConfigError
from imbdiff.training.step import TrainingStep
from imbdiff.training.trainer import Trainer
from tests.diffusion.worlds import gaussian_model
from tests.training.test_trainer import CONFIG, StopError, stop_at
from tests.training.test_trainer import trainer as of_a_model

STATS = ClassStats(("a", "b", "c"), (9, 4, 2))
SHAPES = {"mlp": (1, 2, 3), "unet-8": (3, 8, 8), "dit-tiny": (4, 8, 8)}
each_backbone = pytest.mark.parametrize("name", SHAPES)
CAPACITY = torch.tensor([1.0, 0, 0, 1, 0, 1])


def plain(name: str, seed: int = 1, dropout: float | None = None) -> DiffusionModel:
    return build_model(name, PROCESSES["ddpm"], SHAPES[name], STATS, seed=seed, dropout=dropout).eval()


def at_work(name: str, dropout: float | None = None, **options: float) -> LowRankModel:
    """With B away from zero."""
    model = LowRankModel.of(plain(name, dropout=dropout), 3, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if key.endswith(".up"):
                p.copy_(0.5 * torch.randn(p.shape, generator=generator))
    return model


def inputs(name: str, n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(n, *SHAPES[name], generator=generator),
        torch.randint(0, 1000, (n,), generator=generator),
        torch.randint(0, 4, (n,), generator=generator),
    )


@torch.no_grad()
@each_backbone
def test_it_starts_bit_identical_to_the_network(name: str) -> None:
    model = plain(name)
    before, state = torch.random.get_rng_state(), copy.deepcopy(model.state_dict())
    first, second, other = (LowRankModel.of(model, seed) for seed in (3, 3, 4))
    assert torch.equal(before, torch.random.get_rng_state())
    expected = model(*inputs(name))[0]
    for made in (first, first.merged(), first.base(), LowRankModel.of(first, 7)):
        assert torch.equal(made(*inputs(name))[0], expected)
    assert torch.equal(first(*inputs(name), (), None, capacity=CAPACITY)[0], expected)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    downs = [key for key, _ in first.named_parameters() if key.endswith(".down")]
    assert len(downs) == len(model.backbone.low_rank_layers()) > 0
    for key in downs:
        a, b = first.get_parameter(key), other.get_parameter(key)
        assert not torch.equal(a, b)
        bound = a[0].numel() ** -0.5
        assert 0.8 * bound < float(a.abs().max()) <= bound
    for p in first.parameters():
        p.add_(1)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()), "the model it was made from changed"


def test_the_layers_are_those_of_the_second_half() -> None:
    unet = plain("unet-8").backbone
    assert isinstance(unet, UNetBackbone)
    names = unet.low_rank_layers()
    wanted = []
    for i, block in enumerate(unet.net.up_blocks):
        for j, resnet in enumerate(block.resnets):
            kinds = ["conv1", "conv2"] + ["conv_shortcut"] * (resnet.conv_shortcut is not None)
            wanted += [f"net.up_blocks.{i}.resnets.{j}.{kind}" for kind in kinds]
        wanted += [f"net.up_blocks.{i}.upsamplers.0.conv"] * (block.upsamplers is not None)
    assert len(wanted) >= 9
    assert sorted(names) == sorted(wanted)
    assert plain("mlp").backbone.low_rank_layers() == ["outer.1", "outer.3"]
    dit = plain("dit-tiny").backbone.low_rank_layers()
    assert {key.split(".")[2] for key in dit} == {"2", "3"}
    assert sorted(key.split(".", 3)[3] for key in dit if key.split(".")[2] == "2") == [
        "attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v", "ff.net.0.proj", "ff.net.2",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="GaussianBackbone does not say which of its layers") as error:
        LowRankModel.of(gaussian_model(PROCESSES["ddpm"]), 0)
    assert "low_rank_layers() -> list[str]" in error.value.remedy


def test_rank_is_a_share_of_the_full_rank_and_at_least_one() -> None:
    for ratio, ranks in ((0.1, (13, 1)), (0.004, (1, 1)), (1.0, (128, 6))):
        outer = LowRankModel.of(plain("mlp"), 0, rank_ratio=ratio).backbone.outer
        assert tuple(outer[i].down.shape for i in (1, 3)) == ((ranks[0], 128), (ranks[1], 128))  # type: ignore[index]
        assert tuple(outer[i].up.shape for i in (1, 3)) == ((128, ranks[0]), (6, ranks[1]))  # type: ignore[index]
    layer = LowRankModel.of(plain("unet-8"), 0).backbone.get_submodule("net.up_blocks.0.resnets.0.conv1")
    assert isinstance(layer, LowRankLayer)
    assert (tuple(layer.weight.shape), tuple(layer.down.shape)) == ((64, 128, 3, 3), (6, 128, 3, 3))
    for options in ({"rank_ratio": 0.0}, {"rank_ratio": 1.5}, {"scale": 0.0}, {"scale": float("inf")}):
        with pytest.raises(ConfigError, match="rank"):
            LowRank(**options)


@torch.no_grad()
@each_backbone
def test_merged_is_unmerged(name: str) -> None:
    model = at_work(name, scale=0.2)
    full, capacity_off = model(*inputs(name))[0], model(*inputs(name), (), None, capacity=torch.zeros(6))[0]
    single = model.merged()
    assert type(single) is DiffusionModel
    assert not single.training
    assert not any(isinstance(m, LowRankLayer) for m in single.modules())
    assert {k: v.shape for k, v in single.state_dict().items()} == {
        k: v.shape for k, v in plain(name).state_dict().items()
    }
    assert float((single(*inputs(name))[0] - full).abs().max()) < 1e-5
    assert torch.equal(model.base()(*inputs(name))[0], capacity_off)
    assert torch.equal(capacity_off, plain(name)(*inputs(name))[0])
    assert float((full - capacity_off).abs().max()) > 0.01
    for p in single.parameters():
        p.zero_()
    assert torch.equal(model(*inputs(name))[0], full), "the merged model is not independent"


@torch.no_grad()
@pytest.mark.parametrize(("name", "n"), [("mlp", None), ("unet-8", 4), ("dit-tiny", None), ("dit-tiny", 0)])
def test_rows_with_and_without_share_a_pass(name: str, n: int | None) -> None:
    """Also where rows behind the first n stop after their taps."""
    model = at_work(name)
    tap = model.backbone.tap_names[-1]
    x, t, y = inputs(name)
    mixed, taps = model(x, t, y, (tap,), n, capacity=CAPACITY)
    with_it, tap_with = model(x, t, y, (tap,))
    without, tap_without = model.base()(x, t, y, (tap,))
    on = CAPACITY.bool()

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(on.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    assert torch.allclose(mixed, pick(with_it, without)[:n], atol=2e-5, rtol=0)
    assert len(mixed) == (6 if n is None else n)
    assert torch.allclose(taps[tap], pick(tap_with[tap], tap_without[tap]), atol=2e-5, rtol=0)
    if name == "dit-tiny":
        assert not torch.allclose(tap_with[tap], tap_without[tap], atol=1e-2)


@torch.no_grad()
@each_backbone
def test_nothing_of_a_call_outlives_it(name: str) -> None:
    model = at_work(name)
    full = model(*inputs(name))[0]
    model(*inputs(name), (), None, capacity=torch.zeros(6))
    assert model.switch.rows is None
    assert torch.equal(model(*inputs(name))[0], full)
    with pytest.raises(ConfigError, match="no tap"):
        model(*inputs(name), ("nowhere",), None, capacity=torch.zeros(6))
    assert torch.equal(model(*inputs(name))[0], full)
    with pytest.raises(ConfigError, match=r"\(5,\) for 6 rows"):
        model(*inputs(name), (), None, capacity=torch.zeros(5))
    twin = copy.deepcopy(model)
    assert twin.switch is not model.switch
    off = twin(*inputs(name), (), None, capacity=torch.zeros(6))[0]
    assert torch.equal(off, twin.base()(*inputs(name))[0]), "the copy's layers read another switch than its own"
    assert not torch.allclose(off, full, atol=1e-2)


def test_a_stopped_training_continues_bit_for_bit_and_gives_a_plain_model(tmp_path: Path) -> None:
    """Then another starts from what it saved."""

    def training(folder: Path, **options: Any) -> Trainer:
        made = of_a_model(folder, replace(CONFIG, images=16 * 12), **options)
        model = made.step.networks["model"]
        assert isinstance(model, DiffusionModel)
        made.step = TrainingStep({"model": LowRankModel.of(model, 1)}, [Denoising(), CapacityManipulation()])
        made.finish = merged
        return made

    whole = training(tmp_path / "a").run()
    with pytest.raises(StopError):
        training(tmp_path / "b", on_preview=stop_at(16 * 10)).run()
    checkpoint = CheckpointStore(tmp_path / "b" / "checkpoints").latest()
    assert checkpoint is not None
    ups = [v for k, v in checkpoint.tensors.items() if k.startswith("step.") and k.endswith(".up")]
    assert ups
    assert all(float(v.abs().max()) > 0 for v in ups), "the low-rank part was not trained"
    again = training(tmp_path / "b").run()
    assert type(whole) is type(again) is DiffusionModel
    assert whole.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())


def test_a_method_starts_from_a_saved_plain_model(tmp_path: Path) -> None:
    prepared = prepare_data("digits", imbdiff.preset("tiny").data)
    saved = build_model("unet-8", PROCESSES["ddpm-cosine-v"], (1, 8, 8), prepared.stats).eval()
    save_model(saved, tmp_path)
    config = override(imbdiff.preset("tiny"), {"method": "cm", "model.init": str(tmp_path)})
    start = build_step(METHODS["cm"].target, prepared, config).networks["model"]
    assert isinstance(start, LowRankModel)
    assert start.training
    assert all(not p.any() for key, p in start.named_parameters() if key.endswith(".up"))
    x, t, y = torch.randn(3, *saved.spec.shape), torch.tensor([1, 500, 900]), torch.tensor([0, 5, 10])
    with torch.no_grad():
        assert torch.equal(start.eval()(x, t, y)[0], saved(x, t, y)[0])
