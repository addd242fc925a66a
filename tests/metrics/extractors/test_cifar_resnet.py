"""The CIFAR-10 classifiers, and a user's own checkpoint."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imbdiff.metrics.extractors import CifarResNet, make_extractor
from imbdiff.metrics.extractors.cifar_resnet import CIFAR10, Block, cifar_resnet
from imbdiff.recognition.networks import build_network
from imbdiff.runtime.errors import ConfigError, DataError

SHAPE = (32, 32, 3)


def _saved(path: Path, depth: int, classes: int = 10) -> CifarResNet:
    with torch.random.fork_rng():
        torch.manual_seed(depth)
        net = CifarResNet(depth, classes).eval()
    state = {f"module.{k}": v for k, v in net.state_dict().items() if "num_batches" not in k}
    torch.save({"best_prec1": 90.0, "state_dict": state}, path)
    return net


@pytest.mark.parametrize(("depth", "thousands"), [(20, 270), (32, 464), (56, 853), (110, 1728)])
def test_sizes_are_those_of_the_paper(depth: int, thousands: int) -> None:
    """He et al. (2016), table 6: 0.27, 0.46, 0.85 and 1.7 million weights."""
    assert round(sum(p.numel() for p in CifarResNet(depth).parameters()) / 1000) == pytest.approx(thousands, abs=1)


def test_the_shortcut_takes_every_second_pixel_and_pads_on_both_sides() -> None:
    block = Block(16, 32, 2).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 16, 6, 6)
    with torch.no_grad():
        found = block(x)
    assert found.shape == (1, 32, 3, 3)
    assert torch.equal(found[:, 8:24], x[:, :, ::2, ::2])
    assert not found[:, :8].any()
    assert not found[:, 24:].any()


def test_a_file_of_the_known_layout_tells_its_depth(tmp_path: Path) -> None:
    net = _saved(tmp_path / "net.th", 32)
    found = make_extractor(f"cifar-resnet:{tmp_path / 'net.th'}", SHAPE)
    assert (found.name, found.dim, found.role, found.classes) == ("cifar-resnet32", 64, "judge", CIFAR10)
    assert "50,000 CIFAR-10" in found.trained_on_note
    x = np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8)
    normal = (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.no_grad():
        z = net(torch.from_numpy(normal).permute(0, 3, 1, 2).float())
    f = found.features(x)
    np.testing.assert_allclose(found.probabilities(f), z.double().softmax(1).numpy(), rtol=1e-3)
    for shape in ((28, 28, 3), (32, 32, 1)):
        with pytest.raises(DataError, match="made for images"):
            make_extractor(f"cifar-resnet:{tmp_path / 'net.th'}", shape)


def test_another_depth_or_file_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "net.th", 20)
    with pytest.raises(DataError, match="does not fit cifar-resnet56: layer1"):
        cifar_resnet(tmp_path / "net.th", 56)
    torch.save({"w": torch.ones(1)}, tmp_path / "w.th")
    with pytest.raises(DataError, match="does not hold a cifar-resnet"):
        cifar_resnet(tmp_path / "w.th")
    with pytest.raises(ConfigError, match="depth 21"):
        CifarResNet(21)


def test_a_checkpoint_of_this_projects_networks(tmp_path: Path) -> None:
    network = build_network("judge-cnn", SHAPE, 7, seed=3).eval()
    path = tmp_path / "mine.safetensors"
    save_file(network.state_dict(), path)
    networks = {"judge-cnn": lambda shape, classes: build_network("judge-cnn", shape, classes)}
    found = make_extractor(f"checkpoint:judge-cnn:{path}", SHAPE, networks=networks)
    x = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1).double().softmax(1).numpy()
    np.testing.assert_allclose(found.probabilities(found.features(x)), expected, rtol=1e-4)
    assert "own" in found.trained_on_note
    with pytest.raises(ConfigError, match="unknown architecture 'judge'") as caught:
        make_extractor(f"checkpoint:judge:{path}", SHAPE, networks=networks)
    assert "judge-cnn" in caught.value.remedy
    torch.save(CifarResNet(20).state_dict(), tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"head\.weight: missing"):
        make_extractor(f"checkpoint:judge-cnn:{tmp_path / 'other.pth'}", SHAPE, networks=networks)
    with pytest.raises(DataError, match=r"does not fit cifar-resnet20: conv1\.weight: missing"):
        make_extractor(f"checkpoint:cifar-resnet20:{path}", SHAPE)


def test_a_cifar_checkpoint_of_the_users_own_claims_no_classes(tmp_path: Path) -> None:
    _saved(tmp_path / "mine.th", 20, classes=6)
    found = make_extractor(f"checkpoint:cifar-resnet20:{tmp_path / 'mine.th'}", SHAPE)
    assert (found.name, found.classes) == (f"cifar-resnet20:mine@{found.fingerprint[:8]}", None)
    assert "CIFAR-10" not in found.trained_on_note


@pytest.fixture(scope="module")
def cifar10() -> dict[str, np.ndarray]:
    folder = Path(os.environ.get("IMBDIFF_DATA", "/nonexistent"))
    if not (folder / "cifar10.npz").exists():
        pytest.skip("IMBDIFF_DATA does not name a folder with cifar10.npz")
    spec = importlib.util.spec_from_file_location("imbdiff_data_load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load("cifar10")


@pytest.mark.parametrize(("name", "accuracy"), [("20-12fca82f", 0.88), ("56-4bfd9763", 0.90)])
def test_accuracy_of_the_real_files(cifar10: dict[str, np.ndarray], name: str, accuracy: float) -> None:
    """91.73 % and 93.39 % on all 10,000 test images; here on 500 of them."""
    file = Path(os.environ["IMBDIFF_DATA"]) / f"akamaster_resnet{name}.th"
    if not file.exists():
        pytest.skip(f"IMBDIFF_DATA has no {file.name}")
    assert tuple(cifar10["class_names"]) == CIFAR10
    found = cifar_resnet(file)
    decided = found.predict(found.features(cifar10["x_test"][:500]))
    assert (decided == cifar10["y_test"][:500]).mean() > accuracy
