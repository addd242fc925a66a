"""What there is to choose from: the tables of all families, and one method or guidance with its constants."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from imbdiff.constants import Constant
from imbdiff.data.benchmarks import BENCHMARKS
from imbdiff.diffusion.backbones import BACKBONES
from imbdiff.diffusion.codecs import CODECS
from imbdiff.diffusion.guidances import GUIDANCE, GuidanceEntry, guidance_entries, known_constants
from imbdiff.diffusion.schedulers import SAMPLERS
from imbdiff.methods import METHODS, get_method
from imbdiff.metrics.extractors import EXTRACTORS
from imbdiff.metrics.measures import MEASURES
from imbdiff.presets import PRESETS
from imbdiff.recipe import constants
from imbdiff.recognition.curation import POLICIES
from imbdiff.recognition.networks import known_networks
from imbdiff.recognition.recipes import RECIPES
from imbdiff.runtime.tables import PREFIX, entry_points_of, imported, known

METHOD = ("idea", "when", "source", "needs", "cost", "time", "omega")
GROUPS = {"benchmarks": "sources", "measures": "metrics"}
"""Families whose entry points have another group's name."""


def as_json() -> dict[str, dict[str, dict[str, Any]]]:
    """Family -> name -> what there is to know, with the entries that other installed packages declare."""
    tables: dict[str, dict[str, dict[str, Any]]] = {
        "methods": {name: {key: getattr(m, key) for key in METHOD} for name, m in METHODS.items()},
        "presets": {n: {"idea": p.idea, "expect": p.expect} for n, p in PRESETS.items()},
        "benchmarks": {n: {"idea": b.what, "from": b.get} for n, b in BENCHMARKS.items()},
        "backbones": {n: {"idea": idea} for n, (_, _, idea) in BACKBONES.items()},
        "codecs": {n: {"idea": c.what} for n, c in CODECS.items()},
        "samplers": {n: {"idea": s.what, "steps": s.steps} for n, s in SAMPLERS.items()},
        "guidance": {
            n: {"idea": g.what, "when": g.when, "source": g.source, "needs": ", ".join(g.needs)}
            for n, g in GUIDANCE.items()
        },
        "recipes": {n: {"idea": f"{r.label}: {r.idea}", "source": r.source} for n, r in RECIPES.items()},
        "classifiers": {n: {"idea": ""} for n in known_networks()},
        "curation": {n: {"idea": f"images {p.idea}"} for n, p in POLICIES.items()},
        "extractors": {e.form: {"idea": e.what, "needs": e.needs, "number": e.number} for e in EXTRACTORS.values()},
        "measures": {
            ", ".join(metric.name for metric in m.metrics): {"idea": m.what, "source": m.source}
            for m in MEASURES.values()
        },
    }
    for family, rows in tables.items():
        for name, point in sorted(entry_points_of(GROUPS.get(family, family)).items()):
            rows.setdefault(name, {"idea": f"from outside: {point.value}"})
    return tables


def as_text(width: int = 110) -> str:
    """The tables to read in a terminal, one line a name."""
    lines = []
    for family, rows in as_json().items():
        left = min(24, max(map(len, rows), default=0))
        lines.append(family.upper())
        for name, row in rows.items():
            idea = textwrap.shorten(row["idea"] or "-", width - left - 4, placeholder=" ...")
            lines.append(f"  {name:<{left}}  {idea}")
        lines.append("")
    return "\n".join([*lines, "Everything about one, with its constants: imbdiff methods NAME; all of it: --json"])


def method_json(name: str) -> dict[str, Any]:
    """A method, or a guidance, and its constants as plain values.

    Raises:
        ConfigError: there is neither of that name.
    """
    guidances = _guidances(name)
    if guidances is None:
        method = get_method(name)
        about = {key: getattr(method, key) for key in METHOD}
        return {"name": name, **about, "phases": [phase.name for phase in method.phases], **_listed(constants(method))}
    entries = guidances.values()
    return {
        "name": name,
        "idea": " + ".join(e.what for e in entries),
        "when": "; ".join(e.when for e in entries if e.when),
        "source": "; ".join(e.source for e in entries if e.source),
        "needs": ", ".join(dict.fromkeys(need for e in entries for need in e.needs)),
        **_listed(known_constants(guidances)),
    }


def _listed(found: Mapping[str, Constant]) -> dict[str, Any]:
    return {"constants": {n: {"type": c.type, "default": c.default, "what": c.text} for n, c in found.items()}}


def _guidances(name: str) -> dict[str, GuidanceEntry] | None:
    """The entries of one or more guidances joined by "+"; None where the first is not a guidance.

    Raises:
        ConfigError: the first is a guidance and another one is not.
    """
    first = name.split("+")[0].strip()
    if first in METHODS or (first not in known("guidance", GUIDANCE) and not first.startswith(PREFIX)):
        return None
    if first.startswith(PREFIX) and not isinstance(imported(first, "guidance"), GuidanceEntry):
        return None
    return guidance_entries(name)


def method_text(found: dict[str, Any], width: int = 110) -> str:
    """`method_json` to read in a terminal."""
    lines, phases = [found["name"]], found.get("phases", [])
    for key in ("idea", "when", "source", "needs"):
        if found[key]:
            text = found[key] if key == "idea" else f"{key}: {found[key]}"
            lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
    if phases:
        trains = f"; trains {', then '.join(phases)}" if len(phases) > 1 else ""
        lines.append(f"  cost {found['cost']:g} passes per image, guidance omega {found['omega']:g}{trains}")
    lines += ["", "CONSTANTS"]
    for name, c in found["constants"].items():
        lines.append(f"  {'--method.' if phases else '--sample.guidance.'}{name} {c['default']}   ({c['type']})")
        lines += textwrap.wrap(c["what"], width, initial_indent="      ", subsequent_indent="      ")
    if phases:
        lines += [
            "",
            "The field alone suffices where one loss has it: --method.tau. In YAML: method: {name: .., tau: ..}",
        ]
    return "\n".join(lines)
