import numpy as np
import pytest
import torch

from imbdiff.data.gather import Gather
from imbdiff.data.imageset import Rows, StoredImages
from tests.data.making import noise

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
