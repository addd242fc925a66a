import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from imbdiff.data.inspect import format_inspection, inspect
from imbdiff.data.sources import load
from imbdiff.runtime.errors import DataError
from tests.data.making import arrays, folder, noise, write


def shown(report, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(format_inspection(report))
    return console.file.getvalue()


def test_everything_about_a_folder(tmp_path):
    folder(tmp_path, {"train/a": 6, "train/b": 2, "test/a": 2})
    write(tmp_path / "train/a/900.png", noise(20, 30, 3))
    copy = (tmp_path / "train/a/000.png").read_bytes()
    (tmp_path / "test/a/copy.png").write_bytes(copy)
    (tmp_path / "train/b/copy.png").write_bytes((tmp_path / "train/b/000.png").read_bytes())
    (tmp_path / "train/b/zero.png").write_bytes(b"")
    whole = (tmp_path / "train/a/900.png").read_bytes()
    (tmp_path / "train/a/half.png").write_bytes(whole[: len(whole) // 2])
    report = inspect(tmp_path)
    assert report == json.loads(json.dumps(report))
    assert [row["counts"] for row in report["classes"]] == [{"train": 7, "test": 3}, {"train": 3, "test": 0}]
    assert report["images"] == {"train": 10, "test": 3}
    assert report["sizes"] == [[8, 8, 12], [20, 30, 1]]
    assert report["modes"] == {"RGB": 13}
    assert set(report["bad"]) == {"train/b/zero.png", "train/a/half.png"}
    assert report["duplicates"] == {
        "within": [["train/b/000.png", "train/b/copy.png"]],
        "across": [["train/a/000.png", "test/a/copy.png"]],
    }
    assert report["imbalance_factor"] == 7 / 3
    assert report["suggested_size"] == [8, 8]
    text = shown(report, 400)
    for part in (
        "train/b/zero.png",
        "half.png",
        "train/a/000.png = test/a/copy.png",
        "8 x 8 (12)",
        "10 train, 3 test images; not counted: 2 unusable files",
        "suggested size: 8 x 8 (few images need to be enlarged to it",
        "larger sizes cost time in proportion to the pixels",
        "--data.size",
    ):
        assert part in text


def test_digits():
    report = inspect("digits")
    assert report["images"] == {"train": 1797}
    assert report["suggested_size"] == [8, 8]
    assert (report["channels"], report["balanced"], report["bad"]) == (1, True, {})


def test_suggested_sizes(tmp_path):
    y = np.array([0, 1, 0, 1])
    assert inspect((noise(4, 28, 20), y))["suggested_size"] == [28, 20]
    assert inspect((noise(4, 100, 90), y))["suggested_size"] == [32, 32]
    assert inspect((noise(4, 100, 50), y))["suggested_size"] == [32, 32]
    report = inspect((noise(4, 28, 20), y), size=24)
    assert report["suggested_size"] == [24, 24]
    assert any("enlarged" in note for note in report["warnings"])


def test_without_splits_the_column_is_called_images(tmp_path):
    folder(tmp_path, {"a": 2, "b": 1})
    (tmp_path / "b" / "zero.png").write_bytes(b"")
    text = shown(inspect(tmp_path), 400)
    assert "images" in text
    assert "train" not in text.split("note:")[0]
    assert "2 classes, 3 images; not counted: 1 unusable file\n" in text
    assert not re.search(r"\b1 (classes|files|images)\b", text)


def test_a_class_of_damaged_files_only_is_reported(tmp_path):
    folder(tmp_path, {"a": 4, "b": 2, "c": 1})
    (tmp_path / "c" / "000.png").write_bytes(b"no image")
    report = inspect(tmp_path)
    assert report["classes"][2]["counts"] == {"train": 0}
    assert report["imbalance_factor"] == 2
    assert not report["balanced"]
    assert any("no usable training image of c" in note for note in report["warnings"])


def test_inspect_and_the_error_of_run_suggest_the_same(tmp_path):
    for name, sizes, side in (
        ("x", [(40, 50), (20, 90)], 32),
        ("y", [(30, 31), (22, 29)], 20),
        ("z", [(6, 5), (5, 6)], 8),
    ):
        for i, (h, w) in enumerate(sizes):
            write(tmp_path / name / "ab"[i] / "0.png", noise(h, w, 3))
        assert inspect(tmp_path / name)["suggested_size"] == [side, side]
        with pytest.raises(DataError) as error:
            load(tmp_path / name).read()
        assert f"--data.size {side} " in error.value.remedy


def test_equal_images_of_two_classes_are_pointed_out():
    x, y = arrays([4, 4])
    x[np.flatnonzero(y == 0)[0]] = x[np.flatnonzero(y == 1)[0]]
    report = inspect((x, y))
    assert len(report["duplicates"]["within"]) == 1
    assert any("more than one class" in note for note in report["warnings"])


def test_tiny_classes_are_pointed_out():
    assert any("at most 3 images" in note for note in inspect(arrays([9, 3]))["warnings"])


def test_a_thousand_classes_fit_a_screen():
    x, y = noise(2000, 4, 4), np.arange(2000) % 1000
    text = shown(inspect((x, y)))
    assert len(text.splitlines()) < 70
    assert "970 more classes" in text


def test_markup_and_control_characters_in_class_names_are_only_shown(tmp_path):
    folder(tmp_path, {"[red]cat": 1, "<script>": 1, "a\x1b[2Jb": 1})
    text = shown(inspect(tmp_path))
    assert "[red]cat" in text
    assert "<script>" in text
    assert "\x1b" not in text


def test_class_sizes_in_numbers():
    x, y = arrays([8, 4, 4])
    report = inspect((x, y))
    assert report["version"] == 3
    assert [row["share"] for row in report["classes"]] == [0.5, 0.25, 0.25]
    # the effective number is the sum of a geometric series
    for row, n in zip(report["classes"], (8, 4, 4), strict=True):
        for beta in ("0.999", "0.9999"):
            assert row["effective"][beta] == pytest.approx(sum(float(beta) ** i for i in range(n)), rel=1e-9)
    assert report["normalised_entropy"] == pytest.approx(1.5 * np.log(2) / np.log(3))
    # half the mean absolute difference of two classes drawn at random, over the mean
    assert report["gini"] == pytest.approx((4 * 4 / 9) / (2 * 16 / 3))
    assert inspect(arrays([4, 4]))["gini"] == pytest.approx(0)


def test_odd_labels_are_named(tmp_path):
    folder(tmp_path, {"cat": 8, "Cat": 8, "dog": 1, "black": 0})
    for i in range(4):
        write(tmp_path / "black" / f"{i}.png", np.full((8, 8, 3), i, np.uint8))
    (tmp_path / "Cat" / "copy.png").write_bytes((tmp_path / "cat" / "000.png").read_bytes())
    report = inspect(tmp_path)
    labels = report["labels"]
    assert labels["names"] == [
        {"names": ["Cat", "cat"], "why": "these names differ in case, spaces, punctuation or Unicode form only"}
    ]
    (conflict,) = labels["duplicates"]
    assert dict(zip(conflict["images"], conflict["classes"], strict=True)) == {
        "cat/000.png": "cat",
        "Cat/copy.png": "Cat",
    }
    assert (labels["single"], labels["flat"], labels["flat_images"]) == (["dog"], ["black"], 4)
    text = shown(report, 300)
    assert "cat/000.png [cat]" in text
    assert "Cat, cat: these names differ" in text
    assert "1 class of a single image: dog" in text
    assert "only images of one flat colour: black" in text


def test_padding_is_suggested_where_cropping_cuts_much(tmp_path):
    for i in range(19):
        write(tmp_path / "ab"[i % 2] / f"{i}.png", noise(20, 20, 3, seed=i))
    write(tmp_path / "a" / "19.png", noise(20, 40, 3))  # one of twenty: half of it would go
    report = inspect(tmp_path)
    assert report["resize"] == {"policy": "pad", "cut_much": 1, "images": 20}
    assert any("more than a quarter of 1 image of 20: look at --data.resize pad" in note for note in report["warnings"])
    write(tmp_path / "a" / "20.png", noise(20, 20, 3, seed=20))
    assert inspect(tmp_path)["resize"]["policy"] == "crop"
    assert inspect(tmp_path, size=(20, 40))["resize"]["cut_much"] == 20


def test_every_image_is_decoded_once(tmp_path, monkeypatch):
    import imbdiff.data.source as encoded

    folder(tmp_path, {"train/a": 6, "train/b": 5, "test/a": 3})
    seen = []
    real = encoded.decode
    monkeypatch.setattr(encoded, "decode", lambda file, *rest: (seen.append(str(file)), real(file, *rest))[1])
    monkeypatch.setattr("imbdiff.data.reading.decode", lambda *a: pytest.fail("decoded again"))
    inspect(tmp_path)
    assert len(seen) == len(set(seen)) == 14


def test_pictures_of_some_images_only(tmp_path, monkeypatch):
    import imbdiff.data.reading as cache
    from imbdiff.data.decode import Target
    from imbdiff.data.findings import look

    folder(tmp_path, {"a": 6, "b": 5})
    (tmp_path / "a" / "000.png").write_bytes(b"")
    source = load(tmp_path)
    looks, bad = look(source)
    assert set(bad) == {"a/000.png"}
    assert looks["train"].ids[0] == "a/001.png"
    np.testing.assert_array_equal(looks["train"].small[4], noise(8, 8, 3, seed=5))  # 8 x 8: their own small versions
    np.testing.assert_array_equal(looks["train"].labels, [0] * 5 + [1] * 5)
    seen = []
    real = cache.decode
    monkeypatch.setattr(cache, "decode", lambda file, *rest: (seen.append(file.name), real(file, *rest))[1])
    x = source.pictures("train", looks["train"].rows[[5, 0]], Target(8, 8, "crop"), False)
    assert sorted(seen) == ["000.png", "001.png"]
    np.testing.assert_array_equal(x[0], noise(8, 8, 3, seed=1000))
    np.testing.assert_array_equal(x[1], noise(8, 8, 3, seed=1))
    arrays_too = load((noise(4, 8, 8, 3), np.arange(4) % 2))
    chosen = arrays_too.pictures("train", np.array([2, 1]), Target(8, 8, "crop"), False)
    np.testing.assert_array_equal(chosen, noise(4, 8, 8, 3)[[2, 1]])
