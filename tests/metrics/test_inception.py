"""The FID Inception: architecture, resize, files. Activations against torch-fidelity are in tests/oracles."""

from __future__ import annotations

import pickle
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from imbdiff.metrics.extractors import make_extractor
from imbdiff.metrics.extractors.inception import (
    FID_SHA256,
    URL,
    InceptionFeatures,
    find_inception_weights,
    load_inception,
)
from imbdiff.metrics.extractors.inception_net import InceptionV3, resize_like_tf1
from imbdiff.metrics.extractors.weights import download, load_into, read_weights
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.files import sha256_file

MODULE = "imbdiff.metrics.extractors.inception"


@pytest.fixture(scope="module")
def net() -> InceptionV3:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return InceptionV3().eval()


@pytest.fixture(scope="module")
def file(net: InceptionV3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch, and downloads allowed."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("HF_HUB_OFFLINE", "IMBDIFF_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub" / "checkpoints"


def _images(n: int = 3, shape: tuple[int, ...] = (20, 28, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def test_architecture(net: InceptionV3) -> None:
    """Sizes that are published for Inception v3 without its auxiliary head: 21,785,568 weights below the last layer."""
    state = net.state_dict()
    below = sum(p.numel() for name, p in net.named_parameters() if not name.startswith("fc."))
    assert below == 21_785_568
    shapes = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
    }
    assert {k: tuple(state[k].shape) for k in shapes} == shapes
    assert len([k for k in state if k.endswith("conv.weight")]) == 94
    assert all(m.eps == 0.001 for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_pooling_is_that_of_the_2015_graph(net: InceptionV3) -> None:
    """Only the last block takes the maximum; means are over pixels that exist, so a constant stays constant."""
    seen: dict[str, torch.Tensor] = {}
    blocks = [n for n, _ in net.named_children() if n.startswith("Mixed") and n not in ("Mixed_6a", "Mixed_7a")]
    for name in blocks:
        block = net.get_submodule(name)
        channels = block.branch1x1.conv.in_channels  # type: ignore[union-attr]
        hook = block.branch_pool.register_forward_pre_hook(  # type: ignore[union-attr, operator]
            lambda _, args, name=name: seen.__setitem__(name, args[0].clone())
        )
        ramp = torch.ones(1, channels, 5, 5)
        ramp[:, :, 2, 2] = 10.0
        with torch.no_grad():
            block(ramp)
        hook.remove()
    for name in blocks:
        middle, corner = float(seen[name][0, 0, 2, 2]), float(seen[name][0, 0, 0, 0])
        assert corner == pytest.approx(1.0), name
        assert middle == pytest.approx(10.0 if name == "Mixed_7c" else 2.0), name


def _resized_by_loops(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) float64, pixel by pixel, with src = dst * scale."""
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y, z = i * x.shape[0] / height, j * x.shape[1] / width
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, x.shape[0] - 1), min(z0 + 1, x.shape[1] - 1)
            top = x[y0, z0] * (1 - (z - z0)) + x[y0, z1] * (z - z0)
            low = x[y1, z0] * (1 - (z - z0)) + x[y1, z1] * (z - z0)
            out[i, j] = top * (1 - (y - y0)) + low * (y - y0)
    return out


@pytest.mark.parametrize(
    ("source", "target"), [((7, 5), (29, 31)), ((31, 40), (13, 12)), ((9, 9), (9, 9)), ((2, 3), (8, 8))]
)
def test_the_resize_is_the_legacy_one(source: tuple[int, int], target: tuple[int, int]) -> None:
    x = np.random.default_rng(1).uniform(0, 255, source)
    found = resize_like_tf1(torch.from_numpy(x).float()[None, None], *target)[0, 0].numpy()
    np.testing.assert_allclose(found, _resized_by_loops(x, *target), atol=5e-3)
    if source != target:
        modern = torch.nn.functional.interpolate(torch.from_numpy(x)[None, None], target, mode="bilinear")[0, 0].numpy()
        assert np.abs(modern - found).max() > 5  # the wrong rule would be seen


def test_features_and_probabilities(net: InceptionV3) -> None:
    extractor = InceptionFeatures(net)
    x = _images(2)
    seen: list[torch.Tensor] = []
    hook = net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    f = extractor.features(x, batch_size=1)
    extractor.features(x[:1, :, :, :1])
    hook.remove()
    assert f.shape == (2, 2048)
    h = (resize_like_tf1(torch.from_numpy(x).permute(0, 3, 1, 2).float()) - 128) / 128
    assert h.shape == (2, 3, 299, 299)
    torch.testing.assert_close(torch.cat(seen[:2]), h)
    torch.testing.assert_close(seen[2], h[:1, :1].expand(-1, 3, -1, -1))  # grey
    with torch.no_grad():
        np.testing.assert_allclose(f, net(h).numpy(), rtol=1e-4, atol=1e-6)
    z = f.astype(np.float64) @ net.fc.weight.detach().double().numpy().T  # no bias
    p = np.exp(z - z.max(1, keepdims=True))
    found = extractor.probabilities(f)
    np.testing.assert_allclose(found, p / p.sum(1, keepdims=True), rtol=1e-4)
    assert extractor.predict(f) is None  # its classes are not those of any data set here
    with pytest.raises(DataError, match="grey or RGB"):
        extractor.features(_images(1, (8, 8, 4)))


def test_only_the_known_file_is_fid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = make_extractor(f"inception:{file}", (32, 32, 3))
    assert (found.name, found.is_fid, found.verified, found.ranking_only) == ("inception-unknown", False, None, True)
    assert sha256_file(file) in found.weights_note
    monkeypatch.setattr(f"{MODULE}.FID_SHA256", sha256_file(file))
    found = load_inception(file)
    assert (found.name, found.is_fid, found.verified) == ("inception-v3-fid", True, False)
    assert "never run against the real weights" in found.weights_note


def test_a_program_is_refused(tmp_path: Path) -> None:
    """As NVIDIA's file of these weights is."""
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    with pytest.raises(DataError, match="cannot be read as weights alone") as caught:
        load_inception(path)
    assert "state_dict" in caught.value.remedy


def test_without_network_the_error_says_what_to_fetch_and_where_to_put_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(ConfigError) as caught:
        make_extractor("inception", (32, 32, 3))
    name = "weights-inception-2015-12-05-6726825d.pth"
    text = str(caught.value)
    for part in (name, FID_SHA256, URL, str(home / name), "--inception-weights", "no route"):
        assert part in text
    with pytest.raises(ConfigError, match=r"nowhere\.pth"):
        load_inception(home / "nowhere.pth")


def test_the_cache_of_torch_is_used_and_filled(file: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_inception_weights() is None
    home.mkdir(parents=True)
    other = home / "pt_inception-2015-12-05-6726825d.pth"
    other.write_bytes(b"cut off")
    assert find_inception_weights() == other
    with pytest.raises(DataError, match="has SHA-256"):
        load_inception()
    other.unlink()
    monkeypatch.setattr(f"{MODULE}.FID_SHA256", sha256_file(file))
    monkeypatch.setattr(f"{MODULE}.FILES", ("w.pth",))
    monkeypatch.setattr(f"{MODULE}.URL", file.as_uri())
    assert load_inception().is_fid
    assert find_inception_weights() == home / "w.pth"


class Bomb:
    """Writes a file if it is ever unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("writer", ["pickle", "torch", "torch-legacy", "among tensors"])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    bomb: Any = Bomb(str(tmp_path / "exploded"))
    path = tmp_path / "weights.pth"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"w": bomb}, protocol=2))
    elif writer == "among tensors":
        torch.save({"state_dict": {"w": torch.ones(2)}, "optimizer": bomb}, path)
    else:
        torch.save({"w": bomb}, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(DataError, match="weights alone"):
        read_weights(path)
    assert not (tmp_path / "exploded").exists()
    open(tmp_path / "exploded", "w").close()  # that is what it would have done


@pytest.mark.parametrize("legacy", [False, True])
def test_tables_of_weights_are_read_whatever_the_file_is_called(tmp_path: Path, legacy: bool) -> None:
    weights = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}
    torch.save(weights, tmp_path / "w.th", _use_new_zipfile_serialization=not legacy)
    assert torch.equal(read_weights(tmp_path / "w.th")["a"], torch.arange(3.0))
    save_file(weights, tmp_path / "w.bin")
    assert set(read_weights(tmp_path / "w.bin")) == {"a", "b.c"}


def test_what_is_no_table_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no weight file"):
        read_weights(tmp_path / "absent.pth")
    for content, message in (
        ({"a": torch.ones(2), "lr": 0.1}, "1 tensors, and lr"),
        ([torch.ones(2)], "0 tensors, and list"),
        ({}, "0 tensors"),
        ({"a": torch.tensor([1.0, float("nan")])}, "weight a is not finite"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(DataError, match=message):
            read_weights(tmp_path / "w.pth")
    (tmp_path / "half.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(DataError, match="weights alone"):
        read_weights(tmp_path / "half.safetensors")


def test_keys_and_shapes_that_differ_are_named() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    good = {k: torch.full_like(v, 2) for k, v in net.state_dict().items() if "num_batches" not in k}
    load_into(net, good, Path("f"), "net")
    assert torch.equal(net.state_dict()["0.weight"], torch.full((2, 3), 2.0))
    bad = {k: v for k, v in good.items() if k != "0.bias"} | {"0.weight": torch.ones(2, 4), "extra": torch.ones(1)}
    with pytest.raises(DataError) as caught:
        load_into(net, bad, Path("f"), "net")
    for part in ("f does not fit net", '"0.bias"', '"extra"', "[2, 4]", "[2, 3]"):
        assert part in caught.value.message


def test_a_download_is_checked_and_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "IMBDIFF_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    source, target = tmp_path / "source", tmp_path / "deep" / "w.pth"
    source.write_bytes(b"weights" * 1000)
    with pytest.raises(DataError, match="not aaaa"):
        download(source.as_uri(), target, "aaaa", "remedy")
    assert not list((tmp_path / "deep").iterdir())
    download(source.as_uri(), target, sha256_file(source), "remedy")
    assert target.read_bytes() == source.read_bytes()
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        download((tmp_path / "gone").as_uri(), tmp_path / "x.pth", "bb", "put it there")
    assert caught.value.remedy == "put it there"
    assert "x.pth (SHA-256 bb" in caught.value.message


def test_offline_is_respected_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="switched off"):
        download("https://example.org/w", tmp_path / "w", "cc", "r")
