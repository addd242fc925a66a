from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbdiff.data.imageset import ImageSet
from imbdiff.data.plain import ONE_CLASS, align, read_any
from imbdiff.data.sources import load
from imbdiff.runtime.errors import DataError


def write(folder: Path, n: int, size: tuple[int, int] = (12, 12), grey: bool = False, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(seed)
    for i in range(n):
        shape = (size[1], size[0]) if grey else (size[1], size[0], 3)
        Image.fromarray(g.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i:03d}.png")


def test_class_folders_one_class_and_none(tmp_path: Path) -> None:
    write(tmp_path / "two/cat", 3)
    write(tmp_path / "two/dog", 2)
    found = read_any(tmp_path / "two")
    assert found.images.class_names == ("cat", "dog")
    assert found.images.labels.tolist() == [0, 0, 0, 1, 1]
    write(tmp_path / "one/cat", 3)
    assert read_any(tmp_path / "one").images.class_names == ("cat",)
    write(tmp_path / "flat", 4, grey=True)
    flat = read_any(tmp_path / "flat")
    assert flat.images.class_names == (ONE_CLASS,)
    assert flat.images.shape == (12, 12, 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        read_any(tmp_path / "empty")


def test_images_of_one_size_keep_it_however_large(tmp_path: Path) -> None:
    write(tmp_path / "big", 2, size=(100, 80))
    assert read_any(tmp_path / "big").images.shape == (80, 100, 3)
    assert read_any(tmp_path / "big", size=32).images.shape == (32, 32, 3)
    write(tmp_path / "mixed", 1, size=(20, 20))
    write(tmp_path / "mixed/a", 1, size=(30, 30))
    write(tmp_path / "mixed/b", 1, size=(20, 20))
    assert read_any(tmp_path / "mixed").images.shape == (20, 20, 3)
    assert read_any(tmp_path / "mixed", otherwise=(9, 12)).images.shape == (9, 12, 3)
    assert read_any(tmp_path / "big", otherwise=(9, 12)).images.shape == (80, 100, 3)


def test_splits_default_to_test_and_can_be_asked_for(tmp_path: Path) -> None:
    for split, n in (("train", 3), ("test", 2)):
        write(tmp_path / "d" / split / "a", n)
        write(tmp_path / "d" / split / "b", n)
    assert len(read_any(tmp_path / "d").images) == 4
    assert read_any(tmp_path / "d").name.endswith("d test")
    assert len(read_any(tmp_path / "d", split="train").images) == 6
    with pytest.raises(DataError, match="no split 'val'"):
        read_any(tmp_path / "d", split="val")


def test_arrays_and_npy(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
    assert read_any(x).images.shape == (6, 7, 1)
    np.save(tmp_path / "x.npy", x[..., None].repeat(3, -1))
    assert read_any(tmp_path / "x.npy").images.shape == (6, 7, 3)
    for bad in (x.astype(float), x[0], np.zeros((2, 3, 4, 4), np.uint8)):
        with pytest.raises(DataError, match="uint8"):
            read_any(bad)
    (tmp_path / "y.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no plain array"):
        read_any(tmp_path / "y.npy")
    assert len(read_any("digits").images) == 1797


def _npz(path: Path, **arrays: object) -> Path:
    np.savez(path, **{k: np.asarray(v) for k, v in arrays.items()})
    return path


X = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)


@pytest.mark.parametrize("key", ["x", "X", "images", "arr_0", "x_train", "x_test", "train_images"])
def test_npz_without_labels_is_one_class(tmp_path: Path, key: str) -> None:
    found = read_any(_npz(tmp_path / "a.npz", **{key: X}, other=[1.5]))
    assert found.images.class_names == (ONE_CLASS,)
    np.testing.assert_array_equal(found.images.images[..., 0], X)
    assert any("ignored" in note and "other" in note for note in found.notes)
    assert found.name == str(tmp_path / "a.npz")


@pytest.mark.parametrize(("kept", "said"), [(None, "a zip file of arrays"), (40, "no plain array")])
def test_npz_that_is_called_npy(tmp_path: Path, kept: int | None, said: str) -> None:
    path = _npz(tmp_path / "a.npz", x=X).rename(tmp_path / "a.npy")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=said) as error:
        read_any(path)
    assert kept or error.value.remedy == "call it .npz"


def test_npz_splits_of_images_without_labels(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", x_train=X, x_test=X[:2])
    assert len(read_any(path).images) == 2
    assert len(read_any(path, "train").images) == 5
    every = read_any(path, "all")
    np.testing.assert_array_equal(every.images.images[..., 0], np.concatenate([X, X[:2]]))
    assert len(set(every.images.ids)) == 7
    assert every.name == f"{path} train and test"
    with pytest.raises(DataError, match="no split 'val'"):
        read_any(path, "val")
    with pytest.raises(DataError, match="no split 'train'"):
        read_any(_npz(tmp_path / "b.npz", x_test=X), "train")


def test_npz_of_one_class_and_of_classes_that_a_split_lacks(tmp_path: Path) -> None:
    one = read_any(_npz(tmp_path / "a.npz", x=X, y=[3] * 5))
    assert (one.images.class_names, one.images.labels.tolist()) == (("3",), [0] * 5)
    named = read_any(_npz(tmp_path / "b.npz", x=X, y=[2] * 5, class_names=["a", "b", "c"]))
    assert (named.images.class_names, named.images.labels.tolist()) == (("c",), [0] * 5)
    text = _npz(tmp_path / "c.npz", x_train=X, y_train=["dog"] * 5, x_test=X[:2], y_test=["dog", "cat"])
    assert [read_any(text, s).images.labels.tolist() for s in ("train", "test")] == [[1] * 5, [1, 0]]
    ordered = _npz(tmp_path / "d.npz", x=X, y=["b", "a", "b", "b", "a"], class_names=["b", "z", "a"])
    found = read_any(ordered).images
    assert (found.class_names, found.labels.tolist()) == (("b", "a"), [0, 1, 0, 0, 1])


def test_npz_that_training_takes_is_read_the_same(tmp_path: Path) -> None:
    path = _npz(tmp_path / "a.npz", x_train=X, y_train=[4, 0, 2, 0, 4], x_test=X[:2], y_test=[[2], [4]])
    for split in ("train", "test"):
        ours, strict = read_any(path, split).images, load(path).read(split)
        assert ours.fingerprint == strict.fingerprint
        assert ours.ids == strict.ids


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x_train": X, "y_train": [0, 1, 0, 1, 0], "x_test": X}, "no y_test"),
        ({"x": X.astype(float)}, "uint8"),
        ({"x": X.reshape(5, -1)}, "reshape"),
        ({"x": np.array([{"a": 1}] * 5, dtype=object)}, "never unpickled"),
        ({"x": X, "y": [0, 1, 2, 3, -1]}, "out of range"),
        ({"x": X, "y": [0, 1, 2, 1, 1], "class_names": ["a", "b"]}, "without a name"),
        ({"x": X, "y": [0, 1]}, "one label per image"),
        ({"x_train": X, "y_train": [0] * 5, "x_test": X, "y_test": ["a"] * 5}, "use one kind"),
        ({"z": X}, "no images"),
    ],
)
def test_npz_that_cannot_be_measured_says_why(tmp_path: Path, arrays: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_any(_npz(tmp_path / "a.npz", **arrays))
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="no readable"):
        read_any(tmp_path / "b.npz")


def test_everything_of_a_folder_with_splits(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        for k, name in enumerate("ab"):
            write(tmp_path / "d" / split / name, 2 + seed, seed=2 * seed + k)
    every = read_any(tmp_path / "d", "all")
    assert every.images.labels.tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    assert len(set(every.images.hashes)) == 10
    assert every.name.endswith("d train and test")
    assert read_any(tmp_path / "d" / "train", "all").name == str(tmp_path / "d" / "train")


def test_notes_of_a_flat_folder_say_what_is_true(tmp_path: Path) -> None:
    write(tmp_path / "flat", 4)
    (tmp_path / "flat" / "notes.txt").write_text("x")
    notes = read_any(tmp_path / "flat").notes
    assert notes == (f"ignored in {tmp_path / 'flat'}: 1 file that is no image: notes.txt",)
    write(tmp_path / "flat" / "a", 2)
    found = read_any(tmp_path / "flat")
    assert len(found.images) == 2
    assert any("4 images outside a class folder" in note for note in found.notes)


def test_align_goes_by_name_and_says_what_it_leaves_out() -> None:
    x = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    images = ImageSet(x, np.array([0, 1, 1]), ("dog", "cat"))
    same, note = align(images, ("cat", "cow", "dog"), "A", "B")
    assert (same.labels.tolist(), note) == ([2, 0, 0], None)
    part, note = align(images, ("cat", "cow"), "A", "B")
    assert part.labels.tolist() == [0, 0]
    assert part.images[:, 0, 0, 0].tolist() == [1, 2]
    assert note == "1 image of A left out: B has no class 'dog'"
    with pytest.raises(DataError, match="no class of A is in B: 'dog', 'cat' there, 'cow' here"):
        align(images, ("cow",), "A", "B")
