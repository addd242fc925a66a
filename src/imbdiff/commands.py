"""The arguments of each verb, as dataclasses that tyro reads. Loaded when a verb is called, not for ``--help``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from imbdiff.config import RunConfig

Options = Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class RunCommand:
    """Prepare, train, sample, evaluate, classify and report, in one run folder. Repeat it to continue it."""

    source: tyro.conf.Positional[str]
    """A folder of class folders, an .npz file, or digits."""
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
class InspectCommand:
    """What is in an image set: classes, sizes, modes, damaged files, duplicates."""

    source: tyro.conf.Positional[str]
    """A folder of class folders, an .npz file, or digits."""
    size: Annotated[int | None, tyro.conf.arg(aliases=["--data.size"])] = None
    """Side in pixels to bring all images to."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class CompareCommand:
    """Several runs side by side on one page."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, at least two."""
    out: str = "comparison.html"
    """The page."""


@dataclass(frozen=True)
class MethodsCommand:
    """Training methods, presets, backbones and samplers."""

    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class DoctorCommand:
    """Check this installation: versions, devices, and a training step on a tiny model."""
