"""The first screen: a word, accuracies with and without, rare classes, what to do."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from imbdiff.data.stats import ClassStats
from imbdiff.reporting.answer import answer, arm_text

from . import fake

FIRST = {"helped": "Yes", "hurt": "No", "no difference": "No", "not measured": "Not measured"}


def found(whole: str = "helped", few: str = "no difference", **changes: Any) -> dict[str, Any]:
    made = fake.trained(ClassStats(tuple("0123456789"), fake.COUNTS)).classifier
    assert made is not None
    rows = {}
    for i, (scope, outcome) in enumerate((("all", whole), ("many", "no difference"), ("few", few))):
        numbers = () if outcome == "not measured" else (0.01, -0.01, 0.03)
        rows[scope] = {**fake.compared(600, outcome, *numbers), "accuracy": 0.9 - 0.1 * i, "without": 0.85 - 0.1 * i}
        if not numbers:
            rows[scope] |= {"reason": f"nothing learned in {scope}", "against": None}
    verdict = {**made["verdict"], "per_group": rows, "remedy": "imbdiff classify RUN --classify.steps 900"}
    protocol = {**made["protocol"], "n_synthetic": 795, "rarest_group": "few"}
    return {**made, "verdict": verdict, "protocol": protocol, **changes}


@pytest.mark.parametrize(("whole", "few"), list(product(FIRST, FIRST)))
def test_a_word_two_accuracies_the_rare_classes_and_what_to_do_in_five_short_lines(whole: str, few: str) -> None:
    lack = {"reason": "noise", "remedy": "train"} if (whole, few) == ("not measured", "not measured") else None
    warned = {"warnings": ["half of the images look like another class"], "lack": lack}
    told = answer(found(whole, few, learned=warned), "runs/my run")
    assert told is not None
    rescued = whole == "no difference" and few == "helped"
    assert told.word.startswith("Yes" if rescued else FIRST[whole])
    assert ("rare" in told.word) == (rescued or (whole, few) == ("helped", "hurt"))
    lines = told.lines()
    assert len(lines) <= 5
    assert "90.0\N{NO-BREAK SPACE}% with them, 85.0\N{NO-BREAK SPACE}% without" in lines[0]
    assert "70.0\N{NO-BREAK SPACE}% with them, 65.0\N{NO-BREAK SPACE}% without" in lines[1]
    assert max(map(len, lines[:3])) < 160
    assert lines[-1].startswith("next: ")
    assert ("half of the images" in " ".join(lines)) == (lack is None)
    assert told.accuracies[0][1:3] == ("90.0\N{NO-BREAK SPACE}%", "85.0\N{NO-BREAK SPACE}%")
    if whole == "not measured":
        assert "Nothing learned in all" in lines[0]
        assert "classify 'runs/my run' --classify.steps 900" in lines[-1]


def test_without_synthetic_images_there_is_no_answer() -> None:
    made = found()
    made["verdict"] = {**made["verdict"], "per_group": {}}
    assert answer(made, "RUN") is None


@pytest.mark.parametrize("name", ["balanced softmax", "2 x CE + 2 x CE, strong augmentation"])
def test_the_control_is_used_where_its_network_was_kept(name: str) -> None:
    made = found("hurt", kept=[name])
    made["verdict"]["per_group"]["all"]["against"] = name
    told = answer(made, "RUN")
    assert told is not None
    assert told.command == f"imbdiff predict RUN IMAGES --arm '{name}'"  # by the name that `predict` takes
    told = answer(found("hurt", kept=[]), "RUN")
    assert told is not None
    assert "balanced softmax" in told.next
    assert told.command == "imbdiff curate RUN --curate.policy agreement --replace"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("4 x balanced softmax", "4 x balanced softmax"),
        ("2 x CE + 2 x CE, strong augmentation", "4 x CE, 2 of them with strong augmentation"),
        ("2 x CE + 3 x (synthetic + CE)", "5 x CE, 3 of them with synthetic images"),
        ("2 x CE + 2 x (repeated real + CE)", "4 x CE, 2 of them with repeated real images"),
        ("2 x CE + 2 x (synthetic + LA)", "2 x CE + 2 x (synthetic + LA)"),
        ("synthetic + CE", "synthetic + CE"),
    ],
)
def test_names_of_ensembles_say_what_some_networks_have_more(name: str, shown: str) -> None:
    assert arm_text(name) == shown
