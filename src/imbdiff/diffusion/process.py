"""How model-space data is noised, and what the network predicts.

Every process writes a noisy sample as ``x_t = a(t) x_0 + s(t) noise`` and differs in a, s and the prediction:

======== ============================ ==================================== =======================
process  x_t                          prediction                           source
======== ============================ ==================================== =======================
ddpm     sqrt(abar) x0 + sqrt(1-abar) n   eps: n                           Ho et al. 2020
ddpm     the same                     v: sqrt(abar) n - sqrt(1-abar) x0    Salimans and Ho 2022
flow     (1-t) x0 + t n               velocity: n - x0                     Liu et al. 2022, Lipman et al. 2022
======== ============================ ==================================== =======================

Time is always large where there is more noise. Code bases whose flow runs the other way (t = 1 is data, SiT) weight
by 1 - t what is weighted by `noise_level` here.

Shapes: t (B,), everything else (B, ...) with t's coefficients broadcast over the trailing dimensions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from imbdiff.runtime.errors import ConfigError

#: Divisions by a(t) or s(t) never use a divisor below this. The linear schedule's a is 0.0064 at t = 999, so it is
#: untouched; the cosine schedule's last step (a = 4e-5) and the ends of a flow are what this is for.
MIN_DIVISOR = 1e-3


def expand(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) with as many dimensions as `like`."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))


class Process(ABC):
    """A noising process together with the network's prediction target."""

    #: "epsilon", "v_prediction" or "flow_prediction": diffusers' names
    prediction: str

    @abstractmethod
    def time_from_uniform(self, u: Tensor) -> Tensor:
        """(B,) uniform numbers in [0, 1) -> (B,) training times."""

    @abstractmethod
    def noise_level(self, t: Tensor) -> Tensor:
        """(B,) float in [0, 1]: the time *fraction*, 0 = clean, 1 = noise (not a signal-to-noise ratio)."""

    @abstractmethod
    def model_time(self, t: Tensor) -> Tensor:
        """(B,) the number in [0, 1000) that goes into the network's time embedding."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s), each (B,) float: x_t = a x_0 + s noise."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]: ...

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t = a x_0 + s noise."""
        a, s = self._ab(t, x0)
        return a * x0 + s * noise

    def _ab(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        a, s = self.coefficients(t)
        return expand(a, like).to(like.dtype), expand(s, like).to(like.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict for (x0, noise, t)."""
        a, s = self._ab(t, x0)
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "v_prediction":
            return a * noise - s * x0
        return noise - x0

    def to_eps(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that `prediction` implies at x_t."""
        a, s = self._ab(t, x_t)
        if self.prediction == "epsilon":
            return prediction
        if self.prediction == "v_prediction":
            return s * x_t + a * prediction
        return x_t + a * prediction

    def to_x0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean image that `prediction` implies at x_t; the division by a is clamped at MIN_DIVISOR."""
        a, s = self._ab(t, x_t)
        if self.prediction == "epsilon":
            return (x_t - s * prediction) / a.clamp_min(MIN_DIVISOR)
        if self.prediction == "v_prediction":
            return a * x_t - s * prediction
        return x_t - s * prediction

    def eps_scale(self, t: Tensor) -> Tensor:
        """(B,) d eps / d prediction: a *difference* of predictions times this is the difference in eps units."""
        a, _ = self.coefficients(t)
        return torch.ones_like(a) if self.prediction == "epsilon" else a


@dataclass(frozen=True)
class DDPM(Process):
    """Discrete-time variance-preserving diffusion (Ho et al. 2020), t in {0, ..., T - 1}.

    Attributes:
        schedule: "linear" (beta from 1e-4 to 0.02, scaled by 1000 / T) or "cosine" (Nichol and Dhariwal 2021, Eq. 17).
        prediction: "epsilon" or "v_prediction".
        num_steps: T >= 2.
    """

    schedule: Literal["linear", "cosine"] = "linear"
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    num_steps: int = 1000

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine"):
            raise ConfigError(f"unknown noise schedule {self.schedule!r}", "use linear or cosine")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ConfigError(f"DDPM cannot predict {self.prediction!r}", "use epsilon or v_prediction")
        if self.num_steps < 2:
            raise ConfigError(f"num_steps={self.num_steps} must be at least 2")

    @cached_property
    def betas(self) -> Tensor:
        """(T,) float64."""
        n = self.num_steps
        if self.schedule == "linear":
            scale = 1000 / n
            return torch.linspace(1e-4 * scale, min(0.02 * scale, 0.999), n, dtype=torch.float64)

        def abar(u: Tensor) -> Tensor:
            return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        u = torch.arange(n, dtype=torch.float64) / n
        return (1 - abar(u + 1 / n) / abar(u)).clamp_max(0.999)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float64: abar."""
        return torch.cumprod(1 - self.betas, 0)

    def time_from_uniform(self, u: Tensor) -> Tensor:
        return (u * self.num_steps).long().clamp_max(self.num_steps - 1)

    def noise_level(self, t: Tensor) -> Tensor:
        return t.float() / self.num_steps

    def model_time(self, t: Tensor) -> Tensor:
        return t.float() * (1000 / self.num_steps)

    @cached_property
    def _tables(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.device not in self._tables:  # one copy per device: no host-to-device copy in the loop
            abar = self.alphas_cumprod.to(t.device)
            self._tables[t.device] = (abar.sqrt(), (1 - abar).sqrt())
        a, s = self._tables[t.device]
        return a[t], s[t]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "ddpm", **asdict(self)}


@dataclass(frozen=True)
class Flow(Process):
    """Linear flow matching (rectified flow): x_t = (1 - t) x_0 + t noise, t in [0, 1); predicts noise - x_0."""

    prediction: Literal["flow_prediction"] = "flow_prediction"

    def time_from_uniform(self, u: Tensor) -> Tensor:
        return u.float()

    def noise_level(self, t: Tensor) -> Tensor:
        return t.float()

    def model_time(self, t: Tensor) -> Tensor:
        return t.float() * 1000

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return 1 - t, t

    def to_json(self) -> dict[str, Any]:
        return {"kind": "flow"}


#: name on the command line -> process
PROCESSES: dict[str, Process] = {
    "ddpm": DDPM(),
    "ddpm-v": DDPM(prediction="v_prediction"),
    "ddpm-cosine": DDPM(schedule="cosine"),
    "ddpm-cosine-v": DDPM(schedule="cosine", prediction="v_prediction"),
    "flow": Flow(),
}


def _logit_normal(u: Tensor) -> Tensor:
    return torch.sigmoid(math.sqrt(2) * torch.erfinv(2 * u - 1))


#: name on the command line -> where the noise level at which a row is trained falls, as a map of u uniform in [0, 1).
#: "logit-normal": sigmoid(z), z standard normal (Esser et al. 2024, Eq. 19 with m = 0, s = 1): the middle ones oftener
NOISE_LEVELS: dict[str, Callable[[Tensor], Tensor]] = {"uniform": lambda u: u, "logit-normal": _logit_normal}


def process_from_json(value: dict[str, Any]) -> Process:
    """The process that `Process.to_json` described."""
    options = dict(value)
    kind = options.pop("kind", None)
    if kind == "ddpm":
        return DDPM(**options)
    if kind == "flow":
        return Flow()
    raise ConfigError(f"unknown process {kind!r}", "this model was saved by another version of imbdiff")
