"""Classifier networks: the CIFAR family, heads, the first layer, networks made elsewhere, and what tells them apart."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from imbdiff.recognition.heads import CosineHead
from imbdiff.recognition.networks import (
    NETWORKS,
    Normalised,
    ZeroPadShortcut,
    build_network,
    check_network,
    cifar_resnet,
    is_pretrained,
    known_networks,
    network_identity,
)
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import seed_of, torch_rng

SHAPE = (10, 9, 3)
SMALL = partial(cifar_resnet, blocks=1)


def images(c: int = 3) -> torch.Tensor:
    return torch.rand((4, c, *SHAPE[:2]), generator=torch_rng(0, "images")) * 2 - 1


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 33, 3), (64, 48, 1)])
def test_every_size_and_channel_count(name: str, shape: tuple[int, int, int]) -> None:
    network = build_network(name, shape, 5).eval()
    x = torch.randn(3, shape[2], shape[0], shape[1])
    with torch.no_grad():
        features = network.features(x)
        assert features.shape == (3, network.feature_dim)
        assert network(x).shape == (3, 5)
        # an image's features are its own
        torch.testing.assert_close(network.features(x[1:2]), features[1:2], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(features).all()


def test_option_a_shortcut_takes_every_second_pixel_and_pads_both_sides() -> None:
    x = torch.arange(2 * 16.0).reshape(1, 2, 4, 4)
    y = ZeroPadShortcut(2, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert y[:, [0, 3]].abs().sum() == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_follow_the_seed_and_the_global_generator_is_untouched(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (build_network(name, (8, 8, 1), 3, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    va, vb, vc = (torch.nn.utils.parameters_to_vector(n.parameters()) for n in (a, b, c))
    assert torch.equal(va, vb)
    assert not torch.equal(va, vc)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="resnet99"):
        build_network("resnet99", (8, 8, 1), 10)
    with pytest.raises(ConfigError, match="7 x 20"):
        build_network("resnet32", (7, 20, 1), 10)
    with pytest.raises(ConfigError, match="at least 2"):
        build_network("resnet32", (8, 8, 1), 1)


# -- the family


@pytest.mark.parametrize(
    ("name", "million", "layers"), [("resnet20", 0.27, 20), ("resnet32", 0.46, 32), ("resnet56", 0.85, 56)]
)
def test_sizes_of_the_literature(name: str, million: float, layers: int) -> None:
    """He et al. 2016, Table 6."""
    network = build_network(name, (32, 32, 3), 10)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == million
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == layers
    assert sum(isinstance(m, ZeroPadShortcut) for m in network.modules()) == 2


# -- names


def test_names() -> None:
    for name in NETWORKS:
        check_network(name)
    with pytest.raises(ConfigError, match="unknown name 'resnet33'") as caught:
        check_network("resnet33")
    assert "did you mean resnet32" in caught.value.remedy
    with pytest.raises(ConfigError, match="unknown name 'xyz'") as caught:
        check_network("xyz")
    assert "resnet-small" in caught.value.remedy
    assert set(NETWORKS) < set(known_networks())


# -- heads and the first layer


def test_cosine_head_by_hand() -> None:
    network = build_network(SMALL, SHAPE, 5, seed=1, head="cosine").eval()
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
    linear = build_network(SMALL, SHAPE, 5, seed=1)
    assert all(map(torch.equal, network.body.state_dict().values(), linear.body.state_dict().values()))
    a, b, c = (build_network(SMALL, SHAPE, 5, seed=s, head="cosine").state_dict()["head.weight"] for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


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
    plain = build_network(SMALL, SHAPE, 5, seed=1).eval()
    network = build_network(SMALL, SHAPE, 5, seed=1, normalise=(mean, std)).eval()
    x = images()
    by_hand = torch.stack([((x[:, c] + 1) / 2 - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(network.first(x), by_hand)
    torch.testing.assert_close(network(x), plain(by_hand))
    torch.testing.assert_close(network.features(x), plain.features(by_hand))
    other = build_network(SMALL, SHAPE, 5, seed=2, normalise=([0.1] * 3, [1.0] * 3)).eval()
    other.load_state_dict(load(save(network.state_dict())))
    assert torch.equal(other(x), network(x))
    assert Normalised([0.5], [0.5])(x).sub(x).abs().max() < 1e-6
    build_network(SMALL, SHAPE, 5, normalise=([0.5], [0.5]))
    with pytest.raises(ConfigError, match="3 channels cannot be standardised by 2 means"):
        build_network(SMALL, SHAPE, 5, normalise=([0.5, 0.5], [0.5, 0.5]))


# -- made elsewhere


def own(shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Features; the head is made for them."""
    return nn.Sequential(nn.Conv2d(shape[2], 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))


def test_a_body_of_ones_own_gets_a_head() -> None:
    state = torch.random.get_rng_state()
    network = build_network(own, SHAPE, 5, seed=4)
    assert torch.equal(state, torch.random.get_rng_state())
    assert (network.feature_dim, network.head.out_features, network.pretrained, network.training) == (6, 5, False, True)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of(4, "network", "own"))
        expected = own(SHAPE, 5).eval()
    assert torch.equal(network.eval().features(images()), expected(images()))
    save(network.state_dict())  # no tensor twice
    a, b, c = (build_network(own, SHAPE, 5, seed=s).state_dict()["head.weight"] for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    cosine = build_network(partial(own), SHAPE, 5, head="cosine", normalise=([0.5], [0.2]))
    assert isinstance(cosine.head, CosineHead)
    assert cosine(images()).abs().max() <= 1 + 1e-6


def test_a_classifier_is_taken_as_it_is() -> None:
    ready = build_network(SMALL, SHAPE, 5)
    assert build_network(lambda *_: ready, SHAPE, 5, normalise=([0.5], [0.5])) is ready
    assert isinstance(ready.first, Normalised)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda shape, k: 3, "'int' object has no attribute"),
        (lambda shape, k: own((10, 9, 1), k), r"fails on 2 images of 10 x 9 x 3: RuntimeError"),
        (lambda shape, k: nn.Conv2d(3, k, 3), r"gives \(2, 5, 8, 7\), not \(B, D\) features"),
    ],
)
def test_what_is_no_network_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_network(make, SHAPE, 5)


def test_modules_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\ndef make(shape, classes):\n    return nn.Flatten()\nnumber = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    check_network("module:my_networks:make")
    assert build_network("module:my_networks:make", SHAPE, 5).feature_dim == 270
    for wrong, message in (("my_networks:number", "is a int"), ("no_such_module_here:make", "No module named")):
        with pytest.raises(ConfigError, match=message):
            check_network(f"module:{wrong}")
    sys.modules.pop("my_networks", None)


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
    for name in ("timm:", "timm:tiny?fast", "timm:?pretrained"):
        with pytest.raises(ConfigError, match="cannot be read"):
            check_network(name)
    timm.create_model = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("kernel size 7"))
    with pytest.raises(ConfigError, match="10 x 9 x 3: kernel size 7"):
        build_network("timm:tiny", SHAPE, 5)
    timm.create_model = lambda *_, **__: nn.Conv2d(3, 2, 3)
    with pytest.raises(ConfigError, match=r"\(2, 2, 8, 7\), not \(B, D\)"):
        build_network("timm:tiny", SHAPE, 5)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="timm is not installed") as caught:
        check_network("timm:tiny")
    assert "imbalanced-diffusion[timm]" in caught.value.remedy


def test_pretrained(timm: Any) -> None:
    timm.create_model = lambda name, pretrained, num_classes, in_chans: _pretrained(in_chans, pretrained)
    for channels in (1, 3):
        network = build_network("timm:tiny?pretrained", (*SHAPE[:2], channels), 5)
        assert network.pretrained
        assert all(p.requires_grad for p in network.parameters())
        x = images(channels)
        mean, std = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]) if channels == 3 else ([0.4], [0.3])
        wanted = ((x + 1) / 2 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(network.features(x), network.body(wanted))


def _pretrained(channels: int, pretrained: bool) -> nn.Module:
    assert pretrained
    body = Body(channels, 0)
    body.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}  # type: ignore[assignment]
    return body


# -- what tells networks apart

GREY = (8, 8, 1)
MODULE = """
from torch import nn

def make(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {width}), nn.{act}())
"""


def _wide(shape: tuple[int, int, int], classes: int, width: int = 4, bias: float = 0.0) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, width))
    nn.init.constant_(network[1].bias, bias)  # type: ignore[arg-type]
    return network


def test_a_name_is_enough_for_our_own() -> None:
    assert network_identity("resnet32x4", GREY, 3) == "resnet32x4"
    assert not is_pretrained("resnet32")
    assert is_pretrained("timm:resnet18?pretrained")
    assert not is_pretrained("timm:resnet18")
    assert not is_pretrained(_wide)


def test_functions_of_one_name_are_told_apart_by_what_they_make() -> None:
    same = network_identity(partial(_wide, width=4), GREY, 3)
    assert same == network_identity(partial(_wide, width=4), GREY, 3)
    for other in (partial(_wide, width=9), partial(_wide, bias=1.0), _wide):
        differs = network_identity(other, GREY, 3) != same
        assert differs == (other is not _wide)  # the last one is the same with defaults


def test_a_module_that_was_edited_is_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "identity_of_mine.py"
    seen = []
    for width, act in ((4, "ReLU"), (4, "Tanh"), (5, "ReLU")):
        path.write_text(MODULE.format(width=width, act=act))
        importlib.invalidate_caches()
        sys.modules.pop("identity_of_mine", None)
        sys.dont_write_bytecode = True
        seen.append(network_identity("module:identity_of_mine:make", GREY, 3))
    assert seen[0] != seen[1] != seen[2] != seen[0]
