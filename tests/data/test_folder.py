import os
import shutil
import warnings

import numpy as np
import pytest

from imbdiff.data.sources import FolderSource, load
from imbdiff.runtime.errors import DataError
from tests.data.making import folder, noise, write


def test_flat_folder(tmp_path):
    source = load(folder(tmp_path, {"dog": 2, "cat": 3}))
    assert (source.kind, source.name, source.splits) == ("folder", str(tmp_path), ("train",))
    assert source.class_names == ("cat", "dog")
    assert source.labels().tolist() == [0, 0, 0, 1, 1]
    assert source.labels().dtype == np.int64
    assert source.ids()[:2] == ("cat/000.png", "cat/001.png")
    assert source.flippable is False
    assert load(tmp_path, flippable=True).flippable is True
    images = source.read()
    assert images.images.shape == (5, 8, 8, 3)
    assert np.array_equal(images.images[3], noise(8, 8, 3, seed=0))  # the first dog was written first


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders(tmp_path, val):
    folder(tmp_path, {"train/a": 3, "train/b": 2, f"{val}/a": 1, "test/b": 2})
    source = load(tmp_path)
    assert set(source.splits) == {"train", "val", "test"}
    assert source.labels("test").tolist() == [1, 1]
    assert source.ids("val") == (f"{val}/a/000.png",)


def test_labels_need_no_decoding(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_text("no image")
    assert load(tmp_path).labels().tolist() == [0, 1]


def test_nested_folders_belong_to_their_class(tmp_path):
    folder(tmp_path, {"a/2020": 1, "a/2021/may": 2, "b": 1})
    assert load(tmp_path).labels().tolist() == [0, 0, 0, 1]


def test_integer_names_are_ordered_by_value(tmp_path):
    assert load(folder(tmp_path, {"10": 1, "2": 1, "1": 1})).class_names == ("1", "2", "10")


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


def test_hidden_and_other_files_are_ignored_and_counted(tmp_path):
    folder(tmp_path, {"a": 2, "b": 2})
    (tmp_path / "a" / ".DS_Store").write_text("x")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "b" / "Thumbs.db").write_text("x")
    (tmp_path / ".git").mkdir()
    write(tmp_path / "stray.png", noise(8, 8, 3))
    source = load(tmp_path)
    assert len(source.labels()) == 4
    text = "\n".join(source.warnings)
    assert "2 hidden files" in text
    assert "1 image outside a class folder" in text
    assert "2 files that are no images: a/notes.txt, b/Thumbs.db" in text


def test_folders_beside_train_are_named(tmp_path):
    source = load(folder(tmp_path, {"train/a": 1, "train/b": 1, "unlabelled/a": 1}))
    assert any("unlabelled" in note for note in source.warnings)


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match="holds no image") as error:
        load(tmp_path)
    assert "DIR/cat" in error.value.remedy


def test_images_without_class_folders(tmp_path):
    write(tmp_path / "a.png", noise(8, 8))
    with pytest.raises(DataError, match="1 image lies directly in it"):
        load(tmp_path)


def test_one_class_only(tmp_path):
    with pytest.raises(DataError, match="only one class, 'cat'"):
        load(folder(tmp_path, {"cat": 3}))


def test_classes_one_level_deeper_are_pointed_out(tmp_path):
    with pytest.raises(DataError) as error:
        load(folder(tmp_path, {"images/cat": 3, "images/dog": 3}))
    assert str(tmp_path / "images") in error.value.remedy


def test_class_folder_without_images(tmp_path):
    folder(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "ghost").mkdir()
    with pytest.raises(DataError, match="ghost"):
        load(tmp_path)


def test_test_without_train(tmp_path):
    with pytest.raises(DataError, match="no train/"):
        load(folder(tmp_path, {"test/a": 1, "test/b": 1, "val/a": 1}))


def test_classes_may_be_called_test_and_val(tmp_path):
    assert load(folder(tmp_path, {"test": 1, "val": 1})).class_names == ("test", "val")


def test_two_validation_folders(tmp_path):
    with pytest.raises(DataError, match="more than one val folder"):
        load(folder(tmp_path, {"train/a": 1, "train/b": 1, "val/a": 1, "valid/a": 1}))


def test_class_of_test_that_train_lacks(tmp_path):
    with pytest.raises(DataError, match="in test but not in train:\n  'wolf'"):
        load(folder(tmp_path, {"train/a": 1, "train/b": 1, "test/wolf": 1}))


def test_empty_test_folder_counts_as_not_given(tmp_path):
    folder(tmp_path, {"train/a": 1, "train/b": 1})
    (tmp_path / "test" / "a").mkdir(parents=True)
    source = load(tmp_path)
    assert source.splits == ("train",)
    assert any("counts as not given" in note for note in source.warnings)


def test_all_bad_files_are_listed_at_once(tmp_path):
    folder(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 2})
    (tmp_path / "train/a/zero.png").write_bytes(b"")
    (tmp_path / "train/b/text.jpg").write_text("no image")
    whole = (tmp_path / "test/a/000.png").read_bytes()
    (tmp_path / "test/a/half.png").write_bytes(whole[: len(whole) // 2])
    source = load(tmp_path)
    with pytest.raises(DataError) as error:
        source.read_all()
    for part in ("3 of the images", "train/a/zero.png: empty file (0 bytes)", "train/b/text.jpg", "test/a/half.png"):
        assert part in error.value.message
    assert "replace or remove" in error.value.remedy


def test_truncated_bodies_alone_are_found_while_decoding(tmp_path):
    folder(tmp_path, {"a": 2, "b": 2}, size=(32, 32))
    for name in ("a/000.png", "b/001.png"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as error:
        load(tmp_path).read()
    assert "a/000.png" in error.value.message
    assert "b/001.png" in error.value.message


def test_mixed_sizes(tmp_path):
    folder(tmp_path, {"a": 2})
    folder(tmp_path / "b", {"more": 2}, size=(12, 9))
    source = load(tmp_path)
    with pytest.raises(DataError, match="different sizes"):
        source.read()
    assert source.read(size=16).shape == (16, 16, 3)
    assert source.read(size=(10, 20), resize="pad").shape == (10, 20, 3)


def test_sizes_are_compared_across_splits(tmp_path):
    folder(tmp_path, {"train/a": 2, "train/b": 2})
    folder(tmp_path / "test", {"a": 1}, size=(12, 9))
    with pytest.raises(DataError, match="different sizes"):
        load(tmp_path).read("train")


def test_large_images_are_scaled_with_a_warning(tmp_path):
    source = load(folder(tmp_path, {"a": 1, "b": 1}, size=(120, 80)))
    with pytest.warns(UserWarning, match="120 x 80"):
        assert source.read().shape == (64, 40, 3)


def test_grey_only_if_every_image_of_every_split_is(tmp_path):
    folder(tmp_path, {"train/a": 2, "train/b": 2}, channels=1)
    assert load(tmp_path).read().shape == (8, 8, 1)
    folder(tmp_path, {"test/a": 1}, channels=3)
    source = load(tmp_path)
    assert source.read("train").shape == source.read("test").shape == (8, 8, 3)


def test_dark_16_bit_images_are_pointed_out(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "0.png", np.full((8, 8), 4000, np.uint16))
    source = load(tmp_path)
    assert source.read().images.max() == 16
    assert any("nearly black" in note for note in source.warnings)


def test_links_that_leave_the_folder_are_refused(tmp_path):
    outside = write(tmp_path / "elsewhere" / "secret.png", noise(8, 8, 3))
    root = folder(tmp_path / "root", {"a": 1, "b": 1})
    (root / "a" / "link.png").symlink_to(outside)
    with pytest.raises(DataError, match=r"link\.png"):
        load(root)
    (root / "a" / "link.png").unlink()
    (root / "c").symlink_to(outside.parent)
    with pytest.raises(DataError, match="1 symbolic link leads out of"):
        load(root)


def test_links_inside_the_folder_are_images(tmp_path):
    folder(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "again.png").symlink_to(tmp_path / "a" / "000.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    source = load(tmp_path)
    assert source.labels().tolist() == [0, 0, 1]
    assert any("1 linked folder inside" in note for note in source.warnings)


def test_links_in_a_circle_and_to_nothing_are_no_images(tmp_path):
    folder(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "a" / "1.png")
    (tmp_path / "b" / "1.png").symlink_to("gone.png")
    (tmp_path / "c").symlink_to(tmp_path / "c")
    source = load(tmp_path)
    assert source.ids() == ("a/000.png", "b/000.png")
    assert any("3 files that are no images: a/1.png, b/1.png, c" in note for note in source.warnings)


def test_pipes_are_not_opened(tmp_path):
    folder(tmp_path, {"a": 1, "b": 1})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert len(load(tmp_path).read()) == 2


@pytest.mark.parametrize("name", ["<script>alert(1)<", "x" * 200, "Käfer", "蝴蝶", "a b'\"&;", "-rf", "..."])
def test_class_names_are_only_data(tmp_path, name):
    source = load(
        folder(tmp_path / "set", {"cat": 1, name: 1} if not name.startswith(".") else {"cat": 1, "b" + name: 1})
    )
    assert any(name in known for known in source.class_names)
    assert len(source.read()) == 2


def test_names_that_are_not_text_are_refused(tmp_path):
    folder(tmp_path, {"a": 1, "b": 1})
    try:
        shutil.copy(tmp_path / "a/000.png", os.fsencode(tmp_path) + b"/a/\xff.png")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    with pytest.raises(DataError, match="not valid UTF-8"):
        load(tmp_path)


def test_decomposed_accents_are_one_class_across_splits(tmp_path):
    folder(tmp_path, {"train/b": 1, "train/Ka\u0308fer": 1, "test/K\u00e4fer": 1})
    source = load(tmp_path)
    assert source.class_names == ("K\u00e4fer", "b")
    assert source.labels("test").tolist() == [0]


def test_unknown_split_and_missing_path(tmp_path):
    with pytest.raises(DataError, match="no split 'test'"):
        load(folder(tmp_path / "set", {"a": 1, "b": 1})).read("test")
    with pytest.raises(DataError, match="does not exist"):
        load(tmp_path / "nothing")
    (tmp_path / "file.xyz").write_text("")
    with pytest.raises(DataError, match="neither a folder nor"):
        load(tmp_path / "file.xyz")


def test_balanced_within_a_half(tmp_path):
    assert load(folder(tmp_path / "one", {"a": 3, "b": 2})).balanced
    assert not load(folder(tmp_path / "two", {"a": 4, "b": 2})).balanced


def test_reading_small_uniform_images_warns_of_nothing(tmp_path):
    source = FolderSource(folder(tmp_path, {"a": 1, "b": 1}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.read()
    assert source.warnings == ()
