"""What compares predictions of one network with each other (CBDM, alignment, overlap, capacity): its ratio to the
denoising loss, the pairs, the bound, and rows of the table. Formulas are in `tests.contract.oracles`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.low_rank import LowRank, merged
from imbdiff.diffusion.process import PROCESSES
from imbdiff.methods import METHODS, get_method
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.batch import LabelDraw
from imbdiff.objectives.capacity import CapacityManipulation
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.overlap import ClassOverlap
from imbdiff.testing import check_objective, check_ratio, class_difference
from imbdiff.training.parts import Part
from tests.contract.cases import STATS, N, make_batches, make_step
from tests.contract.oracles import next_on_cycle

from .answers import answer, example, gradients, leaf

COMPARING: dict[str, Any] = {
    "class_balancing": ClassBalancing,
    "alignment": Alignment,
    "overlap": ClassOverlap,
    "capacity": CapacityManipulation,
}


# -- the ratio to the denoising loss decides the effect: the same under eps, v and flow (classes of Gaussian data)


@pytest.mark.parametrize(("level", "kind"), [(0.5, "ddpm-cosine"), (0.9, "ddpm-cosine-v"), (0.5, "flow")])
def test_the_known_fixed_points(level: float, kind: str) -> None:
    """Alignment pulls class and null together: 1 / (1 + s); CBDM with w = s, gamma 1/4 and half of the labels y'
    of the other class: 1 / (1 + 5/4 s); where classes are so near that an image says nothing of its class."""
    assert class_difference(Alignment(), PROCESSES[kind], level) == pytest.approx(1 / (1 + level), rel=0.01)
    balancing = class_difference(ClassBalancing(), PROCESSES[kind], level)
    assert balancing == pytest.approx(1 / (1 + 1.25 * level), rel=0.05)  # labels are drawn, not counted out


@pytest.mark.parametrize("name", COMPARING)
def test_every_objective_that_compares_predictions_keeps_its_ratio(name: str) -> None:
    """And the check fails in eps units, where every process has the absolute size of eps networks' terms."""
    check_ratio(COMPARING[name](), (0.97,) if name == "overlap" else (0.5, 0.97))
    effect = class_difference(COMPARING[name](), PROCESSES["ddpm-cosine"], 0.97)
    assert abs(effect - 1) > 0.02, "it has no effect that could be lost"
    with pytest.raises(AssertionError, match=r"noise level 0\.97"):
        check_ratio(COMPARING[name](space="eps"), (0.97,))


def test_a_users_own_objective_is_checked() -> None:
    class Gap(Alignment):
        name = "gap"

    check_objective(Gap(), processes=("flow",))
    with pytest.raises(AssertionError, match="gap at noise level"):
        check_objective(Gap(space="eps"), processes=("flow",))
    check_objective(Gap(space="eps"), processes=("flow",), ratio=False)


def test_all_objectives_with_a_space_are_here() -> None:
    made = [o for m in METHODS.values() for phase in m.phases for o in phase.objectives()]
    found: set[str] = {o.name for o in made if isinstance(o, Objective) and hasattr(o, "space")}
    assert found == set(COMPARING)


def test_comparison_labels_in_favour_of_the_tail() -> None:
    stats = ClassStats(("a", "b", "c"), (60, 30, 10))
    expected = {"prior": [0.6, 0.3, 0.1], "uniform": [1 / 3] * 3, "inverse": [1 / 9, 2 / 9, 6 / 9]}
    for distribution, want in expected.items():
        made = LabelDraw(distribution).make(40_000, torch.Generator().manual_seed(0), stats)  # type: ignore[arg-type]
        assert (torch.bincount(made, minlength=3) / len(made)).tolist() == pytest.approx(want, abs=0.01)


# -- overlap


def test_pairs_lie_on_one_random_cycle() -> None:
    objective = ClassOverlap()
    seen = set()
    for seed in range(10):
        batch = example("ddpm", objective, seed=seed)
        partner = objective.partners(batch, torch.arange(N)).tolist()
        assert partner == next_on_cycle(batch.draws["cycle"].tolist())
        at, length = partner[0], 1
        while at != 0:
            at, length = partner[at], length + 1
        assert length == N
        seen.add(tuple(partner))
    assert len(seen) == 10


def test_released_separates_images_even_where_the_class_plays_no_part() -> None:
    """Predictions that ignore the class entirely: the exact form sees full overlap, the released one sees none."""
    exact, released = ClassOverlap(time="none"), ClassOverlap(exact=False, time="none")
    batch = example("ddpm", exact)
    batch = replace(batch, dropped=torch.zeros_like(batch.dropped))
    perfect = answer(batch, batch.noise)  # what denoising alone asks for
    assert float(exact.terms(batch, [perfect, perfect])["overlap"]) == 1.0
    assert float(released.terms(batch, [perfect])["overlap"]) < 0.5


# -- capacity


def test_equal_classes_and_equal_factors_leave_nothing_at_all() -> None:
    for n in (7, 49, 500):  # 1/49 added up 49 times is not 1
        batch = example(stats=ClassStats(tuple("abcdefg"), (n,) * 7))
        full, base = leaf(*batch.x0.shape), leaf(*batch.x0.shape, seed=1)
        objective = CapacityManipulation(consistency=0.3, diversity=0.3, bound=math.inf)
        terms = objective.terms(batch, [answer(batch, full), answer(batch, base)])
        loss = terms["consistent"].mean() + terms["diverse"].mean()
        assert float(loss.detach()) == 0
        assert float(terms["gap"].mean()) > 0.1
        assert not any(g.any() for g in gradients(loss, full, base))


def test_the_bound_leaves_small_gaps_alone_and_holds_for_large_ones() -> None:
    batch = example(dropped=torch.zeros(16, dtype=torch.bool))
    counts = torch.tensor(STATS.counts, dtype=torch.float64)
    least = (-0.2 * 4 / (counts * (1 / counts).sum()) * 0.1)[batch.labels]
    base, before = leaf(*batch.x0.shape).detach(), torch.zeros(16, dtype=torch.float64)

    def diverse(gap: float, **options: Any) -> Tensor:
        pair = [answer(batch, base + math.sqrt(gap)), answer(batch, base)]
        return CapacityManipulation(**options).terms(batch, pair)["diverse"]

    for exponent in range(-8, 9):
        bounded, free = diverse(10.0**exponent), diverse(10.0**exponent, bound=math.inf)
        assert (bounded >= least * (1 + 1e-12)).all()
        assert (bounded < before).all(), "a larger gap is still a lower loss"
        before = bounded
        if exponent <= -5:
            assert torch.allclose(bounded, free, rtol=2e-4, atol=0)
    assert torch.allclose(bounded, least, rtol=1e-6)
    assert (free < -1e5).all()


def test_the_rows_of_the_table_and_combinations() -> None:
    for name, base in (("cm", "denoising"), ("cm-oc", "transfer")):
        phase = METHODS[name].phases[0]
        first, cm = phase.objectives()
        assert (first.name, cm.name) == (base, "capacity")
        assert isinstance(cm, CapacityManipulation)
        assert (cm.weight, cm.consistency, cm.diversity, METHODS[name].omega) == (1.0, 1.0, 0.2, 1.5)
        assert (phase.make, phase.finish) == (LowRank(), merged)
    joined = get_method("ccua+cm").target
    assert [o.name for o in joined.objectives()] == ["denoising", "unconditional_contrast", "alignment", "capacity"]
    assert (joined.make, joined.finish) == (LowRank(), merged)
    assert joined.parts == (Part(distribution="tempered", factor=0.1),)
    step = make_step(joined.objectives(), PROCESSES["flow"], network="low rank")
    step(make_batches(step, PROCESSES["flow"]))["loss"].backward()
    assert all(p.grad is not None for p in step.parameters())
    assert (step.usage.passes, step.usage.rows) == (1, 48)
    assert [o.name for o in get_method("cm+cm-oc").target.objectives()] == ["capacity", "transfer"]
