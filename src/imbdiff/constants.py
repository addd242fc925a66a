"""Constants of methods and guidances: fields of dataclasses that are options, by the name OWNER.FIELD.

    --method.class_balancing.tau 0.3        --sample.guidance.entropy.scale 0.1

The field alone suffices where it is not ambiguous: --method.tau 0.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

from imbdiff.runtime.convert import convert, describe_type
from imbdiff.runtime.errors import ConfigError, nearest


@dataclass(frozen=True)
class Constant:
    """One constant.

    Attributes:
        hint: its type.
        default: its value where no other is given.
        text: what it is and where the value comes from: the field's line in its class's docstring.
        base: whether it is of the denoising loss, of what replaces it, or of how images are sampled and changed: where
            a field alone is named, that of a regulariser is meant sooner.
    """

    hint: Any
    default: Any
    text: str
    base: bool = False

    @property
    def type(self) -> str:
        """The type, to print."""
        return describe_type(self.hint)


def constants_of(owner: str, value: Any, names: Iterable[str], base: bool = False) -> dict[str, Constant]:
    """The fields `names` of a dataclass as constants, by full name."""
    hints, texts = get_type_hints(type(value)), _texts(type(value))  # type: ignore[arg-type]
    return {f"{owner}.{n}": Constant(hints[n], getattr(value, n), texts.get(n, ""), base) for n in names}


@cache
def _texts(kind: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each field, under *Args* or *Attributes*."""
    from docstring_parser import parse

    found: dict[str, str] = {}
    for base in kind.__mro__[:-1]:
        for param in parse(base.__doc__ or "").params:
            for name in param.arg_name.split(", "):
                found.setdefault(name, " ".join((param.description or "").split()))
    return found


def resolve(known: Mapping[str, Constant], values: Mapping[str, Any], option: str) -> dict[str, Any]:
    """`values` by full name, converted to the constants' types.

    Args:
        values: by full name or field; of one that is there under both, the later counts.
        option: what stands before a name on the command line.

    Raises:
        ConfigError: an unknown or ambiguous name, or a value of the wrong type.
    """
    names = {key: _full_name(known, key, option) for key in values}
    return {name: convert(values[key], known[name].hint, option + key) for key, name in names.items()}


def _full_name(known: Mapping[str, Constant], key: str, option: str) -> str:
    plain = key.replace("-", "_")
    fitting = [name for name in known if plain in (name.replace("-", "_"), name.rpartition(".")[2])]
    if len(fitting) > 1:
        fitting = [name for name in fitting if not known[name].base] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(f"{option}{key} is ambiguous", "give one of " + ", ".join(option + name for name in fitting))
    fields = [name.rpartition(".")[2] for name in known]
    otherwise = f"known here: {', '.join(option + name for name in known) or 'none'}"
    raise ConfigError(f"unknown constant {option}{key}", nearest(key, [*known, *fields], otherwise, option))
