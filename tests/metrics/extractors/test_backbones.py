"""Backbones of other packages: with stand-ins for the packages, and with transformers itself where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from imbdiff.metrics.extractors import make_extractor
from imbdiff.metrics.extractors.backbones import Backbone, optional
from imbdiff.runtime.errors import ConfigError, DataError

SHAPE = (12, 10, 3)
PREPROCESSING = {
    "size": {"shortest_edge": 8},
    "crop_size": {"height": 6, "width": 4},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}


class Net(nn.Module):
    """Means of three maps; a head on top where `classes` is not 0."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.fc: nn.Module = nn.Linear(3, classes) if classes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2:] == (6, 4)
        return self.fc(self.conv(x).mean((2, 3)))


def _images(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, *shape), dtype=np.uint8)


def _expected(x: np.ndarray, net: Net, mean: list[float], std: list[float]) -> np.ndarray:
    h = torch.from_numpy(x).permute(0, 3, 1, 2).float()
    h = nn.functional.interpolate(h, (6, 4), mode="bilinear", antialias=True) / 255
    h = (h - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        return net.conv(h).mean((2, 3)).numpy()


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    for name in ("HF_HUB_OFFLINE", "IMBDIFF_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    hub: Any = ModuleType("huggingface_hub")
    hub.try_to_load_from_cache = lambda *_: None

    def absent(repository: str, **_: object) -> str:
        raise OSError(f"{repository} is not in the cache")

    hub.snapshot_download = absent
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("timm")
    module.is_model = lambda name: name == "tiny"
    module.list_models = lambda _: ["tiny"]
    module.get_pretrained_cfg = lambda _: SimpleNamespace(hf_hub_id="timm/tiny", url="", classifier="fc")
    module.create_model = lambda name, pretrained, num_classes: Net(num_classes)
    config = {"input_size": (3, 6, 4), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    module.data = SimpleNamespace(resolve_model_data_config=lambda _: config)
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_timm_with_weights_in_a_file(timm: Any, tmp_path: Path) -> None:
    net = Net(9)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    found = make_extractor(f"checkpoint:timm:tiny:{tmp_path / 'w.safetensors'}", SHAPE)
    assert found.name == f"timm:tiny:w@{found.fingerprint[:8]}"
    assert (found.dim, found.ranking_only, found.is_fid) == (3, True, False)
    assert "6 x 4; mean 0.5, 0.4, 0.3; std 0.2, 0.3, 0.4" in found.preprocessing
    x = _images()
    np.testing.assert_allclose(
        found.features(x), _expected(x, net, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(found.features(x, batch_size=2), found.features(x), rtol=1e-4, atol=1e-6)
    grey = x[..., :1]
    np.testing.assert_allclose(found.features(grey), found.features(np.repeat(grey, 3, axis=3)), rtol=1e-4, atol=1e-6)
    with pytest.raises(DataError, match="grey or RGB"):
        found.check((8, 8, 2))
    save_file({"conv.weight": torch.ones(1)}, tmp_path / "bad.safetensors")
    with pytest.raises(DataError, match=r"does not fit timm:tiny: conv\.bias: missing"):
        make_extractor(f"checkpoint:timm:tiny:{tmp_path / 'bad.safetensors'}", SHAPE)


def test_timm_out_of_reach_says_so_at_once(timm: Any, unreachable: None) -> None:
    with pytest.raises(ConfigError, match="no route") as caught:
        make_extractor("timm:tiny.in1k", SHAPE)
    assert "checkpoint:timm:tiny.in1k:FILE" in caught.value.remedy
    with pytest.raises(ConfigError, match="no model 'huge'"):
        make_extractor("timm:huge", SHAPE)


def test_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unreachable: None) -> None:
    transforms = SimpleNamespace(crop_size=[6], mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    best = SimpleNamespace(url="https://example.org/tiny-abcd1234.pth", name="V1", transforms=lambda: transforms)
    module: Any = ModuleType("torchvision.models")
    module.list_models = lambda module: ["tiny"]
    module.get_model_weights = lambda _: SimpleNamespace(DEFAULT=best)
    module.get_model = lambda name, weights: _Square(9)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", module)
    net = _Square(9)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    found = make_extractor(f"checkpoint:torchvision:tiny:{tmp_path / 'w.pth'}", SHAPE)
    assert (found.name, found.dim) == (f"torchvision:tiny:w@{found.fingerprint[:8]}", 3)  # the nine outputs are gone
    with pytest.raises(ConfigError, match=r"tiny-abcd1234\.pth \(SHA-256 abcd1234\.\.\.\).*no route"):
        make_extractor("torchvision:tiny", SHAPE)
    with pytest.raises(ConfigError, match="no classifier 'tin'") as caught:
        make_extractor("torchvision:tin", SHAPE)
    assert "tiny" in caught.value.remedy


class _Square(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2:] == (6, 6)
        return self.fc(self.conv(x).mean((2, 3)))


class _Tower(Net):
    """Gives what transformers gives."""

    def __init__(self, pooled: bool, flat: bool) -> None:
        super().__init__(0)
        self.pooled, self.flat = pooled, flat

    def forward(self, pixel_values: torch.Tensor) -> Any:  # type: ignore[override]
        h = self.conv(pixel_values)
        last = h.flatten(2).transpose(1, 2) if self.flat else h
        return SimpleNamespace(
            last_hidden_state=last, pooler_output=h.mean((2, 3), keepdim=True) if self.pooled else None
        )


@pytest.mark.parametrize(
    ("pooled", "flat", "tower"), [(True, False, False), (False, True, False), (False, False, True)]
)
def test_transformers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pooled: bool, flat: bool, tower: bool, unreachable: None
) -> None:
    net = _Tower(pooled, flat)
    asked: dict[str, Any] = {}

    def load(folder: str, **options: object) -> Any:
        asked.update(options)
        return SimpleNamespace(vision_model=net) if tower else net

    module: Any = ModuleType("transformers")
    module.AutoModel = SimpleNamespace(from_pretrained=load)
    monkeypatch.setitem(sys.modules, "transformers", module)
    with pytest.raises(DataError, match="does not say how images are prepared"):
        make_extractor(f"hf:{tmp_path}", SHAPE)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    found = make_extractor(f"hf:{tmp_path}", SHAPE)
    x = _images()
    np.testing.assert_allclose(
        found.features(x), _expected(x, net, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), rtol=1e-4, atol=1e-6
    )
    assert asked == {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    with pytest.raises(ConfigError, match="no route") as caught:
        make_extractor("hf:someone/something", SHAPE)
    assert "hf:FOLDER" in caught.value.remedy


# a torchvision that does not import takes the image models of transformers down with it
@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None or importlib.util.find_spec("torchvision") is not None,
    reason="needs transformers, and no torchvision",
)
def test_transformers_itself(tmp_path: Path) -> None:
    transformers = importlib.import_module("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    sizes = {"crop_size": {"height": 28, "width": 28}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING | sizes))
    found = make_extractor(f"hf:{tmp_path}", (28, 28, 3))
    x = _images((28, 28, 3))
    h = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor(
        [0.2, 0.3, 0.4]
    )[:, None, None]
    with torch.no_grad():
        np.testing.assert_allclose(found.features(x), model(h).pooler_output.numpy(), rtol=1e-3, atol=1e-5)


def test_transformers_that_cannot_import_its_model_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(*_: object, **__: object) -> Any:
        raise ModuleNotFoundError("Could not import module 'Dinov2Model'.")

    module: Any = ModuleType("transformers")
    module.AutoModel = SimpleNamespace(from_pretrained=load)
    monkeypatch.setitem(sys.modules, "transformers", module)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    with pytest.raises(ConfigError, match="Could not import module") as caught:
        make_extractor(f"hf:{tmp_path}", SHAPE)
    assert "torchvision" in caught.value.remedy


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec, extra in (("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision"), ("hf:a/b", "hf")):
        for module in ("timm", "torchvision", "torchvision.models", "transformers"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match="is not installed") as caught:
            make_extractor(spec, SHAPE)
        assert caught.value.remedy == f"pip install 'imbalanced-diffusion[{extra}]'"


def test_a_package_that_does_not_import_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "half_installed_package.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="nms does not exist") as caught:
        optional("half_installed_package", "timm", "this extractor")
    assert "torchvision" in caught.value.remedy


def test_the_fingerprint_holds_size_mean_and_weights() -> None:
    def make(size: tuple[int, int], mean: float, net: nn.Module) -> str:
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net)
        return Backbone(pool, "n", size, [mean] * 3, [1.0] * 3).fingerprint

    net = nn.Linear(3, 2)
    other = nn.Linear(3, 2)
    prints = [make((4, 4), 0.5, net), make((4, 5), 0.5, net), make((4, 4), 0.500001, net), make((4, 4), 0.5, other)]
    assert len(set(prints)) == 4
    assert make((4, 4), 0.5, net) == prints[0]
