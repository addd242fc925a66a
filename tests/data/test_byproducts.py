"""Masks, annotations, thumbnails and what systems leave among the images of a class."""

from __future__ import annotations

import pytest

from imbdiff.data.inspect import inspect
from imbdiff.data.sources import load
from imbdiff.data.splits import prepare
from imbdiff.runtime.errors import DataError
from tests.data.making import folder, noise, write, zipped


def beside(root, classes, n, where, name="{i:03d}.png"):
    """By-products of the images that `folder` writes: in `where`, called `name`."""
    for c in classes:
        for i in range(n):
            write(root / where.format(c=c) / name.format(i=i, c=c), noise(8, 8, 3, seed=10_000 + i))


@pytest.mark.parametrize(
    ("images", "where", "name"),
    [
        ("{c}/images", "{c}/masks", "{i:03d}.png"),
        ("{c}/images", "{c}/GT", "gt{i}_of.png"),  # beside a folder "images" whatever they are called
        ("{c}", "{c}/Annotations", "{i:03d}.png"),
        ("{c}", "{c}/ground truth", "{i:03d}_gt.png"),
        ("{c}", "{c}/heat_maps", "{i:03d}.png.png"),
        ("{c}", "{c}", "{i:03d}_mask.png"),
        ("{c}", "{c}", "{i:03d}_mask_1.png"),
        ("{c}", "{c}", "{i:03d} Segmentation.png"),
        ("{c}", "{c}", "{i:03d}-overlay.jpg"),
        ("{c}", "{c}", "{i:03d}.thumb.jpg"),
        ("{c}", "{c}", "{i:03d}-150x150.jpg"),
        ("{c}", "{c}", "mask_{i:03d}.png"),
        ("train/{c}", "train/{c}/labels", "{i:03d}.png"),
        ("images/{c}", "masks/{c}", "{i:03d}.png"),
        ("{c}", "masks", "{c}_{i:03d}.png"),
    ],
)
def test_by_products_are_left_out_and_said(tmp_path, images, where, name):
    classes = ("cyst", "node", "scar")
    folder(tmp_path / "set", {images.format(c=c): 6 for c in classes})
    if where == "masks":
        for c in classes:
            for path in (tmp_path / "set" / c).iterdir():
                path.rename(path.with_name(f"{c}_{path.name}"))
    beside(tmp_path / "set", classes, 5, where, name)
    root = tmp_path / "set"
    if images.startswith("images/"):
        with pytest.raises(DataError, match="only one class folder, 'images'") as error:
            load(root)
        assert str(root / "images") in error.value.remedy
        root = root / "images"
    else:
        packed = zipped(tmp_path / "s.zip", {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*.*g")})
        assert sorted(load(packed).ids()) == sorted(load(root).ids())
        data = prepare(root)
        for notes in (data.warnings, inspect(root)["warnings"]):
            assert any("15 masks, annotations" in note for note in notes)
        assert len(load(f"{root}?byproducts=keep").ids()) == 33
        assert any("count as images" in note for note in load(f"{root}?byproducts=keep").warnings)
    source = load(root)
    assert source.class_names == classes
    assert len(source.ids()) == 18


@pytest.mark.parametrize(
    "classes",
    [
        ("mask", "no_mask"),
        ("with_mask", "without_mask", "mask_worn_wrongly"),
        ("thumb", "index"),
        ("label", "cap", "cork"),
        ("hats", "masks", "shoes"),
        ("depth", "edges"),
        ("faces", "masks"),
        ("annotations", "labels"),
    ],
)
def test_classes_may_be_called_so(tmp_path, classes):
    source = load(folder(tmp_path, dict.fromkeys(classes, 4)))
    assert source.class_names == tuple(sorted(classes))
    assert len(source.ids()) == 4 * len(classes)


def test_folders_of_such_names_without_images_to_belong_to_are_said(tmp_path):
    source = load(folder(tmp_path, {"costumes/hats": 3, "costumes/masks": 3, "scenes": 4}))
    assert len(source.ids()) == 10
    assert any("3 images may be masks" in note for note in source.warnings)


def test_what_systems_leave(tmp_path):
    folder(tmp_path, {"a": 3, "b": 3, "a/@eaDir": 2, "a/.ipynb_checkpoints": 1, "b/#recycle": 1, "__MACOSX/b": 1})
    write(tmp_path / "a" / "._000.png", noise(8, 8, 3))
    write(tmp_path / "lost+found" / "0.png", noise(8, 8, 3))
    (tmp_path / "a" / ".DS_Store").write_text("x")
    source = load(tmp_path)
    assert len(source.ids()) == 6
    assert any("7 hidden files" in note for note in source.warnings)
    packed = zipped(tmp_path / "s.zip", {str(f.relative_to(tmp_path)): f.read_bytes() for f in tmp_path.rglob("*.png")})
    assert load(packed).ids() == source.ids()


def test_a_list_keeps_what_it_names_and_says_so(tmp_path):
    folder(tmp_path, {"a": 3, "b": 3})
    beside(tmp_path, "ab", 3, "{c}", "{i:03d}_mask.png")
    lines = [f"{p.relative_to(tmp_path)} {p.parent.name}" for p in sorted(tmp_path.rglob("*.png"))]
    (tmp_path / "l.txt").write_text("\n".join(lines))
    source = load(tmp_path / "l.txt")
    assert len(source.ids()) == 12
    assert any("6 images may be masks" in note for note in source.warnings)
