"""Distances to the real images of a class: literal loops over subsets in float64, and real images nobody saw."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.curation.space import (
    IN_QUANTILE,
    OUT_FACTOR,
    OUT_QUANTILE,
    PRIOR_IMAGES,
    RealSpace,
    Zones,
    quantile,
)


def train_set(counts: tuple[int, ...], seed: int = 0) -> ImageSet:
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 4, 4, 1), dtype=np.uint8)
    return ImageSet(images, labels, tuple(f"c{k}" for k in range(len(counts))))


def features_of(train: ImageSet, seed: int = 1, d: int = 5) -> np.ndarray:
    g = np.random.default_rng(seed)
    x = g.normal(size=(len(train), d)) * (1 + train.labels[:, None]) + 3 * train.labels[:, None]
    return (x * np.arange(1, d + 1)).astype(np.float32)


def literal(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(standardised features, typical distance per class, own ratios), as the docstring says it, by loops."""
    x = features.astype(np.float64)
    classes = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
    mean = np.mean([x[own].mean(axis=0) for own in classes], axis=0)
    variance = np.mean([((x[own] - mean) ** 2).mean(axis=0) for own in classes], axis=0)
    z = (x - mean) / np.sqrt(variance)

    def apart(i: int, j: int) -> float:
        return float(np.sqrt(((z[i] - z[j]) ** 2).mean()))

    curves = []
    for own in classes:
        curve = []
        for m in range(1, len(own)):
            values = []
            for i in own:
                others = [j for j in own if j != i]
                values += [min(apart(i, j) for j in some) for some in combinations(others, m)]
            curve.append(np.mean(values))
        curves.append(curve)
    joined = [np.mean([c[0] for c in curves if c])]
    for m in range(1, max(len(c) for c in curves)):
        longer = [c for c in curves if len(c) > m]
        joined.append(joined[-1] * sum(c[m] for c in longer) / sum(c[m - 1] for c in longer))
    typical, ratios = [], np.full(len(x), np.nan)
    for own in classes:
        n = len(own)
        usual = joined[min(n, len(joined)) - 1]
        scale = 1.0
        if n > 1:
            left_out = {i: min(apart(i, j) for j in own if j != i) for i in own}
            scale = (n * np.mean(list(left_out.values())) / joined[n - 2] + PRIOR_IMAGES) / (n + PRIOR_IMAGES)
            for i in own:
                ratios[i] = left_out[i] / (scale * joined[n - 2])
        typical.append(scale * usual)
    return z, np.array(typical), ratios


def test_typical_distances_are_those_of_the_equation() -> None:
    train = train_set((7, 5, 2, 1))
    features = features_of(train)
    space = RealSpace(features, train)
    z, typical, ratios = literal(features, train.labels)
    np.testing.assert_allclose(space.rows, z, atol=1e-5)
    np.testing.assert_allclose(space.typical, typical, rtol=1e-5)
    np.testing.assert_allclose(space.own_ratios, ratios, rtol=1e-5)
    fresh = features_of(train_set((1, 1, 1, 1)), seed=9)
    labels = np.array([3, 0, 2, 2])
    want = [
        min(np.sqrt(((a - z[j]) ** 2).mean()) for j in np.flatnonzero(train.labels == k))
        for a, k in zip(space.standardise(fresh).astype(np.float64), labels, strict=True)
    ]
    np.testing.assert_allclose(space.distances(space.standardise(fresh), labels), want, rtol=1e-5)


def test_zones_are_quantiles_of_real_images_with_classes_of_equal_weight() -> None:
    train = train_set((9, 4, 2))
    space = RealSpace(features_of(train), train)
    assert space.zones is not None
    # repeated so that every class has 36 rows, plain quantiles weigh the classes alike
    r = space.own_ratios
    even = np.sort(np.concatenate([np.repeat(r[train.labels == k], 36 // n) for k, n in enumerate((9, 4, 2))]))
    assert space.zones.inner == pytest.approx(np.quantile(even, IN_QUANTILE, method="inverted_cdf"))
    assert space.zones.outer == pytest.approx(OUT_FACTOR * np.quantile(even, OUT_QUANTILE, method="inverted_cdf"))
    assert Zones(1.0, 2.0).of(np.array([0.5, 1.0, 1.5, 2.0, 2.5])).tolist() == [0, 0, 1, 1, 2]
    assert quantile(np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 2.0]), 0.75) == 2.0


def test_a_class_of_two_images_expects_larger_distances_than_one_of_sixty() -> None:
    """Fresh images of the same law have ratios about 1 however many real ones there are."""
    g = np.random.default_rng(3)
    counts = (120, 60, 2, 2, 2, 2)
    train = train_set(counts)
    centres = 8 * np.eye(6)

    def draw(labels: np.ndarray) -> np.ndarray:
        return (centres[labels] + g.normal(size=(len(labels), 6))).astype(np.float32)

    space = RealSpace(draw(train.labels), train)
    labels = np.repeat(np.arange(6), 300)
    rows = space.standardise(draw(labels))
    ratio = space.distances(rows, labels) / space.typical[labels]
    medians = [float(np.median(ratio[labels == k])) for k in range(6)]
    assert 0.85 < medians[0] < 1.2
    assert 0.85 < medians[1] < 1.2
    assert 0.7 < np.mean(medians[2:]) < 1.35
    assert space.zones is not None
    assert np.mean(space.zones.of(ratio) == 2) < 0.06
    shifted = space.standardise(draw((labels + 1) % 6))
    assert np.mean(space.zones.of(space.distances(shifted, labels) / space.typical[labels]) == 2) > 0.9


def test_equal_images_and_dead_dimensions_count_once_and_not_at_all() -> None:
    train = train_set((6, 3))
    features = features_of(train)
    twice = np.r_[np.arange(9), 0, 0]
    doubled = ImageSet(train.images[twice], train.labels[twice], train.class_names)
    space = RealSpace(np.c_[features, np.full(9, 7.0)][twice].astype(np.float32), doubled)
    assert np.isfinite(space.own_ratios[:9]).all()
    assert np.isnan(space.own_ratios[9:]).all()
    assert (space.own_ratios[:9] > 0).all()
    assert (space.rows[:, -1] == 0).all()
    assert len(space.of_class(0)) == 6


def test_without_two_different_images_of_a_class_nothing_is_usual() -> None:
    single = train_set((1, 1, 1))
    space = RealSpace(features_of(single), single)
    assert space.zones is None
    assert np.isnan(space.typical).all()
    constant = RealSpace(np.ones((6, 4), np.float32), train_set((4, 2)))
    assert constant.zones is None
    assert np.isfinite(constant.rows).all()
