"""CCUA's alignment: the formula, both gradients, and its weights in time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Answer
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import check_objective
from tests.contract.cases import make_batches, make_step
from tests.contract.oracles import Raw

from .against_formula import KINDS, answer, assert_follows, example, gradients, leaf


def formula(raw: Raw, network: Any, time: str = "noise", eps: bool = False) -> dict[str, Tensor]:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(raw.n):
        if raw.dropped[i]:
            continue
        given, null = (raw.call(network, i, label)[0] for label in (raw.labels[i], raw.null))
        if eps:
            given, null = raw.eps(i, given), raw.eps(i, null)
        s = {"noise": raw.level[i], "none": 1.0, "clean": 1 - raw.level[i]}[time]
        square = sum((a - b) ** 2 for a, b in zip(given.flatten(), null.flatten(), strict=True))
        total = total + s * square / given.numel()
    return {"gap": total / raw.n}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_formula(kind: str) -> None:
    assert_follows(Alignment(), kind, formula)


@pytest.mark.parametrize("kind", ["ddpm-v", "flow"])
@pytest.mark.parametrize("time", ["none", "clean"])
def test_switches_are_their_formulas(kind: str, time: Any) -> None:
    values = [
        assert_follows(Alignment(time=time), kind, lambda r, n: formula(r, n, time))["gap"],
        assert_follows(Alignment(time=time, space="eps"), kind, lambda r, n: formula(r, n, time, True))["gap"],
        assert_follows(Alignment(), kind, formula)["gap"],
    ]
    assert len({round(v, 9) for v in values}) == 3, "switches that switch nothing"


def test_conforms() -> None:
    check_objective(Alignment())
    check_objective(Alignment(time="clean", space="eps", weight=0.05), ratio=False)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_into_both_branches_are_equal_and_opposite(kind: str) -> None:
    batch = example(kind)
    given, null = leaf(*batch.x0.shape), leaf(*batch.x0.shape, seed=1)
    terms = Alignment().terms(batch, [answer(batch, given), answer(batch, null)])
    to_given, to_null = gradients(terms["gap"].sum(), given, null)
    assert torch.equal(to_given, -to_null)
    moved = to_given.flatten(1).abs().sum(1) > 0
    assert torch.equal(moved, ~batch.dropped & (batch.noise_level > 0))
    assert 0 < int(batch.dropped.sum()) < len(batch)


def test_it_counts_more_at_noisy_times_under_every_process() -> None:
    """The same gap weighs t / T under eps and v and t under flow, more with more noise; "clean" turns it."""
    for kind in KINDS:
        batch = example(kind)
        t = batch.process.time_from_uniform(torch.linspace(0.05, 0.95, len(batch)))
        batch = replace(batch, t=t, noise_level=batch.process.noise_level(t), dropped=torch.zeros(16, dtype=torch.bool))
        one = torch.ones_like(batch.x0)
        pair = [Answer(one, {}, batch.labels, None), Answer(torch.zeros_like(one), {}, batch.labels, None)]
        noisy, clean = (Alignment(time=time).terms(batch, pair)["gap"] for time in ("noise", "clean"))
        assert torch.allclose(noisy, batch.noise_level.double())
        assert (noisy.diff() > 0).all()
        assert (clean.diff() < 0).all()


def test_all_labels_dropped_leaves_nothing() -> None:
    batch = example(dropped=torch.ones(16, dtype=torch.bool))
    pair = [answer(batch, leaf(*batch.x0.shape)), answer(batch, leaf(*batch.x0.shape, seed=1))]
    assert not Alignment().terms(batch, pair)["gap"].any()


def test_with_others_it_adds_one_row_per_image() -> None:
    step = make_step([Denoising(), ClassBalancing(), Alignment()], PROCESSES["ddpm"])
    step(make_batches(step, PROCESSES["ddpm"]))
    assert (step.usage.passes, step.usage.rows) == (1, 48)


def test_an_unknown_weighting_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown weighting in time 'late'"):
        Alignment(time="late")  # type: ignore[arg-type]
