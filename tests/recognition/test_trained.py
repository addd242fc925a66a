"""The working classifier and the judge: who is trained on what, kept and read again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.evaluate import evaluate
from imbdiff.recognition import trained
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.trained import judges, train_judge, working_extractor

from .conftest import make_set

TRAIN = make_set((90, 12, 4), 0)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Images, recipe and seed of every training."""
    seen: list[Any] = []
    real = trained.fit

    def counted(images: Any, plan: Any, recipe: str, **options: Any) -> Any:
        seen.append((images, recipe, options["seed"]))
        return real(images, plan, recipe, **options)

    monkeypatch.setattr(trained, "fit", counted)
    return seen


def test_the_working_classifier_saw_the_training_split_and_counts_classes_alike(fits: list[Any]) -> None:
    extractor = working_extractor(TRAIN, FitPlan(steps=60, batch_size=32, lr=0.05), seed=3)
    assert [(images is TRAIN, *rest) for images, *rest in fits] == [(True, "balanced-softmax", 3)]
    assert (extractor.role, extractor.name) == ("working", "working-resnet-small")
    assert extractor.trained_on == frozenset(TRAIN.hashes)
    test = make_set((30, 30, 30), 7, noise=60)
    predicted = extractor.predict(extractor.features(test))
    assert np.mean(predicted[test.labels == 2] == 2) > 0.6  # 4 of 106 training images
    # decided without the prior: about as often as there are such images, not as in training
    assert np.bincount(predicted, minlength=3).min() > 15


def test_it_is_kept_read_again_and_trained_anew_for_other_images_options_or_damage(
    tmp_path: Path, fits: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    plan = FitPlan(steps=3, batch_size=8)
    first = working_extractor(TRAIN, plan, folder=tmp_path)
    again = working_extractor(TRAIN, plan, folder=tmp_path)
    assert len(fits) == 1
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.features(TRAIN), first.features(TRAIN))
    working_extractor(TRAIN, plan, seed=1, folder=tmp_path)
    working_extractor(TRAIN, FitPlan(steps=4, batch_size=8), folder=tmp_path)
    working_extractor(make_set((9, 8, 7), 1), plan, folder=tmp_path)
    assert len(fits) == 4
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with caplog.at_level(logging.WARNING):
        repaired = working_extractor(TRAIN, plan, folder=tmp_path)
    assert len(fits) == 5
    assert "damaged" in caplog.text
    assert repaired.fingerprint == first.fingerprint


def test_weights_of_other_images_do_not_curate() -> None:
    """A network that comes with a library's weights may have seen the test images: another one takes its place."""
    extractor = working_extractor(TRAIN, FitPlan("timm:resnet18?pretrained", steps=2, batch_size=8))
    assert extractor.name == "working-resnet-small"


def test_the_judge_learns_and_is_read_from_the_folder(prepared: Any, tmp_path: Path, fits: list[Any]) -> None:
    first = train_judge(prepared.pool, prepared.test, steps=40, batch_size=32, folder=tmp_path)
    assert first.accuracy > 0.85
    assert first.extractor.role == "judge"
    assert not first.extractor.ranking_only
    again = train_judge(prepared.pool, prepared.test, steps=40, batch_size=32, folder=tmp_path)
    assert again.to_json() == first.to_json()
    other = train_judge(prepared.pool, make_set((9, 9, 9), 77), steps=40, batch_size=32, folder=tmp_path)
    assert other.extractor.fingerprint == first.extractor.fingerprint
    assert len(fits) == 1


def test_copies_of_test_images_are_not_trained_on(prepared: Any) -> None:
    pool = ImageSet(
        np.concatenate([prepared.pool.images, prepared.test.images[:4]]),
        np.concatenate([prepared.pool.labels, prepared.test.labels[:4]]),
        prepared.pool.class_names,
    )
    found = train_judge(pool, prepared.test, steps=2)
    assert (found.left_out, found.trained_on) == (4, len(pool) - 4)
    assert found.extractor.trained_on.isdisjoint(prepared.test.hashes)


def test_with_a_pool_a_judge_and_without_one_ranking_only(prepared: Any) -> None:
    extractors, judge = judges(prepared, steps=30)
    assert [e.name for e in extractors] == ["judge-cnn", "random-conv"]
    assert judge is not None
    synthetic = make_set((0, 30, 36), 9)
    found = evaluate(synthetic, prepared.test, prepared.train, prepared.groups, extractors, reference_name="test")
    (column,) = [
        c
        for c in found["classes"]["metrics"]
        if (c["metric"], c["extractor"]) == ("agreement", "judge-cnn") and c["of"] == "synthetic"
    ]
    assert [v is not None for v in column["value"]] == [False, True, True]
    prepared.pool = None
    extractors, judge = judges(prepared)
    assert judge is None
    assert [(e.name, e.ranking_only) for e in extractors] == [("random-conv", True)]
