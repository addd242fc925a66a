from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import betabinom
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from imbdiff.data.imageset import ImageSet
from imbdiff.data.nearest import hash_keys
from imbdiff.data.stats import Groups
from imbdiff.metrics.copies import Row, closeness, suspects, warnings
from imbdiff.metrics.intervals import closeness_interval, combined
from imbdiff.metrics.memorisation import PAIRS, PAIRS_PER_CLASS, capped_rows, memorisation_report, nearest_within_class


def _set(n: int, seed: int, classes: int = 3, shape: tuple[int, int, int] = (5, 7, 3)) -> ImageSet:
    g = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % classes
    names = tuple(f"class {k}" for k in range(classes))
    return ImageSet(g.integers(0, 256, (n, *shape), dtype=np.uint8), labels, names)


def _digits() -> tuple[ImageSet, ImageSet, ImageSet]:
    """A long-tailed training set, and two sets of real images that it does not hold."""
    x, y = load_digits(return_X_y=True)
    x = np.round(x.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    names = tuple(str(k) for k in range(10))
    counts = (90, 70, 50, 40, 30, 20, 12, 8, 5, 3)
    kept = np.concatenate([np.flatnonzero(y[:997] == k)[:n] for k, n in enumerate(counts)])
    return tuple(  # type: ignore[return-value]
        ImageSet(x[rows], y[rows].astype(np.int64), names)
        for rows in (kept, np.arange(997, 1397), np.arange(1397, 1797))
    )


def test_within_class_equals_sklearn() -> None:
    q, b = _set(50, 0), _set(80, 1)
    keys = hash_keys(b.hashes)
    index, distance = nearest_within_class(q.images, q.labels, b.images, b.labels, keys)
    for k in range(3):
        mine, rows = np.flatnonzero(q.labels == k), np.flatnonzero(b.labels == k)
        oracle = NearestNeighbors(n_neighbors=1).fit(b.images[rows].reshape(len(rows), -1).astype(float))
        d, i = oracle.kneighbors(q.images[mine].reshape(len(mine), -1).astype(float))
        np.testing.assert_array_equal(index[mine], rows[i[:, 0]])
        np.testing.assert_allclose(distance[mine], d[:, 0] / np.sqrt(5 * 7 * 3), rtol=1e-12)
    index, distance = nearest_within_class(q.images, q.labels, b.images, b.labels % 2 * 2, keys)
    assert (index[q.labels == 1] == -1).all()
    assert np.isnan(distance[q.labels == 1]).all()


def test_closeness_equals_scikit_learn() -> None:
    g = np.random.default_rng(0)
    x, y = g.integers(0, 9, 40), g.integers(2, 11, 25)  # with ties
    truth = roc_auc_score(np.repeat([0, 1], [40, 25]), np.concatenate([x, y]))
    assert closeness(x, y) == pytest.approx(truth, abs=1e-12)
    assert closeness(x, x) == 0.5
    assert closeness(np.zeros(5), np.ones(5)) == 1.0


@pytest.mark.parametrize(("m", "n", "rate"), [(60, 8, 1.0), (20, 20, 3.0), (100, 30, 20.0)])
def test_closeness_intervals_cover(m: int, n: int, rate: float) -> None:
    """Exponential distances: P(x < y) = rate / (1 + rate)."""
    g = np.random.default_rng(0)
    truth, inside = rate / (1 + rate), 0
    for _ in range(600):
        low, high = closeness_interval(closeness(g.exponential(1 / rate, m), g.exponential(1, n)), m, n)
        inside += low <= truth <= high
    assert 0.93 <= inside / 600 <= 0.985


def test_interval_at_the_ends_has_a_width_and_classes_combine() -> None:
    low, high = closeness_interval(1.0, 5, 5)
    assert low < 0.75
    assert high == 1.0
    assert closeness_interval(0.0, 5, 5) == (0.0, pytest.approx(1 - low))
    one = (0.7, *closeness_interval(0.7, 30, 20))
    assert combined([one], [3.0]) == pytest.approx(one)
    value, low, high = combined([one] * 4, [1.0] * 4)
    assert value == pytest.approx(0.7)
    assert 0.7 - low == pytest.approx((0.7 - one[1]) / 2)
    assert combined([(0.2, 0.1, 0.4), (0.8, 0.6, 0.9)], [3, 1])[0] == pytest.approx(0.35)


def test_training_set_copied_is_caught_in_every_class_and_real_images_in_none() -> None:
    """What distances, precision, recall, density and coverage call perfect."""
    train, fresh, held = _digits()
    groups = Groups.default(train.stats)
    copied = memorisation_report(train, train, held, groups)
    assert copied["summary"][0]["near_copy_share"] == copied["summary"][0]["closeness"] == 1.0
    assert copied["summary"][0]["exact_copies"] == len(train)
    assert len(copied["warnings"]) == 10
    assert all(f"class '{k}'" in " ".join(copied["warnings"]) for k in range(10))
    real = memorisation_report(fresh, train, held, groups)
    assert real["warnings"] == []
    assert real["summary"][0]["near_copy_share"] < 0.02
    assert real["summary"][0]["exact_copies"] == 0
    assert real["summary"][0]["closeness_low"] < 0.5 < real["summary"][0]["closeness_high"]


def test_a_class_that_is_copied_with_noise_is_named_and_no_other() -> None:
    train, fresh, held = _digits()
    groups = Groups.default(train.stats)
    own = train.images[train.labels == 9]
    g = np.random.default_rng(0)
    noisy = np.clip(own[g.integers(len(own), size=30)] + g.normal(0, 8, (30, 8, 8, 1)), 0, 255).astype(np.uint8)
    keep = fresh.labels != 9
    fake = ImageSet(
        np.concatenate([fresh.images[keep], noisy, fresh.images[fresh.labels == 9][:20]]),
        np.concatenate([fresh.labels[keep], np.full(50, 9)]),
        fresh.class_names,
    )
    report = memorisation_report(fake, train, held, groups)
    (sentence,) = report["warnings"]
    assert sentence.startswith("class '9' (3 training images): 60 % of its 50 synthetic images are near copies")
    row = next(r for r in report["classes"] if r["class"] == "9")
    assert (row["near_copies"], row["exact_copies"], row["n_synthetic"], row["n_train"]) == (30, 0, 50, 3)
    assert row["near_copy_low"] < 0.6 < row["near_copy_high"]
    assert row["median_synthetic"] < row["median_held_out"]
    made = [r["n_synthetic"] for r in report["classes"]]
    mean = np.average([r["closeness"] for r in report["classes"]], weights=made)
    assert report["summary"][0]["closeness"] == pytest.approx(mean, abs=1e-5)
    assert len(set(made)) > 1
    worst = report["pairs"][:PAIRS_PER_CLASS]
    assert {(p["label"], p["near_copy"], p["exact"]) for p in worst} == {(9, True, False)}
    assert all(train.labels[p["train"]] == 9 for p in worst)
    unheard = memorisation_report(fake, train, None, groups)
    assert len(unheard["warnings"]) == 1
    assert "none held out" in unheard["warnings"][0]
    assert unheard["summary"][0]["closeness"] is None


def test_copies_of_another_class_and_mirrored_ones_count() -> None:
    train, _, held = _digits()
    groups = Groups.default(train.stats)
    turned = ImageSet(train.images[:8, :, ::-1].copy(), np.full(8, 5), train.class_names)
    report = memorisation_report(turned, train, held, groups)
    assert report["summary"][0]["near_copies"] == 8
    assert report["summary"][0]["exact_copies"] == 0
    assert all(p["mirrored"] and p["distance"] == 0 for p in report["pairs"])
    assert len(report["pairs"]) == PAIRS_PER_CLASS
    other = ImageSet(train.images[:1], np.array([5]), train.class_names)
    report = memorisation_report(other, train, held, groups)
    assert report["any_distance"] == [0.0]
    assert report["any_train_index"] == [0]
    assert report["summary"][0]["other_class_nearest"] == 1.0


def test_order_of_the_images_changes_nothing() -> None:
    train, fresh, held = _digits()
    groups = Groups.default(train.stats)
    g = np.random.default_rng(0)
    a = memorisation_report(fresh, train, held, groups)
    orders = [g.permutation(len(s)) for s in (fresh, train, held)]
    b = memorisation_report(*[s.select(o) for s, o in zip((fresh, train, held), orders, strict=True)], groups)  # type: ignore[misc]
    for key in ("summary", "classes", "warnings", "limit"):
        assert a[key] == b[key]
    np.testing.assert_array_equal(np.array(a["any_distance"])[orders[0]], b["any_distance"])
    np.testing.assert_array_equal(np.array(a["any_train_index"])[orders[0]], orders[1][b["any_train_index"]])
    pairs = [
        {**p, "synthetic": int(orders[0][p["synthetic"]]), "train": int(orders[1][p["train"]])} for p in b["pairs"]
    ]
    assert pairs == a["pairs"]


def test_features_are_a_second_space() -> None:
    train, fresh, held = _digits()
    groups = Groups.default(train.stats)
    g = np.random.default_rng(0)
    table = {"extractor": "judge", "train": g.normal(size=(len(train), 16)).astype(np.float32)}
    table["synthetic"] = g.normal(size=(len(fresh), 16)).astype(np.float32)
    table["held_out"] = g.normal(size=(len(held), 16)).astype(np.float32)
    mine, of = np.flatnonzero(fresh.labels == 8), np.flatnonzero(train.labels == 8)
    table["synthetic"][mine] = table["train"][of[np.arange(len(mine)) % len(of)]] + 0.02 * g.normal(
        size=(len(mine), 16)
    )
    found = memorisation_report(fresh, train, held, groups, features=table)
    assert found["warnings"] == []
    space = found["features"]
    assert space["extractor"] == "judge"
    (sentence,) = space["warnings"]
    assert sentence.startswith("class '8' (5 training images): 100 % of its")
    assert space["summary"][0]["near_copies"] == len(mine)
    row = next(r for r in space["classes"] if r["label"] == 8)
    assert row["closeness"] == 1.0


def _row(n: int, near: int, exact: int, held: int, held_near: int, leaked: int = 0, name: str = "c") -> Row:
    counts = {"n_synthetic": n, "near_copies": near, "exact_copies": exact, "n_held_out": held}
    return {"class": name, "n_train": 5, "held_out_near_copies": held_near, "reference_in_train": leaked, **counts}


def test_a_thousand_classes_of_real_images_raise_no_false_alarm() -> None:
    """Shares that differ between classes (0 to 6 %), few held-out images, no copying."""
    g = np.random.default_rng(0)
    alarms = 0
    for _ in range(20):
        share = 0.06 * g.beta(1, 3, 1000)
        n, held = g.integers(1, 60, 1000), g.integers(0, 20, 1000)
        near, held_near = g.binomial(n, share), g.binomial(held, share)
        alarms += bool(suspects([_row(*row) for row in np.stack([n, near, 0 * n, held, held_near], axis=1).tolist()]))
    assert alarms <= 3
    thousand = [_row(20, 0, 0, 10, 0)] * 999
    assert suspects([*thousand, _row(20, 10, 0, 10, 0)]) == [999]
    assert suspects([*thousand, _row(20, 10, 0, 40, 20)]) == []  # held-out images are as near
    assert suspects([*thousand, _row(20, 1, 1, 10, 0)]) == [999]  # exact
    assert suspects([*thousand, _row(20, 1, 1, 10, 0, leaked=1)]) == []


def test_classes_are_warned_of_by_the_beta_binomial_after_holm_and_warnings_are_capped() -> None:
    # one held-out image in 100 is near a training image: prior Beta(0.2, 19.8)
    rows = [_row(30, near, 0, 10, 0) for near in range(10)]
    p = [float(betabinom.sf(near - 1, 30, 0.2, 29.8)) for near in range(10)]
    passed = [sum(q <= x for q in p) for x in p]  # rank, from 1
    holm = [i for i, x in enumerate(p) if x <= 0.05 / (10 - passed[i] + 1)]
    assert suspects(rows) == holm
    assert 0 < len(holm) < 8
    many = warnings([_row(50, 20 + k % 7, 0, 10, 0, name=f"c{k}") for k in range(60)])
    assert len(many) == 21
    assert many[-1].startswith("near copies of training images in 40 more classes: ")
    assert "c6'" in many[0]  # the highest share first
    spread = warnings([_row(10, 1, 0, 5, 0)] * 1000)
    assert len(spread) == 1
    assert spread[0].startswith("over all classes 10 % of 10,000 synthetic images")
    assert warnings([_row(10, 0, 0, 5, 0)] * 50) == []
    assert warnings([_row(10, 10, 0, 5, 5)] * 50) == []


def test_many_classes_give_a_bounded_json() -> None:
    train = _set(1500, 1, 500, (4, 4, 1))
    fake = replace(train.select(np.arange(1500)), ids=())
    report = memorisation_report(fake, train, _set(500, 2, 500, (4, 4, 1)), Groups.default(train.stats))
    assert len(report["pairs"]) == PAIRS
    assert len({p["label"] for p in report["pairs"]}) == PAIRS  # the worst of every class first
    assert len(json.dumps(report)) < 500_000
    assert len(report["warnings"]) == 21


def test_the_cap_takes_from_every_class() -> None:
    labels = np.array([0] * 10 + [1] * 2 + [2])
    assert capped_rows(labels, 5, np.arange(13)).tolist() == [0, 1, 10, 11, 12]
    assert capped_rows(labels, 5, -np.arange(13)).tolist() == [8, 9, 10, 11, 12]


@pytest.mark.parametrize(("made", "held", "given"), [(9, 30, False), (30, 9, False), (10, 10, True), (2, 2, False)])
def test_closeness_needs_ten_images_on_either_side(made: int, held: int, given: bool) -> None:
    random = np.random.default_rng(0)

    def images(n: int) -> ImageSet:
        return ImageSet(random.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8), np.zeros(n, np.int64), ("a",))

    train = images(40)
    report = memorisation_report(images(made), train, images(held), Groups.default(train.stats))
    assert (report["classes"][0]["closeness"] is not None) == given
    assert report["classes"][0]["near_copy_share"] is not None
