from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits

from imbdiff.data.arrays import ArraySource
from imbdiff.data.imageset import ImageSet
from imbdiff.data.inspect import format_inspection, inspect
from imbdiff.data.near_duplicates import RATIO, CopyFinder, across, finder, limit_of, thumbnails
from imbdiff.runtime.errors import DataError


def _digits() -> tuple[ImageSet, ImageSet]:
    x, y = load_digits(return_X_y=True)
    x = np.round(x.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    names = tuple(str(k) for k in range(10))
    return tuple(ImageSet(x[s], y[s].astype(np.int64), names) for s in (slice(1297), slice(1297, None)))  # type: ignore[return-value]


def _smooth(n: int, seed: int, size: int = 32) -> np.ndarray:
    """Colour images with the spectrum of photographs."""
    g = np.random.default_rng(seed)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    noise = np.fft.fft2(g.normal(size=(n, 3, size, size))) / (f + 1 / size) ** 1.2
    x = np.fft.ifft2(noise).real
    x = (x - x.mean(axis=(2, 3), keepdims=True)) / x.std(axis=(2, 3), keepdims=True)
    return np.clip(128 + 45 * x, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _jpeg(x: np.ndarray, quality: int) -> np.ndarray:
    out = []
    for image in x:
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
        out.append(np.asarray(Image.open(file)).reshape(image.shape))
    return np.stack(out)


def _noisy(x: np.ndarray, sigma: float) -> np.ndarray:
    return np.clip(np.rint(x + np.random.default_rng(9).normal(0, sigma, x.shape)), 0, 255).astype(np.uint8)


CHANGES = {
    "none": lambda x: x,
    "noise of 2": lambda x: _noisy(x, 2),
    "noise of 8": lambda x: _noisy(x, 8),
    "mirrored": lambda x: x[:, :, ::-1],
    "brighter": lambda x: np.clip(x.astype(int) + 20, 0, 255).astype(np.uint8),
    "less contrast": lambda x: np.rint(128 + 0.8 * (x.astype(float) - 128)).astype(np.uint8),
    "JPEG 75": lambda x: _jpeg(x, 75),
}


def _found(search: CopyFinder, x: np.ndarray) -> np.ndarray:
    x = np.ascontiguousarray(x)
    return search.find(thumbnails(x), thumbnails(x, mirrored=True)).near


@pytest.fixture(scope="module")
def searched() -> list[tuple[CopyFinder, np.ndarray]]:
    """Finders of digits and of photographs, and some of their images."""
    train, _ = _digits()
    x = _smooth(400, 0)
    photos = ImageSet(x, np.arange(400) % 2, ("a", "b"))
    return [(finder(train), train.images[::7]), (finder(photos), x[:80])]


@pytest.mark.parametrize("what", CHANGES)
def test_planted_copies_are_found(what: str, searched: list[tuple[CopyFinder, np.ndarray]]) -> None:
    for search, images in searched:
        assert _found(search, CHANGES[what](images)).mean() > 0.98


def test_photographs_may_be_shifted_by_a_pixel() -> None:
    x = _smooth(400, 0, 34)
    photos = ImageSet(np.ascontiguousarray(x[:, 1:33, 1:33]), np.arange(400) % 2, ("a", "b"))
    assert _found(finder(photos), x[:, 1:33, 2:34]).mean() > 0.95


def test_real_images_that_nobody_copied_are_not_found() -> None:
    train, test = _digits()
    found = across(train, test)
    assert len(found.pairs) / found.looked_up < 0.012
    assert found.sentence("train", "test") == ""
    assert found.limit is not None
    assert found.limit < RATIO  # digits are alike: Carlini's 1/2 alone would call 6 % of them copies
    ratio = finder(train).find(thumbnails(test.images), thumbnails(test.images, mirrored=True)).ratio
    assert (ratio < RATIO).mean() > 0.04
    x = _smooth(900, 1)
    search = finder(ImageSet(x[:600], np.zeros(600, np.int64), ("a", "b")))
    assert search.limit == RATIO
    assert _found(search, x[600:]).mean() <= 0.01


def test_duplicates_in_the_training_images_do_not_move_the_limit() -> None:
    x = _smooth(400, 2)
    plain = finder(ImageSet(x, np.zeros(400, np.int64), ("a",)))
    doubled = np.concatenate([x, _noisy(x[:60], 3), x[:100]])
    search = finder(ImageSet(doubled, np.zeros(560, np.int64), ("a",)))
    assert search.limit == plain.limit == RATIO
    assert _found(search, _noisy(x[:80], 4)).all()
    # an image that is there sixty times, exactly, is one image, not its own usual distance
    often = np.concatenate([x, np.repeat(x[:1], 60, axis=0)])
    assert _found(finder(ImageSet(often, np.zeros(460, np.int64), ("a",))), _noisy(x[:1], 4)).all()
    assert limit_of(np.full(10, 0.9)) == RATIO
    assert limit_of(np.exp(np.random.default_rng(0).normal(-0.5, 0.2, 100_000))) == pytest.approx(
        np.exp(-0.5 - 2.326 * 0.2), abs=0.01
    )


def test_order_changes_nothing_and_pairs_name_both_images() -> None:
    train, test = _digits()
    test = ImageSet(
        np.concatenate([test.images, train.images[5:6], _noisy(train.images[7:8], 3), train.images[9:10, :, ::-1]]),
        np.concatenate([test.labels, train.labels[[5, 7, 9]]]),
        test.class_names,
    )
    found = across(train, test)
    pairs = {p.second: p for p in found.pairs}
    assert (pairs["500"].first, pairs["500"].exact, pairs["500"].ratio) == ("5", True, 0.0)
    assert (pairs["501"].first, pairs["501"].exact, pairs["501"].mirrored) == ("7", False, False)
    assert (pairs["502"].first, pairs["502"].exact, pairs["502"].mirrored) == ("9", False, True)
    assert found.pairs[0].exact
    g = np.random.default_rng(0)
    moved = across(train.select(g.permutation(len(train))), test.select(g.permutation(len(test))))
    assert moved == found
    part = across(train, test, cap=100)
    again = across(train, test.select(g.permutation(len(test))), cap=100)
    assert part == again
    assert (part.looked_up, part.total) == (100, 503)
    many = across(train, ImageSet(_noisy(train.images[:50], 3), train.labels[:50], train.class_names))
    assert many.sentence("train", "test").startswith("50 of 50 images of test look like near duplicates")


def test_small_sets_and_other_shapes() -> None:
    x = _smooth(6, 3)
    three = ImageSet(x[:3], np.zeros(3, np.int64), ("a",))
    assert _found(finder(three), _noisy(x[:3], 4)).all()
    two = finder(ImageSet(x[:2], np.zeros(2, np.int64), ("a",)))
    assert np.isnan(two.limit)
    assert _found(two, np.concatenate([x[:1], _noisy(x[:1], 8)])).tolist() == [True, False]
    with pytest.raises(DataError, match="cannot be compared"):
        across(three, ImageSet(x[:3, :16], np.zeros(3, np.int64), ("a",)))
    assert across(three, three.select([])).pairs == ()


def test_thumbnails_are_block_means_of_one_contrast() -> None:
    x = _smooth(5, 4)
    means = x.reshape(5, 8, 4, 8, 4, 3).mean(axis=(2, 4)).reshape(5, -1)
    expected = (means - means.mean(axis=1, keepdims=True)) / means.std(axis=1, keepdims=True)
    np.testing.assert_allclose(thumbnails(x), expected, atol=1e-6)
    np.testing.assert_allclose(thumbnails(np.ascontiguousarray(x[:, :, ::-1]), mirrored=True), expected, atol=1e-6)
    assert thumbnails(x[:, :5, :29, :1]).shape == (5, 5 * 8)
    assert not thumbnails(np.full((2, 8, 8, 1), 77, np.uint8)).any()


def test_inspect_lists_near_duplicates_between_splits() -> None:
    train, test = _digits()
    x = np.concatenate([test.images, _noisy(train.images[:30], 3), train.images[40:42]])
    y = np.concatenate([test.labels, train.labels[:30], train.labels[40:42]])
    report = inspect(ArraySource({"train": (train.images, train.labels), "test": (x, y)}))
    (row,) = report["near_duplicates"]
    assert (row["first"], row["second"], row["looked_up"], row["total"]) == ("train", "test", 532, 532)
    assert 30 <= row["near"] < 36
    pairs = {second: first for first, second, _ in row["pairs"]}
    assert pairs["test/500"] == "train/0"
    assert "test/530" not in pairs  # exact: a duplicate, listed as such
    console = Console(file=io.StringIO(), width=200)
    console.print(format_inspection(report))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "near duplicates of train in test, the most alike first" in text
    assert "look like near duplicates of images of train" in text
    assert inspect("digits")["near_duplicates"] == []


@pytest.mark.skipif("IMBDIFF_DATA" not in os.environ, reason="needs real data")
def test_real_test_splits() -> None:
    import sys

    sys.path.insert(0, str(Path(os.environ["IMBDIFF_DATA"])))
    from load import load  # type: ignore[import-not-found]

    data = load("ham10000_sub32")
    names = tuple(str(n) for n in data["class_names"])
    train, test = (ImageSet(data[f"x_{s}"], data[f"y_{s}"], names) for s in ("train", "test"))
    found = across(train, test)
    assert len(found.pairs) / len(test) < 0.01  # one image per lesion
    assert _found(finder(train), _jpeg(train.images[:200], 75)).mean() > 0.98
