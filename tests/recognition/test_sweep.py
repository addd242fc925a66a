"""The grid and the choice: what is compared, who sees which images, and what is trained again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition import jobs, sweep
from imbdiff.recognition.grid import Cell, first_of, make_cells, missing_classes
from imbdiff.recognition.intervals import holm_steps, paired_interval, paired_replicates, percentile_p
from imbdiff.recognition.jobs import Job
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.sweep import Choice, Entry, Sealed, choose
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import ConfigError, DataError, NonFiniteLossError, RunError

from .conftest import NAMES, make_prepared, make_set

PLAN = FitPlan(steps=6, batch_size=16)
NUMBERS = {"0.5": (0, 10, 16), "1.0": (0, 30, 36)}
USES = [Use()]


def pool() -> ImageSet:
    return make_set((0, 30, 36), 9)


def cells_of(**changes: Any) -> tuple[Cell, ...]:
    asked = {"numbers": NUMBERS, "curation": ["none"], "recipes": ["ce"], "uses": USES, **changes}
    return make_cells(*asked.values())


def run_sweep(prepared: Any, cells: Sequence[Cell], **changes: Any) -> dict[str, Any]:
    options = {"plan": PLAN, "without": ("ce",), "seeds": (0, 1), "workers": 1, **changes}
    images = options.pop("images", lambda cell: first_of(pool(), cell.wanted))
    return sweep.sweep(prepared, images, cells, **options)


class Watched(dict[str, Any]):
    """A result that says when its predictions on test images are read."""

    def __init__(self, values: dict[str, Any], name: str, events: list[str]) -> None:
        super().__init__(values)
        self.name, self.events = name, events

    def __getitem__(self, key: str) -> Any:
        if key == "test":
            self.events.append(self.name)
        return super().__getitem__(key)


def answers(labels: np.ndarray, wrong: int, seed: int) -> dict[str, Any]:
    """`wrong` images of each class put into the next class."""
    predicted = labels.copy()
    for k in np.unique(labels):
        mine = np.flatnonzero(labels == k)[seed : seed + wrong]
        predicted[mine] = (k + 1) % len(NAMES)
    return {"predicted": predicted.tolist(), "confidence": [0.5] * len(labels)}


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """No training: how many images of each class an arm gets wrong on validation and test images is set by name."""
    world: dict[str, Any] = {"val": {}, "test": {}, "events": [], "asked": []}

    def run_all(todo: Sequence[Job], workers: int, progress: Any) -> dict[tuple[str, int], Any]:
        found = {}
        for job in todo:
            world["asked"].append(job)
            name, val, test = job.arm.name, job.prepared.val, job.prepared.test
            values = {
                "seed": job.seed,
                "best": None,
                "val": None if val is None else answers(val.labels, world["val"].get(name, 3), job.seed),
                "test": answers(test.labels, world["test"].get(name, 3), job.seed),
            }
            found[name + job.key, job.seed] = Watched(values, name, world["events"])
        return found

    monkeypatch.setattr(sweep, "run_all", run_all)
    return world


# -- the grid


def test_the_grid_is_every_combination_in_a_stated_order() -> None:
    cells = cells_of(
        curation=["none", "no-copies+agreement"], recipes=["ce", "balanced-softmax"], uses=[Use(), Use(weight=0.5)]
    )
    assert len(cells) == len({c.name for c in cells}) == 2 * 2 * 2 * 2
    assert cells[0].name == "0.5: CE, weight 1"
    assert cells[-1].name == "1.0, agreement+no-copies: balanced softmax, weight 0.5"
    assert cells[-1].wanted == (0, 30, 36)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipes": ["balanced-softmx"]}, "did you mean balanced-softmax"),
        ({"curation": ["agrement"]}, "did you mean agreement"),
        ({"numbers": {"a=1": (0, 0, 0)}}, "'a=1' adds no image"),
        ({"numbers": {"1.0": (0, 1, 2), "auto": (0, 1, 2)}}, "'1.0' and 'auto' add the same images"),
        ({"recipes": ["ce", "ce"]}, "recipe 'ce' stands in the grid twice"),
        ({"curation": ["agreement+no-copies", "no-copies+agreement"]}, "twice"),
        ({"uses": []}, "names no use"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        cells_of(**changes)
    assert said in str(error.value)


def test_long_numbers_are_cut_in_names_and_stay_different() -> None:
    totals = ",".join(f"class {k}=90" for k in range(1000))
    one, two = cells_of(numbers={totals: (0, 1, 2), totals + "1": (0, 1, 3)})
    assert one.name != two.name
    assert len(one.name) < 110
    assert one.name.startswith("class 0=90,class 1=90")


def test_names_of_files_hold_no_class_name() -> None:
    (cell,) = cells_of(numbers={"../é=9,b=9": (0, 1, 2)})
    assert "é" not in cell.arm.file
    assert "/" not in cell.arm.file
    assert cell.arm.file.startswith("totals-none")


def test_the_first_of_each_class_in_drawing_order_and_nested() -> None:
    labels = np.array([2, 0, 2, 0, 2, 1], dtype=np.int64)
    images = ImageSet(np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1), labels, NAMES)
    assert first_of(images, (1, 0, 2)).images.ravel().tolist() == [0, 1, 2]
    assert first_of(images, (2, 5, 2)).images.ravel().tolist() == [0, 1, 2, 3, 5]  # fewer where there are fewer
    small, large = first_of(pool(), (0, 10, 16)), first_of(pool(), (0, 30, 36))
    assert set(small.ids) < set(large.ids)


# -- the choice


def test_the_highest_score_is_chosen_however_little_it_gains() -> None:
    found = choose([Entry("plain", 0, False, 0.7), Entry("a", 50, False, 0.69), Entry("b", 900, True, 0.7001)])
    assert (found.recommended, found.control, found.compared, found.equal) == ("b", "plain", 3, ())


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_equal_scores_go_to_the_simpler(order: slice) -> None:
    entries = [
        Entry("more", 90, False, 0.8),
        Entry("fewer, curated", 50, True, 0.8 + 4e-13),
        Entry("fewer", 50, False, 0.8),
        Entry("none", 0, False, 0.8 - 4e-13),
        Entry("worse", 0, False, 0.7),
    ]
    assert choose(entries[order]).recommended == choose(entries[order]).control == "none"
    entries[3] = Entry("none", 0, False, 0.8 - 2e-12)
    found = choose(entries[order])
    assert (found.recommended, found.control) == ("fewer", "none")
    assert found.equal == ("fewer, curated", "more")


def test_a_choice_needs_an_arm_without_synthetic_images() -> None:
    with pytest.raises(ConfigError, match="no arm without"):
        choose([Entry("a", 5, False, 0.5)])


def test_what_chooses_has_no_test_numbers_to_read() -> None:
    assert set(Entry.__annotations__) == {"name", "synthetic", "curated", "score"}
    assert list(inspect.signature(choose).parameters) == ["entries"]


def test_predictions_on_test_images_are_given_for_a_choice_and_its_two_names_only() -> None:
    run = {"val": {"predicted": [0]}, "test": {"predicted": [1]}}
    sealed = Sealed({"a": [run], "b": [run], "c": [run]})
    choice = Choice("a", "b", 3)
    assert sealed.test("a", choice).tolist() == sealed.test("b", choice).tolist() == [[1]]
    with pytest.raises(RunError, match="'c'"):
        sealed.test("c", choice)


def test_test_images_are_read_after_the_choice_and_of_the_two_finalists_only(
    prepared: Any, pretend: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    best = "1.0 none synthetic + CE"
    pretend["val"] = {best: 1, "CE": 4, "CE + class-balanced resampling": 2, "0.5 none synthetic + CE": 2}
    pretend["test"] = {"0.5 none synthetic + CE": 0}  # the best on test images, and nobody may know
    real, events = sweep.choose, pretend["events"]

    def watched(entries: Sequence[Entry]) -> Choice:
        assert events == []
        events.append("choice")
        return real(entries)

    monkeypatch.setattr(sweep, "choose", watched)
    found = run_sweep(prepared, cells_of(), without=("ce", "resampling"))
    assert events[0] == "choice"
    assert set(events[1:]) == {best, "CE + class-balanced resampling"}
    assert found["recommendation"]["name"] == "1.0: CE, weight 1"
    assert found["recommendation"]["control"] == "CE + class-balanced resampling"
    assert found["recommendation"]["compared"] == 4
    assert set(found["test"]["numbers"]) == {"1.0: CE, weight 1", "CE + class-balanced resampling"}
    assert found["exploratory"] is None


def test_the_choice_and_its_scores_are_those_of_validation_images(prepared: Any, pretend: dict[str, Any]) -> None:
    pretend["val"] = {"CE": 2, "0.5 none synthetic + CE": 1, "1.0 none synthetic + CE": 5}
    pretend["test"] = {"CE": 20, "0.5 none synthetic + CE": 12, "1.0 none synthetic + CE": 0}
    found = run_sweep(prepared, cells_of())
    wrong = {"CE": 2, "0.5: CE, weight 1": 1, "1.0: CE, weight 1": 5}
    for row in found["rows"]:
        expected = [
            balanced_accuracy_score(
                prepared.val.labels, answers(prepared.val.labels, wrong[row["name"]], s)["predicted"]
            )
            for s in (0, 1)
        ]
        assert row["validation"]["seeds"] == pytest.approx(expected)
        assert row["validation"]["mean"]["balanced"] == pytest.approx(np.mean(expected))
        assert row["validation"]["sd"]["balanced"] == pytest.approx(np.std(expected, ddof=1))
    assert found["recommendation"]["name"] == "0.5: CE, weight 1"
    pretend["test"] = {}
    assert run_sweep(prepared, cells_of())["recommendation"] == found["recommendation"]
    json.dumps(found, allow_nan=False)


def test_the_finalists_differ_by_recommended_minus_control(prepared: Any, pretend: dict[str, Any]) -> None:
    pretend["val"] = {"1.0 none synthetic + CE": 0}
    pretend["test"] = {"CE": 9, "1.0 none synthetic + CE": 3}
    found = run_sweep(prepared, cells_of())["test"]["scopes"]
    labels = prepared.test.labels
    of = {
        name: [np.array(answers(labels, n, s)["predicted"]) == labels for s in (0, 1)]
        for name, n in (("a", 3), ("b", 9))
    }
    difference = np.array(of["a"]).astype(int) - np.array(of["b"]).astype(int)
    assert found["all"]["difference"] == pytest.approx(6 / 30)  # 6 more right of 30 images of each class
    few = labels > 0
    masks = {"all": labels >= 0, "few": few, "many": ~few}
    p = [min(percentile_p(paired_replicates(difference[:, masks[g]], labels[masks[g]]))) for g in ("many", "few")]
    errors = {"all": 0.05, **dict(zip(("many", "few"), holm_steps(p), strict=True))}
    assert min(errors.values()) < 0.05  # the groups are a family of two; the comparison over all is none of it
    for scope, mine in masks.items():
        mean, low, high = paired_interval(difference[:, mine], labels[mine], 1 - errors[scope])
        assert (found[scope]["difference"], found[scope]["low"], found[scope]["high"]) == (mean, low, high)
        assert found[scope]["n"] == mine.sum()
        assert found[scope]["corrected"] == (scope != "all")


def test_few_test_images_and_classes_without_claims_are_not_compared(pretend: dict[str, Any]) -> None:
    prepared = make_prepared(make_set((8, 8, 8), 1))
    prepared.claimable = (True, True, False)
    prepared.test = make_set((30, 10, 40), 2)
    pretend["val"] = {"1.0 none synthetic + CE": 0}
    found = run_sweep(prepared, cells_of())["test"]["scopes"]
    assert found["all"]["n"] == 40
    assert found["few"]["n"] == 10
    assert found["few"]["difference"] is found["few"]["low"] is found["few"]["high"] is None
    assert found["few"]["reason"] == "10 test images"


def test_where_no_synthetic_images_are_best_there_is_nothing_to_compare(prepared: Any, pretend: dict[str, Any]) -> None:
    pretend["val"] = {"CE": 1}
    found = run_sweep(prepared, cells_of())
    assert found["recommendation"]["name"] == found["recommendation"]["control"] == "CE"
    assert found["test"]["scopes"] is None
    assert list(found["test"]["numbers"]) == ["CE"]


def test_a_class_without_validation_images_means_no_choice_and_no_look(pretend: dict[str, Any]) -> None:
    prepared = make_prepared(make_set((8, 8, 0), 1))
    assert missing_classes(prepared) == ["right"]
    found = run_sweep(prepared, cells_of())
    assert (found["missing"], found["recommendation"], found["test"]) == (["right"], None, None)
    assert pretend["events"] == []
    assert all(row["validation"]["mean"]["balanced"] is not None for row in found["rows"])
    prepared.claimable = (True, True, False)  # of which no claim is made on test images either
    assert run_sweep(prepared, cells_of())["recommendation"] is not None
    prepared.claimable = (False,) * 3
    assert missing_classes(prepared) == list(NAMES)


def test_without_validation_images_only_revealed_test_numbers_are_left(pretend: dict[str, Any]) -> None:
    prepared = make_prepared(None)
    with pytest.raises(DataError, match="no validation images"):
        run_sweep(prepared, cells_of())
    assert pretend["asked"] == []
    found = run_sweep(prepared, cells_of(), reveal_test=True)
    assert found["recommendation"] is None
    assert found["exploratory"]["compared"] == 3
    assert all(row["validation"] is None for row in found["rows"])


def test_revealed_test_numbers_are_those_of_every_cell_and_choose_nothing(
    prepared: Any, pretend: dict[str, Any]
) -> None:
    pretend["val"] = {"0.5 none synthetic + CE": 0}
    pretend["test"] = {"1.0 none synthetic + CE": 0, "0.5 none synthetic + CE": 6}
    found = run_sweep(prepared, cells_of(), reveal_test=True)
    assert found["recommendation"]["name"] == "0.5: CE, weight 1"
    shown = {row["name"]: row["numbers"]["mean"]["balanced"] for row in found["exploratory"]["rows"]}
    assert shown == pytest.approx({"CE": 0.9, "0.5: CE, weight 1": 0.8, "1.0: CE, weight 1": 1.0})


# -- what is trained


def test_recipes_of_the_grid_are_trained_without_synthetic_images_too(prepared: Any, pretend: dict[str, Any]) -> None:
    found = run_sweep(prepared, cells_of(recipes=["drw", "ce"]), without=("resampling",))
    assert [row["recipe"] for row in found["rows"] if row["number"] is None] == ["resampling", "drw", "ce"]
    assert {job.plan for job in pretend["asked"]} == {PLAN}
    assert {job.looks for job in pretend["asked"]} == {0}


def test_a_cell_without_images_is_not_trained_and_says_so(prepared: Any, pretend: dict[str, Any]) -> None:
    half = pool().select(np.arange(13))
    found = run_sweep(
        prepared, cells_of(), images=lambda cell: half if cell.number == "1.0" else pool().select(np.arange(0))
    )
    empty, short = found["rows"][1:]
    assert (empty["images"], empty["validation"]) == (0, None)
    assert "left no image" in empty["reason"]
    assert (short["images"], short["wanted"], short["short"]) == (13, 66, 2)
    assert {job.arm.name for job in pretend["asked"]} == {"CE", "1.0 none synthetic + CE"}
    assert found["recommendation"]["compared"] == 2


def test_a_training_whose_loss_becomes_infinite_is_reported_and_the_others_go_on(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = jobs.train_classifier, ["0.5 none synthetic + CE, seed 1"]

    def train(*arguments: Any, **options: Any) -> Any:
        if options["name"] in bad:
            raise NonFiniteLossError(f"{options['name']}: the loss is nan at step 3", "a smaller rate")
        return real(*arguments, **options)

    monkeypatch.setattr(jobs, "train_classifier", train)
    found = run_sweep(prepared, cells_of(), folder=tmp_path, reveal_test=True)
    _, failed, other = found["rows"]
    assert failed["validation"] is None
    assert "its training failed" in failed["reason"]
    assert "the loss is nan at step 3" in failed["reason"]
    assert other["validation"] is not None
    assert found["recommendation"]["compared"] == found["exploratory"]["compared"] == 2
    bad[:] = ["CE, seed 0"]  # what failed is tried again
    with pytest.raises(NonFiniteLossError, match="no arm without synthetic images"):
        run_sweep(prepared, cells_of(), folder=tmp_path / "other")
    bad.clear()
    assert run_sweep(prepared, cells_of(), folder=tmp_path)["recommendation"]["compared"] == 3


def test_equal_inputs_are_one_training(prepared: Any, pretend: dict[str, Any]) -> None:
    half = pool().select(np.arange(13))
    found = run_sweep(prepared, cells_of(curation=["none", "no-copies"]), images=lambda cell: half)
    assert len(pretend["asked"]) == 2 * (1 + 1)
    assert len(found["rows"]) == 1 + 4
    assert len({row["validation"]["mean"]["balanced"] for row in found["rows"][1:]}) == 1


def test_a_larger_grid_trains_what_is_new_and_a_stopped_one_goes_on(
    prepared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trained = jobs.train_classifier, []
    limit = [3]

    def counting(*arguments: Any, **options: Any) -> Any:
        if len(trained) == limit[0]:
            raise KeyboardInterrupt
        trained.append(options["name"])
        return real(*arguments, **options)

    monkeypatch.setattr(jobs, "train_classifier", counting)
    small = cells_of(numbers={"0.5": NUMBERS["0.5"]})
    with pytest.raises(KeyboardInterrupt):
        run_sweep(prepared, small, folder=tmp_path)
    limit[0] = 99
    first = run_sweep(prepared, small, folder=tmp_path)
    assert sorted(trained) == sorted(f"{name}, seed {s}" for name in ("CE", "0.5 none synthetic + CE") for s in (0, 1))
    trained.clear()
    notes: list[str] = []
    larger = run_sweep(prepared, cells_of(), folder=tmp_path, progress=lambda done, total, note: notes.append(note))
    assert sorted(trained) == ["1.0 none synthetic + CE, seed 0", "1.0 none synthetic + CE, seed 1"]
    assert larger["rows"][:2] == first["rows"]
    assert "CE, seed 0 (kept)" in notes
    trained.clear()
    assert run_sweep(prepared, small, folder=tmp_path) == first
    assert run_sweep(prepared, small, folder=tmp_path, plan=FitPlan(steps=5, batch_size=16)) != first
    assert len(trained) == 4
    trained.clear()
    assert run_sweep(prepared, small, folder=tmp_path) == first  # those of the first options are still there
    assert trained == []


# -- refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, "no two the same"),
        ({"without": ("no-such",)}, "unknown name 'no-such' among the recipes"),
        ({"cells": ()}, "no cell"),
        ({"cells": cells_of(uses=[Use(share=0.01)])}, "synthetic share of 0.01"),
        ({"plan": FitPlan("no-such-network", 6, 16)}, "no-such-network"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained_or_drawn(
    prepared: Any, pretend: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    drawn: list[Cell] = []

    def images(cell: Cell) -> ImageSet:
        drawn.append(cell)
        return pool()

    with pytest.raises(ConfigError) as error:
        run_sweep(prepared, **{"cells": cells_of(), "images": images, **changes})
    assert said in str(error.value)
    assert not drawn
    assert not pretend["asked"]


def test_images_of_other_classes_are_refused(prepared: Any, pretend: dict[str, Any]) -> None:
    other = ImageSet(pool().images, pool().labels, ("a", "b", "c"))
    with pytest.raises(DataError, match="other classes"):
        run_sweep(prepared, cells_of(), images=lambda cell: other)
    assert not pretend["asked"]
