"""Heads after training, against literal computations."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from imbdiff.recognition.heads import CosineHead, ScaledHead, adjusted, finished_head, linear_head, tau_normalised
from imbdiff.recognition.recipes import RECIPES
from imbdiff.runtime.errors import ConfigError

PRIOR = np.array([0.8, 0.15, 0.05])


def _head() -> nn.Linear:
    g = torch.Generator().manual_seed(0)
    head = nn.utils.skip_init(nn.Linear, 5, 3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(3, 5, generator=g) * torch.tensor([[3.0], [1.0], [0.4]]))
        head.bias.copy_(torch.tensor([1.0, -0.5, 0.25]))
    return head


def _features() -> torch.Tensor:
    return torch.randn(11, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_tau_normalised_divides_by_the_norm_to_the_power_tau(tau: float) -> None:
    head, x = _head(), _features()
    found = tau_normalised(head, tau)(x).detach().numpy()
    w = head.weight.detach().double().numpy()
    for i, row in enumerate(x.double().numpy()):
        for k in range(3):
            expected = sum(a * b for a, b in zip(w[k], row, strict=True)) / sum(a * a for a in w[k]) ** (tau / 2)
            assert found[i, k] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert torch.equal(head.weight, _head().weight)
    assert torch.equal(head.bias, _head().bias)


def test_tau_normalised_of_an_empty_class_is_finite_and_the_default_gives_norm_1() -> None:
    head = _head()
    assert tau_normalised(head).weight.norm(dim=1).tolist() == pytest.approx([1, 1, 1])
    with torch.no_grad():
        head.weight[1] = 0
    assert torch.isfinite(tau_normalised(head).weight).all()


def test_scaled_head_multiplies_logits_learns_its_scale_only_and_folds_exactly() -> None:
    head, x = _head(), _features()
    before = torch.random.get_rng_state()
    scaled = ScaledHead(head)
    torch.testing.assert_close(scaled(x), head(x))
    with torch.no_grad():
        scaled.scale.copy_(torch.tensor([0.5, 2.0, -3.0]))
    expected = (x.double() @ head.weight.double().T + head.bias.double()) * torch.tensor([0.5, 2.0, -3.0]).double()
    torch.testing.assert_close(scaled(x).double(), expected, rtol=1e-5, atol=1e-6)
    folded = scaled.folded()
    assert type(folded) is nn.Linear
    torch.testing.assert_close(folded(x), scaled(x))
    assert all(p.requires_grad for p in folded.parameters())
    assert [name for name, p in scaled.named_parameters() if p.requires_grad] == ["scale"]
    assert torch.equal(head.weight, _head().weight)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_adjustment_takes_log_prior_off_the_logits_and_moves_decisions_to_the_tail(tau: float) -> None:
    head, x = _head(), _features()
    found = adjusted(head, PRIOR, tau)(x)
    expected = head(x).detach().double().numpy() - tau * np.log(PRIOR)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(head.bias, _head().bias)
    # equal logits: the rarest class; and no decision moves to a more frequent one
    assert adjusted(head, PRIOR, tau)(torch.zeros(1, 5)).argsort()[0].tolist() == np.argsort(
        head.bias.detach().numpy() - tau * np.log(PRIOR)
    ).tolist()  # fmt: skip
    many = 3 * torch.randn(500, 5, generator=torch.Generator().manual_seed(2))
    was, now = head(many).argmax(1), adjusted(head, PRIOR, tau)(many).argmax(1)
    assert (now >= was).all()
    assert (now > was).any()


def test_what_a_recipe_does_to_a_head_that_is_trained() -> None:
    x = _features()
    for name in RECIPES:
        head = CosineHead(5, 3) if name.startswith("ldam") else _head()
        before = {k: v.clone() for k, v in head.state_dict().items()}
        found = finished_head(head, RECIPES[name], 1000 * PRIOR)
        assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())
        expected = head(x)
        if name == "tau-norm":
            expected = x @ nn.functional.normalize(head.weight).T
        if name == "logit-adjustment":
            expected = head(x) - torch.from_numpy(np.log(PRIOR)).float()
        if name in ("ldam", "ldam-drw"):  # cosines become the logits that the loss was of
            expected = 30 * head(x)
        torch.testing.assert_close(found(x), expected)
    scaled = ScaledHead(_head())
    kept = copy.deepcopy(scaled)
    with torch.no_grad():
        scaled.scale.mul_(2)
    found = finished_head(scaled, RECIPES["lws"], None)
    torch.testing.assert_close(found(x), 2 * kept(x))


def test_other_heads_are_refused_by_name() -> None:
    head = _head()
    assert linear_head(head, "cRT") is head
    for other in (CosineHead(5, 3), nn.Linear(5, 3, bias=False), nn.Identity()):
        with pytest.raises(ConfigError, match="cRT needs a linear head"):
            linear_head(other, "cRT")
