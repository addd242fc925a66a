"""Depths and widths of the CIFAR family, heads, the first layer, and networks that are made elsewhere."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from imbdiff.metrics.extractors import Backbone
from imbdiff.recognition.networks import (
    NETWORKS,
    Classifier,
    CosineHead,
    Normalised,
    ResidualBlock,
    ZeroPadShortcut,
    build_network,
    check_network,
    known_networks,
)
from imbdiff.recognition.networks.foreign import from_maker
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import seed_of, torch_rng

SHAPE = (10, 9, 3)


def images(c: int = 3) -> torch.Tensor:
    return torch.rand((4, c, *SHAPE[:2]), generator=torch_rng(0, "images")) * 2 - 1


# -- the family


@pytest.mark.parametrize(
    ("name", "million", "layers"),
    [("resnet20", 0.27, 20), ("resnet32", 0.46, 32), ("resnet44", 0.66, 44), ("resnet56", 0.85, 56),
     ("resnet110", 1.7, 110)],
)  # fmt: skip
def test_sizes_of_the_literature(name: str, million: float, layers: int) -> None:
    """He et al. 2016, Table 6."""
    network = build_network(name, (32, 32, 3), 10)
    count = sum(p.numel() for p in network.parameters())
    assert round(count / 1e6, 1 if million > 1 else 2) == million
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == layers
    assert sum(isinstance(m, ZeroPadShortcut) for m in network.modules()) == 2


def test_wider_ones_have_so_many_times_the_channels() -> None:
    plain, wide = (build_network(name, SHAPE, 5) for name in ("resnet8", "resnet8x3"))
    assert (plain.feature_dim, wide.feature_dim) == (64, 192)
    convolutions = [[m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (plain, wide)]
    assert [3 * m.out_channels for m in convolutions[0]] == [m.out_channels for m in convolutions[1]]
    assert wide.eval()(images()).shape == (4, 5)


def test_resnet32_is_drawn_as_ever() -> None:
    """The layers one by one, in the order in which their weights have always been drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(3, "network", "resnet32"))
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        for inputs, width, blocks in ((16, 16, 5), (16, 32, 5), (32, 64, 5)):
            for i in range(blocks):
                stride = 2 if i == 0 and width > 16 else 1
                layers.append(ResidualBlock(inputs if i == 0 else width, width, stride, projection=False))
        body, head = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(64, 7)
        for module in (*body.modules(), head):
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
    network = build_network("resnet32", (8, 8, 3), 7, seed=3)
    wanted = {f"body.{k}": v for k, v in body.state_dict().items()} | {
        f"head.{k}": v for k, v in head.state_dict().items()
    }
    found = network.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)
    # Kaiming normal: variance 2 / inputs
    assert network.head.weight.detach().var().item() == pytest.approx(2 / 64, rel=0.25)  # type: ignore[union-attr]


# -- names


@pytest.mark.parametrize("name", [*NETWORKS, "resnet8", "resnet110", "resnet1202", "resnet32x4", "resnet20x16"])
def test_known_names(name: str) -> None:
    check_network(name)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet33", "resnet32"), ("resnet-smal", "resnet-small"), ("resnet20x1", "resnet20"),
     ("resnet32x17", "resnet32x4"), ("resnet201", "resnet20"), ("judgecnn", "judge-cnn")],
)  # fmt: skip
def test_unknown_names_are_refused_with_what_is_near(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown network '{name}'") as caught:
        check_network(name)
    assert f"did you mean {near}? " in caught.value.remedy
    assert "timm:NAME" in caught.value.remedy


def test_names_nothing_is_near_of() -> None:
    with pytest.raises(ConfigError, match="unknown network 'xyz'") as caught:
        check_network("xyz")
    assert caught.value.remedy.startswith("choose one of resnet-small")
    with pytest.raises(ConfigError, match="not a int"):
        check_network(3)  # type: ignore[arg-type]
    assert set(NETWORKS) < set(known_networks())
    assert any(n.startswith("module:") for n in known_networks())


# -- heads and the first layer


def test_cosine_head_by_hand() -> None:
    network = build_network("resnet8", SHAPE, 5, seed=1, head="cosine").eval()
    assert isinstance(network.head, CosineHead)
    assert network.head.weight.shape == (5, 64)
    torch.testing.assert_close(network.head.weight.norm(dim=1), torch.ones(5))
    assert [k for k in network.state_dict() if k.startswith("head")] == ["head.weight"]
    with torch.no_grad():
        network.head.weight.mul_(torch.arange(1.0, 6)[:, None])  # lengths do not count
        f, w = network.features(images()).double().numpy(), network.head.weight.double().numpy()
        wanted = (f @ w.T) / np.linalg.norm(f, axis=1)[:, None] / np.linalg.norm(w, axis=1)
        np.testing.assert_allclose(network(images()).numpy(), wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(network.head(7 * network.features(images())).numpy(), wanted, rtol=1e-5, atol=1e-6)
    linear = build_network("resnet8", SHAPE, 5, seed=1)
    assert all(map(torch.equal, network.body.state_dict().values(), linear.body.state_dict().values()))
    a, b, c = (build_network("resnet8", SHAPE, 5, seed=s, head="cosine").state_dict()["head.weight"] for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    with pytest.raises(ConfigError, match="head 'sine'"):
        build_network("resnet8", SHAPE, 5, head="sine")


def test_cosine_weights_point_everywhere() -> None:
    """Uniform in (-1, 1) before they are brought to length 1: no direction is preferred, signs are of both kinds."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        weight = CosineHead(4, 4000).weight.detach()
    assert weight.mean(0).abs().max() < 0.04
    assert weight.square().mean(0).tolist() == pytest.approx([0.25] * 4, abs=0.02)


def test_cosine_of_zero_features_is_zero_and_its_gradient_finite() -> None:
    head = CosineHead(3, 2)
    x = torch.tensor([[0.0, 0, 0], [1, 2, 3]], requires_grad=True)
    y = head(x)
    assert (y[0] == 0).all()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 10
    assert head.weight.grad is not None
    assert torch.isfinite(head.weight.grad).all()


def test_images_are_standardised_first() -> None:
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    plain = build_network("resnet8", SHAPE, 5, seed=1).eval()
    network = build_network("resnet8", SHAPE, 5, seed=1, normalise=(mean, std)).eval()
    x = images()
    by_hand = torch.stack([((x[:, c] + 1) / 2 - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(network.first(x), by_hand)
    torch.testing.assert_close(network(x), plain(by_hand))
    torch.testing.assert_close(network.features(x), plain.features(by_hand))
    other = build_network("resnet8", SHAPE, 5, seed=2, normalise=([0.1] * 3, [1.0] * 3)).eval()
    other.load_state_dict(load(save(network.state_dict())))
    assert torch.equal(other(x), network(x))
    assert Normalised([0.5], [0.5])(x).sub(x).abs().max() < 1e-6
    build_network("resnet8", SHAPE, 5, normalise=([0.5], [0.5]))
    with pytest.raises(ConfigError, match="3 channels cannot be standardised by 2 means"):
        build_network("resnet8", SHAPE, 5, normalise=([0.5, 0.5], [0.5, 0.5]))
    for wrong in (([0.5], [0.5, 0.5]), ([0.5], [0.0]), ([], [])):
        with pytest.raises(ConfigError, match="cannot be standardised by mean"):
            Normalised(*wrong)


# -- made elsewhere


class Own(nn.Module):
    """A network with a head under some name, and a decoy of the same size before it."""

    def __init__(self, channels: int, classes: int, leaf: str = "out") -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3)
        self.squeeze = nn.Linear(6, classes)
        self.out = nn.Sequential(nn.Dropout(0.5), nn.Linear(classes, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.relu(self.squeeze(self.conv(x).mean((2, 3)))))


def own(shape: tuple[int, int, int], classes: int) -> nn.Module:
    return Own(shape[2], classes)


def test_a_function_of_ones_own() -> None:
    seen: list[nn.Module] = []

    def make(shape: tuple[int, int, int], classes: int) -> nn.Module:
        assert (shape, classes) == (SHAPE, 5)
        seen.append(Own(shape[2], classes))
        return seen[0]

    state = torch.random.get_rng_state()
    network = build_network(make, SHAPE, 5, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert isinstance(network, Classifier)
    assert network.feature_dim == 5
    assert network.head.weight.shape == (5, 5)  # type: ignore[union-attr]
    assert not network.pretrained
    assert network.training
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(4, "network", "own"))
        expected = Own(3, 5).eval()
    network.eval()
    assert torch.equal(network(images()), expected(images()))
    assert torch.equal(network.features(images()), torch.relu(expected.squeeze(expected.conv(images()).mean((2, 3)))))
    keys = list(network.state_dict())
    assert sorted(k for k in keys if k.startswith("head")) == ["head.bias", "head.weight"]
    save(network.state_dict())  # no tensor twice
    a, b, c = (build_network(own, SHAPE, 5, seed=s).state_dict()["head.weight"] for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    cosine = build_network(partial(own), SHAPE, 5, head="cosine", normalise=([0.5], [0.2]))
    assert isinstance(cosine.head, CosineHead)
    assert cosine(images()).abs().max() <= 1 + 1e-6


def test_a_single_linear_layer_is_its_own_head() -> None:
    network = build_network(lambda shape, k: nn.Sequential(nn.Flatten(), nn.Linear(270, k)), SHAPE, 5)
    assert (network.feature_dim, network.features(images()).shape) == (270, (4, 270))
    linear = nn.Linear(7, 5)
    found = Classifier.of(linear, 5)
    assert found.head is linear
    assert torch.equal(found(torch.ones(2, 7)), linear(torch.ones(2, 7)))


class Complete(nn.Module):
    feature_dim = 6

    def __init__(self, uses: bool = True) -> None:
        super().__init__()
        self.conv, self.head, self.second, self.uses = nn.Conv2d(3, 6, 3), nn.Linear(6, 5), nn.Linear(6, 5), uses

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.head if self.uses else self.second)(self.features(x))


def test_one_that_has_all_is_taken_as_it_is() -> None:
    module = Complete()
    assert Classifier.of(module, 5) is module
    found = build_network(lambda *_: module, SHAPE, 5)
    assert found is module
    assert not found.pretrained
    cosine = build_network(lambda *_: Complete(), SHAPE, 5, head="cosine")
    assert isinstance(cosine.head, CosineHead)
    assert cosine.head.weight.norm(dim=1).tolist() == pytest.approx([1.0] * 5)
    with pytest.raises(ConfigError, match="does not make its logits with its `head`"):
        build_network(lambda *_: Complete(uses=False), SHAPE, 5, head="cosine")
    with pytest.raises(ConfigError, match="brings its own features"):
        build_network(lambda *_: Complete(), SHAPE, 5, normalise=([0.5], [0.5]))
    ready = build_network("resnet8", SHAPE, 5)
    assert build_network(lambda *_: ready, SHAPE, 5, normalise=([0.5], [0.5])) is ready
    assert isinstance(ready.first, Normalised)


class Twice(nn.Module):
    """Its last layer of 5 outputs is not the one whose outputs are the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.other = nn.Linear(3, 5), nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean((2, 3))) + 0 * self.other(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda shape, k: 3, "gives a int"),
        (lambda shape, k: Own(1, k), r"fails on 2 images of 10 x 9 x 3: RuntimeError"),
        (lambda shape, k: Own(3, k + 1), r"of shape \(2, 6\) for 2 images"),
        (lambda shape, k: nn.Sequential(nn.Conv2d(3, k, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "no linear layer"),
        (lambda shape, k: Twice(), "not the one that makes the logits"),
    ],
)
def test_what_is_no_classifier_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_network(make, SHAPE, 5)


def test_modules_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "def make(shape, classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))\n"
        "number = 3\n"
    )
    (tmp_path / "my_broken_networks.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "module:my_networks:make"
    check_network(name)
    network = build_network(name, SHAPE, 5)
    assert network.feature_dim == 270
    for wrong, message in (
        ("module:my_networks", "names no object in a module"),
        ("module:my_networks:", "names no object in a module"),
        ("module:no_such_module_here:make", "No module named 'no_such_module_here'"),
        ("module:my_broken_networks:make", "ZeroDivisionError"),
        ("module:my_networks:zzz", "my_networks has no 'zzz'"),
        ("module:my_networks:number", "cannot be called"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            check_network(wrong)
        assert "PYTHONPATH" in caught.value.remedy
        assert "network" in str(caught.value)
    with pytest.raises(ConfigError, match="has no 'made'") as caught:
        check_network("module:my_networks:made")
    assert caught.value.remedy == "did you mean make?"
    for module in ("my_networks", "my_broken_networks"):
        sys.modules.pop(module, None)


class Body(nn.Module):
    """Stands for a library's network; `side` is the only size that it takes, if given."""

    def __init__(self, channels: int, classes: int, side: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.conv, self.side = nn.Conv2d(channels, 6, 3), side
        self.fc: nn.Module = nn.Linear(6, classes) if classes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.side is None or x.shape[2:] == self.side, "input size does not match the model"
        return self.fc(self.conv(x).mean((2, 3)))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("timm")
    module.is_model = lambda name: name in ("tiny", "vit")
    module.list_models = lambda _: ["tiny", "vit"]

    def create(name: str, pretrained: bool, num_classes: int, in_chans: int = 3, **more: Any) -> nn.Module:
        assert not pretrained
        if name == "vit":
            return Body(in_chans, num_classes, more.get("img_size", (224, 224)))
        return Body(in_chans, num_classes, **more)

    module.create_model = create
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


@pytest.mark.parametrize("name", ["timm:tiny", "timm:vit"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_timm(timm: Any, name: str, channels: int) -> None:
    check_network(name)
    a, b, c = (build_network(name, (*SHAPE[:2], channels), 5, seed=s) for s in (1, 1, 2))
    assert (a.feature_dim, a.pretrained, a.training) == (6, False, True)
    assert all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    assert not torch.equal(a.head.weight, c.head.weight)  # type: ignore[arg-type, union-attr]
    x = images(channels)
    assert torch.equal(a(x), a.head(a.body(x)))
    assert a.body.conv.in_channels == channels  # type: ignore[union-attr]
    assert a(x).shape == (4, 5)


def test_timm_is_refused_where_it_must_be(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="timm has no model 'huge'") as caught:
        check_network("timm:huge")
    assert "tiny" in caught.value.remedy
    for name in ("timm:", "timm:tiny?fast", "torchvision:?pretrained"):
        with pytest.raises(ConfigError, match="cannot be read"):
            check_network(name)
    timm.create_model = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("kernel size 7"))
    with pytest.raises(ConfigError, match="10 x 9 x 3: kernel size 7"):
        build_network("timm:tiny", SHAPE, 5)
    timm.create_model = lambda *_, **__: nn.Conv2d(3, 2, 3)
    with pytest.raises(ConfigError, match=r"features \(2, 2, 8, 7\), not \(B, D\)"):
        build_network("timm:tiny", SHAPE, 5)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="timm is not installed") as caught:
        check_network("timm:tiny")
    assert "imbalanced-diffusion[timm]" in caught.value.remedy


def _backbone(body: nn.Module) -> Backbone:
    return Backbone(body, "timm:tiny", SHAPE[:2], (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_pretrained(timm: Any, torchvision: Any, monkeypatch: pytest.MonkeyPatch, channels: int, library: str) -> None:
    body = Body(3, 0)
    import imbdiff.recognition.networks.foreign as foreign

    monkeypatch.setattr(foreign, f"{library}_backbone", lambda name: _backbone(body))
    network = build_network(f"{library}:tiny?pretrained", (*SHAPE[:2], channels), 5)
    assert network.pretrained
    assert all(p.requires_grad for p in network.parameters())
    x = images(channels)
    pixels = (x.expand(-1, 3, -1, -1) + 1) / 2
    wanted = (pixels - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    torch.testing.assert_close(network.features(x), body(wanted))
    with pytest.raises(ConfigError, match="not 4 channels"):
        build_network(f"{library}:tiny?pretrained", (*SHAPE[:2], 4), 5)


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("torchvision.models")
    module.list_models = lambda module: ["tiny", "googlenet"]

    def get_model(name: str, weights: None, **more: Any) -> nn.Module:
        assert bool(more) == (name == "googlenet")
        assert not more.get("aux_logits", False)
        return Body(3, 1000)

    module.get_model = get_model
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", module)
    return module


@pytest.mark.parametrize("name", ["tiny", "googlenet"])
def test_torchvision(torchvision: Any, name: str) -> None:
    network = build_network(f"torchvision:{name}", SHAPE, 5, seed=1)
    assert (network.feature_dim, network.pretrained) == (6, False)
    assert network(images()).shape == (4, 5)
    grey = build_network(f"torchvision:{name}", (*SHAPE[:2], 1), 5, seed=1)
    torch.testing.assert_close(grey(images(1)), network(images(1).expand(-1, 3, -1, -1)))
    with pytest.raises(ConfigError, match="not 2 channels"):
        build_network("torchvision:tiny", (*SHAPE[:2], 2), 5)
    with pytest.raises(ConfigError, match="torchvision has no classifier 'tinny'") as caught:
        check_network("torchvision:tinny")
    assert "near: tiny" not in caught.value.remedy  # nothing begins like it
    torchvision.get_model = lambda name, weights: nn.Conv2d(3, 1, 1)
    with pytest.raises(ConfigError, match="no linear last layer"):
        build_network("torchvision:tiny", SHAPE, 5)


def test_auxiliary_classifiers_are_left_out() -> None:
    from imbdiff.recognition.networks.foreign import _one_output

    network: Any = SimpleNamespace(aux_logits=True, aux1=1, aux2=2)
    found: Any = _one_output(network)
    assert (found.aux_logits, found.aux1, found.aux2) == (False, None, None)


def test_the_probe_leaves_the_network_as_it_was() -> None:
    module = Own(3, 5)
    module.squeeze = nn.Sequential(module.squeeze, nn.BatchNorm1d(5))  # type: ignore[assignment]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    found = from_maker(lambda *_: module, "own", SHAPE, 5)
    assert found.training
    after = found.state_dict()
    assert torch.equal(after["body.squeeze.1.running_mean"], before["squeeze.1.running_mean"])
