from fractions import Fraction

import numpy as np
import pytest

from imbdiff.data.source import pixel_hash, smaller
from tests.data.making import noise


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 16, 3), (14, 20, 3), (5, 3, 1), (28, 28, 1), (1, 100, 3)])
def test_small_versions_are_means_of_equal_rectangles(shape):
    x = noise(*shape)
    h, w, c = shape
    # every pixel becomes 8 x 8 equal ones, and blocks of h x w of these are averaged: exact in whole numbers
    fine = x.astype(np.int64).repeat(8, axis=0).repeat(8, axis=1).reshape(8, h, 8, w, c).sum(axis=(1, 3))
    expected = np.vectorize(lambda n: round(Fraction(int(n), h * w)))(fine)
    assert np.abs(smaller(x).astype(int) - expected).max() <= 0
    assert smaller(x).dtype == np.uint8


def test_the_mirror_image_gives_the_mirrored_means():
    for shape in ((14, 20, 3), (28, 27, 1), (33, 65, 3)):
        x = noise(*shape, seed=3)
        np.testing.assert_array_equal(smaller(np.ascontiguousarray(x[:, ::-1])), smaller(x)[:, ::-1])
        np.testing.assert_array_equal(smaller(np.ascontiguousarray(x[::-1])), smaller(x)[::-1])
        np.testing.assert_array_equal(smaller(np.ascontiguousarray(np.rot90(x))), np.rot90(smaller(x)))


def test_hashes_tell_pixels_and_sizes():
    x = noise(6, 4, 1)
    assert pixel_hash(x) == pixel_hash(x[:, ::-1][:, ::-1])
    assert len({pixel_hash(x), pixel_hash(x[::-1]), pixel_hash(x.reshape(4, 6, 1)), pixel_hash(x + 1)}) == 4
