"""The working classifier: the training split alone, rare classes not outvoted, kept and read again."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from imbdiff.recognition import working
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.working import working_extractor
from tests.recognition.conftest import make_set

TRAIN = make_set((90, 12, 4), 0)
PLAN = FitPlan(steps=60, batch_size=32, lr=0.05)


def test_it_is_a_working_extractor_that_saw_the_training_split_and_counts_classes_alike() -> None:
    extractor = working_extractor(TRAIN, PLAN)
    assert extractor.role == "working"
    assert extractor.name == "working-resnet-small"
    assert extractor.trained_on == frozenset(TRAIN.hashes)
    test = make_set((30, 30, 30), 7, noise=60)
    predicted = extractor.predict(extractor.features(test))
    assert np.mean(predicted[test.labels == 2] == 2) > 0.6  # 4 of 106 training images
    # decided without the prior: about as often as there are such images, not as in training
    assert np.bincount(predicted, minlength=3).min() > 15


def test_balanced_softmax_is_what_it_is_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    real = working.fit

    def spy(images: Any, plan: Any, recipe: str, **options: Any) -> Any:
        seen.update(options, images=images, recipe=recipe)
        return real(images, plan, recipe, **options)

    monkeypatch.setattr(working, "fit", spy)
    working_extractor(TRAIN, FitPlan(steps=2, batch_size=8), seed=3)
    assert seen["images"] is TRAIN
    assert (seen["recipe"], seen["seed"]) == ("balanced-softmax", 3)


def test_it_is_kept_read_again_and_trained_anew_for_other_images_options_or_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = FitPlan(steps=3, batch_size=8)
    calls = SimpleNamespace(n=0)
    real = working.fit

    def counted(*args: Any, **options: Any) -> Any:
        calls.n += 1
        return real(*args, **options)

    monkeypatch.setattr(working, "fit", counted)
    first = working_extractor(TRAIN, plan, folder=tmp_path)
    again = working_extractor(TRAIN, plan, folder=tmp_path)
    assert calls.n == 1
    assert again.fingerprint == first.fingerprint
    assert np.array_equal(again.features(TRAIN), first.features(TRAIN))
    working_extractor(TRAIN, plan, seed=1, folder=tmp_path)
    working_extractor(TRAIN, FitPlan(steps=4, batch_size=8), folder=tmp_path)
    working_extractor(make_set((9, 8, 7), 1), plan, folder=tmp_path)
    assert calls.n == 4
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with caplog.at_level(logging.WARNING):
        repaired = working_extractor(TRAIN, plan, folder=tmp_path)
    assert calls.n == 5
    assert "damaged" in caplog.text
    assert repaired.fingerprint == first.fingerprint


def test_weights_of_other_images_do_not_curate() -> None:
    """A network that comes with a library's weights may have seen the test images: another one takes its place."""
    plan = FitPlan("timm:resnet18?pretrained", steps=2, batch_size=8)
    extractor = working_extractor(TRAIN, plan)
    assert extractor.name == "working-resnet-small"
