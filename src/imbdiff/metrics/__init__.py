"""Extractors, statistics, one file per metric, by class and by group.

On plain arrays of features, rows (N, D), real first where the order matters:

    from imbdiff import metrics

    metrics.frechet_distance(x, y)                 # as scipy's matrix square root gives it
    metrics.kernel_distance(x, y)                  # unbiased
    metrics.precision_recall(real, fake, k=3)
    metrics.density_coverage(real, fake, k=5)
    metrics.prd_f8(real, fake, clusters=200)       # F8, F1/8
    metrics.inception_score(probabilities)         # mean, standard deviation over splits
    metrics.mean_pairwise_distance(x)

With intervals, class mix and refusals: the function of the same file that takes two `Rows`, for example
``imbdiff.metrics.frechet.frechet(Rows.of(x), Rows.of(y))``; for images: :func:`imbdiff.metrics.evaluate.evaluate`.

The room is larger than its budget: no library gives these numbers with weights, intervals and refusals, so each is
written here once with its equation and its error, and the extractors are small readers of networks made elsewhere.
"""

from imbdiff.metrics.diversity import mean_pairwise_distance
from imbdiff.metrics.frechet import frechet_distance
from imbdiff.metrics.inception_score import inception_score
from imbdiff.metrics.kernel import kernel_distance
from imbdiff.metrics.neighbours import density_coverage, precision_recall
from imbdiff.metrics.numbers import ClassColumn, Number
from imbdiff.metrics.prd import prd_curve, prd_f8
from imbdiff.metrics.rows import Estimate, Rows

__all__ = [
    "ClassColumn",
    "Estimate",
    "Number",
    "Rows",
    "density_coverage",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "mean_pairwise_distance",
    "prd_curve",
    "prd_f8",
    "precision_recall",
]
