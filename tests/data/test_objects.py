"""Sources of somebody else's: every form that a function may return, by module or entry point, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imbdiff.data.imageset import ImageSet
from imbdiff.data.objects import as_source
from imbdiff.data.plain import read_any
from imbdiff.data.sources import load, parse
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import noise

PROGRAM = """
import numpy as np
from PIL import Image
from imbdiff.data.arrays import ArraySource
from imbdiff.data.imageset import ImageSet

X = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
Y = np.array([0, 1, 1, 0, 1, 0])
NAMES = ("cat", "dog")

class Pairs:
    classes = NAMES
    def __init__(self, first="0"):
        self.first = int(first)
    def __len__(self):
        return 6
    def __getitem__(self, i):
        if not 0 <= i < 6:
            raise IndexError(i)
        return Image.fromarray(X[(i + self.first) % 6]), int(Y[(i + self.first) % 6])

def source(): return ArraySource({"train": (X, Y)}, NAMES)
def images(): return ImageSet(X[..., None], Y, NAMES)
def pair(): return X, Y
def triple(): return X, Y, NAMES
def splits(): return {"train": (X, Y, NAMES), "test": (X[:2], Y[:2], NAMES)}
def sets(): return {"train": Pairs(), "test": Pairs("1")}
def number(): return 7
def fails(): raise RuntimeError("no disk")
def strange(): return {"train": (X, Y), "extra": (X, Y)}
def mixed(): return {"train": (X, Y), "test": Pairs()}
def halves(): return X.astype(np.float32), Y
OBJECT = Pairs()
TEXT = "birds"
"""


@pytest.mark.parametrize(
    ("name", "names"),
    [("source", ("cat", "dog")), ("images", ("cat", "dog")), ("pair", ("0", "1")), ("triple", ("cat", "dog")),
     ("Pairs", ("cat", "dog")), ("OBJECT", ("cat", "dog")), ("splits", ("cat", "dog")), ("sets", ("cat", "dog"))],
)  # fmt: skip
def test_every_form_gives_the_same_images(name: str, names: tuple[str, ...], outside: Callable[..., None]) -> None:
    outside(PROGRAM)
    opened = load(f"module:outside:{name}")
    assert opened.class_names == names
    assert opened.splits == (("train", "test") if name in ("splits", "sets") else ("train",))
    found = opened.read("train")
    np.testing.assert_array_equal(found.images, np.arange(120, dtype=np.uint8).reshape(6, 4, 5, 1))
    assert found.labels.tolist() == [0, 1, 1, 0, 1, 0]
    assert not opened.flippable
    assert load(f"module:outside:{name}", flippable=True).flippable
    assert read_any(f"module:outside:{name}", "train").images.fingerprint == found.fingerprint


def test_options_are_arguments_and_an_entry_point_is_a_name(outside: Callable[..., None]) -> None:
    outside(PROGRAM, "sources", their_birds="Pairs")
    assert load("module:outside:Pairs?first=2").labels().tolist() == [1, 0, 1, 0, 0, 1]
    assert load("their-birds?first=2").labels().tolist() == [1, 0, 1, 0, 0, 1]


def test_names_stay_as_they_are_when_made_absolute(
    outside: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside(PROGRAM, "sources", their_birds="Pairs")
    monkeypatch.chdir(tmp_path)
    for name in ("module:outside:Pairs", "module:a.b.c:birds?first=2", "their-birds", "their-birds?first=2"):
        assert parse(name).absolute() == name
    (tmp_path / "files").mkdir()
    assert parse("module:outside:Pairs?root=files").absolute() == f"module:outside:Pairs?root={tmp_path / 'files'}"
    assert parse("module:a.b.c:birds?first=2").short == "birds"
    assert parse("their-birds?first=2").short == "their-birds"


@pytest.mark.parametrize(
    ("name", "words", "remedy"),
    [
        ("module:outside:pears", "no 'pears'", "did you mean pair"),
        ("module:nowhere_at_all:x", "ModuleNotFoundError", "PYTHONPATH"),
        ("module:outside", "names no object", "module:PACKAGE.MODULE:NAME"),
        ("module:outside:number", "a int is no source", "a Source"),
        ("module:outside:TEXT", "a str is no source", "a Source"),
        ("module:outside:fails", "RuntimeError: no disk", "correct the function"),
        ("module:outside:pair?root=here", "TypeError.*unexpected keyword argument 'root'", "options"),
        ("module:outside:OBJECT?first=1", "unknown option first", "no function"),
        ("module:outside:strange", "splits train, extra is no source", "a Source"),
        ("module:outside:mixed", "arrays in some splits", "one form"),
        ("module:outside:halves", "float32, not uint8", "astype"),
        ("their-brids", "does not exist", "did you mean their-birds"),
    ],
)
def test_what_is_refused(name: str, words: str, remedy: str, outside: Callable[..., None]) -> None:
    outside(PROGRAM, "sources", their_birds="Pairs")
    with pytest.raises((ConfigError, DataError), match=words) as caught:
        load(name)
    assert remedy in caught.value.remedy


class Items(list):
    """Items as they are."""


def test_items_of_every_kind_and_of_different_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    items = Items(
        [(x, "b"), (torch.from_numpy(x).permute(2, 0, 1), "a"), (Image.fromarray(x), "b"), (x[:, :4, 0], "a")]
    )
    opened = as_source(items, "mine")
    assert opened.class_names == ("a", "b")
    assert opened.survey().sizes == {(4, 6): 3, (4, 4): 1}
    found = opened.read(size=(4, 4)).images
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[3], np.repeat(x[:, :4, :1], 3, axis=2))


def test_items_that_are_no_images_are_all_listed() -> None:
    x = np.zeros((4, 4, 3), np.uint8)
    bad = as_source(Items([(x, 0), (x / 2, 1), (x, 1), (torch.zeros(3, 4, 4), 0)]), "mine")
    with pytest.raises(DataError, match="2 of the images of mine cannot be used") as caught:
        bad.read()
    assert "float32" in str(caught.value)
    assert "float64" in str(caught.value)
    for items, words in [
        (Items(), "is empty"),
        (Items([(x, 0), x]), "item 1 of 2 is no"),
        (Items([(x, 0.5), (x, 1.5)]), "labels are float64"),
        (Items([(x, 0), (x, 0)]), "only one class"),
    ]:
        with pytest.raises(DataError, match=words):
            as_source(items, "mine")


def test_splits_of_other_classes_are_refused() -> None:
    x = np.zeros((4, 4, 4, 1), np.uint8)
    y = np.array([0, 0, 1, 1])
    parts = {"train": ImageSet(x, y, ("a", "b")), "test": ImageSet(x, y, ("a", "c"))}
    with pytest.raises(DataError, match="different class names"):
        as_source(parts, "mine")


@pytest.mark.parametrize("splits", [None, ("train", "validation"), ("train", "test")])
def test_sets_of_the_library_datasets_are_read_as_they_are(splits: tuple[str, ...] | None) -> None:
    datasets = pytest.importorskip("datasets")
    x, y = noise(6, 8, 8, 3), [0, 2, 0, 2, 0, 2]
    features = datasets.Features(
        {"id": datasets.Value("int64"), "pixels": datasets.Image(),
         "kind": datasets.ClassLabel(names=["cat", "dog", "emu"])}
    )  # fmt: skip
    rows = {"id": list(range(6)), "pixels": [Image.fromarray(one) for one in x], "kind": y}
    one = datasets.Dataset.from_dict(rows, features=features)
    found = load(one if splits is None else datasets.DatasetDict(dict.fromkeys(splits, one)))
    assert found.class_names == ("cat", "emu")  # no image is a dog, which is said
    assert any("'dog'" in note for note in found.warnings)
    assert found.splits == {None: ("train",), ("train", "validation"): ("train", "val")}.get(splits, splits)
    assert np.array_equal(found.read("train").images, x)
    assert found.labels().tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("label", [None, -1])
def test_missing_labels_of_such_sets_are_refused(label: int | None) -> None:
    datasets = pytest.importorskip("datasets")
    images = [Image.fromarray(one) for one in noise(4, 8, 8, 3)]
    found = datasets.Dataset.from_dict({"image": images, "label": [0, 1, label, 1]})
    with pytest.raises(DataError, match=r"missing \(row 2\)|\[-1\]"):
        load(found.cast_column("image", datasets.Image()))


def test_tensors_with_channels_first_are_refused_with_a_remedy_that_works() -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(noise(4, 3, 8, 8))
    with pytest.raises(DataError, match="channels") as error:
        load((x, [0, 1, 0, 1]))
    assert load((eval(error.value.remedy.partition(": ")[2], {"x": x, "np": np}), [0, 1, 0, 1])).splits == ("train",)
