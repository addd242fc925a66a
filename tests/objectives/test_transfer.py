"""T2H: where targets lead, how often, and when they stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.transfer import Transfer
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import check_objective

from ..contract.cases import KINDS, LABELS, STATS, N
from .peers import one_batch, posterior, raw_of

each_kind = pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("direction", ["t2h", "h2t", "full"])
def test_conforms(direction: str) -> None:
    check_objective(Transfer(direction=direction, tau=0.5, weight=0.7))  # type: ignore[arg-type]


@each_kind
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_an_image_is_drawn_as_often_as_its_posterior_says(kind: str, tau: float) -> None:
    objective = Transfer(direction="full", tau=tau)
    batch = at(one_batch(objective, kind), 0.75)
    grid = 500
    seen = torch.zeros(N, N, dtype=torch.float64)
    for k in range(grid):
        z = objective.sources(drawn(batch, torch.full((N,), (k + 0.5) / grid)))
        seen[torch.arange(N), z] += 1 / grid
    raw = raw_of(kind, batch)
    law = torch.tensor([posterior(raw, i, tau) for i in range(N)], dtype=torch.float64)
    assert law.max() < 0.99
    assert torch.allclose(seen, law, atol=1.5 / grid)


@each_kind
def test_directions_respect_how_frequent_classes_are(kind: str) -> None:
    moved = {"t2h": 0, "h2t": 0}
    ties = 0
    for k in range(40):
        full = Transfer(direction="full")
        batch = drawn(at(one_batch(full, kind, seed=k), 0.9), torch.rand(N, generator=torch.Generator().manual_seed(k)))
        z = full.sources(batch)
        own = torch.arange(N)
        for direction in ("t2h", "h2t"):
            got = Transfer(direction=direction).sources(batch)  # type: ignore[arg-type]
            more = COUNTS[LABELS[z]] - COUNTS[LABELS]
            ok = more >= 0 if direction == "t2h" else more <= 0
            assert torch.equal(got, torch.where(ok, z, own))
            moved[direction] += int((LABELS[got] != LABELS).sum())
            ties += int(((more == 0) & (got != own)).sum())
    assert min(*moved.values(), ties) > 20


@each_kind
def test_targets_lead_to_the_clean_image_drawn(kind: str) -> None:
    """In whatever the network predicts: the target at x_t says x0_z, and the noise that leads there."""
    objective = Transfer(direction="full")
    batch = at(one_batch(objective, kind), 0.8)
    z, target = objective.sources(batch), objective.target(batch)
    assert int((z != torch.arange(N)).sum()) > 3
    raw = raw_of(kind, batch)
    for i in range(N):
        assert torch.allclose(raw.clean(i, target[i]), raw.x0[z[i]], atol=1e-10)
        assert torch.allclose(raw.a[i] * raw.x0[z[i]] + raw.s[i] * raw.eps(i, target[i]), raw.x[i], atol=1e-10)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_that_stays_keeps_its_target_to_the_bit(kind: str, dtype: torch.dtype) -> None:
    objective = Transfer()
    batch = at(one_batch(objective, kind, dtype=dtype), 0.6)
    stays = objective.sources(batch) == torch.arange(N)
    assert 0 < int(stays.sum()) < N
    assert torch.equal(objective.target(batch)[stays], batch.target[stays])


@each_kind
def test_targets_move_at_noisy_times_only(kind: str) -> None:
    """Nothing moves where the posterior is sharp; at nothing but noise every image is as likely as any other."""
    objective = Transfer(direction="full")
    batch = one_batch(objective, kind, dtype=torch.float32)
    for u in (0.0, 0.05):
        assert torch.equal(objective.target(at(batch, u)), at(batch, u).target)
    shares = []
    for u in (0.3, 0.5, 1 - 2**-24):
        tries = [drawn(at(batch, u), torch.full((N,), (k + 0.5) / 100)) for k in range(100)]
        stay = torch.stack([objective.sources(b) == torch.arange(N) for b in tries])
        shares.append(float(stay.double().mean()))
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(1 / N, abs=0.02)


def test_near_duplicates_are_told_apart_in_single_precision() -> None:
    """Two images 0.01 apart at a brightness of 100: squared distances taken by products are rounding error there."""
    objective = Transfer(direction="full")
    batch = one_batch(objective, "flow", dtype=torch.float32)
    level = 100.0 + 10 * torch.arange(N)
    level[1] = level[0] + 0.01
    x0 = level.reshape(N, 1, 1, 1).expand_as(batch.x0).contiguous()
    batch = at(replace(batch, x0=x0, noise=torch.zeros_like(batch.noise)), 0.008)
    odds = 6 * (0.992 * 0.01 / 0.008) ** 2 / 2  # of row 0 against row 1, in both directions: 6 pixels, a and s of t
    stay = [objective.sources(drawn(batch, torch.full((N,), (k + 0.5) / 1000))) == torch.arange(N) for k in range(1000)]
    shares = torch.stack(stay).double().mean(0)
    assert torch.allclose(shares[:2], torch.sigmoid(torch.tensor(odds)).double(), atol=3e-3)
    assert bool((shares[2:] == 1).all())


def test_no_gradient_flows_through_the_target() -> None:
    objective = Transfer()
    batch = one_batch(objective, "ddpm-v")
    x0 = batch.x0.clone().requires_grad_()
    assert not objective.target(replace(batch, x0=x0)).requires_grad


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="direction"):
        Transfer(direction="tail")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tau"):
        Transfer(tau=float("nan"))
