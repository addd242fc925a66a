"""Weight files of others: read as tensors, or refused without running anything."""

from __future__ import annotations

import pickle
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from imbdiff.metrics.extractors.weights import download, load_into, read_weights, require_network
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.files import sha256_file


class Bomb:
    """Writes a file if it is ever unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("writer", ["pickle", "torch", "torch-legacy", "beside"])
def test_a_file_with_code_in_it_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    bomb: Any = Bomb(str(tmp_path / "exploded"))
    path = tmp_path / "weights.pth"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"w": bomb}, protocol=2))
    elif writer == "beside":
        torch.save({"state_dict": {"w": torch.ones(2)}, "optimizer": bomb}, path)
    else:
        torch.save({"w": bomb}, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(DataError, match="weights alone"):
        read_weights(path)
    assert not (tmp_path / "exploded").exists()
    open(tmp_path / "exploded", "w").close()  # that is what it would have done


@pytest.mark.parametrize("legacy", [False, True])
def test_wrappers_and_prefixes_come_off(tmp_path: Path, legacy: bool) -> None:
    weights = {"module.a": torch.arange(3.0), "module.b.c": torch.ones(2, 2)}
    torch.save(
        {"epoch": 7, "best": 0.5, "state_dict": weights}, tmp_path / "w.th", _use_new_zipfile_serialization=not legacy
    )
    found = read_weights(tmp_path / "w.th")
    assert set(found) == {"a", "b.c"}
    assert torch.equal(found["a"], torch.arange(3.0))
    save_file(weights, tmp_path / "w.safetensors")
    assert set(read_weights(tmp_path / "w.safetensors")) == {"a", "b.c"}
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.safetensors").read_bytes())
    assert set(read_weights(tmp_path / "w.bin")) == {"a", "b.c"}


def test_what_is_no_table_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no weight file"):
        read_weights(tmp_path / "absent.pth")
    for content, message in (
        ({"a": torch.ones(2), "lr": 0.1}, "1 tensors, besides lr"),
        ([torch.ones(2)], "holds a list"),
        ({}, "0 tensors"),
        ({"a": torch.tensor([1.0, float("nan")])}, "weight a is not finite"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(DataError, match=message):
            read_weights(tmp_path / "w.pth")
    (tmp_path / "half.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    with pytest.raises(DataError, match="not a whole safetensors file"):
        read_weights(tmp_path / "half.safetensors")
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "program.pt")
    with pytest.raises(DataError, match="TorchScript program"):
        read_weights(tmp_path / "program.pt")


def test_keys_and_shapes_that_differ_are_named() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    good = {k: torch.full_like(v, 2) for k, v in net.state_dict().items() if "num_batches" not in k}
    load_into(net, good, Path("f"), "net")
    assert torch.equal(net.state_dict()["0.weight"], torch.full((2, 3), 2.0))
    bad = {k: v for k, v in good.items() if k != "0.bias"} | {"0.weight": torch.ones(2, 4), "extra": torch.ones(1)}
    with pytest.raises(DataError) as caught:
        load_into(net, bad, Path("f"), "net")
    for part in ("0.bias: missing", "extra: unexpected", "0.weight: (2, 4) in the file, (2, 3) in the network"):
        assert part in caught.value.message
    with pytest.raises(DataError, match="and 4 more"):
        load_into(net, {f"k{i}": torch.ones(1) for i in range(3)}, Path("f"), "net")


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
    with pytest.raises(ConfigError, match="cannot be reached") as caught:
        download((tmp_path / "gone").as_uri(), tmp_path / "x.pth", "bb", "put it there")
    assert caught.value.remedy == "put it there"
    assert "x.pth (SHA-256 bb" in caught.value.message


def test_offline_is_respected_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(urllib.request, "urlopen", never)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="switched off"):
        download("https://example.org/w", tmp_path / "w", "cc", "r")
    with pytest.raises(ConfigError, match=re.escape("a/b is not on this machine")):
        require_network("https://example.org/a", "a/b", "r")
