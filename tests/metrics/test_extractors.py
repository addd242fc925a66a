"""Extractors: what holds for every one, those of this project, and those of other packages with stand-ins for these."""

from __future__ import annotations

import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from imbdiff.metrics.extractors import (
    EXTRACTORS,
    Backbone,
    ClassifierFeatures,
    Extractor,
    RandomConv,
    RawPixels,
    make_extractor,
)
from imbdiff.recognition.networks import build_network
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.tables import optional

SHAPE = (12, 10, 3)


def _images(n: int = 13, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (n, *shape), dtype=np.uint8)


def _classifier(seed: int = 0) -> ClassifierFeatures:
    return ClassifierFeatures(build_network("judge-cnn", SHAPE, 3, seed=seed), "net", "judge", shape=SHAPE)


OWN: dict[str, Callable[[], Extractor]] = {
    "raw-pixels": lambda: RawPixels(SHAPE),
    "random-conv": lambda: RandomConv(3),
    "classifier": _classifier,
}


@pytest.fixture(params=OWN)
def extractor(request: pytest.FixtureRequest) -> Extractor:
    return OWN[request.param]()


def test_a_row_depends_on_its_image_alone_whatever_the_batch(extractor: Extractor) -> None:
    x = _images()
    f = extractor.features(x)
    assert (f.shape, f.dtype) == ((13, extractor.dim), np.float32)
    assert not np.allclose(f[5], f[6])
    assert extractor.features(x[:0]).shape == (0, extractor.dim)
    for size in (1, 5):
        np.testing.assert_allclose(extractor.features(x, batch_size=size), f, rtol=1e-4, atol=1e-5 * np.abs(f).max())
    np.testing.assert_allclose(extractor.features(x[[5]]), f[[5]], rtol=1e-4, atol=1e-5 * np.abs(f).max())
    extractor.max_batch = 3
    np.testing.assert_allclose(extractor.features(x), f, rtol=1e-4, atol=1e-5 * np.abs(f).max())


def test_any_layout_in_memory_and_memory_maps_without_a_warning(extractor: Extractor, tmp_path: Path) -> None:
    x = _images()
    expected = extractor.features(x)
    np.save(tmp_path / "x.npy", x)
    locked = x.copy()
    locked.flags.writeable = False
    views = [
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        locked,
        np.asfortranarray(x),
        np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
        np.repeat(x, 2, axis=0)[::2],
        x[::-1].copy()[::-1],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for view in views:
            before = np.array(view)
            np.testing.assert_allclose(extractor.features(view), expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(view, before)  # nothing was written into it
        features = expected.copy()
        features.flags.writeable = False
        extractor.predict(features)
        extractor.probabilities(features)


def test_autocast_and_training_mode_of_the_caller_do_not_reach_it(extractor: Extractor) -> None:
    x = _images()
    expected = extractor.features(x)
    if isinstance(extractor, ClassifierFeatures):
        extractor.network.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extractor.features(x)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32


def test_shapes_are_checked_before_work(extractor: Extractor) -> None:
    extractor.check(SHAPE)
    with pytest.raises(DataError, match=extractor.name):
        extractor.check((12, 10, 4))
    with pytest.raises(DataError, match="uint8"):
        extractor.features(_images().astype(np.float32))
    with pytest.raises(DataError, match="uint8"):
        extractor.features(_images()[0])


def test_a_classifier_predicts_from_its_own_features() -> None:
    found, x = _classifier(), _images()
    features = found.features(x)
    with torch.no_grad():
        expected = found.network(torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1).argmax(1).numpy()
    np.testing.assert_array_equal(found.predict(features), expected)
    p = found.probabilities(features)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(p.argmax(1), expected)
    assert found.probabilities(features[:0]).shape == (0, 3)


def test_fingerprints_follow_weights_and_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RandomConv(1, 0).fingerprint == RandomConv(1, 0).fingerprint
    assert len({RandomConv(1, 0).fingerprint, RandomConv(1, 1).fingerprint, RandomConv(3, 0).fingerprint}) == 3
    before = _classifier(0).fingerprint
    assert before == _classifier(0).fingerprint != _classifier(1).fingerprint
    monkeypatch.setattr(ClassifierFeatures, "preprocessing", "another")
    assert _classifier(0).fingerprint != before


def test_random_conv_leaves_the_global_generator_alone_and_any_size_works() -> None:
    before = torch.random.get_rng_state()
    net = RandomConv(3)
    assert net.features(_images(2, (8, 8, 3))).shape == net.features(_images(2, (64, 40, 3))).shape
    assert torch.equal(before, torch.random.get_rng_state())
    assert net.described()["ranking_only"]


def test_the_free_ones_by_name() -> None:
    assert isinstance(make_extractor("random-conv", SHAPE), RandomConv)
    assert make_extractor(" raw-pixels ", (16, 12, 1)).dim == 16 * 12
    assert make_extractor("random-conv", (9, 9, 3)).fingerprint == RandomConv(3).fingerprint
    assert {e.form.partition(":")[0].partition("[")[0] for e in EXTRACTORS.values()} == set(EXTRACTORS)


@pytest.mark.parametrize(
    ("spec", "words", "hint"),
    [
        ("randomconv", "unknown name 'randomconv' among the extractors", "did you mean random-conv?"),
        ("zzz", "unknown name", "choose one of random-conv, raw-pixels"),
        ("random-conv:3", "cannot be read", "write random-conv"),
        ("timm:", "cannot be read", "write timm:NAME"),
        ("inception:", "cannot be read", "write inception[:FILE]"),
        ("checkpoint:resnet32:w.pth", "unknown name", "choose one of"),
    ],
)
def test_a_name_that_is_none_gets_the_form_or_the_nearest(spec: str, words: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make_extractor(spec, SHAPE)
    assert hint in caught.value.remedy


def test_missing_files_and_odd_shapes_are_found_at_once() -> None:
    with pytest.raises(ConfigError, match="Inception weights"):
        make_extractor("inception", (32, 32, 3), inception_weights="/nonexistent/w.pth")


def test_an_extractor_of_ones_own(outside: Callable[..., None]) -> None:
    outside(
        "from imbdiff.metrics.extractors import RandomConv\n"
        "def wide(shape, device):\n    return RandomConv(shape[2], dim=64, device=device)\n"
        "def none(shape, device):\n    return 3\n",
        "extractors",
        wide="wide",
    )
    assert make_extractor("module:outside:wide", SHAPE).dim == make_extractor("wide", SHAPE).dim == 64
    with pytest.raises(ConfigError, match="gives a int"):
        make_extractor("module:outside:none", SHAPE)


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


def _expected(x: np.ndarray, net: Net, mean: list[float], std: list[float]) -> np.ndarray:
    h = torch.from_numpy(x).permute(0, 3, 1, 2).float()
    h = nn.functional.interpolate(h, (6, 4), mode="bilinear", antialias=True) / 255
    h = (h - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        return net.conv(h).mean((2, 3)).numpy()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    def absent(repository: str, file: str, **_: object) -> str:
        raise OSError(f"{repository} cannot be reached")

    module: Any = ModuleType("huggingface_hub")
    module.hf_hub_download = absent
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Any:
    def create_model(name: str, pretrained: bool, num_classes: int) -> Net:
        if name == "tiny.in1k":
            return Net(num_classes)
        raise RuntimeError(f"Unknown model ({name})")

    module: Any = ModuleType("timm")
    module.create_model = create_model
    config = {"input_size": (3, 6, 4), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    module.data = SimpleNamespace(resolve_model_data_config=lambda _: config)
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_timm(timm: Any) -> None:
    found = make_extractor("timm:tiny.in1k", SHAPE)
    assert isinstance(found, Backbone)
    assert (found.name, found.dim, found.ranking_only, found.is_fid) == ("timm:tiny.in1k", 3, True, False)
    assert "in1k" in found.trained_on_note
    assert "6 x 4; mean 0.5, 0.4, 0.3; std 0.2, 0.3, 0.4" in found.preprocessing
    x, net = _images(), found.network
    expected = _expected(x, net, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    np.testing.assert_allclose(found.features(x), expected, rtol=1e-4, atol=1e-6)
    grey = x[..., :1]
    np.testing.assert_allclose(found.features(grey), found.features(np.repeat(grey, 3, axis=3)), rtol=1e-4, atol=1e-6)
    with pytest.raises(DataError, match="grey or RGB"):
        found.check((8, 8, 2))
    with pytest.raises(ConfigError, match=r"'huge' with its weights: Unknown model") as caught:
        make_extractor("timm:huge", SHAPE)
    assert "hf:FOLDER" in caught.value.remedy


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
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pooled: bool, flat: bool, tower: bool, hub: Any
) -> None:
    net = _Tower(pooled, flat)
    asked: dict[str, Any] = {}

    def load(folder: str, **options: object) -> Any:
        asked.update(options)
        return SimpleNamespace(vision_model=net) if tower else net

    module: Any = ModuleType("transformers")
    module.AutoModel = SimpleNamespace(from_pretrained=load)
    monkeypatch.setitem(sys.modules, "transformers", module)
    with pytest.raises(ConfigError, match="is no model of transformers here: FileNotFoundError") as caught:
        make_extractor(f"hf:{tmp_path}", SHAPE)
    assert "preprocessor_config.json" in caught.value.remedy
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    found = make_extractor(f"hf:{tmp_path}", SHAPE)
    x = _images()
    np.testing.assert_allclose(
        found.features(x), _expected(x, net, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]), rtol=1e-4, atol=1e-6
    )
    assert asked == {"use_safetensors": True, "trust_remote_code": False, "local_files_only": False}
    with monkeypatch.context() as patch:
        patch.setenv("IMBDIFF_OFFLINE", "1")
        make_extractor(f"hf:{tmp_path}", SHAPE)
    assert asked["local_files_only"]
    with pytest.raises(ConfigError, match="cannot be reached") as caught:
        make_extractor("hf:someone/something", SHAPE)
    assert "hf:FOLDER" in caught.value.remedy


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
    x = _images(5, (28, 28, 3))
    h = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor(
        [0.2, 0.3, 0.4]
    )[:, None, None]
    with torch.no_grad():
        np.testing.assert_allclose(found.features(x), model(h).pooler_output.numpy(), rtol=1e-3, atol=1e-5)


def test_a_package_that_does_not_import_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: Any) -> None:
    def load(*_: object, **__: object) -> Any:
        raise ModuleNotFoundError("Could not import module 'Dinov2Model'.")

    module: Any = ModuleType("transformers")
    module.AutoModel = SimpleNamespace(from_pretrained=load)
    monkeypatch.setitem(sys.modules, "transformers", module)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    (tmp_path / "half_installed.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    for call, words in (
        (lambda: make_extractor(f"hf:{tmp_path}", SHAPE), "Could not import module"),
        (lambda: optional("half_installed", "timm", "this extractor"), "nms does not exist"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            call()
        assert "torchvision" in caught.value.remedy


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec, extra in (("timm:resnet18", "timm"), ("hf:a/b", "hf")):
        for module in ("timm", "transformers"):
            monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ConfigError, match="is not installed") as caught:
            make_extractor(spec, SHAPE)
        assert caught.value.remedy == f"pip install 'imbalanced-diffusion[{extra}]'"


def test_the_fingerprint_holds_size_mean_and_weights() -> None:
    def make(size: tuple[int, int], mean: float, net: nn.Module) -> str:
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), net)
        return Backbone(pool, "n", size, [mean] * 3, [1.0] * 3).fingerprint

    net = nn.Linear(3, 2)
    other = nn.Linear(3, 2)
    prints = [make((4, 4), 0.5, net), make((4, 5), 0.5, net), make((4, 4), 0.500001, net), make((4, 4), 0.5, other)]
    assert len(set(prints)) == 4
    assert make((4, 4), 0.5, net) == prints[0]
