from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.metrics.evaluate import _computed, evaluate
from imbdiff.metrics.extractors import Extractor, RandomConv
from imbdiff.metrics.kernel import kernel_distance
from imbdiff.metrics.numbers import Origin
from imbdiff.metrics.rows import Rows
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError, DataError

NAMES = ("a", "b", "c", "d")


class Mean(Extractor):
    """Two features, and class 0 or 1 by brightness."""

    name, fingerprint, role, dim, ranking_only = "mean", "f" * 64, "judge", 2, False

    def check(self, shape: tuple[int, ...]) -> None: ...

    def _batch(self, x: np.ndarray) -> np.ndarray:
        z = x.astype(np.float32).reshape(len(x), -1) / 255
        return np.stack([z.mean(1), z.std(1)], axis=1)

    def predict(self, features: np.ndarray) -> np.ndarray:
        return (features[:, 0] > 0.5).astype(np.int64)


def _set(counts: tuple[int, ...], seed: int, low: int = 0, high: int = 256) -> ImageSet:
    g = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    return ImageSet(g.integers(low, high, (len(labels), 8, 8, 1), dtype=np.uint8), labels, NAMES)


@pytest.fixture
def sets() -> tuple[ImageSet, ImageSet, ImageSet, Groups]:
    train = _set((40, 20, 5, 2), 0)
    groups = Groups.explicit(train.stats, {"many": ["a", "b"], "few": ["c", "d"]})
    return _set((0, 30, 30, 30), 1), _set((25, 25, 25, 25), 2), train, groups


def label(row: dict[str, Any]) -> str:
    return Origin.from_json(row).label


def _find(rows: list[dict[str, Any]], metric: str, scope: str, reference: str = "test") -> dict[str, Any]:
    (row,) = [r for r in rows if (label(r), r["scope"], r["reference"]) == (metric, scope, reference)]
    return row


def test_every_number_says_what_it_is(sets: Any) -> None:
    synthetic, reference, train, groups = sets
    found = evaluate(synthetic, reference, train, groups, [Mean(), RandomConv(1)], reference_name="test")
    json.dumps(found, allow_nan=False)
    keys = {"metric", "scope", "value", "low", "high", "n_synthetic", "n_reference", "reference", "extractor"}
    for row in found["numbers"] + found["baselines"]:
        assert keys | {"fingerprint", "direction", "refused", "ranking_only"} <= row.keys()
        assert (row["value"] is None) == (row["refused"] is not None)
        assert not row["is_fid"]
        if row["value"] is not None:
            assert row["low"] <= row["value"] <= row["high"]
    assert [e["name"] for e in found["protocol"]["extractors"] if e["ranking_only"]] == ["random-conv"]
    metrics = {label(row) for row in found["numbers"]}
    for number in ("FD", "FD∞", "KD", "precision(k=3)", "recall(k=3)", "density(k=5)", "coverage(k=5)", "F8", "F1/8"):
        assert f"{number}[mean]" in metrics
    assert {"diversity[mean]", "agreement[mean]"} <= metrics
    assert found == evaluate(synthetic, reference, train, groups, [Mean(), RandomConv(1)], reference_name="test")


def test_groups_compare_the_same_classes_and_leave_out_missing_ones(sets: Any) -> None:
    synthetic, reference, train, groups = sets
    found = evaluate(synthetic, reference, train, groups, [Mean(), RandomConv(1)], reference_name="test")["numbers"]
    many = _find(found, "KD[mean]", "many")
    assert (many["n_synthetic"], many["n_reference"], many["classes_left_out"]) == (30, 25, 1)
    f = Mean().features
    expected = kernel_distance(f(synthetic.images[synthetic.labels == 1]), f(reference.images[reference.labels == 1]))
    assert many["value"] == pytest.approx(expected, rel=1e-9)
    whole = _find(found, "FD[mean]", "all")
    assert (whole["n_synthetic"], whole["n_reference"], whole["classes_left_out"]) == (90, 75, 1)
    # too few images, and why: 7 training images of the tail; 32 features for 30 and 25 images
    for metric, scope, reference_name, reason in (
        ("KD[mean]", "few", "train", "at least 20"),
        ("FD[random-conv]", "many", "test", "at least 640"),
    ):
        row = _find(found, metric, scope, reference_name)
        assert row["value"] is None
        assert reason in row["refused"]


def test_every_number_for_every_class(sets: Any) -> None:
    synthetic, reference, train, groups = sets
    found = evaluate(synthetic, reference, train, groups, [Mean()], reference_name="test")["classes"]
    assert found["names"] == list(NAMES)
    assert found["group"] == ["many", "many", "few", "few"]
    assert (found["n_synthetic"], found["n_train"]) == ([0, 30, 30, 30], [40, 20, 5, 2])
    by = {(c["of"], label(c), c["reference"]): c for c in found["metrics"]}
    kd = by["synthetic", "KD[mean]", "test"]
    assert kd["value"][0] is None
    assert kd["reasons"][kd["refused"][0]] == "no class has images in both sets"
    f = Mean().features
    for k in (1, 2, 3):
        expected = kernel_distance(
            f(synthetic.images[synthetic.labels == k]), f(reference.images[reference.labels == k])
        )
        assert kd["value"][k] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert (kd["n_synthetic"][k], kd["n_reference"][k], kd["refused"][k]) == (30, 25, None)
        assert kd["low"][k] < kd["value"][k] < kd["high"][k]
    assert by["synthetic", "agreement[mean]", "label asked for"]["n_synthetic"] == [0, 30, 30, 30]
    assert ("train", "KD[mean]", "test") in by
    assert ("synthetic", "recall(k=3)[mean]", "test") in by


def test_order_and_threads_change_nothing(sets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic, reference, train, groups = sets
    g = np.random.default_rng(0)
    one = evaluate(synthetic, reference, train, groups, [Mean()], reference_name="test")
    monkeypatch.setattr("imbdiff.metrics.evaluate.MOST_AT_ONCE", 1)
    mixed = [s.select(g.permutation(len(s))) for s in (synthetic, reference, train)]
    two = evaluate(*mixed, groups, [Mean()], reference_name="test")
    assert len(one["numbers"]) == len(two["numbers"])
    for a, b in zip(one["numbers"] + one["baselines"], two["numbers"] + two["baselines"], strict=True):
        assert a["metric"] == b["metric"]
        assert a["refused"] == b["refused"]
        for key in ("value", "low", "high"):
            assert a[key] == (None if b[key] is None else pytest.approx(b[key], rel=1e-9, abs=1e-12))
    assert one["classes"] == two["classes"]
    assert one["memorisation"]["summary"] == two["memorisation"]["summary"]


def test_a_copied_training_set_is_caught_by_memorisation_and_by_nothing_else() -> None:
    train, reference, fresh = (_set((40, 40, 40, 40), seed) for seed in range(3))
    groups = Groups.by_quantile(train.stats)
    copied, new = (
        evaluate(s, reference, train, groups, [RandomConv(1)], reference_name="test") for s in (train, fresh)
    )
    for metric in ("KD", "precision(k=3)", "recall(k=3)", "coverage(k=5)", "diversity"):
        a, b = (_find(found["numbers"], f"{metric}[random-conv]", "all") for found in (copied, new))
        assert a["low"] <= b["high"]
        assert b["low"] <= a["high"]
    assert [found["memorisation"]["summary"][0]["exact_copies"] for found in (copied, new)] == [160, 0]
    assert copied["memorisation"]["warnings"]
    assert not new["memorisation"]["warnings"]


def test_a_reference_that_is_called_train_is_no_training_set(sets: Any) -> None:
    synthetic, reference, train, groups = sets
    one, other = (
        evaluate(synthetic, reference, train, groups, [Mean()], reference_name=name) for name in ("test", "train")
    )
    assert one["memorisation"] == other["memorisation"]
    for rows, twins in ((one["numbers"], other["numbers"]), (one["baselines"], other["baselines"])):
        assert [r["value"] for r in rows] == [r["value"] for r in twins]
    assert {r["reference"] for r in other["numbers"]} == {"reference (train)", "train", "label asked for"}


def test_training_images_in_the_reference_are_refused_or_left_out_and_counted(sets: Any) -> None:
    _, reference, train, groups = sets

    def copies(n: int) -> dict[str, Any]:
        images = np.concatenate([reference.images, train.images[:n]])
        both = ImageSet(images, np.concatenate([reference.labels, train.labels[:n]]), NAMES)
        return evaluate(train, both, train, groups, [Mean()], reference_name="test")["memorisation"]

    with pytest.raises(DataError, match="training set itself"):
        evaluate(train, train.select(np.arange(len(train))[::-1]), train, groups, [Mean()], reference_name="test")
    found = copies(len(train))
    assert "67 of 167 reference images are training images" in found["warnings"][0]
    assert found["n_held_out"] == 100
    # a leaked image in one class does not hide the copies of the others
    assert all(any(f"class '{name}'" in w for w in copies(1)["warnings"]) for name in "bcd")


def test_without_training_images_or_groups(sets: Any) -> None:
    synthetic, reference, _, _ = sets
    found = evaluate(synthetic, reference, None, None, [Mean()], reference_name="test")
    assert found["memorisation"] is None
    assert found["classes"]["group"] is None
    assert {r["scope"] for r in found["numbers"]} == {"all"}
    assert {r["reference"] for r in found["numbers"]} == {"test", "label asked for"}


def test_agreement_counts_the_label_asked_for() -> None:
    train, reference = _set((5, 5, 5, 5), 0), _set((9, 9, 9, 9), 3)
    groups = Groups.explicit(train.stats, {"many": ["a", "c"], "few": ["b", "d"]})
    dark, bright = _set((8, 2, 0, 0), 1, 0, 100), _set((2, 8, 0, 0), 2, 200, 256)
    synthetic = ImageSet(
        np.concatenate([dark.images, bright.images]), np.concatenate([dark.labels, bright.labels]), NAMES
    )
    found = evaluate(synthetic, reference, train, groups, [Mean(), RandomConv(1)], reference_name="test")
    assert _find(found["numbers"], "agreement[mean]", "all", "label asked for")["value"] == pytest.approx(0.8)
    many = _find(found["numbers"], "agreement[mean]", "many", "label asked for")
    assert (many["n_synthetic"], many["direction"], many["classes_left_out"]) == (10, "higher", 1)
    (column,) = [c for c in found["classes"]["metrics"] if label(c) == "agreement[mean]" and c["of"] == "synthetic"]
    assert column["value"] == [0.8, 0.8, None, None]
    real = _find(found["baselines"], "agreement[mean]", "all", "test images")
    assert real["n_synthetic"] == 18  # of the classes that both have
    assert not [r for r in found["numbers"] if label(r) == "agreement[random-conv]"]
    # weighted to the class mix of the reference, however many images of each class there are
    uneven = synthetic.select(np.r_[np.flatnonzero(synthetic.labels == 0), np.flatnonzero(synthetic.labels == 1)[:1]])
    right = Mean().predict(Mean().features(uneven)) == uneven.labels
    mixed = evaluate(uneven, reference, train, groups, [Mean()], reference_name="test")
    row = _find(mixed["numbers"], "agreement[mean]", "all", "label asked for")
    assert row["value"] == pytest.approx((right[:10].mean() + right[10:].mean()) / 2)
    assert row["n_effective"] == pytest.approx(1 / (0.25 / 10 + 0.25))


def test_classes_of_a_judge_go_by_name() -> None:
    class Named(Mean):
        classes = ("bright", "b", "c", "d", "a")

        def predict(self, features: np.ndarray) -> np.ndarray:
            return np.where(features[:, 0] > 0.5, 1, 4)

    train = _set((5, 5, 5, 5), 0)
    dark = _set((8, 2, 0, 0), 1, 0, 100)
    found = evaluate(dark, _set((9, 9, 9, 9), 3), train, None, [Named()], reference_name="test")
    assert _find(found["numbers"], "agreement[mean]", "all", "label asked for")["value"] == pytest.approx(0.5)
    Named.classes = ("a", "b", "c")
    found = evaluate(dark, _set((9, 9, 9, 9), 3), train, None, [Named()], reference_name="test")
    assert not [r for r in found["numbers"] if "agreement" in r["metric"]]


def test_who_may_not_judge(sets: Any) -> None:
    synthetic, reference, train, groups = sets
    working = Mean()
    working.role = "working"
    with pytest.raises(ConfigError, match="working"):
        evaluate(synthetic, reference, train, groups, [working], reference_name="test")
    knows = Mean()
    knows.trained_on = frozenset(reference.hashes[:3])
    with pytest.raises(DataError, match="3 images"):
        evaluate(synthetic, reference, train, groups, [knows], reference_name="test")
    knows.trained_on = frozenset(train.hashes)
    found = evaluate(synthetic, reference, train, groups, [knows], reference_name="test")
    flags = {row["reference"]: row["judge_saw_reference"] for row in found["numbers"]}
    assert flags == {"test": False, "train": True, "label asked for": False}


def test_bad_input_names_the_set(sets: Any) -> None:
    synthetic, reference, train, groups = sets
    for extractors, named in (([], "none"), ([Mean(), Mean()], "mean, mean")):
        with pytest.raises(ConfigError, match=named):
            evaluate(*sets, extractors, reference_name="test")
    renamed = replace(synthetic, class_names=("w", "x", "y", "z"))
    small = ImageSet(synthetic.images[:, :4, :6], synthetic.labels, NAMES)
    colour = ImageSet(synthetic.images.repeat(3, -1), synthetic.labels, NAMES)
    for wrong, words in (
        (synthetic.select([]), "synthetic images to evaluate: 0"),
        (renamed, "other classes"),
        (small, r"4 x 6 grey, the reference is 8 x 8(.|\n)*--size 4"),
        (colour, r"8 x 8 RGB, the reference is 8 x 8 grey(.|\n)*both as grey"),
    ):
        with pytest.raises(DataError, match=words):
            evaluate(wrong, reference, train, groups, [Mean()], reference_name="test")


def test_worse_images_get_a_larger_distance(sets: Any) -> None:
    _, reference, train, groups = sets
    good, bad = _set((0, 60, 60, 60), 8), _set((0, 60, 60, 60), 9, 0, 150)
    found = [evaluate(s, reference, train, groups, [Mean()], reference_name="test")["numbers"] for s in (good, bad)]
    for metric in ("FD[mean]", "FD∞[mean]", "KD[mean]"):
        better, worse = (_find(f, metric, "few") for f in found)
        assert worse["low"] > better["high"]


def test_processes_share_the_work_and_no_measure_falls_to_one_of_them() -> None:
    """Five measures of three scopes and five processes: every process gets three measures."""
    rows, shares = Rows.of(np.zeros((3, 2))), dict[int, list[Any]]()

    class Five(Dist):
        def gather_objects(self, value: Any) -> list[Any]:
            shares[self.rank] = value
            return [shares.get(rank, [None] * 3) for rank in range(5)]

    def job(i: int) -> Any:
        return SimpleNamespace(fake=rows, real=rows, measure=SimpleNamespace(numbers=lambda *_, **__: i))

    for rank in range(5):
        found = _computed([job(i) for i in range(15)], 0, Five(rank, 5), lambda *_: None)
    assert found == list(range(15))
    assert all(len({i % 5 for i in share}) == 3 for share in shares.values())
