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
        "suggested size: 8 x 8; larger sizes cost time in proportion to the pixels",
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
    assert len(text.splitlines()) < 60
    assert "970 more classes" in text


def test_markup_and_control_characters_in_class_names_are_only_shown(tmp_path):
    folder(tmp_path, {"[red]cat": 1, "<script>": 1, "a\x1b[2Jb": 1})
    text = shown(inspect(tmp_path))
    assert "[red]cat" in text
    assert "<script>" in text
    assert "\x1b" not in text
