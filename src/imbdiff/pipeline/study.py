"""`study`: which number of synthetic images, curated and used how, is best for a run's data; over its run folder.

==============  =======================================================================
plan.json       of which run and model, and the grid; written first
samples/        the pool of candidates, which begins with the run's own samples
curation/       which of them each policy keeps, with all scores, and the working classifier that decides
jobs/           one file per trained classifier
looks.json      each reading of results on test images, whatever grid it was for
study.json      the grid, results on validation images, the recommendation
report.html     the page
==============  =======================================================================
"""

from __future__ import annotations

import hashlib
import logging
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.config import RunConfig, StudyOptions
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import counted, named
from imbdiff.data.splits import LEAST_FOR_VAL, Prepared
from imbdiff.diffusion.saved import load_model, saved_identity
from imbdiff.pipeline.curation import candidates, curate_run
from imbdiff.pipeline.folder import RunFolder, repeat_command
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
from imbdiff.recognition.comparison import Studied, check_study
from imbdiff.recognition.comparison import study as compare
from imbdiff.recognition.curation import parse_policy
from imbdiff.recognition.jobs import Conditions, seconds_per_classifier
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.trained import working_extractor
from imbdiff.reporting.study import build_study
from imbdiff.runtime.device import resolve_device, start
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import atomic, digest, read_json, write_json, write_text
from imbdiff.runtime.progress import Progress, duration

_log = logging.getLogger(__name__)
SCHEMA = "imbdiff-study/2"


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
    work = _Study.open(Path(path), options or StudyOptions(), out, quiet)
    if dry_run or not quiet:
        print("\n".join(f"{name:<12}{text}" for name, text in work.plan_rows()), flush=True)
    return None if dry_run else work.execute()


def check_grid(options: StudyOptions) -> None:
    """Refuses words that no run could make right.

    Raises:
        ConfigError: an unknown number, policy or recipe.
    """
    for check, words in (
        (parse_strategy, options.numbers),
        (parse_policy, options.curation),
        (get_recipe, options.recipes),
    ):
        for word in words:
            check(word)


@dataclass
class _Study:
    run: Run
    prepared: Prepared
    options: StudyOptions
    folder: Path
    grid: tuple[Arm, ...]
    conditions: Conditions
    identity: dict[str, str]
    quiet: bool
    pool: ImageSet | None = None
    chosen: dict[tuple[str, tuple[int, ...]], ImageSet] = field(default_factory=dict)
    curated: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, options: StudyOptions, out: str | Path | None, quiet: bool) -> _Study:
        """Everything that can be refused is refused here, before anything is generated or trained."""
        check_grid(options)
        run, prepared = open_run(path)
        config = run.config
        if start(config.device).world > 1:
            raise ConfigError("imbdiff study is one process", "leave out torchrun")
        made = run.folder.stages().get("train")
        weights = run.needs("model/model.safetensors", "run").parent
        if made is None or saved_identity(weights) != made["weights"]:
            line = repeat_command(run.source, run.folder.path, config)
            raise RunError(f"the model in {weights} is not finished", f"run `{line}` first")
        numbers: dict[str, tuple[int, ...]] = {}
        for word in (number.strip() for number in options.numbers):
            if word in numbers:
                raise ConfigError(f"the number {word!r} is named twice", "name each number once")
            numbers[word] = images_to_draw(word, prepared.stats)
        base = classifier_use(config.classify)
        uses = [replace(base, weight=w, schedule=s) for w in options.weights for s in options.schedules]
        grid = make_grid(numbers, options.curation, options.recipes, uses)
        folder = run.folder / "study" if out is None else Path(out)
        seeds = tuple(range(config.seed, config.seed + (options.seeds or config.classify.seeds)))
        device = str(resolve_device(config.device))
        conditions = Conditions(plan_of(prepared, config), prepared, seeds, device, folder=folder / "jobs")
        check_study(conditions, with_controls(grid, config.classify.recipes))
        identity = {"data": prepared.manifest["hash"], "weights": str(made["weights"])}
        made_study = cls(run, prepared, options, folder, grid, conditions, identity, quiet)
        made_study._check_folder()
        return made_study

    @property
    def config(self) -> RunConfig:
        """Of the run, with the study's number of candidates per image wanted."""
        config = self.run.config
        return replace(config, curate=replace(config.curate, draw=self.options.draw))

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Those of the grid, after those without synthetic images."""
        return with_controls(self.grid, self.config.classify.recipes)

    def _check_folder(self) -> None:
        """Refuses a study folder that is something else.

        Raises:
            RunError: it is a file, lies among the images, holds other files, or a study of other data or another model,
                or its record of readings of test images is damaged.
        """
        folder, source = self.folder, Path(self.run.source)
        for place in (folder, *folder.parents):
            if place.is_file():
                raise RunError(f"{place} is a file", "give another --out")
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise RunError(f"the study folder {folder} lies inside the images, {source}", "give an --out elsewhere")
        if not folder.exists():
            return
        if not (folder / "plan.json").exists():
            others = [p.name for p in folder.iterdir() if p.name != ".lock" and not p.name.endswith(".partial")]
            if others:
                raise RunError(
                    f"{folder} is not a study: it holds {len(others)} other files, such as {sorted(others)[0]!r}",
                    "give an empty or a new folder as --out; nothing was changed",
                )
            return
        found = read_json(folder / "plan.json")
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise RunError(f"{folder} is not a study of this version", "give another --out; nothing was changed")
        differ = [what for what, value in self.identity.items() if found.get("of", {}).get(what) != value]
        if differ:
            other = " and ".join({"data": "other data", "weights": "another model"}[what] for what in differ)
            raise RunError(
                f"the study in {folder} is of {other} than the run in {self.run.folder.path}",
                "give another --out, or remove it; nothing was changed",
            )
        self._looks()

    # -- the dry run

    def plan_rows(self) -> list[tuple[str, str]]:
        """The size of the grid, and an estimate of the time from a measured probe."""
        o, plan, seeds = self.options, self.conditions.plan, self.conditions.seeds
        arms = len(self.arms)
        todo = self.todo()
        have, copied = self._at_hand(todo)
        left = len(todo["images"]) - have - len(copied)
        generating = 0.0
        if left:
            model = load_model(self.run.folder / "model", device=resolve_device(self.config.device))
            device, groups = resolve_device(self.config.device), self.prepared.groups
            generating = probe_sampling(model, self.config, device, groups) * left
        training = seconds_per_classifier(self.prepared.train, plan, self.conditions.device) * arms * len(seeds)
        missing = missing_classes(self.prepared)
        n_val = 0 if self.prepared.val is None else len(self.prepared.val)
        chosen = f"by {n_val:,} validation images, among {arms}"
        if missing:
            chosen = "none: " + " ".join(self._about_missing(missing))
        grid = (
            f"{counted(len(o.numbers), 'number')} x {len(o.curation)} curation x {counted(len(o.recipes), 'recipe')} x "
            f"{counted(len(o.weights), 'weight')} x {counted(len(o.schedules), 'schedule')} = "
            f"{counted(len(self.grid), 'arm')}, and {counted(arms - len(self.grid), 'arm')} without synthetic images"
        )
        return [
            ("grid", grid),
            ("classifiers", f"{arms * len(seeds)} = {arms} x {counted(len(seeds), 'seed')}, {plan.steps:,} steps each"),
            ("images", f"{len(todo['images']):,} candidates: {have + len(copied):,} at hand, {left:,} to generate"),
            ("choice", chosen),
            ("time", f"about {duration(generating)} to generate and {duration(training)} to train, from a measured "
                     "probe; what is trained already is not trained again"),
        ]  # fmt: skip

    # -- the work

    def execute(self) -> Path:
        folder = RunFolder(self.folder)
        # the run folder too: a command that changes it would change what is compared
        with self.run.folder.locked(), folder.locked():
            folder.remove_debris()
            self._check_folder()
            try:
                return self._work()
            except OSError as error:
                raise folder.unwritable(error) from error

    def _work(self) -> Path:
        began, folder = time.monotonic(), self.folder
        asked = {**asdict(self.options), "seeds": len(self.conditions.seeds)}
        write_json(folder / "plan.json", {"schema": SCHEMA, "of": self.identity, "grid": asked})
        self._fill_pool()
        with Progress("study", 1, "classifiers", quiet=self.quiet, every=20) as progress:

            def update(done: int, total: int, note: str) -> None:
                progress.total = total  # fewer than the grid has, where inputs are equal or curation left no image
                progress.update(done, note)

            found = compare(
                replace(self.conditions, progress=update), self.grid, self.images, without=self.config.classify.recipes
            )
        reason, remedy = self._about_missing(found.missing) if found.missing else ("", "")
        picked = next((arm for arm in self.grid if found.choice and arm.name == found.choice.recommended), None)
        result = {
            "schema": SCHEMA,
            "run": str(self.run.folder.path),
            "source": self.run.source,
            "of": self.identity,
            "grid": asked,
            **found.to_json(),
            "looks": self._add_look(found),
            "curated": self.curated,
            "why_not": {"reason": reason, "remedy": remedy} if found.missing else None,
            "apply": [] if found.choice is None else self._commands(picked, found.choice.control),
            "command": self._command(),
            "seconds": round(time.monotonic() - began, 1),
        }
        write_json(folder / "study.json", result)
        write_text(folder / "report.html", build_study(result))
        if not self.quiet:
            text = f"recommended: {found.choice.recommended}" if found.choice else f"no recommendation: {reason}"
            print(f"{text}\nstudy: {folder / 'report.html'}", flush=True)
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

    # -- the pool of images

    def todo(self) -> dict[str, Any]:
        """What the pool holds, as the samples' plan: what the largest number wants of each class, times the candidates
        per image where it is curated; no fewer than an earlier grid had there. It continues where the run's own samples
        end: an image depends on its class, its number and the run's seed."""
        names, config, folder = self.prepared.train.class_names, self.config, self.folder / "samples"
        needs = [a.wanted if a.curation == "none" else candidates(a.wanted, config) for a in self.grid]
        counts = np.max(np.array(needs), axis=0).tolist()
        todo = plan_in(folder, counts, names, config, self.identity["weights"])
        if (folder / "plan.json").exists():
            before = read_json(folder / "plan.json")
            if alike(before, todo):
                more = [max(n, m) for n, m in zip(counts, before["counts"], strict=True)]
                todo = plan_in(folder, more, names, config, self.identity["weights"])
        return todo

    def _at_hand(self, todo: dict[str, Any]) -> tuple[int, dict[str, str]]:
        """What need not be generated: how many images the pool has, and of the others those of the run's samples: file
        -> sha256. Samples of other weights, seeds or another sampler are none of them."""
        own, run = self.folder / "samples", self.run.folder / "samples"
        have = {row["file"] for row in todo["images"] if (own / row["file"]).exists()}
        plan = plan_of_samples(run)
        # of another batch size they differ by rounding alone
        if plan is None or not alike({**plan, "batch_size": todo["batch_size"]}, todo):
            return len(have), {}
        manifest = read_json(run / "manifest.json")
        asked = {row["file"] for row in todo["images"]} - have
        return len(have), {row["file"]: row["sha256"] for row in manifest["images"] if row["file"] in asked}

    def _fill_pool(self) -> None:
        """Copies the run's own samples into the pool, and generates the others."""
        todo, folder, run = self.todo(), self.folder / "samples", self.run.folder
        if not finished(folder, todo):
            make_ready(folder, todo)
            for file, sha256 in self._at_hand(todo)[1].items():
                path = run / "samples" / file
                data = path.read_bytes() if path.exists() else b""
                if hashlib.sha256(data).hexdigest() == sha256:  # one that was altered is generated again
                    with atomic(folder / file, sync=False) as aside:
                        aside.write_bytes(data)
            how = sampling(self.config)
            network = load_model(run / "model", device=resolve_device(self.config.device))
            guidance = guide_of(how, network, self.prepared, self.config, run / "curation")
            sample_into(network, todo, folder, how, guidance, quiet=self.quiet)
        train = self.prepared.train
        self.pool = load_samples(folder, train.shape, train.class_names)

    def images(self, arm: Arm) -> ImageSet:
        """The images of an arm: the first ones of each class; under a policy, those that it keeps of the first
        candidates, as the stage `curate` of a run with the same options does."""
        assert self.pool is not None
        key = (arm.curation, arm.wanted)
        if key not in self.chosen and arm.curation == "none":
            self.chosen[key] = first_of(self.pool, arm.wanted)
        if key not in self.chosen:
            offered = first_of(self.pool, candidates(arm.wanted, self.config))
            path, found = self._choice(arm, offered)
            self.chosen[key] = offered.select([i for i, row in enumerate(found["images"]) if row["kept"]])
            row = {"policy": arm.curation, "number": arm.number, "file": path.name, "reasons": found["reasons"]}
            self.curated.append({**row, **{name: sum(values) for name, values in found["counts"].items()}})
        return self.chosen[key]

    def _choice(self, arm: Arm, candidates: ImageSet) -> tuple[Path, dict[str, Any]]:
        """The file of a choice, and what it holds: the manifest of the stage `curate`; made where it is not there."""
        config, train, folder = self.config, self.prepared.train, self.folder / "curation"
        device = self.conditions.device
        extractor = working_extractor(train, self.conditions.plan, seed=config.seed, device=device, folder=folder)
        deciding = [candidates.fingerprint, list(arm.wanted), arm.curation, config.seed]
        key = digest([*deciding, train.fingerprint, extractor.fingerprint])
        path = folder / f"{arm.curation}-{key[:16]}.json"
        if path.exists():
            try:
                found = read_json(path)
                if found["input"] == key and [row["file"] for row in found["images"]] == list(candidates.ids):
                    return path, found
            except (RunError, KeyError, TypeError):
                pass
            _log.warning("%s is damaged: the images are chosen again", path)
        config = replace(
            config,
            sample=replace(config.sample, strategy=str(arm.number)),
            curate=replace(config.curate, policy=arm.curation),
        )
        found = curate_run(self.prepared, candidates, candidates.fingerprint, config, folder, device=device)
        warnings = [text.replace("--curate.draw", "--draw") for text in found["warnings"]]
        reasons = dict(sorted(Counter(row["reason"] for row in found["images"]).items()))
        found = {"input": key, "number": arm.number, "reasons": reasons, **found, "warnings": warnings}
        write_json(path, found)
        return path, found

    # -- how often results on test images were read: who has seen them and then asks for another grid chooses with them
    # in mind

    def _looks(self) -> list[dict[str, Any]]:
        """The readings so far; where the file is gone, those that ``study.json`` knows of.

        Raises:
            RunError: the file is damaged: how often they were read is not known any more.
        """
        path, result = self.folder / "looks.json", self.folder / "study.json"
        if not path.exists():
            return list(read_json(result).get("looks", [])) if result.exists() else []
        remedy = "put the file back, or give another --out: a new folder counts anew"
        try:
            found = read_json(path)
        except RunError as error:
            raise RunError(error.message, remedy) from error
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise RunError(f"{path} is damaged: it holds no list of looks", remedy)
        return found

    def _add_look(self, found: Studied) -> list[dict[str, Any]]:
        """Writes down what `found` read of the test images; all readings so far. The same one again is no new one."""
        looks = self._looks()
        if found.choice is not None:
            arms = sorted(digest([a.recipe, a.name, list(a.wanted)]) for a in self.arms)
            plan = self.conditions.plan.to_json()
            grid = digest([arms, sorted(self.conditions.seeds), plan, self.options.draw])
            choice = {"recommended": found.choice.recommended, "control": found.choice.control}
            look = {**choice, "grid": grid, "cells": len(self.grid)}
            if look not in looks:
                looks.append(look)
        if looks:
            write_json(self.folder / "looks.json", looks)
        return looks

    # -- commands

    def _commands(self, picked: Arm | None, control: str) -> list[str]:
        """The command lines by which a run does what is recommended; None: no synthetic images."""
        path, own = str(self.run.folder.path), self.config.classify
        recipe = next(arm.recipe for arm in self.arms if arm.name == control)
        classify = ["imbdiff", "classify", path]
        if recipe not in own.recipes:
            classify += ["--classify.recipes", *own.recipes, recipe]
        if len(self.conditions.seeds) != own.seeds:
            classify += ["--classify.seeds", str(len(self.conditions.seeds))]
        if picked is None or picked.use is None:
            return [shlex.join(classify)]
        draw = self.options.draw if picked.curation != "none" else 1
        sample = ["imbdiff", "sample", path, "--sample.strategy", str(picked.number)]
        sample += ["--curate.policy", picked.curation, "--curate.draw", str(draw)]
        classify += ["--classify.synthetic", picked.recipe, "--classify.primary", picked.recipe]
        classify += ["--classify.synthetic_weight", str(picked.use.weight)]
        classify += ["--classify.synthetic_schedule", picked.use.schedule]
        return [shlex.join(sample), shlex.join(classify)]

    def _command(self) -> str:
        words = ["imbdiff", "study", str(self.run.folder.path)]
        for name, value in {**asdict(self.options), "seeds": len(self.conditions.seeds)}.items():
            words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        words += [] if self.folder == self.run.folder / "study" else ["--out", str(self.folder)]
        return shlex.join(words)
