"""The over-sampler keeps imbalanced-learn's promises: what is added, in what order, of which type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from imbdiff import DiffusionOverSampler
from imbdiff.pipeline import curation
from imbdiff.runtime.errors import ConfigError, DataError

OPTIONS = {"train.images": 64, "train.batch_size": 16, "sample.steps": 2, "sample.batch_size": 8, "device": "cpu"}


def data() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    y = np.array(["cat"] * 12 + ["dog"] * 4 + ["eel"] * 6)
    return generator.integers(0, 256, (len(y), 8, 8), dtype=np.uint8), y


@pytest.fixture(scope="module")
def filled() -> tuple[DiffusionOverSampler, np.ndarray, np.ndarray]:
    sampler = DiffusionOverSampler(options=OPTIONS)
    return sampler, *sampler.fit_resample(*data())


Filled = tuple[DiffusionOverSampler, np.ndarray, np.ndarray]


def test_classes_are_filled_and_the_real_images_come_first(filled: Filled) -> None:
    (X, y), (sampler, X2, y2) = data(), filled
    assert X2.dtype == np.uint8
    assert X2.shape == (36, 8, 8)
    assert dict(zip(*np.unique(y2, return_counts=True), strict=True)) == {"cat": 12, "dog": 12, "eel": 12}
    assert np.array_equal(X2[: len(X)], X)
    assert np.array_equal(y2[: len(y)], y)
    assert sampler.sampling_strategy_ == {"cat": 0, "dog": 8, "eel": 6}
    again, _ = DiffusionOverSampler(options=OPTIONS).fit_resample(X, y)
    assert np.array_equal(X2, again)
    other, _ = DiffusionOverSampler(options=OPTIONS, random_state=1).fit_resample(X, y)
    assert not np.array_equal(X2, other)


def test_a_mapping_gives_target_totals_and_rows_need_a_shape() -> None:
    X, y = data()
    rows = X.reshape(len(X), -1)
    codes = np.unique(y, return_inverse=True)[1] + 5
    sampler = DiffusionOverSampler({6: 7, 7: 6}, options=OPTIONS, image_shape=(8, 8))
    X2, y2 = clone(sampler).fit_resample(rows, codes)
    assert X2.shape == (25, 64)
    assert y2[-3:].tolist() == [6, 6, 6]
    with pytest.raises(DataError, match="image_shape"):
        DiffusionOverSampler(options=OPTIONS).fit_resample(rows, codes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sampling_strategy": {"cow": 9}}, ConfigError, "cow"),
        ({"sampling_strategy": {"cat": 3}}, ConfigError, "fewer than the 12"),
        ({"sampling_strategy": "most"}, ConfigError, "not understood"),
        ({"method": "cbmd"}, ConfigError, "among the methods"),
        ({"options": {"train.lrr": 1}}, ConfigError, "unknown option"),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DiffusionOverSampler(**{"options": OPTIONS, **change}).fit_resample(*data())


def test_images_must_be_bytes_of_two_classes() -> None:
    X, y = data()
    with pytest.raises(DataError, match="float64"):
        DiffusionOverSampler().fit_resample(X / 255, y)
    with pytest.raises(DataError, match="one class"):
        DiffusionOverSampler().fit_resample(X[:12], y[:12])


def test_images_are_chosen_as_the_options_say(filled: Filled) -> None:
    (X, y), (_, plain, plain_labels) = data(), filled
    drawn: list[int] = []
    real = curation.curate

    def counted(candidates: Any, wanted: Any, *args: Any, **kwargs: Any) -> Any:
        drawn.append(len(candidates))
        return real(candidates, wanted, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curation, "curate", counted)
        options = {**OPTIONS, "curate.policy": "diverse", "curate.candidates": 2.0, "classify.steps": 4}
        new, labels = DiffusionOverSampler(options=options).fit_resample(X, y)
    assert drawn == [2 * (len(plain) - len(X))]
    assert (labels == plain_labels).all()
    assert (new != plain).any()
