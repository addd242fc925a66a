from __future__ import annotations

import numpy as np
import pytest

from imbdiff.data import findings, near_duplicates
from imbdiff.data.findings import Look, conflicting, name_problems, odd_classes, suspicious
from imbdiff.data.imageset import ImageSet
from imbdiff.data.near_duplicates import thumbnails
from imbdiff.data.source import pixel_hash, smaller
from tests.data.test_near_duplicates import _digits, _noisy, _smooth


def look(x, split="train"):
    small = np.stack([smaller(image) for image in x])
    ids = tuple(f"{split}/{i}" for i in range(len(x)))
    return Look(split, ids, np.zeros(len(x), np.int64), tuple(map(pixel_hash, x)), small, np.arange(len(x)))


def test_small_versions_find_what_whole_images_do():
    x = _smooth(400, 1)
    test = np.concatenate([_smooth(60, 2), _noisy(x[:20], 6), _noisy(x[20:30, :, ::-1], 6), x[30:32]])
    sets = [ImageSet(images, np.zeros(len(images), np.int64), ("a",)) for images in (x, test)]
    whole = {(pair.first, pair.second, pair.exact, pair.mirrored) for pair in near_duplicates.across(*sets).pairs}
    train, other = look(x), look(test, "test")
    row, found = findings.similar_across(train, findings.look_finder(train), other)
    small = {(p.first.split("/")[1], p.second.split("/")[1], p.exact, p.mirrored) for p in found.pairs}
    assert small == whole
    assert len(small) == 32
    assert (row["near"], row["looked_up"], row["total"], row["beyond_chance"]) == (30, 92, 92, True)
    assert not {"test/90", "test/91"} & {second for _, second, _ in row["pairs"]}  # exact ones are listed elsewhere


def test_inside_a_split_every_pair_once_and_no_image_with_itself():
    x = _smooth(300, 3)
    x = np.concatenate([x, _noisy(x[:5], 5), _noisy(x[5:8, :, ::-1], 5), x[10:12]])
    images = look(x)
    row, pairs = findings.similar_within(images, findings.look_finder(images))
    assert sorted(pairs) == [(i, 300 + i) for i in range(8)]
    assert (row["first"], row["second"], row["near"], row["looked_up"], row["total"]) == ("train", "train", 8, 308, 308)
    ratios = [ratio for *_, ratio in row["pairs"]]
    assert ratios == sorted(ratios)
    assert row["beyond_chance"]
    assert row["pairs"][0][:2] == [images.ids[pairs[0][0]], images.ids[pairs[0][1]]]


def test_neighbours_are_those_of_brute_force(monkeypatch):
    images = look(_smooth(120, 4))
    monkeypatch.setattr(findings, "CAP", 70)
    monkeypatch.setattr(findings, "LEAST_LOOKED_UP", 1)
    among = findings.look_finder(images).among
    lowest = sorted(range(120), key=lambda i: images.hashes[i])[:70]
    assert among.rows.tolist() == lowest
    rows = thumbnails(images.small).astype(np.float64)
    for i, near in zip(among.rows.tolist(), among.neighbours.tolist(), strict=True):
        distance = ((rows - rows[i]) ** 2).sum(axis=1)
        distance[i] = np.inf
        assert near == np.argsort(distance, kind="stable")[:50].tolist()


def test_fewer_are_looked_up_among_more():
    assert findings.lookups(1_000) == findings.lookups(100_000) == 10_000
    assert findings.lookups(1_000_000) == 1_000
    assert findings.lookups(10**9) == findings.LEAST_LOOKED_UP
    assert findings.lookups(100_000, findings.PAIRS // 2) == 5_000


@pytest.mark.parametrize("n", [0, 1, 3])
def test_tiny_splits(n):
    x = _smooth(5, 5)
    images, other = look(x).select(np.arange(n)), look(x, "test")
    search = findings.look_finder(images)
    row, pairs = findings.similar_within(images, search)
    assert (row["near"], pairs, row["beyond_chance"]) == (0, [], False)
    row, _ = findings.similar_across(images, search, other)
    assert row["near"] == 0


def test_flat_images_are_equal_in_small_only_if_they_are():
    x = np.zeros((3, 8, 8, 3), np.uint8)
    x[1] = 200
    x[2, 0, 0] = 9
    assert look(x).flat.tolist() == [True, True, False]


def labelled(x, y, split="train"):
    small = np.stack([smaller(image) for image in x])
    ids = tuple(f"{split}/{i}" for i in range(len(x)))
    return Look(split, ids, np.asarray(y, np.int64), tuple(map(pixel_hash, x)), small, np.arange(len(x)))


def found(images, classes):
    search = findings.look_finder(images)
    return suspicious(images, search.among, classes)


def test_changed_labels_of_digits_are_found():
    train, _ = _digits()
    g = np.random.default_rng(3)
    changed = g.choice(len(train), 60, replace=False)
    y = train.labels.copy()
    y[changed] = (y[changed] + g.integers(1, 10, 60)) % 10
    report = found(labelled(train.images, y), 10)
    listed = [row["row"] for row in report["images"]]
    right = set(listed) & set(changed.tolist())
    assert len(right) / len(listed) > 0.9  # precision
    assert len(right) / 60 > 0.8  # recall
    assert (report["found"], report["looked_up"], report["total"]) == (len(listed), 1297, 1297)
    for row in report["images"]:
        assert row["label"] == y[row["row"]] != row["other"]
        assert row["row"] not in row["neighbours"]
        assert {int(y[j]) for j in row["neighbours"]} == {row["other"]}
        if row["row"] in right:
            assert row["votes"] >= 9
    assert [row["votes"] for row in report["images"]] == sorted((r["votes"] for r in report["images"]), reverse=True)
    assert len(found(labelled(train.images, train.labels), 10)["images"]) < 12


def test_classes_that_look_alike_are_not_judged():
    report = found(labelled(_smooth(200, 1), np.arange(200) % 2), 2)
    assert report["images"] == []
    assert report["not_judged"] == [0, 1]


def test_a_small_class_apart_is_judged_and_a_tiny_one_among_others_is_not():
    x = _smooth(150, 2)
    stripes = np.where(np.arange(32) % 8 < 4, 60, 190).astype(np.uint8)[None, :, None, None]
    x = np.concatenate([x, _noisy(np.broadcast_to(stripes, (46, 32, 32, 3)), 12)])
    y = np.repeat([0, 1], [150, 46])
    y[:3] = 2  # three images among class 0
    y[160] = 0  # one of class 1 with another label
    report = found(labelled(x, y), 3)
    assert [row["row"] for row in report["images"]] == [160]
    assert report["not_judged"] == [2]


def test_too_few_images_are_not_judged():
    report = found(labelled(_smooth(8, 3), [0] * 4 + [1] * 4), 2)
    assert (report["looked_up"], report["images"], report["not_judged"]) == (0, [], [0, 1])
    assert suspicious(labelled(_smooth(2, 3), [0, 1]), None, 2)["not_judged"] == [0, 1]


def test_copies_with_two_labels():
    x = _smooth(6, 4)
    train = labelled(np.concatenate([x, x[:1], x[1:2]]), [0, 1, 0, 1, 0, 1, 1, 1])
    test = labelled(x[2:3], [1], "test")
    groups = findings.copies({"train": train, "test": test})
    assert [sorted(name for _, name, _ in group) for group in groups] == [
        ["train/0", "train/6"],
        ["train/1", "train/7"],
        ["test/0", "train/2"],
    ]
    assert conflicting(groups, ["a", "b"]) == [
        {"images": ["train/0", "train/6"], "classes": ["a", "b"]},
        {"images": ["train/2", "test/0"], "classes": ["a", "b"]},
    ]


def test_odd_classes():
    x = _smooth(12, 5)
    black = np.zeros((3, 32, 32, 3), np.uint8)
    black[1:] += np.array([9, 200], np.uint8)[:, None, None, None]
    x = np.concatenate([x, np.repeat(x[:1], 3, axis=0), black])
    y = [0] * 4 + [1] + [2] * 7 + [3] * 3 + [4] * 3
    names = ["fine", "one", "also fine", "copies", "flat"]
    assert odd_classes(labelled(x, y), [*names, "empty"]) == {"single": ["one"], "copies": ["copies"], "flat": ["flat"]}
    half = labelled(np.concatenate([x[:2], x[:2]]), [0, 0, 0, 0])
    assert odd_classes(half, ["half"])["copies"] == ["half"]
    assert odd_classes(labelled(np.concatenate([x[:3], x[:2]]), [0] * 5), ["most"])["copies"] == []


def groups(names):
    return [sorted(group) for group, _ in name_problems(names)]


@pytest.mark.parametrize(
    "pair",
    [
        ("cat", "Cat"),
        ("cat", "cat "),
        ("sea-lion", "Sea lion"),
        ("café", "café"),
        ("cat", "c\u200bat"),
        ("ﬁsh", "FISH"),
    ],
)
def test_two_spellings_of_one_name(pair):
    assert sorted(pair) in groups([*pair, "dog"])


def test_a_name_beside_the_same_one_with_a_number():
    assert groups(["cat", "cat2", "cat (1)", "dog"]) == [["cat", "cat (1)", "cat2"]]


@pytest.mark.parametrize("names", [["train2", "b"], ["Test", "b"], ["valid_1", "b"]])
def test_names_of_splits(names):
    assert groups(names) == [[names[0]]]


@pytest.mark.parametrize(
    "names",
    [
        ["0", "1", "10", "11"],
        ["class1", "class2", "class10"],
        ["1-2", "1-3", "1"],
        ["trainer", "contest", "cat", "dog", "", "-", "蝴蝶", "蝴"],
    ],
)
def test_ordinary_names_are_in_order(names):
    assert name_problems(names) == []


def test_white_space_around_a_name():
    assert groups([" dog", "cat"]) == [[" dog"]]


def test_long_names_cost_nothing():
    assert name_problems(["1" * 200_000 + "a", "(" * 200_000, "_" * 100_000 + "1" * 100_000]) == []
