"""The arguments of each verb, as dataclasses that tyro reads. Loaded when a verb is called, not for ``--help``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from imbdiff.config import RunConfig

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
    processes: int | Literal["auto"] = 1
    """Processes on this machine that share each batch: for several GPUs; on a CPU compare with one of several threads.
    auto: one per core, at most 4, that divide the batch; on GPUs one for each."""
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
    """Feature extractors: random-conv, raw-pixels, inception, cifar-resnet:FILE, timm:NAME, torchvision:NAME, hf:NAME,
    checkpoint:ARCHITECTURE:FILE. Default: random-conv, and inception where its weights are at hand."""
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
    numbers: tuple[str, ...] = ("0.25", "0.5", "1.0")
    """How many images, each a word of --sample.strategy: 0.5, auto, effective=0.9, NAME=TOTAL,NAME=TOTAL."""
    curation: tuple[str, ...] = ("none", "agreement")
    """Which of them are kept, each a --curate.policy."""
    recipes: tuple[str, ...] = ("ce", "balanced-softmax")
    """Recipes with synthetic images; `imbdiff methods` lists them."""
    weights: tuple[float, ...] = (1.0,)
    """Weights of a synthetic image in the loss, in (0, 1]."""
    schedules: tuple[Literal["mixed", "real-last", "head-last"], ...] = ("mixed",)
    """When synthetic images are seen, each a --classify.synthetic_schedule."""
    seeds: int | None = None
    """Classifiers per cell and arm. Default: the run's --classify.seeds."""
    draw: float = 1.5
    """Candidates per image wanted, where they are curated."""
    reveal_test: bool = False
    """Also show the test accuracy of every cell, marked as exploratory. It chooses nothing."""
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
