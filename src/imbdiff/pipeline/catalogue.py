"""What there is to choose from: methods, presets, backbones, samplers, extractors, measures."""

from __future__ import annotations

import textwrap
from dataclasses import fields
from typing import Any, get_type_hints

from imbdiff.data.benchmarks import BENCHMARKS
from imbdiff.diffusion.backbones import BACKBONES
from imbdiff.diffusion.guidances import GUIDANCE, GuidanceEntry, guidance_entries
from imbdiff.diffusion.schedulers import SAMPLERS
from imbdiff.methods import METHODS, get_method
from imbdiff.metrics.extractors import EXTRACTORS
from imbdiff.metrics.measures import MEASURES
from imbdiff.presets import PRESETS
from imbdiff.recipe import constants, field_texts, type_text
from imbdiff.recognition.curation import POLICIES
from imbdiff.recognition.networks import known_networks
from imbdiff.recognition.recipes import RECIPES
from imbdiff.runtime.tables import PREFIX, entry_points_of, imported, known


def as_json() -> dict[str, Any]:
    """The tables as plain values, and the names of entries that other installed packages declare as entry points."""
    tables: dict[str, dict[str, dict[str, Any]]] = {
        "methods": {
            name: {
                "idea": m.idea,
                "cost": m.cost,
                "time": m.time,
                "omega": m.omega,
                "needs": m.needs,
                "when": m.when,
                "source": m.source,
            }
            for name, m in METHODS.items()
        },
        "presets": {n: {"for": p.idea, "expect": p.expect} for n, p in PRESETS.items()},
        "benchmarks": {n: {"what": b.what, "from": b.get} for n, b in BENCHMARKS.items()},
        "backbones": {n: {"for": idea} for n, (_, _, idea) in BACKBONES.items()},
        "samplers": {n: {"what": s.what, "steps": s.steps} for n, s in SAMPLERS.items()},
        "guidance": {
            n: {"what": g.what, "when": g.when, "source": g.source, "needs": ", ".join(g.needs)}
            for n, g in GUIDANCE.items()
        },
        "recipes": {n: {"what": f"{r.label}: {r.idea}", "source": r.source} for n, r in RECIPES.items()},
        "classifiers": {n: {} for n in known_networks()},
        "curation": {n: {"what": f"images {p.idea}"} for n, p in POLICIES.items()},
        "extractors": {e.form: {"what": e.what, "needs": e.needs, "number": e.number} for e in EXTRACTORS.values()},
        "measures": {
            ", ".join(metric.name for metric in m.metrics): {"what": m.what, "source": m.source}
            for m in MEASURES.values()
        },
    }
    for family, rows in tables.items():
        group = {"benchmarks": "sources", "measures": "metrics"}.get(family, family)
        points = {name: point for name, point in sorted(entry_points_of(group).items()) if name not in rows}
        rows |= {name: {"what": f"from outside: {point.value}"} for name, point in points.items()}
    return tables


def method_json(name: str) -> dict[str, Any]:
    """A method, or a guidance, and its constants as plain values.

    Raises:
        ConfigError: there is neither of that name.
    """
    guidances = _guidances(name)
    if guidances is not None:
        found: dict[str, Any] = {"name": name}
        for key, joint in (("what", " + "), ("when", "; "), ("source", "; ")):
            found["idea" if key == "what" else key] = joint.join(
                filter(None, (getattr(e, key) for e in guidances.values()))
            )
        found["needs"] = ", ".join(dict.fromkeys(need for entry in guidances.values() for need in entry.needs))
        found["constants"] = {}
        for owner, entry in guidances.items():
            kind = type(entry.constants)
            hints, texts = get_type_hints(kind), field_texts(kind)
            for f in fields(entry.constants):
                found["constants"][f"{owner}.{f.name}"] = {
                    "type": type_text(hints[f.name]), "default": getattr(entry.constants, f.name),
                    "what": texts.get(f.name, ""),
                }  # fmt: skip
        return found
    method = get_method(name)
    return {
        "name": name,
        "idea": method.idea,
        "when": method.when,
        "source": method.source,
        "needs": method.needs,
        "cost": method.cost,
        "omega": method.omega,
        "phases": [phase.name for phase in method.phases],
        "constants": {
            full: {"type": c.type, "default": c.default, "what": c.text} for full, c in constants(method).items()
        },
    }


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
    lines = [found["name"]]
    for key in ("idea", "when", "source", "needs"):
        if found[key]:
            text = found[key] if key == "idea" else f"{key}: {found[key]}"
            lines += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
    option = "--method." if "phases" in found else "--sample.guidance."
    if "phases" in found:
        phases = f"; trains {', then '.join(found['phases'])}" if len(found["phases"]) > 1 else ""
        lines.append(f"  cost {found['cost']:g} passes per image, guidance omega {found['omega']:g}{phases}")
    lines += ["", "CONSTANTS"]
    for name, c in found["constants"].items():
        lines.append(f"  {option}{name} {c['default']}   ({c['type']})")
        lines += textwrap.wrap(c["what"], width, initial_indent="      ", subsequent_indent="      ")
    if "phases" in found:
        lines += [
            "",
            "The field alone will do where one loss has it: --method.tau. In YAML: method: {name: .., tau: ..}",
        ]
    return "\n".join(lines)


def as_text(width: int = 110) -> str:
    """The same to read in a terminal."""
    lines = []
    for title, rows in as_json().items():
        lines.append(title.upper())
        for name, row in rows.items():
            numbers = ", ".join(f"{key} {value:g}" for key, value in row.items() if isinstance(value, int | float))
            lines.append(f"  {name}" + (f"  ({numbers})" if numbers else ""))
            for key, value in row.items():
                if isinstance(value, str) and value:
                    text = value if key in ("idea", "for", "what") else f"{key}: {value}"
                    lines += textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="        ")
        lines.append("")
    lines.append("cost: forward passes per training image; time: of training on an image, measured, against DDPM's;")
    lines.append("omega: strength of classifier-free guidance, 0 = none")
    return "\n".join(lines)
