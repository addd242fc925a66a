"""The protocol box: what the numbers depend on, in words, so that they can be repeated and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imbdiff.reporting.text import clean, flatten, number

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Box:
    """Rows of the box: of the sets and rules, of each extractor, of each measure; and whether there is an FID."""

    rows: tuple[tuple[str, str], ...]
    extractors: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    measures: tuple[tuple[str, str], ...]
    fid: str


_SETS = (("reference", "Reference"), ("synthetic", "Synthetic images"), ("train", "Training images"))
_RULES = (
    ("class_mix", "Class mix"),
    ("groups", "Groups"),
    ("subsets", "Which images"),
    ("seed", "Seed"),
)
_SAID = frozenset({"reference", "synthetic", "class_mix", "groups", "subsets", "seed", "fingerprints", "measures"}) | {
    "extractors", "agreement", "CAS", "memorisation", "n_reference", "n_synthetic", "n_train",
}  # fmt: skip


def protocol_box(metrics: Mapping[str, Any]) -> Box | None:
    """The box of `metrics["protocol"]`; what it holds beyond the known parts is shown as it is."""
    protocol = metrics.get("protocol")
    if not isinstance(protocol, Mapping) or not protocol:
        return None
    rows: Rows = []
    for key, name in _SETS:
        text = _set(protocol, key)
        if text:
            rows.append((name, text))
    rows += [(name, clean(protocol[key])) for key, name in _RULES if protocol.get(key) is not None]
    rows.append(
        ("Intervals", "95 %; what an interval covers is said with its number below. Refused: what n cannot support.")
    )
    rows += flatten({key: value for key, value in protocol.items() if key not in _SAID})
    measures = [
        (clean(name), clean(f"{m.get('what', '')} ({m.get('source', '')})"))
        for name, m in (protocol.get("measures") or {}).items()
        if isinstance(m, Mapping)
    ]
    for key, name in (("agreement", "agreement"), ("CAS", "CAS"), ("memorisation", "memorisation")):
        if protocol.get(key):
            measures.append((name, clean(protocol[key])))
    extractors = [e for e in protocol.get("extractors") or () if isinstance(e, Mapping)]
    judge = metrics.get("judge")
    return Box(
        tuple(rows),
        tuple((clean(e.get("name", "")), tuple(_extractor(e, judge))) for e in extractors),
        tuple(measures),
        _fid(extractors),
    )


def _set(protocol: Mapping[str, Any], key: str) -> str:
    """Name, size and fingerprint of a set of images."""
    n = protocol.get(f"n_{key}")
    name = clean(protocol.get(key) or "")
    if key == "train" and n is None:
        return "not given: no memorisation, no groups, no numbers of real training images"
    if n is None:
        return name
    fingerprint = (protocol.get("fingerprints") or {}).get(key)
    text = f"{name}: {number(n)} images" if name else f"{number(n)} images"
    return text + (f", fingerprint {clean(fingerprint)[:16]}" if fingerprint else "")


def _extractor(e: Mapping[str, Any], judge: Any) -> Rows:
    rows = [
        ("Features", number(e.get("dim"))),
        ("Preprocessing", clean(e.get("preprocessing") or "")),
        ("Weights", clean(e.get("weights") or "")),
        ("Trained on", clean(e.get("trained_on") or "nothing that is recorded")),
        ("Fingerprint", clean(e.get("fingerprint") or "")[:16]),
        ("Features compared with published ones", _verified(e.get("verified"))),
        ("Its numbers", "rank generators, no more" if e.get("ranking_only") else "measure quality"),
    ]
    if isinstance(judge, Mapping) and judge.get("fingerprint") == e.get("fingerprint") and judge.get("accuracy"):
        rows.insert(4, ("Accuracy on the reference", number(judge["accuracy"])))
    return [(name, text) for name, text in rows if text]


def _verified(value: Any) -> str:
    return {True: "yes, they agree", False: "not yet: unverified"}.get(value, "there are none to compare with")


def _fid(extractors: list[Mapping[str, Any]]) -> str:
    """Whether a number here may be called FID."""
    own = next((e for e in extractors if e.get("is_fid")), None)
    if own is None:
        return (
            "No number here is an FID: that name belongs to one set of Inception weights, which were not at hand. "
            "FD[name] is the same distance with another extractor, comparable only with numbers of the same name, "
            "fingerprint and reference."
        )
    said = "FID, FID∞ and KID are computed with the Inception weights that these names stand for"
    return f"{said}{'' if own.get('verified') else ' (unverified: not yet compared with published features)'}."
