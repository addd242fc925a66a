"""`sweep`: methods x seeds on one source. A folder of ordinary runs, and one page that compares them.

==============  =======================================================================
METHOD-SEED/    a run folder for each, as `imbdiff run` makes them
sweep.json      the runs, why some failed, and every number by method and seed; written after each run
report.html     the page
==============  =======================================================================
"""

from __future__ import annotations

import shlex
import shutil
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imbdiff.config import RunConfig, flatten, override, to_dict
from imbdiff.data.names import safe_class_dir
from imbdiff.data.source import Source
from imbdiff.data.sources import load, parse
from imbdiff.data.splits import Prepared
from imbdiff.pipeline import training
from imbdiff.pipeline.folder import RunFolder, check_equal, decisive, repeat_command
from imbdiff.pipeline.page import report_data
from imbdiff.pipeline.plan import check_fit, check_options, default_config, make_plan
from imbdiff.pipeline.run import STAGES, Run
from imbdiff.presets import preset
from imbdiff.reporting.sweep import SweepRun, build_sweep, sweep_lines
from imbdiff.runtime.device import start
from imbdiff.runtime.errors import ConfigError, ImbdiffError, RunError, listing
from imbdiff.runtime.files import atomic, read_json, write_json, write_text
from imbdiff.runtime.progress import duration

SCHEMA = "imbdiff-sweep/1"
MARKER = "sweep.json"
Cell = tuple[str, int]
"""Method and seed."""


def sweep(
    source: str | Path,
    methods: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    config: RunConfig | None = None,
    *,
    out: str | Path | None = None,
    dry_run: bool = False,
    quiet: bool = False,
    opened: Source | None = None,
) -> Path | None:
    """Runs every method with every seed, as `imbdiff.run` would, and writes one page on all of them.

    The same call continues what is there; with more methods or seeds it adds runs, and the page is on all that the
    folder holds. A run that fails is noted, and the others go on.

    Args:
        methods: names, with their published constants.
        seeds: of training and sampling; the split is the same in all runs.
        config: all other options; default: chosen by image size.
        out: the folder; default: ``runs/SOURCE-sweep``.
        dry_run: prints the time that it would take, and writes nothing.
        opened: the source, where it is open already.

    Returns:
        The page's path; None of a dry run.

    Raises:
        ImbdiffError: options that are wrong for any of the runs, before the first begins; another sweep's folder; or,
            when all others are done, that some runs failed.
    """
    opened = opened or load(str(source))
    config = training.sized(opened, config or default_config(opened))
    if start(config.device).world > 1:
        raise ConfigError("imbdiff sweep is one process", "leave out torchrun")
    name = parse(str(source))
    folder = RunFolder(Path(out) if out is not None else default_out(str(source)), MARKER)
    work = _Sweep(folder, name.absolute(), opened, config, _grid(methods, seeds), quiet)
    work.check()
    prepared = training.prepare_data(opened, config.data)
    for method in dict.fromkeys(methods):
        check_fit(prepared, work.config_of((method, seeds[0])))
    if dry_run:
        print(work.plan(prepared))
        return None
    return work.execute(prepared)


def default_out(source: str) -> Path:
    return Path("runs") / safe_class_dir(f"{parse(source).short}-sweep")


def _grid(methods: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Seed by seed, so that a sweep that is stopped early has something of every method."""
    for what, values in (("methods", methods), ("seeds", seeds)):
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"--{what} {' '.join(map(str, values))}: none, or one twice", f"name each of the {what}")
    return [(method, seed) for seed in seeds for method in methods]


@dataclass(frozen=True)
class _Sweep:
    folder: RunFolder
    source: str
    opened: Source
    config: RunConfig
    asked: list[Cell]
    quiet: bool

    def config_of(self, cell: Cell) -> RunConfig:
        return override(self.config, {"method": cell[0], "seed": cell[1]})

    def folder_of(self, cell: Cell) -> RunFolder:
        return RunFolder(self.folder / safe_class_dir(f"{cell[0]}-{cell[1]}"))

    def check(self) -> None:
        """Refuses what would be wrong in any of the runs, before anything is read or trained.

        Raises:
            ImbdiffError: an option, the folder, or a run in it that was made with other options.
        """
        for method in dict.fromkeys(method for method, _ in self.asked):
            check_options(self.config_of((method, 0)))
        self.folder.check_usable(self.source)
        known = self.known
        if known and (known.get("schema"), known.get("source")) != (SCHEMA, self.source):
            raise RunError(
                f"the sweep in {self.folder.path} is of {known.get('source')}, not of {self.source}, or was made by "
                "another version",
                "give another --out; nothing was changed",
            )
        for cell in self.asked:
            self.folder_of(cell).check_usable(self.source)
        if old := known.get("options"):
            new = self.options
            check_equal(f"the sweep in {self.folder.path}", {name: old.get(name) for name in new}, new)

    @property
    def options(self) -> dict[str, Any]:
        """What all its runs share and cannot be changed later."""
        several = ("method", "seed", "constants")
        found = decisive(flatten(to_dict(self.config)))
        return {name: v for name, v in found.items() if name.split(".")[0] not in several}

    @property
    def known(self) -> dict[str, Any]:
        found = read_json(self.folder / MARKER) if self.folder.exists else {}
        return found if isinstance(found, dict) else {"schema": "unknown"}

    @property
    def cells(self) -> list[Cell]:
        """Those that the folder holds already, and those asked for."""
        return list(dict.fromkeys([*((row["method"], row["seed"]) for row in self.known.get("runs", [])), *self.asked]))

    def plan(self, prepared: Prepared) -> str:
        """The time of one run of each method, measured, and of all."""
        lines, total = [], 0.0
        for method in dict.fromkeys(method for method, _ in self.asked):
            n = sum(method == other for other, _ in self.asked)
            one = make_plan(prepared, self.config_of((method, 0)), self.source)
            total += n * one.seconds
            lines.append(f"{method:<20}  {n} x about {duration(one.seconds)}")
        return "\n".join([*lines, f"{'in all':<20}  about {duration(total)} for {len(self.asked)} runs, from a probe"])

    def log(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)

    def execute(self, prepared: Prepared) -> Path:
        with self.folder.locked():
            failed: dict[Cell, str] = {}
            said: set[str] = set()
            self.write(prepared, failed)
            for i, cell in enumerate(self.asked):
                place = self.folder_of(cell)
                self.log(f"\nrun {i + 1} of {len(self.asked)}: {cell[0]}, seed {cell[1]}: {place.path}")
                try:
                    run = Run(place, self.source, self.config_of(cell), self.quiet, self.opened, said=said)
                    if "train" not in place.stages():
                        run.execute(STAGES[:1])
                    self.share(place)
                    run.execute()
                except Exception as error:  # whatever ends one run: the others go on, and the page says it
                    failed[cell] = str(error) if isinstance(error, ImbdiffError) else traceback.format_exc(limit=-3)
                    self.log(f"failed: {failed[cell]}")
                self.write(prepared, failed)
        page = self.folder / "report.html"
        self.log(f"\nsweep: {page}")
        if failed:
            why = [f"{self.folder_of(cell).path}: {text.strip().splitlines()[-1]}" for cell, text in failed.items()]
            raise RunError(
                f"{len(failed)} of {len(self.asked)} runs failed:\n{listing(why)}",
                "the others are done; the same command tries these again",
            )
        return page

    def share(self, place: RunFolder) -> None:
        """Copies what runs have in common from those that are there: the judge, and classifiers without synthetic
        images. Their files are named by a hash of all that decides them."""
        for there in (self.folder_of(cell).path for cell in self.cells):
            for file in (*there.glob("judge/*"), *there.glob("classifier/*.safetensors")):
                own = place / file.parent.name / file.name
                if there != place.path and not own.exists() and not file.name.startswith(("synthetic", ".")):
                    with atomic(own, sync=False) as aside:
                        shutil.copyfile(file, aside)

    def write(self, prepared: Prepared, failed: dict[Cell, str]) -> None:
        """sweep.json and the page, of what there is so far."""
        runs = [self.result(cell, prepared, failed.get(cell, "")) for cell in self.cells]
        lines = sweep_lines(runs)
        write_json(self.folder / MARKER, {
            "schema": SCHEMA,
            "source": self.source,
            "command": self.command,
            "options": self.options,
            "runs": [
                {"method": r.method, "seed": r.seed, "folder": r.folder, "state": r.state, "failed": r.failed}
                for r in runs
            ],
            "numbers": [line.to_json() for line in lines],
        })  # fmt: skip
        write_text(self.folder / "report.html", build_sweep(parse(self.source).short, self.command, runs, lines))

    def result(self, cell: Cell, prepared: Prepared, failed: str) -> SweepRun:
        run = self.folder_of(cell)
        name, page = run.path.name, "report.html"
        data = report_data(run, *run.saved(), prepared, None) if run.exists else None
        return SweepRun(*cell, name, f"{name}/{page}" if (run / page).exists() else "", data, failed)

    @property
    def command(self) -> str:
        methods, seeds = (dict.fromkeys(column) for column in zip(*self.cells, strict=True))
        base = preset(self.config.preset)
        plain = override(self.config, {"method": base.method, "seed": base.seed})  # which are not printed
        _, _, *words = shlex.split(repeat_command(self.source, self.folder.path, plain))
        return shlex.join(["imbdiff", "sweep", *words, "--methods", *methods, "--seeds", *map(str, seeds)])
