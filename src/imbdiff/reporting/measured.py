"""What metrics.json holds, as the page and the terminal see it: which number is which, and what stands beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imbdiff.metrics.measures import METRICS, Metric
from imbdiff.metrics.numbers import Origin
from imbdiff.reporting.text import MINUS, NOTHING, clean

Record = Mapping[str, Any]


def kind_of(record: Record) -> Metric:
    """The row of the table of metrics; a metric that is not known here is a row of its own."""
    name = str(record.get("metric"))
    return METRICS.get(name) or Metric(name, record.get("direction") or "none")


def short_name(record: Record) -> str:
    """The metric's name without its extractor: ``recall(k=3)``, ``FID∞``."""
    return clean(Origin.from_json(record).short)


def arrow(direction: str | None) -> str:
    """Which way is better."""
    return {"higher": "↑", "lower": "↓", "nearer 1": "→ 1"}.get(direction or "", "")


def texts(record: Record) -> tuple[str, str]:
    """A number and its interval ("0.05 to 0.20", or nothing), with equally many decimals: two for shares."""
    value, low, high = (record.get(key) for key in ("value", "low", "high"))
    known = [abs(x) for x in (value, low, high) if isinstance(x, int | float) and math.isfinite(x)]
    size = max(known, default=0.0)
    decimals = kind_of(record).decimals
    if decimals is not None or not size:
        digits = 2 if decimals is None else decimals
    else:  # three digits of the largest, two where all are small
        digits = min(8, max(0, (2 if size >= 0.1 else 1) - math.floor(math.log10(size))))

    def text(x: Any) -> str:
        if not isinstance(x, int | float) or not math.isfinite(x):
            return NOTHING
        return f"{x:,.{digits}f}".replace("-", MINUS)

    return text(value), "" if low is None or high is None else f"{text(low)} to {text(high)}"


@dataclass(frozen=True)
class Judge:
    """An extractor that numbers are printed with."""

    name: str
    fingerprint: str
    ranking_only: bool


@dataclass(frozen=True)
class Measured:
    """Numbers and yardsticks of one evaluation, found by kind, scope, extractor and reference.

    Attributes:
        metrics: what `imbdiff.metrics.evaluate.evaluate` gave.
        judges: extractors; those that may judge quality before those that only rank, otherwise in the order given.
        references: the one that the synthetic images were held against first, before others such as the training set.
        scopes: "all", then groups.
    """

    metrics: Record
    judges: tuple[Judge, ...]
    references: tuple[str, ...]
    scopes: tuple[str, ...]
    _numbers: Mapping[tuple[str, ...], Record] = field(repr=False)
    _yardsticks: Mapping[tuple[str, ...], Record] = field(repr=False)

    @classmethod
    def of(cls, metrics: Record | None) -> Measured | None:
        """None where there are no numbers."""
        numbers = list((metrics or {}).get("numbers") or ())
        if metrics is None or not numbers:
            return None
        first = str((metrics.get("protocol") or {}).get("reference") or "")
        own = [r for r in numbers if not kind_of(r).alone and r.get("metric") != "CAS"]
        judges = {str(r.get("fingerprint")): r for r in (own or numbers)}
        ordered = sorted(judges.values(), key=lambda r: bool(r.get("ranking_only")))
        references = dict.fromkeys(str(r.get("reference")) for r in (own or numbers))
        if first not in references:
            first = next(iter(references))
        return cls(
            metrics,
            tuple(
                Judge(clean(r.get("extractor") or ""), str(r.get("fingerprint")), bool(r.get("ranking_only")))
                for r in ordered
            ),
            (first, *(name for name in references if name != first)),
            tuple(dict.fromkeys(str(r.get("scope", "all")) for r in numbers)),
            _index(numbers, first, str(ordered[0].get("fingerprint"))),
            _index(metrics.get("yardsticks") or (), first, str(ordered[0].get("fingerprint"))),
        )

    @property
    def main(self) -> Judge:
        """The extractor whose numbers are shown first."""
        return self.judges[0]

    @property
    def rarest(self) -> str:
        """The group whose classes have the fewest training images on average; "all" where there are no groups."""
        classes = self.metrics.get("classes")
        known = classes if isinstance(classes, Mapping) else {}
        counts: dict[str, list[int]] = {}
        for group, n in zip(known.get("group") or (), known.get("n_train") or (), strict=False):
            counts.setdefault(str(group), []).append(int(n))
        groups = [scope for scope in self.scopes if scope != "all"]
        if not groups:
            return "all"
        return min(groups[::-1], key=lambda g: sum(counts.get(g, ())) / len(counts[g]) if g in counts else math.inf)

    def number(self, kind: str, scope: str, judge: Judge | None = None, reference: str | None = None) -> Record | None:
        """The record of the synthetic images, by default of the main extractor against the first reference."""
        return self._numbers.get((kind, scope, (judge or self.main).fingerprint, reference or self.references[0]))

    def yardstick(
        self, kind: str, scope: str, judge: Judge | None = None, reference: str | None = None
    ) -> Record | None:
        """The same number of real images: the training images; for agreement and IS the reference images."""
        return self._yardsticks.get((kind, scope, (judge or self.main).fingerprint, reference or self.references[0]))

    def kinds(self, judge: Judge, reference: str) -> list[Metric]:
        """What there is of an extractor and a reference, in the order of the table, unknown ones last."""
        found = dict.fromkeys(key[0] for key in self._numbers if key[2:] == (judge.fingerprint, reference))
        order = [*METRICS, *found]
        return [METRICS.get(name) or Metric(name, "none") for name in sorted(found, key=order.index)]


def _index(records: Iterable[Record], first: str, main: str) -> dict[tuple[str, ...], Record]:
    """Records by (kind, scope, fingerprint, reference).

    What belongs to no reference stands beside the first one's, and CAS, which has no extractor, beside the main one's.
    """
    found: dict[tuple[str, ...], Record] = {}
    for record in records:
        kind = kind_of(record)
        reference = first if kind.alone else str(record.get("reference"))
        fingerprint = main if kind.name == "CAS" else str(record.get("fingerprint"))
        found.setdefault((kind.name, str(record.get("scope", "all")), fingerprint, reference), record)
    return found
