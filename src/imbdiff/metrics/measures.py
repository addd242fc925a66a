"""The table of measures: what an evaluation computes for every scope, and how the page shows it.

A new metric is one file with a function (fake, real, *, seed) -> {name: Estimate} and one row here; or, outside this
package, a `Measure` that `choose_measures` finds by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from imbdiff.metrics.agreement import agreement
from imbdiff.metrics.diversity import diversity
from imbdiff.metrics.frechet import frechet
from imbdiff.metrics.inception_score import inception_score_measure
from imbdiff.metrics.kernel import kernel
from imbdiff.metrics.neighbours import neighbour_measures
from imbdiff.metrics.numbers import FID_NAMES, Direction
from imbdiff.metrics.prd import prd_measure
from imbdiff.metrics.rows import Estimate, Rows
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.tables import lookup

Function = Callable[..., dict[str, Estimate]]


@dataclass(frozen=True)
class Metric:
    """A number as readers know it, whatever extractor it is made with: all that the page shows of it.

    Attributes:
        name: the key of the estimate that the measure's function gives.
        direction: which way is better.
        what: one sentence for a newcomer.
        main: whether it stands in the open table.
        k: which nearest neighbour the function takes; None where it takes none.
        share: a part of a whole, 0 to 1.
        by_n: its size depends on how many images went in, so that values of different n do not compare.
        alone: for a number of one set of images, what stands in place of its reference; its baseline is of the
            reference images.
    """

    name: str
    direction: Direction
    what: str = ""
    main: bool = False
    k: int | None = None
    share: bool = False
    by_n: bool = False
    alone: str = ""

    @property
    def decimals(self) -> int | None:
        """It is printed with this many; None: as many as its size asks for."""
        return 2 if self.share else None


@dataclass(frozen=True)
class Measure:
    """One row of the table: a function, and the metrics that it gives.

    Attributes:
        function: ``(fake: Rows, real: Rows, *, seed: int)`` -> estimates by the name of the metric. None: another part
            of an evaluation computes it.
        metrics: what it gives.
        what: how it is computed, with the interval and what the number depends on; printed with the numbers.
        source: where the equation stands.
        against_train: whether it is computed against the training set too.
        needs: the judge's decision that it is computed from, an attribute of `Rows`; it is then of one set alone.
    """

    function: Function | None
    metrics: tuple[Metric, ...]
    what: str
    source: str
    against_train: bool = True
    needs: Literal["", "predicted", "probabilities"] = ""

    def numbers(self, fake: Rows, real: Rows, *, seed: int) -> dict[str, Estimate]:
        """What the function gives; a value that is not finite is refused, and so is everything where a set is empty.

        Raises:
            ConfigError: it gives numbers that are not among its `metrics`, or no `Estimate`.
        """
        assert self.function is not None
        names = [metric.name for metric in self.metrics]
        if not len(fake) or not len(real):
            return dict.fromkeys(names, Estimate.refuse("no class has images in both sets", fake, real))
        found = self.function(fake, real, seed=seed)
        for name, estimate in found.items():
            if name not in names or not isinstance(estimate, Estimate):
                where = getattr(self.function, "__qualname__", type(self.function).__name__)
                raise ConfigError(
                    f"the measure {where} gives {name!r}, a {type(estimate).__name__}",
                    f"it must give an Estimate for each of: {', '.join(names)}",
                )
            if estimate.value is not None and not math.isfinite(estimate.value):
                found[name] = Estimate.refuse(f"the value is {estimate.value}", fake, real)
        return found


MEASURES: dict[str, Measure] = {
    "frechet": Measure(
        frechet,
        (
            Metric("FD", "lower", "Fréchet distance of the features, at this number of images; 0 where they agree",
                   main=True, by_n=True),
            Metric("FD∞", "lower", "Fréchet distance, extrapolated to endless samples, so that scopes of any size "
                   "compare", main=True),
        ),
        "squared Fréchet distance of normal distributions in feature space, float64. FD: of the two samples, biased "
        "upwards at small n, so compare at equal n only; from 20 rows per feature. FD∞: extrapolated to endless "
        "samples, 95 % interval of the true distance; from 5 rows per feature",
        "Heusel et al. 2017; Chong and Forsyth 2020",
    ),
    "kernel": Measure(
        kernel,
        (Metric("KD", "lower", "kernel distance of the features: unbiased, serves where images are few, may fall "
                "below 0", main=True),),
        "unbiased squared maximum mean discrepancy, kernel (x.y/D + 1)^3, stratified by class; may be negative; 95 % "
        "interval of the true distance",
        "Gretton et al. 2012; Binkowski et al. 2018",
    ),
    "neighbours": Measure(
        neighbour_measures,
        (
            Metric("precision", "higher", "share of synthetic images that lie among the real ones",
                   main=True, k=3, share=True, by_n=True),
            Metric("recall", "higher", "share of real images that lie among the synthetic ones",
                   main=True, k=3, share=True, by_n=True),
            Metric("density", "higher", "how many real neighbourhoods a synthetic image lies in, on average; may "
                   "exceed 1", k=5, by_n=True),
            Metric("coverage", "higher", "share of real images that have a synthetic one close by",
                   main=True, k=5, share=True, by_n=True),
        ),
        "shares of images inside the other set's k-nearest-neighbour balls; they depend on n and k, so compare at "
        "equal n and k only; 95 % delete-a-group jackknife around the value at this n",
        "Kynkäänniemi et al. 2019; Naeem et al. 2020",
    ),
    "prd": Measure(
        prd_measure,
        (
            Metric("F8", "higher", "recall of distributions over clusters", share=True, by_n=True),
            Metric("F1/8", "higher", "precision of distributions over clusters", share=True, by_n=True),
        ),
        "precision and recall of distributions over 20 clusters per class, 1001 angles, mean of 10 clusterings; F8 "
        "weighs recall, F1/8 precision; 95 % jackknife with the clusterings kept",
        "Sajjadi et al. 2018",
        against_train=False,
    ),
    "diversity": Measure(
        diversity,
        (Metric("diversity", "nearer 1", "how far apart images of a class are; 1: as far as real ones", main=True),),
        "mean distance between two images of a class in feature space, divided by the same for the reference images: "
        "1 is as varied as real images",
        "intra-class diversity, as in the long-tail literature, with feature distances",
        against_train=False,
    ),
    "agreement": Measure(
        agreement,
        (Metric("agreement", "higher", "share of synthetic images that the judge puts into the class they were made "
                "for", main=True, share=True, alone="label asked for"),),
        "share of synthetic images that the judge puts into the class asked for, weighted to the class mix; 95 % "
        "Wilson interval at the effective n; with the same for the reference images",
        "label agreement, as in the long-tail literature",
        against_train=False,
        needs="predicted",
    ),
    "inception score": Measure(
        inception_score_measure,
        (Metric("IS", "higher", "Inception score: classes recognised clearly and evenly; knows no real images",
                by_n=True, alone="none"),),
        "Inception score of the judge's probabilities, 10 splits, of as many synthetic as reference images; 95 % "
        "jackknife around the value at this n",
        "Salimans et al. 2016",
        against_train=False,
        needs="probabilities",
    ),
    "CAS": Measure(
        None,
        (Metric("CAS", "higher", "accuracy on real images of a classifier trained on synthetic images alone",
                main=True, share=True),),
        "classification accuracy score: test accuracy of classifiers trained on synthetic images alone",
        "Ravuri and Vinyals 2019",
        against_train=False,
    ),
}  # fmt: skip
METRICS = {
    metric.name: metric
    for metric in sorted((m for row in MEASURES.values() for m in row.metrics), key=lambda m: not m.main)
}
"""Every metric of the table by its name, the main ones first: the order of the page."""
QUESTIONS = (
    ("Do they look real?", ("precision", "KD", "FD∞", "FD")),
    ("Are they varied?", ("recall", "coverage", "diversity")),
    ("Do they show what was asked for?", ("agreement",)),
    ("Can a classifier learn from them?", ("CAS",)),
)
"""What a newcomer asks, and the metrics that answer: the first that can be printed."""
PANELS = (("agreement",), ("FD∞", "KD"), ("recall", "coverage", "diversity"), ("CAS",))
"""Panels of the plot of the classes: of each the first metric that (nearly) as many classes have as any."""


def choose_measures(names: Sequence[str] = ()) -> Mapping[str, Measure]:
    """All measures of the table, and those named.

    Args:
        names: ``module:PACKAGE.MODULE:NAME`` of a `Measure`, or an entry point of the group ``imbdiff.metrics``.

    Raises:
        ConfigError: there is none of that name, it is no `Measure`, or one of its numbers is another's.
    """
    chosen = dict(MEASURES)
    for name in (name for name in names if name not in chosen):
        found = lookup("metrics", MEASURES, name, kind=Measure)
        taken = {*FID_NAMES.values(), *(metric.name for measure in chosen.values() for metric in measure.metrics)}
        twice = sorted(taken & {metric.name for metric in found.metrics})
        if twice or not found.metrics or found.function is None:
            what = f"gives the number {twice[0]!r}, as another measure does" if twice else "gives no numbers"
            raise ConfigError(f"the measure {name} {what}", "give it a function, and names of its own in `metrics`")
        chosen[name] = found
    return chosen
