"""torchvision is not installed where these tests run: a module stands in whose sets behave like its own."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from imbdiff.data import torchvision_sets
from imbdiff.data.sources import load
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import noise, write

N = 6


class VisionDataset:
    def __init__(self, root, transform=None, target_transform=None):
        self.root = str(root)

    def __len__(self):
        return N


class ByTrain(VisionDataset):
    """As CIFAR10: arrays in memory, targets a list, classes."""

    classes = ("ape", "bee")
    seed = 0

    def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
        super().__init__(root)
        self.asked = download
        if not download and root.endswith("empty"):
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        self.data = noise(N, 5, 5, 3, seed=self.seed + int(train))
        self.targets = [(i + train) % 2 for i in range(N)]

    def __getitem__(self, i):
        return Image.fromarray(self.data[i]), self.targets[i]


class Handed(ByTrain):
    """As EMNIST: further arguments are handed on, labels are a tensor."""

    def __init__(self, root, split, **kwargs):
        if split not in ("letters", "balanced"):
            raise ValueError(f"Unknown value '{split}' for argument split")
        super().__init__(root, **kwargs)
        self.targets = torch.tensor(self.targets)

    def __getitem__(self, i):
        return Image.fromarray(self.data[i, :, :, 0]), int(self.targets[i])


class BySplit(VisionDataset):
    """As Country211 or GTSRB: files, splits by name, labels beside the files."""

    def __init__(self, root, split="train", transform=None, target_transform=None, download=False):
        super().__init__(root)
        if split not in ("train", "valid"):
            raise ValueError(f"Unknown value '{split}' for argument split. Valid values are {{'train', 'valid'}}.")
        self._samples = [(f"{root}/{split}/{i}.png", i % 2) for i in range(N)]

    def __getitem__(self, i):
        return Image.open(self._samples[i][0]), self._samples[i][1]


class WithoutLabels(ByTrain):
    def __init__(self, root, train=True):
        super().__init__(root, train)
        self.targets = None

    def __getitem__(self, i):
        return Image.fromarray(self.data[i]), 0


class Boxes(ByTrain):
    def __getitem__(self, i):
        return Image.fromarray(self.data[i]), {"boxes": []}


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    torchvision, sets = ModuleType("torchvision"), ModuleType("torchvision.datasets")
    for kind in (VisionDataset, ByTrain, Handed, BySplit, WithoutLabels, Boxes):
        setattr(sets, kind.__name__, kind)
    sets.os = __import__("os")
    torchvision.datasets = sets
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", sets)


def test_splits_by_train(tmp_path, monkeypatch):
    source = load(f"torchvision:ByTrain?root={tmp_path}/a")
    assert (source.kind, source.splits, source.class_names) == ("torchvision", ("train", "test"), ("ape", "bee"))
    assert source.labels().tolist() == [1, 0, 1, 0, 1, 0]
    assert source.labels("test").tolist() == [0, 1, 0, 1, 0, 1]
    images, _ = source.read_all()
    assert np.array_equal(images["train"].images, noise(N, 5, 5, 3, seed=1))
    assert np.array_equal(images["test"].images, noise(N, 5, 5, 3, seed=0))
    kept, _ = source.read_all(cache=tmp_path / "kept")
    assert np.array_equal(np.asarray(kept["train"].images), images["train"].images)
    stamps = {source.reader.stamp((split, i)) for split in source.splits for i in range(N)}
    assert len(stamps) == 2 * N
    monkeypatch.setattr(ByTrain, "seed", 5)  # other pixels, the same labels
    torchvision_sets._dataset.cache_clear()
    again = load(f"torchvision:ByTrain?root={tmp_path}/a")
    assert not stamps & {again.reader.stamp((split, i)) for split in again.splits for i in range(N)}
    torchvision_sets._dataset.cache_clear()


def test_splits_by_name_and_labels_beside_the_files(tmp_path):
    for split in ("train", "valid"):
        for i in range(N):
            write(tmp_path / split / f"{i}.png", noise(4, 4, seed=i))
    source = load(f"torchvision:BySplit?root={tmp_path}")
    assert source.splits == ("train", "val")
    assert source.class_names == ("0", "1")
    assert np.array_equal(source.read("val").images[3, ..., 0], noise(4, 4, seed=3))
    before = source.reader.stamp(("val", 0))
    write(tmp_path / "valid" / "0.png", noise(4, 5))
    torchvision_sets._dataset.cache_clear()
    assert load(f"torchvision:BySplit?root={tmp_path}").reader.stamp(("val", 0)) != before
    (tmp_path / "train" / "2.png").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="train/2: damaged"):
        source.read()


def test_arguments_that_are_handed_on(tmp_path):
    source = load(f"torchvision:Handed?root={tmp_path}/h&split=letters")
    assert source.splits == ("train", "test")
    assert source.read().shape == (5, 5, 1)
    with pytest.raises(ConfigError, match=r"Unknown value 'x'(?s:.)*options split, train"):
        load(f"torchvision:Handed?root={tmp_path}/h&split=x")


def test_every_mode_arrives_as_it_is(tmp_path, monkeypatch):
    pixels = {
        "1": Image.fromarray(noise(5, 5) // 128 * 255).convert("1"),
        "I;16": Image.fromarray(noise(5, 5).astype(np.uint16) * 257),
        "P": Image.fromarray(noise(5, 5, 3)).quantize(7),
        "CMYK": Image.fromarray(noise(5, 5, 4), "CMYK"),
        "RGBA": Image.fromarray(noise(5, 5, 4)),
        "LA": Image.fromarray(noise(5, 5, 2), "LA"),
    }
    images = list(pixels.values())
    monkeypatch.setattr(ByTrain, "__getitem__", lambda self, i: (images[i], self.targets[i]))
    source = load(f"torchvision:ByTrain?root={tmp_path}/modes")
    assert source.survey().modes == dict.fromkeys(pixels, 2)
    turned = Image.fromarray(noise(4, 7, 3))
    turned.info["exif"] = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    monkeypatch.setattr(ByTrain, "__getitem__", lambda self, i: (turned, self.targets[i]))
    assert load(f"torchvision:ByTrain?root={tmp_path}/turned").read().shape == (7, 4, 3)


def test_nothing_is_downloaded_unasked(tmp_path):
    with pytest.raises(DataError, match=r"not found or corrupted(?s:.)*download=1"):
        load(f"torchvision:ByTrain?root={tmp_path}/empty")
    assert len(load(f"torchvision:ByTrain?root={tmp_path}/empty&download=1").ids()) == N


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("torchvision:ByTrain", "does not say where its files are"),
        ("torchvision:bytrain?root=x", "did you mean ByTrain"),
        ("torchvision:Nothing?root=x", "no data set 'Nothing'(?s:.)*BySplit"),
        ("torchvision:os?root=x", "no data set 'os'"),
        ("torchvision:__doc__?root=x", "no data set"),
        ("torchvision:ByTrain?root=x&transform=y", "unknown option transform"),
        ("torchvision:WithoutLabels?root=x&download=1", "cannot download"),
    ],
)
def test_what_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        load(text)


def test_sets_that_are_not_for_classification():
    with pytest.raises(DataError, match=r"items are \(Image, dict\)"):
        load("torchvision:Boxes?root=x")
    with pytest.raises(DataError, match="labels with the images only"):
        load("torchvision:WithoutLabels?root=x")


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.datasets")
    with pytest.raises(ConfigError, match=r"torchvision is not installed(?s:.)*imbalanced-diffusion\[torchvision\]"):
        load("torchvision:ByTrain?root=x")


def test_a_torchvision_that_does_not_import(monkeypatch, tmp_path):
    """As PyPI's wheel beside a CPU build of torch."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.delitem(sys.modules, "torchvision.datasets")
    with pytest.raises(ConfigError, match=r"does not import: operator torchvision::nms(?s:.)*folder of class folders"):
        load("torchvision:ByTrain?root=x")
