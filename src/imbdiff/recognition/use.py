"""How synthetic images take part in training a classifier, and which rows a step sees."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from imbdiff.data.imageset import ImageSet, join
from imbdiff.data.samplers import BatchSampler, class_law
from imbdiff.recognition.losses import PRIORS, class_counts
from imbdiff.runtime.errors import ConfigError

Schedule = Literal["mixed", "real-last", "head-last"]


@dataclass(frozen=True)
class Use:
    """How synthetic images take part.

    Attributes:
        weight: w > 0 of a synthetic image in the loss; a real one weighs 1.
        share: of the rows of a batch that are synthetic, in (0, 1); None: as often as they are many.
        schedule: "mixed": in all steps. "real-last": the last steps, `last` of all, see real images only.
            "head-last": in these last steps the head alone is trained, on real images (SYNAuG, Ye-Bin et al. 2023).
        last: share of the steps, in (0, 1).
        batch_norm: "shared", or "separate": synthetic rows are normalised by statistics of their own (Xie et al. 2020,
            auxiliary batch normalisation).
        prior: what losses for long tails count: "train", real images, or "effective", real + weight x synthetic as
            they occur in batches.
    """

    weight: float = 1.0
    share: float | None = None
    schedule: Schedule = "mixed"
    last: float = 0.2
    batch_norm: Literal["shared", "separate"] = "shared"
    prior: Literal["train", "effective"] = "train"

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(
                f"synthetic weight {self.weight} is not positive", "leave the synthetic images out instead"
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"synthetic share {self.share} of a batch is not in (0, 1)", "give for example 0.5")
        if self.schedule not in get_args(Schedule):
            raise ConfigError(f"unknown schedule {self.schedule!r}", "choose mixed, real-last or head-last")
        if not 0 < self.last < 1:
            raise ConfigError(f"last share {self.last} of the steps is not in (0, 1)", "give for example 0.2")
        if self.batch_norm not in ("shared", "separate"):
            raise ConfigError(f"unknown batch norm {self.batch_norm!r}", "choose shared or separate")
        if self.prior not in PRIORS:
            raise ConfigError(f"unknown prior {self.prior!r}", f"choose one of {', '.join(PRIORS)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def words(self) -> str:
        """In words, for tables and pages."""
        parts = [f"weight {self.weight:g}"]
        if self.share is not None:
            parts.append(f"{self.share:.0%} of every batch")
        if self.schedule != "mixed":
            what = "real images only" if self.schedule == "real-last" else "the head alone, on real images"
            parts.append(f"last {self.last:.0%} of the steps: {what}")
        if self.batch_norm == "separate":
            parts.append("batch statistics of their own")
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
        seed: of the draws.
        weights: (N,) of the real images in the loss; None: 1.

    Attributes:
        images: both together, the real ones first.
        synthetic: whether there are any.
        split: whether their batch statistics are kept apart.
        row_weights: (N + M,) float64 weights in the loss, or None where all are 1.

    Raises:
        ConfigError: a share that leaves no synthetic or no real row in a batch.
    """

    def __init__(
        self, real: ImageSet, synthetic: ImageSet | None, use: Use, batch_size: int, seed: int,
        weights: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.use, self.real, self.num_real = use, real, len(real)
        self.batch_size, self.seed = batch_size, seed
        self.images, self.row_weights = real, weights
        if synthetic is not None and not len(synthetic):
            synthetic = None
        self.synthetic = synthetic is not None
        self.split = self.synthetic and use.batch_norm == "separate"
        if synthetic is not None:
            self.images = joined(real, synthetic)
            self.row_weights = np.concatenate(
                [np.ones(len(real)) if weights is None else weights, np.full(len(synthetic), float(use.weight))]
            )
        self.synthetic_rows = 0
        if synthetic is not None and use.share is not None:
            self.synthetic_rows = round(use.share * batch_size)
            if not 0 < self.synthetic_rows < batch_size:
                raise ConfigError(
                    f"a synthetic share of {use.share:g} is {self.synthetic_rows} of {batch_size} rows",
                    "give a share that leaves at least one row of each kind, or a larger batch",
                )
        self._samplers: dict[tuple[str, str, int], BatchSampler] = {}

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
        classes = len(self.real.class_names)
        return class_counts(prior, self.real.labels, synthetic, weight, classes)

    def mean_weight(self, real_only: bool = False, law: str = "natural") -> float:
        """Mean of :attr:`row_weights` over the rows that batches have under `law`, by which the loss is divided."""
        assert self.row_weights is not None
        n = self.num_real
        if real_only:
            return self._mean(slice(n), law)
        if not self.synthetic_rows:
            return self._mean(slice(None), law)
        share = self.synthetic_rows / self.batch_size
        return (1 - share) * self._mean(slice(n), law) + share * self._mean(slice(n, None), law)

    def _mean(self, part: slice, law: str) -> float:
        assert self.row_weights is not None
        weights, labels = self.row_weights[part], self.images.labels[part]
        if law == "natural":
            return float(weights.mean())
        counts = np.bincount(labels)
        sums = np.bincount(labels, weights)
        return float((class_law(counts, law) * sums / np.maximum(counts, 1)).sum())

    def rows(self, step: int, law: str, *, real_only: bool = False, name: str = "") -> np.ndarray:
        """(B,) int64 rows of :attr:`images` for `step`.

        Args:
            law: over classes, of each kind of images.
            real_only: no synthetic rows.
            name: of the random stream, for another phase.
        """
        if not self.synthetic or real_only:
            return self._sampler("real", law, self.batch_size, name).indices(step)
        if not self.synthetic_rows:
            return self._sampler("all", law, self.batch_size, name).indices(step)
        real = self._sampler("real", law, self.batch_size - self.synthetic_rows, name).indices(step)
        return np.concatenate([real, self._sampler("synthetic", law, self.synthetic_rows, name).indices(step)])

    def _sampler(self, part: str, law: str, size: int, name: str) -> BatchSampler:
        key = (part, law + name, size)
        if key not in self._samplers:
            labels = self.images.labels
            labels = {"real": labels[: self.num_real], "synthetic": labels[self.num_real :], "all": labels}[part]
            stream = "classifier batch" + (" synthetic" if part == "synthetic" else "") + name
            sampler = BatchSampler(labels, size, law=law, seed=self.seed, name=stream)
            self._samplers[key] = sampler if part != "synthetic" else _Shifted(sampler, self.num_real)  # type: ignore[assignment]
        return self._samplers[key]


@dataclass(frozen=True)
class _Shifted:
    """A sampler of rows that lie behind `by` others."""

    sampler: BatchSampler
    by: int

    def indices(self, step: int) -> np.ndarray:
        return self.sampler.indices(step) + self.by


def joined(train: ImageSet, synthetic: ImageSet) -> ImageSet:
    """Real and synthetic images as one set, the real ones first."""
    return ImageSet(
        join([train.images, synthetic.images]),
        np.concatenate([train.labels, synthetic.labels]),
        train.class_names,
        (*(f"real/{i}" for i in train.ids), *(f"synthetic/{i}" for i in synthetic.ids)),
    )
