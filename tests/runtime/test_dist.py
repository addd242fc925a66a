"""Collectives on one process are the identity; errors and lists say what they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imbdiff.runtime.dist import Dist, carrier, launched
from imbdiff.runtime.errors import ConfigError, ImbdiffError, listing


def test_one_process() -> None:
    dist = Dist.current()
    assert (dist.rank, dist.world, dist.main) == (0, 1, True)
    x = torch.randn(3, 2, requires_grad=True)
    assert dist.gather(x) is x
    assert torch.equal(dist.total(x), x)
    assert not dist.total(x).requires_grad
    assert dist.share(6) == slice(0, 6)
    value = {"a": 1}
    assert dist.broadcast(value) is value
    dist.barrier()
    rows = np.ones((2, 3))
    assert dist.gather_array(rows) is rows


def test_shares_cover_the_global_batch_once_and_in_order() -> None:
    rows = list(range(12))
    assert [r for k in range(3) for r in rows[Dist(k, 3).share(12)]] == rows
    assert not Dist(1, 2).main


@pytest.mark.parametrize(
    ("backend", "device"), [("nccl", "cuda:3"), ("gloo", "cpu"), ("mpi", "cpu"), ("cuda:nccl,cpu:gloo", "cpu")]
)
def test_only_pure_nccl_needs_the_current_gpu(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert carrier() == torch.device(device)


def test_arrays_travel_by_the_carrier_and_keep_their_type(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def all_gather(out: list[torch.Tensor], mine: torch.Tensor) -> None:
        seen.append(mine)
        for k, place in enumerate(out):
            place.copy_(mine if k == 0 else torch.zeros_like(mine))

    monkeypatch.setattr("imbdiff.runtime.dist.carrier", lambda: torch.device("cpu"))
    monkeypatch.setattr(torch.distributed, "all_gather", all_gather)
    x = np.arange(12, dtype=np.float64).reshape(4, 3)[::2]
    x.flags.writeable = False
    found = Dist(0, 2).gather_array(x)
    np.testing.assert_array_equal(found, np.concatenate([x, np.zeros((2, 3))]))
    assert found.dtype == np.float64
    assert seen[0].dtype == torch.uint8  # which every backend moves
    assert Dist(0, 2).gather_array(np.zeros((0, 5), np.float32)).shape == (0, 5)


def test_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launched()


def test_errors_show_the_remedy() -> None:
    error = ConfigError("x=3 is too many", "use 2")
    assert isinstance(error, ImbdiffError)
    assert str(error) == "x=3 is too many\n  -> use 2"
    assert str(ConfigError("x")) == "x"


def test_listing_is_capped() -> None:
    assert listing(["a", "b"]) == "  a\n  b"
    text = listing(range(100), 3)
    assert text.splitlines() == ["  0", "  1", "  2", "  ... and 97 more"]
