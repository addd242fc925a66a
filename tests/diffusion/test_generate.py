"""`generate`: image i depends on its label and its seed, and on nothing else; Boost-and-Skip against a loop written out
and from the exact ODE's end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbdiff.diffusion.generate import generate, generate_batches
from imbdiff.diffusion.guidance import ClassifierFree
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.schedulers import make_scheduler, process_times
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng
from tests.diffusion.worlds import STATS, GaussianBackbone, gaussian_model, ode_end

LABELS = [0, 2, 1, 3, 2]
SEEDS = [11, 12, 13, 14, 15]
CASES = [("ddpm", "ddpm"), ("ddpm", "dpm++"), ("ddpm-v", "unipc"), ("ddpm-cosine", "ddim"), ("flow", "euler")]


def unet(process: str = "ddpm", seed: int = 0) -> DiffusionModel:
    return build_model("unet-8", PROCESSES[process], (1, 8, 8), STATS, seed=seed).eval()


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def made(request: pytest.FixtureRequest) -> tuple[Callable[..., np.ndarray], np.ndarray]:
    """(generates rows of `LABELS`, all of them)"""
    process, sampler = request.param
    model, guidance = unet(process), ClassifierFree([0.5, 1.0, 0.0], 3, PROCESSES[process])

    def run(rows: list[int], **options: Any) -> np.ndarray:
        of: dict[str, Any] = {"sampler": sampler, "steps": 2, "guidance": guidance, "batch_size": 3, **options}
        return generate(model, [LABELS[r] for r in rows], [SEEDS[r] for r in rows], **of)

    return run, run([0, 1, 2, 3, 4])


def test_shape_and_range(made: tuple[Callable[..., np.ndarray], np.ndarray]) -> None:
    run, images = made
    assert images.shape == (5, 8, 8, 1)
    assert images.dtype == np.uint8
    assert run([]).shape == (0, 8, 8, 1)
    assert len(np.unique(images.reshape(5, -1), axis=0)) == 5


def test_an_image_does_not_depend_on_what_else_is_generated(made: tuple[Callable[..., np.ndarray], np.ndarray]) -> None:
    """Bit for bit: another order, other neighbours, fewer images (so that the last batch is padded). With another batch
    size kernels may round otherwise."""
    run, everything = made
    for rows in ([4, 3, 2, 1, 0], [2], [3, 0, 3, 1]):
        assert np.array_equal(run(rows), everything[rows])
    other = run([0, 1, 2, 3, 4], batch_size=5)
    assert (abs(everything.astype(int) - other) <= 1).mean() >= 0.995


def test_the_seed_and_the_label_matter() -> None:
    model = unet()
    same = generate(model, [0, 0, 1], [1, 2, 1], steps=3)
    assert not np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++"])
def test_a_restart_generates_the_missing_batches_alone(sampler: str) -> None:
    model = unet()
    options: dict[str, Any] = {"sampler": sampler, "steps": 2, "batch_size": 2}
    whole = generate(model, LABELS, SEEDS, **options)
    parts = list(generate_batches(model, LABELS, SEEDS, **options, only=[2, 0]))
    assert [rows for rows, _ in parts] == [[4], [0, 1]]
    for rows, images in parts:
        assert np.array_equal(images, whole[rows])
    assert list(generate_batches(model, LABELS, SEEDS, steps=3, only=[])) == []


def test_batches_have_one_fixed_size() -> None:
    model = gaussian_model(PROCESSES["ddpm"])
    assert isinstance(model.backbone, GaussianBackbone)
    generate(model, [0, 1, 2, 0, 1], [0, 1, 2, 3, 4], steps=2, batch_size=2)
    assert [len(c) for c in model.backbone.calls] == [2] * 6  # 3 batches of 2 steps, the last one padded
    model.backbone.calls.clear()
    guidance = ClassifierFree(1.0, 3, PROCESSES["ddpm"], interval=(0.0, 0.6))
    generate(model, [0, 1], [0, 1], steps=4, batch_size=2, guidance=guidance)  # t = 999, 749, 499, 249
    assert model.backbone.calls == [[0, 1], [0, 1], [0, 1, 3, 3], [0, 1, 3, 3]]


@pytest.mark.parametrize("process", ["ddpm-cosine-v", "flow"])
def test_a_perfect_network_gives_the_right_distribution(process: str) -> None:
    """End to end, uint8 included: classes N(mu_c, 0.1^2)."""
    model = gaussian_model(PROCESSES[process])
    images = generate(model, [0, 1, 2] * 32, list(range(96)), steps=50, batch_size=96)
    x = images.astype(float) / 127.5 - 1
    for k, mu in enumerate((0.3, -0.2, 0.1)):
        assert x[k::3].mean() == pytest.approx(mu, abs=0.02)
        assert x[k::3].std() == pytest.approx(0.1, rel=0.15)


def test_the_global_generators_are_left_alone() -> None:
    model = unet()
    torch.manual_seed(1)
    before, before_np = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = generate(model, LABELS, SEEDS, sampler="ddpm", steps=2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(before_np, np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(2)
    assert np.array_equal(first, generate(model, LABELS, SEEDS, sampler="ddpm", steps=2))


@pytest.mark.parametrize(
    ("labels", "seeds", "options", "message"),
    [
        ([0, 4], [1, 2], {}, "reach from 0 to 4"),
        ([-1, 0], [1, 2], {}, "reach from -1 to 0"),
        ([0, 1], [1, 2, 3], {}, "2 labels, 3 seeds"),
        ([0, 1], [1, -2], {}, "seeds from -2"),
        ([0.9, 1.9], [1, 2], {}, "labels of type float64"),
        ([[0], [1]], [1, 2], {}, r"shape \(2, 1\)"),
        ([0], [1], {"batch_size": 0}, "batch_size=0"),
        ([0], [1], {"sampler": "heun"}, "unknown name 'heun' among the samplers"),
        ([0], [1], {"steps": 1001}, "1001 steps"),
        ([0], [0], {"boost": 0.0}, "boost=0"),
        ([0], [0], {"boost": float("inf")}, "boost=inf"),
        ([0], [0], {"skip": 1.0}, "skip=1"),
        ([0], [0], {"skip": -0.1}, "skip=-0.1"),
        ([0], [0], {"sampler": "ddim", "skip": 0.95, "steps": 3}, "leaves none of 3 steps"),
    ],
)
def test_bad_values_are_refused(labels: list, seeds: list, options: dict, message: str) -> None:
    model = gaussian_model(PROCESSES["ddpm"])
    assert isinstance(model.backbone, GaussianBackbone)
    with pytest.raises(ConfigError, match=message):
        generate(model, labels, seeds, **options)
    assert not model.backbone.calls


def test_a_model_in_training_mode_is_refused() -> None:
    model = unet()
    model.backbone.net.mid_block.train()  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="training mode"):
        generate(model, [0], [0], steps=2)


# -- Boost-and-Skip

MEANS, SD = (0.3, -0.2, 0.1), 0.1


class AsIs:
    """A codec that leaves numbers as they are."""

    shape = (1, 4, 4)
    bound = 1.0

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
