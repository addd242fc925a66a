"""Collectives on one process are the identity; errors and lists say what they should."""

from __future__ import annotations

import pytest
import torch

from imbdiff.runtime.dist import Dist, launched
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


def test_shares_cover_the_global_batch_once_and_in_order() -> None:
    rows = list(range(12))
    assert [r for k in range(3) for r in rows[Dist(k, 3).share(12)]] == rows
    assert not Dist(1, 2).main


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
