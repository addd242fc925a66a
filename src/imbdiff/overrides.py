"""Replacing fields of nested frozen dataclasses by name, with their types checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from imbdiff.runtime.errors import ConfigError

T = TypeVar("T")


def override(config: T, values: Mapping[str, Any], where: str = "") -> T:
    """`config` with some fields replaced: {"seed": 1, "train": {"lr": 1e-3}} or {"train.lr": 1e-3}.

    Raises:
        ConfigError: an unknown name (with the nearest known one) or a value of the wrong type.
    """
    known = {f.name: f for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    hints = get_type_hints(type(config))
    nested: dict[str, dict[str, Any]] = {}
    direct: dict[str, Any] = {}
    for key, value in values.items():
        head, _, rest = str(key).partition(".")
        if head not in known:
            import difflib

            near = difflib.get_close_matches(head, known, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known here: {', '.join(known)}"
            raise ConfigError(f"unknown option {where}{key}", hint)
        if get_origin(hints[head]) is Mapping:  # names that only a later check knows
            if not rest and not isinstance(value, Mapping):
                raise ConfigError(f"{where}{head} is a group of options, not {value!r}")
            new, old = ({rest: value} if rest else value), direct.get(head, getattr(config, head))
            direct[head] = {**{k: v for k, v in old.items() if k not in new}, **new}  # what is new comes last
        elif rest:
            nested.setdefault(head, {})[rest] = value
        elif dataclasses.is_dataclass(hints[head]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}{head} is a group of options, not {value!r}")
            nested.setdefault(head, {}).update(value)
        else:
            direct[head] = convert(value, hints[head], where + head)
    for head, inner in nested.items():
        direct[head] = override(getattr(config, head), inner, f"{where}{head}.")
    return dataclasses.replace(config, **direct)  # type: ignore[type-var]


def convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type that `hint` says: int, float, bool, str, None, Literal, tuples of them, and unions.

    Text is read as a number where one is wanted. A whole number is taken for a float, and 2.0 for an int.

    Raises:
        ConfigError: it is of another type; `name` is the option's.
    """
    options = get_args(hint) if get_origin(hint) is not None and type(None) in get_args(hint) else (hint,)
    for option in options:
        if option is type(None):
            if value is None:
                return None
        elif get_origin(option) is Literal:
            if value in get_args(option):
                return value
        elif get_origin(option) is tuple:
            inner = get_args(option)
            if inner[-1] is Ellipsis and isinstance(value, list | tuple):
                return tuple(convert(v, inner[0], name) for v in value)
            if isinstance(value, list | tuple) and len(value) == len(inner):
                return tuple(convert(v, h, name) for v, h in zip(value, inner, strict=True))
        elif option is float:
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            if isinstance(value, str):  # YAML reads 1e-4 as text
                try:
                    return float(value)
                except ValueError:
                    pass
        elif option is bool:
            if isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lower() in ("true", "false"):
                return value.lower() == "true"
        elif option is int:
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, str) and value.lstrip("+-").isdigit():
                return int(value)
            if isinstance(value, float) and value.is_integer():
                return int(value)
        elif isinstance(value, option):
            return value
    choices = [str(c) for o in options if get_origin(o) is Literal for c in get_args(o)]
    expected = " or ".join(choices) if choices else str(getattr(hint, "__name__", hint))
    raise ConfigError(f"{name}={value!r} is not valid", f"expected {expected}")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
