"""The report on a source, and what is found in its labels and names."""

import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from imbdiff.data.arrays import ArraySource
from imbdiff.data.decode import Target
from imbdiff.data.findings import Usable, copies, name_problems, suspicious, usable_images
from imbdiff.data.inspect import format_inspection, inspect
from imbdiff.data.near_duplicates import CopyFinder
from imbdiff.data.source import pixel_hash, smaller
from imbdiff.data.sources import load
from tests.data.making import arrays, digits, folder, noise, noisy, smooth, write


def shown(report, width=300):
    console = Console(file=io.StringIO(), width=width)
    console.print(format_inspection(report))
    return console.file.getvalue()


def test_everything_about_a_folder(tmp_path):
    folder(tmp_path, {"train/a": 6, "train/b": 2, "test/a": 2})
    whole = write(tmp_path / "train/a/900.png", noise(20, 30, 3)).read_bytes()
    (tmp_path / "test/a/copy.png").write_bytes((tmp_path / "train/a/000.png").read_bytes())
    (tmp_path / "train/b/copy.png").write_bytes((tmp_path / "train/b/000.png").read_bytes())
    (tmp_path / "train/b/wrong.png").write_bytes((tmp_path / "train/a/001.png").read_bytes())
    (tmp_path / "train/b/zero.png").write_bytes(b"")
    (tmp_path / "train/a/half.png").write_bytes(whole[: len(whole) // 2])
    report = inspect(tmp_path)
    assert report == json.loads(json.dumps(report))
    assert [row["counts"] for row in report["classes"]] == [{"train": 7, "test": 3}, {"train": 4, "test": 0}]
    assert report["images"] == {"train": 11, "test": 3}
    assert report["sizes"] == [[8, 8, 13], [20, 30, 1]]
    assert report["modes"] == {"RGB": 14}
    assert set(report["bad"]) == {"train/b/zero.png", "train/a/half.png"}
    groups = [[list(row) for row in zip(*group.values(), strict=True)] for group in report["duplicates"]]
    assert groups == [
        [["train/a/000.png", "train", "a"], ["test/a/copy.png", "test", "a"]],
        [["train/a/001.png", "train", "a"], ["train/b/wrong.png", "train", "b"]],
        [["train/b/000.png", "train", "b"], ["train/b/copy.png", "train", "b"]],
    ]
    assert report["imbalance_factor"] == 7 / 4
    assert report["suggested_size"] == [8, 8]
    assert any("more than one class" in note for note in report["warnings"])
    text = shown(report)
    for part in ("train/b/zero.png", "half.png", "train/a/000.png = test/a/copy.png", "8 x 8 (13)", "--data.size",
                 "train/a/001.png [a] = train/b/wrong.png [b]", "11 train, 3 test images; not counted: 2 unusable",
                 "size of a run: 8 x 8"):  # fmt: skip
        assert part in text


def test_digits():
    report = inspect("digits")
    assert (report["images"], report["suggested_size"], report["channels"]) == ({"train": 1797}, [8, 8], 1)
    assert (report["balanced"], report["bad"]) == (True, {})


def test_suggested_sizes(tmp_path):
    y = np.array([0, 1, 0, 1])
    for (h, w), expected in {(28, 20): [28, 20], (100, 90): [64, 56], (100, 50): [64, 32]}.items():
        assert inspect((noise(4, h, w), y))["suggested_size"] == expected
    # a run takes the same
    for name, sizes, side in (("x", [(40, 50), (20, 90)], 32), ("y", [(30, 31), (22, 29)], 20)):
        for i, (h, w) in enumerate(sizes):
            write(tmp_path / name / "ab"[i] / "0.png", noise(h, w, 3))
        assert inspect(tmp_path / name)["suggested_size"] == [side, side]
        with pytest.warns(UserWarning, match="--data.size"):
            assert load(tmp_path / name).read().shape == (side, side, 3)


def test_padding_is_suggested_where_cropping_cuts_much(tmp_path):
    for i in range(19):
        write(tmp_path / "ab"[i % 2] / f"{i}.png", noise(20, 20, 3, seed=i))
    write(tmp_path / "a" / "19.png", noise(20, 40, 3))  # one of twenty: half of it would go
    report = inspect(tmp_path)
    assert report["resize"] == {"policy": "pad", "cut_much": 1, "images": 20}
    assert any("padded" in note and "--data.resize" in note for note in report["warnings"])
    write(tmp_path / "a" / "20.png", noise(20, 20, 3, seed=20))
    assert inspect(tmp_path)["resize"]["policy"] == "crop"


def test_a_class_of_damaged_files_only_is_reported(tmp_path):
    folder(tmp_path, {"a": 4, "b": 2, "c": 1})
    (tmp_path / "c" / "000.png").write_bytes(b"no image")
    report = inspect(tmp_path)
    assert report["classes"][2]["counts"] == {"train": 0}
    assert (report["imbalance_factor"], report["balanced"]) == (2, False)
    notes = "\n".join(report["warnings"])
    assert "no usable training image of c" in notes
    assert "1 class has at most 3 images" in notes
    text = shown(report)
    assert "train" not in text.split("note:")[0]  # without splits the column is called images
    assert "3 classes, 6 images; not counted: 1 unusable file\n" in text
    assert not re.search(r"\b1 (classes|files|images)\b", text)


def test_a_thousand_classes_fit_a_screen():
    text = shown(inspect((noise(2000, 4, 4), np.arange(2000) % 1000)), 100)
    assert len(text.splitlines()) < 70
    assert "970 more classes" in text


def test_markup_and_control_characters_in_class_names_are_only_shown(tmp_path):
    folder(tmp_path, {"[red]cat": 1, "<script>": 1, "a\x1b[2Jb": 1})
    text = shown(inspect(tmp_path))
    assert "[red]cat" in text
    assert "<script>" in text
    assert "\x1b" not in text


def test_class_sizes_in_numbers():
    report = inspect(arrays([8, 4, 4]))
    assert [row["share"] for row in report["classes"]] == [0.5, 0.25, 0.25]
    # the effective number is the sum of a geometric series
    for row, n in zip(report["classes"], (8, 4, 4), strict=True):
        for beta in ("0.999", "0.9999"):
            assert row["effective"][beta] == pytest.approx(sum(float(beta) ** i for i in range(n)), rel=1e-9)
    assert report["normalised_entropy"] == pytest.approx(1.5 * np.log(2) / np.log(3))


def test_near_duplicates_between_splits_and_inside():
    train, test = digits()
    x = np.concatenate([test.images, noisy(train.images[:30], 3), train.images[40:42]])
    y = np.concatenate([test.labels, train.labels[:30], train.labels[40:42]])
    report = inspect(ArraySource({"train": (train.images, train.labels), "test": (x, y)}))
    row, *inside = report["near_duplicates"]
    assert (row["first"], row["second"], row["looked_up"], row["total"]) == ("train", "test", 532, 532)
    assert 30 <= row["near"] < 36
    pairs = {second: first for first, second, _ in row["pairs"]}
    assert pairs["test/500"] == "train/0"
    assert "test/530" not in pairs  # exact: a duplicate, listed as such
    assert [(r["first"], r["second"]) for r in inside] == [("train", "train"), ("test", "test")]
    text = shown(report)
    assert "near duplicates of train in test" in text
    assert "look like near duplicates of images of train" in text


def test_every_image_is_decoded_once(tmp_path, monkeypatch):
    import imbdiff.data.source as encoded

    folder(tmp_path, {"train/a": 6, "train/b": 5, "test/a": 3})
    seen = []
    real = encoded.opened
    monkeypatch.setattr(encoded, "opened", lambda file: (seen.append(str(file)), real(file))[1])
    monkeypatch.setattr(encoded, "read_header", None)
    monkeypatch.setattr("imbdiff.data.reading.decode", lambda *a: pytest.fail("decoded again"))
    inspect(tmp_path)
    assert len(seen) == len(set(seen)) == 14


def test_pictures_of_some_images_only(tmp_path, monkeypatch):
    import imbdiff.data.reading as reading

    folder(tmp_path, {"a": 6, "b": 5})
    (tmp_path / "a" / "000.png").write_bytes(b"")
    source = load(tmp_path)
    usable, scan = usable_images(source)
    train = usable["train"]
    assert set(scan.bad) == {"a/000.png"}
    assert train.ids[0] == "a/001.png"
    np.testing.assert_array_equal(train.images[4], noise(8, 8, 3, seed=5))  # 8 x 8: their own small versions
    np.testing.assert_array_equal(train.labels, [0] * 5 + [1] * 5)
    seen = []
    real = reading.decode
    monkeypatch.setattr(reading, "decode", lambda file, *a, **b: (seen.append(file.name), real(file, *a, **b))[1])
    x = source.pictures("train", train.rows[[5, 0]], Target(8, 8, "crop"), False)
    assert sorted(seen) == ["000.png", "001.png"]
    np.testing.assert_array_equal(x, [noise(8, 8, 3, seed=1000), noise(8, 8, 3, seed=1)])


# ---- labels and names


def labelled(x, y):
    small = np.stack([smaller(image) for image in x])
    ids = tuple(str(i) for i in range(len(x)))
    return Usable(ids, np.asarray(y, np.int64), tuple(map(pixel_hash, x)), small, np.arange(len(x)))


def judged(x, y, classes):
    images = labelled(x, y)
    names = [str(k) for k in range(classes)]
    return suspicious(images, CopyFinder(images.images, images.hashes, 10_000), names)


def test_changed_labels_of_digits_are_found():
    train, _ = digits()
    g = np.random.default_rng(3)
    changed = g.choice(len(train), 60, replace=False)
    y = train.labels.copy()
    y[changed] = (y[changed] + g.integers(1, 10, 60)) % 10
    report = judged(train.images, y, 10)
    listed = [int(row["image"]) for row in report["images"]]
    right = set(listed) & set(changed.tolist())
    assert len(right) / len(listed) > 0.9  # precision
    assert len(right) / 60 > 0.8  # recall
    assert (report["found"], report["looked_up"], report["total"]) == (len(listed), 1297, 1297)
    for row in report["images"]:
        assert row["label"] == str(y[int(row["image"])]) != row["other"]
        assert row["image"] not in row["neighbours"]
        assert {str(y[int(j)]) for j in row["neighbours"]} == {row["other"]}
        assert row["votes"] >= 9
    assert [row["votes"] for row in report["images"]] == sorted((r["votes"] for r in report["images"]), reverse=True)
    assert len(judged(train.images, train.labels, 10)["images"]) < 12


def test_which_classes_are_judged():
    """Not classes that look alike, nor a tiny one; a small class apart is."""
    report = judged(smooth(200, 1), np.arange(200) % 2, 2)
    assert (report["images"], report["not_judged"]) == ([], ["0", "1"])
    stripes = np.where(np.arange(32) % 8 < 4, 60, 190).astype(np.uint8)[None, :, None, None]
    x = np.concatenate([smooth(150, 2), noisy(np.broadcast_to(stripes, (46, 32, 32, 3)), 12)])
    y = np.repeat([0, 1], [150, 46])
    y[:3] = 2  # three images among class 0
    y[160] = 0  # one of class 1 with another label
    report = judged(x, y, 3)
    assert [row["image"] for row in report["images"]] == ["160"]
    assert report["not_judged"] == ["2"]
    report = judged(smooth(8, 3), [0] * 4 + [1] * 4, 2)
    assert (report["looked_up"], report["images"], report["not_judged"]) == (0, [], ["0", "1"])


def test_copies_name_splits_and_classes():
    x = smooth(6, 4)
    train = labelled(np.concatenate([x, x[:1], x[1:2]]), [0, 1, 0, 1, 0, 1, 1, 1])
    found = copies({"train": train, "test": labelled(x[2:3], [1])}, ["a", "b"])
    assert found == [
        {"images": ["0", "6"], "splits": ["train", "train"], "classes": ["a", "b"]},
        {"images": ["1", "7"], "splits": ["train", "train"], "classes": ["b", "b"]},
        {"images": ["2", "0"], "splits": ["train", "test"], "classes": ["a", "b"]},
    ]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["cat", "Cat", "dog"], [["cat", "Cat"]]),
        (["cat", "cat ", "dog"], [["cat", "cat "]]),
        (["sea-lion", "Sea lion"], [["sea-lion", "Sea lion"]]),
        (["caf\u00e9", "cafe\u0301"], [["caf\u00e9", "cafe\u0301"]]),
        (["cat", "c\u200bat"], [["cat", "c\u200bat"]]),
        (["\ufb01sh", "FISH"], [["\ufb01sh", "FISH"]]),
        (["train2", "b"], [["train2"]]),
        (["valid_1", "Test"], [["valid_1"], ["Test"]]),
        (["0", "1", "10", "11"], []),
        (["class1", "class2", "class10", "cat", "cat2"], []),
        (["trainer", "contest", "", "-", "蝴蝶", "蝴"], []),
        (["1" * 200_000 + "a", "_" * 100_000 + "1" * 100_000], []),
    ],
)
def test_class_names_to_check(names, found):
    assert [row["names"] for row in name_problems(names)] == found
