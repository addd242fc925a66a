"""Curation: which synthetic images are kept. Scores by a working classifier, policies over the scores, and the choice.

Filters come first; then, of the images that are left, as many of each class as are wanted: the first ones, or the most
diverse. Nothing is generated or repeated to fill what is missing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.near_duplicates import CopyFinder
from imbdiff.data.nearest import Nearest
from imbdiff.metrics.extractors import ClassifierFeatures
from imbdiff.recognition.real_space import APPROXIMATE, IN, OUT, ZONES, RealSpace
from imbdiff.runtime.errors import ConfigError, DataError, listing
from imbdiff.runtime.streams import seed_of


@dataclass(frozen=True, eq=False)
class CandidateScores:
    """One row per candidate.

    Attributes:
        predicted: (N,) int64 class that the classifier decides for. It was trained with balanced softmax: it decides,
            and gives probabilities, as if all classes were equally frequent.
        agrees: (N,) bool: that is the class asked for.
        probability: (N,) float64 of the class asked for.
        distance: (N,) float64 to the nearest real training image of the class asked for, see `space`.
        ratio: (N,) float64: the distance over what is usual among real images of that class; NaN where there is nothing
            to say what is usual.
        zone: (N,) int64 of `ZONES`; -1 without a ratio.
        copy_ratio: (N,) float64 of small pictures, against training images of all classes, see
            `imbdiff.data.near_duplicates`; NaN where there are too few training images.
        near_copy, exact_copy: (N,) bool.
        rows: (N, D) float32 standardised features.
        space: of the real images.
        copy_limit: ratio below which an image is a near copy; NaN where there is none.
    """

    predicted: np.ndarray
    agrees: np.ndarray
    probability: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray
    zone: np.ndarray
    copy_ratio: np.ndarray
    near_copy: np.ndarray
    exact_copy: np.ndarray
    rows: np.ndarray
    space: RealSpace
    copy_limit: float


def check_extractor(extractor: ClassifierFeatures, train: ImageSet) -> None:
    """Refuses who may not curate.

    Raises:
        ConfigError: a judge, or a classifier that saw images which are not in the training split.
    """
    if extractor.role != "working":
        raise ConfigError(
            f"{extractor.name} is a {extractor.role}: judges never curate", "use a classifier of the training split"
        )
    others = len(extractor.trained_on - set(train.hashes))
    if others or not extractor.trained_on:
        seen = f"{others} images that are not in the training split" if others else "images that are not known"
        raise ConfigError(f"{extractor.name} was trained on {seen}", "use a classifier of the training split alone")


def score(candidates: ImageSet, train: ImageSet, extractor: ClassifierFeatures) -> CandidateScores:
    """Scores of all `candidates`, labelled with the class asked for. No other image than these and `train` is read.

    Raises:
        ConfigError: the extractor may not curate.
        DataError: images of another shape, or other classes.
    """
    check_extractor(extractor, train)
    if candidates.shape != train.shape:
        raise DataError(f"candidates are {candidates.shape} (H, W, C), the training images {train.shape}")
    if candidates.class_names != train.class_names:
        raise DataError("the candidates are of other classes than the training images", "label them by the same names")
    features = extractor.features(candidates)
    space = RealSpace(extractor.features(train), train)
    rows = space.standardise(features)
    labels = candidates.labels
    probability = extractor.probabilities(features)[np.arange(len(labels)), labels]
    distance = space.distances(rows, labels)
    ratio = distance / space.typical[labels]
    known = np.isfinite(ratio)
    zone = np.full(len(labels), -1, dtype=np.int64)
    if space.zones is not None:
        zone[known] = space.zones.of(ratio[known])
    search = CopyFinder(train.images, train.hashes)
    found = search.find(candidates.images)
    originals = set(train.hashes)
    predicted = extractor.predict(features)
    return CandidateScores(
        predicted=predicted,
        agrees=predicted == labels,
        probability=probability,
        distance=distance,
        ratio=ratio,
        zone=zone,
        copy_ratio=found.ratio,
        near_copy=found.near,
        exact_copy=np.array([key in originals for key in candidates.hashes], dtype=bool),
        rows=rows,
        space=space,
        copy_limit=search.limit,
    )


# -- policies

REASONS = {
    "kept": "kept",
    "exact copy": "equals a training image",
    "near copy": "nearly equals a training image",
    "other class": "looks like another class",
    "low probability": "the class asked for is not probable enough",
    "out": "too far from the real images of its class",
    "approximate": "not near enough to the real images of its class",
    "in-distribution": "as near to the real images of its class as these are to each other",
    "surplus": "enough others were kept",
}
"""Why a candidate was kept or dropped, in words; of several reasons the first of this table counts."""

Filter = Callable[[CandidateScores, float], dict[str, np.ndarray]]
"""(scores, least probability) -> {reason: (N,) bool of the candidates that are dropped for it}."""


CONFIDENT = 0.5
"""Least probability of the class asked for in the policy "confident", where none is named."""


@dataclass(frozen=True)
class Policy:
    """What a policy demands.

    Attributes:
        idea: which images are kept, in words.
        drops: which candidates are dropped, and why; None: none.
        zones: it asks for the zone of a candidate, which needs a class of two different training images.
        diverse: of those that are left, chooses by distance, not the first ones.
    """

    idea: str
    drops: Filter | None = None
    zones: bool = False
    diverse: bool = False


POLICIES = {
    "none": Policy("that were generated first, whatever they look like"),
    "agreement": Policy(
        "that the working classifier puts into the class asked for", lambda s, _: {"other class": ~s.agrees}
    ),
    "confident": Policy(
        "whose probability of the class asked for is at least LEAST (confident=LEAST, by default 0.5)",
        lambda s, least: {"low probability": ~(s.probability >= least)},
    ),
    "in-distribution": Policy(
        "that are as near to the real ones of their class as these are to each other",
        lambda s, _: {"out": s.zone == OUT, "approximate": s.zone == APPROXIMATE},
        zones=True,
    ),
    "approximate": Policy(
        "that are somewhat farther from the real ones of their class than these are from each other, but not far off",
        lambda s, _: {"out": s.zone == OUT, "in-distribution": s.zone == IN},
        zones=True,
    ),
    "not-out": Policy(
        "that are not far off the real ones of their class", lambda s, _: {"out": s.zone == OUT}, zones=True
    ),
    "no-copies": Policy("that are no near copies of training images", lambda s, _: {"near copy": s.near_copy}),
    "diverse": Policy("that lie farthest from the real ones of their class and from each other", diverse=True),
}
"""Every policy but "none" also drops exact copies of training images."""


def parse_policy(text: str) -> tuple[str, ...]:
    """The policies in `text`, such as "agreement+confident=0.8+diverse", in the order of `POLICIES`.

    Raises:
        ConfigError: an unknown name, "none" with another, a name given twice, a value that it does not take, or two
            policies that no image can meet.
    """
    given: dict[str, str] = {}
    for word in (part.strip() for part in text.split("+")):
        name, sign, value = word.partition("=")
        if name not in POLICIES:
            near = difflib.get_close_matches(name, POLICIES, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"choose of {', '.join(POLICIES)}, or several joined by +"
            raise ConfigError(f"unknown policy of curation {name!r}", remedy)
        if sign and (name != "confident" or not _is_share(value)):
            raise ConfigError(f"policy of curation {word!r}: {value!r} must be in (0, 1)", "write confident=0.8")
        if name in given or (given and "none" in (name, *given)):
            raise ConfigError(f"policy of curation {text!r}", "name each policy once, and none alone")
        given[name] = name if not sign or float(value) == CONFIDENT else f"{name}={float(value):g}"
    if {"in-distribution", "approximate"} <= set(given):
        raise ConfigError(
            f"policy of curation {text!r}: no image is both in-distribution and approximate",
            "choose one of the two, or not-out for both",
        )
    return tuple(given[name] for name in POLICIES if name in given)


def _is_share(value: str) -> bool:
    try:
        return 0 < float(value) < 1
    except ValueError:
        return False


def _policies(names: Sequence[str]) -> list[Policy]:
    return [POLICIES[name.partition("=")[0]] for name in names]


def least_probability(names: Sequence[str]) -> float | None:
    """That of the policy "confident" among `names`, of :func:`parse_policy`; None where it is not among them."""
    found = next((name for name in names if name.startswith("confident")), None)
    return None if found is None else float(found.partition("=")[2] or CONFIDENT)


def describe(text: str) -> str:
    """What a policy keeps, as one sentence."""
    names = parse_policy(text)
    if names == ("none",):
        return "Kept are the images that were generated first, as many as are wanted; nothing is asked of them."
    least = f"{least_probability(names) or CONFIDENT:g}"
    ideas = [policy.idea.partition(" (")[0] for policy in _policies(names) if not policy.diverse]
    asked = [*(idea.replace("LEAST", least) for idea in ideas), "that equal no training image"]
    listed = ", ".join(asked[:-1]) + " and " * (len(asked) > 1) + asked[-1]
    choice = POLICIES["diverse" if "diverse" in names else "none"].idea.partition(",")[0]
    return f"Kept are images {listed}; of these, as many as are wanted, those {choice}."


def reasons(names: Sequence[str], scores: CandidateScores) -> np.ndarray:
    """(N,) object: the reason why each candidate is dropped by the filters of `names`; "" where it is not."""
    dropped: dict[str, np.ndarray] = {} if tuple(names) == ("none",) else {"exact copy": scores.exact_copy}
    least = least_probability(names)
    for policy in _policies(names):
        for reason, rows in (policy.drops(scores, least or CONFIDENT) if policy.drops else {}).items():
            dropped[reason] = dropped.get(reason, np.zeros(len(rows), dtype=bool)) | rows
    found = np.full(len(scores.agrees), "", dtype=object)
    for reason in reversed(REASONS):
        if reason in dropped:
            found[dropped[reason]] = reason
    return found


# -- the choice


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
    scores: CandidateScores | None
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
    seed: int = 0,
) -> Curated:
    """Chooses at most `wanted` images of each class. Nothing is generated or repeated to fill what is missing.

    Args:
        candidates: labelled with the class asked for, each class in the order of generation.
        wanted: (C,) images per class.
        train: the real training images, the only other ones that are read.
        policy: names of `POLICIES` joined by +.
        extractor: a working classifier that was trained on `train`; not needed under the policy none.
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
        if scores.space.zones is None and any(policy.zones for policy in _policies(names)):
            raise DataError(
                f"policy of curation {policy!r}: no class has two different training images, so that nothing says "
                "what distance is usual",
                "use agreement, confident, no-copies or diverse",
            )
        found = reasons(names, scores)
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


def _apart(scores: CandidateScores, labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
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
        f"curation: {which} fewer images left than wanted, and nothing was filled up; generate more candidates (a "
        f"larger --curate.draw), or choose another policy:\n{listing(rows)}",
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
