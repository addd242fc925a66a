"""What stands for the denoising loss: where transfer's targets lead, and re-weightings of rows. Formulas are in
`tests.contract.oracles`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imbdiff.data.stats import ClassStats
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.reweighting import EffectiveNumber, Focal, MinSNR, class_weights
from imbdiff.objectives.transfer import Transfer
from tests.contract.cases import LABELS, STATS, N
from tests.contract.oracles import posterior

from .answers import answer, example, gradients, leaf, raw_of

COUNTS = torch.tensor(STATS.counts)


def at(batch: NoisyBatch, u: float) -> NoisyBatch:
    """The batch at the time that the uniform number `u` stands for."""
    t = batch.process.time_from_uniform(torch.full((len(batch),), u))
    x_t = batch.process.add_noise(batch.x0, batch.noise, t)
    return replace(batch, t=t, x_t=x_t, noise_level=batch.process.noise_level(t))


def drawn(batch: NoisyBatch, first: Tensor) -> NoisyBatch:
    """The batch with other first numbers of its draw."""
    draw = batch.draws["transfer"].clone()
    draw[:, 0] = first
    return replace(batch, draws={"transfer": draw})


# -- transfer


@pytest.mark.parametrize(("kind", "tau"), [("ddpm", 0.0), ("flow", 1.0)])
def test_an_image_is_chosen_as_often_as_its_posterior_says(kind: str, tau: float) -> None:
    objective = Transfer(direction="full", tau=tau)
    batch = at(example(kind, objective), 0.75)
    grid = 300
    seen = torch.zeros(N, N, dtype=torch.float64)
    for k in range(grid):
        z = objective.sources(drawn(batch, torch.full((N,), (k + 0.5) / grid)))
        seen[torch.arange(N), z] += 1 / grid
    raw = raw_of(kind, batch)
    expected = torch.tensor([posterior(raw, i, tau) for i in range(N)], dtype=torch.float64)
    assert expected.max() < 0.99
    assert torch.allclose(seen, expected, atol=1.5 / grid)


def test_directions_respect_how_frequent_classes_are() -> None:
    moved, ties, own = {"t2h": 0, "h2t": 0}, 0, torch.arange(N)
    for k in range(20):
        full = Transfer(direction="full")
        batch = at(example("ddpm-v", full, seed=k), 0.9)
        z = full.sources(batch)
        for direction in ("t2h", "h2t"):
            got = Transfer(direction=direction).sources(batch)  # type: ignore[arg-type]
            more = COUNTS[LABELS[z]] - COUNTS[LABELS]
            ok = more >= 0 if direction == "t2h" else more <= 0
            assert torch.equal(got, torch.where(ok, z, own))
            moved[direction] += int((LABELS[got] != LABELS).sum())
            ties += int(((more == 0) & (got != own)).sum())
    assert min(*moved.values(), ties) > 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_that_stays_keeps_its_target_bit_for_bit_and_the_target_has_no_gradient(dtype: torch.dtype) -> None:
    objective = Transfer()
    for kind in ("ddpm", "ddpm-v", "flow"):
        batch = at(example(kind, objective, dtype=dtype), 0.6)
        stays = objective.sources(batch) == torch.arange(N)
        assert 0 < int(stays.sum()) < N
        target = objective.target(replace(batch, x0=batch.x0.clone().requires_grad_()))
        assert not target.requires_grad
        assert torch.equal(target[stays], batch.target[stays])
        assert not torch.equal(target[~stays], batch.target[~stays])


def test_near_duplicates_are_told_apart_in_single_precision() -> None:
    """Two images 0.01 apart at a brightness of 100: squared distances taken by products are rounding error there."""
    objective = Transfer(direction="full")
    batch = example("flow", objective, dtype=torch.float32)
    level = 100.0 + 10 * torch.arange(N)
    level[1] = level[0] + 0.01
    x0 = level.reshape(N, 1, 1, 1).expand_as(batch.x0).contiguous()
    batch = at(replace(batch, x0=x0, noise=torch.zeros_like(batch.noise)), 0.008)
    odds = 6 * (0.992 * 0.01 / 0.008) ** 2 / 2  # of row 0 against row 1, in both directions: 6 pixels, a and s of t
    stay = [objective.sources(drawn(batch, torch.full((N,), (k + 0.5) / 500))) == torch.arange(N) for k in range(500)]
    shares = torch.stack(stay).double().mean(0)
    assert torch.allclose(shares[:2], torch.sigmoid(torch.tensor(odds)).double(), atol=5e-3)
    assert bool((shares[2:] == 1).all())


# -- re-weighting


def terms(objective: Any, prediction: Tensor, **fields: Any) -> Tensor:
    batch = example(**fields)
    return objective.terms(batch, [answer(batch, prediction)])["mse"]


def test_min_snr_caps_clean_times_alone() -> None:
    batch = example("ddpm")
    t = torch.tensor([10, 900])
    batch = replace(batch, t=t, x0=batch.x0[:2], noise=torch.zeros_like(batch.x0[:2]), x_t=batch.x_t[:2])
    error = MinSNR().terms(batch, [answer(batch, torch.ones_like(batch.x0))])["mse"]
    assert float(error[0]) < 0.02  # eps: SNR is 600 there, and counts 5
    assert float(error[1]) == 1.0


def test_weights_between_none_and_inverse_frequency() -> None:
    stats, cpu = ClassStats(("a", "b", "c"), (500, 100, 5)), torch.device("cpu")

    def weights(beta: float, mean: str = "classes") -> list[float]:
        return class_weights(stats, beta, mean, cpu).tolist()

    assert weights(0.0) == pytest.approx([1, 1, 1])
    inverse = [1 / n for n in stats.counts]
    assert weights(1.0) == pytest.approx([3 * w / sum(inverse) for w in inverse])
    assert weights(1 - 1e-9) == pytest.approx(weights(1.0), rel=1e-5)
    assert weights(1.0, "images") == pytest.approx([605 / 3 * w for w in inverse])
    for beta in (0.9, 0.9999):
        w = weights(beta)
        assert sum(w) == pytest.approx(3)
        assert w[2] > w[1] >= w[0] > 0
    # beyond 1 / (1 - beta) images more do not count: (1 - 0.9^500) and (1 - 0.9^100) are both 1
    assert weights(0.9)[0] == pytest.approx(weights(0.9)[1], rel=1e-4)


def test_balanced_classes_leave_the_denoising_loss_as_it_is() -> None:
    prediction = leaf(*example().x0.shape).detach()
    plain, even = terms(Denoising(), prediction), ClassStats(("a", "b", "c", "d"), (9, 9, 9, 9))
    for mean in ("classes", "images"):
        assert torch.allclose(terms(EffectiveNumber(mean=mean), prediction, stats=even), plain, rtol=1e-6)  # type: ignore[arg-type]
    assert torch.equal(terms(Focal(gamma=0.0), prediction), plain)


def test_focal_against_the_noise_level_does_not_re_weight_times() -> None:
    """Errors that depend on the noise level alone are no reason to weigh any row more; as published they are."""
    batch = replace(example(), noise_level=(torch.arange(16) // 4) * 0.3)
    size = (0.1 + batch.noise_level.double())[:, None, None, None]
    made = [answer(batch, batch.target + size)]
    plain, relative, published = (o.terms(batch, made)["mse"] for o in (Denoising(), Focal(), Focal(against="nothing")))
    assert torch.allclose(relative, plain, rtol=1e-4)
    assert float((published / plain).max() / (published / plain).min()) > 5


@pytest.mark.parametrize("against", ["noise_level", "nothing"])
def test_no_error_at_all_stays_finite(against: Any) -> None:
    batch = example()
    prediction = batch.target.clone().requires_grad_()
    found = Focal(against=against).terms(batch, [answer(batch, prediction)])["mse"]
    assert not found.any()
    assert not gradients(found.sum(), prediction)[0].any()
