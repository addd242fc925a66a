"""`generate`: image i depends on its label and its seed, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from imbdiff.diffusion.generate import generate, generate_batches
from imbdiff.diffusion.guidance import ClassifierFree
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.runtime.errors import ConfigError
from tests.diffusion.worlds import STATS, GaussianBackbone, gaussian_model

LABELS = [0, 2, 1, 0, 2, 3, 1]
SEEDS = [11, 12, 13, 14, 15, 16, 17]
CASES = [("ddpm", "ddpm"), ("ddpm", "dpm++"), ("ddpm-v", "unipc"), ("ddpm-cosine", "ddim"), ("flow", "euler")]


def unet(process: str = "ddpm", seed: int = 0) -> DiffusionModel:
    return build_model("unet-8", PROCESSES[process], (1, 8, 8), STATS, seed=seed).eval()


def test_shape_order_and_range() -> None:
    model = unet()
    images = generate(model, LABELS, SEEDS, steps=2, batch_size=3)
    assert images.shape == (7, 8, 8, 1)
    assert images.dtype == np.uint8
    assert generate(model, [], [], steps=2).shape == (0, 8, 8, 1)
    assert len(np.unique(images.reshape(7, -1), axis=0)) == 7


@pytest.mark.parametrize(("process", "sampler"), CASES)
def test_an_image_does_not_depend_on_what_else_is_drawn(process: str, sampler: str) -> None:
    """Bit for bit: another order, other neighbours, fewer images (so that the last batch is padded)."""
    model = unet(process)
    guidance = ClassifierFree([0.5, 1.0, 0.0], 3, PROCESSES[process])

    def run(rows: list[int]) -> np.ndarray:
        return generate(
            model,
            [LABELS[r] for r in rows],
            [SEEDS[r] for r in rows],
            sampler=sampler,
            steps=3,
            guidance=guidance,
            batch_size=4,
        )

    everything = run(list(range(7)))
    for rows in ([6, 5, 4, 3, 2, 1, 0], [2], [3, 0, 3, 5, 1]):
        assert np.array_equal(run(rows), everything[rows])


def test_the_seed_and_the_label_matter() -> None:
    model = unet()
    same = generate(model, [0, 0, 1], [1, 2, 1], steps=3)
    assert not np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++"])
def test_a_restart_draws_the_missing_batches_alone(sampler: str) -> None:
    model = unet()
    whole = generate(model, LABELS, SEEDS, sampler=sampler, steps=3, batch_size=3)
    parts = list(generate_batches(model, LABELS, SEEDS, sampler=sampler, steps=3, batch_size=3, only=[2, 0]))
    assert [rows for rows, _ in parts] == [[6], [0, 1, 2]]
    for rows, images in parts:
        assert np.array_equal(images, whole[rows])
    assert list(generate_batches(model, LABELS, SEEDS, steps=3, only=[])) == []
    for bad in ([3], [-1]):
        with pytest.raises(ConfigError, match="there are 3"):
            list(generate_batches(model, LABELS, SEEDS, steps=3, batch_size=3, only=bad))


@pytest.mark.parametrize(("process", "sampler"), [c for c in CASES if c[1] != "ddpm"])
def test_other_batch_sizes_agree_to_rounding(process: str, sampler: str) -> None:
    model = unet(process)
    labels, seeds = [k % 3 for k in range(32)], list(range(32))
    images = [
        generate(model, labels, seeds, sampler=sampler, steps=4, batch_size=size).astype(int) for size in (32, 13)
    ]
    for other in images[1:]:
        assert (abs(images[0] - other) <= 1).mean() >= 0.999


def test_batches_have_one_fixed_size() -> None:
    model = gaussian_model(PROCESSES["ddpm"])
    assert isinstance(model.backbone, GaussianBackbone)
    generate(model, [0, 1, 2, 0, 1], [0, 1, 2, 3, 4], steps=2, batch_size=2)
    assert [len(c) for c in model.backbone.calls] == [2] * 6  # 3 batches of 2 steps, the last one padded
    model.backbone.calls.clear()
    guidance = ClassifierFree(1.0, 3, PROCESSES["ddpm"], interval=(0.0, 0.6))
    generate(model, [0, 1], [0, 1], steps=4, batch_size=2, guidance=guidance)  # t = 999, 749, 499, 249
    assert model.backbone.calls == [[0, 1], [0, 1], [0, 1, 3, 3], [0, 1, 3, 3]]


@pytest.mark.parametrize("process", ["ddpm", "ddpm-cosine-v", "flow"])
def test_a_perfect_network_draws_the_right_distribution(process: str) -> None:
    """End to end, uint8 included: classes N(mu_c, 0.1^2)."""
    model = gaussian_model(PROCESSES[process])
    images = generate(model, [0, 1, 2] * 32, list(range(96)), steps=100, batch_size=96)
    x = images.astype(float) / 127.5 - 1
    for k, mu in enumerate((0.3, -0.2, 0.1)):
        assert x[k::3].mean() == pytest.approx(mu, abs=0.02)
        assert x[k::3].std() == pytest.approx(0.1, rel=0.15)


def test_the_global_generators_are_left_alone() -> None:
    model = unet()
    torch.manual_seed(1)
    before, before_np = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = generate(model, LABELS, SEEDS, sampler="ddpm", steps=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.array_equal(before_np, np.random.get_state()[1])  # noqa: NPY002
    torch.manual_seed(2)
    assert np.array_equal(first, generate(model, LABELS, SEEDS, sampler="ddpm", steps=3))


@pytest.mark.parametrize(
    ("labels", "seeds", "options", "message"),
    [
        ([0, 4], [1, 2], {}, "reach from 0 to 4"),
        ([-1, 0], [1, 2], {}, "reach from -1 to 0"),
        ([0, 1], [1], {}, "2 labels but 1 seeds"),
        ([0.5], [1], {}, "whole numbers"),
        ([0], [-1], {}, "negative"),
        ([0], [1], {"batch_size": 0}, "batch_size=0"),
        ([0], [1], {"sampler": "heun"}, "unknown name 'heun' among the samplers"),
        ([0], [1], {"steps": 1001}, "1001 steps"),
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
