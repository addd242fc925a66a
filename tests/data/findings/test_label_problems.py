import numpy as np

from imbdiff.data.findings import alike
from imbdiff.data.findings.label_problems import conflicting, odd_classes, suspicious
from imbdiff.data.findings.look import Look
from imbdiff.data.source import pixel_hash, smaller
from tests.data.test_near_duplicates import _digits, _noisy, _smooth


def look(x, y, split="train"):
    small = np.stack([smaller(image) for image in x])
    ids = tuple(f"{split}/{i}" for i in range(len(x)))
    return Look(split, ids, np.asarray(y, np.int64), tuple(map(pixel_hash, x)), small, np.arange(len(x)))


def found(images, classes):
    search = alike.finder(images)
    return suspicious(images, search.among, classes)


def test_changed_labels_of_digits_are_found():
    train, _ = _digits()
    g = np.random.default_rng(3)
    changed = g.choice(len(train), 60, replace=False)
    y = train.labels.copy()
    y[changed] = (y[changed] + g.integers(1, 10, 60)) % 10
    report = found(look(train.images, y), 10)
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
    assert len(found(look(train.images, train.labels), 10)["images"]) < 12


def test_classes_that_look_alike_are_not_judged():
    report = found(look(_smooth(200, 1), np.arange(200) % 2), 2)
    assert report["images"] == []
    assert report["not_judged"] == [0, 1]


def test_a_small_class_apart_is_judged_and_a_tiny_one_among_others_is_not():
    x = _smooth(150, 2)
    stripes = np.where(np.arange(32) % 8 < 4, 60, 190).astype(np.uint8)[None, :, None, None]
    x = np.concatenate([x, _noisy(np.broadcast_to(stripes, (46, 32, 32, 3)), 12)])
    y = np.repeat([0, 1], [150, 46])
    y[:3] = 2  # three images among class 0
    y[160] = 0  # one of class 1 with another label
    report = found(look(x, y), 3)
    assert [row["row"] for row in report["images"]] == [160]
    assert report["not_judged"] == [2]


def test_too_few_images_are_not_judged():
    report = found(look(_smooth(8, 3), [0] * 4 + [1] * 4), 2)
    assert (report["looked_up"], report["images"], report["not_judged"]) == (0, [], [0, 1])
    assert suspicious(look(_smooth(2, 3), [0, 1]), None, 2)["not_judged"] == [0, 1]


def test_copies_with_two_labels():
    x = _smooth(6, 4)
    train = look(np.concatenate([x, x[:1], x[1:2]]), [0, 1, 0, 1, 0, 1, 1, 1])
    test = look(x[2:3], [1], "test")
    groups = alike.copies({"train": train, "test": test})
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
    assert odd_classes(look(x, y), [*names, "empty"]) == {"single": ["one"], "copies": ["copies"], "flat": ["flat"]}
    half = look(np.concatenate([x[:2], x[:2]]), [0, 0, 0, 0])
    assert odd_classes(half, ["half"])["copies"] == ["half"]
    assert odd_classes(look(np.concatenate([x[:3], x[:2]]), [0] * 5), ["most"])["copies"] == []
