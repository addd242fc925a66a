"""The encoder that guides sampling: what it computes, that all of it trains, how it is kept. Models without labels."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.model import DiffusionModel, build_model, forget_labels
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import load_model, save_model, saved_identity, weights_identity
from imbdiff.runtime.errors import ConfigError, RunError

from .worlds import gaussian_model

STATS = ClassStats(("a", "<b>", "c"), (50, 9, 2))
KINDS = ("mlp", "unet-8", "dit-tiny")
each_kind = pytest.mark.parametrize("kind", KINDS)


def model(kind: str, process: str = "ddpm", seed: int = 0) -> DiffusionModel:
    return build_model(kind, PROCESSES[process], (1, 8, 8), STATS, seed=seed)


def encoder(kind: str, process: str = "ddpm", seed: int = 0) -> PrototypeEncoder:
    """In float64, with prototypes in three unequal directions."""
    made = PrototypeEncoder.like(model(kind, process), seed).double().eval()
    draw = torch.randn(3, 128, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    made.prototypes.copy_(nn.functional.normalize(draw, dim=1))
    return made


def images(n: int = 5, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


def times(process: str, n: int = 5) -> Tensor:
    t = torch.linspace(0.1, 0.9, n)
    return t if process == "flow" else (t * 1000).long()


@pytest.mark.parametrize(("kind", "process"), [("mlp", "flow"), ("unet-8", "ddpm"), ("dit-tiny", "ddpm")])
def test_features_are_of_unit_length_and_know_image_and_time_but_no_label(kind: str, process: str) -> None:
    net, x, t = encoder(kind, process), images(), times(process)
    empty, taps = net(x, t, torch.full((5,), 3), ("features",), 0)
    f = taps["features"]
    assert empty.shape == (0, 1, 8, 8)
    assert f.shape == (5, 128)
    assert torch.allclose(f.norm(dim=1), torch.ones(5).double())
    assert torch.equal(f, net(x, t, torch.tensor([0, 1, 2, 3, 0]), ("features",), 0)[1]["features"])
    assert not torch.allclose(f, net.features(x, t.flip(0)), atol=1e-4)
    assert not torch.allclose(f, net.features(x.flip(0), t), atol=1e-4)
    alone = torch.cat([net.features(x[i : i + 1], t[i : i + 1]) for i in range(5)])
    assert torch.allclose(f, alone, atol=1e-12)  # a row depends on itself alone


@each_kind
def test_every_parameter_trains(kind: str) -> None:
    net = encoder(kind).train()
    net.features(images(), times("ddpm"))[:, 0].sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.numel(), name
        assert float(p.grad.abs().max()) > 0 or "to_k.bias" in name or "conv1.bias" in name, name
    whole = model(kind).num_parameters
    assert net.head.weight.numel() < sum(p.numel() for p in net.parameters()) < (whole * 0.85 if kind != "mlp" else 1e9)
    assert not [name for name, _ in net.named_parameters() if "table" in name or "up_blocks" in name or "outer" in name]


def test_a_backbone_that_does_not_say_where_its_encoder_or_its_table_is_is_refused() -> None:
    with pytest.raises(ConfigError, match="GaussianBackbone does not say where its encoder ends") as error:
        gaussian_model(PROCESSES["ddpm"]).backbone.cut_to_encoder()
    assert "cut_to_encoder() -> str" in error.value.remedy
    with pytest.raises(ConfigError, match="GaussianBackbone does not say where its class vectors are") as error:
        forget_labels(gaussian_model(PROCESSES["ddpm"]))
    assert "class_tables() -> list[nn.Parameter]" in error.value.remedy


@pytest.mark.parametrize("kind", ["mlp", "unet-8"])
def test_weights_come_from_the_seed_alone(kind: str) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (PrototypeEncoder.like(model(kind, seed=s), seed) for s, seed in ((0, 1), (9, 1), (0, 2)))
    assert torch.equal(before, torch.random.get_rng_state())
    x, t = images(dtype=torch.float32), times("ddpm")
    found = [net.eval().features(x, t).detach() for net in (first, again, other)]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2], atol=1e-3)
    for part in ("backbone", "head"):
        values = [torch.cat([p.detach().flatten() for p in getattr(net, part).parameters()]) for net in (first, other)]
        assert not torch.allclose(*values, atol=1e-3), part


def test_it_takes_no_geometric_changes() -> None:
    other = model("unet-8")
    other.spec = replace(other.spec, config={**other.spec.config, "augment": True})
    net = PrototypeEncoder.like(other, 1).eval()
    assert "augment" not in net.spec.config
    x, t = images(dtype=torch.float32), times("ddpm")
    _, taps = net(x, t, torch.zeros(5, dtype=torch.long), ("features",), 0, augment=torch.ones(5, 9))
    assert torch.equal(taps["features"], net.features(x, t))


@pytest.mark.parametrize("prior", [True, False])
def test_the_loss_is_equation_12(prior: bool) -> None:
    net, x, t = encoder("mlp"), images(), times("ddpm")
    net.tau = 0.3
    labels = torch.tensor([0, 2, 1, 3, 2])
    got = net.loss(x, t, labels, prior).detach()
    for i, y in enumerate(labels.tolist()):
        if y == 3:
            assert float(got[i]) == 0
            continue
        f = net.features(x[i : i + 1], t[i : i + 1])[0].detach()
        pi = [50 / 61, 9 / 61, 2 / 61] if prior else [1, 1, 1]
        values = [pi[k] * math.exp(float(f @ net.prototypes[k]) / 0.3) for k in range(3)]
        assert float(got[i]) == pytest.approx(-math.log(values[y] / sum(values)), rel=1e-6)


def test_it_predicts_nothing() -> None:
    net, x, t, y = encoder("mlp"), images(), times("ddpm"), torch.zeros(5, dtype=torch.long)
    for taps, rows in ((("features",), None), (("features",), 2), (("mid",), 0), ((), 0)):
        with pytest.raises(ConfigError, match="guidance encoder"):
            net(x, t, y, taps, rows)


# -- kept next to a model


def guided(kind: str = "mlp", seed: int = 0) -> DiffusionModel:
    made = model(kind).eval()
    guide = encoder(kind, seed=seed).float()
    guide.tau = 0.11
    made.guide = guide
    return made


@each_kind
def test_round_trip(tmp_path: Path, kind: str) -> None:
    made = guided(kind)
    save_model(made, tmp_path / "m")
    names = sorted(p.name for p in (tmp_path / "m").iterdir())
    assert names == ["guide.json", "guide.safetensors", "model.json", "model.safetensors"]
    loaded = load_model(tmp_path / "m")
    guide = loaded.guide
    assert isinstance(guide, PrototypeEncoder)
    assert not guide.training
    assert not any(p.requires_grad for p in guide.parameters())
    assert guide.tau == 0.11
    assert isinstance(made.guide, PrototypeEncoder)
    x, t, y = images(dtype=torch.float32), times("ddpm"), torch.tensor([0, 1, 2, 0, 1])
    made.guide.requires_grad_(False)  # other kernels, that round otherwise
    assert torch.equal(guide.loss(x, t, y), made.guide.loss(x, t, y))
    assert weights_identity(loaded) == weights_identity(made)


def test_a_guide_is_no_parameter_of_the_model_but_goes_where_it_goes() -> None:
    plain = model("mlp")
    assert plain.guide is None
    made = guided()
    assert made.num_parameters == plain.num_parameters
    made.double()
    assert isinstance(made.guide, PrototypeEncoder)
    assert made.guide.prototypes.dtype == torch.float64
    made.guide = None
    assert made.guide is None
    assert weights_identity(made.float()) == weights_identity(plain)


def test_a_guide_of_an_earlier_model_does_not_stay(tmp_path: Path) -> None:
    save_model(guided(), tmp_path)
    first = saved_identity(tmp_path)
    save_model(guided(seed=1), tmp_path)
    assert saved_identity(tmp_path) != first
    save_model(model("mlp"), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert load_model(tmp_path).guide is None


@pytest.mark.parametrize(
    ("name", "damage"),
    [("guide.json", "missing"), ("guide.json", "other"), ("guide.safetensors", "cut"), ("guide.safetensors", "other")],
)
def test_a_missing_or_damaged_guide_is_named(tmp_path: Path, name: str, damage: str) -> None:
    save_model(guided(), tmp_path)
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif name == "guide.json":
        path.write_text(json.dumps({"kind": "classifier"}))
    else:
        save_model(guided("unet-8"), tmp_path / "other")
        path.write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(RunError, match="guide"):
        load_model(tmp_path)


# -- models without labels


@each_kind
def test_a_model_that_forgot_its_labels_knows_no_class(kind: str) -> None:
    made = model(kind).eval()
    x, t = images(4, torch.float32), times("ddpm", 4)

    def predicted(y: int) -> Tensor:
        with torch.no_grad():
            return made(x, t, torch.full((4,), y))[0]

    for block in getattr(getattr(made.backbone, "net", None), "transformer_blocks", []):
        for gate in (block.norm1.linear,):  # adaLN-zero would hide the labels of a new network
            nn.init.normal_(gate.weight, std=0.02)
    null = predicted(3)
    assert not torch.allclose(predicted(0), null, atol=1e-6)
    assert forget_labels(made) is made
    for y in range(4):
        assert torch.equal(predicted(y), null)
    assert all(table.requires_grad for table in made.backbone.class_tables())  # a later training may fill them again
