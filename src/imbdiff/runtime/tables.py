"""Entries of a family, such as methods or samplers: those of its table, and a user's own, which need no change here.

A name is looked up in the family's table; as ``module:PACKAGE.MODULE:NAME``, an object in a module that Python can
import (its folder in PYTHONPATH, or the current one); and among the entry points of the group ``imbdiff.FAMILY`` of
installed packages:

    [project.entry-points."imbdiff.methods"]
    label-gap = "mypackage.methods:LABEL_GAP"
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from imbdiff.runtime.errors import ConfigError

T = TypeVar("T")
PREFIX = "module:"


def lookup(family: str, table: Mapping[str, T], name: str, *, kind: type | None = None) -> T:
    """The entry of that name.

    Args:
        family: in the plural, as in the group of entry points: "methods", "guidance", "samplers", "metrics", "sources",
            "recipes".
        table: the family's own entries.
        name: a name in the table, ``module:PACKAGE.MODULE:NAME``, or the name of an entry point.
        kind: what an entry from outside must be an instance of; None: anything.

    Raises:
        ConfigError: there is none of that name (with the nearest one), it cannot be imported, or is no `kind`.
    """
    if name in table:
        return table[name]
    if name.startswith(PREFIX):
        found = imported(name, family)
    else:
        points = entry_points_of(family)
        if name not in points:
            near = difflib.get_close_matches(name, [*table, *points], n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join([*table, *points])}"
            raise ConfigError(f"unknown name {name!r} among the {family}", hint)
        try:
            found = points[name].load()
        except Exception as error:  # whatever the other package raises while it is imported
            raise ConfigError(
                f"the entry point {name!r} of imbdiff.{family} cannot be loaded: {type(error).__name__}: {error}",
                "correct or remove the package that declares it",
            ) from error
    if kind is not None and not isinstance(found, kind):
        raise ConfigError(
            f"{name} is a {type(found).__name__}, and an entry of the {family} must be a {kind.__name__}",
            f"give an instance of {kind.__module__}.{kind.__name__}",
        )
    return found


def imported(name: str, what: str) -> Any:
    """The object that ``module:PACKAGE.MODULE:NAME`` names; the current folder is looked in as well.

    Args:
        what: it is used for, in the error's words.

    Raises:
        ConfigError: the module does not import, or has no such name.
    """
    how = "give it as module:PACKAGE.MODULE:NAME, with the module's folder in PYTHONPATH or the current one"
    parts = name.split(":")
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise ConfigError(f"{what}: {name!r} names no object in a module", how)
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)  # last: nothing in it can take the place of an installed module
    try:
        module = importlib.import_module(parts[1])
    except Exception as error:  # whatever the user's own module raises while it is imported
        raise ConfigError(f"{what}: {name!r}: {type(error).__name__}: {error}", how) from error
    finally:
        if added:
            sys.path.remove(here)
    if not hasattr(module, parts[2]):
        near = difflib.get_close_matches(parts[2], dir(module), n=1)
        raise ConfigError(
            f"{what}: the module {parts[1]} has no {parts[2]!r}", f"did you mean {near[0]}?" if near else how
        )
    return getattr(module, parts[2])


def code_identity(family: str, table: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """A hash of the source file of each named entry that is not in the table: results depend on it too."""
    points = entry_points_of(family)
    found = []
    for name in names:
        if name not in table:
            lookup(family, table, name)  # imports it
            module = sys.modules.get(name.split(":")[1] if name.startswith(PREFIX) else points[name].module)
            path = getattr(module, "__file__", None)
            found.append(hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else name)
    return found


def known(family: str, table: Mapping[str, Any]) -> list[str]:
    """Names in the table, and those of entry points."""
    return [*table, *sorted(name for name in entry_points_of(family) if name not in table)]


def entry_points_of(family: str) -> dict[str, EntryPoint]:
    """The entry points of the group ``imbdiff.FAMILY`` of installed packages, by name."""
    return {point.name: point for point in entry_points(group=f"imbdiff.{family}")}
