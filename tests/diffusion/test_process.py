"""Processes against diffusers and against float64 formulas written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch import Tensor

from imbdiff.diffusion.process import DDPM, MIN_DIVISOR, NOISE_LEVELS, PROCESSES, Flow, Process, process_from_json
from imbdiff.runtime.errors import ConfigError

NAMES = sorted(PROCESSES)
DDPMS = [n for n in NAMES if n.startswith("ddpm")]
DIFFUSERS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


def reference_abar(schedule: str, steps: int = 1000) -> list[float]:
    """The cumulative product, step by step in Python floats."""
    out, product = [], 1.0
    for t in range(steps):
        if schedule == "linear":
            beta = 1e-4 + (0.02 - 1e-4) * t / (steps - 1)
        else:
            f = [math.cos(((t + k) / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in (0, 1)]
            beta = min(1 - f[1] / f[0], 0.999)
        product *= 1 - beta
        out.append(product)
    return out


def times(process: Process) -> Tensor:
    """All times of a discrete process; a flow at both ends and between."""
    return torch.arange(process.num_steps) if isinstance(process, DDPM) else torch.linspace(0, 1 - 2**-24, 1001)


def sample(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 2, 3, generator=g, dtype=dtype) * 2 - 1, torch.randn(n, 2, 3, generator=g, dtype=dtype)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_schedule(schedule: str) -> None:
    process = DDPM(schedule)  # type: ignore[arg-type]
    assert process.betas.dtype == torch.float64
    expected = torch.tensor(reference_abar(schedule), dtype=torch.float64)
    torch.testing.assert_close(process.alphas_cumprod, expected, rtol=1e-11, atol=0)
    theirs = DDPMScheduler(beta_schedule=DIFFUSERS[schedule])
    torch.testing.assert_close(process.betas.float(), theirs.betas, rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(process.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-9)
    assert float(process.betas[-1]) == {"linear": 0.02, "cosine": 0.999}[schedule]
    assert float(process.betas[-2]) < 0.8  # the cosine's last step alone is clamped


@pytest.mark.parametrize("name", DDPMS)
def test_add_noise_and_target_are_those_of_diffusers(name: str) -> None:
    process = PROCESSES[name]
    assert isinstance(process, DDPM)
    theirs = DDPMScheduler(beta_schedule=DIFFUSERS[process.schedule], prediction_type=process.prediction)
    t = times(process)
    x0, noise = sample(len(t), torch.float32)
    ours = process.add_noise(x0, noise, t)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs.add_noise(x0, noise, t), atol=5e-6, rtol=1e-5)
    expected = noise if process.prediction == "epsilon" else theirs.get_velocity(x0, noise, t)
    torch.testing.assert_close(process.target(x0, noise, t), expected, atol=5e-6, rtol=1e-5)


def test_flow_formulas() -> None:
    process, t = Flow(), times(Flow())
    x0, noise = sample(len(t))
    u = t.double().reshape(-1, 1, 1)
    torch.testing.assert_close(process.add_noise(x0, noise, t), (1 - u) * x0 + u * noise, rtol=1e-12, atol=0)
    torch.testing.assert_close(process.target(x0, noise, t), noise - x0, rtol=0, atol=0)
    x_t = process.add_noise(x0, noise, t)
    assert torch.equal(x_t[0], x0[0])
    torch.testing.assert_close(x_t[-1], noise[-1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_conversions_invert_at_all_times(name: str) -> None:
    """to_eps and to_x0 of the true target give back the noise and the image."""
    process = PROCESSES[name]
    t = times(process)
    x0, noise = sample(len(t))
    x_t, target = process.add_noise(x0, noise, t), process.target(x0, noise, t)
    a, s = process.coefficients(t)
    safe = a >= MIN_DIVISOR
    torch.testing.assert_close(process.to_eps(target, x_t, t), noise, atol=1e-9, rtol=0)
    recovered = process.to_x0(target, x_t, t)
    keep = safe if process.prediction == "epsilon" else torch.ones_like(safe)
    torch.testing.assert_close(recovered[keep], x0[keep], atol=1e-9, rtol=0)
    # Where a is clamped, results are smaller by a / MIN_DIVISOR, never infinite.
    shrink = (a / MIN_DIVISOR).clamp_max(1).reshape(-1, 1, 1)
    if process.prediction == "epsilon":
        torch.testing.assert_close(recovered, shrink * x0, atol=1e-9, rtol=0)
    assert int((~safe).sum()) == {"linear": 0, "cosine": 1}.get(getattr(process, "schedule", ""), 1)
    assert s.max() <= 1


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(
    u=st.floats(0, 1, exclude_max=True, allow_subnormal=False),
    x0=st.floats(-1, 1, allow_subnormal=False),
    noise=st.floats(-5, 5, allow_subnormal=False),
    wrong=st.floats(-5, 5, allow_subnormal=False),
)
def test_any_prediction_is_consistent(name: str, u: float, x0: float, noise: float, wrong: float) -> None:
    """x_t = a to_x0 + s to_eps for any prediction, right or wrong, where a is not clamped."""
    process = PROCESSES[name]
    t = process.time_from_uniform(torch.tensor([u], dtype=torch.float64))
    a, s = process.coefficients(t)
    x0_, noise_, wrong_ = (torch.tensor([[v]], dtype=torch.float64) for v in (x0, noise, wrong))
    x_t = process.add_noise(x0_, noise_, t)
    eps, clean = process.to_eps(wrong_, x_t, t), process.to_x0(wrong_, x_t, t)
    assert eps.isfinite().all()
    assert clean.isfinite().all()
    if a >= MIN_DIVISOR or process.prediction != "epsilon":
        torch.testing.assert_close(a * clean + s * eps, x_t, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_eps_scale_is_the_derivative_of_to_eps(name: str) -> None:
    process = PROCESSES[name]
    t = times(process)
    x_t, p = sample(len(t))
    change = process.to_eps(p + 1, x_t, t) - process.to_eps(p, x_t, t)
    torch.testing.assert_close(change[:, 0, 0], process.eps_scale(t).double(), atol=1e-9, rtol=0)
    if name == "ddpm-v":  # at t = 999 a paper's constants would mean something else without the conversion
        assert math.isclose(float(process.eps_scale(torch.tensor(999))) ** -2, 24_778, rel_tol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_noise_level_rises_from_clean_to_noise(name: str) -> None:
    process = PROCESSES[name]
    t = times(process)
    level = process.noise_level(t)
    assert float(level[0]) == 0
    assert 0.99 < float(level[-1]) <= 1
    assert (level.diff() > 0).all()
    a, s = process.coefficients(t)
    assert (a.diff() < 0).all()  # more time, less image
    assert (s.diff() > 0).all()
    assert float(level[len(t) // 2]) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_training_times_cover_the_range_evenly(name: str) -> None:
    process = PROCESSES[name]
    t = process.time_from_uniform((torch.arange(4000) + 0.5) / 4000)
    edge = process.time_from_uniform(torch.tensor([0.0, 1 - 2**-24]))
    model_time = process.model_time(torch.cat([edge, t]))
    assert model_time.min() == 0
    assert 998.9 < model_time.max() < 1000
    if isinstance(process, DDPM):
        assert torch.equal(t.bincount(minlength=1000), torch.full((1000,), 4))
        assert edge.tolist() == [0, 999]
    else:
        torch.testing.assert_close(t.double().mean(), torch.tensor(0.5, dtype=torch.float64), atol=1e-6, rtol=0)


def test_logit_normal_noise_levels_have_the_density_of_their_source() -> None:
    """Against the distribution function of a logit-normal variable, P(level < x) = Phi(logit x)."""
    u = (torch.arange(20_000) + 0.5) / 20_000
    levels = NOISE_LEVELS["logit-normal"](u).double()
    for x in (0.05, 0.3, 0.5, 0.8, 0.97):
        assert float((levels < x).double().mean()) == pytest.approx(norm.cdf(np.log(x / (1 - x))), abs=1e-4)
    edge = NOISE_LEVELS["logit-normal"](torch.tensor([0.0, 1 - 2**-24]))
    assert 0 <= edge[0] < edge[1] < 1


@pytest.mark.parametrize("name", NAMES)
def test_json(name: str) -> None:
    assert process_from_json(PROCESSES[name].to_json()) == PROCESSES[name]
    assert process_from_json(DDPM(num_steps=7).to_json()) == DDPM(num_steps=7)


def test_bad_values() -> None:
    for options in ({"schedule": "x"}, {"prediction": "sample"}, {"num_steps": 1}):
        with pytest.raises(ConfigError):
            DDPM(**options)
    with pytest.raises(ConfigError):
        process_from_json({"kind": "edm"})
