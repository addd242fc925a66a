"""The dispersive loss: the formula, its bounds, its digits, and what it costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.dispersive import Dispersive
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import check_objective
from tests.contract.cases import make_batches, make_step
from tests.contract.oracles import Raw, cosine

from .against_formula import KINDS, Largest, answer, assert_follows, example, gradients, leaf


def formula(raw: Raw, network: Any, tau: float = 0.5, distance: str = "l2") -> dict[str, Tensor]:
    h = [raw.call(network, i, raw.given[i])[1] for i in range(raw.n)]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(raw.n):
        for j in range(raw.n):
            if distance == "l2":
                d = sum((a - b) ** 2 for a, b in zip(h[i], h[j], strict=True)) / len(h[i])
            else:
                d = 1 - cosine(h[i], h[j])
            total = total + torch.as_tensor(-d / tau).exp()
    return {"spread": (total / raw.n**2).log()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_formula(kind: str) -> None:
    assert_follows(Dispersive(), kind, formula)


@pytest.mark.parametrize("switch", [{"tau": 1.0}, {"distance": "cosine"}])
def test_switches_are_their_formulas(switch: dict[str, Any]) -> None:
    with_switch = assert_follows(Dispersive(**switch), "flow", lambda r, n: formula(r, n, **switch))
    plain = assert_follows(Dispersive(), "flow", formula)
    assert abs(with_switch["spread"] / plain["spread"] - 1) > 1e-3, "a switch that switches nothing"


def test_conforms() -> None:
    check_objective(Dispersive())
    check_objective(Dispersive(distance="cosine"), processes=("flow",))


def spread(z: Tensor, **options: Any) -> Tensor:
    batch = example()
    return Dispersive(**options).terms(batch, [answer(batch, quarter=z)])["spread"]


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_all_the_same_is_nought_and_has_no_gradient(distance: str) -> None:
    z = torch.ones(16, 6, dtype=torch.float64).requires_grad_()
    assert spread(z, distance=distance).item() == pytest.approx(0, abs=1e-12)
    (to_z,) = gradients(spread(z, distance=distance), z)
    assert to_z.abs().max() < 1e-12


def test_far_apart_is_minus_log_n_and_stays_finite() -> None:
    """Also in float32 and where every exp(-D) but the diagonal's underflows."""
    z = (1e4 * torch.randn(16, 32, generator=torch.Generator().manual_seed(0))).requires_grad_()
    value = spread(z)
    assert value.item() == pytest.approx(-math.log(16), rel=1e-6)
    assert gradients(value, z)[0].isfinite().all()


def test_two_heaps_have_a_known_value() -> None:
    """16 rows in heaps of 4 and 12 at distance D = 2: (4^2 + 12^2 + 2 x 48 e^(-2 / tau)) / 16^2."""
    z = torch.zeros(16, 6, dtype=torch.float64)
    z[:4, :3] = 2.0  # || . ||^2 = 12 in 6 dimensions
    expected = math.log((16 + 144 + 96 * math.exp(-2 / 0.5)) / 256)
    assert spread(z).item() == pytest.approx(expected, rel=1e-12)


def test_a_step_against_the_gradient_spreads() -> None:
    z = (0.1 * leaf(16, 6).detach()).requires_grad_()
    (to_z,) = gradients(spread(z), z)
    assert (z - to_z).detach().var(0).sum() > z.detach().var(0).sum()
    assert to_z.sum(0).abs().max() < 1e-12, "moving all alike should change nothing"


def test_features_far_from_nought_keep_their_digits() -> None:
    """|| z ||^2 is 10,000 times the distances: products without a common centre would lose them in float32."""
    z = 100 + torch.randn(16, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert spread(z.float()).item() == pytest.approx(spread(z).item(), rel=1e-4)


def test_autocast_does_not_take_their_digits() -> None:
    """Pairs of nearly the same row, far from the others: products in bfloat16 would set them apart."""
    z = 10 * torch.randn(8, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.cat([z, z + 0.01])
    with torch.autocast("cpu", torch.bfloat16):
        found = spread(z.float())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(spread(z).item(), rel=1e-4)


def test_memory_is_rows_by_rows_and_not_by_features() -> None:
    batch, z = example(), torch.randn(16, 1, 32, 32, requires_grad=True)
    with Largest() as seen:
        Dispersive().terms(batch, [answer(batch, quarter=z)])["spread"].backward()
    assert seen.numel == z.numel()


def test_it_rides_on_the_pass_of_the_denoising_loss() -> None:
    step = make_step([Denoising(), Dispersive()], PROCESSES["ddpm"])
    step(make_batches(step, PROCESSES["ddpm"]))
    assert (step.usage.passes, step.usage.rows, step.usage.predicted_rows) == (1, 16, 16)


@pytest.mark.parametrize("options", [{"tau": 0.0}, {"distance": "l1"}])
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="dispersive"):
        Dispersive(**options)
