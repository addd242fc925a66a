from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.evaluate import evaluate
from imbdiff.recognition import judge as module
from imbdiff.recognition.judge import judges, train_judge

from .conftest import make_set


def test_judge_learns_and_is_read_from_the_folder_with_the_same_features(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train_judge(prepared.pool, prepared.test, steps=40, batch_size=32, folder=tmp_path)
    assert first.accuracy > 0.85
    assert first.extractor.role == "judge"
    assert not first.extractor.ranking_only
    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", lambda *a, **k: pytest.fail("trained again"))
        again = train_judge(prepared.pool, prepared.test, steps=40, batch_size=32, folder=tmp_path)
        other_test = train_judge(prepared.pool, make_set((9, 9, 9), 77), steps=40, batch_size=32, folder=tmp_path)
    assert again.to_json() == first.to_json()
    assert other_test.extractor.fingerprint == first.extractor.fingerprint
    np.testing.assert_array_equal(again.extractor.features(prepared.test), first.extractor.features(prepared.test))
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-50])
    repaired = train_judge(prepared.pool, prepared.test, steps=40, batch_size=32, folder=tmp_path)
    assert repaired.to_json() == first.to_json()


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
