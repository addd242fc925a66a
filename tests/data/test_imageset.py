from __future__ import annotations

import numpy as np
import pytest
import torch

from imbdiff.data.gather import Gather
from imbdiff.data.imageset import ImageSet, Rows, StoredImages, join
from tests.data.making import noise


@pytest.fixture
def stored(tmp_path):
    """12 images in a file, and the same as an array."""
    x = noise(12, 5, 4, 3)
    path = tmp_path / "images.u8"
    path.write_bytes(x.tobytes())
    keys = np.frombuffer(
        bytes.fromhex("".join(ImageSet(x, np.zeros(12, np.int64), ("a", "b")).hashes)), np.uint8
    ).reshape(12, 16)
    return Rows([StoredImages(path, x.shape, keys)], np.arange(12)), x


def test_it_reads_like_the_array(stored):
    rows, x = stored
    assert (rows.shape, rows.dtype, rows.ndim, len(rows), rows.nbytes) == (x.shape, x.dtype, 4, 12, x.nbytes)
    mask = np.arange(12) % 3 == 0
    keys = (
        3, np.int64(-1), slice(2, 9, 2), slice(None), slice(0, 0), [4, 4, 0], np.array([11, 2]), mask,
        np.array([], int),
    )  # fmt: skip
    for key in keys:
        assert np.array_equal(rows[key], x[key]), key
    assert np.array_equal(np.asarray(rows), x)
    assert np.array_equal(np.asarray(rows, dtype=np.float64), x.astype(float))
    assert np.array_equal(np.stack(list(rows)), x)
    with pytest.raises(IndexError):
        rows[12]


def test_what_is_read_is_a_copy(stored):
    rows, x = stored
    rows[0:2][:] = 0
    assert np.array_equal(np.asarray(rows), x)


def test_selecting_and_joining_read_nothing(stored, monkeypatch):
    rows, x = stored
    more = noise(3, 5, 4, 3, seed=9)
    with monkeypatch.context() as patch:
        patch.setattr(np, "memmap", None)
        chosen = join([rows.take(np.array([5, 1, 5])), more, rows.take(np.array([0]))])
        again = chosen.take(np.array([3, 0, 6]))
    assert isinstance(chosen, Rows)
    whole = np.concatenate([x[[5, 1, 5]], more, x[[0]]])
    assert np.array_equal(np.asarray(chosen), whole)
    assert np.array_equal(again[:], whole[[3, 0, 6]])
    assert chosen.hashes() is None
    assert isinstance(join([more, more]), np.ndarray)


def test_an_image_set_of_them_is_that_of_the_array(stored):
    rows, x = stored
    y = np.arange(12) % 2
    one, other = (ImageSet(images, y, ("a", "b")) for images in (rows, x))
    assert one.hashes == other.hashes
    assert one.fingerprint == other.fingerprint
    half = one.select([1, 4, 6])
    assert isinstance(half.images, Rows)
    assert (half.hashes, half.fingerprint) == (other.select([1, 4, 6]).hashes, other.select([1, 4, 6]).fingerprint)
    mixed = ImageSet(join([rows, x]), np.concatenate([y, y]), ("a", "b"))
    assert mixed.hashes == other.hashes + other.hashes


def test_a_fingerprint_knows_pixels_labels_names_and_order_but_not_ids():
    x, y = noise(4, 3, 3, 1), np.array([0, 1, 0, 1])
    base = ImageSet(x, y, ("a", "b")).fingerprint
    assert ImageSet(x, y, ("a", "b"), ("w", "x", "y", "z")).fingerprint == base
    other = x.copy()
    other[3, 0, 0, 0] ^= 1
    found = {
        base, ImageSet(other, y, ("a", "b")).fingerprint, ImageSet(x, y[::-1].copy(), ("a", "b")).fingerprint,
        ImageSet(x, y, ("a", "c")).fingerprint, ImageSet(x[::-1].copy(), y, ("a", "b")).fingerprint,
    }  # fmt: skip
    assert len(found) == 5


CPU = torch.device("cpu")


@pytest.fixture
def images(tmp_path):
    x = noise(20, 4, 6, 3)
    (tmp_path / "images.u8").write_bytes(x.tobytes())
    return x, Rows([StoredImages(tmp_path / "images.u8", x.shape, np.zeros((20, 16), np.uint8))], np.arange(20))


def test_the_same_rows_from_memory_and_from_disk(images):
    x, rows = images
    index = np.array([3, 19, 3, 0])
    want = torch.from_numpy(x[index]).permute(0, 3, 1, 2)
    for source in (x, rows):
        gather = Gather(source, CPU)
        assert torch.equal(gather.rows(index), want)
        gather.ahead(index)
        assert torch.equal(gather.rows(index), want)
    assert Gather(x, CPU).on_device
    assert not Gather(rows, CPU).on_device


def test_what_was_announced_is_read_once_and_what_was_not_is_read_too(images, monkeypatch):
    x, rows = images
    reads = []
    real = Rows.__getitem__
    monkeypatch.setattr(Rows, "__getitem__", lambda self, key: (reads.append(key.tolist()), real(self, key))[1])
    gather = Gather(rows, CPU)
    gather.ahead(np.array([1, 2]))
    gather.ahead(np.array([1, 2]))
    assert torch.equal(gather.rows(np.array([1, 2])), torch.from_numpy(x[[1, 2]]).permute(0, 3, 1, 2))
    gather.rows(np.array([5]))
    assert reads == [[1, 2], [5]]
    for i in range(20):  # announced and never asked for: forgotten
        gather.ahead(np.array([i]))
    assert len(gather._coming) <= 8
    assert gather.waited > 0
