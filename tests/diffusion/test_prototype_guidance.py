"""DiffRC's guidance: its sign, that it is Eq. 13 on the real scheduler, and that rows do not depend on each other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.generate import generate, sampler_step
from imbdiff.diffusion.guidance import ClassifierFree, Guided
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.prototype_guidance import PrototypeGuidance
from imbdiff.diffusion.schedulers import make_scheduler
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng
from tests.contract.oracles import ABAR

from .test_encoder import STATS, encoder, images
from .worlds import gaussian_model

NULL = 3


def noise(n: int, seed: int = 7) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_gradient(net: PrototypeEncoder, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Row by row: nothing of the guidance."""
    out = []
    for i in range(len(x)):
        row = x[i : i + 1].clone().requires_grad_()
        (g,) = torch.autograd.grad(net.loss(row, t[i : i + 1], y[i : i + 1])[0], row)
        out.append(g[0] / math.sqrt(float((g**2).sum())))
    return torch.stack(out)


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-v", "flow"])
def test_solvers_are_guided_by_the_score(kind: str) -> None:
    """eps' = eps + s sigma g in units of noise, under every process; a / 0.05 of it nearer to pure noise."""
    net = encoder("mlp", kind)
    x, y, prediction = images(), torch.tensor([0, 1, 2, 2, 1]), noise(5)
    for level, share in (
        (0.05, 1.0),
        (0.5, 1.0),
        (0.75, 1.0),
        (0.97, 0.6 if kind == "flow" else ABAR[970] ** 0.5 / 0.05),
    ):
        t = torch.full((5,), level) if kind == "flow" else torch.full((5,), int(1000 * level))
        sigma = t[0].item() if kind == "flow" else math.sqrt(1 - ABAR[int(t[0])])
        guided = PrototypeGuidance(net, 0.7, sampler="dpm++", steps=20)(x, t, y, lambda *_: prediction)
        shift = net.process.to_eps(guided, x, t) - net.process.to_eps(prediction, x, t)
        assert torch.allclose(shift, share * 0.7 * sigma * unit_gradient(net, x, t, y), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-cosine-v"])
def test_generated_images_are_those_of_equation_13_written_out(kind: str) -> None:
    """The whole trajectory: x0 clipped, the posterior's mean, sqrt(Sigma) z, and - s Sigma g, all of it."""

    class AsIs:
        shape = (1, 8, 8)
        bound = 1.0

        def decode(self, x: Tensor) -> Tensor:
            return x

    process, seeds, y = PROCESSES[kind], [3, 4], torch.tensor([1, 2])
    net, model = encoder("mlp", kind).float(), gaussian_model(process, (0.0, -0.9, 0.1), 0.3)
    model.codec = AsIs()  # type: ignore[assignment]
    guidance = PrototypeGuidance(net, 4.0, sampler="ddpm", steps=12)
    generators = [torch_rng(s, "image") for s in seeds]
    x = torch.stack([torch.randn(1, 8, 8, generator=g) for g in generators]).double()
    times = make_scheduler("ddpm", process, 12).timesteps.tolist()
    for time, following in zip(times, [*times[1:], None], strict=True):
        t = torch.full((2,), time)
        abar = float(process.alphas_cumprod[time])
        after = 1.0 if following is None else float(process.alphas_cumprod[following])
        mu, beta = torch.tensor([-0.9, 0.1]).double().reshape(-1, 1, 1, 1), 1 - abar / after
        x0 = mu + abar**0.5 * 0.09 * (x - abar**0.5 * mu) / (abar * 0.09 + 1 - abar)
        mean = (after**0.5 * beta * x0.clamp(-1, 1) + (1 - beta) ** 0.5 * (1 - after) * x) / (1 - abar)
        z = torch.stack([torch.randn(1, 8, 8, generator=g) for g in generators]) if time else torch.zeros(2, 1, 8, 8)
        x = mean + beta**0.5 * z - 4.0 * beta * unit_gradient(net, x.float(), t, y)
    found = generate(model, y.numpy(), seeds, sampler="ddpm", steps=12, guidance=guidance, batch_size=2)
    np.testing.assert_allclose(found, x.permute(0, 2, 3, 1).numpy(), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "sampler"), [("ddpm", "dpm++"), ("ddpm-cosine-v", "ddim"), ("ddpm-cosine-v", "unipc")]
)
def test_solvers_move_the_clipped_image(kind: str, sampler: str) -> None:
    """x0' = clip(x0) - s sigma^2 / max(a, 0.05) g, a first step from it, written out; null rows as without guidance."""
    net = encoder("mlp", kind).float()
    guidance, y, x = (
        PrototypeGuidance(net, [0.6, 0.0, 3.0], sampler=sampler, steps=20),
        torch.tensor([0, 1, 2, NULL, 0]),
        images(),
    )
    for i in (0, 7, 18):
        x, p, ends = images().float(), noise(5, i).float(), []
        for guided in (False, True):
            scheduler = make_scheduler(sampler, net.process, 20)
            scheduler.set_begin_index(i)
            t = scheduler.timesteps[i].expand(5)
            q, shift = guidance.parts(x, t, y, lambda *_, p=p: p) if guided else (p, None)
            ends.append(sampler_step(scheduler, net.process, q, shift, t, t[0], x))
        (a, s), (a_next, s_next) = (
            [float(c) for c in net.process.coefficients(scheduler.timesteps[k])] for k in (i, i + 1)
        )
        scale = torch.tensor([0.6, 0, 3.0, 0, 0.6]).reshape(-1, 1, 1, 1)
        wanted = -(a_next - a * s_next / s) * s**2 / max(a, 0.05) * scale * guidance.gradient(x, t, y)[1]
        torch.testing.assert_close(ends[1] - ends[0], wanted, rtol=2e-3, atol=3e-6)
        assert torch.equal(ends[1][[1, 3]], ends[0][[1, 3]])


def test_the_gradient_has_unit_length() -> None:
    net, x, t, y = encoder("mlp"), images(), torch.full((5,), 400), torch.tensor([0, 1, 2, 2, 1])
    loss, g = PrototypeGuidance(net, 1.0).gradient(x, t, y)
    assert torch.allclose(loss, net.loss(x, t, y))
    assert torch.allclose(g.flatten(1).norm(dim=1), torch.ones(5).double())
    assert torch.allclose(g, unit_gradient(net, x, t, y))


def shift(guidance: PrototypeGuidance, labels: list[int], t: int = 400, x: Tensor | None = None) -> Tensor:
    """How far each row's prediction is moved, in units of sigma g."""
    x = images(len(labels)) if x is None else x
    prediction = noise(len(labels))
    moved = guidance(x, torch.full((len(labels),), t), torch.tensor(labels), lambda *_: prediction) - prediction
    return moved.flatten(1).norm(dim=1) / math.sqrt(1 - ABAR[t])


def test_scales_per_class_and_rows_that_are_left_alone() -> None:
    net = encoder("mlp")
    found = shift(PrototypeGuidance(net, [0.0, 0.5, 2.0]), [0, 1, 2, NULL, 1])
    assert found.tolist() == pytest.approx([0, 0.5, 2, 0, 0.5], rel=1e-6)
    assert float(found[0]) == 0
    assert float(found[3]) == 0
    assert shift(PrototypeGuidance(net, 0.3), [0, NULL, 2]).tolist() == pytest.approx([0.3, 0, 0.3], rel=1e-6)


def test_the_prior_changes_what_a_rare_class_is_pushed_from() -> None:
    net, x, t, y = encoder("mlp"), images(), torch.full((5,), 400), torch.full((5,), 1)
    with_prior, without = (PrototypeGuidance(net, 1.0, prior=p).gradient(x, t, y) for p in (True, False))
    assert torch.allclose(without[0], net.loss(x, t, y, prior=False))
    cosine = (with_prior[1] * without[1]).flatten(1).sum(1)
    assert float(cosine.max()) < 0.999


def test_outside_the_interval_nothing_happens() -> None:
    guidance = PrototypeGuidance(encoder("mlp"), 1.0, interval=(0.3, 0.7))
    for t, guided in ((299, False), (300, True), (700, True), (701, False)):
        found = shift(guidance, [0, 1, 2], t)
        assert bool((found > 0.5).all()) if guided else bool((found == 0).all())


def test_it_nests_around_classifier_free_guidance() -> None:
    net, calls = encoder("mlp"), []

    def predict(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        calls.append(y.tolist())
        return x + y.reshape(-1, 1, 1, 1)

    x, t, y = images(3), torch.full((3,), 400), torch.tensor([0, 1, 2])
    free, outer = ClassifierFree(0.5, NULL, net.process), PrototypeGuidance(net, 0.6)
    both = Guided(outer, free)(x, t, y, predict)
    assert calls == [[0, 1, 2, 3, 3, 3]]
    expected = free(x, t, y, predict) + 0.6 * math.sqrt(1 - ABAR[400]) * unit_gradient(net, x, t, y)
    assert torch.allclose(both, expected, rtol=1e-9)
    # apart: the guided prediction, which is clipped, and the shift, which is not
    prediction, moved_by = Guided(outer, free).parts(x, t, y, predict)
    assert torch.equal(prediction, free(x, t, y, predict))
    assert moved_by is not None
    a = math.sqrt(ABAR[400])
    assert torch.allclose(moved_by, -0.6 * (1 - ABAR[400]) / a * unit_gradient(net, x, t, y), rtol=1e-9)
    # two shifts add up, whichever is outside; outside of its interval one leaves the other whole
    narrow = PrototypeGuidance(net, 0.6, interval=(0.9, 1.0))
    for pair, times in ((Guided(outer, outer), 2), (Guided(narrow, outer), 1), (Guided(outer, narrow), 1)):
        prediction, found = Guided(pair, free).parts(x, t, y, predict)
        assert torch.equal(prediction, free(x, t, y, predict))
        assert found is not None
        assert torch.allclose(found, times * moved_by, rtol=1e-9)
    # within an extrapolation it is part of the prediction
    assert Guided(free, outer).parts(x, t, y, predict)[1] is None


@pytest.mark.parametrize(("process", "sampler"), [("ddpm", "ddpm"), ("flow", "euler")])
def test_images_do_not_depend_on_others_in_the_batch(process: str, sampler: str) -> None:
    model = build_model("unet-8", PROCESSES[process], (1, 8, 8), STATS, seed=1).eval()
    net = encoder("unet-8", process).float()
    guidance = PrototypeGuidance(net, 20.0, sampler=sampler, steps=3)
    labels, seeds = np.array([0, 1, 2, NULL, 2, 1]), np.arange(6)
    options: dict[str, Any] = {"sampler": sampler, "steps": 3, "batch_size": 4}
    first = generate(model, labels, seeds, guidance=guidance, **options)
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in (*model.parameters(), *net.parameters()))
    order = np.array([4, 0, 5, 3, 2, 1])
    assert np.array_equal(generate(model, labels[order], seeds[order], guidance=guidance, **options), first[order])
    alone = generate(model, labels[2:3], seeds[2:3], guidance=guidance, **options)
    assert np.array_equal(alone[0], first[2])
    plain = generate(model, labels, seeds, **options)
    changed = [not np.array_equal(a, b) for a, b in zip(first, plain, strict=True)]
    assert changed == [True, True, True, False, True, True]


def test_the_models_prediction_is_not_differentiated() -> None:
    seen = []

    def predict(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append((torch.is_grad_enabled(), x.requires_grad))
        return x

    with torch.no_grad():
        out = PrototypeGuidance(encoder("mlp"), 1.0)(images(), torch.full((5,), 400), torch.zeros(5).long(), predict)
    assert seen == [(False, False)]
    assert not out.requires_grad


def test_bad_values_are_refused() -> None:
    net = encoder("mlp")
    for options in (
        {"scale": -0.1},
        {"scale": math.nan},
        {"scale": [1.0, 2.0]},
        {"scale": 1.0, "interval": (0.6, 0.4)},
    ):
        with pytest.raises(ConfigError):
            PrototypeGuidance(net, **options)  # type: ignore[arg-type]
