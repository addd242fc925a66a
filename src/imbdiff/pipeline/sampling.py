"""How images are drawn: what the configuration says, with everything settled that it leaves to the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from imbdiff.config import RunConfig, SampleConfig
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.guidance import ClassifierFree, Guidance, Guided
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.prototype_guidance import Norm, prototype_guidance
from imbdiff.methods import method_of
from imbdiff.runtime.device import resolve_device


@dataclass(frozen=True)
class Sampling:
    """How images are drawn, with everything settled that a configuration leaves to the method.

    `prototype_scale` is None where neither the method nor the configuration says anything of prototype guidance.
    """

    sampler: str
    steps: int
    omega: float
    interval: tuple[float, float]
    batch_size: int
    prototype_scale: float | None
    prototype_norm: Norm
    prototype_adaptive: bool
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["auto", "on", "off"] = "auto"

    def guidance(self, model: DiffusionModel) -> Guidance:
        """Classifier-free guidance, and that of the model's guide if it has one."""
        free = ClassifierFree(self.omega, model.null, model.process, self.interval)
        if not isinstance(model.guide, PrototypeEncoder) or not self.prototype_scale:
            return free
        outer = prototype_guidance(
            model.guide, self.prototype_scale, sampler=self.sampler, steps=self.steps,
            norm=self.prototype_norm, adaptive=self.prototype_adaptive, interval=self.interval,
        )  # fmt: skip
        return Guided(outer, free)


def prototype_options(config: RunConfig) -> list[str]:
    """The options of prototype guidance that the configuration sets, as they are written."""
    names = ("prototype_scale", "prototype_norm", "prototype_adaptive")
    default = SampleConfig()
    return [f"--sample.{n}" for n in names if getattr(config.sample, n) != getattr(default, n)]


def sampling(config: RunConfig) -> Sampling:
    """What the configuration says; where it leaves that open, what the method says, and otherwise dpm++ in 20 steps.

    A method's number of steps goes with its sampler; another one takes 20.
    """
    method, options = method_of(config), config.sample
    own = method.sampler
    if own in ("ddpm", "ddim") and config.model.process == "flow":
        own = "euler"
    own = own or "dpm++"
    sampler = options.sampler or own
    scale = method.prototype_scale if method.guided else None
    return Sampling(
        sampler=sampler,
        steps=options.steps or (method.steps if sampler == own else None) or 20,
        omega=method.omega if options.omega is None else options.omega,
        interval=options.interval,
        batch_size=options.batch_size or (64 if resolve_device(config.device).type == "cpu" else 512),
        prototype_scale=scale if options.prototype_scale is None else options.prototype_scale,
        prototype_norm=options.prototype_norm,
        prototype_adaptive=options.prototype_adaptive,
        precision=options.precision,
        compile=options.compile,
    )
