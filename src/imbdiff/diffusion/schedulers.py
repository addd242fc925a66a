"""diffusers' samplers for our processes: one table, and nothing of their arithmetic rewritten.

Times are the process's own: betas are handed over as numbers, so that training and sampling cannot disagree. What
had to be worked around in diffusers (seen in 0.42) is explained in `start`, `process_times` and at each sampler, and
tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbdiff.diffusion.process import DDPM, Flow, Process
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.tables import lookup


@dataclass(frozen=True)
class Sampler:
    """One row of the table.

    Attributes:
        what: it is, and where it was published.
        steps: network evaluations that it is good for.
        make: (process, steps) -> a scheduler as diffusers' are, whose `set_timesteps` was not called yet: `timesteps`
            and `step(output, t, x, return_dict=False)` are used, with a flow also `sigmas`. It raises a ConfigError for
            a process or a number of steps that does not fit. Ours of DDPM processes clip predicted clean images to
            [-1, 1] in every step; `make_scheduler` turns that off for models of an unbounded space.
    """

    what: str
    steps: str
    make: Callable[[Process, int], Any]


def make_scheduler(name: str, process: Process, steps: int, bound: float | None = 1.0) -> Any:
    """A diffusers scheduler with its `steps` timesteps set.

    Args:
        name: a name in `SAMPLERS`, ``module:PACKAGE.MODULE:NAME`` of a `Sampler`, or an entry point of the group
            ``imbdiff.samplers``; "ddpm" and "ddim" need a DDPM process, "euler" a flow.
        process: the model's process.
        steps: number of steps, 1 to the process's own number of steps.
        bound: of model space (`Codec.bound`); None: predicted clean images are not clipped.

    Raises:
        ConfigError: unknown name, a sampler that does not fit the process, too many steps, or a process that needs the
            clipping in a model space without a bound.
    """
    sampler = lookup("samplers", SAMPLERS, name, kind=Sampler)
    if steps < 1:
        raise ConfigError(f"cannot sample in {steps} steps", "use at least 1")
    scheduler = sampler.make(process, steps)
    if bound is None:
        check_unbounded(process)
        clipping = [key for key in ("clip_sample", "thresholding") if getattr(scheduler, "config", {}).get(key)]
        if clipping:
            scheduler.register_to_config(**dict.fromkeys(clipping, False))
    start(scheduler, steps)
    return scheduler


def check_unbounded(process: Process) -> None:
    """Refuses a process whose samplers are of no use where clean images are not clipped.

    Where data has variance 1, a constant error of 0.01 in every prediction moves what 20 steps give by 0.06 with eps
    and linear betas, by 0.02 with v and 0.01 with a flow, but with eps on the cosine schedule, whose first time
    multiplies it by 20,000, by 0.2 to 15: tests/diffusion/test_samplers.py.

    Raises:
        ConfigError: eps on the cosine schedule.
    """
    if isinstance(process, DDPM) and (process.schedule, process.prediction) == ("cosine", "epsilon"):
        raise ConfigError(
            "predicting eps on the cosine schedule needs clean images that can be clipped to [-1, 1], and the model "
            "space of this codec has no such bound",
            "use --model.process ddpm-cosine-v or flow",
        )


def start(scheduler: Any, steps: int) -> None:
    """Sets `steps` timesteps and forgets earlier steps, so that a scheduler can generate one batch after another.

    For 62 step counts of 1 to 1000 (61, 103, 121, ...) diffusers' trailing spacing rounds to one time too many, t = -1,
    where the tables are read from their noisy end: that time is taken out. The ancestral sampler adds noise in every
    step but that from t = 0, also in the one that ends at the clean image (20 steps: noise of standard deviation 0.16
    stays in it): its last time is 0. Steps are counted from the first time
    instead of looked up by its value, which is not unique once times are rounded to integers.
    """
    scheduler.set_timesteps(steps)
    if scheduler.timesteps[-1] < 0:
        scheduler.timesteps = scheduler.timesteps[:-1]
        if hasattr(scheduler, "sigmas"):
            scheduler.sigmas = torch.cat([scheduler.sigmas[:-2], scheduler.sigmas[-1:]])
        scheduler.num_inference_steps = steps
    if type(scheduler).__name__ == "DDPMScheduler" and steps > 1:
        scheduler.timesteps[-1] = 0
    config = getattr(scheduler, "config", {})
    by_noise = config.get("use_lu_lambdas") or config.get("use_karras_sigmas")
    if by_noise and hasattr(scheduler, "sigmas"):
        align(scheduler)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)


def align(scheduler: Any) -> None:
    """Makes times chosen by noise level distinct integers, and the solver's noise levels those of these times.

    diffusers rounds such times for the network but goes on with the levels before rounding, and many steps round to the
    same time.
    """
    t = scheduler.timesteps.tolist()
    for i in reversed(range(len(t) - 1)):
        t[i] = max(t[i], t[i + 1] + 1)
    t[0] = min(t[0], scheduler.config.num_train_timesteps - 1)
    for i in range(1, len(t)):
        t[i] = min(t[i], t[i - 1] - 1)
    scheduler.timesteps = torch.tensor(t, dtype=scheduler.timesteps.dtype)
    abar = scheduler.alphas_cumprod[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1 - abar) / abar).sqrt().to(scheduler.sigmas), scheduler.sigmas[-1:]])


def begin_at(scheduler: Any, process: Process, strength: float) -> int:
    """Moves the time that is nearest to the noise level `strength`, in (0, 1], there; returns the number of its step.

    Otherwise strengths would be rounded to the times of samplers that space few of them by noise level: UniPC on the
    cosine schedule would begin at 0.22 for 0.25 and for 0.5. From outside, samplers that count steps by the value of
    their times keep these; the first of at most `strength` is taken.
    """
    times, t = process_times(scheduler, process), process.time_from_uniform(torch.tensor([strength]))[0]
    levels, level = process.noise_level(times.cpu()), process.noise_level(t)
    if level >= levels[0]:
        return 0
    ancestral = type(scheduler).__name__ == "DDPMScheduler"  # whose last time stays 0
    if not ancestral and not hasattr(scheduler, "set_begin_index"):
        return min(int((levels > level).sum()), len(levels) - 1)
    i = int((levels[: len(levels) - ancestral] - level).abs().argmin())
    if isinstance(process, Flow):
        scheduler.sigmas[i], scheduler.timesteps[i] = t, 1000 * t
        return i
    whole = max(int(t), int(times[i + 1]) + 1 if i + 1 < len(times) else 0)
    scheduler.timesteps[i] = whole
    if hasattr(scheduler, "sigmas"):
        abar = scheduler.alphas_cumprod[whole]
        scheduler.sigmas[i] = ((1 - abar) / abar).sqrt()
    return i


def process_times(scheduler: Any, process: Process) -> Tensor:
    """(steps,) the process's time at each step.

    A flow's time is the scheduler's sigma: its multistep solvers cut `timesteps` to integers, up to 0.001 below
    the time that the sample is at.
    """
    if isinstance(process, Flow):
        return scheduler.sigmas[: len(scheduler.timesteps)].float()
    return scheduler.timesteps


def process_of(config: Mapping[str, Any], positions: int = 4096) -> Process:
    """The process that a diffusers scheduler configuration describes.

    Args:
        positions: of an image, where the network looks at it (Flux's tokens): by it a flow may be shifted.

    Raises:
        ConfigError: a schedule that this package does not have.
    """
    kind = str(config.get("_class_name", ""))
    if config.get("num_train_timesteps", 1000) != 1000:
        raise ConfigError(f"a process of {config['num_train_timesteps']} steps cannot be read", _KNOWN)
    if config.get("use_flow_sigmas") or kind.startswith("FlowMatch"):
        if not config.get("use_dynamic_shifting"):
            return Flow(shift=float(config.get("flow_shift" if config.get("use_flow_sigmas") else "shift", 1.0)))
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        return Flow(shift=round(math.exp(low + (high - low) * (positions - least) / (most - least)), 6))
    schedules: dict[str, Any] = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
    schedule, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    common: dict[str, Any] = {"prediction": prediction, "zero_snr": bool(config.get("rescale_betas_zero_snr"))}
    if (betas := config.get("trained_betas")) is not None:
        for name in ("linear", "cosine"):
            if len(betas) == 1000 and np.allclose(DDPM(name, prediction).betas, betas, rtol=1e-4):
                return DDPM(name, **common)
        return DDPM("given", given=tuple(map(float, betas)), **common)
    if schedule not in schedules:
        raise ConfigError(f"the noise schedule {schedule!r} cannot be read", _KNOWN)
    ends = (float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02)))
    plain = schedule == "squaredcos_cap_v2" or (schedule == "linear" and np.allclose(ends, (1e-4, 0.02)))
    return DDPM(schedules[schedule], ends=None if plain else ends, **common)


_KNOWN = "known are 1,000 betas, linear, scaled_linear, cosine or listed, predicting epsilon or v, and flows"


def _ddpm(process: Process, steps: int) -> Any:
    from diffusers import DDPMScheduler

    common = _of_ddpm("ddpm", process, steps)
    if steps < 2:
        raise ConfigError(
            "ancestral sampling takes at least 2 steps", "use 250 or more, or another sampler for few steps"
        )
    # x0 is clipped before the posterior mean is formed. Released code of this field clips after, where it does
    # nothing. beta_t as variance: "fixed large".
    return DDPMScheduler(**common, variance_type="fixed_large", clip_sample=True)


def _ddim(process: Process, steps: int) -> Any:
    from diffusers import DPMSolverMultistepScheduler

    # The first-order solver is DDIM. diffusers' own DDIMScheduler steps by T // steps whatever the times are: where
    # steps does not divide T it arrives elsewhere than where the network is asked next (600 steps: noise is left).
    return DPMSolverMultistepScheduler(**_of_ddpm("ddim", process, steps), **_CLIPPING, solver_order=1)


# Both solvers below need the clipping: x0 = (x_t - s eps) / a multiplies an error of eps by 157 at the first time of
# the linear schedule and by 20,000 at that of the cosine; without it a network trained for minutes generates saturated
# noise. Times evenly spaced in t end with a jump from t = 49 (20 steps) to the clean image: of detail with standard
# deviation 0.10 they leave 0.05. Spaced in log SNR (Lu et al. 2022) 20 steps leave 0.101, and Karras et al.'s spacing,
# the one that UniPC takes in diffusers, 0.106: tests/diffusion/test_samplers.py.


def _dpm(process: Process, steps: int) -> Any:
    from diffusers import DPMSolverMultistepScheduler

    if isinstance(process, Flow):
        return DPMSolverMultistepScheduler(**_FLOW, flow_shift=process.shift)
    return DPMSolverMultistepScheduler(**_of_ddpm("dpm++", process, steps), **_CLIPPING, use_lu_lambdas=True)


def _unipc(process: Process, steps: int) -> Any:
    from diffusers import UniPCMultistepScheduler

    if isinstance(process, Flow):
        return UniPCMultistepScheduler(**_FLOW, flow_shift=process.shift)
    return UniPCMultistepScheduler(**_of_ddpm("unipc", process, steps), **_CLIPPING, use_karras_sigmas=True)


def _euler(process: Process, steps: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    if isinstance(process, DDPM):
        raise ConfigError("the euler sampler is for flow models", "use ddim, dpm++ or unipc with a DDPM process")
    if not isinstance(process, Flow):
        raise _unknown(process)
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=process.shift)


# of the solvers: x0 to [-1, 1], in diffusers by "thresholding" with a maximum of 1
_CLIPPING: dict[str, Any] = {"thresholding": True, "sample_max_value": 1.0, "final_sigmas_type": "zero"}
_FLOW: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "final_sigmas_type": "zero",
}


def _of_ddpm(name: str, process: Process, steps: int) -> dict[str, Any]:
    """What every scheduler of a DDPM process takes."""
    if isinstance(process, Flow):
        raise ConfigError(f"the {name} sampler is for DDPM processes", "use euler, dpm++ or unipc with a flow")
    if not isinstance(process, DDPM):
        raise _unknown(process)
    if steps > process.num_steps:
        raise ConfigError(f"{steps} steps are more than the process has ({process.num_steps})", "use fewer")
    return {
        "num_train_timesteps": process.num_steps,
        "trained_betas": process.betas.numpy(),
        "prediction_type": process.prediction,
        # starts at the noisiest time (Lin et al. 2024); leading spacing would never visit it
        "timestep_spacing": "trailing",
    }


def _unknown(process: Process) -> ConfigError:
    return ConfigError(f"no samplers are known for {type(process).__name__}", "give a Sampler of your own for it")


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler("ancestral sampling (Ho et al. 2020)", "250 to 1000 steps", _ddpm),
    "ddim": Sampler("DDIM, eta = 0 (Song et al. 2021)", "50 to 250 steps", _ddim),
    "dpm++": Sampler("DPM-Solver++(2M) (Lu et al. 2022)", "15 to 30 steps", _dpm),
    "unipc": Sampler("UniPC (Zhao et al. 2023)", "10 to 25 steps", _unipc),
    "euler": Sampler("Euler steps along a flow", "25 to 100 steps", _euler),
}
