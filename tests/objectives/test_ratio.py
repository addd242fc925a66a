"""What decides a regulariser's effect is its ratio to the denoising loss at the same noise level: the same under eps, v
and flow (in two classes of Gaussian data, where the effect can be computed)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.capacity import CapacityManipulation
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.overlap import ClassOverlap
from imbdiff.testing import check_objective, check_ratio, class_difference

LEVELS = (0.3, 0.5, 0.7, 0.9, 0.97)
COMPARING: dict[str, Any] = {
    "class_balancing": ClassBalancing,
    "alignment": Alignment,
    "overlap": ClassOverlap,
    "capacity": CapacityManipulation,
}
comparing = pytest.mark.parametrize("name", COMPARING)


@pytest.mark.parametrize("name", ["class_balancing", "alignment"])
def test_the_same_difference_is_left_under_eps_v_and_flow(name: str) -> None:
    """Classes one standard deviation from the middle each, so that label and image both matter."""
    for level in LEVELS:
        left = {
            kind: class_difference(COMPARING[name](), PROCESSES[kind], level, mean=1.0)
            for kind in ("ddpm-cosine", "ddpm-cosine-v", "flow")
        }
        eps = left["ddpm-cosine"]
        assert eps < 0.8, "it has no effect"
        assert all(abs(value / eps - 1) < 0.02 for value in left.values()), (level, left)
    gone = class_difference(COMPARING[name](space="eps"), PROCESSES["ddpm-cosine-v"], 0.97, mean=1.0)
    assert gone > 0.99, "in eps units nothing was left of it at noisy times"


def test_the_known_fixed_points() -> None:
    """Alignment pulls class and null together: 1 / (1 + s); CBDM with w = s, gamma 1/4 and half of the labels y'
    of the other class: 1 / (1 + 5/4 s); where classes are so near that an image says nothing of its class."""
    for level in (0.5, 0.9):
        for kind in ("ddpm-cosine", "ddpm-cosine-v", "flow"):
            alignment = class_difference(Alignment(), PROCESSES[kind], level)
            assert alignment == pytest.approx(1 / (1 + level), rel=0.01)
            balancing = class_difference(ClassBalancing(), PROCESSES[kind], level)
            assert balancing == pytest.approx(1 / (1 + 1.25 * level), rel=0.05)  # labels are drawn, not counted out


@comparing
def test_every_objective_that_compares_predictions_keeps_its_ratio(name: str) -> None:
    check_ratio(COMPARING[name](), LEVELS)
    effect = class_difference(COMPARING[name](), PROCESSES["ddpm-cosine"], 0.97)
    assert abs(effect - 1) > 0.02, "it has no effect that could be lost"


@comparing
def test_the_check_fails_for_eps_units(name: str) -> None:
    """The default before: that every process has the absolute size of eps networks' terms."""
    with pytest.raises(AssertionError, match=r"noise level 0\.97"):
        check_ratio(COMPARING[name](space="eps"), (0.97,))


def test_a_users_own_objective_is_checked() -> None:
    class Gap(Alignment):
        name = "gap"

    check_objective(Gap())
    with pytest.raises(AssertionError, match="gap at noise level"):
        check_objective(Gap(space="eps"))
    check_objective(Gap(space="eps"), ratio=False)


def test_comparison_labels_in_favour_of_the_tail() -> None:
    from imbdiff.data.stats import ClassStats
    from imbdiff.objectives.batch import LabelDraw
    from imbdiff.runtime.errors import ConfigError

    stats = ClassStats(("a", "b", "c"), (60, 30, 10))
    expected = {"prior": [0.6, 0.3, 0.1], "uniform": [1 / 3] * 3, "inverse": [1 / 9, 2 / 9, 6 / 9]}
    for law, want in expected.items():
        made = LabelDraw(law).make(40_000, torch.Generator().manual_seed(0), stats)  # type: ignore[arg-type]
        assert (torch.bincount(made, minlength=3) / len(made)).tolist() == pytest.approx(want, abs=0.01)
    with pytest.raises(ConfigError, match="unknown distribution of labels 'tail'"):
        LabelDraw("tail")  # type: ignore[arg-type]


def test_all_objectives_with_a_space_are_here() -> None:
    from imbdiff.methods import METHODS

    made = [o for m in METHODS.values() for phase in m.phases for o in phase.objectives()]
    found: set[str] = {o.name for o in made if isinstance(o, Objective) and hasattr(o, "space")}
    assert found == set(COMPARING)
