import io
import json

import numpy as np
from rich.console import Console

from imbdiff.data.inspect import format_inspection, inspect
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
    assert [row["counts"] for row in report["classes"]] == [{"train": 8, "test": 3}, {"train": 4, "test": 0}]
    assert report["sizes"] == [[8, 8, 12], [20, 30, 2]]
    assert report["modes"] == {"RGB": 14}
    assert set(report["bad"]) == {"train/b/zero.png", "train/a/half.png"}
    assert report["duplicates"] == {
        "within": [["train/b/000.png", "train/b/copy.png"]],
        "across": [["train/a/000.png", "test/a/copy.png"]],
    }
    assert report["imbalance_factor"] == 2
    assert report["suggested_size"] == [16, 16]
    text = shown(report)
    for part in (
        "train/b/zero.png",
        "half.png",
        "train/a/000.png = test/a/copy.png",
        "8 x 8 (12)",
        "16 x 16",
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
    assert inspect((noise(4, 100, 90), y))["suggested_size"] == [64, 64]
    assert inspect((noise(4, 100, 50), y))["suggested_size"] == [32, 32]
    report = inspect((noise(4, 28, 20), y), size=24)
    assert report["suggested_size"] == [24, 24]
    assert any("enlarged" in note for note in report["warnings"])


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
