"""Curation: scores, policies and the choice on good, wrong, copied and broken candidates; distances to real images.

Oracles: scipy, scikit-learn, and literal loops over subsets in float64.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.recognition.curation import (
    POLICIES,
    REASONS,
    CandidateScores,
    curate,
    describe,
    farthest,
    parse_policy,
    score,
)
from imbdiff.recognition.real_space import (
    IN_QUANTILE,
    OUT_FACTOR,
    OUT_QUANTILE,
    PRIOR_IMAGES,
    RealSpace,
    Zones,
    quantile,
)
from imbdiff.runtime.errors import ConfigError, DataError

NAMES = ("left", "middle", "<b>right</b>")


class Thirds(nn.Module):
    """A classifier without training: an image's mean over each third of its columns is a feature and a logit.

    Features: means of the three column blocks of (B, 1, 4, 6)."""

    feature_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(4 * torch.eye(3))
            self.head.bias.zero_()

    def features(self, x: Tensor) -> Tensor:
        return torch.stack([x[..., 2 * k : 2 * k + 2].mean(dim=(1, 2, 3)) for k in range(3)], dim=1)


def made(counts: tuple[int, ...], seed: int, names: tuple[str, ...] = NAMES) -> ImageSet:
    """Images whose block number `label` is bright."""
    g = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), counts).astype(np.int64)
    x = g.normal(70, 30, (len(labels), 4, 6, 1))
    for i, k in enumerate(labels):
        x[i, :, 2 * k : 2 * k + 2] += 100
    return ImageSet(np.clip(x, 0, 255).astype(np.uint8), labels, names)


def joined(*sets: ImageSet) -> ImageSet:
    return ImageSet(
        np.concatenate([s.images for s in sets]), np.concatenate([s.labels for s in sets]), sets[0].class_names
    )


def relabelled(images: ImageSet, label: int) -> ImageSet:
    return ImageSet(images.images, np.full(len(images), label), images.class_names)


def extractor_of(train: ImageSet, role: str = "working") -> ClassifierFeatures:
    return ClassifierFeatures(
        Thirds(), "thirds", role, shape=train.shape, trained_on=frozenset(train.hashes)
    )  # fmt: skip


TRAIN = made((40, 12, 3), 0)
GOOD = made((10, 10, 10), 1)
WRONG = relabelled(made((5, 0, 0), 2), 2)  # left images that were to be right ones
COPIES = TRAIN.select([0, 40, 52])
SPECKLES = np.random.default_rng(5).integers(0, 2, (6, 4, 6, 1), dtype=np.uint8) * 255
NOISE = ImageSet(SPECKLES, np.repeat([0, 1, 2], 2), GOOD.class_names)
NEAR = ImageSet(np.clip(TRAIN.images[[1, 41]] * 0.9 + 6, 0, 255).astype(np.uint8), np.array([0, 1]), GOOD.class_names)
ALL = joined(GOOD, WRONG, COPIES, NOISE, NEAR)
PARTS = np.repeat(["good", "wrong", "copy", "noise", "near"], [30, 5, 3, 6, 2])


@pytest.fixture(scope="module")
def extractor() -> ClassifierFeatures:
    return extractor_of(TRAIN)


@pytest.fixture(scope="module")
def scores(extractor: ClassifierFeatures) -> CandidateScores:
    return score(ALL, TRAIN, extractor)


def test_scores_are_the_classifiers_and_distances_those_of_sklearn(
    scores: CandidateScores, extractor: ClassifierFeatures
) -> None:
    x = ALL.images.astype(np.float64)[..., 0] / 127.5 - 1
    logits = 4 * np.stack([x[:, :, 2 * k : 2 * k + 2].mean(axis=(1, 2)) for k in range(3)], axis=1)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores.probability, p[np.arange(len(p)), ALL.labels], rtol=1e-5)
    assert np.array_equal(scores.predicted, logits.argmax(axis=1))
    assert np.array_equal(scores.agrees, scores.predicted == ALL.labels)
    for k in range(3):
        own = ALL.labels == k
        real = scores.space.rows[TRAIN.labels == k]
        found = NearestNeighbors(n_neighbors=1).fit(real).kneighbors(scores.rows[own])[0][:, 0] / np.sqrt(3)
        np.testing.assert_allclose(scores.distance[own], found, atol=1e-6)
        np.testing.assert_allclose(scores.ratio[own], scores.distance[own] / scores.space.typical[k])


def test_zones_tell_good_images_from_images_of_another_class(scores: CandidateScores) -> None:
    assert np.mean(scores.zone[PARTS == "good"] == 2) < 0.2
    assert (scores.zone[PARTS == "wrong"] == 2).all()
    assert (scores.zone[PARTS == "copy"] == 0).all()
    assert np.mean(scores.zone[PARTS == "noise"] == 2) > 0.5


def test_copies_are_exact_where_pixels_are_equal_and_near_where_brightness_differs(scores: CandidateScores) -> None:
    assert np.array_equal(scores.exact_copy, PARTS == "copy")
    assert scores.near_copy[(PARTS == "copy") | (PARTS == "near")].all()
    assert np.mean(scores.near_copy[PARTS == "good"]) < 0.2
    assert scores.copy_ratio[PARTS == "near"].max() < 0.5 * scores.copy_ratio[PARTS == "good"].min()


def asked(policy: str, s: CandidateScores, least: float = 0.5) -> np.ndarray:
    """Who meets a policy, restated."""
    rules = {
        "agreement": s.predicted == ALL.labels,
        "confident": s.probability >= least,
        "in-distribution": s.zone == 0,
        "approximate": s.zone == 1,
        "not-out": s.zone < 2,
        "no-copies": ~s.near_copy,
        "diverse": np.ones(len(ALL), bool),
    }
    return np.logical_and.reduce([rules[name.partition("=")[0]] for name in policy.split("+")]) & ~s.exact_copy


@pytest.mark.parametrize(
    "policy", [*(n for n in POLICIES if n != "none"), "agreement+no-copies+diverse", "not-out+confident=0.8"]
)
def test_a_policy_keeps_those_who_meet_it(policy: str, scores: CandidateScores, extractor: ClassifierFeatures) -> None:
    found = curate(ALL, (99, 99, 99), TRAIN, policy, extractor)
    assert np.array_equal(found.kept, np.flatnonzero(asked(policy, scores, 0.8 if "0.8" in policy else 0.5)))
    counts = np.bincount(ALL.labels[found.kept], minlength=3)
    assert found.short == tuple((99 - counts).tolist())
    assert len(found.warnings) == 1
    assert all(word in found.warnings[0] for word in ("'middle'", "--curate.candidates", "another policy"))
    assert set(found.reason) <= set(REASONS)


def test_reasons_name_the_first_thing_that_is_wrong(extractor: ClassifierFeatures) -> None:
    found = curate(ALL, (99, 99, 99), TRAIN, "agreement+not-out+no-copies", extractor)
    reason = np.array(found.reason)
    assert set(reason[PARTS == "copy"]) == {"exact copy"}
    assert set(reason[PARTS == "near"]) == {"near copy"}
    assert set(reason[PARTS == "wrong"]) == {"other class"}
    only = np.array(curate(ALL, (99, 99, 99), TRAIN, "not-out", extractor).reason)
    assert set(only[PARTS == "wrong"]) == {"out"}
    inner = np.array(curate(ALL, (99, 99, 99), TRAIN, "in-distribution", extractor).reason)
    assert {"kept", "approximate", "out", "exact copy"} == set(inner)


def test_without_a_policy_the_first_ones_are_kept() -> None:
    found = curate(ALL, (4, 0, 2), TRAIN, "none", None)
    want = [*np.flatnonzero(ALL.labels == 0)[:4], *np.flatnonzero(ALL.labels == 2)[:2]]
    assert found.kept.tolist() == want
    assert found.scores is None
    assert found.short == (0, 0, 0)
    assert found.warnings == ()
    assert found.rows()[0] == {"kept": True, "reason": "kept"}
    everything = curate(ALL, tuple(np.bincount(ALL.labels)), TRAIN, "none", None)
    assert np.array_equal(everything.kept, np.arange(len(ALL)))


def test_diverse_is_greedy_k_centre_from_the_real_images(extractor: ClassifierFeatures) -> None:
    found = curate(ALL, (4, 4, 4), TRAIN, "agreement+diverse", extractor)
    s = found.scores
    assert s is not None
    for k in range(3):
        pool = np.flatnonzero(asked("agreement", s) & (ALL.labels == k))
        centres = s.space.rows[TRAIN.labels == k].astype(np.float64)
        chosen: list[int] = []
        for _ in range(4):
            gap = cdist(s.rows[pool].astype(np.float64), centres).min(axis=1)
            gap[[np.flatnonzero(pool == i)[0] for i in chosen]] = -1
            best = int(pool[np.argmax(gap)])
            chosen.append(best)
            centres = np.r_[centres, s.rows[best][None].astype(np.float64)]
        assert found.kept[ALL.labels[found.kept] == k].tolist() == sorted(chosen)
    plain = curate(ALL, (4, 4, 4), TRAIN, "agreement", extractor)
    assert np.nanmean(found.apart[found.kept]) > np.nanmean(plain.apart[plain.kept])


def test_farthest_points_cover_at_most_twice_as_far_as_the_best_choice() -> None:
    rows = np.random.default_rng(8).normal(size=(12, 2))
    none = np.zeros((0, 2))
    chosen = farthest(rows, none, 3, np.arange(12))[:3]
    best = min(cdist(rows, rows[list(c)]).min(axis=1).max() for c in combinations(range(12), 3))
    assert cdist(rows, rows[chosen]).min(axis=1).max() <= 2 * best
    assert sorted(farthest(rows, none, 3, np.arange(12)).tolist()) == list(range(12))
    # of equally far rows the one of the lowest rank is taken
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert farthest(square, np.zeros((1, 2)), 1, np.array([3, 2, 0, 1]))[0] == 2


def test_the_order_of_candidates_does_not_matter_to_diversity(extractor: ClassifierFeatures) -> None:
    order = np.random.default_rng(1).permutation(len(ALL))
    mixed = ALL.select(order)
    for policy in ("diverse", "agreement+diverse"):
        a = curate(ALL, (5, 5, 5), TRAIN, policy, extractor, seed=4)
        b = curate(mixed, (5, 5, 5), TRAIN, policy, extractor, seed=4)
        assert sorted(order[b.kept].tolist()) == a.kept.tolist()
    again = curate(ALL, (5, 5, 5), TRAIN, "diverse", extractor, seed=4)
    assert json.dumps(again.rows()) == json.dumps(curate(ALL, (5, 5, 5), TRAIN, "diverse", extractor, seed=4).rows())


def test_rows_are_json_and_say_how_far_apart_the_kept_ones_are(extractor: ClassifierFeatures) -> None:
    found = curate(ALL, (5, 5, 1), TRAIN, "agreement", extractor)
    rows = json.loads(json.dumps(found.rows(), allow_nan=False))
    s = found.scores
    assert s is not None
    for i, row in enumerate(rows):
        others = [j for j in found.kept if j != i and ALL.labels[j] == ALL.labels[i]]
        want = np.sqrt(((s.rows[others] - s.rows[i]) ** 2).mean(axis=1)).min() if others else None
        assert row["apart"] == (None if want is None else pytest.approx(want, rel=1e-5))
        assert row["zone"] in ("in-distribution", "approximate", "out")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("agreemnt", "unknown policy of curation 'agreemnt'\n  -> did you mean agreement"),
        ("xyz", "choose of none, agreement"),
        ("none+diverse", "none alone"),
        ("diverse+diverse", "each policy once"),
        ("in-distribution+approximate", "no image is both"),
        ("", "unknown policy"),
        ("confident=1.5", "must be in"),
        ("confident=much", "must be in"),
        ("agreement=0.5", "write confident=0.8"),
    ],
)
def test_policies_that_make_no_sense_are_refused(policy: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_policy(policy)


def test_policies_and_their_descriptions() -> None:
    assert parse_policy("diverse + agreement") == ("agreement", "diverse")
    assert parse_policy("confident=0.50") == parse_policy("confident") == ("confident",)
    assert parse_policy("diverse+confident=0.70") == ("confident=0.7", "diverse")
    assert "at least 0.7" in describe("confident=0.7")
    assert "at least 0.5, and that equal" in describe("confident")
    assert "farthest" in describe("agreement+diverse")
    assert "generated first" in describe("agreement")
    assert "nothing is asked" in describe("none")


def test_who_may_not_curate(extractor: ClassifierFeatures) -> None:
    with pytest.raises(ConfigError, match="judges never curate"):
        curate(GOOD, (1, 1, 1), TRAIN, "agreement", extractor_of(TRAIN, "judge"))
    other = extractor_of(joined(TRAIN, GOOD))
    with pytest.raises(ConfigError, match="was trained on 30 images that are not in the training split"):
        curate(GOOD, (1, 1, 1), TRAIN, "agreement", other)
    unknown = ClassifierFeatures(Thirds(), "x", "working", shape=TRAIN.shape)
    with pytest.raises(ConfigError, match="not known"):
        curate(GOOD, (1, 1, 1), TRAIN, "agreement", unknown)
    with pytest.raises(ConfigError, match="needs a working classifier"):
        curate(GOOD, (1, 1, 1), TRAIN, "agreement", None)


def test_images_that_do_not_belong_together(extractor: ClassifierFeatures) -> None:
    with pytest.raises(DataError, match="2 numbers of wanted images for 3 classes"):
        curate(GOOD, (1, 1), TRAIN, "agreement", extractor)
    renamed = replace(GOOD, class_names=("a", "b", "c"))
    with pytest.raises(DataError, match="other classes"):
        curate(renamed, (1, 1, 1), TRAIN, "agreement", extractor)
    with pytest.raises(DataError, match="are \\(4, 3, 1\\)"):
        curate(replace(GOOD, images=GOOD.images[:, :, :3]), (1, 1, 1), TRAIN, "agreement", extractor)


def test_classes_of_one_image_have_no_zones_but_other_policies() -> None:
    train = TRAIN.select([0, 40, 52])
    extractor = extractor_of(train)
    with pytest.raises(DataError, match="no class has two different training images"):
        curate(GOOD, (1, 1, 1), train, "agreement+not-out", extractor)
    found = curate(GOOD, (3, 3, 3), train, "agreement+diverse", extractor)
    assert len(found.kept) == 9
    assert found.rows()[0]["ratio"] is None
    assert found.rows()[0]["zone"] is None


# -- distances to the real images of a class


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
