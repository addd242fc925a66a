"""Feature rows of one image set, as every metric takes them; scopes; and what a metric gives back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
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
    where only features are known). Subsets and jackknife groups follow the keys.

    Attributes:
        features: float32 or float64, finite, in the order they came in. Read a few at a time (:meth:`blocks`) where N
            may be large: it may be memory-mapped.
        labels: (N,) int64, ascending.
        keys: (N,) uint64, ascending within a class.
        weights: (N,) float64 > 0 that sum to 1: the share of each row in the class mix that the set stands for.
        index: (N,) place of each row in `features`.
        predicted: class that a judge gives each row of `features`, in their order; None where it knows none.
        probabilities: the judge's probabilities of its own classes, likewise.
        units: (N,) int64, the same for rows that belong together (of one patient), which intervals take as one draw;
            None: each row stands for itself.
    """

    features: np.ndarray
    labels: np.ndarray
    keys: np.ndarray
    weights: np.ndarray
    index: np.ndarray
    predicted: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    units: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        features: np.ndarray,
        labels: np.ndarray | None = None,
        proportions: np.ndarray | None = None,
        *,
        hashes: Sequence[str] | None = None,
        seed: int = 0,
        predicted: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
        together: Any = None,
    ) -> Rows:
        """Sorts and weights `features`.

        Args:
            features: (N, D) numbers.
            labels: (N,) int; all 0 where not given.
            proportions: (C,) >= 0, the class mix to stand for; rows of a class of proportion 0 are left out, shares
                are renormalised over the classes that occur. Not given: every row weighs the same.
            hashes: (N,) hexadecimal hashes of the images; hashes of the feature rows where not given.
            seed: of the keys.
            predicted: (N,) int; probabilities: (N, C). See the attributes.
            together: (N,) what rows that belong together share; None where nothing is known of it.

        Raises:
            DataError: `features` is not (N, D), is not finite, or labels, hashes, proportions do not belong to it.
        """
        x = np.asanyarray(features)
        if x.ndim != 2 or x.dtype.kind not in "fiub":
            raise DataError(f"features must be (N, D) real numbers, not {x.shape} {x.dtype}")
        if x.dtype not in (np.float32, np.float64):
            x = x.astype(np.float64)
        z = np.zeros(len(x), np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
        if z.shape != (len(x),) or (len(z) and z.min() < 0):
            raise DataError(f"{len(x)} feature rows need as many labels >= 0, not {z.shape}")
        if hashes is not None and len(hashes) != len(x):
            raise DataError(f"{len(x)} feature rows, but {len(hashes)} hashes")
        if proportions is not None and len(z) and z.max() >= len(proportions):
            raise DataError(f"label {z.max()} has no place in {len(proportions)} proportions")
        _check_finite(x)
        salt = f"imbdiff {seed} ".encode()
        parts = (np.ascontiguousarray(row).tobytes() for row in x) if hashes is None else (h.encode() for h in hashes)
        digests = b"".join(hashlib.blake2b(salt + part, digest_size=8).digest() for part in parts)
        keys = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
        order = np.lexsort((keys, z))
        weights = np.full(len(x), 1 / max(len(x), 1))
        units = None if together is None else np.unique(together, return_inverse=True)[1][order]
        rows = cls(x, z[order], keys[order], weights, order, predicted, probabilities, units)
        return rows if proportions is None else rows.mixed(proportions)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dim(self) -> int:
        return self.features.shape[1]

    @property
    def effective(self) -> float:
        """Effective number of rows, or of what belongs together, 1 / sum w^2 (Kish); N where all weigh the same."""
        return 1.0 / float((self.sums(self.weights) ** 2).sum()) if len(self) else 0.0

    @property
    def draws(self) -> int:
        """Rows, or groups of those that belong together."""
        return len(self) if self.units is None else len(np.unique(self.units))

    def sums(self, x: np.ndarray) -> np.ndarray:
        """Sums of `x` (N, ...) over rows that belong together; `x` itself where each stands for itself."""
        if self.units is None:
            return x
        found = np.zeros((int(self.units.max(initial=-1)) + 1, *x.shape[1:]))
        np.add.at(found, self.units, x)
        return found

    def draws_of_class(self) -> np.ndarray:
        """(K,) rows of each class up to the last one, or groups of those that belong together."""
        if self.units is None:
            return np.bincount(self.labels)
        return np.bincount(np.unique(np.stack([self.labels, self.units]), axis=1)[0])

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
        units = None if self.units is None else self.units[keep]
        return replace(
            self, labels=self.labels[keep], keys=self.keys[keep], weights=w, index=self.index[keep], units=units
        )

    def mixed(self, proportions: np.ndarray) -> Rows:
        """The rows of the classes with `proportions` (C,) > 0, weighted to that class mix."""
        p = np.asarray(proportions, dtype=np.float64)
        return self.select(p[self.labels] > 0)._weighted(p)

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
        return self.select(np.sort(np.lexsort((self.labels, turn))[:n]))._weighted(share)

    def _weighted(self, share: np.ndarray) -> Rows:
        """The same rows, each class with its share (C,) of the weight; shares are scaled to sum to 1."""
        counts = np.bincount(self.labels, minlength=len(share))
        left = np.where(counts > 0, share, 0.0)
        return replace(self, weights=(left / max(left.sum(), 1e-300) / np.maximum(counts, 1))[self.labels])

    def groups(self) -> np.ndarray:
        """(N,) int64 jackknife group of each row; the rows of a class spread as evenly as can be, those that belong
        together in one, unless there is nothing else."""
        if self.units is None or self.draws < 2:
            return np.arange(len(self)) % GROUPS
        _, first, unit = np.unique(self.units, return_index=True, return_inverse=True)
        return np.argsort(np.argsort(first))[unit] % GROUPS

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


def _check_finite(x: np.ndarray, size: int = 8192) -> None:
    for start in range(0, len(x), size):
        bad = ~np.isfinite(x[start : start + size]).all(axis=1)
        if bad.any():
            raise DataError(
                f"feature row {start + int(bad.argmax())} of {len(x)} is not finite (NaN or infinite)",
                "look at the image or the weights it came from",
            )


def in_both(fake: Rows, real: Rows, least: int) -> np.ndarray:
    """(C,) bool: the classes that have at least `least` rows in both sets."""
    count = max(fake.labels.max(initial=-1), real.labels.max(initial=-1)) + 1
    return np.minimum(*(np.bincount(r.labels, minlength=count) for r in (fake, real))) >= least


def too_few(fake: Rows, real: Rows, least: int, per_class: int) -> str:
    """The refusal of fewer than `least` rows in classes that have `per_class` in both sets; "" where there are more."""
    if min(len(fake), len(real)) >= least:
        return ""
    return (
        f"at least {least} images in both sets, from classes with at least {per_class} in both, are needed; "
        f"here {len(fake)} and {len(real)}"
    )


@dataclass(frozen=True)
class Estimate:
    """One number, or the reason why there is none.

    Attributes:
        value: None where refused.
        low, high: 95 % interval; None where refused or where there is none.
        refused: why there is no value, and what would be needed.
        n_synthetic, n_reference: rows that went into it (0: that set is not used).
        n_effective: the smaller effective number of rows of the sets that are used.
        extra: what else belongs to it, such as {"splits": 10}; JSON-able.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    refused: str | None = None
    n_synthetic: int = 0
    n_reference: int = 0
    n_effective: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

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
        n_synthetic, n_reference = (0 if rows is None else len(rows) for rows in (fake, real))
        effective = min((rows.effective for rows in (fake, real) if rows is not None), default=0.0)
        return cls(None, None, None, reason, n_synthetic, n_reference, effective, extra)


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


def scopes(names: tuple[str, ...], groups: Groups | None) -> Iterator[Scope]:
    """All, then groups that are present, then classes (not where there is one class only: that is "all")."""
    every = np.arange(len(names))
    yield Scope("all", "all", every)
    if groups is not None and len(groups.present) > 1:
        for name in groups.present:
            yield Scope("group", name, np.array(groups.classes(name)))
    if len(names) > 1:
        for k, name in enumerate(names):
            yield Scope("class", name, every[k : k + 1])
