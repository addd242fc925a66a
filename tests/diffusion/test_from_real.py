"""Images that begin as real ones: where the exact ODE takes them, what strengths 0 and 1 are, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imbdiff.data.imageset import Rows
from imbdiff.diffusion.codec import Codec, IdentityCodec
from imbdiff.diffusion.codecs.autoencoder import open_autoencoder
from imbdiff.diffusion.codecs.patch import PatchCodec
from imbdiff.diffusion.generate import generate, generate_batches
from imbdiff.diffusion.guidance import ClassifierFree
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES, Flow
from imbdiff.diffusion.schedulers import begin_at, make_scheduler, process_times
from imbdiff.runtime.errors import ConfigError
from tests.diffusion.test_codecs import PAIRS, WIDE, Wide, gentle
from tests.diffusion.test_generate import MEANS, SD, exact_model, noise
from tests.diffusion.vae import pictures, save_vae
from tests.diffusion.worlds import STATS, GaussianBackbone, gaussian_model, ode_end


class AsIs(IdentityCodec):
    """Pixels in, numbers out: nothing is rounded at the end."""

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return z


def exact(kind: str) -> DiffusionModel:
    model = exact_model(kind)
    model.codec = AsIs((1, 4, 4))
    return model


def grey(value: float, n: int) -> np.ndarray:
    """(n, 4, 4, 1) of one value in [-1, 1], rounded to 8 bits."""
    return np.full((n, 4, 4, 1), round((value + 1) * 127.5), np.uint8)


@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize(("process", "sampler"), [*PAIRS, *[("shifted", s) for s in ("euler", "dpm++", "unipc")]])
def test_every_sampler_begins_at_the_strength_itself(process: str, sampler: str, steps: int) -> None:
    p = Flow(shift=3.0) if process == "shifted" else PROCESSES[process]
    before = process_times(make_scheduler(sampler, p, steps), p)
    for strength in (0.001, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0):
        scheduler = make_scheduler(sampler, p, steps)
        i = begin_at(scheduler, p, strength)
        times = process_times(scheduler, p)
        assert float(p.noise_level(times[i])) == pytest.approx(min(strength, float(p.noise_level(before[0]))), abs=1e-3)
        assert (times.diff() < 0).all()
        assert torch.equal(times[i + 1 :], before[i + 1 :])
        if hasattr(scheduler, "sigmas") and not isinstance(p, Flow):
            a, s = p.coefficients(times)  # the solver is where the network is asked
            torch.testing.assert_close(scheduler.sigmas[:-1].double(), s / a, rtol=1e-3, atol=0)


@pytest.mark.parametrize("strength", [0.25, 0.6, 1.0])
@pytest.mark.parametrize(("process", "sampler"), [pair for pair in PAIRS if pair[1] != "ddpm"])
def test_solvers_end_where_the_exact_ode_does(process: str, sampler: str, strength: float) -> None:
    """From a x0 + s noise; each image for itself, so their mean and spread too."""
    p, value, seeds = PROCESSES[process], 0.7, [1, 2, 3, 4]
    scheduler = make_scheduler(sampler, p, 100)
    time = process_times(scheduler, p)[begin_at(scheduler, p, strength)]
    clean = torch.full((1, 1, 1, 1), round((value + 1) * 127.5) / 127.5 - 1, dtype=torch.float64)
    begun = p.add_noise(clean, noise(seeds), time.reshape(1))
    expected = ode_end(p, begun, float(time), MEANS[0], SD).permute(0, 2, 3, 1).numpy()
    options: dict[str, Any] = {"sampler": sampler, "steps": 100, "batch_size": 4}
    found = generate(exact(process), [0] * 4, seeds, start=grey(value, 4), strength=strength, **options)
    slack = {"ddim": 0.035, "euler": 0.02}.get(sampler, 5e-3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=slack)


@pytest.mark.parametrize("process", ["ddpm", "ddpm-cosine-v"])
def test_ancestral_steps_end_in_the_posterior(process: str) -> None:
    """x' given x_t is N(mu + k (x_t - a mu), sd^2 - k a sd^2) with k = a sd^2 / (a^2 sd^2 + s^2)."""
    p, n, value, mu = PROCESSES[process], 96, 0.7, MEANS[0]
    for strength in (0.1, 0.25, 0.5):
        a, s = (float(c) for c in p.coefficients(torch.tensor(round(strength * 1000))))
        k = a * SD**2 / (a**2 * SD**2 + s**2)
        model, options = exact(process), {"sampler": "ddpm", "steps": 250, "batch_size": n}
        found = generate(model, [0] * n, range(n), start=grey(value, n), strength=strength, **options)  # type: ignore[arg-type]
        assert float(found.mean()) == pytest.approx(mu + k * a * (value - mu), abs=0.012)
        assert float(found.std()) == pytest.approx((SD**2 - k * a * SD**2 + k**2 * s**2) ** 0.5, rel=0.08)


@pytest.mark.parametrize(("process", "sampler"), PAIRS)
def test_full_strength_is_generation_from_noise(process: str, sampler: str) -> None:
    """In distribution, in pixels and in a space far outside [-1, 1]; what is left of the image is a(T) x0."""
    wide = (process, sampler) in WIDE
    for codec, means, sd in ((IdentityCodec((1, 4, 4)), MEANS, 0.1), *[(Wide(), (3.0, -2.0, 1.0), 0.5)] * wide):
        model = gaussian_model(PROCESSES[process], means, sd, codec)
        options: dict[str, Any] = {"sampler": sampler, "steps": 100 if sampler in ("ddpm", "ddim") else 25}
        of = ([0] * 24 + [1] * 24, range(48))
        plain = generate(model, *of, batch_size=48, **options).astype(float)
        real = generate(model, *of, batch_size=48, **options, start=grey(0.9, 48), strength=1.0).astype(float)
        scale = 127.5 / (5 if codec.name == "wide" else 1)
        for k in range(2):
            a, b = plain[24 * k : 24 * k + 24], real[24 * k : 24 * k + 24]
            assert abs(a.mean() - b.mean()) < 0.1 * sd * scale
            assert b.std() == pytest.approx(a.std(), rel=0.05, abs=0.6)


def codecs(tmp_path: Path) -> dict[str, tuple[Codec, np.ndarray]]:
    colour = pictures(5).permute(0, 2, 3, 1).numpy()
    grey = gentle(1, 8, 8, n=60)
    vae = open_autoencoder(save_vae(tmp_path / "vae"), (3, 16, 16))
    stored = np.asarray(vae.store(torch.from_numpy(colour).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    return {
        "identity": (IdentityCodec((1, 8, 8)), grey[:5]),
        "patch": (PatchCodec.fit(grey, 2, 3), grey[:5]),
        "vae": (vae.whitened(Rows([stored], np.arange(5))), colour),
    }


@pytest.mark.parametrize("name", ["identity", "patch", "vae"])
def test_no_strength_is_what_the_codec_gives_back_and_more_goes_further(name: str, tmp_path: Path) -> None:
    codec, images = codecs(tmp_path)[name]
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = codec.decode(codec.encode(codec.store(x))).permute(0, 2, 3, 1).numpy()
    means = codec.encode(codec.store(x)).mean().item()
    model = gaussian_model(PROCESSES["ddpm-v"], (means,) * 3, 0.3, codec)
    options: dict[str, Any] = {"steps": 10, "batch_size": 3, "start": images}
    found = generate(model, [0] * 5, range(5), strength=0.0, **options)
    assert np.array_equal(found, expected)
    assert isinstance(model.backbone, GaussianBackbone)
    assert not model.backbone.calls, "no step"
    if name == "identity":
        assert np.array_equal(found, images)
    off = []
    for strength in (0.0, 0.2, 0.5, 0.9):
        end = generate(model, [0] * 5, range(5), strength=strength, **options)
        off.append(float(np.mean((end.astype(float) - expected) ** 2)))
    assert off == sorted(off)
    assert off[0] == 0 < off[1]


@pytest.mark.parametrize("sampler", ["ddpm", "unipc"])
def test_an_image_depends_on_its_own_source_strength_and_seed(sampler: str) -> None:
    """Bit for bit, whatever else is in the call; sources are read batch by batch, and no batch has two strengths."""
    model = build_model("unet-8", PROCESSES["ddpm"], (1, 8, 8), STATS, seed=0).eval()
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1)).astype(np.uint8)
    labels, seeds = np.array([0, 1, 2, 0, 1, 2, 3]), np.arange(7)
    strengths = np.array([0.5, 0.0, 1.0, 0.25, 0.5, 0.5, 0.5])
    guidance = ClassifierFree([0.5, 1.0, 0.0], 3, PROCESSES["ddpm"])
    of: dict[str, Any] = {"sampler": sampler, "steps": 4, "batch_size": 3, "guidance": guidance}
    every = generate(model, labels, seeds, start=images, strength=strengths, **of)
    assert every.shape == (7, 8, 8, 1)
    assert np.array_equal(every[1], images[1])
    for rows in ([6, 2, 0], [3], [4, 5, 1, 0]):
        part = generate(model, labels[rows], seeds[rows], start=images[rows], strength=strengths[rows], **of)
        assert np.array_equal(part, every[rows])
    on_disk = Rows([images[::-1]], np.arange(7)[::-1])
    parts = list(generate_batches(model, labels, seeds, start=on_disk, strength=strengths, **of))
    assert [rows for rows, _ in parts] == [[1], [3], [0, 4, 5], [6], [2]]
    for rows, found in parts:
        assert np.array_equal(found, every[rows])
    again = list(generate_batches(model, labels, seeds, start=images, strength=strengths, **of, only=[3, 2]))
    assert [rows for rows, _ in again] == [[6], [0, 4, 5]]
    assert np.array_equal(again[0][1], every[[6]])
    other = generate(model, labels, seeds, start=images[::-1], strength=strengths, **of)
    assert not np.array_equal(other[0], every[0])
    swapped = generate(model, labels, seeds + 1, start=images, strength=strengths, **of)
    assert not np.array_equal(swapped[0], every[0])
    assert np.array_equal(swapped[1], every[1])


def test_steps_above_the_strength_are_not_computed() -> None:
    model = gaussian_model(PROCESSES["ddpm"])
    assert isinstance(model.backbone, GaussianBackbone)
    options: dict[str, Any] = {"sampler": "ddim", "steps": 20, "batch_size": 2}
    generate(model, [0, 0], [0, 1], start=grey(0, 2), strength=0.25, **options)
    assert len(model.backbone.calls) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5}, "strength=0.5 has no effect without images"),
        ({"start": grey(0, 2), "strength": 1.5}, r"strength=1.5 must be in \[0, 1\]"),
        ({"start": grey(0, 2), "strength": [0.5, -0.1]}, "must be in"),
        ({"start": grey(0, 2), "strength": [0.5, float("nan")]}, "must be in"),
        ({"start": grey(0, 2), "strength": [0.5] * 3}, "one for each image"),
        ({"start": grey(0, 3)}, r"\(3, 4, 4, 1\).*\(2, 4, 4, 1\)"),
        ({"start": grey(0, 2)[:, :2]}, r"shape \(2, 2, 4, 1\)"),
        ({"start": grey(0, 2).astype(np.float32)}, "float32"),
        ({"start": grey(0, 2), "boost": 2.0}, "boost and skip have no effect"),
        ({"start": grey(0, 2), "skip": 0.1}, "boost and skip have no effect"),
    ],
)
def test_bad_values_are_refused(options: dict[str, Any], message: str) -> None:
    model = gaussian_model(PROCESSES["ddpm"])
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        generate(model, [0, 1], [0, 1], steps=2, **options)


OUTSIDE = """
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from imbdiff.diffusion.schedulers import Sampler

def ddim(process, steps):
    return DDIMScheduler(num_train_timesteps=process.num_steps, trained_betas=process.betas.numpy(),
                         prediction_type=process.prediction, timestep_spacing="trailing", clip_sample=True)

def euler(process, steps):
    return EulerDiscreteScheduler(num_train_timesteps=process.num_steps, trained_betas=process.betas.numpy())

OURS, SCALED = Sampler("DDIM of diffusers", "50 steps", ddim), Sampler("Euler", "50 steps", euler)
"""


def test_samplers_from_outside_keep_their_times(outside: Callable[..., None]) -> None:
    outside(OUTSIDE, "samplers", their_ddim="OURS", their_euler="SCALED")
    options: dict[str, Any] = {"steps": 20, "batch_size": 2, "start": grey(0.7, 2), "strength": 0.5}
    # 20 steps are at 999, 949, ..., 499: that of ours is moved to 500
    ours, theirs = (generate(exact("ddpm"), [0, 0], [0, 1], sampler=s, **options) for s in ("ddim", "their-ddim"))
    np.testing.assert_allclose(ours, theirs, atol=4e-3)
    with pytest.raises(ConfigError, match="scales images otherwise"):
        generate(exact("ddpm"), [0, 0], [0, 1], sampler="their-euler", **options)
