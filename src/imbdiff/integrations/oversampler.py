"""`DiffusionOverSampler`: imbalanced-learn's interface for arrays of images, which its own samplers refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from imbdiff.config import RunConfig, override
from imbdiff.data.arrays import checked_images
from imbdiff.data.imageset import ImageSet
from imbdiff.data.labels import missing_names, without_missing
from imbdiff.data.splits import Prepared
from imbdiff.data.stats import Groups
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.pipeline import training
from imbdiff.pipeline.curation import sample_curated
from imbdiff.pipeline.plan import check_options, default_preset
from imbdiff.pipeline.strategy import Strategy, images_to_draw
from imbdiff.presets import preset
from imbdiff.runtime.errors import ConfigError, DataError


class DiffusionOverSampler(BaseEstimator):
    """Fills classes with images of a diffusion model that is trained on `X` alone.

    Resample the training split only: images of a model that saw test images are a leak.

    Args:
        sampling_strategy: as imbalanced-learn defines it for over-sampling: "auto", "minority", "not minority",
            "not majority", "all", a number in (0, 1], {label: target total}, or a callable y -> {label: total}.
        random_state: seed; a RandomState gives the seed, None a new one with every call.
        method: training method, see `imbdiff methods`.
        preset: of the table of presets; None chooses by image size.
        options: overrides by name, such as {"train.images": 50_000}.
        image_shape: (H, W) or (H, W, C) of the rows of a two-dimensional X, as pipelines pass them.
        verbose: show progress.

    Attributes:
        sampling_strategy_: {label: number of images to add}.
        model_: the trained `DiffusionModel`.
        classes_: (C,) labels in the model's order.
    """

    def __init__(
        self,
        sampling_strategy: Any = "auto",
        *,
        random_state: int | np.random.RandomState | None = 0,
        method: str = "ddpm-brs",
        preset: str | None = None,
        options: Mapping[str, Any] | None = None,
        image_shape: tuple[int, ...] | None = None,
        verbose: bool = False,
    ) -> None:
        self.sampling_strategy = sampling_strategy
        self.random_state = random_state
        self.method = method
        self.preset = preset
        self.options = options
        self.image_shape = image_shape
        self.verbose = verbose

    def fit_resample(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Trains on (X, y) and appends synthetic images.

        Args:
            X: (N, H, W) or (N, H, W, 1 or 3) uint8; or (N, D) with `image_shape`, also a DataFrame.
            y: (N,) or (N, 1) labels of any type, at least two classes; or (N, C), one-hot. Also a Series or DataFrame.

        Returns:
            X and y with the synthetic images behind the real ones; types and trailing shape are kept.

        Raises:
            DataError: X is not uint8, or not of images; labels are missing.
            ConfigError: the strategy or an option makes no sense.
        """
        given_X, given_y = X, y
        X, y = np.asarray(X), without_missing(y, "y")
        images = self._images(X)
        columns = y.shape[1] if y.ndim == 2 else 1
        one_hot = columns > 1 and bool(np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all())
        if y.ndim > 2 or len(y) != len(X) or (columns > 1 and not one_hot):
            raise DataError(
                f"y has shape {y.shape}, but there are {len(X)} images: neither a label of each nor one-hot",
                "give one label per image: of a table y[:, 0], the right column; of probabilities np.argmax(y, axis=1)",
            )
        y = y.argmax(axis=1) if one_hot else y.reshape(-1)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise DataError(f"y has one class only, {classes.tolist()}", "over-sampling needs at least two")
        names = tuple(str(c) for c in classes.tolist())
        train = ImageSet(images, labels.astype(np.int64), names)
        rows = [f"row {i}" for i in range(len(y))]
        for note in missing_names(names, {"train": train.labels}, {"train": rows}, "y"):
            warnings.warn(note, stacklevel=2)
        counts = images_to_draw(self._strategy(classes, y), train.stats)
        config = self._config(train)
        check_options(config)
        self.classes_ = classes
        self.sampling_strategy_ = dict(zip(classes.tolist(), counts, strict=True))
        if sum(counts):
            prepared = _prepared(train)
            self.model_: DiffusionModel = training.train(prepared, config, quiet=not self.verbose)
            drawn = sample_curated(self.model_, prepared, counts, config, quiet=not self.verbose)
            X = np.concatenate([X, drawn.images.reshape(len(drawn), *X.shape[1:])])
            y = np.concatenate([y, classes[drawn.labels]])
        if one_hot:
            y = np.eye(columns, dtype=np.asarray(given_y).dtype)[y]
        return _as_given(given_X, X), _as_given(given_y, y)

    def _images(self, X: np.ndarray) -> np.ndarray:
        if X.ndim == 2:
            if self.image_shape is None:
                raise DataError(f"X is {X.shape}: rows, not images", "give image_shape=(H, W) or (H, W, C)")
            if int(np.prod(self.image_shape)) != X.shape[1]:
                raise DataError(
                    f"rows of {X.shape[1]} values are not images of shape {self.image_shape}",
                    f"give an image_shape of {X.shape[1]} values in all",
                )
            X = X.reshape(len(X), *self.image_shape)
        X = checked_images(X, "X")
        if X.shape[-1] == 4 and X.ndim == 4:
            raise DataError(f"X has shape {X.shape}: transparency", "leave the fourth channel out: X[..., :3]")
        return X[..., None] if X.ndim == 3 else X

    def _strategy(self, classes: np.ndarray, y: np.ndarray) -> Strategy:
        strategy = self.sampling_strategy
        if isinstance(strategy, Callable):  # type: ignore[arg-type]
            strategy = strategy(y)
        if not isinstance(strategy, Mapping):
            return strategy
        known = {c: str(c) for c in classes.tolist()}
        unknown = [label for label in strategy if label not in known]
        if unknown:
            raise ConfigError(f"sampling_strategy names labels that y does not have: {unknown}", "check them")
        return {known[label]: int(total) for label, total in strategy.items()}

    def _config(self, train: ImageSet) -> RunConfig:
        name = self.preset or default_preset(max(train.shape[:2]))
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            try:
                seed = check_random_state(seed).randint(2**31)
            except ValueError as error:
                raise ConfigError(f"random_state: {error}", "give a number, a np.random.RandomState or None") from error
        own = {"method": self.method, "seed": int(seed)}
        return override(preset(name), {**own, **(self.options or {})})


def _as_given(given: Any, x: np.ndarray) -> Any:
    """`x` as a DataFrame or Series where that was `given`, with its columns or name and types; or as it is."""
    if not type(given).__module__.startswith("pandas"):
        return x
    if hasattr(given, "columns"):
        table = type(given)(x.reshape(len(x), -1), columns=given.columns)
        return table.astype(given.dtypes)
    return type(given)(x, name=given.name, dtype=given.dtype)


def _prepared(train: ImageSet) -> Prepared:
    """Training images as an experiment without test images."""
    stats = train.stats
    nothing = train.select(np.zeros(0, dtype=np.int64))
    return Prepared(
        train=train, val=None, test=nothing, pool=None, stats=stats, groups=Groups.default(stats),
        claimable=(False,) * stats.num_classes, warnings=(), manifest={"hash": train.fingerprint},
    )  # fmt: skip
