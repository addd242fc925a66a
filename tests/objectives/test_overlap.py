"""DiffROP: who is paired with whom, what the distance is, and what the released form measures instead."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.objective import Answer, Labels
from imbdiff.objectives.overlap import ClassOverlap
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import check_objective

from ..contract.cases import KINDS, LABELS, N
from .peers import after, one_batch, raw_of

each_kind = pytest.mark.parametrize("kind", KINDS)


def term(objective: ClassOverlap, batch: NoisyBatch, *predictions: Tensor) -> Tensor:
    answers = [Answer(p, {}, batch.condition, None) for p in predictions]
    return objective.terms(batch, answers)["overlap"]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("time", ["noise", "clean", "none"])
def test_conforms(exact: bool, time: str) -> None:
    check_objective(ClassOverlap(exact=exact, time=time))  # type: ignore[arg-type]


def test_pairs_lie_on_one_random_cycle() -> None:
    objective = ClassOverlap()
    seen = set()
    for seed in range(20):
        batch = one_batch(objective, "ddpm", seed=seed)
        partner = objective.partners(batch, torch.arange(N)).tolist()
        assert partner == after(batch.draws["cycle"].tolist())
        at, length = partner[0], 1
        while at != 0:
            at, length = partner[at], length + 1
        assert length == N
        seen.add(tuple(partner))
    assert len(seen) == 20


def test_the_second_request_is_for_the_partners_true_label() -> None:
    objective = ClassOverlap()
    batch = one_batch(objective, "ddpm")
    given, other = objective.requests(batch)
    assert given.condition == "given"
    assert isinstance(other.condition, Labels)
    assert other.condition.values.tolist() == [int(LABELS[j]) for j in after(batch.draws["cycle"].tolist())]
    assert len(ClassOverlap(exact=False).requests(batch)) == 1


@each_kind
def test_one_when_predictions_do_not_depend_on_the_class(kind: str) -> None:
    objective = ClassOverlap()
    batch = one_batch(objective, kind)
    same = torch.randn(batch.x0.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(term(objective, batch, same, same)) == 1.0


@each_kind
def test_in_eps_units_the_same_noises_give_the_same_number_whatever_the_network_predicts(kind: str) -> None:
    """Under eps, v and flow alike: the predictions are made from two noises at x_t, and d from those noises by hand."""
    for exact in (True, False):
        objective = ClassOverlap(exact=exact, space="eps")
        batch = one_batch(objective, kind)
        generator = torch.Generator().manual_seed(2)
        first, second = (torch.randn(batch.x0.shape, dtype=torch.float64, generator=generator) for _ in range(2))
        predictions = [batch.process.from_eps(e, batch.x_t, batch.t) for e in (first, second)]
        raw, d = raw_of(kind, batch), 0.0
        for i, j in enumerate(after(batch.draws["cycle"].tolist())):
            if LABELS[i] != LABELS[j] and not (exact and raw.dropped[i]):
                other = second[i] if exact else first[j]
                d += raw.level[i] * float((first[i] - other).square().mean()) / N
        got = term(objective, batch, *predictions[: 2 if exact else 1])
        assert float(got) == pytest.approx(1 / (1 + d), rel=1e-6)


@each_kind
def test_gradients_are_equal_and_opposite_and_push_apart(kind: str) -> None:
    objective = ClassOverlap()
    batch = one_batch(objective, kind)
    generator = torch.Generator().manual_seed(2)
    own, other = (
        torch.randn(batch.x0.shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)
    )
    to_own, to_other = torch.autograd.grad(term(objective, batch, own, other), (own, other))
    assert torch.allclose(to_own, -to_other, atol=1e-15)
    takes_part = (objective.partners(batch, LABELS) != LABELS) & ~batch.dropped
    assert 3 < int(takes_part.sum()) < N
    assert bool((to_own[~takes_part] == 0).all())
    inner = (-to_own * (own - other)).flatten(1).sum(1)  # a step against the gradient lengthens the difference
    assert bool((inner[takes_part] > 0).all())


def test_released_separates_images_even_where_the_class_plays_no_part() -> None:
    """Predictions that ignore the class entirely: the exact form sees full overlap, the released one sees none."""
    exact, released = ClassOverlap(time="none"), ClassOverlap(exact=False, time="none")
    batch = one_batch(exact, "ddpm")
    batch = replace(batch, dropped=torch.zeros_like(batch.dropped))
    perfect = batch.noise  # what denoising alone asks for
    assert float(term(exact, batch, perfect, perfect)) == 1.0
    assert float(term(released, batch, perfect)) < 0.5


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="time"):
        ClassOverlap(time="late")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="space"):
        ClassOverlap(space="x0")  # type: ignore[arg-type]
