"""Models: building from a seed, saving, loading, and what cannot be loaded."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.codec import IdentityCodec
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import DDPM, PROCESSES
from imbdiff.diffusion.saved import load_model, load_weights, save_model
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import read_json

STATS = ClassStats(("a", "<b>", "c"), (5, 2, 1))
SHAPE = (1, 8, 8)


def build(name: str = "mlp", seed: int = 0, stats: ClassStats = STATS) -> DiffusionModel:
    return build_model(name, DDPM("cosine", "v_prediction"), SHAPE, stats, seed=seed)


def predict(model: DiffusionModel) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, *SHAPE, generator=g)
    with torch.no_grad():
        return model.eval()(x, torch.tensor([0, 10, 500, 999]), torch.tensor([0, 1, 2, 3]))[0]


@pytest.mark.parametrize("name", ["mlp", "unet-8", "dit-tiny"])
def test_round_trip(tmp_path: Path, name: str) -> None:
    model = build(name, seed=5)
    save_model(model, tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["model.json", "model.safetensors"]
    loaded = load_model(tmp_path / "m")
    assert not loaded.training
    assert loaded.spec.to_json() == model.spec.to_json()
    assert loaded.process == model.process
    assert (loaded.num_classes, loaded.null) == (3, 3)
    assert torch.equal(predict(loaded), predict(model))
    assert read_json(tmp_path / "m" / "model.json") == model.spec.to_json()
    save_model(loaded, tmp_path / "m")  # over itself
    assert torch.equal(predict(load_model(tmp_path / "m")), predict(model))


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = build(seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(4)
    assert torch.equal(predict(first), predict(build(seed=1)))
    assert not torch.equal(predict(first), predict(build(seed=2)))


def test_the_process_gives_the_networks_time() -> None:
    """100 steps of a short process cover the same range of the time embedding."""
    x, y = torch.ones(1, *SHAPE), torch.tensor([0])
    long, short = (build_model("mlp", DDPM(num_steps=n), SHAPE, STATS).eval() for n in (1000, 100))
    assert torch.equal(long(x, torch.tensor([500]), y)[0], short(x, torch.tensor([50]), y)[0])


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is missing"):
        load_model(tmp_path)
    save_model(build(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"model\.safetensors does not exist"):
        load_model(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged_weights(tmp_path: Path, damage: str) -> None:
    save_model(build(), tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "noise": b"\x93" * 5000}[damage])
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        load_model(tmp_path)


def test_damaged_description(tmp_path: Path) -> None:
    save_model(build(), tmp_path)
    path = tmp_path / "model.json"
    whole = json.loads(path.read_text())
    path.write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        load_model(tmp_path)
    for change in ({"kind": "resnet"}, {"shape": [8, 8]}, {"stats": None}, {"config": {"width": "x"}}):
        path.write_text(json.dumps(whole | change))
        with pytest.raises(RunError, match="does not describe a model"):
            load_model(tmp_path)
    path.write_text(json.dumps({k: v for k, v in whole.items() if k != "shape"}))
    with pytest.raises(RunError, match="does not describe a model"):
        load_model(tmp_path)
    path.write_text(json.dumps(whole | {"process": {"kind": "edm"}}))
    with pytest.raises(RunError, match="unknown process"):
        load_model(tmp_path)


class Bomb:
    """Writes a file if it is ever unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_nothing_is_unpickled(tmp_path: Path, writer: str) -> None:
    save_model(build(), tmp_path)
    bomb = Bomb(str(tmp_path / "exploded"))
    if writer == "pickle":
        (tmp_path / "model.safetensors").write_bytes(pickle.dumps(bomb))
    else:
        torch.save({"table": bomb}, tmp_path / "model.safetensors")
    with pytest.raises(RunError, match="damaged"):
        load_model(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_model_name_the_tensors(tmp_path: Path) -> None:
    save_model(build(stats=ClassStats(("a", "b", "c", "d"), (5, 4, 2, 1))), tmp_path / "four")
    with pytest.raises(RunError) as caught:
        load_weights(build().backbone, tmp_path / "four" / "model.safetensors")
    assert "conditioner.table: (4, 128) here, (3, 128) in the model" in caught.value.message
    assert "number of classes" in caught.value.remedy
    target = build("unet-8")
    before = predict(target)
    with pytest.raises(RunError) as caught:
        load_weights(target.backbone, tmp_path / "four" / "model.safetensors")
    assert "net.conv_in.weight: missing" in caught.value.message
    assert "... and" in caught.value.message  # a capped list
    assert torch.equal(predict(target), before)  # nothing was half loaded


def test_a_full_disk_leaves_the_saved_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    save_model(model, tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="no space left"):
        save_model(build(seed=9), tmp_path)
    monkeypatch.undo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert torch.equal(predict(load_model(tmp_path)), predict(model))


def test_bad_values() -> None:
    with pytest.raises(ConfigError, match="among the backbones"):
        build_model("resnet", PROCESSES["ddpm"], SHAPE, STATS)
    with pytest.raises(ConfigError, match="one capacity"):
        build()(torch.zeros(1, *SHAPE), torch.tensor([0]), torch.tensor([0]), capacity=torch.ones(1))


# -- the identity codec


def test_every_value_comes_back_exactly() -> None:
    codec = IdentityCodec((1, 16, 16))
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    z = codec.encode(images)
    assert z.dtype == torch.float32
    assert z.min() == -1
    assert z.max() == 1
    torch.testing.assert_close(z.double(), images.double() / 127.5 - 1, atol=1e-7, rtol=0)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(codec.decode(z.to(dtype)), images)
    assert torch.equal(images, torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16))  # not changed in place


def test_decoding_clamps_and_rounds() -> None:
    codec = IdentityCodec((1, 1, 1))
    step = 2 / 255
    values = [-50.0, -1.0001, -1 + 0.49 * step, -1 + 0.51 * step, 1 - 0.51 * step, 1.0001, 50.0]
    decoded = codec.decode(torch.tensor(values).reshape(-1, 1, 1, 1)).flatten().tolist()
    assert decoded == [0, 0, 0, 1, 254, 255, 255]
