"""Intra-class diversity: how far apart images of one class are, against real images of that class.

Equation: with d_k the mean of |x_i - x_j| over the pairs i < j of class k (a U-statistic: unbiased at every n >= 2),

    diversity = sum_k p_k d_k(synthetic) / sum_k p_k d_k(real),        p the class mix of the reference

1: as varied as real images; 0: one image a class. It sees neither whether images are right nor how they are spread.

Papers also report LPIPS between images of a class (Zhang et al. 2018). There is no common protocol; here it is AlexNet,
50 pairs of each class chosen by hash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imbdiff.metrics.points import PAIRS
from imbdiff.metrics.rows import GROUPS, Estimate, Rows, row_keys
from imbdiff.metrics.statistics import jackknife_half_width
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.streams import rng

PER_CLASS = 500
"""Rows of a class in either set that are used, those of the lowest keys."""
MIN_PER_CLASS = 5
"""Rows of a class in both sets for the class to take part: pairs must remain with a group left out."""
MIN_ROWS = 20
"""Rows of such classes in either set, at least: one in each group of the jackknife."""

ImageDistance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mean_pairwise_distance(x: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of rows of `x` (N, D).

    Raises:
        DataError: fewer than two rows.
    """
    if np.ndim(x) != 2 or len(x) < 2:
        raise DataError(f"a distance between rows needs (N, D) with at least two rows, not {np.shape(x)}")
    return float(_distances(np.asarray(x, np.float64)).sum() / (len(x) * (len(x) - 1)))


def diversity(
    fake: Rows, real: Rows, *, seed: int = 0, per_class: int = PER_CLASS, least: int = MIN_PER_CLASS
) -> dict[str, Estimate]:
    """ "diversity": the ratio above, over the classes with `least` rows in both sets; n counts the rows used.

    `extra`: "synthetic_distance", "reference_distance", and "classes" that took part. The interval is the
    delete-a-group jackknife over both sets, by the logarithm, as the ratio of two lengths asks for. Where all synthetic
    rows of each class are equal, the jackknife says nothing: the upper end is then 6 / n, as the share of rows that
    differ is up to 3 / n with 95 % confidence and each pair has two.
    """
    least = max(2, least)
    count = max(fake.labels.max(initial=-1), real.labels.max(initial=-1)) + 1
    in_both = np.minimum(np.bincount(fake.labels, minlength=count), np.bincount(real.labels, minlength=count)) >= least
    classes = np.flatnonzero(in_both)
    fake, real = (_first(rows, in_both, per_class) for rows in (fake, real))
    if min(len(fake), len(real)) < MIN_ROWS:
        reason = (
            f"at least {MIN_ROWS} images in both sets, from classes with at least {least} in both, are needed; "
            f"here {len(fake)} and {len(real)}"
        )
        return {"diversity": Estimate.refuse(reason, fake, real)}
    # the mix of all reference rows, cut down to these classes: `_first` keeps the shares
    share = np.bincount(real.labels, real.weights, minlength=count)[classes]
    mine, theirs = (_left_out(rows, classes) @ share for rows in (fake, real))
    if theirs.min() <= 0:
        reason = "the real images of each class are all the same: there is nothing to compare with"
        return {"diversity": Estimate.refuse(reason, fake, real)}
    value = float(mine[-1] / theirs[-1])
    extra = {
        "synthetic_distance": float(mine[-1]),
        "reference_distance": float(theirs[-1]),
        "classes": classes.tolist(),
    }
    if mine.min() <= 0:
        return {"diversity": Estimate.of(value, 0.0, max(value, 6 / len(fake)), fake, real, **extra)}
    half = jackknife_half_width([np.log(d[:-1]).tolist() for d in (mine, theirs)])
    low, high = value * np.exp(-half), value * np.exp(half)
    return {"diversity": Estimate.of(value, float(low), float(high), fake, real, **extra)}


def lpips_diversity(
    images: Mapping[int, np.ndarray],
    pairs: int = 50,
    net: str = "alex",
    weights: Path | None = None,
    *,
    seed: int = 0,
    distance: ImageDistance | None = None,
    batch: int = 25,
) -> dict[int, Estimate]:
    """Mean LPIPS between images of each class.

    Args:
        images: class -> (n, H, W, C) uint8, C 1 or 3.
        pairs: of each class; all of them where there are fewer. They are chosen by the hashes of the images; where the
            class has 2 `pairs` images or more, no image is in two of them.
        net: "alex", "vgg" or "squeeze".
        weights: file with the backbone's weights, for use without network; torchvision's by default.
        distance: (n, 3, H, W) x 2 in [-1, 1] -> (n,), in place of LPIPS.

    Returns:
        class -> mean; the 95 % interval (Student's t) only where no image is in two pairs. Refused below 2 images.

    Raises:
        ConfigError: the package lpips is missing, or `net` is none of its networks.
        DataError: images of another type or shape.
    """
    for k, x in images.items():
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in (1, 3):
            raise DataError(f"images of class {k} must be (n, H, W, 1 or 3) uint8, not {x.shape} {x.dtype}")
    measure = distance or _lpips(net, weights)
    result = {}
    for k, x in images.items():
        about = {"net": net, "pairs": 0}
        order = np.argsort(row_keys(x.reshape(len(x), -1), seed), kind="stable")
        if len(x) < 2:
            estimate = Estimate.refuse(f"pairs need at least 2 images; here {len(x)}", None, None, **about)
        else:
            first, second, apart = _pairs(len(x), pairs, rng(seed, "lpips", int(k)))
            values = []
            for start in range(0, len(first), batch):
                a, b = (_tensor(x[order[i[start : start + batch]]]) for i in (first, second))
                with torch.no_grad():
                    values += measure(a, b).double().reshape(-1).tolist()
            mean, about["pairs"] = float(np.mean(values)), len(values)
            half = _t95(len(values)) * float(np.std(values, ddof=1)) / len(values) ** 0.5 if apart else None
            low, high = (None, None) if half is None else (max(0.0, mean - half), mean + half)
            estimate = Estimate.of(mean, low, high, None, None, **about)
        result[k] = Estimate(**{**estimate.__dict__, "n_synthetic": len(x), "n_effective": float(len(x))})
    return result


def _first(rows: Rows, of_class: np.ndarray, per_class: int) -> Rows:
    """The first `per_class` rows (by key) of the classes marked; the shares of the classes stay."""
    rows = rows.select(of_class[rows.labels])
    if not len(rows):
        return rows
    share, counts = np.bincount(rows.labels, rows.weights), np.bincount(rows.labels)
    rank = np.arange(len(rows)) - np.searchsorted(rows.labels, rows.labels, side="left")
    kept = rows.select(rank < per_class)
    weights = (share / np.maximum(np.minimum(counts, per_class), 1))[kept.labels]
    return Rows(kept.features, kept.labels, kept.keys, weights / weights.sum(), kept._index)


def _left_out(rows: Rows, classes: np.ndarray) -> np.ndarray:
    """(GROUPS + 1, classes) mean pairwise distance of each class without group g; in the last row of all."""
    groups = rows.groups()
    result = np.empty((GROUPS + 1, len(classes)))
    for i, k in enumerate(classes):
        mine = np.flatnonzero(rows.labels == k)
        d = _distances(rows.select(mine).array.astype(np.float64))
        member = np.eye(GROUPS)[groups[mine]]
        to_group = d @ member
        # a pair within the group is counted at both of its rows
        total = d.sum() - 2 * to_group.sum(axis=0) + (member * to_group).sum(axis=0)
        left = len(mine) - member.sum(axis=0)
        # a class that a group takes all but one row of keeps its value
        kept = np.where(left >= 2, total, d.sum())
        left = np.where(left >= 2, left, len(mine))
        result[:-1, i] = np.maximum(kept, 0) / (left * (left - 1))
        result[-1, i] = d.sum() / (len(mine) * (len(mine) - 1))
    return result


def _distances(x: np.ndarray) -> np.ndarray:
    """(N, N) Euclidean distances, 0 on the diagonal and between equal rows."""
    x = x - x.mean(axis=0)
    norms = (x * x).sum(axis=1)
    both = norms[:, None] + norms
    squared = both - 2 * x @ x.T
    # where nearly everything cancels, anew from the differences
    i, j = np.nonzero(np.triu(squared <= 1e-6 * both, 1))
    step = max(1, PAIRS // max(x.shape[1], 1))
    for start in range(0, len(i), step):
        a, b = i[start : start + step], j[start : start + step]
        squared[a, b] = squared[b, a] = ((x[a] - x[b]) ** 2).sum(axis=1)
    np.fill_diagonal(squared, 0.0)
    return np.sqrt(np.maximum(squared, 0.0))


def _pairs(n: int, pairs: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool]:
    """Rows of up to `pairs` different pairs of n, and whether each row is in one pair only."""
    if n >= 2 * pairs:
        rows = generator.permutation(n)[: 2 * pairs]
        return rows[:pairs], rows[pairs:], pairs > 1
    first, second = np.triu_indices(n, 1)
    keep = np.sort(generator.permutation(len(first))[:pairs])
    return first[keep], second[keep], False


def _t95(n: int) -> float:
    """Student's t with n - 1 degrees of freedom, from the jackknife, whose variance of n values with mean square
    deviation n / (n - 1) is 1."""
    values = np.r_[np.ones(n // 2), -np.ones(n // 2), np.zeros(n % 2)]
    scale = np.sqrt((n - 1) / n * float((values**2).sum()))
    return jackknife_half_width([(values / scale).tolist()])


def _tensor(x: np.ndarray) -> torch.Tensor:
    y = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return y.expand(-1, 3, -1, -1) if y.shape[1] == 1 else y


def _lpips(net: str, weights: Path | None) -> ImageDistance:
    if net not in ("alex", "vgg", "squeeze"):
        raise ConfigError(f"LPIPS has no network {net!r}", "choose alex, vgg or squeeze")
    try:
        import lpips  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError(
            "LPIPS needs the package lpips, which is not installed",
            "pip install 'imbalanced-diffusion[fidelity]', or leave LPIPS out: the feature diversity needs nothing",
        ) from error
    network: Any = lpips.LPIPS(net=net, pnet_rand=weights is not None, verbose=False).eval()
    if weights is not None:
        from imbdiff.metrics.extractors.weights import read_weights

        # lpips cuts torchvision's `features` into slices and keeps the numbers of the layers
        given = {k.removeprefix("features."): v for k, v in read_weights(weights).items() if k.startswith("features.")}
        wanted = network.net.state_dict()
        try:
            network.net.load_state_dict({name: given[name.split(".", 1)[1]] for name in wanted})
        except (KeyError, RuntimeError) as error:
            raise DataError(f"{weights} does not hold the weights of torchvision's {net}: {error}") from error
    return lambda a, b: network(a, b).reshape(-1)
