"""The choice: filters first, then as many of each class as are wanted, in drawing order or by diversity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.nearest import Nearest
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.recognition.curation.policies import POLICIES, parse_policy, reasons
from imbdiff.recognition.curation.scores import Scores, score
from imbdiff.recognition.curation.space import ZONES
from imbdiff.runtime.errors import ConfigError, DataError, listing
from imbdiff.runtime.streams import seed_of


@dataclass(frozen=True, eq=False)
class Curated:
    """Which candidates are kept, and why the others are not.

    Attributes:
        kept: (K,) int64 row numbers of the candidates, ascending.
        reason: (N,) "kept" or why not, keys of `REASONS`.
        scores: of every candidate; None under the policy none.
        apart: (N,) float64 distance of each candidate to the nearest *other* kept one of its class, standardised
            features; NaN where there is none.
        short: (C,) how many images of each class are missing.
        warnings: sentences that name the classes that are short, and the remedy.
    """

    kept: np.ndarray
    reason: tuple[str, ...]
    scores: Scores | None
    apart: np.ndarray
    short: tuple[int, ...]
    warnings: tuple[str, ...]

    def rows(self) -> list[dict[str, Any]]:
        """One JSON-able mapping per candidate: kept, reason and the scores; a number that is not finite is None."""
        found: list[dict[str, Any]] = [{"kept": r == "kept", "reason": r} for r in self.reason]
        s = self.scores
        if s is None:
            return found
        for i, row in enumerate(found):
            row |= {
                "predicted": int(s.predicted[i]),
                "agrees": bool(s.agrees[i]),
                "probability": _number(s.probability[i]),
                "distance": _number(s.distance[i]),
                "ratio": _number(s.ratio[i]),
                "zone": ZONES[s.zone[i]] if s.zone[i] >= 0 else None,
                "copy_ratio": _number(s.copy_ratio[i]),
                "near_copy": bool(s.near_copy[i]),
                "exact_copy": bool(s.exact_copy[i]),
                "apart": _number(self.apart[i]),
            }
        return found


def curate(
    candidates: ImageSet,
    wanted: Sequence[int],
    train: ImageSet,
    policy: str,
    extractor: ClassifierFeatures | None,
    *,
    confidence: float = 0.5,
    seed: int = 0,
) -> Curated:
    """Chooses at most `wanted` images of each class. Nothing is drawn or repeated to fill what is missing.

    Args:
        candidates: labelled with the class asked for, each class in drawing order.
        wanted: (C,) images per class.
        train: the real training images, the only other ones that are read.
        policy: names of `POLICIES` joined by +.
        extractor: a working classifier that was trained on `train`; not needed under the policy none.
        confidence: least probability of the class asked for, in the policy confident.
        seed: of the order among candidates that are equally far in the policy diverse.

    Raises:
        ConfigError: an unknown policy, or a classifier that is missing or may not curate.
        DataError: images of another shape or other classes; no class with two different training images, under a policy
            that asks for zones.
    """
    names = parse_policy(policy)
    if len(wanted) != len(train.class_names) or min(wanted, default=0) < 0:
        raise DataError(f"{len(wanted)} numbers of wanted images for {len(train.class_names)} classes")
    scores = None
    found = np.full(len(candidates), "", dtype=object)
    if names != ("none",):
        if extractor is None:
            raise ConfigError(f"policy of curation {policy!r} needs a working classifier", "train one, or use none")
        scores = score(candidates, train, extractor)
        if scores.space.zones is None and any(POLICIES[n].zones for n in names):
            raise DataError(
                f"policy of curation {policy!r}: no class has two different training images, so that nothing says "
                "what distance is usual",
                "use agreement, confident, no-copies or diverse",
            )
        found = reasons(names, scores, confidence)
    for k, n in enumerate(wanted):
        left = np.flatnonzero((candidates.labels == k) & (found == ""))
        if len(left) > n and "diverse" in names:
            assert scores is not None
            left = left[farthest(scores.rows[left], scores.space.of_class(k), n, _ranks(candidates, left, seed))]
        found[left[:n]] = "kept"
        found[left[n:]] = "surplus"
    found[found == ""] = "surplus"
    kept = np.flatnonzero(found == "kept")
    have = np.bincount(candidates.labels[kept], minlength=len(wanted))
    short = tuple(int(max(0, n - m)) for n, m in zip(wanted, have, strict=True))
    apart = np.full(len(candidates), np.nan) if scores is None else _apart(scores, candidates.labels, kept)
    return Curated(kept, tuple(found.tolist()), scores, apart, short, _warnings(short, wanted, train.class_names))


def farthest(rows: np.ndarray, start: np.ndarray, n: int, ranks: np.ndarray) -> np.ndarray:
    """Farthest-point selection: again and again the row that is farthest from `start` and from those chosen before.

    Greedy k-centre, at most twice the best covering radius (Gonzalez 1985; for choosing images Sener and Savarese 2018,
    "Active learning for convolutional neural networks: a core-set approach").

    Args:
        rows: (N, D) candidates; start: (M, D), what is there already, may be empty.
        n: how many, at most N.
        ranks: (N,) order of candidates that are equally far, lowest first.

    Returns:
        (N,) row numbers: the `n` chosen ones in the order of choice, then the others in their order.
    """
    x = rows.astype(np.float64)
    order = np.argsort(ranks, kind="stable")  # argmax takes the first of equals
    x = x[order]
    nearest = np.full(len(x), np.inf)
    if len(start):
        nearest = Nearest(start).search(rows[order])[1][:, 0]
    chosen = []
    for _ in range(min(n, len(x))):
        i = int(np.argmax(nearest))
        chosen.append(i)
        nearest = np.minimum(nearest, ((x - x[i]) ** 2).sum(axis=1))
        nearest[chosen] = -1.0
    first = order[np.array(chosen, dtype=np.int64)]
    return np.concatenate([first, np.setdiff1d(np.arange(len(rows)), first)])


def _ranks(candidates: ImageSet, rows: np.ndarray, seed: int) -> np.ndarray:
    """An order of candidates that follows from their pixels and the seed, not from the order they came in."""
    hashes = [candidates.hashes[i] for i in rows.tolist()]
    return np.array([seed_of(seed, "curate", key) for key in hashes], dtype=np.int64)


def _apart(scores: Scores, labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    found = np.full(len(labels), np.nan)
    place = np.full(len(labels), -1, dtype=np.int64)
    for k in np.unique(labels).tolist():
        mine, own = np.flatnonzero(labels == k), kept[labels[kept] == k]
        if not len(own):
            continue
        place[own] = np.arange(len(own))
        if len(own) == 1:
            mine = mine[mine != own[0]]
        if len(mine):
            exclude = place[mine] if len(own) > 1 else None
            squared = Nearest(scores.rows[own]).search(scores.rows[mine], exclude=exclude)[1]
            found[mine] = np.sqrt(squared[:, 0] / max(scores.rows.shape[1], 1))
    return found


def _warnings(short: Sequence[int], wanted: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
    rows = [f"{names[k]!r}: {wanted[k] - n} of {wanted[k]}" for k, n in enumerate(short) if n]
    if not rows:
        return ()
    which = "1 class has" if len(rows) == 1 else f"{len(rows)} classes have"
    return (
        f"curation: {which} fewer images left than wanted, and nothing was filled up; draw more candidates (a larger "
        f"--curate.draw), or choose another policy:\n{listing(rows)}",
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
