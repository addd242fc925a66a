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
from imbdiff.recognition.arms import ARMS, PRIMARY, check_sets, classify, make_arms
from imbdiff.recognition.jobs import Arm
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import RECIPES
from imbdiff.recognition.scores import scores, spread
from imbdiff.recognition.use import Use
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.report import build_report
from imbdiff.runtime.errors import ConfigError, DataError

from .conftest import make_prepared, make_set, tiny

SHORT: dict[str, Any] = {"network": tiny, "steps": 12, "batch_size": 16, "seeds": (0, 1)}


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
    default, found = (classify(prepared, synthetic, **short, use=use) for use in (None, Use(prior="effective")))
    assert found["arms"][4]["prior"] == "effective"
    for arm in (default["arms"][3], found["arms"][3]):
        assert arm.pop("use")["prior"] in ("train", "effective")  # which cross-entropy does not count
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
    real_fit = jobs.train_classifier

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["name"])
        return real_fit(*args, **kwargs)

    monkeypatch.setattr(jobs, "train_classifier", counted)
    first = classify(prepared, synthetic, **SHORT, folder=tmp_path)
    assert len(calls) == 10
    assert {path.name for path in tmp_path.glob("*.json")} == {f"{a.file}-seed{s}.json" for a in ARMS for s in (0, 1)}
    assert len(list((tmp_path / "logs").iterdir())) == 10
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

    monkeypatch.setattr(jobs, "train_classifier", broken)
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
        classify(prepared, synthetic, use=Use(weight=0))
    with pytest.raises(ConfigError, match="flat"):
        classify(prepared, synthetic, use=Use(prior="flat"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="resnet99"):
        classify(prepared, None, network="resnet99", steps=1, seeds=(0,))
    wrong = type(synthetic)(synthetic.images[:, :, :8], synthetic.labels, synthetic.class_names)
    with pytest.raises(DataError, match="8, 8, 1"):
        classify(prepared, wrong)
    prepared.test = prepared.test.select([])
    with pytest.raises(DataError, match="no test"):
        classify(prepared, None)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "train_classifier", lambda *a, **k: pytest.fail("trained"))


@pytest.mark.usefixtures("untrained")
def test_arms_that_cannot_be_compared_are_refused_before_training(prepared: Any) -> None:
    synthetic = make_set((0, 5, 5), 9)
    with pytest.raises(ConfigError, match="did you mean resampling"):
        classify(prepared, None, arms=make_arms(("ce", "resamplin"), ()))
    with pytest.raises(ConfigError, match="the recipe 'ce' is named twice"):
        classify(prepared, None, arms=make_arms(("ce", "crt", "ce"), ()))
    with pytest.raises(ConfigError, match=r"two arms are called 'synthetic . CE'"):
        classify(prepared, synthetic, arms=[Arm("ce"), Arm("ce", Use(0.5)), Arm("ce", Use(0.2))])
    # two names, and one file for both results
    with pytest.raises(ConfigError, match="'a/b' and 'a b' would be kept in the same file"):
        classify(prepared, None, arms=[Arm("ce", label="a/b"), Arm("crt", label="c"), Arm("focal", label="a b")])
    with pytest.raises(ConfigError, match="no arm without synthetic images"):
        classify(prepared, synthetic, arms=[Arm("ce", Use())])
    # what the recipe does and what the images do could not be told apart
    with pytest.raises(ConfigError, match="the recipe 'cutmix' stands with synthetic images only"):
        classify(prepared, synthetic, arms=[Arm("ce"), Arm("cutmix", Use())], primary="synthetic + CutMix")
    with pytest.raises(ConfigError, match=r"no arm with synthetic images is called 'synthetic . balanced softmax'"):
        classify(prepared, synthetic, arms=make_arms(("ce",), ("ce",)))
    with pytest.raises(ConfigError, match="is called 'CE'"):
        classify(prepared, synthetic, primary="CE")
    with pytest.raises(ConfigError, match="at least one"):
        classify(prepared, None, seeds=())


@pytest.mark.usefixtures("untrained")
def test_images_of_other_classes_are_refused_by_name_before_training(prepared: Any) -> None:
    made = make_set((0, 5, 5), 9)

    def named(images: ImageSet, *names: str) -> ImageSet:
        return ImageSet(images.images, images.labels, names)

    with pytest.raises(DataError, match=r"synthetic images.*training lacks: 'centre'.*only training has: 'middle'"):
        classify(prepared, named(made, "left", "centre", "right"))
    with pytest.raises(DataError, match=r"synthetic images.*the same classes in another order"):
        classify(prepared, named(made, "left", "right", "middle"))
    with pytest.raises(DataError, match=r"synthetic images.*training lacks: 'top'"):
        classify(prepared, named(made, "left", "middle", "right", "top"))
    for part, said in (("test", "test"), ("val", "validation")):
        kept = getattr(prepared, part)
        setattr(prepared, part, named(kept, "left", "middle", "right", *(f"class {i}" for i in range(13))))
        with pytest.raises(DataError, match=f"the {said} images.*'class 9' and 3 more") as caught:
            classify(prepared, None)
        assert "class 11" not in str(caught.value)
        setattr(prepared, part, kept)
    prepared.train = prepared.train.select(np.flatnonzero(prepared.train.labels != 1))
    with pytest.raises(DataError, match="1 classes have no real training image: 'middle'"):
        classify(prepared, None)


def test_the_arms_that_no_comparison_may_lack_are_always_in() -> None:
    names = [(a.recipe, a.needs_synthetic) for a in make_arms(("drw",), ("cutmix",))]
    alone = ["ce", "resampling", "balanced-softmax", "drw", "cutmix"]
    assert names == [*((name, False) for name in alone), ("cutmix", True)]


@pytest.mark.usefixtures("untrained")
def test_a_test_image_among_the_synthetic_ones_is_noticed(prepared: Any) -> None:
    made, test = make_set((0, 5, 5), 9), prepared.test
    images = np.concatenate([made.images, test.images[:2]])
    leaked = ImageSet(images, np.concatenate([made.labels, test.labels[:2]]), made.class_names)
    with pytest.raises(DataError, match="2 synthetic images equal test images, such as 10"):
        classify(prepared, leaked)


def test_blank_images_are_no_leak(prepared: Any) -> None:
    made = make_set((0, 5, 5), 9)
    made.images[0] = prepared.test.images[0] = 7
    prepared.test = ImageSet(prepared.test.images, prepared.test.labels, prepared.test.class_names)
    made = ImageSet(made.images, made.labels, made.class_names)
    check_sets(prepared, made)


def test_other_recipes_and_uses_with_looks_give_the_best_beside_the_last(prepared: Any) -> None:
    uses = [Use(share=0.5), Use(schedule="head-last"), Use(batch_norm="separate", prior="effective")]
    arms = [
        *(Arm(name) for name in ("ce", "ldam-drw", "balanced-softmax")),
        *(Arm("balanced-softmax", use, label=f"with {i}") for i, use in enumerate(uses)),
    ]
    found = classify(
        prepared, make_set((0, 30, 36), 9), arms=arms, primary="with 1", plan=FitPlan(tiny, 10, 12), looks=5,
        seeds=(3, 5),
    )  # fmt: skip
    json.dumps(found, allow_nan=False)
    assert (found["protocol"]["looks"], found["protocol"]["seeds"]) == (5, [3, 5])
    assert [a["use"] for a in found["arms"]] == [None] * 3 + [use.to_json() for use in uses]
    assert [a["prior"] for a in found["arms"]] == [None, "train", "train", "train", "train", "effective"]
    assert found["verdict"]["primary"] == "with 1"
    assert set(found["verdict"]["other_arms"]) == {"with 0", "with 2"}
    for arm in found["arms"]:
        for run in arm["runs"]:
            best = run["best"]
            assert best["step"] in (2, 4, 6, 8, 10)
            assert best["val"]["balanced_accuracy"] >= run["val"]["balanced_accuracy"] - 1e-12
            assert set(best) - {"step", "val"} == set(run["val"])


def test_nobody_looks_where_validation_images_of_a_class_are_missing() -> None:
    for val in (None, make_set((8, 8, 0), 1)):
        found = classify(make_prepared(val), None, plan=FitPlan(tiny, 4, 8), looks=4, seeds=(0,))
        assert found["protocol"]["looks"] == 0
        assert all(run["best"] is None for arm in found["arms"] for run in arm["runs"])


def test_the_same_arm_with_and_without_other_arms_gives_the_same_result(prepared: Any) -> None:
    synthetic, plan = make_set((0, 30, 36), 9), FitPlan(tiny, 6, 8)
    many = classify(prepared, synthetic, plan=plan, seeds=(0, 1), arms=make_arms(tuple(RECIPES)[:6]))
    few = classify(prepared, synthetic, plan=plan, seeds=(1,), arms=make_arms(("ce",)))
    ce = next(arm for arm in many["arms"] if arm["name"] == "CE")
    assert ce["runs"][1] == few["arms"][0]["runs"][0]
