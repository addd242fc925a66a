"""The table of measures: what `evaluate` computes for every scope, from the feature rows of two sets.

A new metric is one file with a function (fake, real, *, seed) -> {name: Estimate} and one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from imbdiff.metrics.diversity import diversity
from imbdiff.metrics.frechet import frechet
from imbdiff.metrics.kernel import kernel
from imbdiff.metrics.neighbour_measures import neighbour_measures
from imbdiff.metrics.prd import prd_measure
from imbdiff.metrics.rows import Estimate
from imbdiff.metrics.vendi import vendi

Direction = Literal["lower", "higher", "nearer 1", "none"]
Function = Callable[..., dict[str, Estimate]]


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    Attributes:
        function: (fake: Rows, real: Rows, *, seed: int) -> numbers by name.
        directions: the numbers it gives, and which way is better.
        what: one sentence with the interval and what the number depends on; printed with the numbers.
        source: where the equation stands.
        against_train: whether it is computed against the training set too.
    """

    function: Function
    directions: Mapping[str, Direction]
    what: str
    source: str
    against_train: bool = True


MEASURES: dict[str, Measure] = {
    "frechet": Measure(
        frechet,
        {"FD": "lower", "FD∞": "lower"},
        "squared Fréchet distance of normal distributions in feature space, float64. FD: of the two samples, biased "
        "upwards at small n, so compare at equal n only; from 20 rows per feature. FD∞: extrapolated to endless "
        "samples, 95 % interval of the true distance; from 5 rows per feature",
        "Heusel et al. 2017; Chong and Forsyth 2020",
    ),
    "kernel": Measure(
        kernel,
        {"KD": "lower"},
        "unbiased squared maximum mean discrepancy, kernel (x.y/D + 1)^3, stratified by class; may be negative; 95 % "
        "interval of the true distance",
        "Gretton et al. 2012; Binkowski et al. 2018",
    ),
    "neighbours": Measure(
        neighbour_measures,
        {"precision(k=3)": "higher", "recall(k=3)": "higher", "density(k=5)": "higher", "coverage(k=5)": "higher"},
        "shares of images inside the other set's k-nearest-neighbour balls; they depend on n and k, so compare at "
        "equal n and k only; 95 % delete-a-group jackknife around the value at this n",
        "Kynkäänniemi et al. 2019; Naeem et al. 2020",
    ),
    "prd": Measure(
        prd_measure,
        {"F8": "higher", "F1/8": "higher"},
        "precision and recall of distributions over 20 clusters per class, 1001 angles, mean of 10 clusterings; F8 "
        "weighs recall, F1/8 precision; 95 % jackknife with the clusterings kept",
        "Sajjadi et al. 2018",
        against_train=False,
    ),
    "diversity": Measure(
        diversity,
        {"diversity": "nearer 1"},
        "mean distance between two images of a class in feature space, divided by the same for the reference images: "
        "1 is as varied as real images",
        "intra-class diversity, as in the long-tail literature, with feature distances for LPIPS",
        against_train=False,
    ),
    "vendi": Measure(
        vendi,
        {"vendi": "higher"},
        "effective number of modes: exponential of the entropy of the similarity matrix's eigenvalues; depends on n: "
        "read it beside that of the reference at the same n",
        "Friedman and Dieng 2023",
        against_train=False,
    ),
}


def named(number: str, extractor: str, is_fid: bool) -> str:
    """``FD[judge-cnn]``; with the FID Inception weights, and only with them, ``FID``, ``FID∞`` and ``KID``."""
    if is_fid and number in ("FD", "FD∞", "KD"):
        return {"FD": "FID", "FD∞": "FID∞", "KD": "KID"}[number]
    return f"{number}[{extractor}]"
