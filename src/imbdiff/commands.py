"""The arguments of each verb, as dataclasses, and what those of a run fall back on: file, preset, run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imbdiff.arguments import INLINE, POSITIONAL, given, options_of, print_help, split_constants
from imbdiff.config import RunConfig, StudyOptions, flatten, override, to_dict

if TYPE_CHECKING:
    from imbdiff.data.source import Source
    from imbdiff.pipeline.folder import RunFolder

#: of the options of a run, those that --help shows; --help-all shows every one
COMMON = (
    "out", "config", "dry_run", "quiet", "preset", "method", "seed", "device", "track", "data.size",
    "data.imbalance_factor", "data.test_fraction", "data.val_fraction", "data.split_seed", "data.augment",
    "model.backbone", "model.process", "model.init", "train.images", "train.batch_size", "train.lr", "train.accumulate",
    "train.precision", "watch.every", "sample.strategy", "sample.sampler", "sample.steps", "sample.guidance",
    "sample.batch_size", "curate.policy", "curate.draw", "evaluate.extractors",
    "evaluate.inception_weights", "evaluate.cas", "classify.recipes", "classify.synthetic", "classify.primary",
    "classify.network", "classify.steps", "classify.batch_size", "classify.lr", "classify.seeds",
)  # fmt: skip
#: verb -> groups of a run's options that it uses
OWN = {
    "train": ("data", "model", "train", "watch"),
    "sample": ("sample", "curate"),
    "curate": ("curate",),
    "evaluate": ("evaluate",),
    "classify": ("classify",),
    "report": (),
}


@dataclass(frozen=True)
class RunCommand:
    """Prepare, train, sample, curate, evaluate, classify and report, in one run folder. Repeat it to continue it."""

    source: str = field(metadata=POSITIONAL)
    """A folder of class folders, a zip, npz, list, table or tar file, hf:NAME, a benchmark, digits: docs/sources.md."""
    out: str | None = None
    """Run folder. Default: runs/SOURCE-METHOD-SEED."""
    config: str | None = None
    """YAML file of options, as config.yaml in a run folder; options on the command line come on top."""
    dry_run: bool = False
    """Print what the run would do and how long it would take; write nothing."""
    quiet: bool = False
    """Print errors only."""
    options: RunConfig = field(default_factory=RunConfig, metadata=INLINE)


@dataclass(frozen=True)
class StageCommand:
    """One stage of a run that exists; its options may be given anew.

    `imbdiff evaluate FAKE --reference REAL` measures any images without a run: it has options of its own."""

    run: str = field(metadata=POSITIONAL)
    """Run folder."""
    quiet: bool = False
    """Print errors only."""
    options: RunConfig = field(default_factory=RunConfig, metadata=INLINE)


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

    fake: str = field(metadata=POSITIONAL)
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
    measure: MeasureOptions = field(default_factory=MeasureOptions, metadata=INLINE)


@dataclass(frozen=True)
class ReferenceCommand:
    """Make reference statistics: features of real images, which `imbdiff evaluate` takes in place of the images."""

    source: str = field(metadata=POSITIONAL)
    """A folder, an .npz or .npy file, or digits."""
    out: str | None = None
    """The reference folder. Default: reference-SOURCE."""
    split: str | None = None
    """Which split. Default: test, where the source has one, otherwise all."""
    measure: MeasureOptions = field(default_factory=MeasureOptions, metadata=INLINE)


@dataclass(frozen=True)
class InspectCommand:
    """What is in an image set: classes, sizes, damaged files, duplicates, odd labels, whether it may be mirrored."""

    source: str = field(metadata=POSITIONAL)
    """A folder of class folders, a zip, npz, list, table or tar file, hf:NAME, a benchmark, digits: docs/sources.md."""
    size: int | None = field(default=None, metadata={"also": ("--data.size",)})
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

    run: str = field(metadata=POSITIONAL)
    """Run folder, whose generator is trained."""
    grid: StudyOptions = field(default_factory=StudyOptions, metadata=INLINE)
    out: str | None = None
    """Study folder. Default: study in the run folder."""
    dry_run: bool = False
    """Print the size of the grid and how long it would take; write nothing."""
    quiet: bool = False
    """Print errors only."""


@dataclass(frozen=True)
class CompareCommand:
    """Several runs side by side on one page."""

    runs: tuple[str, ...] = field(metadata=POSITIONAL)
    """Run folders, at least two."""
    out: str = "comparison.html"
    """The page."""


@dataclass(frozen=True)
class MethodsCommand:
    """Training methods, presets, backbones and samplers; or one method, or one guidance, with all its constants."""

    name: str | None = field(default=None, metadata=POSITIONAL)
    """A method, several joined by +, or a guidance: its constants with type, value and source."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class DoctorCommand:
    """Check this installation: versions, devices, and a training step on a tiny model."""


def read_run(verb: str, arguments: Sequence[str]) -> tuple[RunCommand, Source | None]:
    """What `run` and `train` are asked for, and their source where it had to be opened to choose a preset.

    What is not given is taken from the file, what is not there from the preset, which is chosen by the source's images
    where none is named.
    """
    from imbdiff.methods import method_of
    from imbdiff.pipeline.folder import read_yaml
    from imbdiff.presets import preset

    arguments, constants = split_constants(arguments)
    values, asked = given(RunCommand, verb, arguments)
    own = {name: values.pop(name) for name in ("source", "out", "config", "dry_run", "quiet") if name in values}
    options = {**values, **constants}
    file: dict[str, Any] = {} if "config" not in own else read_yaml(Path(own["config"]))
    file.pop("source", None)
    name, opened = options.get("preset", file.get("preset")), None
    if name is not None or asked:
        base = preset("tiny" if name is None else str(name))
    else:
        from imbdiff.data.sources import load
        from imbdiff.pipeline.plan import default_config

        first = override(override(preset("tiny"), file), options)
        method_of(first)  # a wrong one before anything is read
        opened = load(own["source"])
        base = default_config(opened, first.data.size, first.device)
    config = override(override(base, file), options)
    if asked:
        print_help(RunCommand, verb, flatten(to_dict(config)), _shown(RunCommand, verb, asked))
    return RunCommand(**own, options=config), opened


def read_stage(verb: str, arguments: Sequence[str]) -> tuple[RunFolder, str, StageCommand]:
    """The run folder that a later stage continues, its source, and what is asked for: what is not given is as saved."""
    from imbdiff.pipeline.folder import RunFolder

    arguments, constants = split_constants(arguments)
    values, asked = given(StageCommand, verb, arguments)
    folder = RunFolder(Path(values.pop("run", "RUN")))
    quiet = values.pop("quiet", False)
    if asked and not folder.exists:
        print_help(StageCommand, verb, {}, _shown(StageCommand, verb, asked))
    source, saved = folder.saved()
    config = override(saved, {**values, **constants})
    if asked:
        print_help(StageCommand, verb, flatten(to_dict(config)), _shown(StageCommand, verb, asked))
    return folder, source, StageCommand(str(folder.path), quiet, config)


def _shown(kind: Any, verb: str, asked: str) -> Sequence[str] | None:
    """The options that `--help` shows: of a run the common ones, of another verb its own, the common ones of many."""
    if asked == "help-all":
        return None
    names = list(options_of(kind))
    if verb != "run":
        plain = [n for n in names if "." not in n and (verb == "train" or n in ("quiet", "device"))]
        names = [*plain, *(n for n in names if n.split(".")[0] in OWN[verb] and "." in n)]
    return names if len(names) <= 18 else [n for n in names if n in COMMON]
