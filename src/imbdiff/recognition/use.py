"""How synthetic images take part in training a classifier, and which rows a step sees."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from imbdiff.data.imageset import ImageSet, join
from imbdiff.data.samplers import BatchSampler, class_distribution
from imbdiff.recognition.losses import PRIORS, class_counts
from imbdiff.runtime.errors import ConfigError

Schedule = Literal["mixed", "real-last"]


@dataclass(frozen=True)
class Use:
    """How synthetic images take part.

    Attributes:
        weight: w > 0 of a synthetic image in the loss; a real one weighs 1.
        share: of the rows of a batch that are synthetic, in (0, 1); None: their share of all images.
        schedule: "mixed": in all steps. "real-last": the last steps, `last` of all, see real images only.
        last: share of the steps, in (0, 1).
        prior: what losses for long tails count: "train", real images, or "effective", real + weight x synthetic as
            they occur in batches.
    """

    weight: float = 1.0
    share: float | None = None
    schedule: Schedule = "mixed"
    last: float = 0.2
    prior: Literal["train", "effective"] = "train"

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(
                f"synthetic weight {self.weight} is not positive", "leave the synthetic images out instead"
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"synthetic share {self.share} of a batch is not in (0, 1)", "give for example 0.5")
        if self.schedule not in get_args(Schedule):
            raise ConfigError(f"unknown schedule {self.schedule!r}", "choose mixed or real-last")
        if not 0 < self.last < 1:
            raise ConfigError(f"last share {self.last} of the steps is not in (0, 1)", "give for example 0.2")
        if self.prior not in PRIORS:
            raise ConfigError(f"unknown prior {self.prior!r}", f"choose one of {', '.join(PRIORS)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        """In words, for tables and pages."""
        parts = [f"weight {self.weight:g}"]
        if self.share is not None:
            parts.append(f"{self.share:.0%} of every batch")
        if self.schedule != "mixed":
            parts.append(f"last {self.last:.0%} of the steps: real images only")
        if self.prior != "train":
            parts.append(f"prior: {self.prior}")
        return ", ".join(parts)


class Mixture:
    """Real images and, where there are some, synthetic ones; and the rows of each step as a pure function of it.

    Args:
        real: the training images.
        synthetic: generated images; None or empty: none.
        use: how they take part.
        batch_size: B.
        seed: of the batches.

    Attributes:
        images: both together, the real ones first.
        synthetic: whether there are any.

    Raises:
        ConfigError: a share that leaves no synthetic or no real row in a batch.
    """

    def __init__(self, real: ImageSet, synthetic: ImageSet | None, use: Use, batch_size: int, seed: int) -> None:
        self.use, self.real, self.num_real = use, real, len(real)
        self.batch_size, self.seed = batch_size, seed
        self.images, self.synthetic, self.synthetic_rows = real, synthetic is not None and len(synthetic) > 0, 0
        self._samplers: dict[tuple[str, str, int], BatchSampler] = {}
        if synthetic is None or not len(synthetic):
            return
        self.images = joined(real, synthetic)
        if use.share is not None:
            self.synthetic_rows = round(use.share * batch_size)
            if not 0 < self.synthetic_rows < batch_size:
                raise ConfigError(
                    f"a synthetic share of {use.share:g} is {self.synthetic_rows} of {batch_size} rows",
                    "give a share that leaves at least one row of each kind, or a larger batch",
                )

    def counts(self, prior: str) -> np.ndarray:
        """(C,) float64 images of each class, as losses for long tails count them; see :attr:`Use.prior`.

        With a fixed share of synthetic rows, "effective" counts how often an image of a class occurs in batches: the
        real counts, and the synthetic ones scaled to that share.
        """
        synthetic = self.images.labels[self.num_real :] if self.synthetic else None
        weight = self.use.weight
        if synthetic is not None and self.synthetic_rows:
            ratio = self.synthetic_rows / (self.batch_size - self.synthetic_rows)
            weight *= ratio * self.num_real / len(synthetic)
        return class_counts(prior, self.real.labels, synthetic, weight, len(self.real.class_names))

    def relative_weights(self, distribution: str, *, real_only: bool = False) -> np.ndarray | None:
        """(N + M,) float64 weights of the images in the loss, relative to their mean over the rows that batches have.

        None where there are no synthetic images.

        Args:
            distribution: over classes, of each kind of images.
            real_only: batches have no synthetic rows.
        """
        if not self.synthetic:
            return None
        n = self.num_real
        weights = np.ones(len(self.images))
        weights[n:] = self.use.weight

        def mean(part: slice) -> float:
            own, labels = weights[part], self.images.labels[part]
            if distribution == "natural":
                return float(own.mean())
            counts, sums = np.bincount(labels), np.bincount(labels, own)
            return float((class_distribution(counts, distribution) * sums / np.maximum(counts, 1)).sum())

        if real_only:
            return weights / mean(slice(n))
        if not self.synthetic_rows:
            return weights / mean(slice(None))
        share = self.synthetic_rows / self.batch_size
        return weights / ((1 - share) * mean(slice(n)) + share * mean(slice(n, None)))

    def rows(self, step: int, distribution: str, *, real_only: bool = False, name: str = "") -> np.ndarray:
        """(B,) int64 rows of :attr:`images` for `step`.

        Args:
            distribution: over classes, of each kind of images.
            real_only: no synthetic rows.
            name: of the random stream, for another phase.
        """
        if not self.synthetic or real_only:
            return self._sampler("real", distribution, self.batch_size, name).indices(step)
        if not self.synthetic_rows:
            return self._sampler("all", distribution, self.batch_size, name).indices(step)
        real = self._sampler("real", distribution, self.batch_size - self.synthetic_rows, name).indices(step)
        synthetic = self._sampler("synthetic", distribution, self.synthetic_rows, name).indices(step)
        return np.concatenate([real, synthetic + self.num_real])

    def _sampler(self, part: str, distribution: str, size: int, name: str) -> BatchSampler:
        key = (part, distribution + name, size)
        if key not in self._samplers:
            labels = self.images.labels
            labels = {"real": labels[: self.num_real], "synthetic": labels[self.num_real :], "all": labels}[part]
            stream = "classifier batch" + (" synthetic" if part == "synthetic" else "") + name
            self._samplers[key] = BatchSampler(labels, size, distribution=distribution, seed=self.seed, name=stream)
        return self._samplers[key]


def joined(train: ImageSet, synthetic: ImageSet) -> ImageSet:
    """Real and synthetic images as one set, the real ones first."""
    return ImageSet(
        join([train.images, synthetic.images]),
        np.concatenate([train.labels, synthetic.labels]),
        train.class_names,
        (*(f"real/{i}" for i in train.ids), *(f"synthetic/{i}" for i in synthetic.ids)),
    )
