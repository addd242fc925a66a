"""Backbones against diffusers' own forward passes; taps, rows, sizes, gradients."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.backbone import Backbone, VectorConditioner
from imbdiff.diffusion.backbones import BACKBONES, KINDS, DiTBackbone, MLPBackbone, UNetBackbone
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.runtime.errors import ConfigError

STATS = ClassStats(tuple("abcdefghij"), tuple(range(10, 0, -1)))
SMALL = [("unet-8", (3, 7, 9)), ("unet-16", (3, 14, 10)), ("dit-tiny", (4, 8, 8)), ("mlp", (1, 2, 3))]
SMALL += [("mlp-fine", (1, 1, 2)), ("unet-8-adagn", (1, 8, 8)), ("unet-16-folded", (3, 7, 10))]


def model(name: str, shape: tuple[int, int, int], dropout: float | None = None) -> DiffusionModel:
    built = build_model(name, PROCESSES["ddpm"], shape, STATS, seed=1).eval()
    for module in built.modules():
        if dropout is not None and isinstance(module, nn.Dropout):
            module.p = dropout
    return built


def inputs(shape: tuple[int, int, int], n: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=g), torch.rand(n, generator=g) * 1000, torch.tensor([0, 9, 10, 3, 10][:n])


def count_calls(modules: Any) -> list[int]:
    """Rows of every call of these modules from now on."""
    calls: list[int] = []
    for module in modules:
        module.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
        )
    return calls


@torch.no_grad()
@pytest.mark.parametrize(("name", "shape"), [*SMALL[:2], ("unet-8", (1, 8, 8)), ("unet-16-adagn", (3, 14, 16))])
def test_unet_is_bit_for_bit_diffusers_own(name: str, shape: tuple[int, int, int]) -> None:
    backbone = model(name, shape).backbone
    assert isinstance(backbone, UNetBackbone)
    x, time, labels = inputs(shape)
    height, width = shape[1:]
    full = backbone.net.config.sample_size
    padded = F.pad(x, (0, full[1] - width, 0, full[0] - height), mode="replicate")
    vectors = torch.stack([backbone.conditioner.table[k] if k < 10 else torch.zeros(128) for k in labels.tolist()])  # type: ignore[index]
    expected = backbone.net(padded, time, class_labels=vectors).sample[..., :height, :width]
    prediction, taps = backbone(x, time, labels)
    assert torch.equal(prediction, expected)
    assert prediction.shape == x.shape
    assert taps == {}


@torch.no_grad()
@pytest.mark.parametrize("out_channels", [None, 8])
def test_dit_is_diffusers_own(out_channels: int | None) -> None:
    config = dict(BACKBONES["dit-tiny"][1]) | {"out_channels": out_channels}
    backbone = DiTBackbone((4, 8, 8), 10, config).eval()
    x, time, labels = inputs((4, 8, 8))
    expected = backbone.net(x, timestep=time, class_labels=labels).sample
    prediction, _ = backbone(x, time, labels)
    assert prediction.shape == x.shape  # learned variance is split off
    assert torch.equal(prediction, expected[:, :4])


@torch.no_grad()
@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_training_mode_without_dropout_is_deterministic(name: str, shape: tuple[int, int, int]) -> None:
    net = model(name, shape, dropout=0.0).train()
    x, time, labels = inputs(shape)
    before = torch.random.get_rng_state()
    assert torch.equal(net.backbone(x, time, labels)[0], net.backbone(x, time, labels)[0])
    assert torch.equal(before, torch.random.get_rng_state())


@torch.no_grad()
@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_predict_rows_is_a_slice_and_taps_are_of_all_rows(name: str, shape: tuple[int, int, int]) -> None:
    backbone = model(name, shape).backbone
    x, time, labels = inputs(shape)
    names = tuple(dict.fromkeys(("quarter", "mid", *backbone.tap_names)))
    full, full_taps = backbone(x, time, labels, names)
    for n in (0, 2, 5):
        part, taps = backbone(x, time, labels, names, n)
        assert part.shape == (n, *shape)
        torch.testing.assert_close(part, full[:n], atol=2e-5, rtol=0)
        torch.testing.assert_close(backbone(x, time, labels, (), n)[0], full[:n], atol=2e-5, rtol=0)
        assert sorted(taps) == sorted(names)
        for tap in names:
            assert len(taps[tap]) == 5
            torch.testing.assert_close(taps[tap], full_taps[tap], atol=2e-5, rtol=0)
        for role, layer in backbone.roles.items():
            assert torch.equal(taps[role], taps[layer])
    alone = backbone(x, time, labels, ("mid",), 0)[1]
    assert list(alone) == ["mid"]
    torch.testing.assert_close(alone["mid"], full_taps["mid"], atol=2e-5, rtol=0)


@torch.no_grad()
def test_unet_taps_alone_stop_after_the_middle() -> None:
    backbone = model("unet-16", (3, 16, 16)).backbone
    assert isinstance(backbone, UNetBackbone)
    calls, mids = count_calls(backbone.net.up_blocks), []
    backbone.net.mid_block.register_forward_hook(lambda *args: mids.append(args[2]))
    x, time, labels = inputs((3, 16, 16))
    prediction, taps = backbone(x, time, labels, ("mid",), 0)
    assert calls == []
    assert prediction.shape == (0, 3, 16, 16)
    assert taps["mid"].shape == (5, 64, 4, 4)
    assert torch.equal(taps["mid"], mids[0])
    backbone(x, time, labels, ("mid",), 2)
    assert calls == [2, 2, 2]


@torch.no_grad()
def test_dit_taps_alone_stop_after_their_block() -> None:
    backbone = model("dit-tiny", (4, 8, 8)).backbone
    assert isinstance(backbone, DiTBackbone)
    assert backbone.tap_names == ("block0", "block1", "block2", "block3")
    calls = count_calls(backbone.net.transformer_blocks)
    x, time, labels = inputs((4, 8, 8))
    assert backbone.roles == {"mid": "block1", "quarter": "block0"}
    _, taps = backbone(x, time, labels, ("mid",), 0)
    assert calls == [5, 5]
    assert taps["mid"].shape == (5, 16, 128)
    calls.clear()
    backbone(x, time, labels, ("block1",), 2)
    assert calls == [5, 5, 2, 2]
    calls.clear()
    backbone(x, time, labels, ("block3", "block0"), 0)
    assert calls == [5, 5, 5, 5]


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_unknown_taps_are_refused(name: str, shape: tuple[int, int, int]) -> None:
    x, time, labels = inputs(shape)
    backbone = model(name, shape).backbone
    with pytest.raises(ConfigError, match="no tap") as error:
        backbone(x, time, labels, ("mid", "middle"))
    assert "'middle'" in error.value.message
    assert "'mid'" not in error.value.message
    assert f"mid ({backbone.roles['mid']}), quarter ({backbone.roles['quarter']})" in error.value.remedy
    assert all(name in error.value.remedy for name in backbone.tap_names)


@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_every_parameter_gets_a_gradient(name: str, shape: tuple[int, int, int]) -> None:
    backbone = model(name, shape).backbone.train()
    x, time, _ = inputs(shape)
    backbone(x.repeat(2, 1, 1, 1), time.repeat(2), torch.arange(10))[0].square().mean().backward()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        if not parameter_name.endswith(".to_k.bias"):  # a softmax does not feel a bias of its keys
            assert (parameter.grad != 0).any(), parameter_name


@torch.no_grad()
@pytest.mark.parametrize(("name", "shape"), SMALL)
def test_rows_are_independent_and_conditioned(name: str, shape: tuple[int, int, int]) -> None:
    backbone = model(name, shape).backbone
    x, time, labels = inputs(shape)
    base = backbone(x, time, labels)[0]
    for changed in (
        (x + torch.eye(5)[0].reshape(5, 1, 1, 1), time, labels),
        (x, time - 40 * torch.eye(5)[0], labels),
        (x, time, labels + torch.eye(5)[0].long()),
    ):
        other = backbone(*changed)[0]
        assert (other[0] - base[0]).abs().max() > 1e-5
        torch.testing.assert_close(other[1:], base[1:], atol=1e-6, rtol=0)


def test_the_null_label_is_the_zero_vector() -> None:
    conditioner = VectorConditioner(3, 4)
    vectors = conditioner(torch.tensor([3, 1, 3]))
    assert torch.equal(vectors[[0, 2]], torch.zeros(2, 4))
    assert torch.equal(vectors[1], conditioner.table[1])
    vectors.sum().backward()
    assert conditioner.table.grad is not None
    assert conditioner.table.grad.sum(1).tolist() == [0, 4, 0]  # nothing is learned from dropped labels
    assert set(conditioner.state_dict()) == {"table"}


def test_dit_needs_squares() -> None:
    for shape in ((3, 8, 10), (3, 9, 9)):
        with pytest.raises(ConfigError, match="squares"):
            build_model("dit-tiny", PROCESSES["ddpm"], shape, STATS)


def on_meta(name: str, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, **options: Any) -> Backbone:
    """The network without memory for its weights."""
    kind, config, _ = BACKBONES[name]
    with torch.device("meta"):
        return KINDS[kind](shape, classes, {**config, **options})


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


PARAMETERS = {
    "unet-8": 703_779, "unet-16": 1_115_235, "unet-32-small": 4_440_259, "unet-32": 35_751_427, "unet-64": 52_761_603,
    "unet-8-adagn": 757_315, "unet-16-adagn": 1_193_539, "unet-32-adagn": 38_311_811, "dit-tiny": 1_426_828,
    "dit-s": 35_233_932, "dit-b": 138_297_612, "dit-l": 487_255_052, "dit-xl": 717_865_356,
}  # fmt: skip


def test_the_table_states_the_parameters_kinds_and_roles() -> None:
    kinds: dict[str, type[Backbone]] = {
        "unet": UNetBackbone,
        "folded-unet": UNetBackbone,
        "dit": DiTBackbone,
        "mlp": MLPBackbone,
    }
    tiny = ("block1", "block0")
    roles = {"dit-tiny": tiny, "dit-tiny-4": tiny, "dit-s": ("block3", "block2"), "dit-b": ("block3", "block2")}
    roles |= {"dit-l": ("block6", "block5"), "dit-xl": ("block7", "block6")}
    for name, (kind, config, text) in BACKBONES.items():
        backbone = on_meta(name, (3, 28, 28) if "unet" in kind else (3, 32, 32) if kind == "dit" else (3, 8, 8))
        assert isinstance(backbone, kinds[kind])
        expected = roles.get(name.replace("sit-", "dit-"), ("mid", "mid"))
        assert (backbone.roles["mid"], backbone.roles["quarter"]) == expected
        assert set(backbone.roles.values()) <= set(backbone.tap_names)
        if name in PARAMETERS:
            assert count(backbone) == PARAMETERS[name]
            stated = re.findall(r"([\d.]+) M parameters", text)
            assert stated == [f"{count(backbone) / 1e6:.{len(stated[0].partition('.')[2])}f}"]
        if name == "unet-32":  # the common configuration of this field; 28 pixels are padded to 32
            assert isinstance(backbone, UNetBackbone)
            assert backbone.pad == (4, 4)
        if name.startswith("sit-"):
            assert config == BACKBONES[name.replace("sit-", "dit-")][1]
            assert "--model.process flow" in text
    one = DiTBackbone((1, 4, 4), 3, {**BACKBONES["dit-tiny"][1], "num_layers": 1})
    assert one.roles == {"mid": "block0", "quarter": "block0"}
