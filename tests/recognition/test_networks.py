from __future__ import annotations

import pytest
import torch

from imbdiff.recognition.networks import NETWORKS, ZeroPadShortcut, build_network
from imbdiff.runtime.errors import ConfigError


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (9, 33, 3), (32, 32, 3), (64, 48, 1)])
def test_every_size_and_channel_count(name: str, shape: tuple[int, int, int]) -> None:
    network = build_network(name, shape, 5).eval()
    x = torch.randn(3, shape[2], shape[0], shape[1])
    with torch.no_grad():
        features = network.features(x)
        assert features.shape == (3, network.feature_dim)
        assert network(x).shape == (3, 5)
        # an image's features are its own
        torch.testing.assert_close(network.features(x[1:2]), features[1:2], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(features).all()


def test_resnet32_is_the_one_of_the_literature() -> None:
    network = build_network("resnet32", (32, 32, 3), 10)
    assert sum(p.numel() for p in network.parameters()) == 464_154
    assert network.feature_dim == 64
    # 31 convolutions and one linear layer: option A has no weights in its shortcuts
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 31
    assert sum(isinstance(m, ZeroPadShortcut) for m in network.modules()) == 2


def test_option_a_shortcut_takes_every_second_pixel_and_pads_both_sides() -> None:
    x = torch.arange(2 * 16.0).reshape(1, 2, 4, 4)
    y = ZeroPadShortcut(2, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert y[:, [0, 3]].abs().sum() == 0


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_follow_the_seed_and_the_global_generator_is_untouched(name: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (build_network(name, (8, 8, 1), 3, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    va, vb, vc = (torch.nn.utils.parameters_to_vector(n.parameters()) for n in (a, b, c))
    assert torch.equal(va, vb)
    assert not torch.equal(va, vc)


def test_judge_has_no_shortcuts_and_few_features() -> None:
    judge = build_network("judge-cnn", (8, 8, 1), 10)
    assert judge.feature_dim <= 64
    assert not any("shortcut" in name for name, _ in judge.named_modules())


def test_errors() -> None:
    with pytest.raises(ConfigError, match="resnet99"):
        build_network("resnet99", (8, 8, 1), 10)
    with pytest.raises(ConfigError, match="7 x 20"):
        build_network("resnet32", (7, 20, 1), 10)
    with pytest.raises(ConfigError, match="at least 2"):
        build_network("resnet32", (8, 8, 1), 1)
