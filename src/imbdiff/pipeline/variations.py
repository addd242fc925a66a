"""Synthetic images that begin as real ones (`--sample.start real`): which real image, and how far from it they end.

Only training images are ever begun with. A row of ``plan.json`` and ``manifest.json`` names its own: "source" (its id),
"source_hash" (of its pixels) and "strength" (the noise level that it was brought to).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from imbdiff.data.imageset import ImageSet, Rows
from imbdiff.data.names import display_name
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.streams import rng

Sources = Literal["own", "any"]
STRENGTHS: dict[Sources, tuple[float, ...]] = {"own": (0.25, 0.5, 0.75, 1.0), "any": (0.5, 0.75, 1.0)}
"""Where none are named: those of DA-Fusion; from images of other classes none below a half, which still shows them."""
PAIRS = 4
"""Images beside their sources that a page shows of each strength."""
Row = dict[str, Any]


def in_words(start: str, sources: Sources, strengths: Sequence[float]) -> str:
    """What images begin as; nothing where that is noise."""
    of = {"own": "its class", "any": "any class"}[sources]
    shares = ", ".join(f"{s:g}" for s in strengths)
    return f"each from a real training image of {of} at strength {shares}" if start == "real" else ""


def picker(
    train: ImageSet | None, names: Sequence[str], k: int, sources: Sources, strengths: Sequence[float], seed: int
) -> Callable[[int], Row]:
    """What image i of class `k` begins as: i -> {"source", "source_hash", "strength"}, whatever number there is in all.

    Of the first n images of a class every source is that of equally many, up to one, and so is every strength; no two
    of the first (sources x strengths) have both in common.

    Raises:
        ConfigError: no training images are given, they are of other classes, or the class has none.
    """
    if train is None or train.class_names != tuple(names):
        raise ConfigError(
            "--sample.start real needs the images that the model was trained on", "give them: train=prepared.train"
        )
    places = np.flatnonzero(train.labels == k) if sources == "own" else np.arange(len(train))
    if not len(places):
        raise ConfigError(
            f"class {display_name(names[k], 40)!r} has no training image to begin with",
            "use --sample.sources any, or sample none of it",
        )
    order = rng(seed, "source", k).permutation(places)
    n, m = len(order), len(strengths)

    def pick(i: int) -> Row:
        j = order[(i + i // math.lcm(n, m)) % n]
        return {"source": train.ids[j], "source_hash": train.hashes[j], "strength": strengths[i % m]}

    return pick


def beginnings(rows: Sequence[Row], train: ImageSet | None) -> dict[str, Any]:
    """The arguments of `generate` for rows of a plan: "start", (N, H, W, C), not read yet, and "strength", (N,).

    Raises:
        RunError: a source is none of the training images.
    """
    if not rows or "source" not in rows[0]:
        return {}
    where = {} if train is None else {key: j for j, key in enumerate(train.hashes)}
    for row in rows:
        if train is None or row["source_hash"] not in where:
            raise RunError(
                f"{row['file']} begins as {row['source']!r}, which is none of the training images",
                "sample again: imbdiff sample RUN --replace",
            )
    assert train is not None
    x, index = train.images, np.array([where[row["source_hash"]] for row in rows])
    return {
        "start": x.take(index) if isinstance(x, Rows) else Rows([x], index),
        "strength": [row["strength"] for row in rows],
    }


def by_strength(
    manifest: Mapping[str, Any], synthetic: ImageSet, train: ImageSet, found: Mapping[str, Any]
) -> dict[str, Any]:
    """How far images are from the real ones that they began as, and how many are copies, by strength.

    Args:
        manifest: of the samples.
        synthetic: some of them; their ids are files.
        found: what :func:`imbdiff.metrics.memorisation.memorisation_report` found of these; it looked up some.

    Returns:
        "rows", by strength: "strength", "n", "median_distance" (to the source, root-mean-square difference of pixels,
        0 to 1), "nearest_is_source" (share whose nearest training image is their source), "near_copies" (share, of any
        training image). "pairs": images beside their sources, some of each strength, as `found["pairs"]` has them.
    """
    rows = {row["file"]: row for row in manifest["images"]}
    chosen = np.array(found["index"], dtype=np.int64)
    of = [rows[synthetic.ids[i]] for i in chosen.tolist()]
    where = {key: j for j, key in enumerate(train.hashes)}
    source = np.array([where[row["source_hash"]] for row in of], dtype=np.int64)
    strength = np.array([row["strength"] for row in of])
    near = np.isin(chosen, found["near"])
    distance = np.array([
        np.sqrt(np.mean((synthetic.images[i].astype(np.float64) - train.images[j]) ** 2)) / 255
        for i, j in zip(chosen.tolist(), source.tolist(), strict=True)
    ])  # fmt: skip
    same = np.array(train.hashes)[found["any_train_index"]] == np.array(train.hashes)[source]
    table, pairs = [], []
    for s in np.unique(strength).tolist():
        at = np.flatnonzero(strength == s)
        table.append({
            "strength": s,
            "n": len(at),
            "median_distance": round(float(np.median(distance[at])), 6),
            "nearest_is_source": float(same[at].mean()),
            "near_copies": float(near[at].mean()),
        })  # fmt: skip
        pairs += [
            {
                "label": int(synthetic.labels[chosen[i]]), "synthetic": int(chosen[i]), "train": int(source[i]),
                "distance": round(float(distance[i]), 6), "near_copy": bool(near[i]), "exact": bool(distance[i] == 0),
                "mirrored": False, "strength": s,
            }
            for i in at[np.linspace(0, len(at) - 1, min(PAIRS, len(at))).round().astype(int)].tolist()
        ]  # fmt: skip
    return {"rows": table, "pairs": pairs}
