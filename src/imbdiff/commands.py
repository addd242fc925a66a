"""The arguments of each verb, as dataclasses that tyro reads, and their reading. Loaded when a verb is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from imbdiff.config import RunConfig, StudyOptions
from imbdiff.runtime.errors import ConfigError

Options = Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class RunCommand:
    """Prepare, train, sample, curate, evaluate, classify and report, in one run folder. Repeat it to continue it."""

    source: tyro.conf.Positional[str]
    """A folder of class folders, a zip, npz, list, table or tar file, hf:NAME, a benchmark, digits: docs/sources.md."""
    out: str | None = None
    """Run folder. Default: runs/SOURCE-METHOD-SEED."""
    config: str | None = None
    """YAML file of options, as config.yaml in a run folder; options on the command line come on top."""
    dry_run: bool = False
    """Print what the run would do and how long it would take; write nothing."""
    quiet: bool = False
    """Print errors only."""
    options: Options = field(default_factory=RunConfig)


@dataclass(frozen=True)
class StageCommand:
    """One stage of a run that exists; its options may be given anew."""

    run: tyro.conf.Positional[str]
    """Run folder."""
    quiet: bool = False
    """Print errors only."""
    options: Options = field(default_factory=RunConfig)


@dataclass(frozen=True)
class MeasureOptions:
    """How images are read and measured."""

    extractor: tuple[str, ...] = ()
    """Feature extractors: random-conv, raw-pixels, inception, timm:NAME, hf:NAME, or one of
    your own, module:PACKAGE.MODULE:FUNCTION. Default: random-conv, and inception where its weights are at hand."""
    inception_weights: str | None = None
    """File with the weights of FID's Inception network; with it, FID is computed."""
    size: int | None = None
    """Side in pixels to bring all images to. Default: as they are, or as of a reference folder."""
    resize: Literal["crop", "pad", "stretch"] | None = None
    """How to bring them to it. Default: crop, or as of a reference folder."""
    measures: tuple[str, ...] = ()
    """Measures of your own beside the built-in ones: module:PACKAGE.MODULE:NAME, or an entry point's name."""
    batch_size: int = 256
    """Images per network call."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of subsets and clusterings."""
    quiet: bool = False
    """Print errors only."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Measure synthetic images against real ones: any two folders, .npz or .npy files.

    Without --reference: `imbdiff evaluate RUN` measures the samples of a run against its test images."""

    fake: tyro.conf.Positional[str]
    """Synthetic images: a folder (of class folders or of images), an .npz or .npy file, or a run folder."""
    reference: str
    """Real images to compare with, none of which the generator saw; or what `imbdiff reference` made."""
    train: str | None = None
    """The images that the generator was trained on: for memorisation, groups, and as a second reference."""
    fake_split: str | None = None
    """Which split of FAKE. Default: all its images, of all splits."""
    reference_split: str | None = None
    """Which split of the reference. Default: test, where it has one."""
    out: str | None = None
    """Folder for metrics.json, report.html and kept features. Default: evaluation-FAKE."""
    measure: tyro.conf.OmitArgPrefixes[MeasureOptions] = field(default_factory=MeasureOptions)


@dataclass(frozen=True)
class ReferenceCommand:
    """Make reference statistics: features of real images, which `imbdiff evaluate` takes in place of the images."""

    source: tyro.conf.Positional[str]
    """A folder, an .npz or .npy file, or digits."""
    out: str | None = None
    """The reference folder. Default: reference-SOURCE."""
    split: str | None = None
    """Which split. Default: test, where the source has one, otherwise all."""
    measure: tyro.conf.OmitArgPrefixes[MeasureOptions] = field(default_factory=MeasureOptions)


@dataclass(frozen=True)
class InspectCommand:
    """What is in an image set: classes, sizes, damaged files, duplicates, odd labels, whether it may be mirrored."""

    source: tyro.conf.Positional[str]
    """A folder of class folders, a zip, npz, list, table or tar file, hf:NAME, a benchmark, digits: docs/sources.md."""
    size: Annotated[int | None, tyro.conf.arg(aliases=["--data.size"])] = None
    """Side in pixels to bring all images to."""
    out: str | None = None
    """Folder for a page with pictures (report.html) and the complete report (inspection.json)."""
    page: str | None = None
    """File for the page alone, such as inspection.html."""
    cost: bool = False
    """Also measure what a run with default options would cost: reads all images, takes a minute or so."""
    json: bool = False
    """Print the complete report as JSON."""


@dataclass(frozen=True)
class StudyCommand:
    """How many synthetic images, which of them and used how: a grid of classifiers, chosen among on validation images.

    Every number is combined with every curation, recipe, weight and schedule. Network, steps and augmentation are those
    of the run's classify options; arms without synthetic images are always added. Repeat it to continue it; a larger
    grid takes over what a smaller one trained."""

    run: tyro.conf.Positional[str]
    """Run folder, whose generator is trained."""
    grid: tyro.conf.OmitArgPrefixes[StudyOptions] = field(default_factory=StudyOptions)
    out: str | None = None
    """Study folder. Default: study in the run folder."""
    dry_run: bool = False
    """Print the size of the grid and how long it would take; write nothing."""
    quiet: bool = False
    """Print errors only."""


@dataclass(frozen=True)
class CompareCommand:
    """Several runs side by side on one page."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, at least two."""
    out: str = "comparison.html"
    """The page."""


@dataclass(frozen=True)
class MethodsCommand:
    """Training methods, presets, backbones and samplers; or one method, or one guidance, with all its constants."""

    name: tyro.conf.Positional[str | None] = None
    """A method, several joined by +, or a guidance: its constants with type, value and source."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class DoctorCommand:
    """Check this installation: versions, devices, and a training step on a tiny model."""


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
