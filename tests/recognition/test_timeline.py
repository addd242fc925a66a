from __future__ import annotations

import pytest

from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import RECIPES
from imbdiff.recognition.timeline import Stage, stages_of
from imbdiff.recognition.use import Use
from imbdiff.runtime.errors import ConfigError


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("schedule", ["mixed", "real-last", "head-last"])
def test_steps_of_all_parts_are_those_of_the_plan(name: str, schedule: str) -> None:
    recipe = RECIPES[name]
    for steps in (1, 2, 3, 7, 35, 128, 500):
        for last in (0.01, 0.2, 0.5, 0.99):
            for synthetic in (False, True):
                found = stages_of(FitPlan(steps=steps), recipe, Use(schedule=schedule, last=last), synthetic)  # type: ignore[arg-type]
                assert sum(stage.steps for stage in found) == steps
                assert all(stage.steps >= 0 for stage in found)
                assert all(0 <= stage.real_only <= stage.steps for stage in found)
                assert len({stage.name for stage in found}) == len(found)
                # what is called the body is trained in full, and the rest is not
                assert [stage.trains for stage in found].count("all") == 1
                if not synthetic:
                    assert all(stage.real_only == stage.steps for stage in found)
                    assert found == stages_of(FitPlan(steps=steps), recipe, Use(), False)


@pytest.mark.parametrize(
    ("name", "use", "expected"),
    [
        ("ce", Use(), [Stage("", 500, "all", "natural", 500)]),
        ("resampling", Use(), [Stage("", 500, "all", "balanced", 500)]),
        ("ce", Use(schedule="real-last"), [Stage("", 500, "all", "natural", 400)]),
        ("ce", Use(schedule="real-last", last=0.5), [Stage("", 500, "all", "natural", 250)]),
        (
            "resampling",
            Use(schedule="head-last"),
            [Stage("", 400, "all", "balanced", 400), Stage(" head", 100, "head", "balanced", 0)],
        ),
        ("crt", Use(), [Stage("", 450, "all", "natural", 450), Stage(" crt", 50, "new head", "balanced", 50)]),
        # a second part is where the head is trained alone: as long as is asked for, on real images
        (
            "crt",
            Use(schedule="head-last"),
            [Stage("", 400, "all", "natural", 400), Stage(" crt", 100, "new head", "balanced", 0)],
        ),
        (
            "lws",
            Use(schedule="real-last"),
            [Stage("", 450, "all", "natural", 400), Stage(" lws", 50, "scale", "balanced", 0)],
        ),
        ("tau-norm", Use(), [Stage("", 500, "all", "natural", 500)]),
    ],
)
def test_parts_by_hand(name: str, use: Use, expected: list[Stage]) -> None:
    assert stages_of(FitPlan(steps=500), RECIPES[name], use, True) == expected


def test_batch_statistics_of_mixed_images_are_refused() -> None:
    use = Use(batch_norm="separate")
    for name in ("mixup", "cutmix", "remix", "remix-drw"):
        with pytest.raises(ConfigError, match="mixes real and synthetic images"):
            stages_of(FitPlan(), RECIPES[name], use, True)
        assert stages_of(FitPlan(), RECIPES[name], use, False)
