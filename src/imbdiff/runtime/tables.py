"""What comes from outside this package: a user's own entries of a family, and packages that are extras.

An entry, such as a method or a sampler, is looked up in the family's table; as ``module:PACKAGE.MODULE:NAME``, an
object in a module that Python can import (its folder in PYTHONPATH, or the current one); and among the entry points of
the group ``imbdiff.FAMILY`` of installed packages:

    [project.entry-points."imbdiff.methods"]
    label-gap = "mypackage.methods:LABEL_GAP"
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from imbdiff.runtime.code import IMPORTED, PREFIX, check_allowed
from imbdiff.runtime.errors import ConfigError, nearest

T = TypeVar("T")


def lookup(family: str, table: Mapping[str, T], name: str, *, kind: type | None = None) -> T:
    """The entry of that name.

    Args:
        family: in the plural, as in the group of entry points, such as "methods" or "samplers".
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
            names = [*table, *points]
            remedy = nearest(name, names, f"choose one of {', '.join(names)}")
            raise ConfigError(f"unknown name {name!r} among the {family}", remedy)
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
    _, path, attribute, *rest = [*name.split(":"), "", ""]
    if not path or not attribute or any(rest):
        raise ConfigError(f"{what}: {name!r} names no object in a module", how)
    check_allowed(name, what)
    here = os.getcwd()
    sys.path.append(here)  # last: nothing in it can take the place of an installed module
    try:
        module = importlib.import_module(path)
    except Exception as error:  # whatever the user's own module raises while it is imported
        raise ConfigError(f"{what}: {name!r}: {type(error).__name__}: {error}", how) from error
    finally:
        del sys.path[len(sys.path) - 1 - sys.path[::-1].index(here)]
    IMPORTED.add(str(getattr(module, "__file__", None)))
    if not hasattr(module, attribute):
        raise ConfigError(f"{what}: the module {path} has no {attribute!r}", nearest(attribute, dir(module), how))
    return getattr(module, attribute)


def code_identity(family: str, table: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """A hash of the source file of each named entry that is not in the table: results depend on it too."""
    points = entry_points_of(family)
    found = []
    for name in (name for name in names if name not in table):
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


def optional(module: str, extra: str, what: str, otherwise: str = "") -> Any:
    """The module `module` of a package that is an extra.

    Args:
        extra: of this package, that brings it.
        what: what needs it, for the message.
        otherwise: what else can be done where it is installed and does not import.

    Raises:
        ConfigError: it is not installed, or does not import; how to install it.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or package).partition(".")[0]
        raise ConfigError(
            f"{missing} is not installed, and {what} needs it", f"pip install 'imbalanced-diffusion[{extra}]'"
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        # PyPI's torchvision next to a CPU build of torch, and all that import it
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        build = "torchvision" if "torchvision" in why else package
        remedy = f"install the {build} built for this torch (https://pytorch.org, same index as torch)"
        raise ConfigError(
            f"{package} is installed but does not import: {why}", f"{remedy}, or {otherwise}" if otherwise else remedy
        ) from error
