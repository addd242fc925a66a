"""What metrics.json holds, as the page and the terminal see it: which number is which, and what stands beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imbdiff.reporting.text import MINUS, NOTHING, clean

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A number as readers know it, whatever extractor and k it is made with.

    Attributes:
        name: as in `KINDS`.
        what: one sentence for a newcomer.
        main: whether it stands in the open table.
        share: a part of a whole, 0..1, printed with two decimals.
        by_n: its size depends on how many images went in, so that values of different n do not compare.
    """

    name: str
    what: str
    main: bool = False
    share: bool = False
    by_n: bool = False


KINDS = {
    kind.name: kind
    for kind in (
        Kind("FD", "Fréchet distance of the features, at this number of images; 0 where they agree", True, by_n=True),
        Kind("FD∞", "Fréchet distance, extrapolated to endless samples, so that scopes of any size compare", True),
        Kind("KD", "kernel distance of the features: unbiased, serves where images are few, may fall below 0", True),
        Kind("precision", "share of synthetic images that lie among the real ones", True, True, True),
        Kind("recall", "share of real images that lie among the synthetic ones", True, True, True),
        Kind("coverage", "share of real images that have a synthetic one close by", True, True, True),
        Kind("diversity", "how far apart images of a class are; 1: as far as real ones", True),
        Kind(
            "agreement", "share of synthetic images that the judge puts into the class they were made for", True, True
        ),
        Kind("CAS", "accuracy on real images of a classifier trained on synthetic images alone", True, True),
        Kind("density", "how many real neighbourhoods a synthetic image lies in, on average; may exceed 1", by_n=True),
        Kind("F8", "recall of distributions over clusters", share=True, by_n=True),
        Kind("F1/8", "precision of distributions over clusters", share=True, by_n=True),
        Kind("vendi", "effective number of different images", by_n=True),
        Kind("IS", "Inception score: classes recognised clearly and evenly; knows no real images", by_n=True),
    )
}
_FID = {"FID": "FD", "FID∞": "FD∞", "KID": "KD"}
_ASKED = ("agreement", "IS")  # of one set alone: they stand beside the first reference's numbers


def kind_of(metric: str) -> Kind:
    """``recall(k=3)[judge-cnn]`` -> recall; ``FID∞`` -> FD∞; a number that is not known here is a kind of its own."""
    name = re.sub(r"\(.*?\)", "", metric.split("[")[0])
    name = _FID.get(name, name)
    return KINDS.get(name) or Kind(name, "")


def short_name(metric: str) -> str:
    """The metric's name without its extractor: ``recall(k=3)``, ``FID∞``."""
    return clean(metric.split("[")[0])


def arrow(direction: str | None) -> str:
    """Which way is better."""
    return {"higher": "↑", "lower": "↓", "nearer 1": "→ 1"}.get(direction or "", "")


def texts(record: Record) -> tuple[str, str]:
    """A number and its interval ("0.05 to 0.20", or nothing), with equally many decimals: two for shares."""
    value, low, high = (record.get(key) for key in ("value", "low", "high"))
    known = [abs(x) for x in (value, low, high) if isinstance(x, int | float) and math.isfinite(x)]
    size = max(known, default=0.0)
    if kind_of(str(record.get("metric"))).share or not size:
        digits = 2
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
        own = [r for r in numbers if kind_of(str(r.get("metric"))).name not in (*_ASKED, "CAS")]
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

    def kinds(self, judge: Judge, reference: str) -> list[Kind]:
        """What there is of an extractor and a reference, in the order of `KINDS`, unknown ones last."""
        found = dict.fromkeys(key[0] for key in self._numbers if key[2:] == (judge.fingerprint, reference))
        order = [*KINDS, *found]
        return [KINDS.get(name) or Kind(name, "") for name in sorted(found, key=order.index)]


def _index(records: Iterable[Record], first: str, main: str) -> dict[tuple[str, ...], Record]:
    """Records by (kind, scope, fingerprint, reference).

    What belongs to no reference stands beside the first one's, and CAS, which has no extractor, beside the main one's.
    """
    found: dict[tuple[str, ...], Record] = {}
    for record in records:
        kind = kind_of(str(record.get("metric"))).name
        reference = first if kind in _ASKED else str(record.get("reference"))
        fingerprint = main if kind == "CAS" else str(record.get("fingerprint"))
        found.setdefault((kind, str(record.get("scope", "all")), fingerprint, reference), record)
    return found
