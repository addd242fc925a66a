"""Scores, policies and the choice: known good, wrong, copied and broken candidates; scipy and sklearn as oracles."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.recognition.curation import POLICIES, REASONS, Scores, curate, in_words, parse_policy, score
from imbdiff.recognition.curation.choice import farthest
from imbdiff.runtime.errors import ConfigError, DataError
from tests.recognition.curation.worlds import Thirds, draw, extractor_of, joined, relabelled

TRAIN = draw((40, 12, 3), 0)
GOOD = draw((10, 10, 10), 1)
WRONG = relabelled(draw((5, 0, 0), 2), 2)  # left images that were to be right ones
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
def scores(extractor: ClassifierFeatures) -> Scores:
    return score(ALL, TRAIN, extractor)


def test_scores_are_the_classifiers_and_distances_those_of_sklearn(
    scores: Scores, extractor: ClassifierFeatures
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


def test_zones_tell_good_images_from_images_of_another_class(scores: Scores) -> None:
    assert np.mean(scores.zone[PARTS == "good"] == 2) < 0.2
    assert (scores.zone[PARTS == "wrong"] == 2).all()
    assert (scores.zone[PARTS == "copy"] == 0).all()
    assert np.mean(scores.zone[PARTS == "noise"] == 2) > 0.5


def test_copies_are_exact_where_pixels_are_equal_and_near_where_brightness_differs(scores: Scores) -> None:
    assert np.array_equal(scores.exact_copy, PARTS == "copy")
    assert scores.near_copy[(PARTS == "copy") | (PARTS == "near")].all()
    assert np.mean(scores.near_copy[PARTS == "good"]) < 0.2
    assert scores.copy_ratio[PARTS == "near"].max() < 0.5 * scores.copy_ratio[PARTS == "good"].min()


def asked(policy: str, s: Scores, confidence: float) -> np.ndarray:
    """Who meets a policy, restated."""
    rules = {
        "agreement": s.predicted == ALL.labels,
        "confident": s.probability >= confidence,
        "in-distribution": s.zone == 0,
        "approximate": s.zone == 1,
        "not-out": s.zone < 2,
        "no-copies": ~s.near_copy,
        "diverse": np.ones(len(ALL), bool),
    }
    return np.logical_and.reduce([rules[name] for name in policy.split("+")]) & ~s.exact_copy


@pytest.mark.parametrize(
    "policy", [*(n for n in POLICIES if n != "none"), "agreement+no-copies+diverse", "not-out+confident"]
)
def test_a_policy_keeps_those_who_meet_it(policy: str, scores: Scores, extractor: ClassifierFeatures) -> None:
    found = curate(ALL, (99, 99, 99), TRAIN, policy, extractor, confidence=0.8)
    assert np.array_equal(found.kept, np.flatnonzero(asked(policy, scores, 0.8)))
    counts = np.bincount(ALL.labels[found.kept], minlength=3)
    assert found.short == tuple((99 - counts).tolist())
    assert len(found.warnings) == 1
    assert all(word in found.warnings[0] for word in ("'middle'", "--curate.draw", "another policy"))
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


def test_without_a_policy_the_first_ones_are_kept_and_nobody_looks() -> None:
    found = curate(ALL, (4, 0, 2), TRAIN, "none", None)
    want = [*np.flatnonzero(ALL.labels == 0)[:4], *np.flatnonzero(ALL.labels == 2)[:2]]
    assert found.kept.tolist() == want
    assert found.scores is None
    assert found.short == (0, 0, 0)
    assert found.warnings == ()
    assert found.rows()[0] == {"kept": True, "reason": "kept"}
    everything = curate(ALL, tuple(np.bincount(ALL.labels)), TRAIN, "none", None)
    assert np.array_equal(everything.kept, np.arange(len(ALL)))


def test_filters_come_first_and_drawing_order_decides_among_the_rest(extractor: ClassifierFeatures) -> None:
    found = curate(ALL, (3, 3, 3), TRAIN, "agreement", extractor)
    good = asked("agreement", found.scores, 0.5)  # type: ignore[arg-type]
    want = np.concatenate([np.flatnonzero(good & (ALL.labels == k))[:3] for k in range(3)])
    assert np.array_equal(found.kept, np.sort(want))
    assert found.reason.count("surplus") == good.sum() - 9


def test_diverse_is_greedy_k_centre_from_the_real_images(extractor: ClassifierFeatures) -> None:
    found = curate(ALL, (4, 4, 4), TRAIN, "agreement+diverse", extractor)
    s = found.scores
    assert s is not None
    for k in range(3):
        pool = np.flatnonzero(asked("agreement", s, 0.5) & (ALL.labels == k))
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
    from itertools import combinations

    rows = np.random.default_rng(8).normal(size=(12, 2))
    none = np.zeros((0, 2))
    chosen = farthest(rows, none, 3, np.arange(12))[:3]
    best = min(cdist(rows, rows[list(c)]).min(axis=1).max() for c in combinations(range(12), 3))
    assert cdist(rows, rows[chosen]).min(axis=1).max() <= 2 * best
    assert sorted(farthest(rows, none, 3, np.arange(12)).tolist()) == list(range(12))
    # of equally far rows the one of the lowest rank is taken
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    assert farthest(square, np.zeros((1, 2)), 1, np.array([3, 2, 0, 1]))[0] == 2


def test_the_order_of_candidates_matters_to_drawing_order_alone(extractor: ClassifierFeatures) -> None:
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
    ],
)
def test_policies_that_make_no_sense_are_refused(policy: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_policy(policy)


def test_policies_in_words() -> None:
    assert parse_policy("diverse + agreement") == ("agreement", "diverse")
    assert "at least 0.7" in in_words("confident", 0.7)
    assert "lie farthest" in in_words("agreement+diverse", 0.5)
    assert "drawn first" in in_words("agreement", 0.5)
    assert "nothing is asked" in in_words("none", 0.5)


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


def test_no_candidates_are_no_error(extractor: ClassifierFeatures) -> None:
    nothing = GOOD.select([])
    found = curate(nothing, (2, 0, 0), TRAIN, "agreement+diverse", extractor)
    assert found.kept.tolist() == []
    assert found.short == (2, 0, 0)
    assert found.rows() == []
