from __future__ import annotations

from collections.abc import Callable

import pytest

from imbdiff.data.samplers import class_distribution
from imbdiff.recognition.arms import Arm
from imbdiff.recognition.jobs import Conditions, train_arms
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import RECIPES, Recipe, get_recipe
from imbdiff.runtime.errors import ConfigError

from .conftest import make_prepared, tiny


def test_the_table_is_of_names_labels_and_values_that_exist() -> None:
    assert len({r.label for r in RECIPES.values()}) == len(RECIPES) == 19
    for recipe in RECIPES.values():
        assert recipe.idea
        assert recipe.source
        class_distribution([1.0, 2.0], recipe.sampler)  # type: ignore[arg-type]
        assert 0 <= recipe.deferred < 1
        assert (recipe.loss == "ldam") == (recipe.head == "cosine")


def test_constants_of_the_papers() -> None:
    assert {name for name, r in RECIPES.items() if r.deferred} == {"drw", "drs", "ldam-drw", "remix-drw"}
    assert {r.deferred for r in RECIPES.values()} == {0.0, 0.8}  # epoch 160 of 200
    assert {r.beta for r in RECIPES.values()} == {0.9999}
    assert {r.tau for r in RECIPES.values()} == {1.0}
    assert {r.sampler for r in RECIPES.values()} == {"natural", "balanced", "sqrt"}


def test_which_recipes_count_the_classes() -> None:
    counting = {name for name, r in RECIPES.items() if r.needs_prior}
    assert counting == {
        "reweighting", "drw", "cb-focal", "ldam", "ldam-drw", "balanced-softmax", "logit-adjustment",
        "remix",  # in the labels of mixed images
        "remix-drw",
    }  # fmt: skip


def test_unknown_names_get_a_suggestion() -> None:
    assert get_recipe("crt") is RECIPES["crt"]
    with pytest.raises(ConfigError, match="balanced-sofmax") as caught:
        get_recipe("balanced-sofmax")
    assert "did you mean balanced-softmax?" in str(caught.value)
    with pytest.raises(ConfigError, match="zzz") as caught:
        get_recipe("zzz")
    assert "ldam-drw" in str(caught.value)


OUTSIDE = """
from imbdiff.recognition.recipes import Recipe

MINE = Recipe("drop head", "class-balanced batches from the middle on", "here", sampler="balanced", deferred=0.5)
WRONG = {"label": "x"}
"""


@pytest.mark.parametrize("name", ["module:outside:MINE", "their-recipe"])
def test_a_recipe_from_outside_trains_in_a_comparison(name: str, outside: Callable[..., None]) -> None:
    outside(OUTSIDE, "recipes", their_recipe="MINE")
    assert get_recipe(name).sampler == "balanced"
    arm = Arm(name)
    assert arm.name == "drop head"
    conditions = Conditions(FitPlan(tiny, steps=4, batch_size=8), make_prepared(None), (0,))
    ((found,),) = train_arms({arm: None}, conditions).values()
    assert found.test is not None
    assert found.test.shape == (90, 3)


def test_recipes_from_outside_that_are_wrong(outside: Callable[..., None]) -> None:
    outside(OUTSIDE, "recipes", their_recipe="MINE")
    for name, words, remedy in [
        ("their-recipes", "unknown name 'their-recipes' among the recipes", "did you mean their-recipe"),
        ("module:outside:MINI", "no 'MINI'", "did you mean MINE"),
        ("module:outside:WRONG", "is a dict, and an entry of the recipes must be a Recipe", "recipes.Recipe"),
    ]:
        with pytest.raises(ConfigError, match=words) as caught:
            get_recipe(name)
        assert remedy in caught.value.remedy
    for wrong in ({"loss": "hinge"}, {"mixing": "mix"}, {"second": "crf"}):
        with pytest.raises(ConfigError, match="the recipe 'mine' has") as caught:
            Recipe("mine", "x", "y", **wrong)  # type: ignore[arg-type]
        assert "use one of" in caught.value.remedy
