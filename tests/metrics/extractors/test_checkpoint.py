"""Files of weights that are the user's own: each has a name of its own, also where the files are called alike."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from imbdiff.metrics.extractors.catalogue import make_extractor
from imbdiff.metrics.extractors.checkpoint import checkpoint
from imbdiff.metrics.extractors.cifar_resnet import CifarResNet
from imbdiff.metrics.extractors.inception_net import InceptionV3
from imbdiff.recognition.networks import build_network

SHAPE = (32, 32, 3)


def test_two_files_of_one_name_are_two_extractors(tmp_path: Path) -> None:
    networks = {"judge-cnn": lambda shape, classes: build_network("judge-cnn", shape, classes)}
    found = []
    for seed in (0, 1, 0):
        path = tmp_path / str(len(found)) / "model.safetensors"
        path.parent.mkdir()
        save_file(build_network("judge-cnn", SHAPE, 5, seed=seed).state_dict(), path)
        found.append(make_extractor(f"checkpoint:judge-cnn:{path}", SHAPE, networks=networks))
    assert [e.name for e in found] == [f"judge-cnn:model@{e.fingerprint[:8]}" for e in found]
    assert found[0].name != found[1].name
    assert found[0].name == found[2].name  # the same weights elsewhere


def test_a_cifar_network_and_an_inception_that_is_not_of_fid(tmp_path: Path) -> None:
    names = []
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(CifarResNet(20).state_dict(), tmp_path / "model.th")
        names.append(checkpoint("cifar-resnet20", tmp_path / "model.th", SHAPE).name)
    assert all(name.startswith("cifar-resnet20:model@") for name in names)
    assert names[0] != names[1]
    torch.save(InceptionV3().state_dict(), tmp_path / "inc.pth")
    found = checkpoint("inception", tmp_path / "inc.pth", SHAPE)
    assert found.name == f"inception-unknown:inc@{found.fingerprint[:8]}"
