"""Which images are held out of a class: pure functions from labels to indices, stratified, drawn class by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imbdiff.runtime.errors import ConfigError, DataError, listing
from imbdiff.runtime.streams import rng

TINY = 3  # a class of up to this many images stays whole in train
LEAST_FOR_VAL = 20  # a class of fewer images gives none to validation


def check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} {value!r} is not in [0, 1)", "give for example 0.2")


def test_counts(
    counts: Sequence[int], fraction: float, per_class: int | None, class_names: Sequence[str]
) -> tuple[int, ...]:
    """(C,) images of each class to hold out for the test split.

    A class of 1 to 3 images gives none. Of the others, `per_class` if that is set, otherwise round(`fraction` n), at
    least 1; none at all where `fraction` is 0.

    Raises:
        DataError: `per_class` would leave a class without training images.
    """
    if per_class is None:
        return tuple(0 if n <= TINY or fraction == 0 else min(n - 1, max(1, round(fraction * n))) for n in counts)
    if per_class < 1:
        raise ConfigError(f"{per_class} test images per class is not positive", "give at least 1")
    short = [f"{name!r}: {n} images" for name, n in zip(class_names, counts, strict=True) if TINY < n <= per_class]
    if short:
        raise DataError(
            f"{per_class} test images per class would leave these classes without training images:\n{listing(short)}",
            "hold out fewer, or a fraction (test_fraction)",
        )
    return tuple(0 if n <= TINY else per_class for n in counts)


def val_counts(counts: Sequence[int], fraction: float) -> tuple[int, ...]:
    """(C,) images to hold out for validation: round(`fraction` n), at least 1, of classes of at least 20 images."""
    return tuple(max(1, round(fraction * n)) if n >= LEAST_FOR_VAL and fraction > 0 else 0 for n in counts)


def draw(labels: np.ndarray, wanted: Sequence[int], seed: int, name: str, last: np.ndarray | None = None) -> np.ndarray:
    """Sorted indices of `wanted`[k] images of each class k (all of them where there are fewer).

    Args:
        labels: (N,) int64.
        wanted: (C,) images per class.
        seed: of the split.
        name: of the random stream; the draw in one class does not depend on the others.
        last: (N,) bool: images to take only where the others do not suffice (those that have exact copies: a copy
            left behind in the training split would make the test easier than it is).
    """
    parts = [np.empty(0, dtype=np.int64)]
    for k, n in enumerate(wanted):
        members = rng(seed, name, k).permutation(np.flatnonzero(labels == k))
        if last is not None:
            members = np.concatenate([members[~last[members]], members[last[members]]])
        parts.append(members[:n])
    return np.sort(np.concatenate(parts))
