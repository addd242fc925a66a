from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.metrics.nearest import capped_rows, nearest, nearest_report, nearest_within_class
from imbdiff.runtime.errors import DataError


def _set(n: int, seed: int, classes: int = 3, shape: tuple[int, int, int] = (5, 7, 3)) -> ImageSet:
    g = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % classes
    return ImageSet(g.integers(0, 256, (n, *shape), dtype=np.uint8), labels, tuple("abc"[:classes]))


def test_equals_sklearn_in_any_chunk() -> None:
    q, b = _set(50, 0).images, _set(80, 1).images
    oracle = NearestNeighbors(n_neighbors=1).fit(b.reshape(80, -1).astype(float))
    d, i = oracle.kneighbors(q.reshape(50, -1).astype(float))
    for chunk in (7, 512):
        index, distance = nearest(q, b, chunk=chunk)
        np.testing.assert_array_equal(index, i[:, 0])
        np.testing.assert_allclose(distance, d[:, 0] / np.sqrt(5 * 7 * 3), rtol=1e-12)


def test_a_copy_has_distance_zero_exactly_and_the_lowest_index() -> None:
    b = _set(20, 1).images
    b[11] = b[4]
    index, distance = nearest(b[[11, 3]], b)
    assert index.tolist() == [4, 3]
    assert distance.tolist() == [0.0, 0.0]


def test_within_class_and_any_class_differ() -> None:
    train = _set(30, 2)
    query = ImageSet(train.images[[4]], np.array([0]), train.class_names)  # image 4 is of class 1
    index, distance = nearest_within_class(query, train)
    assert train.labels[index[0]] == 0
    assert distance[0] > 0
    groups = Groups.explicit(train.stats, {"many": ["a"], "few": ["b", "c"]})
    report = nearest_report(query, train, _set(30, 3), groups)
    assert report["any_train_index"] == [4]
    assert report["any_distance"] == [0.0]
    assert report["summary"][0]["other_class_nearest"] == 1.0
    assert [row["scope"] for row in report["summary"]] == ["all", "many", "few"]


def test_closeness_is_high_for_copies_and_about_half_for_fresh_images() -> None:
    train, held = _set(60, 4), _set(300, 5)
    groups = Groups.default(train.stats)
    copies = nearest_report(train, train, held, groups)["summary"][0]
    assert copies["closeness"] == 1.0
    assert copies["exact_copies"] == 60
    fresh = nearest_report(_set(300, 6), train, held, groups)["summary"][0]
    assert fresh["closeness"] == pytest.approx(0.5, abs=0.1)
    assert fresh["exact_copies"] == 0


def test_other_shapes_are_an_error_and_the_cap_takes_from_every_class() -> None:
    train = _set(9, 0)
    with pytest.raises(DataError, match="synthetic"):
        nearest_report(_set(9, 0, shape=(5, 5, 3)), train, train, Groups.default(train.stats))
    labels = np.array([0] * 10 + [1] * 2 + [2])
    assert capped_rows(labels, 5).tolist() == [0, 1, 10, 11, 12]
