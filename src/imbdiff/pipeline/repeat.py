"""The command line for a configuration: how its options are called, and the command that repeats a run."""

from __future__ import annotations

import shlex
from pathlib import Path

from imbdiff.config import RunConfig, to_dict
from imbdiff.constants import constants
from imbdiff.methods import get_method
from imbdiff.overrides import flatten
from imbdiff.presets import preset


def repeat_command(source: str, out: str | Path, config: RunConfig) -> str:
    """The command line that makes this run: the preset, and whatever differs from it."""
    base, own = flatten(to_dict(preset(config.preset))), flatten(to_dict(config))
    published = {f"constants.{name}": c.default for name, c in constants(get_method(config.method)).items()}
    base |= published
    words = ["imbdiff", "run", source, "--preset", config.preset]
    for name, value in own.items():
        if (name not in base or value != base[name]) and name != "preset":
            words += [f"--{option(name)}", *(str(v) for v in (value if isinstance(value, list) else [value]))]
    return shlex.join([*words, "--out", str(out)])


def option(name: str) -> str:
    """The option of the command line for a configuration's flattened name: constants stand behind what they are of."""
    for inner, outer in (("sample.constants.", "sample.guidance."), ("constants.", "method.")):
        if name.startswith(inner):
            return outer + name[len(inner) :]
    return name
