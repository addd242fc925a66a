"""The verbs that begin a run or continue one: what they are asked for, and what they do in its folder.

What is imported here is light: a folder in use and options that do not fit are refused before anything heavy is.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imbdiff.arguments import POSITIONAL, given, help_text, options_of
from imbdiff.config import RunConfig, flatten, override, to_dict
from imbdiff.runtime.code import found_in
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.files import read_yaml

if TYPE_CHECKING:
    from imbdiff.data.source import Source
    from imbdiff.pipeline.folder import RunFolder

#: verb -> groups of a run's options that it uses
GROUPS: dict[str, tuple[str, ...]] = {
    "train": ("data", "model", "codec", "train"),
    "sample": ("sample", "curate"),
    "curate": ("curate",),
    "evaluate": ("evaluate",),
    "classify": ("classify",),
    "report": (),
}


#: options of a run that are wanted most, the first in its help
COMMON = (
    "data.size", "data.resize", "data.channels", "data.augment", "data.imbalance_factor", "data.test_fraction",
    "train.images", "train.batch_size", "train.preview_images", "train.keep_checkpoints", "sample.strategy",
    "sample.steps", "curate.policy", "classify.steps", "classify.seeds", "evaluate.cas",
)  # fmt: skip


class Help(Exception):
    """The help that was asked for."""


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """Prepare, train, sample, curate, evaluate, classify and report, in one run folder. Repeat it to continue it."""

    source: str = field(metadata=POSITIONAL)
    """A folder of class folders, a file, hf:NAME, a benchmark, digits: docs/sources.md."""
    out: str | None = None
    """Run folder. Default: runs/SOURCE-METHOD-SEED."""
    config: str | None = None
    """YAML file of options, such as config.yaml; the command line comes on top."""
    dry_run: bool = False
    """Print what the run would do and how long it would take; write nothing."""
    replace: bool = False
    """Replace results that are there already by those of other options."""
    quiet: bool = False
    """Print errors only."""


@dataclass(frozen=True, kw_only=True)
class TrainCommand(RunCommand):
    """Prepare and train the generator, in a run folder that `imbdiff run` continues."""


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Write the page of a run again, from what there is in its folder."""

    run: str = field(metadata=POSITIONAL)
    """Run folder."""
    quiet: bool = False
    """Print errors only."""


@dataclass(frozen=True, kw_only=True)
class CurateCommand(ReportCommand):
    """Choose which of a run's synthetic images are kept."""

    replace: bool = False
    """Replace results that are there already by those of other options."""


@dataclass(frozen=True, kw_only=True)
class EvaluateRunCommand(CurateCommand):
    """Measure the synthetic images of a run against its test images.

    `imbdiff evaluate FAKE --reference REAL` measures any images without a run: it has options of its own,
    `imbdiff evaluate --reference REAL --help` shows them."""


@dataclass(frozen=True, kw_only=True)
class ClassifyCommand(CurateCommand):
    """Train classifiers with and without a run's synthetic images, and compare them on its test images."""


@dataclass(frozen=True, kw_only=True)
class SampleCommand(CurateCommand):
    """Sample the synthetic images of a run; with --out into a folder of their own, which leaves the run as it is."""

    number: tuple[str, ...] = ()
    """With --out: how many more images than the run has, NAME=50 NAME=20, or one number for every class. Repeated with
    a larger number, the folder keeps its images and gets the others."""
    out: str | None = None
    """Folder for images, in class folders with a manifest. Without --number: as many as --sample.strategy says."""
    checkpoint: int | None = None
    """With --out: sample from the checkpoint after that many images seen, in place of the finished model. They stay
    where a run was made with --train.keep_checkpoints."""


STAGE_COMMANDS: dict[str, type[ReportCommand]] = {
    "sample": SampleCommand,
    "curate": CurateCommand,
    "evaluate": EvaluateRunCommand,
    "classify": ClassifyCommand,
    "report": ReportCommand,
}


@dataclass(frozen=True)
class Options:
    """Options of a run by name, those of a file, and the preset that they name, if any; nothing heavy yet."""

    file: dict[str, Any]
    given: dict[str, Any]

    @property
    def preset(self) -> str | None:
        options = {**flatten(self.file), **self.given}
        own = {"lora": "finetune"}.get(adapt := options.get("model.adapt", "lora"), f"finetune-{adapt}")
        return options.get("preset", own if options.get("model.pretrained") else None)

    def on(self, base: RunConfig) -> RunConfig:
        """The options on top of those of the file, on top of `base`."""
        return override(override(base, self.file), self.given)

    def first(self, named: str | None = None) -> RunConfig:
        """With the preset that is named, or else the smallest."""
        from imbdiff.presets import preset

        return self.on(preset(named or self.preset or "tiny"))

    def chosen(self, opened: Source) -> RunConfig:
        """With the preset that suits the images."""
        from imbdiff.pipeline.plan import default_config

        first = self.first()
        return self.on(default_config(opened, first.data, first.device))


@dataclass(frozen=True)
class Asked:
    """What `run` or `train` is asked for.

    Attributes:
        preset: that is named, or that of the run that exists; None: to be chosen.
    """

    command: RunCommand
    options: Options
    preset: str | None
    folder: RunFolder

    @property
    def first(self) -> RunConfig:
        """With that preset, or else the smallest."""
        return self.options.first(self.preset)


def read_file(path: str | None) -> dict[str, Any]:
    """The options of a YAML file, without the source."""
    found: dict[str, Any] = {} if path is None else read_yaml(Path(path))
    if path is not None:
        found_in(Path(path), str(found))
    return {name: value for name, value in found.items() if name != "source"}


def read_run(verb: str, words: Sequence[str]) -> Asked:
    """What `run` and `train` are asked for. A run that exists keeps its preset where none is named."""
    from imbdiff.pipeline.folder import RunFolder

    values, asked = given(verb, words, RunCommand, RunConfig)
    own = {name: values.pop(name) for name in RunCommand.__annotations__ if name in values}
    options = Options(read_file(own.get("config")), values)
    if asked:
        kind = RunCommand if verb == "run" else TrainCommand
        groups = None if asked == "help-all" else ()
        common = [name for name in COMMON if verb == "run" or name.split(".")[0] in GROUPS[verb]]
        raise Help(help_text(verb, (kind, RunConfig), flatten(to_dict(options.first())), groups, first=common))
    folder, named = RunFolder(Path(own.get("out") or default_out(own["source"], options.first()))), options.preset
    if named is None and folder.exists:
        named = folder.saved()[1].preset
    return Asked(RunCommand(**own), options, named, folder)


def resolved(asked: Asked) -> tuple[RunConfig, Source | None]:
    """The configuration, and the source where it had to be opened for it: to choose a preset, to look up classes."""
    from imbdiff.pipeline.strategy import check_names, parse_strategy

    first, folder, opened = asked.first, asked.folder, None
    if parse_strategy(first.sample.strategy)[0] == "totals":
        opened = None if (folder / "split.json").exists() else _load(asked.command.source)
        check_names(first.sample.strategy, opened.class_names if opened else folder.class_stats().names)
    if asked.preset is not None:
        return first, opened
    from imbdiff.methods import method_of

    method_of(first)  # a wrong one before any image is read
    opened = opened or _load(asked.command.source)
    return asked.options.chosen(opened), opened


def _load(source: str) -> Source:
    from imbdiff.data.sources import load

    return load(source)


def read_stage(verb: str, words: Sequence[str]) -> tuple[ReportCommand, RunFolder, str, RunConfig]:
    """What a later stage is asked for: the run folder, its source, the options (what is not given is as saved)."""
    from imbdiff.pipeline.folder import RunFolder

    kind = STAGE_COMMANDS[verb]
    options, asked = given(verb, words, kind, RunConfig)
    own = {name: options.pop(name) for name in options_of(kind) if name in options}
    folder = RunFolder(Path(own.get("run", "RUN")))
    source, saved = ("", RunConfig()) if asked and not folder.exists else folder.saved()
    config = override(saved, options)
    if asked:
        fixed = ("preset", "method", "seed", "track")  # as the run was begun
        known = [o for o in options_of(RunConfig).values() if o.name.rpartition(".")[0] not in ("", *GROUPS[verb])]
        hidden = (*fixed, *(o.name for o in known))
        raise Help(help_text(verb, (kind, RunConfig), flatten(to_dict(config)), GROUPS[verb], hidden))
    folder.check_only(config, verb)
    return kind(**own), folder, source, config


def held(folder: RunFolder) -> Any:
    """The lock on a run folder, before anything heavy is imported or read; of several processes the first has it."""
    return nullcontext() if os.environ.get("RANK", "0") != "0" else folder.locked(lend=True)


def start(verb: str, words: Sequence[str]) -> None:
    """Begins or continues a run, whole or its training alone."""
    asked = read_run(verb, words)
    command, folder = asked.command, asked.folder
    folder.check_usable(command.source)
    with nullcontext() if command.dry_run else held(folder):
        config, opened = resolved(asked)
        from imbdiff.pipeline.run import STAGES, Run

        run = Run(folder, command.source, config, command.quiet, opened, command.replace)
        if command.dry_run:
            print(run.plan().text())
            return
        run.execute(STAGES if verb == "run" else ("train",))


def default_out(source: str, config: RunConfig) -> Path:
    """runs/SOURCE-METHOD-SEED."""
    from imbdiff.data.names import safe_class_dir
    from imbdiff.data.sources import parse

    return Path("runs") / safe_class_dir(f"{parse(source).short}-{config.method}-{config.seed}")


def proceed(verb: str, words: Sequence[str]) -> None:
    """Continues a run folder with one stage, or samples from it into another folder."""
    command, folder, source, config = read_stage(verb, words)
    from imbdiff.pipeline.strategy import check_names

    names = folder.class_stats().names
    check_names(config.sample.strategy, names)
    if isinstance(command, SampleCommand) and (command.out or command.number or command.checkpoint is not None):
        from imbdiff.pipeline.strategy import parse_numbers

        numbers = parse_numbers(command.number, names)
        if command.out is None:
            option = "--number" if command.number else "--checkpoint"
            remedy = f"give a folder for these images: --out {shlex.quote(f'{folder.path.name}-more')}"
            raise ConfigError(f"{option} leaves the run in {folder.path} as it is", remedy)
        with held(replace(folder, path=Path(command.out))):
            from imbdiff.pipeline.more import sample_more

            sample_more(
                folder, source, config, Path(command.out), numbers=numbers, checkpoint=command.checkpoint,
                replace=command.replace, quiet=command.quiet,
            )  # fmt: skip
        return
    with held(folder):
        from imbdiff.pipeline.run import Run

        wanted = {"report": ("report",), "sample": ("sample", "curate", "report")}.get(verb, (verb, "report"))
        Run(folder, source, config, command.quiet, replace=getattr(command, "replace", False)).execute(wanted)
