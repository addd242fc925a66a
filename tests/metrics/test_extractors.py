from __future__ import annotations

import numpy as np
import pytest
import torch

from imbdiff.metrics.extractors import ClassifierFeatures, Extractor, RandomConv, RawPixels
from imbdiff.recognition.networks import build_network
from imbdiff.runtime.errors import ConfigError, DataError


def _images(n: int = 11, shape: tuple[int, int, int] = (8, 12, 1), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def _all() -> list[Extractor]:
    network = build_network("judge-cnn", (8, 12, 1), 3)
    return [RawPixels((8, 12, 1)), RandomConv(1), ClassifierFeatures(network, "net", "judge", shape=(8, 12, 1))]


@pytest.mark.parametrize("extractor", _all(), ids=lambda e: e.name)
def test_contract(extractor: Extractor) -> None:
    x = _images()
    f = extractor.features(x)
    assert f.shape == (11, extractor.dim)
    assert f.dtype == np.float32
    np.testing.assert_allclose(extractor.features(x, batch_size=4), f, rtol=1e-5, atol=1e-6)
    # row i depends on image i alone
    np.testing.assert_allclose(extractor.features(x[[5]]), f[[5]], rtol=1e-5, atol=1e-6)
    assert not np.allclose(f[5], f[6])
    assert extractor.features(x[:0]).shape == (0, extractor.dim)
    with pytest.raises(DataError):
        extractor.features(x.astype(np.float32))
    with pytest.raises(DataError):
        extractor.features(_images(2, (8, 12, 3)))


def test_fingerprints_follow_the_weights() -> None:
    assert RandomConv(1, 0).fingerprint == RandomConv(1, 0).fingerprint
    assert len({RandomConv(1, 0).fingerprint, RandomConv(1, 1).fingerprint, RandomConv(3, 0).fingerprint}) == 3
    a, b = (build_network("judge-cnn", (8, 8, 1), 3, seed=s) for s in (0, 1))
    assert ClassifierFeatures(a, "a", "judge").fingerprint != ClassifierFeatures(b, "b", "judge").fingerprint


def test_random_conv_leaves_the_global_generator_alone_and_any_size_works() -> None:
    before = torch.random.get_rng_state()
    net = RandomConv(3)
    assert net.features(_images(2, (8, 8, 3))).shape == net.features(_images(2, (64, 40, 3))).shape
    assert torch.equal(before, torch.random.get_rng_state())


def test_classifier_predicts_from_its_own_features() -> None:
    network = build_network("judge-cnn", (8, 8, 1), 3).eval()
    extractor = ClassifierFeatures(network, "net", "judge")
    x = _images(9, (8, 8, 1))
    with torch.no_grad():
        expected = network(torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1).argmax(1).numpy()
    found = extractor.predict(extractor.features(x))
    assert found is not None
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ConfigError):
        ClassifierFeatures(network, "net", "friend")  # type: ignore[arg-type]
