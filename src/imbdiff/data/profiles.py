"""Long-tail profiles: how many images each class keeps, and which.

Two protocols choose the images. ``cifar-lt`` gives the very index lists of the literature (LDAM-DRW, CBDM, CCUA, OC:
numpy's legacy generator seeded once, every class shuffled in label order, the first n_i kept). ``imbdiff`` draws from
named streams, so that the choice in one class does not depend on the other classes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from imbdiff.data.names import counted
from imbdiff.runtime.errors import ConfigError, DataError, listing
from imbdiff.runtime.streams import rng

Profile = Literal["exponential", "pareto", "step"]
Protocol = Literal["imbdiff", "cifar-lt"]
Order = Literal["label", "size"]

PARETO_ALPHA = 6.0


def parse_imbalance_factor(value: float) -> float:
    """The imbalance factor IF = largest / smallest class, >= 1; code bases that write 0.01 mean 100.

    Raises:
        ConfigError: zero, negative, infinite or not a number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise ConfigError(f"imbalance factor {value!r} is not a positive number", "give for example 100 (or 0.01)")
    factor = float(value) if value >= 1 else 1 / float(value)
    nearest = round(factor)
    return float(nearest) if abs(factor - nearest) < 1e-9 * factor else factor


def profile_shares(profile: str, num_classes: int, imbalance_factor: float) -> np.ndarray:
    """(C,) float64 class sizes relative to the largest: from 1 down to 1 / IF, in order of rank i = 0..C-1.

    * exponential: (1/IF)^(i / (C-1)) (Cui et al. 2019; the CIFAR-LT of the literature).
    * pareto: quantiles of a Pareto distribution, alpha = 6: (C / (i+1))^(1/6), stretched linearly from 1 to 1/IF. For
      C = 1000, 1280 and IF 256 that is 121,449 images, within 5 % of ImageNet-LT's 115,846.
    * step: the first floor(C/2) classes 1, the rest 1/IF (Buda et al. 2018).

    Raises:
        ConfigError: unknown profile, fewer than 2 classes, an imbalance factor that is none.
    """
    if profile not in get_args(Profile):
        raise ConfigError(f"unknown long-tail profile {profile!r}", f"choose one of {', '.join(get_args(Profile))}")
    if num_classes < 2:
        raise ConfigError(f"a long tail needs at least 2 classes, not {num_classes}")
    f = 1 / parse_imbalance_factor(imbalance_factor)
    i = np.arange(num_classes)
    if profile == "exponential":
        # Python's power, not numpy's: the literature's counts hang on the last bit where a product is an integer
        return np.array([f ** (k / (num_classes - 1.0)) for k in range(num_classes)])
    if profile == "step":
        return np.where(i < num_classes // 2, 1.0, f)
    q = (num_classes / (i + 1)) ** (1 / PARETO_ALPHA)
    w = (q - q[-1]) / (q[0] - q[-1])
    return w + f * (1 - w)  # in this form both ends are exact


def profile_counts(profile: str, n_max: int, num_classes: int, imbalance_factor: float) -> tuple[int, ...]:
    """(C,) images per class in order of rank: floor(`n_max` * share), at least 1; see :func:`profile_shares`.

    Raises:
        ConfigError: a value out of range.
    """
    if n_max < 1:
        raise ConfigError(f"the largest class cannot have {n_max} images", "give at least 1")
    return _floored(n_max, profile_shares(profile, num_classes, imbalance_factor))


def _floored(n_max: int, shares: np.ndarray) -> tuple[int, ...]:
    # 98 * (1/49) is 1.9999... in floating point and means 2
    return tuple(max(1, math.floor(n_max * share + 1e-9)) for share in shares.tolist())


def largest_n_max(available: Sequence[int], profile: str, imbalance_factor: float, order: str = "label") -> int:
    """The most images that the largest class can have so that no class is asked for more than it has."""
    ranked = np.asarray(available)[class_ranks(available, order)]
    shares = profile_shares(profile, len(ranked), imbalance_factor)
    tried = range(2, int(ranked.max()) + 1)
    return bisect_left(tried, True, key=lambda n_max: bool((np.array(_floored(n_max, shares)) > ranked).any())) + 1


def class_ranks(counts: Sequence[int], order: str) -> np.ndarray:
    """(C,) labels from the class that becomes the largest to the one that becomes the smallest."""
    if order not in get_args(Order):
        raise ConfigError(f"unknown class order {order!r}", "choose label or size")
    return np.arange(len(counts)) if order == "label" else np.argsort(-np.asarray(counts), kind="stable")


def long_tail(
    labels: np.ndarray,
    *,
    imbalance_factor: float,
    profile: str = "exponential",
    protocol: str = "imbdiff",
    seed: int = 0,
    order: str = "label",
    n_max: int | None = None,
) -> np.ndarray:
    """Indices of the images that a long-tail profile keeps.

    Args:
        labels: (N,) int64 in [0, C), every class with at least one image.
        imbalance_factor: largest / smallest class; 0.01 means 100.
        profile: exponential, pareto or step.
        protocol: "imbdiff" (sorted indices, at least 1 per class) or "cifar-lt" (the literature's lists in the
            literature's order; seed 0 is theirs, n_max defaults to N / C, exponential or step, order label).
        seed: of the choice.
        order: which class becomes the largest: "label" = class 0, "size" = the one with the most images.
        n_max: images of the largest class; None = the most that all classes can serve.

    Returns:
        (n,) int64 indices into `labels`.

    Raises:
        ConfigError: an unknown profile, protocol or order, or a combination that the protocol does not have.
        DataError: a class has fewer images than the profile asks for, or would keep none.
    """
    factor = parse_imbalance_factor(imbalance_factor)
    available = np.bincount(labels).tolist()
    ranks = class_ranks(available, order)
    if protocol == "cifar-lt":
        if profile == "pareto" or order != "label":
            raise ConfigError(
                f"the cifar-lt protocol has no profile {profile!r} with order {order!r}",
                "use exponential or step with order label, or the protocol imbdiff",
            )
        largest = len(labels) / len(available) if n_max is None else n_max
        # int() and no tolerance: what the literature's code computes, digit for digit
        counts = [int(largest * share) for share in profile_shares(profile, len(available), factor).tolist()]
        if 0 in counts:
            raise DataError(
                f"at imbalance factor {factor:g} and {largest:g} images in the largest class, the cifar-lt "
                f"protocol leaves {counted(counts.count(0), 'class', 'classes')} without an image",
                "choose a smaller imbalance factor, or the protocol imbdiff, which keeps at least one",
            )
    elif protocol == "imbdiff":
        n_max = largest_n_max(available, profile, factor, order) if n_max is None else n_max
        counts = list(profile_counts(profile, n_max, len(available), factor))
    else:
        raise ConfigError(f"unknown protocol {protocol!r}", f"choose one of {', '.join(get_args(Protocol))}")
    wanted = dict(sorted(zip(ranks.tolist(), counts, strict=True)))
    short = [f"class {k}: {n} wanted, {available[k]} there" for k, n in wanted.items() if n > available[k]]
    if short:
        raise DataError(
            f"the profile asks for more images than {counted(len(short), 'class has', 'classes have')}:\n"
            f"{listing(short)}",
            "choose a smaller n_max, a larger imbalance factor, or order size",
        )
    # the indices of each class in ascending order
    of_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(available)[:-1])
    if protocol == "imbdiff":
        kept = [rng(seed, "long-tail", k).permutation(of_class[k])[:n] for k, n in wanted.items()]
        return np.sort(np.concatenate(kept))
    generator = np.random.RandomState(seed)  # the legacy generator is the rule; never the global one
    return np.concatenate([generator.permutation(of_class[k])[:n] for k, n in wanted.items()])
