import numpy as np
import pytest

from imbdiff.data import near_duplicates
from imbdiff.data.findings import alike
from imbdiff.data.findings.look import Look
from imbdiff.data.imageset import ImageSet
from imbdiff.data.near_duplicates import thumbnails
from imbdiff.data.source import pixel_hash, smaller
from tests.data.test_near_duplicates import _noisy, _smooth


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
    row, found = alike.across(train, alike.finder(train), other)
    small = {(p.first.split("/")[1], p.second.split("/")[1], p.exact, p.mirrored) for p in found.pairs}
    assert small == whole
    assert len(small) == 32
    assert (row["near"], row["looked_up"], row["total"], row["beyond_chance"]) == (30, 92, 92, True)
    assert not {"test/90", "test/91"} & {second for _, second, _ in row["pairs"]}  # exact ones are listed elsewhere


def test_inside_a_split_every_pair_once_and_no_image_with_itself():
    x = _smooth(300, 3)
    x = np.concatenate([x, _noisy(x[:5], 5), _noisy(x[5:8, :, ::-1], 5), x[10:12]])
    images = look(x)
    row, pairs = alike.within(images, alike.finder(images))
    assert sorted(pairs) == [(i, 300 + i) for i in range(8)]
    assert (row["first"], row["second"], row["near"], row["looked_up"], row["total"]) == ("train", "train", 8, 308, 308)
    ratios = [ratio for *_, ratio in row["pairs"]]
    assert ratios == sorted(ratios)
    assert row["beyond_chance"]
    assert row["pairs"][0][:2] == [images.ids[pairs[0][0]], images.ids[pairs[0][1]]]


def test_neighbours_are_those_of_brute_force(monkeypatch):
    images = look(_smooth(120, 4))
    monkeypatch.setattr(alike, "CAP", 70)
    monkeypatch.setattr(alike, "LEAST_LOOKED_UP", 1)
    among = alike.finder(images).among
    lowest = sorted(range(120), key=lambda i: images.hashes[i])[:70]
    assert among.rows.tolist() == lowest
    rows = thumbnails(images.small).astype(np.float64)
    for i, near in zip(among.rows.tolist(), among.neighbours.tolist(), strict=True):
        distance = ((rows - rows[i]) ** 2).sum(axis=1)
        distance[i] = np.inf
        assert near == np.argsort(distance, kind="stable")[:50].tolist()


def test_fewer_are_looked_up_among_more():
    assert alike.lookups(1_000) == alike.lookups(100_000) == 10_000
    assert alike.lookups(1_000_000) == 1_000
    assert alike.lookups(10**9) == alike.LEAST_LOOKED_UP
    assert alike.lookups(100_000, alike.PAIRS // 2) == 5_000


@pytest.mark.parametrize("n", [0, 1, 3])
def test_tiny_splits(n):
    x = _smooth(5, 5)
    images, other = look(x).select(np.arange(n)), look(x, "test")
    search = alike.finder(images)
    row, pairs = alike.within(images, search)
    assert (row["near"], pairs, row["beyond_chance"]) == (0, [], False)
    row, _ = alike.across(images, search, other)
    assert row["near"] == 0


def test_flat_images_are_equal_in_small_only_if_they_are():
    x = np.zeros((3, 8, 8, 3), np.uint8)
    x[1] = 200
    x[2, 0, 0] = 9
    assert look(x).flat.tolist() == [True, True, False]
