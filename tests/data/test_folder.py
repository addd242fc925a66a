"""Class folders on a disk: which are classes and splits, what is left out, what is refused."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from imbdiff.data.names import safe_class_dirs
from imbdiff.data.sources import load
from imbdiff.runtime.errors import DataError
from tests.data.making import folder, noise, write, zipped


def test_flat_folder(tmp_path):
    source = load(folder(tmp_path, {"dog": 2, "cat/2020": 1, "cat/2021/may": 2}))
    assert (source.kind, source.name, source.splits) == ("folder", str(tmp_path), ("train",))
    assert source.class_names == ("cat", "dog")
    assert source.labels().tolist() == [0, 0, 0, 1, 1]
    assert source.labels().dtype == np.int64
    assert source.ids()[1:4] == ("cat/2021/may/000.png", "cat/2021/may/001.png", "dog/000.png")
    assert source.flippable is False
    assert load(tmp_path, flippable=True).flippable is True
    images = source.read()
    assert images.images.shape == (5, 8, 8, 3)
    assert np.array_equal(images.images[3], noise(8, 8, 3, seed=0))  # the first dog was written first
    assert source.warnings == ()


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders(tmp_path, val):
    folder(tmp_path, {"train/a": 3, "train/b": 2, f"{val}/a": 1, "test/b": 2, "unlabelled/a": 1})
    (tmp_path / "test" / "a").mkdir()  # no class has to be tested
    source = load(tmp_path)
    assert set(source.splits) == {"train", "val", "test"}
    assert source.labels("test").tolist() == [1, 1]
    assert source.ids("val") == (f"{val}/a/000.png",)
    assert any("unlabelled" in note for note in source.warnings)
    with pytest.raises(DataError, match="no split 'more'"):
        source.read("more")


def test_labels_need_no_decoding(tmp_path):
    for name in ("10", "2", "1"):  # ordered by value
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("no image")
    assert load(tmp_path).labels().tolist() == [0, 1, 2]
    assert load(tmp_path).ids() == ("1/x.png", "2/x.png", "10/x.png")


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    folder(tmp_path, {"a": 4, "b": 3})
    before = load(tmp_path)
    listed = os.scandir

    class Backwards:
        def __init__(self, path):
            with listed(path) as entries:
                self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    after = load(tmp_path)
    assert (after.ids(), after.class_names) == (before.ids(), before.class_names)
    assert after.read().fingerprint == before.read().fingerprint


def test_what_is_left_out_is_counted(tmp_path):
    folder(tmp_path, {"a": 2, "b": 2})
    for name in ("a/.DS_Store", "a/notes.txt", "b/Thumbs.db"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".git").mkdir()
    write(tmp_path / "stray.png", noise(8, 8, 3))
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    source = load(tmp_path)
    assert len(source.read()) == 4
    text = "\n".join(source.warnings)
    for part in (
        "2 hidden files",
        "1 image outside a class folder",
        "3 files that are no images: a/notes.txt, a/pipe.png, b/Thumbs.db",
        "1 linked folder",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("counts", "message", "remedy"),
    [
        ({}, "no class folder with images", "DIR/cat"),
        ({".": 1}, "1 image outside a class folder", "DIR/cat"),
        ({"cat": 3}, "only one class, 'cat'", "two classes"),
        ({"images/cat": 3, "images/dog": 3}, "only one class folder, 'images'", "images"),
        ({"a": 1, "b": 1, "ghost": 0}, "no training image:\n  'ghost'", "add images"),
        ({"train/a": 1, "train/b": 1, "train/ghost": 0}, "no training image:\n  'ghost'", "add images"),
        ({"test/a": 1, "test/b": 1, "val/a": 1}, "no train/", "train/CLASS"),
        ({"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1}, "more than one val folder", "keep one"),
        ({"train/a": 1, "train/b": 1, "test/wolf": 1}, "no training image:\n  'wolf'", "add images"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, counts, message, remedy):
    for name in counts:
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError, match=message) as error:
        load(folder(tmp_path, counts))
    assert remedy in error.value.remedy


def test_classes_may_be_called_test_and_val(tmp_path):
    assert load(folder(tmp_path, {"test": 1, "val": 1})).class_names == ("test", "val")


def test_empty_test_folder_counts_as_not_given(tmp_path):
    folder(tmp_path, {"train/a": 1, "train/b": 1})
    (tmp_path / "test" / "a").mkdir(parents=True)
    source = load(tmp_path)
    assert source.splits == ("train",)
    assert any("counts as not given" in note for note in source.warnings)


def test_all_bad_files_are_listed_at_once(tmp_path):
    folder(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 2}, size=(32, 32))
    whole = (tmp_path / "test/a/000.png").read_bytes()
    (tmp_path / "train/b/half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"1 of the images(.|\n)*train/b/half\.png"):  # its header is sound
        load(tmp_path).read()
    (tmp_path / "train/a/zero.png").write_bytes(b"")
    (tmp_path / "train/b/text.jpg").write_text("no image")
    (tmp_path / "test/a/half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as error:
        load(tmp_path).read_all()
    for part in ("4 of the images", "train/a/zero.png: empty file (0 bytes)", "train/b/text.jpg", "test/a/half.png"):
        assert part in error.value.message


def test_mixed_sizes_of_all_splits(tmp_path):
    folder(tmp_path, {"train/a": 2, "train/b": 2})
    folder(tmp_path / "test", {"a": 1}, size=(12, 9))
    source = load(tmp_path)
    with pytest.warns(UserWarning, match="2 different sizes"):
        assert source.read("train").shape == (8, 8, 3)
    assert source.read(size=16).shape == (16, 16, 3)
    assert source.read(size=(10, 20), resize="pad").shape == (10, 20, 3)


def test_large_images_are_scaled_with_a_warning(tmp_path):
    source = load(folder(tmp_path, {"a": 1, "b": 1}, size=(120, 80)))
    with pytest.warns(UserWarning, match="120 x 80"):
        assert source.read().shape == (64, 40, 3)


def test_grey_only_if_every_image_of_every_split_is(tmp_path):
    folder(tmp_path, {"train/a": 2, "train/b": 2}, channels=1)
    assert load(tmp_path).read().shape == (8, 8, 1)
    assert load(tmp_path).scan().small["train"].shape == (4, 8, 8, 1)
    folder(tmp_path, {"test/a": 1}, channels=3)
    source = load(tmp_path)
    assert source.read("train").shape == source.read("test").shape == (8, 8, 3)
    assert source.scan().small["train"].shape == (4, 8, 8, 3)


def test_dark_16_bit_images_are_pointed_out(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "0.png", np.full((8, 8), 4000, np.uint16))
    source = load(tmp_path)
    assert any("nearly black" in note for note in source.read_all()[1])
    source.scan()
    assert any("nearly black" in note for note in source.warnings)


def test_links_that_leave_the_folder_are_refused(tmp_path):
    outside = write(tmp_path / "elsewhere" / "secret.png", noise(8, 8, 3))
    root = folder(tmp_path / "root", {"a": 1, "b": 1})
    (root / "a" / "link.png").symlink_to(outside)
    (root / "c").symlink_to(outside.parent)
    with pytest.raises(DataError, match=r"2 names below(.|\n)*a/link\.png: a symbolic link(.|\n)*root/c: a symb"):
        load(root)


def test_links_inside_the_folder(tmp_path):
    """To files they are images, in a circle or to nothing they are not."""
    folder(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "again.png").symlink_to(tmp_path / "a" / "000.png")
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "a" / "1.png")
    (tmp_path / "b" / "1.png").symlink_to("gone.png")
    (tmp_path / "c").symlink_to(tmp_path / "c")
    source = load(tmp_path)
    assert source.ids() == ("a/000.png", "a/again.png", "b/000.png")
    assert any("3 files that are no images: a/1.png, b/1.png, c" in note for note in source.warnings)


@pytest.mark.parametrize("name", ["<script>alert(1)<", "x" * 200, "Käfer", "蝴蝶", "a b'\"&;", "-rf", "b..."])
def test_class_names_are_only_data(tmp_path, name):
    source = load(folder(tmp_path / "set", {"cat": 1, name: 1}))
    assert set(source.class_names) == {"cat", name}
    assert len(source.read()) == 2


def test_names_that_are_not_text_are_refused(tmp_path):
    folder(tmp_path, {"a": 1, "b": 1})
    try:
        shutil.copy(tmp_path / "a/000.png", os.fsencode(tmp_path) + b"/a/\xff.png")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    with pytest.raises(DataError, match="not valid UTF-8"):
        load(tmp_path)


def test_decomposed_accents_are_one_class(tmp_path):
    folder(tmp_path, {"train/b": 1, "train/Ka\u0308fer": 1, "train/K\u00e4fer": 1, "test/K\u00e4fer": 1})
    source = load(tmp_path)
    assert source.class_names == ("K\u00e4fer", "b")
    assert source.labels().tolist() == [0, 0, 1]
    assert source.labels("test").tolist() == [0]


def test_what_is_no_source(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nothing")
    (tmp_path / "file.xyz").write_text("")
    with pytest.raises(DataError, match="neither a folder nor"):
        load(tmp_path / "file.xyz")


def test_balanced_within_a_half(tmp_path):
    assert load(folder(tmp_path / "one", {"a": 3, "b": 2})).balanced
    assert not load(folder(tmp_path / "two", {"a": 4, "b": 2})).balanced


def test_what_is_ignored_next_to_train_is_not_looked_into(tmp_path):
    root = folder(tmp_path / "set", {"train/a": 1, "train/b": 1, "extra/c": 1})
    (root / "extra" / "link.png").symlink_to(write(tmp_path / "secret.png", noise(8, 8, 3)))
    source = load(root)
    assert source.class_names == ("a", "b")
    assert any("ignored next to train/: the folders extra" in note for note in source.warnings)


@pytest.mark.parametrize("link", ["c", "train", "train/c", "test"])
def test_links_in_place_of_classes_and_splits_are_refused(tmp_path, link):
    above = "" if link == "c" else "other/" if link == "train" else "train/"
    folder(tmp_path, {f"{above}a": 1, f"{above}b": 1})
    (tmp_path / link).symlink_to(tmp_path / above / "a")
    with pytest.raises(DataError, match=f"{link}: a link to a folder: copy it, or give the folder itself"):
        load(tmp_path)


def test_deeper_links_to_folders_are_a_note(tmp_path):
    folder(tmp_path, {"a/x": 1, "b": 1})
    (tmp_path / "b" / "link").symlink_to(tmp_path / "a" / "x")
    assert any("1 linked folder" in note for note in load(tmp_path).warnings)


def test_files_that_cannot_be_used_are_not_dark(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"damaged")
    source = load(tmp_path)
    assert len(source.scan().bad) == 2
    assert not any("nearly black" in note for note in source.warnings)


def test_pages_that_are_left_out_are_counted_once(tmp_path):
    frames = [Image.fromarray(noise(8, 8, 3, seed=i)) for i in range(5)]
    for name, first in (("a", 0), ("b", 2)):
        (tmp_path / name).mkdir()
        frames[first].save(tmp_path / name / "p.tif", save_all=True, append_images=frames[first + 1 : first + 2])
        write(tmp_path / name / "one.png", noise(8, 8, 3, seed=9))
    source = load(tmp_path)
    source.scan()
    for notes in (source.read_all()[1], source.warnings):
        assert sum("2 images have several pages" in note for note in notes) == 1
    assert not any("pages" in note for note in load(folder(tmp_path / "plain", {"a": 1, "b": 1})).read_all()[1])


@pytest.mark.parametrize(("dark", "said"), [(3, True), (0, False)])
def test_some_dark_images_among_deep_ones_are_counted(tmp_path, dark, said):
    for i in range(8):
        high = 4000 if i < dark else 60000
        write(tmp_path / "ab"[i % 2] / f"{i}.png", np.full((8, 8), high, np.uint16))
    source = load(tmp_path)
    source.scan()
    for notes in (source.read_all()[1], source.warnings):
        assert any(f"{dark} of 8 images" in note for note in notes) == said


def test_images_of_other_kinds_are_named_apart_from_files_that_are_no_images(tmp_path):
    folder(tmp_path, {"a": 2, "b": 2})
    for name in ("a/1.HEIC", "b/2.heic", "b/3.avif"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b/notes.txt").write_text("x")
    notes = load(tmp_path).warnings
    assert any("3 images of a kind that is not read (.avif, .heic)" in note for note in notes)
    assert any("1 file that is no image: b/notes.txt" in note for note in notes)


NAMES = ("café", "CON", "x=1", "plain", "Test", "1.0")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_generated_images_have_the_names_of_their_classes(tmp_path, packed, strict):
    places = dict(zip(safe_class_dirs(NAMES), NAMES, strict=True))
    root = folder(tmp_path / "samples", {place: k + 1 for k, place in enumerate(places)})
    (root / "manifest.json").write_text(json.dumps({"class_names": NAMES, "images": []}))
    if packed:
        files = {f"samples/{p.relative_to(root)}": p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
        source = load(zipped(tmp_path / "s.zip", files), strict=strict)
    else:
        source = load(root, strict=strict)
    assert source.class_names == tuple(sorted(NAMES))
    counts = dict(zip(source.class_names, np.bincount(source.labels()), strict=True))
    assert counts == {name: k + 1 for k, name in enumerate(NAMES)}
    for name, label in zip(source.ids(), source.labels().tolist(), strict=True):
        assert places[name.split("/")[-2]] == source.class_names[label]


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"class_names": 3}', '{"class_names": ["a", 3]}', '{"images": []}', "{" * 99]
)
def test_a_manifest_of_something_else_changes_nothing(tmp_path, text):
    root = folder(tmp_path, {"a": 1, "b": 1})
    (root / "manifest.json").write_text(text)
    assert load(root).class_names == ("a", "b")


def test_unfinished_samples_have_the_names_of_their_classes_too(tmp_path):
    root = folder(tmp_path, {"cafe-850f7dc4": 1, "b": 2})
    assert "cafe-850f7dc4" in safe_class_dirs(["café", "b"])
    (root / "plan.json").write_text(json.dumps({"class_names": ["café", "b"]}))
    assert load(root).class_names == ("b", "café")
