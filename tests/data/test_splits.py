import json
import shutil

import numpy as np
import pytest
from PIL import Image

from imbdiff.data.arrays import ArraySource
from imbdiff.data.profiles import long_tail
from imbdiff.data.splits import prepare
from imbdiff.data.stats import Groups
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import arrays, folder, noise, write


def counts(images):
    return np.bincount(images.labels, minlength=len(images.class_names)).tolist()


def disjoint(*sets):
    names = [name for images in sets if images is not None for name in images.ids]
    return len(names) == len(set(names))


@pytest.fixture(scope="module")
def demo():
    return prepare("digits", imbalance_factor=50)


def test_the_digits_demo(demo):
    assert demo.stats.counts == (110, 71, 46, 29, 19, 12, 8, 5, 3, 2)
    assert counts(demo.test) == [60] * 10
    assert len(demo.pool) == 1197
    assert counts(demo.val) == [8] + [11] * 9  # 11 = 10 % of the largest class; class 0 has 118 - 110 left
    assert disjoint(demo.train, demo.val, demo.test)
    assert set(demo.train.ids) | set(demo.val.ids) <= set(demo.pool.ids)
    assert not set(demo.pool.ids) & set(demo.test.ids)
    assert demo.claimable == (True,) * 10  # they had 180 images each before the cut
    assert demo.warnings == ()
    assert "profile dropped" in demo.manifest["val_from"]


def test_images_keep_their_labels(demo):
    from sklearn.datasets import load_digits

    truth = load_digits()
    for images in (demo.train, demo.val, demo.test, demo.pool):
        rows = [int(name.removeprefix("digits/")) for name in images.ids]
        assert np.array_equal(images.labels, truth.target[rows])
        assert np.array_equal(images.images[..., 0], np.round(truth.images[rows] * 255 / 16))


def test_manifest_is_json_and_complete(demo):
    manifest = demo.manifest
    assert json.loads(json.dumps(manifest, allow_nan=False)) == manifest
    assert manifest["ids"]["train"] == list(demo.train.ids)
    assert manifest["counts"]["train"] == list(demo.stats.counts)
    assert manifest["digests"]["test"] == demo.test.fingerprint
    assert manifest["long_tail"] == {
        "imbalance_factor": 50, "profile": "exponential", "protocol": "imbdiff", "order": "label", "n_max": 110,
    }  # fmt: skip


def test_equal_arguments_give_equal_splits_and_others_do_not(demo):
    again = prepare("digits", imbalance_factor=0.02)
    assert again.manifest["hash"] == demo.manifest["hash"]
    assert again.train.fingerprint == demo.train.fingerprint
    hashes = {
        prepare("digits", **options).manifest["hash"]
        for options in ({"imbalance_factor": 50, "seed": 1}, {"imbalance_factor": 20})
    }
    assert len(hashes | {demo.manifest["hash"]}) == 3


def test_digits_as_they_are(demo):
    p = prepare("digits")
    assert p.test.fingerprint == demo.test.fingerprint  # it does not depend on the tail
    assert p.pool is None
    assert sum(counts(p.val)) + len(p.train) == 1197
    assert counts(p.val) == [round(0.1 * (n - 60)) for n in (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)]
    assert disjoint(p.train, p.val, p.test)
    assert p.manifest["long_tail"] is None


def test_a_users_folder_with_tiny_classes(tmp_path):
    folder(tmp_path, {"common": 40, "some": 10, "four": 4, "three": 3, "one": 1})
    p = prepare(tmp_path)
    names = p.stats.names
    assert names == ("common", "four", "one", "some", "three")
    assert counts(p.test) == [8, 1, 0, 2, 0]
    assert counts(p.val) == [3, 0, 0, 0, 0]  # 10 % of the 32 left; the others have fewer than 20
    assert p.stats.counts == (29, 3, 1, 8, 3)
    assert dict(zip(names, p.claimable, strict=True)) == {
        "common": True, "some": True, "four": True, "three": False, "one": False,
    }  # fmt: skip
    tiny = next(w for w in p.warnings if "at most 3" in w)
    assert "'one': 1" in tiny
    assert "'three': 3" in tiny
    assert "four" not in tiny
    assert disjoint(p.train, p.val, p.test)


def test_no_validation_where_classes_are_small():
    p = prepare(arrays([12, 8]))
    assert p.val is None
    assert "none" in p.manifest["val_from"]
    assert p.manifest["ids"]["val"] is None
    p = prepare(arrays([4, 5, 40]), test_fraction=0.99, val_fraction=0)
    assert (p.val, p.stats.counts, counts(p.test)) == (None, (1, 1, 1), [3, 4, 39])


def test_given_splits_are_used_as_they_are(tmp_path):
    folder(tmp_path, {"train/a": 30, "train/b": 5, "train/c": 2, "val/a": 3, "val/b": 1, "test/a": 2, "test/c": 4})
    p = prepare(tmp_path)
    assert p.stats.counts == (30, 5, 2)
    assert counts(p.val) == [3, 1, 0]
    assert counts(p.test) == [2, 0, 4]
    assert p.claimable == (True, False, False)  # b has no test image, c only 2 for training
    assert (p.manifest["test_from"], p.manifest["val_from"]) == ("given", "given")
    assert any("no test image" in w and "b" in w for w in p.warnings)


def test_duplicates_across_given_splits(tmp_path):
    folder(tmp_path, {"train/a": 6, "train/b": 6, "val/a": 3, "val/b": 3, "test/a": 3, "test/b": 3})
    shutil.copy(tmp_path / "train/a/001.png", tmp_path / "test/a/copy.png")
    shutil.copy(tmp_path / "train/b/002.png", tmp_path / "val/b/copy.png")
    shutil.copy(tmp_path / "test/b/000.png", tmp_path / "val/b/leak.png")
    shutil.copy(tmp_path / "train/a/003.png", tmp_path / "train/b/wrong.png")
    p = prepare(tmp_path)
    found = p.manifest["duplicates"]
    assert found["train_test"] == [["train/a/001.png", "test/a/copy.png"]]
    assert found["train_val_removed"] == [["train/b/002.png", "val/b/copy.png"]]
    assert found["test_val_removed"] == [["test/b/000.png", "val/b/leak.png"]]
    assert found["within_train"] == [["train/a/003.png", "train/b/wrong.png"]]
    assert "test/a/copy.png" in p.test.ids  # reported, not changed
    assert "val/b/copy.png" not in p.val.ids
    assert "val/b/leak.png" not in p.val.ids
    assert len(p.val) == 6
    text = "\n".join(p.warnings)
    for part in ("test/a/copy.png", "stays in the test split", "val/b/copy.png", "more than one class"):
        assert part in text


def test_copies_are_not_held_out_while_others_are_left():
    x, y = arrays([20, 20])
    first = np.flatnonzero(y == 0)
    x[first[1:10]] = x[first[0]]
    for seed in range(5):
        p = prepare((x, y), test_fraction=0.5, seed=seed)
        assert p.manifest["duplicates"]["train_test"] == []
        assert counts(p.test) == [10, 10]


def test_the_hash_depends_on_the_pixels_and_not_on_the_place(tmp_path):
    one = folder(tmp_path / "one", {"a": 30, "b": 8})
    other = tmp_path / "a much longer way" / "to the same"
    shutil.copytree(one, other)
    first, second = prepare(one), prepare(str(other))
    assert first.manifest["hash"] == second.manifest["hash"]
    file = other / first.train.ids[0]
    pixels = np.array(Image.open(file))
    pixels[2, 3] ^= 1
    Image.fromarray(pixels).save(file)
    after = prepare(other)
    assert after.manifest["ids"] == first.manifest["ids"]
    assert after.manifest["hash"] != first.manifest["hash"]


def test_sizes_are_changed_and_bad_files_of_all_splits_come_in_one_error(tmp_path):
    folder(tmp_path, {"train/a": 3, "train/b": 3, "test/a": 2}, size=(100, 80))
    p = prepare(tmp_path)
    assert p.train.shape == p.test.shape == (64, 48, 3)
    assert any("100 x 80" in w for w in p.warnings)
    assert prepare(tmp_path, size=16, resize="pad").train.shape == (16, 16, 3)
    for name in ("train/a/000.png", "train/b/001.png", "test/a/000.png"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="3 of the images") as error:
        prepare(tmp_path)
    assert "test/a/000.png" in error.value.message


def test_cifar_lt_protocol_keeps_the_literatures_order():
    x, y = arrays([100] * 4)
    np_source = ArraySource({"train": (x, y), "test": (noise(8, 6, 6, seed=9), np.arange(8) % 4)})
    p = prepare(np_source, imbalance_factor=10, protocol="cifar-lt")
    expected = long_tail(y, imbalance_factor=10, protocol="cifar-lt")
    assert p.train.ids == tuple(f"train/{i}" for i in expected)
    assert p.stats.counts == (100, 46, 21, 10)
    assert counts(p.val) == [0, 10, 10, 10]  # nothing of class 0 was dropped
    assert len(p.pool) == 400
    assert any("seed 3" in w for w in prepare(np_source, imbalance_factor=10, protocol="cifar-lt", seed=3).warnings)


def test_a_tail_from_an_array_leaves_images_for_validation():
    p = prepare(arrays([200] * 3), imbalance_factor=4)
    # 160 are left after the test; 10 % of them are kept back from the largest class
    assert p.stats.counts == (144, 72, 36)
    assert counts(p.val) == [14, 14, 14]
    assert prepare(arrays([200] * 3), imbalance_factor=4, n_max=160, val_fraction=0.1).stats.counts == (160, 80, 40)


def test_a_tail_from_an_unbalanced_source_follows_its_order():
    p = prepare(arrays([50, 400, 100]), imbalance_factor=16, val_fraction=0)
    assert p.manifest["long_tail"]["order"] == "size"
    assert p.stats.counts == (20, 320, 80)
    assert p.pool is None


def test_groups_may_be_given():
    x = arrays([60, 30, 10])
    names = {"head": ["0"], "rest": ["1", "2"]}
    assert prepare(x, groups=names).groups.of_class == (0, 1, 1)
    assert prepare(x, groups=lambda s: Groups.by_threshold(s, 20, 10)).groups.of_class == (0, 0, 2)
    fixed = Groups(("x", "y"), (1, 0, 1), "by hand")
    assert prepare(x, groups=fixed).groups == fixed
    with pytest.raises(ConfigError, match="cover 2 classes"):
        prepare(x, groups=Groups(("x",), (0, 0), "by hand"))


def test_impossible_requests():
    with pytest.raises(DataError, match="60 images"):
        prepare(arrays([100, 60]), test_per_class=60)
    with pytest.raises(DataError, match="no class has more than 3"):
        prepare(arrays([3, 2]))
    with pytest.raises(DataError, match="test_fraction is 0"):
        prepare(arrays([30, 20]), test_fraction=0)
    for wrong in ({"test_fraction": 1.0}, {"val_fraction": -0.1}, {"imbalance_factor": 0}, {"test_per_class": 0}):
        with pytest.raises(ConfigError):
            prepare(arrays([100, 60]), **wrong)


def test_with_too_few_images_to_hold_out_every_remedy_works(tmp_path):
    root = folder(tmp_path / "d", {"a": 3, "b": 3})
    with pytest.raises(DataError, match="nothing can be held out") as error:
        prepare(root)
    assert "test_fraction" not in error.value.remedy
    for i, name in enumerate("ab"):
        folder(tmp_path / "more", {name: 4})
        shutil.copytree(root / name, tmp_path / "given/train" / name)
        write(tmp_path / "given/test" / name / "t.png", noise(8, 8, 3, seed=90 + i))
    assert len(prepare(tmp_path / "more").test) == 2  # classes of 4
    assert len(prepare(tmp_path / "given").test) == 2
    (tmp_path / "train.txt").write_text("".join(f"d/{c}/{i:03d}.png {c}\n" for c in "ab" for i in range(3)))
    (tmp_path / "test.txt").write_text("".join(f"given/test/{c}/t.png {c}\n" for c in "ab"))
    assert len(prepare(f"{tmp_path}/train.txt?test=test.txt").test) == 2
    with pytest.raises(DataError, match="test_fraction is 0") as error:
        prepare(tmp_path / "more", test_fraction=0)
    assert "raise it" in error.value.remedy
