"""Our FID Inception, and numbers made from features, against torch-fidelity 0.4.0 (``make oracles``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imbdiff.metrics.extractors.inception import InceptionFeatures
from imbdiff.metrics.extractors.inception_net import InceptionV3, resize_like_tf1
from imbdiff.metrics.frechet import frechet_distance
from imbdiff.metrics.kernel import kernel_distance
from imbdiff.metrics.neighbours import precision_recall

SIZES = [(32, 32), (28, 28), (299, 299), (64, 48), (33, 57), (400, 301)]


@pytest.fixture(scope="module")
def random_net() -> InceptionV3:
    """Random weights and random running statistics, so that a layer in the wrong place shows."""
    generator = torch.Generator().manual_seed(5)
    net = InceptionV3().eval()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if not value.is_floating_point():
                continue
            if "running_var" in name or name.endswith("bn.weight"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif name.endswith(("conv.weight", "fc.weight")):
                fan_in = value[0].numel()
                value.copy_(torch.randn(value.shape, generator=generator) * (2 / fan_in) ** 0.5)
            else:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return net


@pytest.fixture(scope="module")
def theirs(random_net: InceptionV3, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_net.state_dict(), path)
    return FeatureExtractorInceptionV3("random", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))


def _images(size: tuple[int, int], n: int = 4) -> np.ndarray:
    g = np.random.default_rng(size[0])
    low = g.integers(0, 256, (n, 5, 5, 3)).astype(np.float32)  # smooth images with noise: both kinds of frequency
    x = torch.nn.functional.interpolate(torch.from_numpy(low).permute(0, 3, 1, 2), size, mode="bilinear").numpy()
    return np.clip(x.transpose(0, 2, 3, 1) + g.normal(0, 25, (n, *size, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_resize(size: tuple[int, int]) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    x = torch.from_numpy(_images(size)).permute(0, 3, 1, 2).float()
    expected = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    torch.testing.assert_close(resize_like_tf1(x), expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_activations(size: tuple[int, int], random_net: InceptionV3, theirs: Any) -> None:
    x = _images(size)
    ours = InceptionFeatures(random_net)
    found = ours.features(x)
    with torch.no_grad():
        expected, logits = (v.numpy() for v in theirs(torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()))
    scale = np.abs(expected).max()
    error = float(np.abs(found - expected).max() / scale)
    p = torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()
    p_error = float(np.abs(ours.probabilities(found) / p - 1).max())
    print(f"{size}: features {error:.1e} of the largest, probabilities {p_error:.1e} relative")
    assert expected.std() > 1e-3 * scale  # the oracle did not collapse to a constant
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * scale
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)
    assert error <= 1e-5
    assert p_error <= 1e-4


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray]:
    """Real rows wide, fake rows tight within them: precision is high and recall low."""
    g = np.random.default_rng(1)
    return g.normal(size=(400, 16)), g.normal(size=(300, 16)) * 0.5 + 0.1


def test_frechet(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    stats = [fid_features_to_statistics(torch.from_numpy(c)) for c in clouds]
    (expected,) = fid_statistics_to_metric(*stats, verbose=False).values()
    assert frechet_distance(*clouds) == pytest.approx(expected, rel=1e-8)


def test_kernel(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    from torch_fidelity.metric_kid import kernel_mmd

    real, fake = clouds[0][:250], clouds[1][:250]
    assert kernel_distance(fake, real) == pytest.approx(float(kernel_mmd(fake, real)), rel=1e-8)


def test_precision_and_recall(clouds: tuple[np.ndarray, np.ndarray]) -> None:
    """Version 0.4.0 takes the *generated* rows first; older versions called them the other way round (issue 58)."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = clouds
    expected = prc_features_to_metric(torch.from_numpy(fake), torch.from_numpy(real), verbose=False, prc_neighborhood=3)
    found = precision_recall(real, fake, k=3)
    assert found == pytest.approx((expected["precision"], expected["recall"]), abs=1e-7)
    assert found[0] > found[1] + 0.3  # geometry with a known answer: the labels are not exchanged


def test_inception_score(random_net: InceptionV3) -> None:
    from torch_fidelity.metric_isc import isc_features_to_metric

    features = np.abs(np.random.default_rng(2).normal(size=(120, 2048))).astype(np.float32)
    p = InceptionFeatures(random_net).probabilities(features)
    scores = [np.exp((c * (np.log(c) - np.log(c.mean(0)))).sum(1).mean()) for c in np.split(p, 4)]
    logits = torch.from_numpy(features) @ random_net.fc.weight.detach().T
    expected = isc_features_to_metric(logits, splits=4, shuffle=False)
    assert np.mean(scores) == pytest.approx(expected["inception_score_mean"], rel=1e-5)
    assert np.mean(scores) > 1.01


def test_weights_of_the_known_layout_load(random_net: InceptionV3, theirs: Any, tmp_path: Path) -> None:
    """What torch-fidelity calls its layers is what we call ours."""
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in random_net.state_dict().items()
    }
