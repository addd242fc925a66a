"""DiffRC's pair-wise loss: the formula, whose gradient it is, and groups that are too small."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.batch import NoisyBatch, class_counts
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Answer
from imbdiff.objectives.pair_diversity import PairDiversity
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import check_objective
from imbdiff.training.parts import Part, check_groups
from imbdiff.training.step import TrainingStep
from tests.contract.cases import STATS, make_batches, make_step
from tests.contract.oracles import Raw, cosine

from .against_formula import KINDS, leaf


def formula(raw: Raw, networks: Any, gamma: float, null: bool, tau: float = 1.0) -> Tensor:
    """Mean over anchors of KL(p_tar || p_sou), by loops."""
    target = [raw.clean(i, raw.call(networks["model"], i, raw.null if null else raw.given[i])[0]) for i in range(raw.n)]
    source = [raw.clean(i, raw.call(networks["source"], i, raw.null)[0]).detach() for i in range(raw.n)]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(raw.n):
        others = [j for j in range(raw.n) if j != i and raw.group[j] == raw.group[i]]
        heat = tau * (1 + gamma * raw.counts[raw.labels[i]])
        tar = [(cosine(target[i].flatten(), target[j].flatten()) / heat).exp() for j in others]
        sou = [(cosine(source[i].flatten(), source[j].flatten()) / tau).exp() for j in others]
        for a, b in zip(tar, sou, strict=True):
            p, q = a / sum(tar), b / sum(sou)
            total = total + p * (p / q).log()
    return total / raw.n


def test_counts_are_copied_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = class_counts(STATS, torch.device("cpu"))
    assert first.tolist() == list(STATS.counts)
    assert class_counts(STATS, torch.device("cpu")) is first
    assert class_counts(ClassStats(STATS.names, STATS.counts[::-1]), torch.device("cpu")) is not first
    step = make_step([PairDiversity()], PROCESSES["ddpm"])
    batches = make_batches(step, PROCESSES["ddpm"])
    step(batches)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("made anew, and copied to the device, in every step")

    monkeypatch.setattr(torch, "tensor", refused)
    monkeypatch.setattr(torch, "from_numpy", refused)
    step(batches)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{}, {"gamma": 0.0, "reduction": "mean"}, {"gamma": 0.7, "condition": "null", "weight": 1.3, "temperature": 0.2}],
)
def test_it_is_the_formula(kind: str, options: dict[str, Any]) -> None:
    objective = PairDiversity(**options)
    step = make_step([objective], PROCESSES[kind])
    batches = make_batches(step, PROCESSES[kind])
    assert set(batches["grouped"].labels.tolist()) == {1, 2, 3}
    assert bool(batches["grouped"].dropped.any())
    out = step(batches)
    out["loss"].backward()
    raw = Raw(kind, batches["grouped"], STATS.counts)
    expected = formula(raw, step.networks, objective.gamma, objective.condition == "null", objective.temperature)
    if objective.reduction == "sum":  # Eq. 9 sums over all images of all classes
        expected = expected * raw.n
    assert float(out["pair_diversity/kl"]) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(expected.detach()) > 1e-4
    named = dict(step.networks["model"].named_parameters())
    grads = torch.autograd.grad(objective.weight * expected, list(named.values()), allow_unused=True)
    largest = max(float(g.abs().max()) for g in grads if g is not None)
    assert largest > 1e-6
    for (name, parameter), grad in zip(named.items(), grads, strict=True):
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        want = torch.zeros_like(parameter) if grad is None else grad
        assert float((got - want).abs().max()) <= 1e-6 * max(float(want.abs().max()), 1e-3 * largest), name


def test_constants_are_the_papers() -> None:
    objective = PairDiversity()
    assert (objective.gamma, objective.weight, objective.part, objective.source) == (0.1, 0.5, "grouped", "source")
    assert objective.condition == "given"


def test_conforms() -> None:
    check_objective(PairDiversity(), networks=("model", "source"))
    check_objective(PairDiversity(gamma=0, condition="null"), networks=("model", "source"))


def grouped(**fields: Any) -> NoisyBatch:
    objective = PairDiversity()
    return replace(make_batches(make_step([objective], PROCESSES["ddpm"]), PROCESSES["ddpm"])["grouped"], **fields)


def term(objective: PairDiversity, batch: NoisyBatch, target: Tensor, source: Tensor) -> Tensor:
    made = [Answer(x, {}, batch.condition, None) for x in (target, source)]
    return objective.terms(batch, made)["kl"]


def test_equal_models_without_gamma_differ_by_nothing() -> None:
    batch, x = grouped(), leaf(16, 1, 2, 3)
    assert torch.allclose(term(PairDiversity(gamma=0), batch, x, x.detach()), torch.zeros(16).double(), atol=1e-12)
    assert bool((term(PairDiversity(gamma=0.1), batch, x, x.detach()) > 1e-6).all())


def test_no_gradient_reaches_the_source_even_if_it_could() -> None:
    batch, x, y = grouped(), leaf(16, 1, 2, 3), leaf(16, 1, 2, 3, seed=1)
    grads = torch.autograd.grad(term(PairDiversity(), batch, x, y).sum(), [x, y], allow_unused=True)
    assert grads[0] is not None
    assert float(grads[0].abs().max()) > 1e-6
    assert grads[1] is None
    process = PROCESSES["ddpm"]
    networks = {name: make_step([Denoising()], process).networks["model"] for name in ("model", "source")}
    step = TrainingStep(networks, [PairDiversity()])
    step({"grouped": batch})["loss"].backward()
    assert all(p.grad is None for p in step.networks["source"].parameters())


def test_the_source_is_asked_without_label_at_the_same_noisy_images() -> None:
    own, source = PairDiversity(source="teacher").requests(grouped())
    assert (own.condition, own.network, own.grad, own.rows) == ("given", "model", True, None)
    assert (source.condition, source.network, source.grad, source.rows) == ("null", "teacher", False, None)


def test_groups_of_one_or_two_and_rows_in_none_give_nothing() -> None:
    group = torch.tensor([0, 1, 1, 2, 2, 2, *([-1] * 10)])
    x, y = leaf(16, 1, 2, 3), leaf(16, 1, 2, 3, seed=1)
    value = term(PairDiversity(), grouped(group=group), x, y)
    assert torch.allclose(value[:3], torch.zeros(3).double(), atol=1e-15)
    assert bool((value[3:6] > 1e-6).all())
    assert bool((value[6:] == 0).all())
    (grad,) = torch.autograd.grad(value.sum(), x)
    assert bool((grad[6:] == 0).all())
    assert bool((grad[3:6] != 0).any())


def test_a_known_value() -> None:
    """Three images: the source finds the others alike, the target one of them equal and one opposite."""
    group = torch.tensor([0, 0, 0, *([-1] * 13)])
    batch = grouped(group=group, labels=torch.full((16,), 1))
    up = torch.ones(16, 1, 2, 3, dtype=torch.float64)
    clean = up.clone()
    clean[2] = -1.0

    def eps(x0: Tensor) -> Tensor:
        a, s = (c.reshape(-1, 1, 1, 1) for c in batch.process.coefficients(batch.t))
        return (batch.x_t - a * x0) / s

    heat = 1 + 0.1 * 12
    p = 1 / (1 + math.exp(-2 / heat))  # of the equal one against the opposite one
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    value = term(PairDiversity(gamma=0.1, reduction="mean"), batch, eps(clean), eps(up))
    assert float(value[0]) == pytest.approx(expected, rel=1e-6)
    assert float(value[2]) == pytest.approx(0.0, abs=1e-9)  # to the third both are equally far


def test_half_precision_around_it_does_not_reach_it() -> None:
    batch = grouped()
    batch = replace(batch, x_t=batch.x_t.float())
    x, y = leaf(16, 1, 2, 3).detach().float(), leaf(16, 1, 2, 3, seed=1).detach().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = term(PairDiversity(), batch, x, y)
    exact = term(PairDiversity(), replace(batch, x_t=batch.x_t.double()), x.double(), y.double())
    assert torch.allclose(inside.double(), exact, rtol=1e-3, atol=1e-6)


def test_groups_too_small_and_bad_values_are_refused() -> None:
    good = Part("grouped", groups=2, group_size=3)
    check_groups([Part(), good], [Denoising(), PairDiversity()])
    check_groups([Part()], [PairDiversity(weight=0.0)])
    for parts in ([Part()], [Part("grouped")], [Part("grouped", groups=8, group_size=2)]):
        with pytest.raises(ConfigError, match="fewer than 3"):
            check_groups(parts, [PairDiversity()])
    for gamma in (-0.1, math.inf, math.nan):
        with pytest.raises(ConfigError, match="gamma"):
            PairDiversity(gamma=gamma)
