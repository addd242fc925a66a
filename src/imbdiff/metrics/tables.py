"""How numbers are written down: a record per number, and columns over the classes, which 1,000 of them can afford."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from imbdiff.metrics.rows import Estimate

HEAD = ("metric", "reference", "extractor", "fingerprint", "direction", "ranking_only", "judge_saw_reference")
COLUMNS = ("value", "low", "high", "n_synthetic", "n_reference", "n_effective", "refused", "extra")


def number_row(metric: str, scope: str, estimate: Estimate, direction: str, common: dict[str, Any]) -> dict[str, Any]:
    """One record of "numbers" or "yardsticks"."""
    return {
        "metric": metric,
        "scope": scope,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "refused": estimate.refused,
        "n_synthetic": estimate.n_synthetic,
        "n_reference": estimate.n_reference,
        "n_effective": estimate.n_effective,
        "direction": direction,
        **common,
        "classes_left_out": common["classes_left_out"] + int(estimate.extra.get("classes_dropped", 0)),
        "extra": estimate.extra,
    }


@dataclass
class ClassColumns:
    """Per metric, reference and kind of images: lists over all classes; reasons are kept once and pointed at."""

    num_classes: int
    _columns: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)

    def add(self, row: dict[str, Any], k: int, kind: str) -> None:
        """Puts the record of class `k` in; `kind`: of which images, "synthetic", "train" or "reference"."""
        key = (kind, *(str(row[name]) for name in ("metric", "reference", "fingerprint")))
        if key not in self._columns:
            empty = {name: [None] * self.num_classes for name in COLUMNS}
            self._columns[key] = {"of": kind, **{name: row[name] for name in HEAD}, **empty, "reasons": []}
        column = self._columns[key]
        for name in COLUMNS:
            value = row[name]
            if name == "refused" and value is not None:
                if value not in column["reasons"]:
                    column["reasons"].append(value)
                value = column["reasons"].index(value)
            column[name][k] = float(f"{value:.6g}") if isinstance(value, float) else value
        if not row["extra"]:
            column["extra"][k] = None

    def to_json(self) -> list[dict[str, Any]]:
        result = []
        for column in self._columns.values():
            if not any(column["extra"]):
                column = {name: value for name, value in column.items() if name != "extra"}
            result.append(column)
        return result


def merge(found: dict[str, Any], name: str, more: dict[str, Any]) -> None:
    """Puts {"numbers", "yardsticks", "classes", "protocol"} of the measure `name` into what `evaluate` gave."""
    found["numbers"] += more["numbers"]
    found["yardsticks"] += more["yardsticks"]
    found["classes"]["metrics"] += more["classes"]
    found["protocol"][name] = more["protocol"]
