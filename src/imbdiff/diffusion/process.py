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
        schedule: "linear" (beta from 1e-4 to 0.02, scaled by 1000 / T), "cosine" (Nichol and Dhariwal 2021, Eq. 17),
            "scaled_linear" (Stable Diffusion's: sqrt(beta) is linear) or "given".
        prediction: "epsilon" or "v_prediction".
        num_steps: T >= 2.
        ends: first and last beta of the linear ones, where they are others; of "scaled_linear" always.
        given: (T,) the betas of "given".
        zero_snr: betas changed so that the last time is noise alone (Lin et al. 2024, Algorithm 1), up to abar = 2^-24,
            as diffusers' solvers have it.
    """

    schedule: Literal["linear", "cosine", "scaled_linear", "given"] = "linear"
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    num_steps: int = 1000
    ends: tuple[float, float] | None = None
    given: tuple[float, ...] | None = None
    zero_snr: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine", "scaled_linear", "given"):
            raise ConfigError(f"unknown noise schedule {self.schedule!r}", "use linear or cosine")
        if len(self.given or ()) != (self.num_steps if self.schedule == "given" else 0):
            raise ConfigError("the schedule 'given' takes one beta per step, another one none", "use linear or cosine")
        if self.schedule == "scaled_linear" and self.ends is None:
            raise ConfigError("the schedule 'scaled_linear' has no ends", "give ends=(0.00085, 0.012)")
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ConfigError(f"DDPM cannot predict {self.prediction!r}", "use epsilon or v_prediction")
        if self.num_steps < 2:
            raise ConfigError(f"num_steps={self.num_steps} must be at least 2")

    @cached_property
    def betas(self) -> Tensor:
        """(T,) float64."""
        if not self.zero_snr:
            return self._betas
        from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

        betas = rescale_zero_terminal_snr(self._betas)
        betas[-1] = 1 - 2**-24 / torch.prod(1 - betas[:-1])
        return betas

    @property
    def _betas(self) -> Tensor:
        n = self.num_steps
        if self.given is not None:
            return torch.tensor(self.given, dtype=torch.float64)
        if self.schedule != "cosine":
            scale, (first, last) = 1000 / n, self.ends or (1e-4, 0.02)
            first, last = first * scale, min(last * scale, 0.999)
            if self.schedule == "scaled_linear":
                return torch.linspace(first**0.5, last**0.5, n, dtype=torch.float64) ** 2
            return torch.linspace(first, last, n, dtype=torch.float64)

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
        later = {"ends": None, "given": None, "zero_snr": False}  # models saved before had none of these
        return {"kind": "ddpm", **{k: v for k, v in asdict(self).items() if k not in later or v != later[k]}}


@dataclass(frozen=True)
class Flow(Process):
    """Linear flow matching (rectified flow): x_t = (1 - t) x_0 + t noise, t in [0, 1); predicts noise - x_0.

    Attributes:
        shift: times u evenly spaced in (0, 1] are sampled at t = shift u / (1 + (shift - 1) u), above 1 for large
            images (Esser et al. 2024, section 5.3.2). Training is the same for any.
    """

    prediction: Literal["flow_prediction"] = "flow_prediction"
    shift: float = 1.0

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
        return {"kind": "flow"} | ({} if self.shift == 1 else {"shift": self.shift})


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
        return DDPM(**options | {k: tuple(v) for k, v in options.items() if isinstance(v, list)})
    if kind == "flow":
        return Flow(**options)
    raise ConfigError(f"unknown process {kind!r}", "this model was saved by another version of imbdiff")
