from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from imbdiff.data import nearest
from imbdiff.data.nearest import Nearest


def _rows(n: int, seed: int, kind: str, far: float = 0.0) -> np.ndarray:
    g = np.random.default_rng(seed)
    if kind == "uint8":
        return g.integers(0, 256, (n, 5, 7, 3), dtype=np.uint8)
    return (far + g.normal(size=(n, 24))).astype(kind)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_equals_float64_in_any_block(kind: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    q, b = _rows(40, 0, kind), _rows(300, 1, kind)
    oracle = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(b.reshape(300, -1).astype(float))
    d, i = oracle.kneighbors(q.reshape(40, -1).astype(float))
    for block in (10, 10**9):
        monkeypatch.setattr(nearest, "BLOCK", block)
        index, squared = Nearest(b).search(q, k)
        np.testing.assert_array_equal(index, i)
        np.testing.assert_allclose(squared, d * d, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6))
def test_order_of_the_rows_changes_nothing_where_keys_decide(seed: int, k: int, values: int) -> None:
    g = np.random.default_rng(seed)
    b = g.integers(0, values, (30, 4)).astype(np.uint8)  # many ties
    q = g.integers(0, values, (9, 4)).astype(np.uint8)
    keys, order = g.permutation(30), g.permutation(30)
    index, squared = Nearest(b, keys).search(q, k)
    index2, squared2 = Nearest(b[order], keys[order]).search(q, k)
    np.testing.assert_array_equal(squared, squared2)
    np.testing.assert_array_equal(index, order[index2])
    truth = ((q[:, None].astype(int) - b.astype(int)) ** 2).sum(axis=2)
    best = np.stack([np.lexsort((keys, row))[:k] for row in truth])
    np.testing.assert_array_equal(index, best)


def test_a_copy_has_distance_zero_and_may_be_excluded() -> None:
    b = _rows(30, 1, "uint8")
    index, squared = Nearest(b).search(b, 2)
    assert index[:, 0].tolist() == list(range(30))
    assert (squared[:, 0] == 0).all()
    index2, squared2 = Nearest(b).search(b, 1, exclude=np.arange(30))
    np.testing.assert_array_equal(index2[:, 0], index[:, 1])
    np.testing.assert_array_equal(squared2[:, 0], squared[:, 1])
    with pytest.raises(ValueError, match="30 neighbours"):
        Nearest(b).search(b, 30, exclude=np.arange(30))
