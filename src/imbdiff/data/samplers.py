"""Batch samplers: pure functions of (seed, step) that give the indices of the *global* batch.

Nothing is carried from step to step, so a run that stops anywhere goes on with the very batch it would have had, and
every process computes the same list and takes its slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import rng

Distribution = Literal["natural", "balanced", "sqrt", "tempered"]


class BatchSampler:
    """Samples the batch of a step from one of four distributions over the classes.

    * natural: permuted epochs; a batch may span two, so every image is used equally often. p_k = n_k / N.
    * balanced: p_k = 1 / C.
    * sqrt: p_k proportional to sqrt(n_k).
    * tempered: p_k proportional to f^(r_k / (C-1)), r_k the rank of class k by size, largest first, ties by label: the
      batch resampling of CCUA (their code ranks by label and needs classes sorted by size; here they need not be).

    All but natural draw the class, then one of its images, independently and with replacement.

    Args:
        labels: (N,) int64 in [0, C).
        batch_size: B >= 1, of the global batch.
        distribution: see above.
        factor: f in (0, 1] of tempered: p of the smallest class / p of the largest.
        seed: of the run.
        name: of the random stream; two samplers with different names are unrelated.

    Attributes:
        class_distribution: (C,) float64 probability of each class in a batch; 0 where a class has no image.
    """

    def __init__(
        self,
        labels: np.ndarray,
        batch_size: int,
        *,
        distribution: str = "natural",
        factor: float = 0.1,
        seed: int = 0,
        name: str = "batch",
    ) -> None:
        self._rows = _RowsByClass(labels)
        if batch_size < 1:
            raise ConfigError(f"batch size {batch_size} is not positive", "give at least 1")
        self.batch_size, self.distribution, self.seed, self.name = int(batch_size), distribution, seed, name
        self.class_distribution = class_distribution(self._rows.counts, distribution, factor)
        self._cumulative = np.cumsum(self.class_distribution)
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def indices(self, step: int) -> np.ndarray:
        """(B,) int64 row numbers of the global batch of `step` >= 0; the same for every call and every instance."""
        if step < 0:
            raise ConfigError(f"step {step} is negative")
        if self.distribution == "natural":
            return self._epochs(step)
        draws = rng(self.seed, self.name, self.distribution, step).random((2, self.batch_size))
        classes = np.searchsorted(self._cumulative, draws[0] * self._cumulative[-1], side="right")
        # A product that rounds up to the whole sum would fall behind the last class.
        return self._rows.pick(np.minimum(classes, len(self.class_distribution) - 1), draws[1])

    def _epochs(self, step: int) -> np.ndarray:
        n = len(self._rows)
        first = int(step) * self.batch_size
        parts = []
        at = first
        while at < first + self.batch_size:
            epoch, offset = divmod(at, n)
            part = self._permutation(epoch)[offset : offset + first + self.batch_size - at]
            parts.append(part)
            at += len(part)
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, rng(self.seed, self.name, "epoch", epoch).permutation(len(self._rows)))
        return self._epoch[1]


class GroupedSampler:
    """The class-grouped part of a batch: G groups of S rows, each group of one class.

    The classes of a step are different ones as long as there are enough, and so are the rows of a group; where not,
    they are drawn in rounds, so that none occurs more than once more often than another.

    Args:
        labels: (N,) int64.
        classes: labels to choose from, for example all but the head; each has at least one image.
        num_groups: G >= 1.
        group_size: S >= 1.
        seed: of the run.
        name: of the random stream.
    """

    def __init__(
        self,
        labels: np.ndarray,
        classes: Sequence[int],
        num_groups: int,
        group_size: int,
        *,
        seed: int = 0,
        name: str = "grouped",
    ) -> None:
        self._rows = _RowsByClass(labels)
        self.classes = np.array(sorted({int(k) for k in classes}), dtype=np.int64)
        if num_groups < 1 or group_size < 1:
            raise ConfigError(f"{num_groups} groups of {group_size} rows make no batch", "give at least 1 of each")
        if not len(self.classes):
            raise ConfigError("no class to draw groups from", "name at least one")
        empty = [k for k in self.classes.tolist() if not 0 <= k < len(self._rows.counts) or not self._rows.counts[k]]
        if empty:
            raise ConfigError(f"the classes {empty[:20]} have no training image", "leave them out of the groups")
        self.num_groups, self.group_size, self.seed, self.name = int(num_groups), int(group_size), seed, name

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(G*S,) int64 row numbers of `step` and (G*S,) int64 group number 0..G-1 of each, group after group."""
        if step < 0:
            raise ConfigError(f"step {step} is negative")
        generator = rng(self.seed, self.name, step)
        chosen = _in_rounds(self.classes, self.num_groups, generator)
        rows = [_in_rounds(self._rows.of(int(k)), self.group_size, generator) for k in chosen]
        return np.concatenate(rows), np.repeat(np.arange(self.num_groups, dtype=np.int64), self.group_size)


def class_distribution(counts: np.ndarray, distribution: str, factor: float = 0.1) -> np.ndarray:
    """(C,) float64 probability of each class, see :class:`BatchSampler`. Classes of no image get 0.

    Raises:
        ConfigError: an unknown distribution, or a factor outside (0, 1].
    """
    if distribution not in get_args(Distribution):
        raise ConfigError(
            f"unknown sampling distribution {distribution!r}", f"choose one of {', '.join(get_args(Distribution))}"
        )
    if not 0 < factor <= 1:
        raise ConfigError(f"sampling factor {factor!r} is not in (0, 1]", "0.1 draws the smallest class 10 times less")
    counts = np.asarray(counts, dtype=np.float64)
    present = counts > 0
    if distribution == "natural":
        weights = counts
    elif distribution == "balanced":
        weights = present.astype(np.float64)
    elif distribution == "sqrt":
        weights = np.sqrt(counts)
    else:
        rank = np.empty(len(counts))
        rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
        weights = np.where(present, factor ** (rank / max(1, int(present.sum()) - 1)), 0.0)
    return weights / weights.sum()


class _RowsByClass:
    """Row numbers sorted by class, so that an image of a class is found in O(1)."""

    def __init__(self, labels: np.ndarray) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ConfigError(
                f"labels of shape {labels.shape} {labels.dtype} cannot be sampled", "give (N,) integers >= 0, N >= 1"
            )
        self.counts = np.bincount(labels)
        self._order = np.argsort(labels, kind="stable").astype(np.int64)
        self._starts = np.cumsum(self.counts) - self.counts

    def __len__(self) -> int:
        return len(self._order)

    def of(self, k: int) -> np.ndarray:
        return self._order[self._starts[k] : self._starts[k] + self.counts[k]]

    def pick(self, classes: np.ndarray, u: np.ndarray) -> np.ndarray:
        """One row of each of `classes` (B,), by uniform numbers `u` (B,) in [0, 1)."""
        inside = np.minimum((u * self.counts[classes]).astype(np.int64), self.counts[classes] - 1)
        return self._order[self._starts[classes] + inside]


def _in_rounds(values: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """`n` of `values` without replacement; all of them, newly shuffled, again and again where there are fewer."""
    rounds = -(-n // len(values))
    return np.concatenate([generator.permutation(values) for _ in range(rounds)])[:n]
