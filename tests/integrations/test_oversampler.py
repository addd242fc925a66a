"""The over-sampler keeps imbalanced-learn's promises: what is added, in what order, of which type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone

from imbdiff import DiffusionOverSampler
from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.splits import Prepared
from imbdiff.integrations import oversampler
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


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """No model is trained, and the images that it would generate are grey; what was asked for is kept."""
    asked: list[RunConfig] = []

    def generated(model: None, prepared: Prepared, counts: list[int], config: RunConfig, **_: bool) -> ImageSet:
        asked.append(config)
        labels = np.repeat(np.arange(len(counts)), counts)
        images = np.full((len(labels), *prepared.train.shape), 128, np.uint8)
        return ImageSet(images, labels, prepared.train.class_names)

    monkeypatch.setattr(oversampler.training, "train", lambda *_, **__: None)
    monkeypatch.setattr(oversampler, "sample_curated", generated)
    return asked


CODES = np.array([5] * 6 + [7] * 4 + [9] * 2)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "y", [CODES, CODES[:, None], CODES.tolist(), CODES.astype(float), CODES.astype(str), CODES.astype(object)]
)
def test_labels_of_every_form_come_back_in_one_row(untrained: list[RunConfig], y: Any) -> None:
    _, out = DiffusionOverSampler(preset="tiny").fit_resample(IMAGES, y)
    assert out.shape == (18,)
    assert out.astype(float).tolist() == [*CODES.tolist(), 7, 7, 9, 9, 9, 9]
    assert out.dtype.kind == {"O": "i"}.get(np.asarray(y).dtype.kind, np.asarray(y).dtype.kind)


def test_one_hot_labels_come_back_one_hot(untrained: list[RunConfig]) -> None:
    hot = np.eye(4, dtype=np.float32)[[0] * 6 + [3] * 4 + [1] * 2]  # no image of class 2
    _, out = DiffusionOverSampler(preset="tiny").fit_resample(IMAGES, hot)
    assert out.dtype == np.float32
    assert out.sum(axis=0).tolist() == [6, 6, 0, 6]
    assert np.array_equal(out[:12], hot)


@pytest.mark.parametrize("seed", [3, np.int64(3), None, np.random.RandomState(3)])
def test_seeds_as_scikit_learn_takes_them(untrained: list[RunConfig], seed: Any) -> None:
    sampler = clone(DiffusionOverSampler(preset="tiny", random_state=seed))
    for _ in range(2):
        sampler.fit_resample(IMAGES, CODES)
    first, second = (config.seed for config in untrained)
    assert (first == second == 3) if isinstance(seed, int | np.integer) else first != second


def test_tables_of_pandas_come_back_as_such(untrained: list[RunConfig]) -> None:
    pd = pytest.importorskip("pandas")
    X = pd.DataFrame(IMAGES.reshape(12, -1), index=range(100, 112)).add_prefix("p")
    for y in (
        pd.Series(CODES, name="dx"),
        pd.Series(CODES.astype(str), name="dx", dtype="category"),
        pd.Series(CODES, name="dx", dtype="Int64"),
        pd.DataFrame({"dx": CODES}),
    ):
        X2, y2 = DiffusionOverSampler(preset="tiny", image_shape=(6, 6, 3)).fit_resample(X, y)
        assert (X2.columns == X.columns).all()
        assert (X2.dtypes == np.uint8).all()
        assert type(y2) is type(y)
        if isinstance(y, pd.Series):
            assert (y2.name, y2.dtype) == ("dx", y.dtype)
        else:
            y2 = y2["dx"]
        assert y2.astype(int).tolist() == [*CODES.tolist(), 7, 7, 9, 9, 9, 9]


@pytest.mark.parametrize(
    ("X", "y", "follow"),
    [
        (IMAGES.transpose(0, 3, 1, 2), CODES, lambda X, y: (X.transpose(0, 2, 3, 1), y)),
        (IMAGES / 255, CODES, lambda X, y: ((X * 255).round().astype(np.uint8), y)),
        (IMAGES.astype(np.int64), CODES, lambda X, y: (X.astype(np.uint8), y)),
        (np.dstack([IMAGES.reshape(12, 36, 3), IMAGES.reshape(12, 36, 3)[..., :1]]).reshape(12, 6, 6, 4), CODES,
         lambda X, y: (X[..., :3], y)),
        (IMAGES, np.stack([np.arange(12), CODES], axis=1), lambda X, y: (X, y[:, 1])),
        (IMAGES, np.eye(10)[CODES] * 0.7 + 0.03, lambda X, y: (X, y.argmax(axis=1))),
    ],
)  # fmt: skip
def test_what_is_refused_says_how_to_convert_it(untrained: list[RunConfig], X: Any, y: Any, follow: Any) -> None:
    sampler = DiffusionOverSampler(preset="tiny")
    with pytest.raises(DataError) as error:
        sampler.fit_resample(X, y)
    assert error.value.remedy
    X2, y2 = sampler.fit_resample(*follow(X, y))
    assert np.array_equal(X2[:12], IMAGES)
    assert np.bincount(y2)[[5, 7, 9]].tolist() == [6, 6, 6]


def test_generators_of_numpy_are_refused_with_a_remedy(untrained: list[RunConfig]) -> None:
    with pytest.raises(ConfigError, match="random_state") as error:
        DiffusionOverSampler(random_state=np.random.default_rng(0)).fit_resample(IMAGES, CODES)  # type: ignore[arg-type]
    assert "RandomState" in error.value.remedy


def test_words_for_missing_labels_are_warned_of(untrained: list[RunConfig]) -> None:
    with pytest.warns(UserWarning, match="'none'"):
        DiffusionOverSampler(preset="tiny").fit_resample(IMAGES, np.where(CODES == 9, "none", "cat"))
    with pytest.raises(DataError, match="'nan'"):
        DiffusionOverSampler(preset="tiny").fit_resample(IMAGES, np.where(CODES == 9, "nan", "cat"))
