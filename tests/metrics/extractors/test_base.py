"""What holds for every extractor."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from imbdiff.metrics.extractors import (
    CifarResNet,
    CifarResNetFeatures,
    ClassifierFeatures,
    Extractor,
    RandomConv,
    RawPixels,
)
from imbdiff.recognition.networks import build_network
from imbdiff.runtime.errors import DataError

SHAPE = (32, 32, 3)


def _images(n: int = 13, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (n, *shape), dtype=np.uint8)


def _cifar() -> CifarResNetFeatures:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return CifarResNetFeatures(CifarResNet(20), "cifar-resnet20")


EXTRACTORS = {
    "raw-pixels": lambda: RawPixels(SHAPE),
    "random-conv": lambda: RandomConv(3),
    "classifier": lambda: ClassifierFeatures(build_network("resnet-small", SHAPE, 4), "net", "judge", shape=SHAPE),
    "cifar": _cifar,
}


@pytest.fixture(params=EXTRACTORS)
def extractor(request: pytest.FixtureRequest) -> Extractor:
    return EXTRACTORS[request.param]()


def test_the_batch_size_changes_nothing(extractor: Extractor) -> None:
    x = _images()
    f = extractor.features(x)
    for size in (1, 4, 5):
        np.testing.assert_allclose(extractor.features(x, batch_size=size), f, rtol=1e-4, atol=1e-5 * np.abs(f).max())
    extractor.max_batch = 3
    np.testing.assert_allclose(extractor.features(x), f, rtol=1e-4, atol=1e-5 * np.abs(f).max())


def test_any_layout_in_memory_and_memory_maps_without_a_warning(extractor: Extractor, tmp_path: Path) -> None:
    x = _images()
    expected = extractor.features(x)
    np.save(tmp_path / "x.npy", x)
    locked = x.copy()
    locked.flags.writeable = False
    views = [
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        locked,
        np.asfortranarray(x),
        np.ascontiguousarray(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
        np.repeat(x, 2, axis=0)[::2],
        x[::-1].copy()[::-1],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for view in views:
            before = np.array(view)
            np.testing.assert_allclose(extractor.features(view), expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(view, before)  # nothing was written into it
        features = expected.copy()
        features.flags.writeable = False
        extractor.predict(features)
        extractor.probabilities(features)


def test_progress_is_told_after_each_batch(extractor: Extractor) -> None:
    told: list[int] = []
    extractor.features(_images(), batch_size=5, progress=told.append)
    assert told == [5, 10, 13]


def test_autocast_of_the_caller_does_not_reach_it(extractor: Extractor) -> None:
    x = _images()
    expected = extractor.features(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extractor.features(x)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32


def test_training_mode_does_not_reach_it() -> None:
    found = _cifar()
    x = _images()
    expected = found.features(x)
    found.network.train()
    np.testing.assert_array_equal(found.features(x), expected)


def test_shapes_are_checked_before_work(extractor: Extractor) -> None:
    extractor.check(SHAPE)
    with pytest.raises(DataError, match=extractor.name):
        extractor.check((32, 32, 4))
    with pytest.raises(DataError, match="uint8"):
        extractor.features(_images().astype(np.float32))
    with pytest.raises(DataError, match="uint8"):
        extractor.features(_images()[0])


def test_probabilities_and_predictions_agree(extractor: Extractor) -> None:
    f = extractor.features(_images())
    p, decided = extractor.probabilities(f), extractor.predict(f)
    if p is None or decided is None:
        assert p is None
        assert decided is None
        return
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(p.argmax(1), decided)
    assert len(np.unique(p)) > 1
    assert extractor.probabilities(f[:0]).shape == (0, p.shape[1])  # type: ignore[union-attr]


def test_what_the_protocol_prints_is_there(extractor: Extractor) -> None:
    assert extractor.preprocessing != "none"
    assert not extractor.is_fid
    assert len(extractor.fingerprint) == 64


def test_the_fingerprint_holds_the_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _cifar().fingerprint
    assert _cifar().fingerprint == before
    monkeypatch.setattr(CifarResNetFeatures, "preprocessing", "another")
    assert _cifar().fingerprint != before
