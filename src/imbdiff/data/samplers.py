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

Distribution = Literal["natural", "balanced", "sqrt", "tempered", "half-balanced"]


def class_distribution(counts: np.ndarray, distribution: str, factor: float = 0.1) -> np.ndarray:
    """(C,) float64 probability of each class in a batch, of `counts` (C,) images per class. Empty classes get 0.

    * natural: p_k = n_k / N.
    * balanced: p_k = 1 / C.
    * sqrt: p_k proportional to sqrt(n_k).
    * half-balanced: p_k = (n_k / N + 1 / C) / 2.
    * tempered: p_k proportional to f^(r_k / (C-1)), r_k the rank of class k by size, largest first, ties by label, f in
      (0, 1] the `factor`: the batch resampling of CCUA (their code ranks by label and needs classes sorted by size).

    Raises:
        ConfigError: an unknown distribution, or a factor outside (0, 1].
    """
    if distribution not in get_args(Distribution):
        known = ", ".join(get_args(Distribution))
        raise ConfigError(f"unknown sampling distribution {distribution!r}", f"choose one of {known}")
    if not 0 < factor <= 1:
        raise ConfigError(
            f"sampling factor {factor!r} is not in (0, 1]", "0.1 samples the smallest class 10 times less"
        )
    counts = np.asarray(counts, dtype=np.float64)
    present = counts > 0
    rank = np.empty(len(counts))
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    weights = {
        "natural": counts,
        "balanced": present.astype(np.float64),
        "sqrt": np.sqrt(counts),
        "half-balanced": counts / max(counts.sum(), 1) + present / max(present.sum(), 1),
        "tempered": np.where(present, factor ** (rank / max(1, int(present.sum()) - 1)), 0.0),
    }[distribution]
    return weights / weights.sum()


class _RowsByClass:
    """Row numbers sorted by class: those of class k are `order[starts[k] : starts[k] + counts[k]]`."""

    def __init__(self, labels: np.ndarray) -> None:
        if not len(labels):
            raise ConfigError("there are no images to sample from", "give at least one")
        self.counts = np.bincount(labels)
        self.order = np.argsort(labels, kind="stable").astype(np.int64)
        self.starts = np.cumsum(self.counts) - self.counts


class BatchSampler:
    """Samples the batch of a step by one of the distributions of :func:`class_distribution`.

    Natural batches are permuted epochs, end to end, so that every image is used equally often. The others draw the
    class, then one of its images, independently and with replacement.

    Args:
        labels: (N,) int64 in [0, C).
        batch_size: B >= 1, of the global batch.
        distribution, factor: of the classes.
        seed: of the run.
        name: of the random stream; two samplers with different names are unrelated.

    Attributes:
        class_distribution: (C,) float64 probability of each class in a batch.
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
        self.batch_size, self.distribution, self.seed, self.name = batch_size, distribution, seed, name
        self.class_distribution = class_distribution(self._rows.counts, distribution, factor)
        self._cumulative = np.cumsum(self.class_distribution)
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def indices(self, step: int) -> np.ndarray:
        """(B,) int64 row numbers of the global batch of `step` >= 0; the same for every call and every instance."""
        if self.distribution == "natural":
            return self._of_epochs(step)
        rows = self._rows
        which, u = rng(self.seed, self.name, self.distribution, step).random((2, self.batch_size))
        classes = np.searchsorted(self._cumulative, which * self._cumulative[-1], side="right")
        # products of floats may round up to the end
        classes = np.minimum(classes, len(rows.counts) - 1)
        inside = np.minimum((u * rows.counts[classes]).astype(np.int64), rows.counts[classes] - 1)
        return rows.order[rows.starts[classes] + inside]

    def _of_epochs(self, step: int) -> np.ndarray:
        n, at = len(self._rows.order), step * self.batch_size
        end = at + self.batch_size
        parts = []
        while at < end:
            epoch, offset = divmod(at, n)
            if self._epoch[0] != epoch:
                self._epoch = (epoch, rng(self.seed, self.name, "epoch", epoch).permutation(n))
            parts.append(self._epoch[1][offset : offset + end - at])
            at += len(parts[-1])
        return np.concatenate(parts)


class GroupedSampler:
    """The class-grouped part of a batch: G groups of S rows, each group of one class.

    The classes of a step are different ones as long as there are enough, and so are the rows of a group; where there
    are not, none occurs more than once more often than another.

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
        self.classes = np.unique(np.asarray(classes, dtype=np.int64))
        self.num_groups, self.group_size, self.seed, self.name = num_groups, group_size, seed, name

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(G*S,) int64 row numbers of `step` and (G*S,) int64 group number 0..G-1 of each, group after group."""
        generator, rows = rng(self.seed, self.name, step), self._rows
        chosen = _in_rounds(self.classes, self.num_groups, generator)
        parts = [
            _in_rounds(rows.order[rows.starts[k] : rows.starts[k] + rows.counts[k]], self.group_size, generator)
            for k in chosen
        ]
        return np.concatenate(parts), np.repeat(np.arange(self.num_groups), self.group_size)


def _in_rounds(values: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """`n` of `values` without replacement; all of them, newly shuffled, again and again where there are fewer."""
    rounds = -(-n // len(values))
    return np.concatenate([generator.permutation(values) for _ in range(rounds)])[:n]
