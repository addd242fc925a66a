"""The command: verbs over the pipeline. Everything heavy is imported inside a verb."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imbdiff.runtime.errors import ConfigError, ImbdiffError
from imbdiff.version import __version__

if TYPE_CHECKING:
    from imbdiff.config import RunConfig

HELP = f"""imbdiff {__version__}: class-conditional diffusion for long-tailed image data

  imbdiff run SOURCE        everything: prepare, train, sample, curate, evaluate, classify, report
  imbdiff inspect SOURCE    what is in an image set: classes, sizes, damage, duplicates, labels
  imbdiff train SOURCE      train the generator only
  imbdiff sample RUN        draw the images that classes lack
  imbdiff curate RUN        choose which of them are kept
  imbdiff evaluate RUN      measure them
  imbdiff evaluate FAKE --reference REAL    measure any images against others, without a run
  imbdiff reference SOURCE  make reference statistics of real images
  imbdiff classify RUN      train classifiers with and without them, and compare
  imbdiff study RUN         how many synthetic images, which and used how: try a grid, choose on validation images
  imbdiff report RUN        write the page again
  imbdiff compare RUN RUN   several runs on one page
  imbdiff methods           training methods, presets, backbones, samplers
  imbdiff doctor            check this installation

SOURCE is a folder with one sub-folder of images per class, a zip, npz, list, table or tar file, hf:NAME, the name of
a benchmark (imbdiff methods), or digits (built in); its options stand behind a question mark: docs/sources.md.
RUN is a folder that `imbdiff run` or `imbdiff train` made. The same command continues a run that was stopped.

  imbdiff run digits --preset demo     an example, in minutes
  imbdiff run DIR --dry-run            what a run on your folder would do, and how long it would take
  imbdiff VERB --help                  all options of a verb
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0, or 2 for anything the user can mend."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        print(f"imbdiff {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb not in VERBS:
            import difflib

            near = difflib.get_close_matches(verb, VERBS, n=1)
            raise ConfigError(f"unknown verb {verb!r}", f"did you mean {near[0]}?" if near else "see imbdiff --help")
        return VERBS[verb](rest) or 0
    except ImbdiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _start(verb: str, arguments: Sequence[str], stages: Sequence[str] | None = None) -> int:
    from imbdiff.commands import read_run

    command, opened = read_run(verb, arguments)
    from imbdiff.pipeline.folder import RunFolder
    from imbdiff.pipeline.run import STAGES, Run

    config: RunConfig = command.options
    if command.dry_run:
        from imbdiff.pipeline.plan import check_fit, check_options, make_plan
        from imbdiff.pipeline.training import prepare_data

        check_options(config)
        prepared = prepare_data(opened or command.source, config.data)
        check_fit(prepared, config)
        for warning in prepared.warnings:
            print(f"note: {warning}")
        print(make_plan(prepared, config, command.source).text())
        return 0
    out = Path(command.out) if command.out else default_out(command.source, config)
    Run(RunFolder(out), command.source, config, command.quiet, opened).execute(stages or STAGES)
    return 0


def default_out(source: str, config: RunConfig) -> Path:
    """runs/SOURCE-METHOD-SEED."""
    from imbdiff.data.names import safe_class_dir
    from imbdiff.data.sources import parse

    return Path("runs") / safe_class_dir(f"{parse(source).short}-{config.method}-{config.seed}")


def _run(arguments: Sequence[str]) -> int:
    return _start("run", arguments)


def _train(arguments: Sequence[str]) -> int:
    return _start("train", arguments, ("train",))


def _later(verb: str) -> Callable[[Sequence[str]], None]:
    """A verb that continues a run folder with one stage; options of that stage may be given."""

    def call(arguments: Sequence[str]) -> None:
        from imbdiff.commands import read_stage

        folder, source, command = read_stage(verb, arguments)
        folder.check_only(command.options, verb)
        from imbdiff.pipeline.run import Run

        wanted = {"report": ("report",), "sample": ("sample", "curate", "report")}.get(verb, (verb, "report"))
        Run(folder, source, command.options, command.quiet).execute(wanted)

    return call


def _evaluate(arguments: Sequence[str]) -> None:
    """Of a run, or of any two sets of images: told apart by --reference."""
    if not any(word.partition("=")[0] == "--reference" for word in arguments):
        path = next((a for a in arguments if not a.startswith("-")), None)
        if path is not None and Path(path).exists() and not (Path(path) / "config.yaml").exists():
            raise ConfigError(
                f"{path} is not a run folder (config.yaml is missing)",
                f"to measure images without a run, say against what: imbdiff evaluate {path} --reference REAL",
            )
        _later("evaluate")(arguments)
        return
    from imbdiff.arguments import made
    from imbdiff.commands import EvaluateCommand

    command = made(EvaluateCommand, "evaluate", arguments)
    from imbdiff.pipeline.direct import evaluate_any
    from imbdiff.runtime.dist import Dist

    out = Path(command.out) if command.out else Path(f"evaluation-{_called(command.fake)}")
    found = evaluate_any(
        command.fake, command.reference, command.train,
        how=_measuring(command.measure, shlex.join(["imbdiff", "evaluate", *arguments])),
        fake_split=command.fake_split, reference_split=command.reference_split, out=out,
    )  # fmt: skip
    if Dist.current().main and not command.measure.quiet:
        from rich.console import Console

        from imbdiff.reporting.measured import numbers_table

        Console().print(numbers_table(found) or "no numbers")
        for warning in (found["memorisation"] or {}).get("warnings", []):
            print(f"copies: {warning}")
        print(f"report: {out / 'report.html'}")


def _called(source: str) -> str:
    """What a default --out calls a source: all of a folder's name ("gen.v2"), a file's less its ending."""
    path = Path(source).expanduser().resolve()
    return (path.name if path.is_dir() else path.stem) or "images"


def _measuring(options: Any, command: str | None = None) -> Any:
    from dataclasses import asdict

    from imbdiff.pipeline.direct import Measuring

    values = asdict(options)
    return Measuring(extractors=tuple(values.pop("extractor")), command=command, **values)


def _reference(arguments: Sequence[str]) -> None:
    from imbdiff.arguments import made
    from imbdiff.commands import ReferenceCommand

    command = made(ReferenceCommand, "reference", arguments)
    from imbdiff.pipeline.direct import reference_any

    out = Path(command.out) if command.out else Path(f"reference-{_called(command.source)}")
    reference_any(command.source, out, how=_measuring(command.measure), split=command.split)


def _inspect(arguments: Sequence[str]) -> None:
    from imbdiff.arguments import made
    from imbdiff.commands import InspectCommand

    command = made(InspectCommand, "inspect", arguments)
    from imbdiff.pipeline.inspection import inspect_any

    written = inspect_any(
        command.source, size=command.size, cost=command.cost, out=command.out, page=command.page,
        command=shlex.join(["imbdiff", "inspect", *arguments]),
    )  # fmt: skip
    if command.json:
        print(json.dumps(written.report, indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(written.text)
    for path in written.files:
        print(f"written: {path}")


def _compare(arguments: Sequence[str]) -> None:
    from imbdiff.arguments import made
    from imbdiff.commands import CompareCommand

    command = made(CompareCommand, "compare", arguments)
    if len(command.runs) < 2:
        raise ConfigError("there is nothing to compare", "give at least two run folders")
    from imbdiff.pipeline.run import open_run
    from imbdiff.reporting.compare import build_comparison
    from imbdiff.runtime.files import write_text

    data = []
    for path in command.runs:
        opened, prepared = open_run(path)
        data.append(opened.report_data(prepared))
    page = Path(command.out)
    if page.is_dir():
        raise ConfigError(f"{page} is a folder", "give --out a file, such as comparison.html")
    write_text(page, build_comparison(data))
    print(f"comparison: {command.out}")


def _study(arguments: Sequence[str]) -> None:
    from imbdiff.arguments import made
    from imbdiff.commands import StudyCommand

    command = made(StudyCommand, "study", arguments)
    from imbdiff.pipeline.study import study

    study(command.run, command.grid, out=command.out, dry_run=command.dry_run, quiet=command.quiet)


def _methods(arguments: Sequence[str]) -> None:
    from imbdiff.arguments import made
    from imbdiff.commands import MethodsCommand

    command = made(MethodsCommand, "methods", arguments)
    from imbdiff.pipeline.catalogue import as_json, as_text, method_json, method_text

    if command.name is not None:
        found = method_json(command.name)
        print(json.dumps(found, indent=1) if command.json else method_text(found))
        return
    print(json.dumps(as_json(), indent=1) if command.json else as_text())


def _doctor(arguments: Sequence[str]) -> None:
    from imbdiff.arguments import made
    from imbdiff.commands import DoctorCommand

    made(DoctorCommand, "doctor", arguments)
    from imbdiff.pipeline.environment import diagnose

    lines, healthy = diagnose()
    print("\n".join(lines))
    if not healthy:
        raise ConfigError("this installation has problems", "mend the lines marked with !")


VERBS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "run": _run,
    "inspect": _inspect,
    "train": _train,
    "sample": _later("sample"),
    "curate": _later("curate"),
    "evaluate": _evaluate,
    "reference": _reference,
    "classify": _later("classify"),
    "study": _study,
    "report": _later("report"),
    "compare": _compare,
    "methods": _methods,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())
