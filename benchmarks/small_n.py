"""What few images do to recall, coverage and F8: the studies behind the minima in imbdiff.metrics.

    python benchmarks/small_n.py

Handwritten digits (scikit-learn's 1,797). Recall and coverage: n random rows of pixels against another n, and n rows of
five of the ten classes against n of all: from which n on is the lost half seen? F8: random halves, where it should be
1, by rows per cluster.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from harness import write_result
from imbdiff.metrics import density_coverage, prd_f8, precision_recall


def main() -> None:
    data = load_digits()
    x, labels = data.data.astype(np.float64), data.target
    g = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for n in (10, 20, 30, 50, 100, 200, 400):
        found: dict[str, list[tuple[float, float]]] = {"all classes": [], "five classes": []}
        for _ in range(20):
            order = g.permutation(len(x))
            real = x[order[:n]]
            lost = order[n:][labels[order[n:]] < 5][:n]
            for name, own in (("all classes", order[n : 2 * n]), ("five classes", lost)):
                k = min(5, n - 2)
                found[name].append((precision_recall(real, x[own], 3)[1], density_coverage(real, x[own], k)[1]))
        row: dict[str, object] = {"study": "recall(k=3), coverage(k=5)", "n": n}
        for name, values in found.items():
            mean, sd = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
            row[name] = ", ".join(f"{m:.2f} (sd {s:.2f})" for m, s in zip(mean, sd, strict=True))
        rows.append(row)
        print(row, flush=True)
    for per in (1, 2, 5, 10, 20):
        clusters = 20
        values = []
        for split in range(4):
            order = np.random.default_rng(split).permutation(len(x))[: 2 * per * clusters]
            values.append(prd_f8(x[order[::2]], x[order[1::2]], clusters, runs=3)[0])
        row = {"study": "F8 of random halves, 20 clusters", "n": per * clusters, "rows per cluster": per}
        rows.append({**row, "all classes": f"{np.mean(values):.3f} (sd {np.std(values, ddof=1):.3f})"})
        print(rows[-1], flush=True)
    write_result("small_n", {"studies": rows}, config={"draws": 20}, notes=(__doc__ or "").split("\n\n")[2])


if __name__ == "__main__":
    main()
