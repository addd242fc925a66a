"""Batch normalisation by side, against a literal one of each side."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from imbdiff.recognition.batch_norm import SplitBatchNorm, plain, split_batch_norm, synthetic_rows
from imbdiff.recognition.networks import build_network
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng

MASK = torch.tensor([False, True, False, False, True, False, True])


def layer(kind: str, *, affine: bool = False, momentum: float | None = 0.3) -> nn.Sequential:
    """One normalisation of 3 channels whose averages and weights are nothing special."""
    norm = (nn.BatchNorm1d if kind == "1d" else nn.BatchNorm2d)(3, momentum=momentum)
    assert norm.running_mean is not None
    with torch.no_grad():
        for i, tensor in enumerate((norm.weight, norm.bias, norm.running_mean, norm.running_var)):
            assert tensor is not None
            tensor.copy_(torch.rand(3, generator=torch_rng(9, i)) + 0.5)
    return split_batch_norm(nn.Sequential(norm), affine=affine)


def batch(kind: str, n: int = 7, key: int = 0) -> torch.Tensor:
    shape = (n, 3) if kind == "1d" else (n, 3, 4, 5)
    x = torch.randn(shape, generator=torch_rng(1, key))
    x[MASK[:n]] = 3 * x[MASK[:n]] + 5  # the sides differ
    return x


def literal(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float64: the normalised side, its mean, its unbiased variance; channels in axis 1."""
    axes = (0, *range(2, x.ndim))
    shape = [1, -1] + [1] * (x.ndim - 2)
    mean, var = x.mean(axes), x.var(axes)
    y = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + 1e-5) * weight.reshape(shape) + bias.reshape(shape)
    return y, mean, x.var(axes, ddof=1)


@pytest.mark.parametrize("kind", ["1d", "2d"])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_each_side_by_its_own_statistics(kind: str, momentum: float | None) -> None:
    network = layer(kind, momentum=momentum)
    split = network[0]
    assert isinstance(split, SplitBatchNorm)
    before = copy.deepcopy(split)
    x = batch(kind)
    with synthetic_rows(network, MASK):
        y = network(x)
    for side, name in ((~MASK, "main"), (MASK, "auxiliary")):
        norm, old = getattr(split, name), getattr(before, name)
        weight, bias = split.main.weight.detach().double().numpy(), split.main.bias.detach().double().numpy()
        wanted, mean, var = literal(x[side].double().numpy(), weight, bias)
        np.testing.assert_allclose(y[side].detach().numpy(), wanted, rtol=1e-4, atol=1e-5)
        share = momentum if momentum is not None else 1.0
        for found, was, new in ((norm.running_mean, old.running_mean, mean), (norm.running_var, old.running_var, var)):
            np.testing.assert_allclose(found.numpy(), (1 - share) * was.numpy() + share * new, rtol=1e-5)
        assert norm.num_batches_tracked.item() == 1
    # the real rows of one normalisation for all would be moved by the synthetic ones
    assert not torch.allclose(y[~MASK], nn.functional.batch_norm(x, None, None, training=True)[~MASK], atol=0.1)


def test_gradients_are_those_of_two_layers() -> None:
    network, x = layer("2d"), batch("2d").requires_grad_()
    out = torch.randn(7, 3, 4, 5, generator=torch_rng(3))
    main = network[0].main
    with synthetic_rows(network, MASK):
        (network(x) * out).sum().backward()
    found = [x.grad, main.weight.grad, main.bias.grad]
    again = x.detach().clone().requires_grad_()
    weight, bias = (p.detach().clone().requires_grad_() for p in (main.weight, main.bias))
    total = torch.zeros(())
    for side in (~MASK, MASK):
        total = total + (nn.functional.batch_norm(again[side], None, None, weight, bias, True) * out[side]).sum()
    total.backward()
    for a, b in zip(found, (again.grad, weight.grad, bias.grad), strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["1d", "2d"])
@pytest.mark.parametrize("which", ["main", "auxiliary"])
def test_a_side_without_rows_keeps_its_averages(kind: str, which: str) -> None:
    network = layer(kind)
    before = copy.deepcopy(network[0].state_dict())
    x = batch(kind)
    with synthetic_rows(network, torch.full((7,), which == "auxiliary")):
        y = network(x)
    weight, bias = (before[f"main.{k}"].double().numpy() for k in ("weight", "bias"))
    np.testing.assert_allclose(y.detach().numpy(), literal(x.double().numpy(), weight, bias)[0], rtol=1e-4, atol=1e-5)
    for key, value in network[0].state_dict().items():
        changes = key.startswith(which) and key.rsplit(".", 1)[1] not in ("weight", "bias")
        assert torch.equal(value, before[key]) != changes, key


def test_a_single_row_without_positions_uses_the_averages_of_its_side() -> None:
    network = layer("1d")
    before = copy.deepcopy(network[0].state_dict())
    with torch.no_grad():
        network[0].auxiliary.running_mean.fill_(2.0)
    x = batch("1d", 4)
    with synthetic_rows(network, torch.tensor([False, False, True, False])):
        y = network(x)
    wanted = (x[2] - 2.0) / (before["auxiliary.running_var"] + 1e-5).sqrt() * before["main.weight"] + before[
        "main.bias"
    ]
    torch.testing.assert_close(y[2], wanted)
    assert network[0].auxiliary.num_batches_tracked.item() == 0
    assert (network[0].auxiliary.running_mean == 2).all()
    assert network[0].main.num_batches_tracked.item() == 1
    # with positions one row has a variance
    network = layer("2d")
    with synthetic_rows(network, torch.tensor([False, False, True, False])):
        y = network(batch("2d", 4))
    assert network[0].auxiliary.num_batches_tracked.item() == 1
    assert y[2].mean((1, 2)).sub(network[0].main.bias).abs().max() < 1e-5


def test_without_a_mask_and_in_evaluation_only_the_main_one_is_used() -> None:
    network = layer("2d")
    with torch.no_grad():
        network[0].auxiliary.running_mean.fill_(100.0)
    usual, x = copy.deepcopy(network[0].main), batch("2d")
    before = copy.deepcopy(network[0].auxiliary.state_dict())
    assert torch.equal(network(x), usual(x))
    with synthetic_rows(network, None):
        assert torch.equal(network(x), usual(x))
    network.eval(), usual.eval()
    with synthetic_rows(network, MASK):
        assert torch.equal(network(x), usual(x))
    assert all(torch.equal(v, before[k]) for k, v in network[0].auxiliary.state_dict().items())


@pytest.mark.parametrize("affine", [False, True])
def test_weights_of_its_own(affine: bool) -> None:
    network = layer("2d", affine=affine)
    split = network[0]
    assert len(list(network.parameters())) == (4 if affine else 2)
    with torch.no_grad():
        if affine:
            assert torch.equal(split.auxiliary.weight, split.main.weight)
            split.auxiliary.weight.mul_(10)
        with synthetic_rows(network, MASK):
            y = network(batch("2d"))
        spread = y[MASK].std((0, 2, 3), unbiased=False) / split.main.weight
    torch.testing.assert_close(spread, torch.full((3,), 10.0 if affine else 1.0), rtol=1e-3, atol=1e-3)


def test_a_whole_network_and_back() -> None:
    whole = build_network("resnet-small", (8, 8, 1), 3, seed=2)
    reference = copy.deepcopy(whole)
    names = list(whole.state_dict())
    count = sum(isinstance(m, nn.BatchNorm2d) for m in whole.modules())
    assert split_batch_norm(whole) is whole
    assert sum(isinstance(m, SplitBatchNorm) for m in whole.modules()) == count == 6
    x = torch.randn(12, 1, 8, 8, generator=torch_rng(4))
    mask = torch.arange(12) % 3 == 0
    for _ in range(2):
        with synthetic_rows(whole, mask):
            whole(x + 4 * mask[:, None, None, None])
        reference(x[~mask])
    # main statistics are those of training on real rows alone
    found = plain(copy.deepcopy(whole)).state_dict()
    for (key, value), other in zip(found.items(), reference.state_dict().values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=key)
    other = split_batch_norm(build_network("resnet-small", (8, 8, 1), 3, seed=5))
    other.load_state_dict(load(save(whole.state_dict())))
    for mode in (True, False):
        with synthetic_rows(whole.train(mode), mask), synthetic_rows(other.train(mode), mask):
            assert torch.equal(whole(x), other(x))
    expected = whole.eval()(x)
    assert plain(whole) is whole
    assert list(whole.state_dict()) == names
    assert torch.equal(whole(x), expected)
    assert plain(whole) is whole


def test_the_mask_ends_with_the_block() -> None:
    network = layer("1d")
    with pytest.raises(RuntimeError, match="stop"), synthetic_rows(network, MASK):
        raise RuntimeError("stop")
    assert network[0].rows is None
    with synthetic_rows(network, MASK):
        with synthetic_rows(network, None):
            assert network[0].rows is None
        assert network[0].rows is not None
    unsplit = nn.Sequential(nn.BatchNorm1d(3))
    with synthetic_rows(unsplit, MASK):
        unsplit(batch("1d"))


def test_what_cannot_be_split_is_refused() -> None:
    class WithActivation(nn.BatchNorm2d):
        pass

    network = nn.Sequential(nn.BatchNorm2d(3), WithActivation(3))
    with pytest.raises(ConfigError, match=r"normalisation 1 .* WithActivation"):
        split_batch_norm(network)
    assert type(network[0]) is nn.BatchNorm2d
    with pytest.raises(ConfigError, match="without running averages"):
        split_batch_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
    with pytest.raises(ConfigError, match="no layers of batch normalisation"):
        split_batch_norm(nn.Sequential(nn.Linear(3, 3)))
    with pytest.raises(ConfigError, match="split already"):
        split_batch_norm(layer("1d"))
    with pytest.raises(ValueError, match=r"\(B,\) bool"), synthetic_rows(network, torch.zeros(7)):
        pass
    split = layer("1d")
    with pytest.raises(ValueError, match="7 rows, the batch 4"), synthetic_rows(split, MASK):
        split(batch("1d", 4))
