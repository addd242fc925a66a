"""`classify` and `study`: the shape of results, the choice, and who sees which images when."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition import choice
from imbdiff.recognition.arms import ARMS, Arm, first_of
from imbdiff.recognition.choice import Choice, Studied, choose, study
from imbdiff.recognition.comparison import ArmResult, Summary, classify
from imbdiff.recognition.fitting import Fit
from imbdiff.recognition.intervals import holm, paired_interval, paired_replicates, percentile_p
from imbdiff.recognition.jobs import Conditions, Predicted
from imbdiff.recognition.learned import Lack, Learned
from imbdiff.recognition.networks import Classifier
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.scores import scores
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import ConfigError, DataError, NonFiniteLossError

from .conftest import NAMES, make_prepared, make_set, tiny
from .test_arms import grid_of

SHORT: dict[str, Any] = {"network": tiny, "steps": 12, "batch_size": 16, "seeds": (0, 1)}
PLAN = FitPlan(tiny, steps=6, batch_size=16)


def pool() -> ImageSet:
    return make_set((0, 30, 36), 9)


def whole() -> ImageSet:
    """As many of every class: the prior per domain asks for all."""
    return make_set((22, 22, 22), 9)


ALONE = [arm.name for arm in ARMS if not arm.needs_synthetic]


# -- classify


def test_shape_of_the_result_and_no_dependence_on_workers(prepared: Any) -> None:
    before = torch.random.get_rng_state()
    results = classify(prepared, whole(), **SHORT, workers=1)
    assert torch.equal(before, torch.random.get_rng_state())
    found = json.loads(json.dumps(results.to_json(), allow_nan=False))
    assert list(found) == ["protocol", "arms", "kept", "control", "verdict", "learned"]
    assert [a["name"] for a in found["arms"]] == [a.name for a in ARMS]
    for arm, result in zip(found["arms"], results.arms, strict=True):
        assert [run["seed"] for run in arm["runs"]] == [0, 1]
        assert [run["accuracy"] for run in arm["runs"]] == [run.accuracy for run in result.test.runs]
        accuracies = [run["accuracy"] for run in arm["runs"]]
        assert arm["mean"]["accuracy"] == pytest.approx(np.mean(accuracies))
        assert arm["sd"]["accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
        assert set(arm["mean"]["groups"]) == {"many", "few"}
        assert set(arm["validation"]) == {"seeds", "mean", "sd"}
    assert [a["prior"] for a in found["arms"]] == [arm.prior for arm in ARMS]
    assert found["control"]["arm"] in ALONE
    assert (found["protocol"]["steps"], found["protocol"]["n_synthetic"]) == (12, 66)
    assert found["verdict"]["against"] == [found["control"]["arm"]]
    assert list(found["verdict"]["per_group"]) == ["all", "many", "few"]
    assert json.loads(json.dumps(classify(prepared, whole(), **SHORT, workers=3).to_json())) == found


def test_without_synthetic_images_the_controls_and_no_claim(prepared: Any) -> None:
    found = classify(prepared, None, **SHORT)
    assert [row.arm.name for row in found.arms] == ALONE
    assert found.verdict.per_group == {}
    assert "nothing to judge" in found.verdict.sentence


def test_control_is_every_arm_and_nothing_is_validated_where_validation_lacks_a_class() -> None:
    for val in (None, make_set((8, 8, 0), 1)):
        short = {**SHORT, "steps": 2, "seeds": (0,)}
        found = classify(make_prepared(val), whole(), **short)
        assert found.control.arm is None
        assert found.verdict.against == tuple(ALONE)
        assert {how.tau for row in found.arms for how in row.decisions} == {0.0}
        assert {row.outcome for row in found.verdict.per_group.values()} == {"not measured"}  # after two steps
        assert found.learned is not None
        assert found.learned.classifier == "balanced softmax"


def test_no_class_that_a_claim_can_be_made_of_with_validation_given() -> None:
    prepared = make_prepared(make_set((4, 4, 4), 1), (3, 2, 2))
    prepared.claimable = (False,) * 3
    synthetic = make_set((2, 3, 1), 9)
    found = classify(prepared, synthetic, **{**SHORT, "steps": 2})
    json.dumps(found.to_json(), allow_nan=False)
    assert found.control.arm is None
    assert found.control.chosen_by.startswith("no claim can be made of any class")
    assert {row.outcome for row in found.verdict.per_group.values()} == {"not measured"}
    assert "No claim can be made" in found.verdict.sentence


def test_other_recipes_and_uses(prepared: Any) -> None:
    uses = [Use(share=0.5), Use(schedule="real-last", prior="effective")]
    arms = [
        *(Arm(name) for name in ("ce", "ldam-drw")),
        *(Arm("balanced-softmax", use, label=f"with {i}") for i, use in enumerate(uses)),
    ]
    found = classify(prepared, pool(), arms=arms, primary="with 1", plan=FitPlan(tiny, 10, 12), seeds=(3, 5))
    shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert shown["protocol"]["seeds"] == [3, 5]
    # those that no comparison may lack are added
    assert [a["recipe"] for a in shown["arms"]] == ["resampling", "balanced-softmax", *(a.recipe for a in arms)]
    assert [a["use"] for a in shown["arms"]] == [None] * 4 + [asdict(use) for use in uses]
    assert found.verdict.primary == "with 1"
    assert set(found.verdict.other_arms) == {"with 0"}


def test_what_cannot_be_classified_is_refused_before_training(prepared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fit, "run", lambda self: pytest.fail("trained"))
    synthetic = make_set((0, 5, 5), 9)
    with pytest.raises(ConfigError, match="the seed '1' is named twice"):
        classify(prepared, None, seeds=(1, 1))
    with pytest.raises(ConfigError, match="resnet99"):
        classify(prepared, None, network="resnet99", steps=1, seeds=(0,))
    with pytest.raises(ConfigError, match="is called 'CE'"):
        classify(prepared, synthetic, primary="CE")
    with pytest.raises(DataError, match=r"other classes.*'top'"):
        classify(prepared, ImageSet(synthetic.images, synthetic.labels, (*NAMES, "top")))


# -- the choice


def row(name: str, images: int, curated: bool, score: float) -> ArmResult:
    labels = np.zeros(0, np.int64)
    scored = replace(scores(labels, labels, make_prepared(None).groups, (True,) * 3), balanced_accuracy=score)
    use, policy = (Use() if images else None), "agreement" if curated else "none"
    return ArmResult(Arm("ce", use, curation=policy, label=name), images, val=Summary((scored,)))


def test_the_highest_score_is_chosen_however_little_it_gains() -> None:
    found = choose([row("plain", 0, False, 0.7), row("a", 50, False, 0.69), row("b", 900, True, 0.7001)])
    assert (found.recommended, found.control, found.compared, found.equal) == ("b", "plain", 3, ())


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_equal_scores_go_to_the_simpler(order: slice) -> None:
    rows = [
        row("more", 90, False, 0.8),
        row("fewer, curated", 50, True, 0.8 + 4e-13),
        row("fewer", 50, False, 0.8),
        row("none", 0, False, 0.8 - 4e-13),
        row("worse", 0, False, 0.7),
    ]
    assert choose(rows[order]).recommended == choose(rows[order]).control == "none"
    rows[3] = row("none", 0, False, 0.8 - 2e-12)
    found = choose(rows[order])
    assert (found.recommended, found.control) == ("fewer", "none")
    assert found.equal == ("fewer, curated", "more")


# -- study


def run_study(prepared: Any, grid: Sequence[Arm] | None = None, **changes: Any) -> Studied:
    images = changes.pop("images", lambda arm: first_of(pool(), arm.wanted))
    without = changes.pop("without", ("ce",))
    adjust = changes.pop("adjust", False)
    conditions = Conditions(**{"plan": PLAN, "prepared": prepared, "seeds": (0, 1), "workers": 1, **changes})
    return study(conditions, grid_of() if grid is None else grid, images, without=without, adjust=adjust)


class Watched(Predicted):
    """A result that says when its predictions on test images are read."""

    def __init__(self, name: str, events: list[str], **values: Any) -> None:
        super().__init__(**values)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "events", events)

    def __getattribute__(self, key: str) -> Any:
        if key == "test" and "events" in super().__getattribute__("__dict__"):
            self.events.append(self.name)
        return super().__getattribute__(key)


def answers(labels: np.ndarray, wrong: int, seed: int) -> np.ndarray:
    """(N, 3) probabilities, by which `wrong` images of each class are put into the next class."""
    predicted = labels.copy()
    for k in np.unique(labels):
        mine = np.flatnonzero(labels == k)[seed : seed + wrong]
        predicted[mine] = (k + 1) % len(NAMES)
    return np.where(predicted[:, None] == np.arange(len(NAMES)), 0.5, 0.25).astype(np.float32)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """No training: how many images of each class an arm gets wrong on validation and test images is set by name."""
    world: dict[str, Any] = {"val": {}, "test": {}, "events": [], "asked": []}

    def train(arms: Mapping[Arm, Any], conditions: Conditions, **options: Any) -> dict[Arm, list[Predicted]]:
        val, test = conditions.prepared.val, conditions.prepared.test
        world["asked"] += [(arm, conditions) for arm in arms]
        return {
            arm: [
                Watched(
                    arm.name, world["events"],
                    val=None if val is None else answers(val.labels, world["val"].get(arm.name, 3), seed),
                    test=answers(test.labels, world["test"].get(arm.name, 3), seed),
                )
                for seed in conditions.seeds
            ]
            for arm in arms
        }  # fmt: skip

    def looked(plain: Arm, synthetic: Any, conditions: Conditions, made: Any) -> Learned:
        assert plain.name in conditions.keep  # its network is there to be asked
        return Learned(plain.name, 1.0, 99.0, 0.0, 1.0, 1.0, world.get("lack"), ())

    monkeypatch.setattr(choice, "train_arms", train)
    monkeypatch.setattr(choice, "looked", looked)
    return world


HALF, FULL = "0.5: CE, weight 1", "1.0: CE, weight 1"


def test_test_images_are_read_after_the_choice_and_of_the_two_finalists_only(
    prepared: Any, pretend: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend["val"] = {FULL: 1, "CE": 4, "CE + class-balanced resampling": 2, HALF: 2}
    pretend["test"] = {HALF: 0}  # the best on test images, and nobody may know
    real, events = choice.choose, pretend["events"]

    def watched(rows: Sequence[ArmResult]) -> Choice:
        assert events == []
        assert all(row.test is None for row in rows)
        events.append("choice")
        return real(rows)

    monkeypatch.setattr(choice, "choose", watched)
    found = run_study(prepared)
    assert events[0] == "choice"
    assert set(events[1:]) == {FULL, "CE + class-balanced resampling"}
    assert found.choice == Choice(FULL, "CE + class-balanced resampling", 5)
    assert set(found.numbers) == {FULL, "CE + class-balanced resampling"}


def test_the_choice_and_its_scores_are_those_of_validation_images(prepared: Any, pretend: dict[str, Any]) -> None:
    pretend["val"] = {"CE": 2, HALF: 1, FULL: 5}
    pretend["test"] = {"CE": 20, HALF: 12, FULL: 0}
    found = json.loads(json.dumps(run_study(prepared).to_json(), allow_nan=False))
    rows = {row["name"]: row for row in found["rows"]}
    for name, wrong in pretend["val"].items():
        expected = [
            balanced_accuracy_score(prepared.val.labels, answers(prepared.val.labels, wrong, s).argmax(1))
            for s in (0, 1)
        ]
        validation = rows[name]["validation"]
        assert validation["seeds"] == pytest.approx(expected)
        assert validation["mean"]["balanced"] == pytest.approx(np.mean(expected))
        assert validation["sd"]["balanced"] == pytest.approx(np.std(expected, ddof=1))
    assert found["recommendation"]["name"] == HALF
    assert found["recommendation"]["score"] == pytest.approx(rows[HALF]["validation"]["mean"]["balanced"])
    pretend["test"] = {}
    again = json.loads(json.dumps(run_study(prepared).to_json()))
    assert again["recommendation"] == found["recommendation"]


def test_the_finalists_differ_by_recommended_minus_control(prepared: Any, pretend: dict[str, Any]) -> None:
    pretend["val"], pretend["test"] = {FULL: 0}, {"CE": 9, FULL: 3}
    verdict = run_study(prepared).verdict
    assert verdict is not None
    found = verdict.per_group
    labels = prepared.test.labels
    right = {name: [answers(labels, n, s).argmax(1) == labels for s in (0, 1)] for name, n in (("a", 3), ("b", 9))}
    difference = np.array(right["a"]).astype(int) - np.array(right["b"]).astype(int)
    assert found["all"].difference == pytest.approx(6 / 30)  # 6 more right of 30 images of each class
    few = labels > 0
    masks = {"all": labels >= 0, "few": few, "many": ~few}
    p = [min(percentile_p(paired_replicates(difference[:, masks[g]], labels[masks[g]]))) for g in ("many", "few")]
    errors = {"all": 0.05, **dict(zip(("many", "few"), holm(p)[1], strict=True))}
    assert min(errors.values()) < 0.05  # the groups are a family of two; the comparison over all is none of it
    for scope, mine in masks.items():
        numbers = paired_interval(difference[:, mine], labels[mine], 1 - errors[scope])
        assert (found[scope].difference, found[scope].low, found[scope].high) == numbers
        assert found[scope].n == mine.sum()
        assert found[scope].corrected == (scope != "all")


def test_where_nothing_was_learned_a_study_measured_nothing(prepared: Any, pretend: dict[str, Any]) -> None:
    pretend["val"], pretend["test"] = {FULL: 0}, {"CE": 9, FULL: 3}
    pretend["lack"] = Lack("the images are noise", "train longer")
    found = json.loads(json.dumps(run_study(prepared).to_json()))["test"]
    assert {row["outcome"] for row in found["scopes"].values()} == {"not measured"}
    assert found["scopes"]["all"]["reason"] == found["learned"]["lack"]["reason"] == "the images are noise"
    assert found["remedy"] == "train longer"


def test_a_study_asks_one_network_of_real_images_alone(prepared: Any, tmp_path: Path) -> None:
    """Networks of two steps have learned nothing, which they say, as those of a run do."""
    chosen = choice.Choice(FULL, "CE", 5)
    made = first_of(pool(), next(arm for arm in grid_of() if arm.name == FULL).wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "choose", lambda rows: chosen)
        for folder in (None, tmp_path):
            conditions = Conditions(FitPlan(tiny, 2, 8), prepared, (0,), folder=folder)
            found = choice.study(conditions, grid_of(), lambda arm: first_of(pool(), arm.wanted))
            ran = classify(
                prepared, made, arms=[Arm("ce", Use())], primary="synthetic + CE", plan=conditions.plan, seeds=(0,),
            )  # fmt: skip
            assert found.learned == ran.learned
            assert found.learned is not None


def test_where_no_synthetic_images_are_best_there_is_nothing_to_compare(prepared: Any, pretend: dict[str, Any]) -> None:
    pretend["val"] = {"CE": 1}
    found = run_study(prepared)
    assert found.choice is not None
    assert found.choice.recommended == found.choice.control == "CE"
    assert found.verdict is None
    assert list(found.numbers) == ["CE"]


def test_a_class_without_validation_images_means_no_choice_and_no_reading(pretend: dict[str, Any]) -> None:
    prepared = make_prepared(make_set((8, 8, 0), 1))
    found = run_study(prepared)
    assert (found.missing, found.choice, found.numbers) == (("right",), None, {})
    assert found.to_json()["test"] is None
    assert pretend["events"] == []
    assert all(row.val is not None for row in found.rows)
    prepared.claimable = (True, True, False)  # of which no claim is made on test images either
    assert run_study(prepared).choice is not None
    pretend["asked"].clear()
    with pytest.raises(DataError, match="no validation images"):
        run_study(make_prepared(None))
    assert pretend["asked"] == []


def test_recipes_of_the_grid_are_trained_without_synthetic_images_too(prepared: Any, pretend: dict[str, Any]) -> None:
    found = run_study(prepared, grid_of(recipes=["drw", "ce"]), without=("crt",))
    alone = [row.arm.recipe for row in found.rows if not row.arm.needs_synthetic]
    assert alone == ["ce", "resampling", "balanced-softmax", "crt", "drw"]
    assert {c.plan for _, c in pretend["asked"]} == {PLAN}


def test_an_arm_without_images_is_not_trained_and_says_so(prepared: Any, pretend: dict[str, Any]) -> None:
    half = pool().select(np.arange(13))
    found = run_study(prepared, images=lambda arm: half if arm.number == "1.0" else pool().select(np.arange(0)))
    empty, short = found.rows[3:]
    assert (empty.images, empty.val) == (0, None)
    assert empty.reason is not None
    assert "left no image" in empty.reason
    assert (short.images, short.to_json(())["wanted"], short.short) == (13, 66, 2)
    assert [arm.name for arm, _ in pretend["asked"]][3:] == [FULL]
    assert found.choice is not None
    assert found.choice.compared == 4


def test_a_training_whose_loss_becomes_infinite_is_reported_and_the_others_go_on(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, bad = Fit.run, [f"{HALF}, seed 1"]

    def train(self: Fit) -> Classifier:
        if self.name in bad or bad == ["all"]:
            raise NonFiniteLossError(f"{self.name}: the loss is nan at step 3", "a smaller rate")
        return run(self)

    monkeypatch.setattr(Fit, "run", train)
    found = run_study(prepared, folder=tmp_path)
    failed, other = found.rows[3:]
    assert failed.val is None
    assert failed.reason is not None
    assert "its training failed" in failed.reason
    assert "the loss is nan at step 3" in failed.reason
    assert other.val is not None
    assert found.choice is not None
    assert found.choice.compared == 4
    bad[:] = ["all"]
    with pytest.raises(NonFiniteLossError, match="no arm without synthetic images"):
        run_study(prepared, folder=tmp_path / "other")
    bad.clear()  # what failed is tried again
    again = run_study(prepared, folder=tmp_path).choice
    assert again is not None
    assert again.compared == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": ()}, "at least one"),
        ({"without": ("no-such",)}, "unknown name 'no-such' among the recipes"),
        ({"grid": grid_of(uses=[Use(share=0.01)])}, "synthetic share of 0.01"),
        ({"plan": FitPlan("no-such-network", 6, 16)}, "no-such-network"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_is_trained_or_generated(
    prepared: Any, pretend: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    asked: list[Arm] = []

    def images(arm: Arm) -> ImageSet:
        asked.append(arm)
        return pool()

    with pytest.raises(ConfigError) as error:
        run_study(prepared, **{"images": images, **changes})
    assert said in str(error.value)
    assert not asked
    assert not pretend["asked"]
