from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbdiff.data.imageset import ImageSet
from imbdiff.data.plain import ONE_CLASS, align, read_any
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
    assert not found.unlabelled
    assert found.without_labels().unlabelled
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
    with pytest.raises(DataError, match="size"):
        read_any(tmp_path / "mixed")


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
