"""Numbers as types: one number of a scope, and one metric over all classes. JSON is written from them and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from imbdiff.metrics.rows import Estimate, Scope

Direction = Literal["lower", "higher", "nearer 1", "none"]
Of = Literal["synthetic", "train", "reference"]
"""Which images a number is of: the synthetic ones, or real ones as a baseline."""
FID_NAMES = {"FD": "FID", "FD∞": "FID∞", "KD": "KID", "IS": "IS"}
"""What metrics are called with the FID Inception weights, and with them only."""
COLUMNS = ("value", "low", "high", "refused", "n_synthetic", "n_reference", "n_effective")
"""What is kept of an estimate for each class."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a number is, and what it was made with.

    Attributes:
        metric: name of a row of :data:`imbdiff.metrics.measures.METRICS`, or of a user's own measure.
        k: which nearest neighbour it takes; None where it takes none.
        reference: what the images were compared with; "none" where with nothing.
        extractor, fingerprint: of the features.
        direction: which way is better.
        ranking_only: the extractor did not learn from images like these: the number orders generators, no more.
        judge_saw_reference: the extractor was trained on images of the reference.
        is_fid: the extractor has the weights that FID is defined by.
    """

    metric: str
    k: int | None = None
    reference: str
    extractor: str
    fingerprint: str
    direction: Direction
    ranking_only: bool = False
    judge_saw_reference: bool = False
    is_fid: bool = False

    @property
    def short(self) -> str:
        """The name without the extractor: ``recall(k=3)``, ``FID∞``."""
        if self.is_fid and self.metric in FID_NAMES:
            return FID_NAMES[self.metric]
        return self.metric if self.k is None else f"{self.metric}(k={self.k})"

    @property
    def label(self) -> str:
        """The name for people and tables: ``recall(k=3)[judge-cnn]``, ``FID``, ``CAS``. It is never parsed."""
        alone = self.metric == "CAS" or (self.is_fid and self.metric in FID_NAMES)
        return self.short if alone else f"{self.short}[{self.extractor}]"

    def to_json(self) -> dict[str, Any]:
        """One key for each attribute."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """The reverse of :meth:`to_json`; keys that are no attribute are ignored."""
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})


@dataclass(frozen=True, kw_only=True)
class Number(Origin, Estimate):
    """One number of one scope: a record of "numbers" or "baselines" in metrics.json.

    Attributes:
        scope: "all", or the name of a group.
        classes_left_out: classes of the scope that take no part.
    """

    scope: str
    classes_left_out: int = 0

    @classmethod
    def made(cls, origin: Origin, scope: str, estimate: Estimate, classes_left_out: int = 0) -> Number:
        """The number that `estimate` is."""
        left_out = classes_left_out + int(estimate.extra.get("classes_dropped", 0))
        return cls(**vars(origin), **vars(estimate), scope=scope, classes_left_out=left_out)


@dataclass(frozen=True, kw_only=True)
class ClassColumn(Origin):
    """One metric over all classes: lists of length C, None where a class has no number.

    Attributes:
        of: which images it is of.
        value, low, high, n_synthetic, n_reference, n_effective: as in :class:`Number`, for each class.
        refused: places in `reasons`.
        reasons: why numbers were refused, each kept once.
    """

    of: Of
    value: list[float | None]
    low: list[float | None]
    high: list[float | None]
    refused: list[int | None]
    n_synthetic: list[int | None]
    n_reference: list[int | None]
    n_effective: list[float | None]
    reasons: list[str] = field(default_factory=list)

    def put(self, k: int, number: Number) -> None:
        """Puts in the number of class `k`; floats with six digits."""
        for name in COLUMNS:
            value = getattr(number, name)
            if name == "refused" and value is not None:
                if value not in self.reasons:
                    self.reasons.append(value)
                value = self.reasons.index(value)
            getattr(self, name)[k] = float(f"{value:.6g}") if isinstance(value, float) else value


@dataclass
class Found:
    """What an evaluation found: those of the synthetic images, baselines of real images, and a column for each metric.

    Numbers of single classes go into columns, which 1,000 classes can afford.
    """

    num_classes: int
    numbers: list[Number] = field(default_factory=list)
    baselines: list[Number] = field(default_factory=list)
    columns: dict[tuple[Any, ...], ClassColumn] = field(default_factory=dict)

    def add(self, number: Number, scope: Scope, of: Of) -> None:
        if scope.kind != "class":
            (self.numbers if of == "synthetic" else self.baselines).append(number)
            return
        key = (of, number.metric, number.k, number.reference, number.fingerprint)
        if key not in self.columns:
            origin: Any = {f.name: getattr(number, f.name) for f in fields(Origin)}
            empty: Any = {name: [None] * self.num_classes for name in COLUMNS}
            self.columns[key] = ClassColumn(of=of, **origin, **empty)
        self.columns[key].put(int(scope.classes[0]), number)

    def into(self, report: dict[str, Any]) -> None:
        """Adds everything to "numbers", "baselines" and "classes" of a report."""
        report["numbers"] += [number.to_json() for number in self.numbers]
        report["baselines"] += [number.to_json() for number in self.baselines]
        report["classes"]["metrics"] += [column.to_json() for column in self.columns.values()]
