"""Samplers: float64 restatements of whole trajectories, and worlds whose exact answer is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from imbdiff.diffusion.process import DDPM, PROCESSES, Flow, Process, process_from_json
from imbdiff.diffusion.schedulers import make_scheduler, process_of, process_times, start
from imbdiff.integrations.guided import described
from imbdiff.runtime.errors import ConfigError
from tests.diffusion.worlds import best_prediction, draw, ode_end, standard_normal

PAIRS = [(p, s) for p in ("ddpm", "ddpm-cosine-v") for s in ("ddpm", "ddim", "dpm++", "unipc")]
PAIRS += [("flow", s) for s in ("euler", "dpm++", "unipc")]
DETERMINISTIC = [(p, s) for p, s in PAIRS if s != "ddpm"]
MU, SD = 0.2, 0.1


def ab(process: Process, t: Tensor | None) -> tuple[float, float]:
    """(a, s) at one time; None is the clean end."""
    if t is None:
        return 1.0, 0.0
    a, s = process.coefficients(t.reshape(1))
    return float(a), float(s)


def predicted_x0(process: Process, x: Tensor, t: Tensor, mu: float, sd: float) -> Tensor:
    a, s = ab(process, t)
    return mu + a * sd**2 * (x - a * mu) / (a**2 * sd**2 + s**2)


def steps_of(name: str, process: Process, steps: int) -> list[Tensor]:
    return list(process_times(make_scheduler(name, process, steps), process))


def restated_ddim(process: Process, times: list[Tensor], x: Tensor, mu: float, sd: float) -> Tensor:
    """Song et al. 2021, Eq. 12 with sigma = 0, x0 clipped to [-1, 1] and the noise that goes with it."""
    for t, following in zip(times, [*times[1:], None], strict=True):
        (a, s), (a_next, s_next) = ab(process, t), ab(process, following)
        x0 = predicted_x0(process, x, t, mu, sd).clamp(-1, 1)
        x = a_next * x0 + s_next * (x - a * x0) / s
    return x


def restated_dpm(process: Process, times: list[Tensor], x: Tensor, mu: float, sd: float) -> Tensor:
    """Lu et al. 2022, Algorithm 2 (2M); first order in the first step and in the last, which ends at x0."""
    before: tuple[Tensor, float] | None = None
    for t, following in zip(times, [*times[1:], None], strict=True):
        (a, s), (a_next, s_next) = ab(process, t), ab(process, following)
        x0 = predicted_x0(process, x, t, mu, sd)
        if following is None:
            return x0
        h = math.log(a_next / s_next) - math.log(a / s)
        direction = x0
        if before is not None:
            r = before[1] / h
            direction = (1 + 1 / (2 * r)) * x0 - before[0] / (2 * r)
        x = s_next / s * x - a_next * math.expm1(-h) * direction
        before = (x0, h)
    return x


def restated_euler(process: Process, times: list[Tensor], x: Tensor, mu: float, sd: float) -> Tensor:
    for t, following in zip(times, [*times[1:], torch.tensor(0.0)], strict=True):
        u = t.double()
        x0 = predicted_x0(process, x, t, mu, sd)
        x = x + (following.double() - u) * (x - x0) / u  # velocity = noise - x0, and x = (1 - u) x0 + u noise
    return x


def restated_ddpm(process: Process, times: list[Tensor], x: Tensor, mu: float, sd: float) -> Tensor:
    """Ho et al. 2020, Eq. 7 with strided times; variance 1 - abar_t / abar_next ("fixed large")."""
    generator = torch.Generator().manual_seed(0)
    for t, following in zip(times, [*times[1:], None], strict=True):
        abar, abar_next = ab(process, t)[0] ** 2, ab(process, following)[0] ** 2
        beta = 1 - abar / abar_next
        x0 = predicted_x0(process, x, t, mu, sd).clamp(-1, 1)
        x = (abar_next**0.5 * beta * x0 + (1 - beta) ** 0.5 * (1 - abar_next) * x) / (1 - abar)
        if t > 0:
            x = x + beta**0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return x


def rounding(process: str, steps: int) -> float:
    """diffusers' tables are float32; in few large steps from a = 5e-5 to the image, x0 = (x - s eps) / a shows it."""
    if process != "ddpm-cosine-v" or steps > 3:
        return 2e-4
    return 2e-2 if steps == 1 else 4e-3


@pytest.mark.parametrize("process", ["ddpm", "ddpm-cosine-v"])
@pytest.mark.parametrize(("name", "steps", "within"), [("dpm++", 20, 0.03), ("unipc", 20, 0.06)])
def test_fine_detail_survives_few_steps(process: str, name: str, steps: int, within: float) -> None:
    """Evenly spaced times leave half of it at 20 steps: times are spaced by noise level."""
    end = draw(name, PROCESSES[process], steps, standard_normal(), 0.2, 0.1)
    assert abs(float(end.std()) - 0.1) < within * 0.1
    assert abs(float(end.mean()) - 0.2) < 1e-3


RESTATED: dict[str, Callable[..., Tensor]] = {
    "ddim": restated_ddim,
    "ddpm": restated_ddpm,
    "dpm++": restated_dpm,
    "euler": restated_euler,
}


@pytest.mark.parametrize(("process", "name"), [(p, s) for p, s in PAIRS if s in RESTATED])
def test_trajectories_equal_their_float64_restatement(process: str, name: str) -> None:
    """Few steps, and counts that do not divide 1,000: diffusers' own DDIM and trailing spacing fail here."""
    p, x = PROCESSES[process], standard_normal(64)
    for steps in (1, 2, 3, 20, 61)[name == "ddpm" :]:
        expected = RESTATED[name](p, steps_of(name, p, steps), x, MU, SD)
        found = draw(name, p, steps, x, MU, SD)
        torch.testing.assert_close(found, expected, atol=rounding(process, steps), rtol=0, msg=f"{steps} steps")


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_x0_is_clipped_before_the_step(name: str) -> None:
    """Data wider than [-1, 1]: the same restatement, which clips, must still hold, and clipping must show."""
    p, x = DDPM(), standard_normal(64)
    drawn = draw(name, p, 25, x, 0.0, 1.5)
    torch.testing.assert_close(drawn, RESTATED[name](p, steps_of(name, p, 25), x, 0.0, 1.5), atol=5e-4, rtol=0)
    assert drawn.abs().max() <= 1 + 1e-5


@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc", "ddpm"])
def test_any_number_of_steps_is_that_many_distinct_times(name: str) -> None:
    scheduler = make_scheduler(name, DDPM(), 2)
    every = range(1 if name != "ddpm" else 2, 1001)
    # levels of noise are sought step by step: all 1,000 times would take half a minute
    for steps in [*every[:40], *every[40 :: 23 if name in ("ddim", "ddpm") else 97], 999, 1000]:
        start(scheduler, steps)
        times = scheduler.timesteps
        assert len(times) == steps, steps
        assert times[0] == 999
        assert times[-1] == 0 if name == "ddpm" else times[-1] >= 0
        assert (times.diff() < 0).all()
        if hasattr(scheduler, "sigmas"):
            assert len(scheduler.sigmas) == steps + 1
            assert (scheduler.sigmas.diff() < 0).all()
            a, s = DDPM().coefficients(times)  # the solver is where the network is asked
            torch.testing.assert_close(scheduler.sigmas[:-1].double(), s / a, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("process", "name"), DETERMINISTIC)
def test_many_steps_reach_the_exact_solution(process: str, name: str) -> None:
    p, x, steps = PROCESSES[process], standard_normal(128), 300 if name in ("ddim", "euler") else 120
    first = steps_of(name, p, steps)[0]
    exact = ode_end(p, x, float(first), MU, SD)
    drawn = draw(name, p, steps, x)
    slack = 0.06 if name in ("ddim", "euler") else 0.03
    assert float((drawn - exact).abs().max()) < slack * float((exact - MU).abs().max()) + 1e-3
    assert float(drawn.mean()) == pytest.approx(MU, abs=2e-3)
    assert float(drawn.std(correction=0)) == pytest.approx(SD, rel=slack)


@pytest.mark.parametrize(("process", "steps"), [("ddpm", 250), ("ddpm-cosine-v", 250)])
def test_ancestral_sampling_reaches_the_right_distribution(process: str, steps: int) -> None:
    """The clean end included: noise that stays in the images would widen them."""
    drawn = draw("ddpm", PROCESSES[process], steps, standard_normal(4096))
    assert float(drawn.mean()) == pytest.approx(MU, abs=0.005)
    assert float(drawn.std()) == pytest.approx(SD, rel=0.05)


@pytest.mark.parametrize("name", ["dpm++", "unipc", "ddim", "ddpm"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_small_error_of_the_network_stays_small(name: str, schedule: str) -> None:
    """The cosine schedule starts at a = 5e-5: without clipping, an error of 0.01 in eps moved the mean by -1.1."""
    p = DDPM(schedule)  # type: ignore[arg-type]
    scheduler = make_scheduler(name, p, 20)
    options = {"generator": torch.Generator().manual_seed(0)} if name == "ddpm" else {}
    x = standard_normal(2048)
    for t in scheduler.timesteps:
        prediction = best_prediction(p, x, t.expand(len(x)), MU, SD) + 0.01
        x = scheduler.step(prediction, t, x, **options, return_dict=False)[0]
    assert float(x.mean()) == pytest.approx(MU, abs=0.02)


def test_a_flows_time_is_where_its_sample_is() -> None:
    """diffusers cuts the multistep solvers' flow times to integers; the sample is at sigma."""
    for name in ("euler", "dpm++", "unipc"):
        scheduler = make_scheduler(name, Flow(), 30)
        times = process_times(scheduler, Flow())
        assert torch.equal(times, scheduler.sigmas[:-1])
        torch.testing.assert_close(times, scheduler.timesteps / 1000, atol=1.1e-3, rtol=0)
        assert 0.99 < times[0] <= 1
        assert scheduler.sigmas[-1] == 0


def test_what_does_not_fit_is_refused() -> None:
    for name, process, steps in [
        ("euler", DDPM(), 10),
        ("ddim", Flow(), 10),
        ("ddpm", Flow(), 10),
        ("heun", DDPM(), 10),
        ("ddpm", DDPM(), 1),
        ("dpm++", DDPM(), 0),
        ("dpm++", DDPM(num_steps=100), 101),
    ]:
        with pytest.raises(ConfigError) as caught:
            make_scheduler(name, process, steps)
        assert caught.value.remedy


OUTSIDE = """
from diffusers import DDIMScheduler
from imbdiff.diffusion.schedulers import Sampler

def make(process, steps):
    return DDIMScheduler(num_train_timesteps=process.num_steps, trained_betas=process.betas.numpy(),
                         prediction_type=process.prediction, timestep_spacing="trailing", clip_sample=True)

MINE = Sampler("DDIM of diffusers", "50 steps", make)
WRONG = make
"""


def test_samplers_from_outside(outside: Callable[..., None]) -> None:
    outside(OUTSIDE, "samplers", their_ddim="MINE")
    process, ends = DDPM(), []
    for sampler in ("module:outside:MINE", "their-ddim", "ddim"):  # the same equation, where steps divides T
        scheduler = make_scheduler(sampler, process, 20)
        x = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            x = scheduler.step(best_prediction(process, x, t.expand(8), MU, SD), t, x, return_dict=False)[0]
        ends.append(x)
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(*ends[1:], atol=1e-3, rtol=1e-3)
    for name, remedy in [
        ("module:outside:MIEN", "did you mean MINE"),
        ("module:outside:WRONG", "schedulers.Sampler"),
        ("their-dim", "did you mean their-ddim"),
    ]:
        with pytest.raises(ConfigError) as caught:
            make_scheduler(name, process, 10)
        assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    "values",
    [
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": True},
        {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195},
        {"trained_betas": [0.0001 + 0.00001 * i for i in range(1000)]},
    ],
)
def test_schedules_of_pretrained_models_are_those_of_diffusers(values: dict) -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(**values, prediction_type="v_prediction")
    process = process_of(theirs.config)
    assert process == process_from_json(json.loads(json.dumps(process.to_json())))
    assert process.prediction == "v_prediction"
    assert isinstance(process, DDPM)
    last = process.alphas_cumprod[-1].item()
    assert torch.allclose(process.alphas_cumprod[:-1].float(), theirs.alphas_cumprod[:-1], rtol=2e-4, atol=1e-7)
    assert last == pytest.approx(
        2**-24 if "rescale_betas_zero_snr" in values else theirs.alphas_cumprod[-1].item(), 1e-4
    )
    # a Gaussian of deviation 0.5 has a closed prediction, and 50 steps give it back
    for sampler, error in (("ddim", 0.06), ("dpm++", 0.02), ("unipc", 0.02)):  # the first is of order one
        scheduler = make_scheduler(sampler, process, 50, None)
        x = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for t in scheduler.timesteps:
            a, s = process.coefficients(t)
            v = x * a * s * (1 - 0.25) / (0.25 * a**2 + s**2)
            x = scheduler.step(v, t, x, return_dict=False)[0]
        assert x.std().item() == pytest.approx(0.5, abs=error), sampler


def test_a_shifted_flow_is_sampled_at_the_times_of_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(10)
    process = process_of(described(theirs))
    assert process == Flow(shift=3.0) == process_from_json(process.to_json())
    ours = make_scheduler("euler", process, 10, None)
    assert torch.equal(process_times(ours, process), theirs.sigmas[:-1])
    # Flux: by the number of tokens, exp(mu) at both ends of the line
    dynamic = {**described(theirs), "use_dynamic_shifting": True}
    assert [process_of(dynamic, n).shift for n in (256, 4096)] == pytest.approx(np.exp([0.5, 1.15]).tolist(), 1e-5)
