"""Entropy guidance: its gradient by autograd and in closed form, its sign, where it acts, and what it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imbdiff.diffusion.entropy_guidance import EntropyGuidance
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidance import ClassifierFree, Guided, moved
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES, Process
from imbdiff.runtime.errors import ConfigError

from .worlds import STATS, best_prediction, gaussian_model

NULL = 3
KINDS = ("ddpm", "ddpm-cosine-v", "flow")
Y = torch.tensor([0, 1, 2, NULL])
W = torch.randn(16, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def classifier(x0: Tensor) -> Tensor:
    """Three logits of (B, 1, 4, 4) images, not linear in them."""
    return torch.tanh(x0.flatten(1) @ W.to(x0)) + x0.flatten(1)[:, :3] ** 2


def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A prediction that depends on its neighbours in x and on the label."""
    return 0.6 * torch.sin(x) + 0.3 * x.roll(1, -1) + 0.1 * y.reshape(-1, 1, 1, 1)


def noisy(n: int = 4) -> Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def at(kind: str, level: float, n: int = 4) -> Tensor:
    return torch.full((n,), level) if kind == "flow" else torch.full((n,), round(1000 * level))


def ab(process: Process, t: Tensor) -> tuple[float, float]:
    a, s = process.coefficients(t[:1])
    return float(a), float(s)


def entropy(logits: Tensor) -> Tensor:
    log_p = logits - logits.logsumexp(1, keepdim=True)
    return -(log_p.exp() * log_p).sum(1)


def clean(process: Process, p: Tensor, x: Tensor, a: float, s: float) -> Tensor:
    return (x - s * p) / a if process.prediction == "epsilon" else a * x - s * p if a**2 + s**2 > 0.999 else x - s * p


@pytest.mark.parametrize("criterion", ["entropy", "loss"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_formula_written_out(kind: str, criterion: Any) -> None:
    """eps' = eps - omega s |x| grad H / |grad H|, through the network, in float64."""
    process, x, t = PROCESSES[kind], noisy(), at(kind, 0.4)
    a, s = ab(process, t)
    scale = [0.5, 2.0, 1.0]
    leaf = x.clone().requires_grad_()
    p = network(leaf, t, Y)
    logits = classifier(clean(process, p, leaf, a, s).clamp(-1, 1))
    rows = entropy(logits) if criterion == "entropy" else -logits.log_softmax(1)[range(4), [0, 1, 2, 0]]
    (g,) = torch.autograd.grad(rows.sum(), leaf)
    g = torch.stack([x[i].norm() * g[i] / g[i].norm() for i in range(4)])
    found = EntropyGuidance(classifier, process, 3, scale, criterion=criterion)(x, t, Y, network)
    expected = process.to_eps(p.detach(), x, t) - s * torch.tensor([*scale, 0.0]).reshape(-1, 1, 1, 1) * g
    torch.testing.assert_close(process.to_eps(found, x, t), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(found[3], network(x, t, Y)[3])  # the null label
    assert not found.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_for_gaussian_data_and_a_logistic_classifier(kind: str) -> None:
    """With l = k sum(x0) and q = sigmoid(l), dH/dx0 = -l q (1 - q) k; x0_hat has slope a sd^2 / (a^2 sd^2 + s^2)."""
    process, x, t, k, sd = PROCESSES[kind], 0.3 * noisy(3), at(kind, 0.5, 3), 0.2, 0.3
    a, s = ab(process, t)

    def logistic(x0: Tensor) -> Tensor:
        value = k * x0.flatten(1).sum(1)
        return torch.stack([value, 0 * value], 1)

    def predict(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return best_prediction(process, x, t, 0.2, sd)

    slope = a * sd**2 / (a**2 * sd**2 + s**2)
    x0 = 0.2 + slope * (x - a * 0.2)
    value = k * x0.flatten(1).sum(1)
    q = value.sigmoid()
    by_x = -slope * (value * q * (1 - q) * k).reshape(-1, 1, 1, 1).expand_as(x)
    guidance, y = EntropyGuidance(logistic, process, 3, 1.0), torch.tensor([0, 1, 2])
    torch.testing.assert_close(guidance.gradient(x, t, y, predict)[1], by_x, rtol=1e-6, atol=1e-12)
    _, shift = guidance.parts(x, t, y, predict)
    unit = by_x.sign() / 4  # 16 equal numbers
    torch.testing.assert_close(
        shift, s**2 / a * x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * unit, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize(("kind", "sampler"), [("ddpm", "ddpm"), ("ddpm-cosine-v", "dpm++"), ("flow", "euler")])
def test_generated_images_are_less_certain(kind: str, sampler: str) -> None:
    """End to end; "loss" makes the images' own class less likely."""
    model = gaussian_model(PROCESSES[kind])
    labels, seeds = [0, 1, 2] * 4, list(range(12))

    def sure(x0: Tensor) -> Tensor:
        mean = x0.flatten(1).mean(1)
        return -20 * torch.stack([(mean - m) ** 2 for m in (0.3, -0.2, 0.1)], 1)

    def ends(scale: float = 0.0, **options: Any) -> Tensor:
        guidance = EntropyGuidance(sure, model.process, 3, scale, sampler=sampler, steps=15, **options)
        images = generate(model, labels, seeds, sampler=sampler, steps=15, guidance=guidance, batch_size=12)
        return sure(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)

    own = torch.tensor(labels)
    plain, guided, harder = ends(), ends(0.3), ends(0.3, criterion="loss")
    more = entropy(guided) - entropy(plain)
    assert float((more > 0).float().mean()) > 0.8
    assert float(more.mean()) > 0.02
    loss = nn.functional.cross_entropy
    assert float(loss(harder, own)) > 1.04 * float(loss(plain, own))
    every_fifth = float((entropy(ends(0.3, every=5)) - entropy(plain)).mean())
    assert 0 < every_fifth < 0.6 * float(more.mean())


def test_it_nests_and_rows_that_are_left_alone_stay_bit_identical() -> None:
    process = PROCESSES["ddpm-cosine-v"]
    model = build_model("unet-8", process, (1, 4, 4), STATS, seed=1).eval()
    free = ClassifierFree(0.5, NULL, process)
    outer = EntropyGuidance(classifier, process, 3, [0.1, 0.0, 0.5])
    labels, seeds = [0, 1, 2, NULL, 2], list(range(5))
    options: dict[str, Any] = {"sampler": "unipc", "steps": 2, "batch_size": 5}
    plain = generate(model, labels, seeds, guidance=free, **options)
    both = generate(model, labels, seeds, guidance=Guided(outer, free), **options)
    assert [bool((a == b).all()) for a, b in zip(plain, both, strict=True)] == [False, True, False, True, False]
    assert all(p.grad is None for p in model.parameters())

    # the gradient goes through what is inside; two shifts add up, the outer one seeing the inner one's image
    x, t = noisy(), at("ddpm", 0.5)
    p, shift = Guided(outer, free).parts(x, t, Y, network)
    assert torch.equal(p, free(x, t, Y, network))
    expected = outer.parts(x, t, Y, lambda *z: free(*z, network))[1]
    assert shift is not None
    assert torch.equal(shift, expected)  # type: ignore[arg-type]
    twice = Guided(outer, outer)
    p, total = twice.parts(x, t, Y, network)
    first = outer.parts(x, t, Y, network)[1]
    second = outer.parts(x, t, Y, lambda z, u, y: moved(process, network(z, u, y), outer.parts(z, u, y, network)[1], u))
    assert torch.equal(p, network(x, t, Y))
    torch.testing.assert_close(total, first + second[1], rtol=1e-9, atol=0)  # type: ignore[operator]


def test_where_it_acts_and_what_it_says_of_itself() -> None:
    process, x = PROCESSES["ddpm"], noisy()
    narrow = EntropyGuidance(classifier, process, 3, 1.0, interval=(0.3, 0.7))
    assert [narrow.parts(x, at("ddpm", u), Y, network)[1] is not None for u in (0.2, 0.5, 0.8)] == [False, True, False]
    fifth = EntropyGuidance(classifier, process, 3, 1.0, sampler="ddim", steps=10, every=5)
    acts = [fifth.at(u).parts(x, at("ddpm", u), Y, network)[1] is not None for u in (0.999, 0.899, 0.499, 0.399)]
    assert acts == [True, False, True, False]
    assert EntropyGuidance(classifier, process, 3, 1.0).differentiates
    assert Guided(EntropyGuidance(classifier, process, 3, 1.0), ClassifierFree(1.0, NULL, process)).differentiates
    assert not ClassifierFree(1.0, NULL, process).differentiates
    half = EntropyGuidance(classifier, process, 3, 1.0)(x.float(), at("ddpm", 0.5), Y, network)
    assert half.dtype == torch.float32
    # where every pixel is clipped there is no gradient, and nothing to divide by
    far = EntropyGuidance(classifier, process, 3, 1.0).parts(100 * x.sign(), at("ddpm", 0.5), Y, lambda x, *_: 0 * x)
    assert far[1] is not None
    assert float(far[1].abs().max()) == 0


def test_bad_values_are_refused() -> None:
    process = PROCESSES["ddpm"]
    for options in (
        {"scale": -0.1},
        {"scale": math.inf},
        {"scale": [1.0, 2.0]},
        {"interval": (0.6, 0.4)},
        {"classifier": nn.Linear(3, 3).train()},
    ):
        with pytest.raises(ConfigError):
            EntropyGuidance(**{"classifier": classifier, "of": process, "num_classes": 3, "scale": 1.0, **options})
    for bad, criterion in ((lambda x: x, "entropy"), (lambda x: x.flatten(1)[:, :1], "entropy")):
        with pytest.raises(ConfigError, match="logits"):
            EntropyGuidance(bad, process, 3, 1.0, criterion=criterion)(noisy(), at("ddpm", 0.5), Y, network)
    two = EntropyGuidance(lambda x: x.flatten(1)[:, :2], process, 3, 1.0, criterion="loss")
    with pytest.raises(ConfigError, match="K >= 3"):
        two(noisy(), at("ddpm", 0.5), Y, network)
