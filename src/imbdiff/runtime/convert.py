"""Values of the command line, YAML and Python to the type of an option: one rule for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from imbdiff.runtime.errors import ConfigError


def convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the first of the types of `hint` that it fits: numbers, bool, str, None, Literal and tuples of them.

    Text is read as a number where one is wanted. A whole number is taken for a float, and 2.0 for an int. Several
    numbers may be one text, "0.25,0.5".

    Raises:
        ConfigError: it fits none; `name` is the option's.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in sorted(kinds, key=lambda kind: kind is not NoneType):
        try:
            return _as(value, kind)
        except (TypeError, ValueError):
            continue
    raise ConfigError(f"{name}={value!r} is not valid", f"expected {describe_type(hint, PLAIN)}")


def _as(value: Any, kind: Any) -> Any:
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        if value in inner:
            return value
    elif get_origin(kind) is tuple:
        if inner[0] in (int, float):
            given = value if isinstance(value, list | tuple) else [value]
            value = [part for one in given for part in (one.split(",") if isinstance(one, str) else [one])]
        if isinstance(value, list | tuple):
            kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
            return tuple(_as(v, k) for v, k in zip(value, kinds, strict=True))
    elif kind is NoneType:
        if value in (None, "None"):
            return None
    elif kind is bool:
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
    elif isinstance(value, bool):  # no number, though Python has it so
        pass
    elif kind in (int, float):
        number = float(value)
        if kind is float:
            return number
        if number.is_integer() and abs(number) < 2**63:  # as computers count
            return int(number) if abs(number) < 2**53 else int(value)
    elif isinstance(value, kind):
        return value
    raise ValueError


#: types in words, for those who do not program
PLAIN = {int: "a whole number of at most 18 digits", float: "a number", bool: "true or false", str: "text"}


def describe_type(hint: Any, words: Mapping[Any, str] | None = None) -> str:
    """A type to print: "float", "sum or mean", "int or none", or some types by `words`."""
    words = words or {}
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return " ".join("..." if kind is Ellipsis else describe_type(kind, words) for kind in get_args(hint))
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return " or ".join(
        "none" if k is NoneType else words.get(k) or getattr(k, "__name__", "") or describe_type(k, words)
        for k in kinds
    )


def sides_of(size: int | str) -> tuple[int, int]:
    """(height, width) of a side, 32, or of both, "24x32".

    Raises:
        ConfigError: it is neither.
    """
    sides = str(size).lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() for side in sides):
        raise ConfigError(f"size {size!r} is no number of pixels", "give one, 32, or height and width, 24x32")
    return int(sides[0]), int(sides[-1])
