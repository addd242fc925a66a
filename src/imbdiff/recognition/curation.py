"""Curation: which synthetic images are kept. Scores by a working classifier, policies over the scores, and the choice.

Filters come first; then, of the images that are left, as many of each class as are wanted: the first ones, or the most
diverse. Nothing is generated or repeated to fill what is missing.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted
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


def score(candidates: ImageSet, train: ImageSet, extractor: ClassifierFeatures) -> CandidateScores:
    """Scores of all `candidates`, labelled with the class asked for. No other image than these and `train` is read.

    Raises:
        ConfigError: the extractor is a judge, or a classifier that saw images which are not in the training split.
        DataError: images of another shape, or other classes.
    """
    if extractor.role != "working":
        raise ConfigError(
            f"{extractor.name} is a {extractor.role}: judges never curate", "use a classifier of the training split"
        )
    others = len(extractor.trained_on - set(train.hashes))
    if others or not extractor.trained_on:
        seen = f"{others} images that are not in the training split" if others else "images that are not known"
        raise ConfigError(f"{extractor.name} was trained on {seen}", "use a classifier of the training split alone")
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


SCORES = (
    "predicted", "agrees", "probability", "distance", "ratio", "zone", "copy_ratio", "near_copy", "exact_copy",
)  # fmt: skip
"""Those of `CandidateScores` that a manifest holds of every candidate."""


# -- policies

REASONS = (
    "kept", "exact copy", "near copy", "other class", "low probability", "out", "approximate", "in-distribution",
    "surplus",
)  # fmt: skip
"""Why a candidate was kept or dropped; of several reasons the first counts."""
CONFIDENT = 0.5
"""Least probability of the class asked for in the policy "confident", where none is named."""
Filter = Callable[[CandidateScores, float], np.ndarray]
"""(scores, least probability) -> (N,) bool of the candidates that are dropped."""


@dataclass(frozen=True)
class Policy:
    """What a policy demands.

    Attributes:
        idea: which images are kept, as a clause.
        drops: by reason, which candidates are dropped.
        diverse: of those that are left, chooses by distance, not the first ones.
    """

    idea: str
    drops: Mapping[str, Filter] = field(default_factory=dict)
    diverse: bool = False


def _in(zone: int) -> Filter:
    return lambda s, _: s.zone == zone


POLICIES = {
    "none": Policy("that were generated first, whatever they look like"),
    "agreement": Policy(
        "that the working classifier puts into the class asked for", {"other class": lambda s, _: ~s.agrees}
    ),
    "confident": Policy(
        f"whose probability of the class asked for is at least {CONFIDENT:g}",
        {"low probability": lambda s, least: ~(s.probability >= least)},
    ),
    "in-distribution": Policy(
        "that are as near to the real ones of their class as these are to each other",
        {"out": _in(OUT), "approximate": _in(APPROXIMATE)},
    ),
    "approximate": Policy(
        "that are somewhat farther from the real ones of their class than these are from each other, but not far off",
        {"out": _in(OUT), "in-distribution": _in(IN)},
    ),
    "not-out": Policy("that are not far off the real ones of their class", {"out": _in(OUT)}),
    "no-copies": Policy("that are no near copies of training images", {"near copy": lambda s, _: s.near_copy}),
    "diverse": Policy("that are farthest from the real ones of their class and from each other", diverse=True),
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


def _policies(names: Sequence[str]) -> tuple[list[Policy], float]:
    """Those of :func:`parse_policy`, and the least probability that they ask for."""
    values = [float(value) for name, _, value in (name.partition("=") for name in names) if value]
    return [POLICIES[name.partition("=")[0]] for name in names], values[0] if values else CONFIDENT


def describe(text: str) -> str:
    """What a policy keeps, as one sentence."""
    names = parse_policy(text)
    if names == ("none",):
        return "Kept are the images that were generated first, as many as are wanted; nothing is asked of them."
    policies, least = _policies(names)
    ideas = [policy.idea.replace(f"at least {CONFIDENT:g}", f"at least {least:g}") for policy in policies]
    asked = [
        *(idea for idea, policy in zip(ideas, policies, strict=True) if policy.drops),
        "that equal no training image",
    ]
    last = POLICIES["diverse"].idea if "diverse" in names else "that were generated first"
    return f"Kept are images {', and '.join(asked)}; of these, as many as are wanted, those {last}."


def reasons(names: Sequence[str], scores: CandidateScores) -> np.ndarray:
    """(N,) object: the reason why each candidate is dropped by the filters of `names`; "" where it is not."""
    policies, least = _policies(names)
    dropped: dict[str, list[np.ndarray]] = {"exact copy": [scores.exact_copy]}
    for policy in policies:
        for reason, drops in policy.drops.items():
            dropped.setdefault(reason, []).append(drops(scores, least))
    found = np.full(len(scores.agrees), "", dtype=object)
    for reason in reversed(REASONS):
        for rows in dropped.get(reason, ()):
            found[rows] = reason
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
        columns: dict[str, list[Any]] = {"kept": [r == "kept" for r in self.reason], "reason": list(self.reason)}
        if self.scores is not None:
            columns |= {name: getattr(self.scores, name).tolist() for name in SCORES}
            columns |= {"zone": [None if z < 0 else ZONES[z] for z in columns["zone"]], "apart": self.apart.tolist()}
        found = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()} for r in found]


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
        zones = {"out", "approximate", "in-distribution"}
        if scores.space.zones is None and any(zones & set(policy.drops) for policy in _policies(names)[0]):
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
    for k in np.unique(labels).tolist():
        mine, own = np.flatnonzero(labels == k), kept[labels[kept] == k]
        if len(own) == 1:  # it has no other
            mine = mine[mine != own[0]]
        if len(own) and len(mine):
            itself = np.where(np.isin(mine, own), np.searchsorted(own, mine), -1) if len(own) > 1 else None
            squared = Nearest(scores.rows[own]).search(scores.rows[mine], exclude=itself)[1]
            found[mine] = np.sqrt(squared[:, 0] / max(scores.rows.shape[1], 1))
    return found


def _warnings(short: Sequence[int], wanted: Sequence[int], names: Sequence[str]) -> tuple[str, ...]:
    rows = [f"{names[k]!r}: {wanted[k] - n} of {wanted[k]}" for k, n in enumerate(short) if n]
    if not rows:
        return ()
    return (
        f"curation: {counted(len(rows), 'class has', 'classes have')} fewer images left than wanted, and nothing was "
        "filled up; generate more candidates (a larger --curate.candidates), or choose another policy:\n"
        + listing(rows),
    )
