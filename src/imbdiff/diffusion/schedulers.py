"""diffusers' samplers for our processes: one table, and nothing of their arithmetic rewritten.

Times are the process's own: betas are handed over as numbers, so that training and sampling cannot disagree.
"""

from __future__ import annotations

from typing import Any

from imbdiff.diffusion.process import DDPM, Flow, Process
from imbdiff.runtime.errors import ConfigError

#: name -> (what it is, whether every step adds noise, network evaluations that it is good for)
SAMPLERS: dict[str, tuple[str, bool, str]] = {
    "ddpm": ("ancestral sampling (Ho et al. 2020)", True, "250 to 1000 steps"),
    "ddim": ("DDIM, eta = 0 (Song et al. 2021)", False, "50 to 250 steps"),
    "dpm++": ("DPM-Solver++(2M) (Lu et al. 2022)", False, "15 to 30 steps"),
    "unipc": ("UniPC (Zhao et al. 2023)", False, "10 to 25 steps"),
    "euler": ("Euler steps along a flow", False, "25 to 100 steps"),
}


def make_scheduler(name: str, process: Process, steps: int) -> Any:
    """A diffusers scheduler with its `steps` timesteps set.

    Args:
        name: a name in `SAMPLERS`; "ddpm" and "ddim" need a DDPM process, "euler" a flow.
        process: the model's process.
        steps: number of steps, 1 to the process's own number of steps.

    Raises:
        ConfigError: unknown name, a sampler that does not fit the process, or too many steps.
    """
    if name not in SAMPLERS:
        raise ConfigError(f"unknown sampler {name!r}", f"choose one of {', '.join(SAMPLERS)}")
    if steps < 1:
        raise ConfigError(f"cannot sample in {steps} steps", "use at least 1")
    if isinstance(process, DDPM):
        scheduler = _for_ddpm(name, process, steps)
    elif isinstance(process, Flow):
        scheduler = _for_flow(name)
    else:
        raise ConfigError(f"no samplers are known for {type(process).__name__}")
    scheduler.set_timesteps(steps)
    return scheduler


def _for_ddpm(name: str, process: DDPM, steps: int) -> Any:
    from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    if name == "euler":
        raise ConfigError("the euler sampler is for flow models", "use ddim, dpm++ or unipc with a DDPM process")
    if steps > process.num_steps:
        raise ConfigError(f"{steps} steps are more than the process has ({process.num_steps})", "use fewer")
    common: dict[str, Any] = {
        "num_train_timesteps": process.num_steps,
        "trained_betas": process.betas.numpy(),
        "prediction_type": process.prediction,
    }
    # Trailing spacing starts at the noisiest time (Lin et al. 2024); leading spacing would never visit it.
    if name == "ddpm":
        # x0 is clipped before the posterior mean is formed. Released code of this field clips after, where it does
        # nothing. beta_t as variance: "fixed large".
        return DDPMScheduler(**common, variance_type="fixed_large", clip_sample=True, timestep_spacing="trailing")
    if name == "ddim":
        return DDIMScheduler(**common, clip_sample=True, set_alpha_to_one=True, timestep_spacing="trailing")
    solver = DPMSolverMultistepScheduler if name == "dpm++" else UniPCMultistepScheduler
    return solver(**common, timestep_spacing="trailing", final_sigmas_type="zero")


def _for_flow(name: str) -> Any:
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    if name in ("ddpm", "ddim"):
        raise ConfigError(f"the {name} sampler is for DDPM processes", "use euler, dpm++ or unipc with a flow")
    if name == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    solver = DPMSolverMultistepScheduler if name == "dpm++" else UniPCMultistepScheduler
    return solver(
        num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero"
    )
