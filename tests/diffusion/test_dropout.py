"""Dropout with cheap coins is dropout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imbdiff.diffusion.dropout import LEVELS, CheapDropout, cheapen
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import DDPM
from imbdiff.testing import STATS


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_drops_as_many_and_keeps_the_mean(p: float, channels_last: bool) -> None:
    torch.manual_seed(0)
    x = torch.rand(8, 24, 25, 25) + 0.5
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = CheapDropout(p)(x)
    n, kept = x.numel(), y != 0
    assert abs(float(kept.double().mean()) - (1 - p)) < 4.5 * (p * (1 - p) / n) ** 0.5
    scale = 1 / (1 - round(p * LEVELS) / LEVELS)
    assert torch.allclose(y[kept], x[kept] * scale)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, kept * torch.tensor(scale))  # the mask that was used is the one of the gradient
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
    # no channel, no row and no neighbour is treated otherwise
    for dim in range(4):
        share = kept.double().mean([d for d in range(4) if d != dim])
        assert float((share - (1 - p)).abs().max()) < 5 * (p * (1 - p) / (n / len(share))) ** 0.5
    a, b = kept.flatten()[:-1].double() - (1 - p), kept.flatten()[1:].double() - (1 - p)
    assert abs(float((a * b).mean())) < 5 * p * (1 - p) / n**0.5


def test_it_follows_the_global_generator_and_evaluation_is_exact() -> None:
    x, layer = torch.randn(7, 3), CheapDropout(0.3)  # a number of values that four does not divide
    torch.manual_seed(5)
    first = layer(x)
    second = layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert layer.eval()(x) is x
    for p in (0.0, 1.0, 1e-9):
        assert torch.equal(CheapDropout(p)(x), nn.Dropout(p)(x))


def test_a_network_has_it_everywhere_under_the_same_names() -> None:
    model = build_model("unet-8", DDPM(), (1, 8, 8), STATS)
    found = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert 0.1 in found.values()
    assert all(type(m) is CheapDropout for m in model.modules() if isinstance(m, nn.Dropout))
    other = nn.Sequential(nn.Dropout(0.2), nn.ModuleList([nn.Dropout(0.4)]))
    cheapen(other)
    assert {n: (type(m), m.p) for n, m in other.named_modules() if isinstance(m, nn.Dropout)} == {
        "0": (CheapDropout, 0.2), "1.0": (CheapDropout, 0.4),
    }  # fmt: skip
