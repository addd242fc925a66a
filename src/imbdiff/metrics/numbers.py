"""Numbers as types: one number of a scope, and one metric over all classes. JSON is written from them and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

from imbdiff.metrics.rows import Estimate

Direction = Literal["lower", "higher", "nearer 1", "none"]
Of = Literal["synthetic", "train", "reference"]
"""Which images a number is of: the synthetic ones, or real ones as a baseline."""
FID_NAMES = {"FD": "FID", "FD∞": "FID∞", "KD": "KID", "IS": "IS"}
"""What metrics are called with the FID Inception weights, and with them only."""


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
        """One field for each attribute."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        """The reverse of :meth:`to_json`; keys that are no attribute are ignored."""
        return cls(**{f.name: row[f.name] for f in fields(cls) if f.name in row})


@dataclass(frozen=True, kw_only=True)
class Number(Origin):
    """One number of one scope: a record of "numbers" or "baselines" in metrics.json.

    Attributes:
        scope: "all", or the name of a group.
        value: None where it is refused.
        low, high: 95 % interval; None where there is none.
        refused: why there is no value, and what would be needed.
        n_synthetic, n_reference: images that went into it; 0: that set is not used.
        n_effective: the smaller effective number of images of the sets that are used.
        classes_left_out: classes of the scope that take no part.
        extra: what else belongs to it.
    """

    scope: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    refused: str | None = None
    n_synthetic: int = 0
    n_reference: int = 0
    n_effective: float = 0.0
    classes_left_out: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, metric: str, scope: str, estimate: Estimate, **origin: Any) -> Number:
        """The number that `estimate` is; `origin` has the other attributes of :class:`Origin`."""
        extra = dict(estimate.extra)
        origin["k"] = extra.pop("k", origin.get("k"))
        left_out = origin.pop("classes_left_out", 0) + int(extra.get("classes_dropped", 0))
        return cls(
            metric=metric, scope=scope, value=estimate.value, low=estimate.low,
            high=estimate.high, refused=estimate.refused, n_synthetic=estimate.n_synthetic,
            n_reference=estimate.n_reference, n_effective=estimate.n_effective, extra=extra,
            classes_left_out=left_out, **origin,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ClassColumn(Origin):
    """One metric over all classes: lists of length C, None where a class has no number.

    Attributes:
        of: which images it is of.
        value, low, high, n_synthetic, n_reference, n_effective, extra: as in :class:`Number`, for each class.
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
    extra: list[Mapping[str, Any] | None] = field(default_factory=list)


@dataclass
class ClassColumns:
    """Gathers numbers of single classes into columns, which 1,000 classes can afford."""

    num_classes: int
    _columns: dict[tuple[Any, ...], ClassColumn] = field(default_factory=dict)

    def add(self, number: Number, k: int, of: Of) -> None:
        """Puts in the number of class `k`."""
        key = (of, number.metric, number.k, number.reference, number.fingerprint)
        if key not in self._columns:
            origin = {f.name: getattr(number, f.name) for f in fields(Origin)}
            empty = {name: [None] * self.num_classes for name in COLUMNS}
            self._columns[key] = ClassColumn(of=of, **origin, **empty)  # type: ignore[arg-type]
        column = self._columns[key]
        for name in COLUMNS:
            value = getattr(number, name)
            if name == "refused" and value is not None:
                if value not in column.reasons:
                    column.reasons.append(value)
                value = column.reasons.index(value)
            elif name == "extra":
                value = dict(value) or None
            getattr(column, name)[k] = float(f"{value:.6g}") if isinstance(value, float) else value

    def to_json(self) -> list[dict[str, Any]]:
        """The columns; without "extra" where no class has any."""
        result = []
        for column in self._columns.values():
            row = column.to_json()
            if not any(column.extra):
                del row["extra"]
            result.append(row)
        return result


COLUMNS = ("value", "low", "high", "refused", "n_synthetic", "n_reference", "n_effective", "extra")


def merge(found: dict[str, Any], name: str, more: dict[str, Any]) -> None:
    """Puts {"numbers", "baselines", "classes", "protocol"} of the measure `name` into what `evaluate` gave."""
    found["numbers"] += more["numbers"]
    found["baselines"] += more["baselines"]
    found["classes"]["metrics"] += more["classes"]
    found["protocol"][name] = more["protocol"]
