"""The command: its verbs, as dataclasses of their arguments. Everything heavy is imported where a verb is executed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, fields
from keyword import iskeyword
from pathlib import Path
from signal import SIGINT, Signals
from threading import current_thread, main_thread
from typing import Any, Literal

from imbdiff.arguments import POSITIONAL, Option, completion, given, help_text, options_of
from imbdiff.config import DataConfig, MeasureOptions, RunConfig
from imbdiff.running import GROUPS, STAGE_COMMANDS, Help, RunCommand, TrainCommand, held, proceed, start
from imbdiff.runtime.code import failed_outside, only_typed
from imbdiff.runtime.errors import ConfigError, ImbdiffError, RunError, nearest
from imbdiff.runtime.files import is_disk_full
from imbdiff.studying import StudyOptions
from imbdiff.sweeping import start_sweep, sweep_options
from imbdiff.version import __version__

HELP = f"""imbdiff {__version__}: class-conditional diffusion for long-tailed image data

  imbdiff run SOURCE        everything: prepare, train, sample, curate, evaluate, classify, report
  imbdiff inspect SOURCE    what is in an image set: classes, sizes, damage, duplicates, labels
  imbdiff train SOURCE      train the generator only
  imbdiff sample RUN        sample the images that classes lack
  imbdiff sample RUN --number NAME=50 --out FOLDER    50 more of one class, into a folder of their own
  imbdiff curate RUN        choose which of them are kept
  imbdiff evaluate RUN      measure them
  imbdiff evaluate FAKE --reference REAL    measure any images against others, without a run
  imbdiff reference SOURCE  make reference statistics of real images
  imbdiff classify RUN      train classifiers with and without them, and compare
  imbdiff export RUN --as pipeline    its generator for diffusers; of a pretrained one also --as lora
  imbdiff predict RUN IMAGES    the class of new images, by the classifier of a run
  imbdiff study RUN         how many synthetic images, which and used how: try a grid, choose on validation images
  imbdiff report RUN        write the page again
  imbdiff sweep SOURCE --methods ddpm cbdm --seeds 0 1 2    a run of every method with every seed, on one page
  imbdiff compare RUN RUN   several runs on one page
  imbdiff methods           training methods, presets, backbones, samplers
  imbdiff doctor            check this installation

SOURCE is a folder with one sub-folder of images per class, a zip, npz, list, table or tar file, hf:NAME, the name of
a benchmark (imbdiff methods), or digits (built in); its options stand behind a question mark: docs/sources.md.
RUN is a folder that `imbdiff run` or `imbdiff train` made. The same command continues a run that was stopped.

  imbdiff run digits --preset demo     an example, in minutes
  imbdiff run DIR --dry-run            what a run on your folder would do, and how long it would take
  imbdiff VERB --help                  the options of a verb
  imbdiff VERB ... --allow-code        run code (module:...) that a file or another person's run folder names
  imbdiff --completion bash            a script that completes all this: eval "$(imbdiff --completion bash)"; or zsh
"""


def _measuring(command: MeasureOptions, typed: str | None = None) -> Any:
    from imbdiff.pipeline.direct import Measuring

    return Measuring(**_values(command, MeasureOptions), command=typed)


def _values(command: Any, kind: Any) -> dict[str, Any]:
    return {f.name: getattr(command, f.name) for f in fields(kind)}


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(MeasureOptions):
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
    replace: bool = False
    """Replace the numbers of other images that are there."""

    def execute(self, command: str) -> None:
        from imbdiff.pipeline.direct import evaluate_any
        from imbdiff.runtime.dist import Dist

        out = Path(self.out or f"evaluation-{_called(self.fake)}")
        found = evaluate_any(
            self.fake, self.reference, self.train, how=_measuring(self, command), fake_split=self.fake_split,
            reference_split=self.reference_split, out=out, overwrite=self.replace,
        )  # fmt: skip
        if Dist.current().main and not self.quiet:
            from rich.console import Console

            from imbdiff.reporting.measured import numbers_table

            Console().print(numbers_table(found) or "no numbers")
            for warning in (found["memorisation"] or {}).get("warnings", []):
                print(f"copies: {warning}")
            for warning in found["warnings"]:
                print(f"warning: {warning}")
            print(f"report: {out / 'report.html'}")


@dataclass(frozen=True, kw_only=True)
class ReferenceCommand(MeasureOptions):
    """Make reference statistics: features of real images, which `imbdiff evaluate` takes in place of the images."""

    source: str = field(metadata=POSITIONAL)
    """A folder, an .npz or .npy file, or digits."""
    out: str | None = None
    """The reference folder. Default: reference-SOURCE."""
    split: str | None = None
    """Which split. Default: test, where the source has one, otherwise all."""
    replace: bool = False
    """Replace the reference of other images that is there."""

    def execute(self, command: str) -> None:
        from imbdiff.pipeline.direct import reference_any

        out = Path(self.out or f"reference-{_called(self.source)}")
        reference_any(self.source, out, how=_measuring(self), split=self.split, overwrite=self.replace)


def _called(source: str) -> str:
    """The name of images in the default of --out: of a folder all of it ("gen.v2"), of a file without its ending."""
    path = Path(source).expanduser().resolve()
    return (path.name if path.is_dir() else path.stem) or "images"


@dataclass(frozen=True, kw_only=True)
class InspectCommand:
    """What is in an image set: classes, sizes, damaged files, duplicates, odd labels, whether it may be mirrored."""

    source: str = field(metadata=POSITIONAL)
    """A folder of class folders, a file, hf:NAME, a benchmark, digits: docs/sources.md."""
    out: str | None = None
    """Folder for a page with pictures (report.html) and the complete report (inspection.json)."""
    page: str | None = None
    """File for the page alone, such as inspection.html."""
    size: int | str | None = None
    """Of the run that is estimated, as for imbdiff run: side in pixels, or height and width: 24x32. Default: chosen by
    the images' sizes."""
    resize: Literal["auto", "crop", "pad", "stretch"] = "auto"
    """How images are brought to it."""
    channels: Literal["auto", "grey", "colour"] = "auto"
    """auto: grey where no image has a coloured pixel."""
    cost: bool = False
    """Also measure what a run with default options would cost: reads all images, takes a minute or so."""
    json: bool = False
    """Print the complete report as JSON."""
    replace: bool = False
    """Replace files that are there already."""

    def execute(self, command: str) -> None:
        from imbdiff.pipeline.inspection import inspect_any

        data = DataConfig(size=self.size, resize=self.resize, channels=self.channels)
        inspect_any(
            self.source, data, cost=self.cost, out=self.out, page=self.page, as_json=self.json, replace=self.replace,
            command=command,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PredictCommand:
    """The class of each image, by the classifier of a run, as a CSV file: file, predicted, probability, p_CLASS.

    Images of any size are brought to that of the run, as its own were."""

    run: str = field(metadata=POSITIONAL)
    """Run folder in which `imbdiff classify` is done; or a folder that holds a saved classifier."""
    images: str = field(metadata=POSITIONAL)
    """A folder, with or without class folders, an image, or any other source of images: docs/sources.md."""
    arm: str | None = None
    """Name of an arm, or a part of it that no other has. Default: that of the verdict, or else the best control."""
    out: str | None = None
    """CSV file; - is the standard output. Default: predictions-IMAGES.csv."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    replace: bool = False
    """Replace a file that is there already."""
    quiet: bool = False
    """Print errors only."""

    def execute(self, command: str) -> None:
        from imbdiff.pipeline.predicting import predict_any

        out = self.out or f"predictions-{_called(self.images)}.csv"
        predict_any(
            self.run, self.images, out, arm=self.arm, device=self.device, replace=self.replace, quiet=self.quiet
        )


@dataclass(frozen=True, kw_only=True)
class ExportCommand:
    """Write the generator of a run for diffusers: loaded again and compared, and used without this package."""

    run: str = field(metadata=POSITIONAL)
    """Run folder, or the folder of a saved model."""
    as_: Literal["pipeline", "lora", "tokens"] = "pipeline"
    """pipeline: a folder for DiffusionPipeline.from_pretrained. lora: of a model fine-tuned by --model.pretrained, a
    file of megabytes for load_lora_weights. tokens: of its learned words, a file of each for load_textual_inversion."""
    out: str | None = None
    """A new folder. Default: RUN-pipeline or RUN-lora."""

    def execute(self, command: str) -> None:
        from imbdiff.diffusion.saved import load_model
        from imbdiff.integrations.tuned import export
        from imbdiff.pipeline.training import init_folder

        model = load_model(init_folder(self.run))
        out = Path(self.out or f"{_called(self.run)}-{self.as_}")
        export(model, self.as_, out)
        print(f"exported: {out}")


@dataclass(frozen=True, kw_only=True)
class StudyCommand(StudyOptions):
    """How many synthetic images, which of them and used how: a grid of classifiers, chosen among on validation images.

    Every number is combined with every curation, recipe, weight and schedule. Network, steps and augmentation are those
    of the run's classify options; arms without synthetic images are always added. Repeat it to continue it; a larger
    grid takes over what a smaller one trained."""

    run: str = field(metadata=POSITIONAL)
    """Run folder, whose generator is trained."""
    out: str | None = None
    """Study folder. Default: study in the run folder."""
    dry_run: bool = False
    """Print the size of the grid and how long it would take; write nothing."""
    quiet: bool = False
    """Print errors only."""

    def execute(self, command: str) -> None:
        from imbdiff.pipeline.folder import RunFolder

        folder = RunFolder(Path(self.run))
        folder.saved()  # refuses what is no run
        options = StudyOptions(**_values(self, StudyOptions))
        with nullcontext() if self.dry_run else held(folder):
            from imbdiff.pipeline.study import study

            study(self.run, options, out=self.out, dry_run=self.dry_run, quiet=self.quiet)


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Several runs next to each other on one page."""

    runs: tuple[str, ...] = field(metadata=POSITIONAL)
    """Run folders, at least two."""
    out: str = "comparison.html"
    """The page."""
    replace: bool = False
    """Replace a page that is there already."""

    def execute(self, command: str) -> None:
        if len(self.runs) < 2:
            raise ConfigError("there is nothing to compare", "give at least two run folders")
        places = [Path(path).resolve() for path in self.runs]
        if twice := [run for i, run in enumerate(self.runs) if places[i] in places[:i]]:
            raise ConfigError(f"{twice[0]} is named twice", "name each run folder once")
        from imbdiff.runtime.files import check_free, write_text

        page = Path(self.out)
        check_free(page, self.replace)
        from imbdiff.pipeline.run import open_run
        from imbdiff.reporting.compare import build_comparison

        opened = [open_run(path) for path in self.runs]
        write_text(page, build_comparison([run.report_data(prepared) for run, prepared in opened]))
        print(f"comparison: {page}")


@dataclass(frozen=True, kw_only=True)
class MethodsCommand:
    """Training methods, presets, backbones and samplers; or one method, or one guidance, with all its constants."""

    name: str | None = field(default=None, metadata=POSITIONAL)
    """A method, several joined by +, or a guidance: its constants with type, value and source."""
    json: bool = False
    """Print JSON."""

    def execute(self, command: str) -> None:
        from imbdiff.pipeline.catalogue import as_json, as_text, method_json, method_text

        if self.name is None:
            print(json.dumps(as_json(), indent=1) if self.json else as_text())
            return
        found = method_json(self.name)
        print(json.dumps(found, indent=1) if self.json else method_text(found))


@dataclass(frozen=True)
class DoctorCommand:
    """Check this installation: versions, devices, and a training step on a tiny model."""

    def execute(self, command: str) -> None:
        from imbdiff.pipeline.environment import diagnose

        lines, healthy = diagnose()
        print("\n".join(lines))
        if not healthy:
            raise ConfigError("this installation has problems", "fix the lines marked with !")


#: verbs with options of their own; the others continue a run
COMMANDS: dict[str, Any] = {
    "inspect": InspectCommand,
    "evaluate": EvaluateCommand,
    "reference": ReferenceCommand,
    "predict": PredictCommand,
    "export": ExportCommand,
    "study": StudyCommand,
    "compare": CompareCommand,
    "methods": MethodsCommand,
    "doctor": DoctorCommand,
}
VERBS = ("run", "sweep", *GROUPS, *(verb for verb in COMMANDS if verb not in GROUPS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, 2 for anything the user can fix, 128 + n if signal n stopped it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with suppress(AttributeError, ValueError):  # class names of any script, where the terminal has ASCII alone
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    typed, free = [word for word in arguments if word != "--allow-code"], "--allow-code" in arguments
    try:
        with stoppable(), only_typed(typed, free):
            try:
                _execute(*typed[:1], words=typed[1:])
            except Help as text:
                print(text)
            sys.stdout.flush()
        return 0 if arguments else 2
    except ImbdiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        number = Signals(stop.args[0] if stop.args else SIGINT)
        by = "" if number == SIGINT else f" by {number.name}"
        print(f"\nstopped{by}; the same command continues from the last checkpoint", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:  # as under `| head`; what is left in the buffer goes nowhere
        _drop_output()
        return 1
    except OSError as error:
        if error.errno is None:
            raise
        if error.filename is None and is_disk_full(error):
            _drop_output()
        place = f"{error.filename}: " if error.filename else ""
        told = RunError(f"{place}{error.strerror}", "check permissions and space, then repeat the command")
        print(f"error: {told}", file=sys.stderr)
        return 2
    except Exception as error:
        if (outside := failed_outside(error)) is None:
            raise
        print(f"error: {outside}", file=sys.stderr)
        return 2


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP, unless they are ignored, end this process as an interrupt does: with a word, and
    with what it holds released; processes that it starts are ended at once, as without."""
    own = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != own:
            os._exit(128 + number)
        raise KeyboardInterrupt(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    kept = {n: signal.getsignal(n) for n in numbers if current_thread() is main_thread()}
    kept = {n: handler for n, handler in kept.items() if handler is signal.SIG_DFL}
    for n in kept:
        signal.signal(n, stop)
    try:
        yield
    finally:
        for n, handler in kept.items():
            signal.signal(n, handler)


def _execute(verb: str = "--help", *, words: list[str]) -> None:
    if verb in ("-h", "--help", "help"):
        raise Help(HELP)
    if verb in ("-V", "--version", "version"):
        raise Help(f"imbdiff {__version__}")
    if verb == "--completion":
        raise Help(complete(*words[:1]))
    if verb not in VERBS:
        raise ConfigError(f"unknown verb {verb!r}", nearest(verb, VERBS, "see imbdiff --help"))
    if verb in ("run", "train"):
        start(verb, words)
    elif verb == "sweep":
        if (text := start_sweep(words)) is not None:
            raise Help(text)
    elif verb in GROUPS and not _measures_any(verb, words):
        proceed(verb, words)
    else:
        values, asked = given(verb, words, COMMANDS[verb])
        if asked:
            raise Help(help_text(verb, (COMMANDS[verb],)))
        fields_ = {f"{name}_" if iskeyword(name) else name: value for name, value in values.items()}
        COMMANDS[verb](**fields_).execute(shlex.join(["imbdiff", verb, *words]))


def complete(shell: str = "") -> str:
    """The script that completes every verb in a shell."""
    from imbdiff.pipeline.catalogue import as_json

    tables = {family: [n for n in rows if re.fullmatch(r"[\w.+-]+", n)] for family, rows in as_json().items()}
    families = {
        "name": "methods", "method": "methods", "methods": "methods", "preset": "presets",
        "model.backbone": "backbones", "sample.sampler": "samplers", "sample.guidance": "guidance",
        "evaluate.extractors": "extractors", "extractors": "extractors", "classify.recipes": "recipes",
        "classify.network": "classifiers",
    }  # fmt: skip
    return completion(
        shell, {verb: verb_options(verb) for verb in VERBS}, {o: tables[family] for o, family in families.items()}
    )


def verb_options(verb: str) -> list[Option]:
    """The options that a verb takes."""
    kinds = {"run": (RunCommand, RunConfig), "train": (TrainCommand, RunConfig)}.get(verb, ())
    found = [option for kind in kinds for option in options_of(kind).values()]
    found += sweep_options() if verb == "sweep" else []
    if verb in GROUPS and verb != "train":
        groups = GROUPS[verb]
        found += options_of(STAGE_COMMANDS[verb]).values()
        found += [
            o for o in options_of(RunConfig).values() if o.name.rpartition(".")[0] in groups or o.name == "device"
        ]
    found += options_of(COMMANDS[verb]).values() if verb in COMMANDS else ()
    return list({option.name: option for option in found}.values())


def _measures_any(verb: str, words: list[str]) -> bool:
    """Whether `evaluate` is of any two sets of images, not of a run: --reference says against what."""
    if verb != "evaluate" or any(word.partition("=")[0] == "--reference" for word in words):
        return verb == "evaluate"
    path = next((Path(word) for word in words if not word.startswith("-")), None)
    if path is not None and path.exists() and not (path / "config.yaml").exists():
        line = shlex.join(["imbdiff", "evaluate", str(path), "--reference", "REAL"])
        raise ConfigError(
            f"{path} is not a run folder (config.yaml is missing)",
            f"to measure images without a run, compare them with some: {line}",
        )
    return False


if __name__ == "__main__":
    sys.exit(main())
