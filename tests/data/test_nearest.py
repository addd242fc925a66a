from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from imbdiff.data.nearest import Nearest


def _rows(n: int, seed: int, kind: str, far: float = 0.0) -> np.ndarray:
    g = np.random.default_rng(seed)
    if kind == "uint8":
        return g.integers(0, 256, (n, 5, 7, 3), dtype=np.uint8)
    return (far + g.normal(size=(n, 24))).astype(kind)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
@pytest.mark.parametrize("k", [1, 3, 50])
def test_equals_sklearn_in_any_block(kind: str, k: int) -> None:
    q, b = _rows(40, 0, kind), _rows(300, 1, kind)
    oracle = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(b.reshape(300, -1).astype(float))
    d, i = oracle.kneighbors(q.reshape(40, -1).astype(float))
    results = [Nearest(b).search(q, k, chunk=c, block=s) for c, s in ((7, 13), (1024, 4096), (40, 299))]
    for index, squared in results:
        np.testing.assert_array_equal(index, i)
        np.testing.assert_allclose(squared, d * d, rtol=1e-9)
        np.testing.assert_array_equal(squared, results[0][1])


def test_single_precision_alone_would_be_wrong() -> None:
    """Rows that differ by less than single precision can tell, far from the origin and from each other."""
    g = np.random.default_rng(0)
    b = np.concatenate([1e4 * g.normal(size=(200, 50)), np.zeros((1, 50))])
    close = 1e4 + 1e-4 * g.normal(size=(100, 50))
    b = np.concatenate([b, close])
    q = 1e4 + 1e-4 * g.normal(size=(20, 50))
    index, squared = Nearest(b).search(q, 3)
    truth = ((q[:, None] - b) ** 2).sum(axis=2)
    np.testing.assert_array_equal(index, np.argsort(truth, axis=1)[:, :3])
    np.testing.assert_allclose(squared, np.sort(truth, axis=1)[:, :3], rtol=1e-12)
    plain = ((q.astype(np.float32)[:, None] - b.astype(np.float32)) ** 2).sum(axis=2)
    assert (plain.argmin(axis=1) != index[:, 0]).any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 6))
def test_order_of_the_rows_changes_nothing_where_keys_decide(seed: int, k: int, values: int) -> None:
    g = np.random.default_rng(seed)
    b = g.integers(0, values, (30, 4)).astype(np.uint8)  # many ties
    q = g.integers(0, values, (9, 4)).astype(np.uint8)
    keys, order = g.permutation(30), g.permutation(30)
    index, squared = Nearest(b, keys).search(q, k, block=7)
    index2, squared2 = Nearest(b[order], keys[order]).search(q, k, block=11, chunk=2)
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
