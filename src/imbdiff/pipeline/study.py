"""`study`: which number of synthetic images, curated and used how, is best for a run's data; over its run folder.

==============  =======================================================================
plan.json       of which run and model, and the grid; written first
samples/        the pool of candidates, which begins with the run's own samples
curation/       which of them each policy keeps, with all scores, and the working classifier that decides
jobs/           one file per trained classifier
study.json      the grid, results on validation images, the recommendation, each reading of test images so far
report.html     the page
==============  =======================================================================
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted, named
from imbdiff.data.splits import LEAST_FOR_VAL, Prepared
from imbdiff.diffusion.saved import load_model, saved_identity
from imbdiff.pipeline.curation import candidates, curate_run
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.plan import probe_sampling
from imbdiff.pipeline.recognising import classifier_use, plan_of
from imbdiff.pipeline.run import Run, open_run
from imbdiff.pipeline.sampling import (
    alike,
    finished,
    guide_of,
    load_samples,
    make_ready,
    plan_in,
    plan_of_samples,
    sample_into,
    sampling,
)
from imbdiff.pipeline.strategy import images_to_draw, parse_strategy
from imbdiff.recognition.arms import Arm, first_of, make_grid, missing_classes, with_controls
from imbdiff.recognition.choice import Studied, check_study
from imbdiff.recognition.choice import study as compare
from imbdiff.recognition.curation import parse_policy
from imbdiff.recognition.jobs import Conditions, seconds_per_classifier
from imbdiff.recognition.recipes import get_recipe
from imbdiff.reporting.study import build_study
from imbdiff.runtime.device import resolve_device, start
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_json, write_text
from imbdiff.runtime.progress import Progress, duration
from imbdiff.studying import StudyOptions

SCHEMA = "imbdiff-study/3"


def study(
    path: str | Path, options: StudyOptions | None = None, *, out: str | Path | None = None, dry_run: bool = False,
    quiet: bool = False,
) -> Path | None:  # fmt: skip
    """Trains classifiers over the grid, on the data and with the model and classifier options of the run in `path`.

    Args:
        out: the study folder; default: ``study/`` in the run folder. The same call continues what is there; a larger
            grid takes over what was generated and trained for a smaller one.
        dry_run: prints the size of the grid and an estimate of the time, and writes nothing.

    Returns:
        The page's path; None of a dry run.

    Raises:
        ImbdiffError: no trained run, another study's folder, a grid that makes no sense, data that cannot be compared.
    """
    work = _Study.open(Path(path), options or StudyOptions(), out)
    if dry_run or not quiet:
        print("\n".join(f"{name:<12}{text}" for name, text in work.plan_rows()), flush=True)
    return None if dry_run else work.execute(quiet)


def check_grid(options: StudyOptions) -> None:
    """Refuses words that no run could make right.

    Raises:
        ConfigError: an unknown number, policy or recipe.
    """
    for number in options.numbers:
        parse_strategy(number)
    for policy in options.curation:
        parse_policy(policy)
    for recipe in options.recipes:
        get_recipe(recipe)


@dataclass
class _Study:
    run: Run
    prepared: Prepared
    options: StudyOptions
    folder: RunFolder
    grid: tuple[Arm, ...]
    conditions: Conditions
    identity: dict[str, str]
    chosen: dict[tuple[str, tuple[int, ...]], ImageSet] = field(default_factory=dict)
    curated: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, options: StudyOptions, out: str | Path | None) -> _Study:
        """Everything that can be refused is refused here, before anything is generated or trained."""
        check_grid(options)
        run, prepared = open_run(path)
        config = run.config
        if start(config.device).world > 1:
            raise ConfigError("imbdiff study is one process", "leave out torchrun")
        weights = saved_identity(run.folder.trained())
        numbers = {word.strip(): images_to_draw(word.strip(), prepared.stats) for word in options.numbers}
        if len(numbers) < len(options.numbers):
            raise ConfigError(f"a number is named twice: {', '.join(options.numbers)}", "name each number once")
        base = classifier_use(config.classify)
        uses = [replace(base, weight=w, schedule=s) for w in options.weights for s in options.schedules]
        grid = make_grid(numbers, options.curation, options.recipes, uses)
        folder = RunFolder(run.folder.path / "study" if out is None else Path(out), "plan.json")
        seeds = tuple(range(config.seed, config.seed + (options.seeds or config.classify.seeds)))
        device = str(resolve_device(config.device))
        conditions = Conditions(plan_of(prepared, config), prepared, seeds, device, folder=folder / "jobs")
        identity = {"data": prepared.manifest["hash"], "weights": weights}
        work = cls(run, prepared, options, folder, grid, conditions, identity)
        check_study(conditions, work.arms)
        work.check_folder()
        return work

    @property
    def config(self) -> RunConfig:
        """Of the run, with the study's number of candidates per image wanted."""
        config = self.run.config
        return replace(config, curate=replace(config.curate, candidates=self.options.candidates))

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Those of the grid, after those without synthetic images."""
        return with_controls(self.grid, self.run.config.classify.recipes)

    def check_folder(self) -> None:
        """Refuses a study folder that is something else.

        Raises:
            RunError: it is a file, lies among the images, holds other files, or a study of other data or another model.
        """
        self.folder.check_usable(self.run.source)
        if not self.folder.exists:
            return
        found = read_json(self.folder / "plan.json")
        if not isinstance(found, dict) or found.get("schema") != SCHEMA or found.get("of") != self.identity:
            raise RunError(
                f"the study in {self.folder.path} is of other data, another model or another version than the run in "
                f"{self.run.folder.path}",
                "give another --out, or remove it; nothing was changed",
            )

    def plan_rows(self) -> list[tuple[str, str]]:
        """The size of the grid, and an estimate of the time from a measured probe."""
        o, plan, seeds, prepared = self.options, self.conditions.plan, self.conditions.seeds, self.prepared
        arms, todo = len(self.arms), self.todo()
        shared, own = self.shared(todo), self.folder / "samples"
        left = sum(row["file"] not in shared and not (own / row["file"]).exists() for row in todo["images"])
        all_of, generating = len(todo["images"]), 0.0
        if left:
            device = resolve_device(self.config.device)
            model = load_model(self.run.folder / "model", device=device)
            generating = probe_sampling(model, self.config, device, prepared.groups) * left
        training = seconds_per_classifier(prepared.train, plan, self.conditions.device) * arms * len(seeds)
        missing = missing_classes(prepared)
        n_val = 0 if prepared.val is None else len(prepared.val)
        grid = (
            f"{counted(len(o.numbers), 'number')} x {len(o.curation)} curation x {counted(len(o.recipes), 'recipe')} x "
            f"{counted(len(o.weights), 'weight')} x {counted(len(o.schedules), 'schedule')} = "
            f"{counted(len(self.grid), 'arm')}, and {counted(arms - len(self.grid), 'arm')} without synthetic images"
        )
        chosen = f"by {n_val:,} validation images, among {arms}"
        return [
            ("grid", grid),
            ("classifiers", f"{arms * len(seeds)} = {arms} x {counted(len(seeds), 'seed')}, {plan.steps:,} steps each"),
            ("images", f"{all_of:,} candidates: {all_of - left:,} at hand, {left:,} to generate"),
            ("choice", "none: " + " ".join(self.about_missing(missing)) if missing else chosen),
            ("time", f"about {duration(generating)} to generate and {duration(training)} to train, from a measured "
                     "probe; what is trained already is not trained again"),
        ]  # fmt: skip

    def about_missing(self, missing: Sequence[str]) -> tuple[str, str]:
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

    # -- the work

    def execute(self, quiet: bool) -> Path:
        # the run folder too: a command that changes it would change what is compared
        with self.run.folder.locked(), self.folder.locked():
            self.folder.remove_debris()
            self.check_folder()
            try:
                return self.work(quiet)
            except OSError as error:
                raise self.folder.unwritable(error) from error

    def work(self, quiet: bool) -> Path:
        began, folder, page = time.monotonic(), self.folder, self.folder / "report.html"
        asked = {**asdict(self.options), "seeds": len(self.conditions.seeds)}
        write_json(folder / "plan.json", {"schema": SCHEMA, "of": self.identity, "grid": asked})
        self.fill_pool(quiet)
        with Progress("study", 1, "classifiers", quiet=quiet, every=20) as progress:

            def update(done: int, total: int, note: str) -> None:
                progress.total = total  # fewer than the grid has, where inputs are equal or curation left no image
                progress.update(done, note)

            conditions = replace(self.conditions, progress=update)
            found = compare(conditions, self.grid, self.images, without=self.config.classify.recipes)
        why_not = dict(zip(("reason", "remedy"), self.about_missing(found.missing), strict=True))
        result = {
            "schema": SCHEMA,
            "run": str(self.run.folder.path),
            "source": self.run.source,
            "of": self.identity,
            "grid": asked,
            **found.to_json(),
            "readings": self.readings(found),
            "curated": self.curated,
            "why_not": why_not if found.missing else None,
            "apply": self.commands(found),
            "command": self.command(),
            "seconds": round(time.monotonic() - began, 1),
        }
        write_json(folder / "study.json", result)
        write_text(page, build_study(result))
        if not quiet:
            text = f"recommended: {found.choice.recommended}" if found.choice else f"none: {why_not['reason']}"
            print(f"{text}\nstudy: {page}", flush=True)
        return page

    def readings(self, found: Studied) -> list[dict[str, Any]]:
        """Each reading of test images in this folder, whatever grid it was for; the same one again is no new one.

        A grid that is asked for after a reading was chosen with the test images in mind.
        """
        path = self.folder / "study.json"
        readings = list(read_json(path)["readings"]) if path.exists() else []
        if found.choice is not None:
            arms = sorted(digest([a.recipe, a.name, list(a.wanted)]) for a in self.arms)
            plan = self.conditions.plan.to_json()
            one = {
                "recommended": found.choice.recommended,
                "control": found.choice.control,
                "grid": digest([arms, sorted(self.conditions.seeds), plan, self.options.candidates]),
                "arms": len(self.grid),
            }
            readings += [] if one in readings else [one]
        return readings

    # -- the pool of images

    def todo(self) -> dict[str, Any]:
        """What the pool holds, as the samples' plan: what the largest number wants of each class, times the candidates
        per image where it is curated; no fewer than an earlier grid had there. It continues where the run's own samples
        end: an image depends on its class, its number and the run's seed."""
        train, config, folder = self.prepared.train, self.config, self.folder / "samples"
        names = train.class_names
        needs = [a.wanted if a.curation == "none" else candidates(a.wanted, config) for a in self.grid]
        todo = plan_in(
            folder, np.max(np.array(needs), axis=0).tolist(), names, config, self.identity["weights"], train=train
        )
        before = read_json(folder / "plan.json") if (folder / "plan.json").exists() else None
        if before is not None and alike(before, todo):
            more = [max(n, m) for n, m in zip(todo["counts"], before["counts"], strict=True)]
            todo = plan_in(folder, more, names, config, self.identity["weights"], train=train)
        return todo

    def shared(self, todo: dict[str, Any]) -> dict[str, str]:
        """The images of the pool that are among the run's samples: file -> sha256; none where those are of other
        weights, seeds or another sampler."""
        run = self.run.folder / "samples"
        plan = plan_of_samples(run)
        # of another batch size they differ by rounding alone
        if plan is None or not alike({**plan, "batch_size": todo["batch_size"]}, todo):
            return {}
        asked = {row["file"] for row in todo["images"]}
        rows = read_json(run / "manifest.json")["images"]
        return {row["file"]: row["sha256"] for row in rows if row["file"] in asked}

    def fill_pool(self, quiet: bool) -> None:
        """Copies the run's own samples into the pool, and generates the others."""
        todo, folder, run = self.todo(), self.folder / "samples", self.run.folder
        if finished(folder, todo):
            return
        make_ready(folder, todo)
        for file, sha256 in self.shared(todo).items():
            path = run / "samples" / file
            # one that was altered is generated again
            if not (folder / file).exists() and path.exists() and sha256_file(path) == sha256:
                with atomic(folder / file, sync=False) as aside:
                    shutil.copyfile(path, aside)
        how = sampling(self.config)
        network = load_model(run / "model", device=resolve_device(self.config.device))
        guidance = guide_of(how, network, self.prepared, self.config, run / "curation")
        sample_into(network, todo, folder, how, guidance, train=self.prepared.train, quiet=quiet)

    @cached_property
    def pool(self) -> ImageSet:
        train = self.prepared.train
        return load_samples(self.folder / "samples", train.shape, train.class_names)

    def images(self, arm: Arm) -> ImageSet:
        """The images of an arm: the first ones of each class; under a policy, those that it keeps of the first
        candidates, as the stage `curate` of a run with the same options does."""
        key = (arm.curation, arm.wanted)
        if key not in self.chosen:
            curated = arm.curation != "none"
            self.chosen[key] = self.choose(arm) if curated else first_of(self.pool, arm.wanted)
        return self.chosen[key]

    def choose(self, arm: Arm) -> ImageSet:
        """What a policy keeps; the choice is read where it was made before from the same inputs."""
        offered = first_of(self.pool, candidates(arm.wanted, self.config))
        train, folder = self.prepared.train, self.folder / "curation"
        plan = self.conditions.plan.identity(train.shape, len(train.class_names))
        key = digest([offered.fingerprint, arm.wanted, arm.curation, self.config.seed, train.fingerprint, plan])
        path = folder / f"{arm.curation}-{key[:16]}.json"
        if not path.exists():
            found = curate_run(offered, arm.wanted, arm.curation, self.prepared, self.config, folder)
            write_json(path, found)
        found = read_json(path)
        counts = {name: sum(values) for name, values in found["counts"].items()}
        reasons = dict(sorted(Counter(row["reason"] for row in found["images"]).items()))
        row = {"policy": arm.curation, "number": arm.number, "file": path.name, "reasons": reasons}
        self.curated.append({**row, **counts})
        return offered.select([i for i, row in enumerate(found["images"]) if row["kept"]])

    # -- commands

    def commands(self, found: Studied) -> list[str]:
        """The command lines by which a run does what is recommended."""
        if found.choice is None:
            return []
        arms = {arm.name: arm for arm in self.arms}
        picked, control = arms[found.choice.recommended], arms[found.choice.control]
        path, own = str(self.run.folder.path), self.config.classify
        classify = ["imbdiff", "classify", path, "--classify.ensemble", "0"]  # single networks, as here
        if control.recipe not in own.recipes:
            classify += ["--classify.recipes", *own.recipes, control.recipe]
        if len(self.conditions.seeds) != own.seeds:
            classify += ["--classify.seeds", str(len(self.conditions.seeds))]
        classify.append("--replace")
        if picked.use is None:
            return [shlex.join(classify)]
        offered = self.options.candidates if picked.curation != "none" else 1
        sample = ["imbdiff", "sample", path, "--sample.strategy", str(picked.number)]
        sample += ["--curate.policy", picked.curation, "--curate.candidates", str(offered), "--replace"]
        classify += ["--classify.synthetic", picked.recipe, "--classify.primary", picked.recipe]
        classify += ["--classify.synthetic_weight", str(picked.use.weight)]
        classify += ["--classify.synthetic_schedule", picked.use.schedule]
        return [shlex.join(sample), shlex.join(classify)]

    def command(self) -> str:
        words = ["imbdiff", "study", str(self.run.folder.path)]
        for name, value in {**asdict(self.options), "seeds": len(self.conditions.seeds)}.items():
            words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        words += [] if self.folder.path == self.run.folder / "study" else ["--out", str(self.folder.path)]
        return shlex.join(words)
