"""Worlds whose exact answer is known: Gaussian classes N(mu_c, sd^2), whose best prediction is linear in x_t."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.backbone import Backbone, Taps
from imbdiff.diffusion.codec import Codec
from imbdiff.diffusion.model import DiffusionModel, ModelSpec
from imbdiff.diffusion.process import DDPM, Process
from imbdiff.diffusion.schedulers import make_scheduler, process_times, start

STATS = ClassStats(("a", "b", "c"), (50, 10, 2))


def best_prediction(process: Process, x: Tensor, t: Tensor, mu: Tensor | float, sd: float) -> Tensor:
    """E[target | x_t] for x_0 ~ N(mu, sd^2), written out: x_t ~ N(a mu, a^2 sd^2 + s^2)."""
    a, s = (c.double().reshape(-1, *([1] * (x.ndim - 1))) for c in process.coefficients(t))
    excess = (x - a * mu) / (a**2 * sd**2 + s**2)
    x0, noise = mu + a * sd**2 * excess, s * excess
    if process.prediction == "epsilon":
        return noise
    return a * noise - s * x0 if process.prediction == "v_prediction" else noise - x0


def ode_end(process: Process, x: Tensor, t: float, mu: float, sd: float) -> Tensor:
    """Where the exact probability-flow ODE takes x at time t: quantiles are kept."""
    a, s = (float(c) for c in process.coefficients(torch.tensor([t]).to(torch.long if t > 1 else torch.float32)))
    return mu + sd * (x - a * mu) / (a**2 * sd**2 + s**2) ** 0.5


def draw(
    name: str, process: Process, steps: int, x: Tensor, mu: float = 0.2, sd: float = 0.1, seed: int = 0,
    bound: float | None = 1.0, error: float = 0.0,
) -> Tensor:  # fmt: skip
    """The whole trajectory's end in float64, from x, with the best prediction, or one that is off by `error`."""
    scheduler = make_scheduler(name, process, steps, bound)
    start(scheduler, steps)
    options: dict[str, Any] = {"generator": torch.Generator().manual_seed(seed)} if name == "ddpm" else {}
    for timestep, time in zip(scheduler.timesteps, process_times(scheduler, process), strict=True):
        prediction = best_prediction(process, x, time.expand(len(x)), mu, sd) + error
        x = scheduler.step(prediction, timestep, x, **options, return_dict=False)[0]
    return x


def standard_normal(n: int = 512) -> Tensor:
    """(n, 1, 1, 1) with mean 0 and variance 1 exactly, so that few points show moments without sampling error."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    x = torch.special.ndtri(u)
    return (x / x.std(correction=0)).reshape(-1, 1, 1, 1)


class GaussianBackbone(Backbone):
    """The perfect network of this world; the null label's mean is 0. Keeps the sizes and labels of its calls."""

    tap_names = ()

    def __init__(self, process: Process, means: Sequence[float], sd: float) -> None:
        super().__init__()
        self.process, self.sd, self.num_classes = process, sd, len(means)
        self.conditioner = torch.nn.Identity()
        self.means = torch.nn.Parameter(torch.tensor([*means, 0.0], dtype=torch.float64))
        self.calls: list[list[int]] = []

    def forward(
        self, x_t: Tensor, time: Tensor, labels: Tensor, taps: Sequence[str] = (), predict_rows: int | None = None
    ) -> tuple[Tensor, Taps]:
        self.calls.append(labels.tolist())
        t = time.round().long() if isinstance(self.process, DDPM) else time / 1000
        mu = self.means[labels].reshape(-1, 1, 1, 1)
        return best_prediction(self.process, x_t.double(), t, mu, self.sd).float(), {}


def gaussian_model(
    process: Process, means: Sequence[float] = (0.3, -0.2, 0.1), sd: float = 0.1, codec: Codec | None = None
) -> DiffusionModel:
    shape = (1, 4, 4) if codec is None else codec.image
    spec = ModelSpec("mlp", {}, shape, process.to_json(), STATS, codec)
    return DiffusionModel(spec, GaussianBackbone(process, means, sd), process).eval()
