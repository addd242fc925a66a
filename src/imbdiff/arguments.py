"""Reading the arguments of a verb: files, presets and saved runs as defaults, and options that depend on a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imbdiff.runtime.errors import ConfigError


def parse(kind: Any, verb: str, arguments: Sequence[str], default: Any = None) -> Any:
    import tyro

    options = {} if default is None else {"default": default}
    return tyro.cli(kind, prog=f"imbdiff {verb}", args=list(arguments), config=(tyro.conf.SuppressFixed,), **options)


#: options whose names depend on what is named: --method.tau, --sample.guidance.scale
OPEN = ("method", "sample.guidance")


def split_constants(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments without those of `OPEN` groups, and these by name, their values read as YAML.

    Raises:
        ConfigError: one of them has no value.
    """
    import yaml

    left: list[str] = []
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, given, value = argument.partition("=")
        if not any(name.startswith(f"--{group}.") for group in OPEN):
            left.append(argument)
            continue
        if not given:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{name} has no value", f"give it as {name} VALUE")
            value = rest.pop(0)
        key = (
            name[2:].replace("-", "_") if name.startswith("--method.") else name[2:]
        )  # names of guidances have hyphens
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[key] = value
    return left, found


def read_options(verb: str, arguments: Sequence[str]) -> Any:
    """Parses twice: once for the source, preset and file, and again with what these imply as defaults."""
    import tyro

    from imbdiff.commands import RunCommand
    from imbdiff.config import override
    from imbdiff.presets import preset

    arguments, constants = split_constants(arguments)

    file = flag(arguments, "--config")
    values: dict[str, Any] = {}
    if file is not None:
        from imbdiff.pipeline.folder import read_yaml

        values = read_yaml(Path(file))
        values.pop("source", None)
    method = flag(arguments, "--method")
    if constants or method:  # wrong ones before anything is read
        from imbdiff.methods import method_of

        named = override(preset("tiny"), {k: v for k, v in values.items() if k in ("method", "constants")})
        method_of(override(override(named, {} if method is None else {"method": method}), _of_method(constants)))
    name = flag(arguments, "--preset") or values.get("preset")
    if name is None and {"-h", "--help"} & set(arguments):
        base = preset("tiny")
    elif name is None:
        first = parse(RunCommand, verb, arguments)
        from imbdiff.pipeline.plan import default_config

        given = values.get("data")
        size = first.options.data.size or (given.get("size") if isinstance(given, dict) else None)
        base = default_config(first.source, size, first.options.device)
    else:
        base = preset(str(name))
    base = override(base, values)
    command = parse(RunCommand, verb, arguments, RunCommand(source=tyro.MISSING, options=base))
    options = command.options
    if options.method != base.method:  # constants in the file were those of another method
        options = replace(options, constants={})
    if options.sample.guidance != base.sample.guidance:  # and those of another guidance
        options = replace(options, sample=replace(options.sample, constants={}))
    return replace(command, options=override(options, constants))


def _of_method(constants: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in constants.items() if name.startswith("method.")}


def flag(arguments: Sequence[str], name: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(name + "="):
            return argument.partition("=")[2]
    return None


def read_stage(verb: str, arguments: Sequence[str]) -> tuple[Any, str, Any]:
    """(run folder, source, command) of a verb that continues a run: parsed once for the folder, and again with its
    options as defaults."""
    import tyro

    from imbdiff.commands import StageCommand
    from imbdiff.config import override
    from imbdiff.pipeline.folder import RunFolder

    arguments, constants = split_constants(arguments)
    folder = RunFolder(Path(parse(StageCommand, verb, arguments).run))
    source, saved = folder.saved()
    command = parse(StageCommand, verb, arguments, StageCommand(run=tyro.MISSING, options=saved))
    if command.options.sample.guidance != saved.sample.guidance:  # constants there are those of another guidance
        sample = replace(command.options.sample, constants={})
        command = replace(command, options=replace(command.options, sample=sample))
    return folder, source, replace(command, options=override(command.options, constants))
