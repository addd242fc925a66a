"""Boost-and-Skip: against a loop written out, from the exact ODE's end, and with every sampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.schedulers import make_scheduler, process_times
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng

from .worlds import STATS, GaussianBackbone, gaussian_model, ode_end

MEANS, SD = (0.3, -0.2, 0.1), 0.1


class AsIs:
    """A codec that leaves numbers as they are."""

    shape = (1, 4, 4)

    def decode(self, x: Tensor) -> Tensor:
        return x


def exact_model(kind: str) -> DiffusionModel:
    model = gaussian_model(PROCESSES[kind], MEANS, SD)
    model.codec = AsIs()  # type: ignore[assignment]
    return model


def noise(seeds: list[int]) -> Tensor:
    return torch.stack([torch.randn(1, 4, 4, generator=torch_rng(s, "image")) for s in seeds]).double()


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-cosine-v"])
@pytest.mark.parametrize(("boost", "skip", "first"), [(4.0, 0.012, 979), (1.0, 0.5, 499), (2.0, 0, 999)])
def test_ddim_written_out(kind: str, boost: float, skip: float, first: int) -> None:
    """x = boost z at the first time of at most (1 - skip) T, then x0 clipped, x' = a' x0 + s' (x - a x0) / s."""
    process, labels, seeds = PROCESSES[kind], [0, 1, 2], [4, 5, 6]
    mu = torch.tensor(MEANS, dtype=torch.float64).reshape(-1, 1, 1, 1)
    x = boost * noise(seeds)
    for time in range(first, 0, -20):
        a, s = (float(c) for c in process.coefficients(torch.tensor(time)))
        after = time - 20
        a_next, s_next = (float(c) for c in process.coefficients(torch.tensor(after))) if after > 0 else (1.0, 0.0)
        x0 = (mu + a * SD**2 / (a**2 * SD**2 + s**2) * (x - a * mu)).clamp(-1, 1)
        x = a_next * x0 + s_next * (x - a * x0) / s
    found = generate(exact_model(kind), labels, seeds, sampler="ddim", steps=50, boost=boost, skip=skip, batch_size=3)
    # diffusers' tables are float32
    np.testing.assert_allclose(found, x.permute(0, 2, 3, 1).numpy(), rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("kind", "sampler"),
    [("ddpm", "dpm++"), ("ddpm-v", "unipc"), ("flow", "unipc"), ("flow", "euler")],
)
def test_solvers_end_where_the_exact_ode_does(kind: str, sampler: str) -> None:
    """From boost z at the time where they begin; a solver with something left of earlier steps would not."""
    process, skip, boost = PROCESSES[kind], 0.35, 1.5
    times = process_times(make_scheduler(sampler, process, 100), process)
    begin = float(times[process.noise_level(times) <= 0.65 + 1e-6][0])
    expected = ode_end(process, boost * noise([1, 2]), begin, 0.3, SD)
    options: dict[str, Any] = {"sampler": sampler, "steps": 100, "boost": boost, "skip": skip}
    found = generate(exact_model(kind), [0, 0], [1, 2], batch_size=2, **options)
    np.testing.assert_allclose(
        found, expected.permute(0, 2, 3, 1).numpy(), rtol=0, atol=0.02 if sampler == "euler" else 4e-3
    )
    if sampler != "unipc":
        return
    # another batch with the same scheduler: the same images
    both = generate(exact_model(kind), [0, 0], [1, 2], batch_size=1, **options)
    np.testing.assert_allclose(both, found, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "sampler"), [("ddpm", "ddpm"), ("ddpm-cosine-v", "unipc"), ("flow", "euler")])
def test_boosting_spreads_images_and_the_default_changes_nothing(kind: str, sampler: str) -> None:
    model = build_model("unet-8", PROCESSES[kind], (1, 8, 8), STATS, seed=1).eval()
    labels, seeds = [0, 1, 2, 3], [1, 2, 3, 4]
    options: dict[str, Any] = {"sampler": sampler, "steps": 2, "batch_size": 4}
    plain = generate(model, labels, seeds, **options)
    assert np.array_equal(plain, generate(model, labels, seeds, boost=1.0, skip=0.0, **options))
    assert not np.array_equal(plain, generate(model, labels, seeds, boost=2.0, **options))
    assert not np.array_equal(plain, generate(model, labels, seeds, skip=0.4, **options))
    both = generate(model, labels, seeds, boost=2.0, skip=0.4, **options)
    assert np.array_equal(both[[2, 0]], generate(model, [2, 0], [3, 1], boost=2.0, skip=0.4, **options))
    perfect = exact_model(kind)
    options = {"sampler": sampler, "steps": 20, "batch_size": 8}
    spread = [float(generate(perfect, [0] * 8, list(range(8)), boost=b, skip=0.5, **options).std()) for b in (1.0, 3.0)]
    if sampler == "ddpm":  # a perfect model of Gaussian data forgets what it began with
        assert spread[1] == pytest.approx(spread[0], rel=0.02)
    else:
        assert spread[1] > 1.2 * spread[0]


def test_steps_that_are_skipped_are_not_computed() -> None:
    model = gaussian_model(PROCESSES["ddpm"])
    assert isinstance(model.backbone, GaussianBackbone)
    generate(model, [0], [0], sampler="ddim", steps=10, skip=0.25, batch_size=1)  # 999, 899, 799 | 699 and on
    assert len(model.backbone.calls) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boost": 0.0}, "boost=0"),
        ({"boost": float("nan")}, "boost=nan"),
        ({"boost": float("inf")}, "boost=inf"),
        ({"skip": 1.0}, "skip=1"),
        ({"skip": -0.1}, "skip=-0.1"),
        ({"skip": 0.95, "steps": 3}, "leaves none of 3 steps"),
    ],
)
def test_bad_values_are_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    model = gaussian_model(PROCESSES["ddpm"])
    assert isinstance(model.backbone, GaussianBackbone)
    with pytest.raises(ConfigError, match=message):
        generate(model, [0], [0], **{"sampler": "ddim", "steps": 10, **options})
    assert not model.backbone.calls
