"""Packages that are extras, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from imbdiff.runtime.errors import ConfigError


def optional(module: str, extra: str, what: str, otherwise: str = "") -> Any:
    """The module `module`.

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
        # PyPI's torchvision beside a CPU build of torch, and all that import it
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        build = "torchvision" if "torchvision" in why else package
        raise ConfigError(
            f"{package} is installed but does not import: {why}",
            f"install the {build} built for this torch (https://pytorch.org, same index as torch)"
            + (f", or {otherwise}" if otherwise else ""),
        ) from error
