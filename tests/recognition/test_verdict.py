"""The verdict rule on made-up predictions, with both signs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.recognition.intervals import paired_interval
from imbdiff.recognition.learned import Lack
from imbdiff.recognition.verdict import Control, Verdict, _decide, choose_control, verdict

PRIMARY = "synthetic + balanced softmax"
NAMES = ("a", "b", "c", "d")


@pytest.fixture
def test_set() -> ImageSet:
    labels = np.repeat(np.arange(4), 50).astype(np.int64)
    return ImageSet(np.zeros((200, 8, 8, 1), np.uint8), labels, NAMES)


@pytest.fixture
def groups(test_set: ImageSet) -> Groups:
    return Groups.explicit(test_set.stats, {"many": ["a", "b"], "few": ["c", "d"]})


def _predict(test: ImageSet, accuracy: tuple[float, ...], seeds: int = 3) -> np.ndarray:
    rows = []
    for s in range(seeds):
        g = np.random.default_rng(s)
        right = g.random(len(test)) < np.asarray(accuracy)[test.labels]
        rows.append(np.where(right, test.labels, (test.labels + 1) % 4))
    return np.array(rows)


def _control(names: list[str]) -> Control:
    return Control(names[0] if len(names) == 1 else None, tuple(names), "validation", {})


def _run(test: ImageSet, groups: Groups, arms: dict[str, tuple[float, ...]], controls: list[str]) -> Verdict:
    predictions = {name: _predict(test, accuracy) for name, accuracy in arms.items()}
    made = [name for name in arms if name not in controls]
    return verdict(predictions, test, groups, (True,) * 4, _control(controls), PRIMARY, made)


@pytest.mark.parametrize(("few", "outcome"), [(0.95, "helped"), (0.6, "no difference"), (0.2, "hurt")])
def test_all_three_outcomes_for_the_group_concerned(
    test_set: ImageSet, groups: Groups, few: float, outcome: str
) -> None:
    found = _run(
        test_set,
        groups,
        {"balanced softmax": (0.9, 0.9, 0.61, 0.61), PRIMARY: (0.92, 0.9, few, few)},
        ["balanced softmax"],
    )
    assert found.per_group["few"].outcome == outcome
    assert found.per_group["many"].outcome == "no difference"
    assert found.per_group["few"].n == 100
    assert outcome in found.sentence
    assert '"balanced softmax"' in found.sentence
    assert "Fixed beforehand" in found.rule


def test_with_one_seed_the_spread_of_trainings_is_said_to_be_missing(test_set: ImageSet, groups: Groups) -> None:
    predictions = {"CE": _predict(test_set, (0.6,) * 4, 1), PRIMARY: _predict(test_set, (0.8,) * 4, 1)}
    found = verdict(predictions, test_set, groups, (True,) * 4, _control(["CE"]), PRIMARY, [PRIMARY])
    assert "One seed only" in found.sentence


def test_accuracies_are_of_the_images_that_are_compared(test_set: ImageSet, groups: Groups) -> None:
    accuracies = {"CE": (0.7, 0.7, 0.3, 0.3), "b": (0.2,) * 4, PRIMARY: (0.7, 0.7, 0.9, 0.9)}
    found = _run(test_set, groups, accuracies, ["CE", "b"])
    few = test_set.labels >= 2
    for row, mine in ((found.per_group["all"], np.ones(200, bool)), (found.per_group["few"], few)):
        expected = [(_predict(test_set, accuracies[n]) == test_set.labels)[:, mine].mean() for n in (PRIMARY, "CE")]
        assert (row.accuracy, row.without) == pytest.approx(tuple(expected))
    assert found.per_group["few"].against == "CE"


@pytest.mark.parametrize("lower", [{}, {"CE": (0.25,) * 4}])
def test_nothing_is_measured_where_no_arm_is_above_chance(
    test_set: ImageSet, groups: Groups, lower: dict[str, tuple[float, ...]]
) -> None:
    """Always the largest class, or right as often as by chance; a difference between the two is no verdict."""
    names = ["CE", PRIMARY, "synthetic + CE"]
    guesses = {name: np.random.default_rng(i).integers(0, 4, (3, 200)) for i, name in enumerate(names)}
    guesses["CE"][:] = 0
    guesses |= {name: _predict(test_set, share) for name, share in lower.items()}
    found = verdict(guesses, test_set, groups, (True,) * 4, _control(["CE"]), PRIMARY, names[1:])
    for block in (found.per_group, *found.other_arms.values()):
        assert {(row.outcome, row.difference) for row in block.values()} == {("not measured", None)}
    assert "better than chance" in found.sentence
    assert "--classify.steps" in found.remedy
    assert found.no_loss is None
    guesses["CE"] = _predict(test_set, (0.5,) * 4)
    found = verdict(guesses, test_set, groups, (True,) * 4, _control(["CE"]), PRIMARY, names[1:])
    assert found.per_group["all"].outcome == "hurt"
    assert found.remedy == ""


def test_a_lack_that_was_found_leaves_no_verdict(test_set: ImageSet, groups: Groups) -> None:
    predictions = {"CE": _predict(test_set, (0.5,) * 4), PRIMARY: _predict(test_set, (0.9,) * 4)}
    arguments = (predictions, test_set, groups, (True,) * 4, _control(["CE"]), PRIMARY, [PRIMARY])
    assert verdict(*arguments).per_group["all"].outcome == "helped"
    found = verdict(*arguments, Lack("images are noise", "train longer"))
    assert {row.reason for row in found.per_group.values()} == {"images are noise"}
    assert (found.remedy, found.no_loss) == ("train longer", None)
    assert "images are noise" in found.sentence


def test_helped_means_above_every_control_and_hurt_below_one(test_set: ImageSet, groups: Groups) -> None:
    arms = {"CE": (0.5,) * 4, "balanced softmax": (0.8,) * 4, PRIMARY: (0.81,) * 4}
    found = _run(test_set, groups, arms, ["CE", "balanced softmax"]).per_group["all"]
    assert found.outcome == "no difference"
    assert found.against == "balanced softmax"
    for value, outcome in ((0.95, "helped"), (0.65, "hurt")):
        changed = {**arms, PRIMARY: (value,) * 4}
        assert _run(test_set, groups, changed, ["CE", "balanced softmax"]).per_group["all"].outcome == outcome


def test_the_interval_shown_is_that_of_the_control_that_decides(test_set: ImageSet, groups: Groups) -> None:
    """One control is lower by a whole seed (wide), the other by a few images of every seed (narrow)."""

    def right(*of_seeds: float) -> np.ndarray:
        first = np.arange(len(test_set)) % 50 < 50 * np.array(of_seeds)[:, None]
        return np.where(first, test_set.labels, (test_set.labels + 1) % 4)

    def of(primary: np.ndarray, controls: dict[str, np.ndarray]) -> Verdict:
        predictions = {**controls, PRIMARY: primary}
        return verdict(predictions, test_set, groups, (True,) * 4, _control(list(controls)), PRIMARY, [PRIMARY])

    wide, narrow = right(0.0, 0.9, 0.9), right(0.5, 0.5, 0.5)
    cases = {
        # mean difference lowest against wide, with an interval across 0: below 0 against narrow only
        "hurt": ("narrow", right(0.4, 0.4, 0.4)),
        "no difference": ("wide", right(0.7, 0.7, 0.7)),
        "helped": ("narrow", right(1.0, 1.0, 1.0)),
    }
    for outcome, (against, primary) in cases.items():
        controls = {"wide": wide, "narrow": narrow}
        if outcome == "helped":
            controls = {"wide": right(0.0, 0.1, 0.2), "narrow": narrow}
        for order in (list(controls), list(controls)[::-1]):
            found = of(primary, {name: controls[name] for name in order})
            for row in found.per_group.values():
                assert row.outcome == outcome
                assert row.against == against
                assert (row.low > 0) == (outcome == "helped")
                assert (row.high < 0) == (outcome == "hurt")
            assert f'against "{against}")' in found.sentence
            assert "the control that decides" in found.rule


_ENDS = st.floats(-1, 1, allow_subnormal=False)


@given(st.lists(st.tuples(_ENDS, _ENDS, _ENDS).map(lambda t: tuple(sorted(t))), min_size=1, max_size=4))
def test_no_outcome_contradicts_its_own_interval(intervals: list[tuple[float, float, float]]) -> None:
    found = [((middle, low, high), str(i)) for i, (low, middle, high) in enumerate(intervals)]
    outcome, (difference, low, high), against = _decide(found)
    assert ((difference, low, high), against) in found
    assert (outcome == "helped") == all(row[0][1] > 0 for row in found) == (low > 0)
    assert (outcome == "hurt") == any(row[0][2] < 0 for row in found) == (high < 0)


def test_classes_without_claim_do_not_count(test_set: ImageSet, groups: Groups) -> None:
    predictions = {
        "CE": _predict(test_set, (0.9, 0.9, 0.9, 0.1)),
        PRIMARY: _predict(test_set, (0.9, 0.9, 0.92, 1.0)),
    }
    found = verdict(predictions, test_set, groups, (True, True, True, False), _control(["CE"]), PRIMARY, [PRIMARY])
    assert found.per_group["few"].outcome == "no difference"
    assert found.per_group["few"].n == 50
    claimable = (True, True, False, False)
    found = verdict(predictions, test_set, groups, claimable, _control(["CE"]), PRIMARY, [PRIMARY])
    assert found.per_group["few"].outcome == "not measured"


def test_interval_holds_the_spread_between_seeds() -> None:
    labels = np.zeros(200, np.int64)
    # no variance over images at all: every image changes with the seed alone
    d = np.repeat(np.array([[-1], [0], [1]]), 200, axis=1)
    centre, low, high = paired_interval(d, labels)
    assert centre == 0
    assert low < -0.8
    assert high > 0.8
    same = paired_interval(np.ones((3, 200), int), labels)
    assert same == (1.0, 1.0, 1.0)


def test_control_is_chosen_on_validation_and_ties_go_to_the_simpler_arm(test_set: ImageSet) -> None:
    arms = {"CE": 0.7, "resampling": 0.9, "balanced softmax": 0.9}
    found = choose_control(arms, test_set, (True,) * 4)
    assert (found.arm, found.arms, found.scores) == ("resampling", ("resampling",), arms)
    assert "validation" in found.chosen_by
    found = choose_control(dict.fromkeys(arms), test_set, (False,) * 4)
    assert (found.arm, found.arms) == (None, tuple(arms))
    # a class that no claim is made of may be missing
    part = test_set.select(np.flatnonzero(test_set.labels != 2))
    assert choose_control(arms, part, (True, True, False, True)).arm == "resampling"
    assert choose_control(arms, part, (True,) * 4).arms == tuple(arms)


def _unequal(counts: tuple[int, ...]) -> tuple[ImageSet, Groups]:
    labels = np.repeat(np.arange(4), counts).astype(np.int64)
    test = ImageSet(np.zeros((len(labels), 8, 8, 1), np.uint8), labels, NAMES)
    return test, Groups(("many", "medium", "few"), (0, 0, 1, 2), "made up")


def test_groups_of_few_test_images_are_not_measured() -> None:
    test, groups = _unequal((40, 40, 13, 0))
    found = _run(test, groups, {"CE": (0.5,) * 4, PRIMARY: (0.95,) * 4}, ["CE"])
    assert found.per_group["all"].outcome == found.per_group["many"].outcome == "helped"
    assert found.per_group["medium"].outcome == "not measured"
    assert found.per_group["medium"].difference is None
    assert found.per_group["medium"].n == 13
    assert found.sentence.endswith("; not measured for medium (13 test images), few (no test images).")
    assert "fewer than 20 test images" in found.rule


def test_whole_groups_of_test_images_are_resampled(test_set: ImageSet, groups: Groups) -> None:
    """What 50 agreeing copies of each of 4 patients say is not measured; 50 patients of 4 images say less than 200."""
    of_four, of_fifty = np.arange(200) // 50, np.arange(200) // 4
    arms = {"CE": np.repeat((np.arange(50) % 3 > 0)[None], 4, 0).T.reshape(1, 200) * 1}
    predictions = {"CE": np.where(arms["CE"], test_set.labels, 9), PRIMARY: np.tile(test_set.labels, (1, 1))}

    def run(together: np.ndarray | None) -> Verdict:
        images = replace(test_set, groups=None if together is None else together.astype(str))
        return verdict(predictions, images, groups, (True,) * 4, _control(["CE"]), PRIMARY, [PRIMARY])

    assert "4 groups that belong together" in (run(of_four).per_group["all"].reason or "")
    alone, grouped = run(None).per_group["all"], run(of_fifty).per_group["all"]
    assert (grouped.outcome, grouped.difference) == (alone.outcome, alone.difference) == ("helped", pytest.approx(0.34))
    width = [(row.high or 0.0) - (row.low or 0.0) for row in (alone, grouped)]
    assert width[1] > 1.5 * width[0] > 0
    assert "whole groups" in run(of_fifty).rule
    assert "whole groups" not in run(None).rule


def test_an_interval_without_width_is_not_measured() -> None:
    test, groups = _unequal((40, 40, 30, 30))
    found = _run(test, groups, {"CE": (0.5, 0.5, 1, 1), PRIMARY: (0.95, 0.95, 1, 1)}, ["CE"])
    assert found.per_group["few"].reason == "30 test images, an interval without width"
    assert "few (30 test images, an interval without width)" in found.sentence
    assert "no difference" not in found.sentence


def _won(test: ImageSet, **won_and_lost: tuple[int, int]) -> dict[str, np.ndarray]:
    """CE is right on half of every class; the arm wins and loses so many images of each class, in every seed."""
    right = np.arange(len(test)) % 50 < 25
    arm = right.copy()
    for name, (won, lost) in won_and_lost.items():
        own = np.flatnonzero(test.labels == NAMES.index(name))
        arm[own[25 : 25 + won]], arm[own[:lost]] = True, False
    return {
        name: np.tile(np.where(hits, test.labels, (test.labels + 1) % 4), (3, 1))
        for name, hits in (("CE", right), ("arm", arm))
    }


def test_all_but_the_declared_comparison_are_corrected_for_their_number(test_set: ImageSet, groups: Groups) -> None:
    made = _won(test_set, c=(7, 2), d=(7, 2))
    predictions = {"CE": made["CE"], PRIMARY: made["arm"], "synthetic + CE": made["arm"]}

    def of(arms: list[str]) -> Verdict:
        return verdict(predictions, test_set, groups, (True,) * 4, _control(["CE"]), PRIMARY, arms)

    both = of([PRIMARY, "synthetic + CE"])
    few = test_set.labels >= 2
    difference = (made["arm"][:, few] == test_set.labels[few]).astype(int) - (
        made["CE"][:, few] == test_set.labels[few]
    )
    _, low, high = paired_interval(difference, test_set.labels[few])
    assert low > 0  # by itself, it is above 0
    declared, row = both.per_group["all"], both.per_group["few"]
    assert (declared.outcome, declared.corrected) == ("helped", False)
    assert declared.p_adjusted == declared.p < 0.05
    # the same images won in the other arm, over all test images: corrected, and no longer above 0
    other = both.other_arms["synthetic + CE"]
    assert other["all"].p == declared.p
    for corrected in (row, other["all"], other["few"]):
        assert corrected.corrected
        assert corrected.outcome == "no difference"
        assert 0.01 < corrected.p < 0.05 < corrected.p_adjusted <= 1
        assert corrected.low <= 0 < corrected.high
    assert row.low < low
    assert row.high > high
    # "many" never differs: an interval without width counts in the family, so that M = 5
    assert both.per_group["many"].p is None
    assert "The 5 other comparisons (groups, other arms) are corrected for their number by Holm's method" in both.rule
    assert "by group, corrected for 5 comparisons: no difference for few" in both.sentence
    smallest = min(row.p for row in (row, other["all"], other["few"]))
    assert min(one.p_adjusted for one in (row, other["all"], other["few"])) == pytest.approx(5 * smallest)
    # a family of two: more is left of it
    assert of([PRIMARY]).per_group["few"].p_adjusted == pytest.approx(2 * row.p)
    assert "The 2 other comparisons" in of([PRIMARY]).rule


@pytest.mark.parametrize("controls", [["CE"], ["CE", "balanced softmax"]])
def test_adjusted_p_and_interval_say_the_same(test_set: ImageSet, groups: Groups, controls: list[str]) -> None:
    seen = set()
    for step in range(6):
        made: dict[str, tuple[float, ...]] = {"CE": (0.6,) * 4, "balanced softmax": (0.62, 0.6, 0.5, 0.5)}
        arms = {name: made[name] for name in controls}
        arms |= {PRIMARY: (0.57, 0.53, 0.62 + 0.05 * step, 0.6), "synthetic + CE": (0.47 + 0.05 * step,) * 4}
        found = _run(test_set, groups, arms, controls)
        for block in (found.per_group, *found.other_arms.values()):
            for row in block.values():
                seen.add(row.outcome)
                assert (row.p_adjusted < 0.05) == (row.outcome != "no difference")
                assert (row.p_adjusted < 0.05) == (row.low > 0 or row.high < 0)
                assert row.p <= row.p_adjusted
    assert seen == {"helped", "hurt", "no difference"}


def test_nothing_is_lost_overall_where_the_interval_excludes_a_loss_of_a_point(
    test_set: ImageSet, groups: Groups
) -> None:
    for won, shown in (({"a": (5, 0)}, True), ({"a": (3, 3)}, False), ({"a": (0, 5)}, False)):
        made = _won(test_set, **won)
        predictions = {"CE": made["CE"], PRIMARY: made["arm"]}
        found = verdict(predictions, test_set, groups, (True,) * 4, _control(["CE"]), PRIMARY, [PRIMARY])
        whole = found.per_group["all"]
        assert found.no_loss == {"margin": 0.01, "shown": shown, "low": whole.low}
        assert shown == (whole.low > -0.01)
        assert "above -1 point" in found.rule
    few = verdict(predictions, test_set, groups, (False,) * 4, _control(["CE"]), PRIMARY, [PRIMARY])
    assert few.no_loss is None
    assert "other comparison" not in few.rule


def test_a_comparison_without_width_uses_up_no_step_of_the_correction(test_set: ImageSet, groups: Groups) -> None:
    made = _won(test_set, c=(7, 2), d=(7, 2))
    many = test_set.labels < 2
    for name, right in (("CE", False), ("arm", True)):
        made[name][:, many] = (test_set.labels[many] + (not right)) % 4
    predictions = {"CE": made["CE"], PRIMARY: made["arm"]}
    found = verdict(predictions, test_set, groups, (True,) * 4, _control(["CE"]), PRIMARY, [PRIMARY]).per_group
    assert found["many"].reason == "100 test images, an interval without width"
    assert found["few"].p_adjusted == pytest.approx(2 * found["few"].p)
