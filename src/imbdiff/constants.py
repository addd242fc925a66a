"""The constants of a method: the fields of its objectives, of how its batches are drawn and of its networks.

They are options: ``--method cbdm --method.tau 0.3`` on the command line, ``method: {name: cbdm, tau: 0.3}`` in YAML,
``override(config, {"method.tau": 0.3})`` in Python. Each has a full name, OWNER.FIELD, with the name of the objective,
of the part of the batch, of the network or of the phase as owner; the field alone will do where that is not ambiguous.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from imbdiff.objectives.objective import Objective
from imbdiff.overrides import convert
from imbdiff.recipe import Method, Phase
from imbdiff.runtime.errors import ConfigError
from imbdiff.training.parts import Part


@dataclass(frozen=True)
class Constant:
    """One constant of a method.

    Attributes:
        owner: name of the objective, part, network or phase.
        name: of the field.
        hint: its type.
        default: the method's value.
        text: what it is and where the value comes from: the field's line in its class's docstring.
        base: whether it is of the denoising loss, of what replaces it, or of how batches are drawn: where a field alone
            is named, that of a regulariser is meant sooner.
    """

    owner: str
    name: str
    hint: Any
    default: Any
    text: str
    base: bool = False

    @property
    def type(self) -> str:
        """The type, to print."""
        return type_text(self.hint)


def type_text(hint: Any) -> str:
    """A type to print: "float", "sum or mean", "int or none"."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return " or ".join("none" if p is type(None) else getattr(p, "__name__", str(p)) for p in parts)


def constants(method: Method) -> dict[str, Constant]:
    """All constants of a method by full name, in the order of its phases."""
    found: dict[str, Constant] = {}
    for phase in method.phases:
        for objective in phase.objectives():
            names = [f.name for f in dataclasses.fields(objective) if f.init and f.name not in objective.wiring]
            _add(found, objective.name, objective, names, base=objective.base)
        for part in phase.parts:
            _add(found, part.name, part, ["groups", "group_size"] if part.groups else _law(part), base=True)
        network = phase.make
        if dataclasses.is_dataclass(network) and not isinstance(network, type):
            _add(found, network.name, network, [f.name for f in dataclasses.fields(network)])
        if len(method.phases) > 1:
            _add(found, phase.name, phase, ["share"])
    return found


def _law(part: Part) -> list[str]:
    return ["law", "factor"] if part.of == "all" else ["law"]


def _add(found: dict[str, Constant], owner: str, value: Any, names: Sequence[str], base: bool = False) -> None:
    hints, texts = get_type_hints(type(value)), field_texts(type(value))
    for name in names:
        constant = Constant(owner, name, hints[name], getattr(value, name), texts.get(name, ""), base)
        found.setdefault(f"{owner}.{name}", constant)


_TEXTS: dict[type, dict[str, str]] = {}


def field_texts(kind: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each field, under *Args* or *Attributes*."""
    from docstring_parser import parse

    if kind in _TEXTS:
        return _TEXTS[kind]
    texts: dict[str, str] = {}
    for base in kind.__mro__:
        for param in parse(base.__doc__ or "").params if base is not object else ():
            for name in param.arg_name.split(", "):
                texts.setdefault(name, " ".join((param.description or "").split()))
    _TEXTS[kind] = texts
    return texts


def full_names(method: Method, values: Mapping[str, Any], option: str = "--method.") -> dict[str, Any]:
    """`values` with full names as keys, and converted to the constants' types.

    Args:
        values: of one that is there under both names, the later counts.
        option: what a name stands behind in an error.

    Raises:
        ConfigError: an unknown or ambiguous name, or a value of the wrong type.
    """
    known = constants(method)
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = full_name(known, key.replace("-", "_"), option)
        found[name] = convert(value, known[name].hint, option + key)
    return found


def full_name(known: Mapping[str, Constant], key: str, option: str) -> str:
    """OWNER.FIELD for `key`.

    Raises:
        ConfigError: there is no such constant, or there are several.
    """
    if key in known:
        return key
    fitting = [name for name, c in known.items() if c.name == key]
    if len(fitting) > 1:  # that of a regulariser is meant sooner than that of the loss it stands beside
        fitting = [name for name in fitting if not known[name].base] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(f"{option}{key} is ambiguous", "give one of " + ", ".join(option + name for name in fitting))
    candidates = [*known, *(c.name for c in known.values())]
    near = difflib.get_close_matches(key, candidates, n=1, cutoff=0.5)
    raise ConfigError(
        f"unknown constant {option}{key}",
        f"did you mean {option}{near[0]}?" if near else f"this method has {', '.join(option + n for n in known)}",
    )


def with_constants(method: Method, values: Mapping[str, Any]) -> Method:
    """`method` with some of its constants changed.

    Args:
        values: by full name, or by field where that is not ambiguous.

    Raises:
        ConfigError: as of `full_names`; a value out of range, named by the objective's own check.
    """
    if not values:
        return method
    changed = full_names(method, values)
    made = replace(method, phases=tuple(_phase(phase, changed) for phase in method.phases))
    for phase in made.phases:
        phase.objectives()  # refuses values out of range now
    return made


def _phase(phase: Phase, changed: Mapping[str, Any]) -> Phase:
    make = phase.make
    if dataclasses.is_dataclass(make) and not isinstance(make, type):
        make = replace(make, **_of(changed, make.name))
    return replace(
        phase,
        objectives=partial(_objectives, phase.objectives, dict(changed)),
        parts=tuple(_part(part, changed) for part in phase.parts),
        make=make,
        **{k: v for k, v in _of(changed, phase.name).items() if k == "share"},
    )


def _part(part: Part, changed: Mapping[str, Any]) -> Part:
    own = _of(changed, part.name)
    return replace(
        part, **{k: v for k, v in own.items() if k in (["groups", "group_size"] if part.groups else _law(part))}
    )


def _of(changed: Mapping[str, Any], owner: str) -> dict[str, Any]:
    return {name.partition(".")[2]: value for name, value in changed.items() if name.partition(".")[0] == owner}


def _objectives(make: Any, changed: Mapping[str, Any]) -> list[Objective]:
    return [replace(o, **_of(changed, o.name)) for o in make()]
