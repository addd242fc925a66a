"""Feature rows of one image set, as every metric takes them; scopes; and what a metric gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from imbdiff.data.stats import Groups
from imbdiff.runtime.errors import DataError

GROUPS = 20
"""Groups of the delete-a-group jackknife."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Feature rows in an order that does not depend on the order they came in.

    Rows are sorted by class and, within a class, by a key made from the hash of the image (of the feature row itself,
    where only features are known). Subsets and jackknife groups follow the keys, so the order of files, the number of
    workers and that of processes change no number.

    Attributes:
        features: (N, D) float32 or float64, finite. Read a few at a time (:meth:`blocks`) where N may be large: it may
            be memory-mapped.
        labels: (N,) int64, ascending.
        keys: (N,) uint64, ascending within a class.
        weights: (N,) float64 > 0 that sum to 1: the share of each row in the class mix that the set stands for.
    """

    features: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    weights: np.ndarray
    _index: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        features: np.ndarray,
        labels: np.ndarray | None = None,
        proportions: np.ndarray | None = None,
        *,
        hashes: Sequence[str] | None = None,
        seed: int = 0,
    ) -> Rows:
        """Sorts and weights `features`.

        Args:
            features: (N, D) numbers.
            labels: (N,) int; all 0 where not given.
            proportions: (C,) >= 0, the class mix to stand for; rows of a class of proportion 0 are left out, shares
                are renormalised over the classes that occur. Not given: every row weighs the same.
            hashes: (N,) hexadecimal hashes of the images; hashes of the feature rows where not given.
            seed: of the keys.

        Raises:
            DataError: `features` is not (N, D), is not finite, or does not belong to the labels.
        """
        x = np.asanyarray(features)
        if x.ndim != 2 or not np.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
            raise DataError(f"features must be (N, D) real numbers, not {x.shape} {x.dtype}")
        if x.dtype not in (np.float32, np.float64):
            x = x.astype(np.float64)
        z = np.zeros(len(x), np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
        if z.shape != (len(x),) or (len(z) and z.min() < 0):
            raise DataError(f"{len(x)} feature rows need as many labels >= 0, not {z.shape}")
        check_finite(x)
        keys = row_keys(x, seed) if hashes is None else hash_keys(hashes, seed)
        if len(keys) != len(x):
            raise DataError(f"{len(x)} feature rows, but {len(keys)} hashes")
        order = np.lexsort((keys, z))
        rows = cls(x, z[order], keys[order], np.full(len(x), 1 / max(len(x), 1)), order)
        if proportions is None:
            return rows
        if len(z) and z.max() >= len(proportions):
            raise DataError(f"label {z.max()} has no place in {len(proportions)} proportions")
        return rows.mixed(proportions)

    def __post_init__(self) -> None:
        if self._index is None:
            object.__setattr__(self, "_index", np.arange(len(self.labels)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def index(self) -> np.ndarray:
        """(N,) place of each row in the array that `features` is."""
        assert self._index is not None
        return self._index

    @property
    def dim(self) -> int:
        return self.features.shape[1]

    @property
    def effective(self) -> float:
        """Effective number of rows 1 / sum w^2 (Kish); N where all weigh the same."""
        return 1.0 / float((self.weights**2).sum()) if len(self) else 0.0

    @property
    def array(self) -> np.ndarray:
        """(N, D) features in order, as one array in memory, of the type they are stored in."""
        return self.features[self.index]

    def blocks(self, size: int = 4096) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(n, D) float64 features and their (n,) row numbers, `size` rows at a time."""
        for start in range(0, len(self), size):
            rows = np.arange(start, min(start + size, len(self)))
            yield self.features[self.index[rows]].astype(np.float64), rows

    def select(self, keep: np.ndarray) -> Rows:
        """The rows `keep`, (n,) ascending row numbers or an (N,) mask; weights are scaled to sum to 1 again."""
        w = self.weights[keep]
        w = w / w.sum() if len(w) else w
        return replace(
            self, labels=self.labels[keep], keys=self.keys[keep], weights=w, _index=self.index[keep]
        )  # fmt: skip

    def mixed(self, proportions: np.ndarray) -> Rows:
        """The rows of the classes with `proportions` (C,) > 0, weighted to that class mix."""
        p = np.asarray(proportions, dtype=np.float64)
        kept = self.select(p[self.labels] > 0)
        counts = np.bincount(kept.labels, minlength=len(p))
        share = np.where(counts > 0, p, 0.0)
        weights = share / max(share.sum(), 1e-300) / np.maximum(counts, 1)
        return replace(kept, weights=weights[kept.labels])

    def part(self, n: int, least: int = 0) -> Rows:
        """At most `n` rows: of each class the ones with the lowest keys, as many as its share of the weight asks for.

        Classes that have fewer give all they have, and the others fill up; the shares of the weight stay.

        Args:
            least: rows that every class gives first, as far as it has them and `n` reaches.
        """
        if len(self) <= n:
            return self
        share = np.bincount(self.labels, self.weights)
        rank = np.arange(len(self)) - np.searchsorted(self.labels, self.labels, side="left")
        turn = np.where(rank < least, -1.0, (rank + 0.5) / share[self.labels])
        keep = np.sort(np.lexsort((self.labels, turn))[:n])
        part = self.select(keep)
        counts = np.bincount(part.labels, minlength=len(share))
        left = np.where(counts > 0, share, 0.0)
        return replace(part, weights=(left / left.sum() / np.maximum(counts, 1))[part.labels])

    def groups(self, groups: int = GROUPS) -> np.ndarray:
        """(N,) int64 jackknife group 0..groups-1 of each row; the rows of a class spread as evenly as can be."""
        return np.arange(len(self)) % groups

    def left_out_weights(self) -> np.ndarray:
        """(N, G + 1) weights of rows with each group left out (0 for its own rows) and, in the last column, with none.

        The shares of the classes stay; a class that a group holds all of gives its share to the others.
        """
        groups = self.groups()
        keep = np.ones((len(self), int(groups.max()) + 2))
        keep[np.arange(len(self)), groups] = 0.0
        share = np.bincount(self.labels, self.weights)
        left = np.zeros((len(share), keep.shape[1]))
        np.add.at(left, self.labels, keep * self.weights[:, None])
        w = keep * self.weights[:, None] * (share[:, None] / np.where(left > 0, left, 1.0))[self.labels]
        return w / w.sum(axis=0)


@dataclass(frozen=True)
class Estimate:
    """One number, or the reason why there is none.

    Attributes:
        value: None where refused.
        low, high: 95 % interval; None where refused or where there is none.
        refused: why there is no value, and what would be needed.
        n_synthetic, n_reference: rows that went into it (0: that set is not used).
        n_effective: the smaller effective number of rows of the sets that are used.
        extra: what else belongs to it, such as {"k": 3}; JSON-able.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    refused: str | None = None
    n_synthetic: int = 0
    n_reference: int = 0
    n_effective: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        value: float,
        low: float | None,
        high: float | None,
        fake: Rows | None = None,
        real: Rows | None = None,
        **extra: Any,
    ) -> Estimate:
        """A value from these rows."""
        return replace(cls.refuse("", fake, real, **extra), refused=None, value=value, low=low, high=high)

    @classmethod
    def refuse(cls, reason: str, fake: Rows | None = None, real: Rows | None = None, **extra: Any) -> Estimate:
        """No value, for this reason."""
        used = [r.effective for r in (fake, real) if r is not None]
        return cls(
            value=None,
            refused=reason,
            n_synthetic=0 if fake is None else len(fake),
            n_reference=0 if real is None else len(real),
            n_effective=min(used) if used else 0.0,
            extra=extra,
        )


def check_finite(x: np.ndarray, size: int = 8192) -> None:
    """Raises DataError that names the first feature row with a NaN or an infinite number."""
    for start in range(0, len(x), size):
        bad = ~np.isfinite(x[start : start + size]).all(axis=1)
        if bad.any():
            raise DataError(
                f"feature row {start + int(bad.argmax())} of {len(x)} is not finite (NaN or infinite)",
                "look at the image or the weights it came from",
            )


def hash_keys(hashes: Sequence[str], seed: int = 0) -> np.ndarray:
    """(N,) uint64 pseudo-random keys of hexadecimal hashes."""
    salt = f"imbdiff {seed} ".encode()
    digests = (hashlib.blake2b(salt + h.encode(), digest_size=8).digest() for h in hashes)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def row_keys(x: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N,) uint64 pseudo-random keys of feature rows, equal for equal rows."""
    salt = f"imbdiff {seed} ".encode()
    digests = (hashlib.blake2b(salt + np.ascontiguousarray(row).tobytes(), digest_size=8).digest() for row in x)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


@dataclass(frozen=True)
class Scope:
    """All classes, one group or one class.

    Attributes:
        kind: "all", "group" or "class".
        name: "all", or the name of the group or class.
        classes: (n,) labels.
    """

    kind: str
    name: str
    classes: np.ndarray

    def pair(self, fake: Rows, real: Rows, num_classes: int) -> tuple[Rows, Rows, int]:
        """The rows of both sets in this scope, weighted to the class mix of `real`; and how many classes are left out.

        Synthetic images fill up classes, so their class mix differs from the reference's by construction, and a plain
        distance would first of all measure that. Classes that one of the sets lacks are left out of both.
        """
        a, b = (np.bincount(r.labels, minlength=num_classes)[self.classes] for r in (fake, real))
        shared = self.classes[(a > 0) & (b > 0)]
        mix = np.zeros(num_classes)
        mix[shared] = np.bincount(real.labels, minlength=num_classes)[shared]
        return fake.mixed(mix), real.mixed(mix), len(self.classes) - len(shared)


def scopes(names: tuple[str, ...], groups: Groups | None, *, per_class: bool = True) -> Iterator[Scope]:
    """All, then groups that are present, then classes (not where there is one class only: that is "all")."""
    every = np.arange(len(names))
    yield Scope("all", "all", every)
    if groups is not None and len(groups.present) > 1:
        for name in groups.present:
            yield Scope("group", name, np.array(groups.classes(name)))
    if per_class and len(names) > 1:
        for k, name in enumerate(names):
            yield Scope("class", name, every[k : k + 1])
