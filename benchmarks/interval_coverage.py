"""How often the 95 % intervals of FD∞ and KD hold the true distance: simulation in Gaussian worlds.

    python benchmarks/interval_coverage.py --repetitions 1000

Worlds: two normal distributions in d dimensions, n rows from each. Their eigenvalues are flat (0.5 to 2), decaying
(1/i) or one large among small ones (5 and 0.1); the second differs in its mean, in its variances, or in both. Shares
are summed up apart for worlds whose distance is more than three standard deviations of its estimate from 0, and for
those nearer to it. True values: FD in closed form; KD from the moments of normal distributions.

With --per-class K the rows belong to classes of K rows with centres of their own, the same in both sets: halves are
then taken within the classes. KD is studied at distance 0 only.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from harness import write_result
from imbdiff.metrics.frechet import Moments, frechet, frechet_distance
from imbdiff.metrics.kernel import kernel
from imbdiff.metrics.rows import Rows

SPECTRA = {
    "flat": lambda d: np.linspace(0.5, 2, d),
    "decaying": lambda d: 1 / np.arange(1, d + 1),
    "spiked": lambda d: np.r_[5.0, np.full(d - 1, 0.1)],
}
#: name -> (shift of the first mean, factor of the variances, alternately times and over)
DIFFERENCES = {
    "none": (0.0, 1.0),
    "tiny shift": (0.1, 1.0),
    "small shift": (0.5, 1.0),
    "variances": (0.0, 1.3),
    "middle": (1.0, 1.2),
    "large": (3.0, 1.8),
}
NULL_AT_LEAST, BAND = 0.93, (0.93, 0.97)


def world(d: int, spectrum: str, difference: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Variances of the first, mean and variances of the second (the first has mean 0)."""
    shift, factor = DIFFERENCES[difference]
    first = SPECTRA[spectrum](d)
    mean = np.zeros(d)
    mean[0] = shift
    return first, mean, first * np.where(np.arange(d) % 2, factor, 1 / factor)


def true_frechet(first: np.ndarray, mean: np.ndarray, second: np.ndarray) -> float:
    return float(mean @ mean + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum())


def true_kernel(first: np.ndarray, mean: np.ndarray, second: np.ndarray) -> float:
    """MMD^2 from E (x.y/d + 1)^3 = 1 + 3 E s + 3 E s^2 + E s^3, s = x.y / d."""
    zero = np.zeros_like(mean)
    return _cubic(zero, first, zero, first) + _cubic(mean, second, mean, second) - 2 * _cubic(zero, first, mean, second)


def _cubic(m: np.ndarray, a: np.ndarray, u: np.ndarray, b: np.ndarray) -> float:
    """x ~ N(m, diag a) and y ~ N(u, diag b): the coordinates of x.y are independent, so their cumulants add."""
    k1 = (m * u).sum()
    k2 = (a * b + a * u**2 + b * m**2).sum()
    k3 = (6 * a * b * m * u).sum()
    d = len(m)
    return float(1 + 3 * k1 / d + 3 * (k2 + k1**2) / d**2 + (k3 + 3 * k1 * k2 + k1**3) / d**3)


def study(
    d: int, per: float, spectrum: str, difference: str, repetitions: int, seed: int, per_class: int = 0
) -> list[dict[str, Any]]:
    """One row per number: how often its interval held the truth, was above it, was below it."""
    first, mean, second = world(d, spectrum, difference)
    truth = {"FD∞": true_frechet(first, mean, second), "KD": true_kernel(first, mean, second)}
    n = round(per * d)
    labels = None
    if per_class:
        n -= n % per_class
        labels = np.arange(n) // per_class
        centres = np.random.default_rng([seed, d, per_class]).standard_normal((n // per_class, d))
        between = np.cov(centres, rowvar=False, bias=True)
        moments = [
            Moments(2.0, 2.0, m, b)
            for m, b in ((0 * mean, between + np.diag(first)), (mean, between + np.diag(second)))
        ]
        truth = {"FD∞": frechet_distance(*moments)} | ({"KD": 0.0} if difference == "none" else {})
    generator = np.random.default_rng([seed, d, n, *difference.encode(), *spectrum.encode()])
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in truth}
    for _ in range(repetitions):
        x, y = generator.standard_normal((n, d)) * np.sqrt(first), generator.standard_normal((n, d)) * np.sqrt(second)
        if labels is not None:  # the same centres in both: classes add no distance
            x, y = x + centres[labels], y + centres[labels]
        fake, real = Rows.of(x, labels), Rows.of(y + mean, labels)
        numbers = {**frechet(fake, real), **kernel(fake, real)}
        for name in truth:
            e = numbers[name]
            if e.value is None or e.low is None or e.high is None:
                raise SystemExit(f"{name}: {e.refused}")
            found[name].append((e.value, e.low, e.high))
    rows = []
    for name, values in found.items():
        value, low, high = np.array(values).T
        spread = float(value.std(ddof=1))
        t = truth[name]
        rows.append(
            {
                "number": name,
                "d": d,
                "n": n,
                "spectrum": spectrum,
                "difference": difference,
                "truth": round(t, 6),
                "truth over spread": round(t / spread, 2),
                "bias over spread": round(float(value.mean() - t) / spread, 3),
                "held": round(float(((low <= t) & (t <= high)).mean()), 4),
                "above": round(float((low > t).mean()), 4),
                "below": round(float((high < t).mean()), 4),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rows-per-feature", type=float, nargs="+", default=[20])
    parser.add_argument("--per-class", type=int, default=0, help="rows of a class; 0: no classes")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start, rows = time.monotonic(), []
    with threadpool_limits(limits=1):
        for d in given.dims:
            for per in given.rows_per_feature:
                for spectrum in SPECTRA:
                    for difference in DIFFERENCES:
                        rows += study(d, per, spectrum, difference, given.repetitions, given.seed, given.per_class)
                        print(*rows[-1].values(), sep="\t", flush=True)
    null = [r["held"] for r in rows if r["difference"] == "none"]
    away = [r["held"] for r in rows if r["truth over spread"] > 3]
    near = [r["held"] for r in rows if r["truth"] > 0 and r["truth over spread"] <= 3]
    summary = {
        "repetitions": given.repetitions,
        "seconds": round(time.monotonic() - start, 1),
        "distance 0: smallest share held": min(null),
        "distance 0: accepted from": NULL_AT_LEAST,
        "more than 3 spreads from 0: shares held": [min(away), max(away)],
        "more than 3 spreads from 0: accepted": list(BAND),
        "more than 3 spreads from 0: worlds outside the band": sum(not BAND[0] <= h <= BAND[1] for h in away),
        "more than 3 spreads from 0: worlds": len(away),
        "nearer to 0: shares held": [min(near), max(near)],
    }
    print(summary)
    write_result(
        "interval_coverage", {**summary, "worlds": rows}, config=vars(given), notes=(__doc__ or "").split("\n\n")[2]
    )


if __name__ == "__main__":
    main()
