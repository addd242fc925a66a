"""The images that a run keeps decoded are those that its source gives, with what belongs together."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imbdiff
from imbdiff.config import DataConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.pipeline.kept import keep, kept
from imbdiff.runtime.files import write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of each of 16 patients in two classes, in files CLASS/pPATIENT_N.png."""
    rng = np.random.default_rng(0)
    for patient in range(16):
        for n in range(3):
            path = tmp_path / "images" / "ab"[patient % 2] / f"p{patient}_{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def same(a: object, b: object) -> None:
    if isinstance(a, ImageSet):
        assert isinstance(b, ImageSet)
        assert (a.fingerprint, tuple(a.ids)) == (b.fingerprint, tuple(b.ids))
        assert (a.groups is None) == (b.groups is None)
        assert a.groups is None or a.groups.tolist() == b.groups.tolist()  # type: ignore[union-attr]
    else:
        assert a == b


@pytest.mark.parametrize("query", ["", "?group=p(\\d%2B)_"])
def test_what_is_read_back_is_what_was_kept(folder: Path, tmp_path: Path, query: str) -> None:
    source, config = imbdiff.load(f"{folder}{query}"), DataConfig()
    made = imbdiff.prepare(source)
    assert (made.train.groups is not None) == bool(query)
    write_json(tmp_path / "split.json", made.manifest)
    keep(tmp_path, made, source, config)
    found = kept(tmp_path, imbdiff.load(f"{folder}{query}"), config)
    assert found is not None
    for one in fields(Prepared):
        if one.name != "manifest":
            same(getattr(made, one.name), getattr(found, one.name))


def test_other_groups_of_the_same_files_are_other_images(folder: Path, tmp_path: Path) -> None:
    source, config = imbdiff.load(folder), DataConfig()
    made = imbdiff.prepare(source)
    write_json(tmp_path / "split.json", made.manifest)
    keep(tmp_path, made, source, config)
    assert kept(tmp_path, imbdiff.load(f"{folder}?group=p(\\d%2B)_"), config) is None


def test_other_groups_of_the_same_arrays_are_other_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (48, 8, 8, 3), dtype=np.uint8), np.arange(48) % 2
    np.savez(tmp_path / "x.npz", x=x, y=y, one=np.arange(48) // 3, other=np.arange(48) // 6)
    config, made = DataConfig(), imbdiff.prepare(f"{tmp_path}/x.npz?group=one")
    write_json(tmp_path / "split.json", made.manifest)
    keep(tmp_path, made, imbdiff.load(f"{tmp_path}/x.npz?group=one"), config)
    assert kept(tmp_path, imbdiff.load(f"{tmp_path}/x.npz?group=one"), config) is not None
    assert kept(tmp_path, imbdiff.load(f"{tmp_path}/x.npz?group=other"), config) is None
