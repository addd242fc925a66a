"""How synthetic images take part in training a classifier, and which rows a step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from imbdiff.data.imageset import ImageSet, join
from imbdiff.data.names import named
from imbdiff.data.samplers import BatchSampler, class_distribution
from imbdiff.runtime.errors import ConfigError, DataError

Schedule = Literal["mixed", "real-last"]
Prior = Literal["train", "effective", "domain"]
EMPTIED = (
    "generate and keep some of every class (imbdiff sample RUN --sample.strategy equal --curate.policy none --replace)"
    ", or use another prior (imbdiff classify RUN --classify.synthetic_prior effective --replace)"
)
"""What to do where classes without synthetic images do not fit the prior per domain."""


@dataclass(frozen=True)
class Use:
    """How synthetic images take part.

    Attributes:
        weight: w > 0 of a synthetic image in the loss; a real one weighs 1.
        share: of the rows of a batch that are synthetic, in (0, 1); None: their share of all images, or half under the
            prior "domain".
        schedule: "mixed": in all steps. "real-last": the last steps, `last` of all, see real images only.
        last: share of the steps, in (0, 1).
        prior: what losses for long tails count: "train", real images; "effective", real + weight x synthetic as they
            occur in batches; or "domain", real images in the loss of real rows, and no prior in that of synthetic rows,
            which are sampled class-balanced.

    **The prior per domain.** Let real rows come from pi_k p(x | k) and synthetic ones from q(x | k) / C, all classes
    alike. The network's logits z are to decide as if classes were equally frequent: z_k = log p(x | k) + c(x). The
    posterior of a real row is then softmax(z + log pi)_k, that of a synthetic row, where q = p, softmax(z)_k: so the
    loss of the first has the prior of real counts and that of the second has none, whatever the share of each. With
    "train" synthetic rows get log pi too, though their classes are not so distributed: rare classes are counted twice.
    "effective" gives both kinds the prior of the mixture, which is right where q = p. The prior per domain is right
    where q(x | k) = r(x) p(x | k), whatever r: artefacts alike in all classes. With the prior of the mixture "looks
    real" then says "is of a frequent class" and "looks synthetic" "is of a rare one". Where q has other contents, what
    is learned of an image x that both kinds have lies between the posteriors of p and q, and depends on the share.
    """

    weight: float = 1.0
    share: float | None = None
    schedule: Schedule = "mixed"
    last: float = 0.2
    prior: Prior = "train"

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(
                f"synthetic weight {self.weight} is not positive", "leave the synthetic images out instead"
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"synthetic share {self.share} of a batch is not in (0, 1)", "give for example 0.5")
        if not 0 < self.last < 1:
            raise ConfigError(f"last share {self.last} of the steps is not in (0, 1)", "give for example 0.2")
        if self.prior == "domain" and self.share is None:
            object.__setattr__(self, "share", 0.5)
        for name, kinds in (("schedule", Schedule), ("prior", Prior)):
            if getattr(self, name) not in get_args(kinds):
                known = " or ".join(get_args(kinds))
                raise ConfigError(f"unknown {name} {getattr(self, name)!r} of synthetic images", f"choose {known}")

    def lacking(self, counts: Sequence[int] | np.ndarray, names: Sequence[str]) -> list[str]:
        """Classes of which it needs synthetic images, and of which (C,) `counts` has none: the prior per domain samples
        all classes alike."""
        if self.prior != "domain":
            return []
        return [name for name, n in zip(names, counts, strict=True) if not n]

    def check_classes(self, counts: Sequence[int] | np.ndarray, names: Sequence[str]) -> None:
        """Refuses synthetic images that cannot be used so.

        Args:
            counts: (C,) of them per class.

        Raises:
            DataError: under the prior per domain, some classes have none.
        """
        none = self.lacking(counts, names)
        if 0 < len(none) < len(names):
            raise DataError(
                f"no synthetic image of {named(none)}: the prior per domain takes synthetic rows of all classes alike",
                f"{EMPTIED}; in a study --numbers equal",
            )

    def describe(self) -> str:
        """For tables and pages."""
        parts = [f"weight {self.weight:g}"]
        if self.share is not None:
            parts.append(f"{self.share:.0%} of every batch")
        if self.schedule != "mixed":
            parts.append(f"last {self.last:.0%} of the steps: real images only")
        if self.prior != "train":
            parts.append("prior per domain" if self.prior == "domain" else f"prior: {self.prior}")
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
        without_prior: the last rows of a batch, in whose loss there is no prior.

    Raises:
        ConfigError: a share that leaves no synthetic or no real row in a batch.
        DataError: under the prior per domain, a class without synthetic images.
    """

    def __init__(self, real: ImageSet, synthetic: ImageSet | None, use: Use, batch_size: int, seed: int) -> None:
        self.use, self.batch_size, self.seed = use, batch_size, seed
        self.synthetic = synthetic is not None and len(synthetic) > 0
        self.images = joined(real, synthetic) if synthetic is not None and self.synthetic else real
        labels, n = self.images.labels, len(real)
        self.parts = {"real": slice(n), "synthetic": slice(n, None), "all": slice(None)}
        self.labels = {name: labels[part] for name, part in self.parts.items()}
        self.synthetic_rows = 0
        self._samplers: dict[tuple[str, str, int, str], BatchSampler] = {}
        if self.synthetic:
            use.check_classes(np.bincount(self.labels["synthetic"], minlength=len(real.class_names)), real.class_names)
        if self.synthetic and use.share is not None:
            self.synthetic_rows = round(use.share * batch_size)
            if not 0 < self.synthetic_rows < batch_size:
                raise ConfigError(
                    f"a synthetic share of {use.share:g} is {self.synthetic_rows} of {batch_size} rows",
                    "give a share that leaves at least one row of each kind, or a larger batch",
                )
        self.without_prior = self.synthetic_rows if use.prior == "domain" else 0

    def counts(self, prior: str) -> np.ndarray:
        """(C,) float64 images of each class, as losses for long tails count them; see :attr:`Use.prior`.

        With a fixed share of synthetic rows, "effective" counts how often an image of a class occurs in batches: the
        real counts, and the synthetic ones scaled to that share.

        Raises:
            ConfigError: a class without images.
        """
        real, made, weight = self.labels["real"], self.labels["synthetic"], self.use.weight
        classes = len(self.images.class_names)
        counts = np.bincount(real, minlength=classes).astype(np.float64)
        if prior == "effective" and self.synthetic:
            if self.synthetic_rows:
                weight *= self.synthetic_rows / (self.batch_size - self.synthetic_rows) * len(real) / len(made)
            counts += weight * np.bincount(made, minlength=classes)
        if (counts <= 0).any():
            missing = np.flatnonzero(counts <= 0).tolist()
            raise ConfigError(f"classes {missing[:20]} have no training image, so their prior is 0")
        return counts

    def relative_weights(self, distribution: str, *, real_only: bool = False) -> np.ndarray | None:
        """(N + M,) float64 weights of the images in the loss, relative to their mean over the rows that batches have.

        None where there are no synthetic images.

        Args:
            distribution: over classes, of each kind of images.
            real_only: batches have no synthetic rows.
        """
        if not self.synthetic:
            return None
        weights = np.ones(len(self.images))
        weights[self.parts["synthetic"]] = self.use.weight

        def mean(part: str) -> float:
            own, labels = weights[self.parts[part]], self.labels[part]
            over = self._distribution(part, distribution)
            if over == "natural":
                return float(own.mean())
            counts, sums = np.bincount(labels), np.bincount(labels, own)
            return float((class_distribution(counts, over) * sums / np.maximum(counts, 1)).sum())

        if real_only:
            return weights / mean("real")
        if not self.synthetic_rows:
            return weights / mean("all")
        share = self.synthetic_rows / self.batch_size
        return weights / ((1 - share) * mean("real") + share * mean("synthetic"))

    def rows(self, step: int, distribution: str, *, real_only: bool = False, name: str = "") -> np.ndarray:
        """(B,) int64 rows of :attr:`images` for `step`.

        Args:
            distribution: over classes, of each kind of images.
            real_only: no synthetic rows.
            name: of the random stream, for another phase.
        """
        if not self.synthetic or real_only:
            return self._rows("real", distribution, self.batch_size, name, step)
        if not self.synthetic_rows:
            return self._rows("all", distribution, self.batch_size, name, step)
        real = self._rows("real", distribution, self.batch_size - self.synthetic_rows, name, step)
        synthetic = self._rows("synthetic", distribution, self.synthetic_rows, name, step)
        return np.concatenate([real, synthetic + len(self.labels["real"])])

    def _distribution(self, part: str, distribution: str) -> str:
        """Over the classes of a part of the images: of synthetic ones balanced, under the prior per domain."""
        return "balanced" if part == "synthetic" and self.use.prior == "domain" else distribution

    def _rows(self, part: str, distribution: str, size: int, name: str, step: int) -> np.ndarray:
        distribution = self._distribution(part, distribution)
        key = (part, distribution, size, name)
        if key not in self._samplers:
            stream = "classifier batch" + (" synthetic" if part == "synthetic" else "") + name
            self._samplers[key] = BatchSampler(
                self.labels[part], size, distribution=distribution, seed=self.seed, name=stream
            )
        return self._samplers[key].indices(step)


def joined(real: ImageSet, synthetic: ImageSet) -> ImageSet:
    """Real and synthetic images as one set, the real ones first."""
    return ImageSet(
        join([real.images, synthetic.images]),
        np.concatenate([real.labels, synthetic.labels]),
        real.class_names,
        (*(f"real/{i}" for i in real.ids), *(f"synthetic/{i}" for i in synthetic.ids)),
    )
