from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import prepare
from imbdiff.recognition import jobs
from imbdiff.recognition.arms import ARMS, PRIMARY, classify
from imbdiff.recognition.scores import scores, spread
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.report import build_report
from imbdiff.runtime.errors import ConfigError, DataError

from .conftest import make_prepared, make_set

SHORT: dict[str, Any] = {"steps": 12, "batch_size": 16, "seeds": (0, 1)}


def test_the_table() -> None:
    assert [a.name for a in ARMS] == [
        "CE",
        "CE + class-balanced resampling",
        "balanced softmax",
        "synthetic + CE",
        "synthetic + balanced softmax",
    ]
    assert ARMS[-1].name == PRIMARY
    assert len({a.file for a in ARMS}) == 5


def test_shape_of_the_result_and_no_dependence_on_workers(prepared: Any) -> None:
    synthetic = make_set((0, 30, 36), 9)
    before = torch.random.get_rng_state()
    found = classify(prepared, synthetic, **SHORT, workers=1)
    assert torch.equal(before, torch.random.get_rng_state())
    json.dumps(found, allow_nan=False)
    assert [a["name"] for a in found["arms"]] == [a.name for a in ARMS]
    for arm in found["arms"]:
        assert [run["seed"] for run in arm["runs"]] == [0, 1]
        accuracies = [run["accuracy"] for run in arm["runs"]]
        assert arm["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
        assert arm["sd"]["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
        assert set(arm["mean"]["groups"]) == {"many", "few"}
    assert [a["prior"] for a in found["arms"]] == [None, None, "train", None, "train"]
    assert found["control"]["arm"] in [a.name for a in ARMS[:3]]
    assert found["protocol"]["steps"] == 12
    assert found["verdict"]["against"] == [found["control"]["arm"]]
    assert list(found["verdict"]["per_group"]) == ["all", "many", "few"]
    assert classify(prepared, synthetic, **SHORT, workers=3) == found


def test_effective_prior_of_classes_filled_flat_repeats_the_arm_of_cross_entropy(prepared: Any) -> None:
    short = {**SHORT, "steps": 3, "seeds": (0,)}
    synthetic = make_set((0, 30, 36), 9)  # 40 of each class
    default, found = classify(prepared, synthetic, **short), classify(prepared, synthetic, **short, prior="effective")
    assert found["arms"][4]["prior"] == "effective"
    assert default["arms"][:4] == found["arms"][:4]
    assert found["arms"][4]["mean"]["accuracy"] == pytest.approx(found["arms"][3]["mean"]["accuracy"], abs=0.03)


def test_without_synthetic_images_three_arms_and_no_claim(prepared: Any) -> None:
    found = classify(prepared, None, **SHORT)
    assert len(found["arms"]) == 3
    assert found["verdict"]["per_group"] == {}
    assert "nothing to judge" in found["verdict"]["sentence"]


def test_finished_trainings_are_kept_and_others_inputs_are_not_taken(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic = make_set((0, 30, 36), 9)
    calls: list[str] = []
    real_fit = jobs.fit

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["name"])
        return real_fit(*args, **kwargs)

    monkeypatch.setattr(jobs, "fit", counted)
    first = classify(prepared, synthetic, **SHORT, folder=tmp_path)
    assert len(calls) == 10
    assert len(list(tmp_path.iterdir())) == 10
    told: list[tuple[int, int, str]] = []
    again = classify(prepared, synthetic, **SHORT, folder=tmp_path, progress=lambda *a: told.append(a))
    assert again == first
    assert len(calls) == 10
    assert told[-1][:2] == (10, 10)
    # one lost, one damaged: these two alone are trained again, with the same result
    (tmp_path / f"{ARMS[0].file}-seed0.json").unlink()
    (tmp_path / f"{ARMS[3].file}-seed1.json").write_text('{"input": ')
    assert classify(prepared, synthetic, **SHORT, folder=tmp_path) == first
    assert sorted(calls[10:]) == ["CE, seed 0", "synthetic + CE, seed 1"]
    # other synthetic images: the arms without them stay
    classify(prepared, make_set((0, 30, 36), 10), **SHORT, folder=tmp_path)
    assert len(calls) == 12 + 4
    assert all(name.startswith("synthetic") for name in calls[12:])
    # another setting: all
    classify(prepared, None, **{**SHORT, "steps": 13}, folder=tmp_path)
    assert len(calls) == 16 + 6


def test_an_error_in_one_training_ends_the_others(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("broken")

    monkeypatch.setattr(jobs, "fit", broken)
    with pytest.raises(ValueError, match="broken"):
        classify(prepared, None, **SHORT)


def test_control_is_every_arm_where_validation_lacks_a_class() -> None:
    for val in (None, make_set((8, 8, 0), 1)):
        found = classify(make_prepared(val), make_set((0, 5, 5), 9), steps=2, batch_size=8, seeds=(0,))
        assert found["control"]["arm"] is None
        assert found["verdict"]["against"] == [a.name for a in ARMS[:3]]
        assert "One seed only" in found["verdict"]["sentence"]


def test_no_class_that_a_claim_can_be_made_of_with_validation_given(tmp_path: Path) -> None:
    counts = {"train": (3, 2, 0), "val": (4, 4, 0), "test": (5, 5, 0)}
    arrays: dict[str, np.ndarray] = {}
    for seed, (split, n) in enumerate(counts.items()):
        made = make_set(n, seed)
        arrays |= {f"{split}_images": made.images, f"{split}_labels": made.labels}
    np.savez(tmp_path / "tiny.npz", **arrays)
    prepared = prepare(tmp_path / "tiny.npz")
    assert prepared.val is not None
    assert not any(prepared.claimable)
    pool = make_set((2, 3, 0), 9)
    synthetic = ImageSet(pool.images, pool.labels, prepared.train.class_names)
    found = classify(prepared, synthetic, steps=2, batch_size=8, seeds=(0, 1))
    json.dumps(found, allow_nan=False)
    assert found["control"]["arm"] is None
    assert found["control"]["chosen_by"].startswith("no claim can be made of any class")
    assert {row["outcome"] for row in found["verdict"]["per_group"].values()} == {"not measured"}
    assert found["verdict"]["sentence"].startswith("No claim can be made")
    data = ReportData(
        "tiny", "imbdiff run", "ddpm", "tiny", prepared.stats, prepared.groups, run="runs/tiny", classifier=found
    )
    assert "No claim can be made" in build_report(data)
    assert len(classify(prepared, None, steps=2, batch_size=8, seeds=(0,))["arms"]) == 3


def test_scores_equal_sklearn_and_leave_out_unclaimable_classes(prepared: Any) -> None:
    labels = prepared.test.labels
    predicted = np.random.default_rng(0).integers(0, 3, len(labels))
    found = scores(predicted, labels, prepared.groups, (True, True, True))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert found["accuracy"] == pytest.approx((predicted == labels).mean())
    part = scores(predicted, labels, prepared.groups, (True, False, True))
    assert part["per_class"][1] is None
    assert part["groups"]["few"] == found["per_class"][2]
    none = scores(predicted, labels, prepared.groups, (True, False, False))
    assert none["groups"]["few"] is None
    assert spread([found])["sd"]["accuracy"] is None
    assert spread([none, none])["mean"]["groups"]["few"] is None


def test_errors(prepared: Any) -> None:
    synthetic = make_set((0, 5, 5), 9)
    with pytest.raises(ConfigError, match="seeds"):
        classify(prepared, None, seeds=(1, 1))
    with pytest.raises(ConfigError, match="weight"):
        classify(prepared, synthetic, synthetic_weight=0)
    with pytest.raises(ConfigError, match="flat"):
        classify(prepared, synthetic, prior="flat")
    with pytest.raises(ConfigError, match="resnet99"):
        classify(prepared, None, network="resnet99", steps=1, seeds=(0,))
    wrong = type(synthetic)(synthetic.images[:, :, :8], synthetic.labels, synthetic.class_names)
    with pytest.raises(DataError, match="8, 8, 1"):
        classify(prepared, wrong)
    prepared.test = prepared.test.select([])
    with pytest.raises(DataError, match="no test"):
        classify(prepared, None)
