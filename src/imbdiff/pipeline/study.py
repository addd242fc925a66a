"""`study`: which number of synthetic images, curated and used how, is best for a run's data; over its run folder.

==============  =======================================================================
plan.json       of which run and model, and the grid; written first
samples/        the pool of candidates, which begins with the run's own samples
curation/       which of them each policy keeps, with all scores, and the working classifier that says so
jobs/           one file per trained classifier
looks.json      each look at the test images, whatever grid it was for
study.json      the grid, results on validation images, the recommendation
report.html     the page
==============  =======================================================================
"""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from imbdiff.config import RunConfig
from imbdiff.data.names import counted, named
from imbdiff.data.splits import LEAST_FOR_VAL, Prepared
from imbdiff.diffusion.saved import load_model, saved_identity
from imbdiff.pipeline import study_pool, training
from imbdiff.pipeline.folder import RunFolder, repeat_command
from imbdiff.pipeline.plan import probe_sampling
from imbdiff.pipeline.recognising import classifier_plan, classifier_use
from imbdiff.pipeline.run import Run, open_run
from imbdiff.pipeline.samples import load_samples
from imbdiff.pipeline.study_checks import SCHEMA, StudyOptions, check_folder, numbers_of
from imbdiff.pipeline.study_looks import add_look, grid_hash
from imbdiff.recognition.arms import recipes_alone
from imbdiff.recognition.fit import fit
from imbdiff.recognition.grid import Cell, check_grid, make_cells, missing_classes
from imbdiff.recognition.jobs import default_workers
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.sweep import sweep
from imbdiff.reporting.study import build_study
from imbdiff.runtime.device import prepare_threads, resolve_device, start
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import write_json, write_text
from imbdiff.runtime.progress import Progress, duration


def study(
    path: str | Path, options: StudyOptions | None = None, *, out: str | Path | None = None, dry_run: bool = False,
    quiet: bool = False,
) -> Path | None:  # fmt: skip
    """Trains classifiers over the grid, on the data and with the model and classifier options of the run in `path`.

    Args:
        out: the study folder; default: ``study/`` in the run folder. The same call continues what is there; a larger
            grid takes over what was drawn and trained for a smaller one.
        dry_run: prints the size of the grid and an estimate of the time, and writes nothing.

    Returns:
        The page's path; None of a dry run.

    Raises:
        ImbdiffError: no trained run, another study's folder, a grid that makes no sense, data that cannot be compared.
    """
    work = _Study.open(Path(path), options or StudyOptions(), out, quiet)
    if dry_run or not quiet:
        print("\n".join(f"{name:<12}{text}" for name, text in work.plan_rows()), flush=True)
    return None if dry_run else work.execute()


@dataclass
class _Study:
    run: Run
    prepared: Prepared
    options: StudyOptions
    folder: Path
    cells: tuple[Cell, ...]
    plan: FitPlan
    seeds: tuple[int, ...]
    identity: dict[str, str]
    device: str
    quiet: bool

    @classmethod
    def open(cls, path: Path, options: StudyOptions, out: str | Path | None, quiet: bool) -> _Study:
        """Everything that can be refused is refused here, before anything is drawn or trained."""
        run, prepared = open_run(path)
        config = run.config
        if start(config.device).world > 1:
            raise ConfigError("imbdiff study is one process", "leave out torchrun")
        made = run.folder.stages().get("train")
        weights = run._needs("model/model.safetensors", "run").parent
        if made is None or saved_identity(weights) != made["weights"]:
            line = repeat_command(run.source, run.folder.path, config)
            raise RunError(f"the model in {weights} is not finished", f"run `{line}` first")
        base = classifier_use(config.classify)
        uses = [replace(base, weight=w, schedule=s) for w in options.weights for s in options.schedules]
        numbers = numbers_of(options.numbers, prepared)
        cells = make_cells(numbers, options.curation, options.recipes, uses)
        plan = classifier_plan(config.classify, symmetry=training.symmetry_of(prepared, config))
        seeds = tuple(range(config.seed, config.seed + (options.seeds or config.classify.seeds)))
        check_grid(
            prepared,
            cells,
            plan,
            recipes_alone(config.classify.recipes, options.recipes),
            seeds,
            reveal_test=options.reveal_test,
        )
        identity = {"data": prepared.manifest["hash"], "weights": str(made["weights"])}
        folder = run.folder / "study" if out is None else Path(out)
        check_folder(folder, run, identity)
        device = str(resolve_device(config.device))
        return cls(run, prepared, options, folder, cells, plan, seeds, identity, device, quiet)

    @property
    def config(self) -> RunConfig:
        return self.run.config

    @property
    def without(self) -> list[str]:
        return recipes_alone(self.config.classify.recipes, self.options.recipes)

    def todo(self) -> dict[str, Any]:
        """Of the pool, see :mod:`imbdiff.pipeline.samples`."""
        counts = study_pool.pool_counts(self.cells, self.config, self.options.draw)
        place = self.folder / "samples"
        return study_pool.plan_pool(place, counts, self.prepared, self.config, self.identity["weights"])

    def plan_rows(self) -> list[tuple[str, str]]:
        """The size of the grid, and an estimate of the time from a measured probe."""
        o, arms = self.options, len(self.without)
        todo = self.todo()
        have, copied = study_pool.at_hand(todo, self.folder / "samples", self.run.folder / "samples")
        left = len(todo["images"]) - have - len(copied)
        trained = (len(self.cells) + arms) * len(self.seeds)
        drawing = 0.0
        if left:
            model = load_model(self.run.folder / "model", device=resolve_device(self.config.device))
            drawing = (
                probe_sampling(model, self.config, resolve_device(self.config.device), self.prepared.groups) * left
            )
        training = probe_classifier(self.prepared, self.plan, self.device) * trained
        missing = missing_classes(self.prepared)
        n_val = 0 if self.prepared.val is None else len(self.prepared.val)
        chosen = f"by {n_val:,} validation images, among {len(self.cells) + arms}"
        if missing:
            chosen = f"none: {self._about_missing(missing)[0]} {self._about_missing(missing)[1]}"
        grid = (
            f"{counted(len(o.numbers), 'number')} x {len(o.curation)} curation x {counted(len(o.recipes), 'recipe')} x "
            f"{counted(len(o.weights), 'weight')} x {counted(len(o.schedules), 'schedule')} = "
            f"{counted(len(self.cells), 'cell')}, and {counted(arms, 'arm')} without synthetic images"
        )
        return [
            ("grid", grid),
            ("classifiers", f"{trained} = {len(self.cells) + arms} x {counted(len(self.seeds), 'seed')}, "
                            f"{self.plan.steps:,} steps each"),
            ("images", f"{len(todo['images']):,} candidates: {have + len(copied):,} at hand, {left:,} to draw"),
            ("choice", chosen),
            ("time", f"about {duration(drawing)} to draw and {duration(training)} to train, from a measured probe; "
                     "what is trained already is not trained again"),
        ]  # fmt: skip

    def execute(self) -> Path:
        with self._locked():
            try:
                return self._work()
            except OSError as error:
                raise RunFolder(self.folder).unwritable(error) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """The run folder too: a command that changes it would change what is compared."""
        with self.run.folder.locked(), RunFolder(self.folder).locked():
            RunFolder(self.folder).sweep()
            check_folder(self.folder, self.run, self.identity)
            yield

    def _work(self) -> Path:
        began, folder, config, prepared = time.monotonic(), self.folder, self.config, self.prepared
        asked = {**asdict(self.options), "seeds": len(self.seeds)}
        write_json(folder / "plan.json", {"schema": SCHEMA, "of": self.identity, "grid": asked})
        todo = self.todo()
        study_pool.draw_pool(
            todo,
            folder / "samples",
            self.run.folder / "samples",
            config,
            self.run.folder / "model",
            prepared,
            quiet=self.quiet,
        )
        pool = load_samples(folder / "samples", prepared.train.shape, prepared.train.class_names)
        choose = study_pool.Chooser(
            pool, prepared, config, self.options.draw, self.plan, folder / "curation", self.device
        )
        with Progress("study", 1, "classifiers", quiet=self.quiet, every=20) as progress:

            def told(done: int, total: int, note: str) -> None:
                progress.total = total  # fewer than the grid has, where inputs are equal or curation left no image
                progress.update(done, note)

            found = sweep(
                prepared,
                choose,
                self.cells,
                plan=self.plan,
                without=self.without,
                seeds=self.seeds,
                device=self.device,
                folder=folder / "jobs",
                progress=told,
                reveal_test=self.options.reveal_test,
            )
        missing = self._about_missing(found["missing"]) if found["missing"] else None
        picked = found["recommendation"]
        grid = grid_hash(self.cells, self.without, self.seeds, self.plan, self.options.draw, config.curate.confidence)
        looks = add_look(folder, grid, len(self.cells), found)
        result = {
            "schema": SCHEMA,
            "run": str(self.run.folder.path),
            "source": self.run.source,
            "of": self.identity,
            "grid": asked,
            **found,
            "looks": looks,
            "curated": choose.made,
            "why_not": None if missing is None else {"reason": missing[0], "remedy": missing[1]},
            "apply": [] if picked is None else self._commands(picked),
            "command": self._command(),
            "seconds": round(time.monotonic() - began, 1),
        }
        write_json(folder / "study.json", result)
        best = next((cell.number for cell in self.cells if picked and cell.name == picked["name"]), None)
        write_text(folder / "report.html", build_study(result, choose.examples(best)))
        if not self.quiet:
            said = f"recommended: {picked['name']}" if picked else f"no recommendation: {missing[0] if missing else ''}"
            print(f"{said}\nstudy: {folder / 'report.html'}", flush=True)
        return folder / "report.html"

    def _about_missing(self, missing: Sequence[str]) -> tuple[str, str]:
        """Why nothing is chosen, and what would help."""
        if not any(self.prepared.claimable):
            return (
                "no claim can be made of any class.",
                "A class needs test images, and more than 3 images in all: add images.",
            )
        why = f"{counted(len(missing), 'class has', 'classes have')} no validation image: {named(missing)}."
        origin = str(self.prepared.manifest.get("val_from", ""))
        if origin == "given":
            return why, "Add images of these classes to the source's own validation split."
        if origin.startswith("held out"):
            return why, (
                f"Nothing is held out of classes of fewer than {LEAST_FOR_VAL} images, whatever --data.val_fraction: "
                "add images of them, or give the source a validation split of its own."
            )
        return why, "A larger --data.val_fraction in a new run would help."

    def _commands(self, picked: dict[str, Any]) -> list[str]:
        """The command lines by which a run does what is recommended."""
        path, own = str(self.run.folder.path), self.config.classify
        cell = next((c for c in self.cells if c.name == picked["name"]), None)
        label = picked["control"] if cell is not None else picked["name"]
        recipe = next(name for name in self.without if get_recipe(name).label == label)
        classify = ["imbdiff", "classify", path]
        if recipe not in own.recipes:
            classify += ["--classify.recipes", *own.recipes, recipe]
        if len(self.seeds) != own.seeds:
            classify += ["--classify.seeds", str(len(self.seeds))]
        if cell is None:
            return [shlex.join(classify)]
        curated = cell.curation != "none"
        sample = ["imbdiff", "sample", path, "--sample.strategy", cell.number, "--curate.policy", cell.curation]
        sample += ["--curate.draw", str(self.options.draw if curated else 1)]
        classify += ["--classify.synthetic", cell.recipe, "--classify.primary", cell.recipe]
        classify += ["--classify.synthetic_weight", str(cell.use.weight)]
        classify += ["--classify.synthetic_schedule", cell.use.schedule]
        return [shlex.join(sample), shlex.join(classify)]

    def _command(self) -> str:
        o = self.options
        words = ["imbdiff", "study", str(self.run.folder.path), "--numbers", *o.numbers, "--curation", *o.curation]
        words += ["--recipes", *o.recipes, "--weights", *map(str, o.weights), "--schedules", *o.schedules]
        words += ["--seeds", str(len(self.seeds)), "--draw", str(o.draw)]
        words += ["--reveal-test"] if o.reveal_test else []
        words += [] if self.folder == self.run.folder / "study" else ["--out", str(self.folder)]
        return shlex.join(words)


def probe_classifier(prepared: Prepared, plan: FitPlan, device: str) -> float:
    """Seconds per classifier, as many trained at a time as a study does."""
    workers = default_workers(device)

    def seconds(steps: int) -> float:
        def once(seed: int) -> None:
            if torch.device(device).type == "cpu":
                torch.set_num_threads(1)  # of this thread, as in a study
            fit(prepared.train, replace(plan, steps=steps), seed=seed, device=device, name="probe")

        began = time.perf_counter()
        with ThreadPoolExecutor(max_workers=workers) as threads:
            list(threads.map(once, range(workers)))
        return time.perf_counter() - began

    prepare_threads()
    seconds(2)
    return max(seconds(12) - seconds(2), 1e-4) / 10 * plan.steps / workers
