from __future__ import annotations

import functools
import json
import math

import pytest

from imbdiff.recognition.plan import FitPlan, literature
from imbdiff.runtime.errors import ConfigError

from .conftest import tiny


def test_learning_rate_rises_then_falls_to_almost_nothing() -> None:
    plan = FitPlan(steps=100, learning_rate=0.2, warmup=0.1)
    rates = [plan.rate(s) for s in range(100)]
    assert rates[9] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    # half of the way down the cosine: half of the rate
    assert plan.rate(54) == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * 45 / 91)))
    assert 0.09 < plan.rate(54) < 0.11


def test_learning_rate_of_a_part_of_the_steps_is_that_of_a_plan_of_so_many() -> None:
    plan, short = FitPlan(steps=500, learning_rate=0.2), FitPlan(steps=50, learning_rate=0.2)
    assert [plan.rate(s, 50) for s in range(50)] == [short.rate(s) for s in range(50)]


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_learning_rate_of_short_plans_is_never_above_the_largest_nor_zero(warmup: float, steps: int) -> None:
    for schedule in ("cosine", "steps"):
        plan = FitPlan(steps=steps, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
        assert all(0 < plan.rate(s) <= plan.learning_rate for s in range(steps))


def test_rate_of_the_literature_in_steps() -> None:
    """Cao et al.: epochs 1 to 5 rise, 0.1 after them, 0.001 after 160 and 0.00001 after 180 of 200."""
    plan = literature(2000)
    assert [plan.rate(s) for s in (49, 50, 1599)] == pytest.approx([0.1, 0.1, 0.1])
    assert plan.rate(24) == pytest.approx(0.05)
    assert [plan.rate(s) for s in (1600, 1799)] == pytest.approx([1e-3, 1e-3])
    assert [plan.rate(s) for s in (1800, 1999)] == pytest.approx([1e-5, 1e-5])


def test_recipe_of_the_literature() -> None:
    plan = literature()
    assert (plan.network, plan.steps, plan.batch_size) == ("resnet32", 17_000, 128)
    assert (plan.momentum, plan.weight_decay, plan.nesterov, plan.precision) == (0.9, 2e-4, False, "fp32")
    crop = plan.augmentation
    assert (crop.flip, crop.shift, crop.border, crop.policy, crop.erase) == (True, 4, "zero", "none", 0)
    assert not literature(mirror=False).augmentation.flip
    # 10,847 images of CIFAR-100-LT at imbalance factor 100: 85 batches in an epoch
    assert math.ceil(10_847 / 128) * 200 == plan.steps


def test_plain_values_for_hashes() -> None:
    assert json.loads(json.dumps(FitPlan().to_json()))["network"] == "resnet-small"
    assert FitPlan(tiny).to_json()["network"] == f"{tiny.__module__}.tiny"
    # what has no name of its own is no reason to fail when all is done
    json.dumps(FitPlan(functools.partial(tiny)).to_json())
    assert FitPlan(tiny).to_json() != FitPlan().to_json()
    assert FitPlan(warmup=0.2).to_json() != FitPlan().to_json()


def test_errors() -> None:
    with pytest.raises(ConfigError, match="0 steps"):
        FitPlan(steps=0)
    with pytest.raises(ConfigError, match="batch 1"):
        FitPlan(batch_size=1)
    with pytest.raises(ConfigError, match="'linear'"):
        FitPlan(schedule="linear")  # type: ignore[arg-type]
