"""The same images give the same splits, to the bit, whatever kind of source they come from."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from imbdiff.data import reading as parallel
from imbdiff.data.sources import load
from imbdiff.data.splits import prepare
from tests.data.making import encoded, noise, tarred, zipped

datasets = pytest.importorskip("datasets")
CLASSES = ("ant", "bee", "cow")
COUNTS = (14, 9, 5)


def grey(i):
    """(an image file, its pixels as they must come out)."""
    x = noise(6, 7, seed=i)
    return encoded(x), x[..., None]


def mixed(i):
    """RGB, transparent, palette and 16-bit files, whose pixels are known without decoding them."""
    x = noise(6, 7, 3, seed=i)
    if i % 4 == 1:
        alpha = noise(6, 7, 1, seed=1000 + i) // 128 * 255
        return encoded(np.concatenate([x, alpha], axis=2)), np.where(alpha == 255, x, 255).astype(np.uint8)
    if i % 4 == 2:
        x = np.where(x[..., :1] < 128, np.uint8([10, 200, 30]), np.uint8([250, i, 0])).astype(np.uint8)
        indices = (x[..., 0] != 10).astype(np.uint8)
        image = Image.fromarray(indices)
        image.putpalette([10, 200, 30, 250, i, 0])
        return encoded(image), x
    if i % 4 == 3:
        deep = x[..., 0].astype(np.uint16) * 257
        return encoded(Image.fromarray(deep)), np.repeat(x[..., :1], 3, axis=2)
    return encoded(x), x


SETS = {"grey": grey, "mixed": mixed}


class Shelf:
    """One set of images in every form."""

    def __init__(self, root, make):
        self.root, self.files, self.labels, self.pixels = root, {}, [], []
        for k, (name, n) in enumerate(zip(CLASSES, COUNTS, strict=True)):
            for i in range(n):
                data, pixels = make(100 * k + i)
                self.files[f"{name}/{i:03d}.png"] = data
                self.labels.append(k)
                self.pixels.append(pixels)

    def folder(self):
        for name, data in self.files.items():
            path = self.root / "folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return str(self.root / "folder")

    def npz(self):
        path = self.root / "x.npz"
        np.savez(path, x_train=np.stack(self.pixels), y_train=np.array(self.labels), class_names=np.array(CLASSES))
        return str(path)

    def zip(self):
        return str(zipped(self.root / "x.zip", self.files))

    def list(self):
        lines = [f"{name} {name.partition('/')[0]}" for name in self.files]
        (self.root / "x.txt").write_text("\n".join(lines))
        return f"{self.root}/x.txt?root={self.folder()}"

    def csv(self):
        with open(self.root / "x.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "label"])
            writer.writerows([name, name.partition("/")[0]] for name in self.files)
        return f"{self.root}/x.csv?root={self.folder()}"

    def shards(self):
        items = []
        for name, data in self.files.items():
            items += [(name, data), (name.replace(".png", ".txt"), name.partition("/")[0].encode())]
        if not (self.root / "s").exists():
            tarred(self.root / "s" / "train-000.tar", items[:20])
            tarred(self.root / "s" / "train-001.tar", items[20:])
        return f"{self.root}/s/train-{{000..001}}.tar"

    def _table(self):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
        images = [{"bytes": data, "path": None} for data in self.files.values()]
        return datasets.Dataset.from_dict({"image": images, "label": self.labels}, features=features)

    def parquet(self):
        (self.root / "parquet").mkdir(exist_ok=True)
        self._table().to_parquet(self.root / "parquet" / "train.parquet")
        return str(self.root / "parquet" / "train.parquet")

    def hf_parquet(self):
        return "hf:" + os.path.dirname(self.parquet())

    def hf_saved(self):
        self._table().save_to_disk(str(self.root / "saved"))
        return f"hf:{self.root}/saved"

    def hf_folder(self):
        return "hf:" + self.folder()


KINDS = [name for name in vars(Shelf) if not name.startswith("_") and name != "folder"]


@pytest.fixture(scope="module", params=SETS)
def shelf(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMBDIFF_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        datasets.disable_progress_bars()
        shelf = Shelf(tmp_path_factory.mktemp(request.param), SETS[request.param])
        shelf.wanted = prepare(shelf.folder())
        yield shelf


def test_the_folder_gives_the_pixels_that_were_written(shelf):
    images = load(shelf.folder()).read()
    assert np.array_equal(images.images, np.stack(shelf.pixels))
    assert images.labels.tolist() == shelf.labels
    assert images.class_names == CLASSES


@pytest.mark.parametrize("kind", KINDS)
def test_same_splits(shelf, kind):
    _same(prepare(getattr(shelf, kind)()), shelf.wanted)


@pytest.mark.parametrize("kind", ["folder", "zip", "csv", "hf_parquet"])
def test_same_splits_from_the_cache(shelf, kind, tmp_path):
    source = getattr(shelf, kind)()
    for _ in range(2):  # made, then found
        _same(prepare(source, cache=tmp_path), shelf.wanted)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("shelf", ["mixed"], indirect=True)
@pytest.mark.parametrize("kind", ["zip", "shards"])
def test_readers_travel_to_processes(shelf, kind, monkeypatch):
    monkeypatch.setattr(parallel, "PROCESSES_FROM", 1)
    monkeypatch.setattr(parallel, "CHUNK", 1)
    _same(prepare(getattr(shelf, kind)()), shelf.wanted)


def _same(made, wanted):
    assert made.manifest["hash"] == wanted.manifest["hash"]
    for split in ("train", "val", "test"):
        mine, theirs = getattr(made, split), getattr(wanted, split)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert np.array_equal(np.asarray(mine.images), np.asarray(theirs.images))
            assert np.array_equal(mine.labels, theirs.labels)
