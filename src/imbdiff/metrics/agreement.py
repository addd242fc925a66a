"""Does class k look like k to a judge? The share of images that it puts into the class asked for.

It measures whether images can be recognised, not whether they are varied: copies of the training images reach 1. The
baseline is the same share of the real reference images, which is the judge's accuracy.
"""

from __future__ import annotations

import numpy as np

from imbdiff.metrics.intervals import wilson
from imbdiff.metrics.rows import Estimate, Rows


def share_agreeing(
    predicted: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None, effective: float | None = None
) -> Estimate:
    """Share of `predicted` (N,) that equals `labels` (N,), with Wilson's interval.

    Args:
        weights: (N,) >= 0 of the images; the interval is then that of the effective n, 1 / sum w^2.
        effective: another one, where images belong together.
    """
    n = len(labels)
    if n == 0:
        return Estimate.refuse("no image of these classes")
    w = np.full(n, 1 / n) if weights is None else weights / weights.sum()
    share, effective = float(w @ (predicted == labels)), effective or 1 / float((w * w).sum())
    low, high = wilson(share * effective, effective)
    return Estimate(share, low, high, n_synthetic=n, n_effective=effective)


def agreement(fake: Rows, real: Rows, *, seed: int = 0) -> dict[str, Estimate]:
    """ "agreement" of the classes predicted for `fake` with its labels; `real` and `seed` are not used."""
    assert fake.predicted is not None
    return {"agreement": share_agreeing(fake.predicted[fake.index], fake.labels, fake.weights, fake.effective)}
