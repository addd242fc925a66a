"""The table of measures: what `evaluate` computes for every scope, from the feature rows of two sets.

A new metric is one file with a function (fake, real, *, seed) -> {name: Estimate} and one row here; or, outside this
package, a `Measure` that `choose_measures` finds by its name.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from imbdiff.metrics.diversity import diversity
from imbdiff.metrics.frechet import frechet
from imbdiff.metrics.kernel import kernel
from imbdiff.metrics.neighbour_measures import neighbour_measures
from imbdiff.metrics.prd import prd_measure
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.metrics.vendi import vendi
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.files import digest
from imbdiff.runtime.tables import lookup

Direction = Literal["lower", "higher", "nearer 1", "none"]
Function = Callable[..., dict[str, Estimate]]
OTHERS = ("agreement", "IS", "CAS", "LPIPS", "FID", "FID∞", "KID")
"""Numbers that other parts of an evaluation give, and names of those of Inception's features."""


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

    def numbers(self, fake: Rows, real: Rows, *, seed: int) -> dict[str, Estimate]:
        """What the function gives; a value that is not finite is refused.

        Raises:
            ConfigError: it gives numbers that are not among its `directions`, or no `Estimate`.
        """
        found = self.function(fake, real, seed=seed)
        where = getattr(self.function, "__qualname__", type(self.function).__name__)
        for name, estimate in found.items():
            if name not in self.directions or not isinstance(estimate, Estimate):
                raise ConfigError(
                    f"the measure {where} gives {name!r}, a {type(estimate).__name__}",
                    f"it must give an Estimate for each of: {', '.join(self.directions)}",
                )
            if estimate.value is not None and not math.isfinite(estimate.value):
                found[name] = Estimate.refuse(f"the value is {estimate.value}", fake, real)
        return found

    @property
    def identity(self) -> str:
        """A hash of the row and of the file that the function stands in, as far as it has one."""
        module = inspect.getmodule(self.function)
        try:
            file = "" if module is None else inspect.getsource(module)
        except (OSError, TypeError):  # typed at a prompt, or compiled
            file = ""
        return digest([dict(self.directions), self.what, self.source, self.against_train, file])


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


def choose_measures(names: Sequence[str] = ()) -> Mapping[str, Measure]:
    """All measures of the table, and those named.

    Args:
        names: ``module:PACKAGE.MODULE:NAME`` of a `Measure`, or an entry point of the group ``imbdiff.metrics``.

    Raises:
        ConfigError: there is none of that name, it is no `Measure`, or one of its numbers is another's.
    """
    chosen = dict(MEASURES)
    for name in names:
        if name in chosen:
            continue
        found = lookup("metrics", MEASURES, name, kind=Measure)
        taken = {*OTHERS, *(number for measure in chosen.values() for number in measure.directions)}
        twice = sorted(taken & set(found.directions))
        if twice or not found.directions:
            what = f"gives the number {twice[0]!r}, as another measure does" if twice else "gives no numbers"
            raise ConfigError(f"the measure {name} {what}", "call its numbers something else in `directions`")
        chosen[name] = found
    return chosen


def named(number: str, extractor: str, is_fid: bool) -> str:
    """``FD[judge-cnn]``; with the FID Inception weights, and only with them, ``FID``, ``FID∞`` and ``KID``."""
    if is_fid and number in ("FD", "FD∞", "KD"):
        return {"FD": "FID", "FD∞": "FID∞", "KD": "KID"}[number]
    return f"{number}[{extractor}]"
