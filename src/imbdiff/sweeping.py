"""The verb `sweep`: what it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from imbdiff.arguments import POSITIONAL, Option, given, help_text, options_of
from imbdiff.config import RunConfig, flatten, to_dict
from imbdiff.running import COMMON, Options, read_file
from imbdiff.runtime.errors import ConfigError

#: options of a run of which a sweep has several values
SEVERAL = ("method", "seed")


@dataclass(frozen=True, kw_only=True)
class SweepCommand:
    """A run of every method with every seed, in one folder, and one page: numbers with intervals over seeds, quality
    and accuracy against cost. All other options are those of a run. Repeat it to continue it; more methods or seeds are
    added. A run that fails does not stop the others."""

    source: str = field(metadata=POSITIONAL)
    """A folder of class folders, a file, hf:NAME, a benchmark, digits: docs/sources.md."""
    methods: tuple[str, ...]
    """Training methods, each with its published constants: `imbdiff methods` lists them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of training, sampling and classifiers. The split is the same in all."""
    out: str | None = None
    """Folder of the run folders. Default: runs/SOURCE-sweep."""
    config: str | None = None
    """YAML file of options, such as config.yaml of a run, whose method, constants and seed are left out."""
    dry_run: bool = False
    """Print how long it would take; write nothing."""
    quiet: bool = False
    """Print errors only."""


def sweep_options() -> list[Option]:
    """Its own, and those of a run that all its runs share."""
    shared = [option for name, option in options_of(RunConfig).items() if name not in SEVERAL]
    return [*options_of(SweepCommand).values(), *shared]


def start_sweep(words: Sequence[str]) -> str | None:
    """Begins or continues a sweep; returns the help where that was asked for."""
    from imbdiff.methods import get_method

    values, asked = given("sweep", words, SweepCommand, RunConfig)
    own = {f.name: values.pop(f.name) for f in fields(SweepCommand) if f.name in values}
    if single := [f"--{name}" for name in values if name.split(".")[0] in SEVERAL]:
        raise ConfigError(
            f"a sweep has several methods and seeds, not {', '.join(single)}",
            "name them by --methods and --seeds; constants that are not the published ones are for imbdiff run",
        )
    file = read_file(own.pop("config", None))
    options = Options({name: value for name, value in file.items() if name not in (*SEVERAL, "constants")}, values)
    first = options.first()
    if asked:
        groups = None if asked == "help-all" else ()
        return help_text("sweep", (SweepCommand, RunConfig), flatten(to_dict(first)), groups, SEVERAL, COMMON)
    for method in own["methods"]:
        get_method(method)  # a wrong one before any image is read
    from imbdiff.data.sources import load
    from imbdiff.pipeline.sweep import sweep

    opened = load(own["source"])
    sweep(**own, config=options.chosen(opened) if options.preset is None else first, opened=opened)
    return None
