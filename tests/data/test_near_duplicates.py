from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imbdiff.data import near_duplicates
from imbdiff.data.imageset import ImageSet
from imbdiff.data.near_duplicates import RATIO, CopyFinder, across, limit_of, lookups, thumbnails, within
from tests.data.making import digits, noisy, smooth


def _jpeg(x: np.ndarray, quality: int) -> np.ndarray:
    out = []
    for image in x:
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file)).reshape(image.shape))
    return np.stack(out)


CHANGES = {
    "none": lambda x: x,
    "noise of 2": lambda x: noisy(x, 2),
    "noise of 8": lambda x: noisy(x, 8),
    "mirrored": lambda x: x[:, :, ::-1],
    "brighter": lambda x: np.clip(x.astype(int) + 20, 0, 255).astype(np.uint8),
    "less contrast": lambda x: np.rint(128 + 0.8 * (x.astype(float) - 128)).astype(np.uint8),
    "JPEG 75": lambda x: _jpeg(x, 75),
}


def as_set(x: np.ndarray) -> ImageSet:
    return ImageSet(x, np.zeros(len(x), np.int64), ("a",))


def finder(images: ImageSet, most: int = 2_000) -> CopyFinder:
    return CopyFinder(images.images, images.hashes, most)


def searched(train: ImageSet, test: ImageSet) -> near_duplicates.NearDuplicates:
    return across(finder(train), train, test)


def near(search: CopyFinder, x: np.ndarray) -> np.ndarray:
    return search.find(np.ascontiguousarray(x)).near


@pytest.fixture(scope="module")
def searches() -> list[tuple[CopyFinder, np.ndarray]]:
    """Finders of digits and of photographs, and some of their images."""
    train, _ = digits()
    x = smooth(400, 0)
    return [(finder(train), train.images[::7]), (finder(as_set(x)), x[:80])]


@pytest.mark.parametrize("what", CHANGES)
def test_planted_copies_are_found(what: str, searches: list[tuple[CopyFinder, np.ndarray]]) -> None:
    for search, images in searches:
        assert near(search, CHANGES[what](images)).mean() > 0.98


def test_photographs_may_be_shifted_by_a_pixel() -> None:
    x = smooth(400, 0, 34)
    photos = as_set(np.ascontiguousarray(x[:, 1:33, 1:33]))
    assert near(finder(photos), x[:, 1:33, 2:34]).mean() > 0.95


def test_real_images_that_nobody_copied_are_not_found() -> None:
    train, test = digits()
    found = searched(train, test)
    assert len(found.pairs) / found.looked_up < 0.012
    assert found.sentence() == ""
    assert found.limit is not None
    assert found.limit < RATIO  # digits are alike: Carlini's 1/2 alone would call 6 % of them copies
    assert (finder(train).find(test.images).ratio < RATIO).mean() > 0.04
    x = smooth(900, 1)
    search = finder(as_set(x[:600]))
    assert search.limit == RATIO
    assert search.usual <= 0.01
    assert near(search, x[600:]).mean() <= 0.01


def test_duplicates_in_the_training_images_do_not_move_the_limit() -> None:
    x = smooth(400, 2)
    search = finder(as_set(np.concatenate([x, noisy(x[:60], 3), x[:100]])))
    assert search.limit == finder(as_set(x)).limit == RATIO
    assert near(search, noisy(x[:80], 4)).all()
    assert search.usual == pytest.approx(120 / 460, abs=0.01)
    # an image that is there sixty times, exactly, is one image, not its own usual distance
    often = np.concatenate([x, np.repeat(x[:1], 60, axis=0)])
    assert near(finder(as_set(often)), noisy(x[:1], 4)).all()
    assert limit_of(np.full(10, 0.9)) == RATIO
    logs = np.random.default_rng(0).normal(-0.5, 0.2, 100_000)
    assert limit_of(np.exp(logs)) == pytest.approx(np.exp(-0.5 - 2.326 * 0.2), abs=0.01)


def test_order_changes_nothing_and_pairs_name_both_images(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = digits()
    test = ImageSet(
        np.concatenate([test.images, train.images[5:6], noisy(train.images[7:8], 3), train.images[9:10, :, ::-1]]),
        np.concatenate([test.labels, train.labels[[5, 7, 9]]]),
        test.class_names,
    )
    found = searched(train, test)
    pairs = {second: (first, ratio) for first, second, ratio in found.pairs}
    assert "500" not in pairs  # an exact copy
    assert (pairs["501"][0], pairs["502"]) == ("7", ("9", 0.0))
    g = np.random.default_rng(0)
    assert searched(train.select(g.permutation(len(train))), test.select(g.permutation(len(test)))) == found
    many = searched(train, as_set(noisy(train.images[:50], 3)))
    assert many.sentence().startswith("50 of 50 images of test look like near duplicates")
    monkeypatch.setattr(near_duplicates, "CAP", 100)
    part = searched(train, test)
    assert part == searched(train, test.select(g.permutation(len(test))))
    assert (part.looked_up, part.total) == (100, 503)


def test_small_versions_find_what_whole_images_do() -> None:
    from imbdiff.data.source import smaller

    x = smooth(400, 1)
    test = np.concatenate([smooth(60, 2), noisy(x[:20], 6), noisy(x[20:30, :, ::-1], 6), x[30:32]])
    found = []
    for change in (lambda y: y, lambda y: np.stack([smaller(image) for image in y])):
        one, other = as_set(change(x)), as_set(change(test))
        found.append(searched(one, other))
    assert {p[:2] for p in found[0].pairs} == {p[:2] for p in found[1].pairs} == {
        (str(i), str(60 + i)) for i in range(30)
    }  # fmt: skip
    assert found[0].beyond_chance


def test_inside_a_split_every_pair_once_and_no_image_with_itself() -> None:
    x = smooth(300, 3)
    images = as_set(np.concatenate([x, noisy(x[:5], 5), noisy(x[5:8, :, ::-1], 5), x[10:12]]))
    found = within(finder(images, 10_000), images, "train")
    assert sorted(pair[:2] for pair in found.pairs) == sorted((str(i), str(300 + i)) for i in range(8))
    assert (found.first, found.second, found.looked_up, found.total) == ("train", "train", 308, 308)
    ratios = [ratio for *_, ratio in found.pairs]
    assert ratios == sorted(ratios)
    assert found.beyond_chance


def test_neighbours_are_those_of_brute_force() -> None:
    images = as_set(smooth(120, 4))
    search = finder(images, 70)
    assert search.looked_up.tolist() == sorted(range(120), key=lambda i: images.hashes[i])[:70]
    rows = thumbnails(images.images).astype(np.float64)
    assert search.among is not None
    for i, found in zip(search.looked_up.tolist(), search.among.neighbours.tolist(), strict=True):
        distance = ((rows - rows[i]) ** 2).sum(axis=1)
        distance[i] = np.inf
        assert found == np.argsort(distance, kind="stable")[:50].tolist()


def test_fewer_are_looked_up_among_more() -> None:
    assert lookups(1_000) == lookups(100_000) == 10_000
    assert lookups(1_000_000) == 1_000


def test_small_sets() -> None:
    x = smooth(6, 3)
    assert near(finder(as_set(x[:3])), noisy(x[:3], 4)).all()
    two = finder(as_set(x[:2]))
    assert np.isnan(two.limit)
    assert near(two, np.concatenate([x[:1], noisy(x[:1], 8)])).tolist() == [True, False]
    for n in (1, 2, 3):
        images = as_set(x[:n])
        inside = within(finder(images), images, "train")
        assert (inside.pairs, inside.beyond_chance) == ((), False)
        assert searched(images, as_set(x[3:])).pairs == ()
    nothing = searched(as_set(x), as_set(x[:0]))
    assert replace(nothing, limit=None) == near_duplicates.NearDuplicates("train", "test", 0, 0, None, False, ())


def test_thumbnails_are_block_means_of_one_contrast() -> None:
    x = smooth(5, 4)
    means = x.reshape(5, 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(5, -1)
    expected = (means - means.mean(axis=1, keepdims=True)) / means.std(axis=1, keepdims=True)
    np.testing.assert_allclose(thumbnails(x), expected, atol=1e-6)
    np.testing.assert_allclose(thumbnails(np.ascontiguousarray(x[:, :, ::-1]), mirrored=True), expected, atol=1e-6)
    assert thumbnails(x[:, :5, :29, :1]).shape == (5, 5 * 8)
    assert not thumbnails(np.full((2, 8, 8, 1), 77, np.uint8)).any()


@pytest.mark.skipif("IMBDIFF_DATA" not in os.environ, reason="needs real data")
def test_real_test_splits() -> None:
    import sys

    sys.path.insert(0, str(Path(os.environ["IMBDIFF_DATA"])))
    from load import load  # type: ignore[import-not-found]

    data = load("ham10000_sub32")
    train, test = (as_set(data[f"x_{s}"]) for s in ("train", "test"))
    assert len(searched(train, test).pairs) / len(test) < 0.01  # one image per lesion
    assert near(finder(train), _jpeg(train.images[:200], 75)).mean() > 0.98


def test_searches_at_once_do_not_warn_of_threads_in_threads() -> None:
    """OpenBLAS says so on the standard error, in a process that has threads for it and torch's OpenMP."""
    code = """
import numpy as np, torch
from imbdiff.data.near_duplicates import CopyFinder
x = np.random.default_rng(0).integers(0, 256, (800, 16, 16, 1), dtype=np.uint8)
finder = CopyFinder(x, [f"{i:032x}" for i in range(800)])
for _ in range(3):
    finder.find(x)
"""
    many = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", code], env=many, capture_output=True, text=True, check=True)
    assert "OpenMP" not in done.stderr
