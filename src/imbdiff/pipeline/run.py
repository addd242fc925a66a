"""`run`: one loop over the stages of a run folder. A stage that is complete, from unchanged inputs, is skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.source import Source
from imbdiff.data.sources import load, parse
from imbdiff.data.splits import Prepared
from imbdiff.data.symmetry import unasked_changes
from imbdiff.diffusion.saved import load_model, save_model, saved_identity
from imbdiff.methods import method_of, with_all_constants
from imbdiff.pipeline import curation, evaluation, finetuning, recognising, training
from imbdiff.pipeline.folder import ALTERED, STAGES, RunFolder, Stage
from imbdiff.pipeline.kept import keep, kept
from imbdiff.pipeline.page import report_data
from imbdiff.pipeline.plan import Plan, check_fit, check_options, default_config, make_plan
from imbdiff.pipeline.sampling import (
    finished,
    guide_of,
    load_samples,
    plan_in,
    sample_into,
    sampling,
    sampling_identity,
)
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.pipeline.watch import Watch, preview_grid
from imbdiff.presets import preset
from imbdiff.reporting.content import ReportData
from imbdiff.runtime.device import resolve_device, start
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ImbdiffError, RunError
from imbdiff.runtime.files import digest, read_json, sha256_file, write_bytes, write_json, write_text
from imbdiff.runtime.log import read_jsonl
from imbdiff.runtime.progress import Timer

WATCHED = {"watch.jsonl": "watch.jsonl", "watched.json": "checkpoints/best/watched.json"}
"""What no checkpoint gives back."""


@dataclass
class Run:
    """One run folder at work.

    Attributes:
        folder: the run folder.
        source: "digits", or the path of a folder or file; kept absolute, so that a run can be continued from anywhere.
        config: the resolved configuration.
        quiet: prints nothing but errors.
        opened: the source, where it is open already.
        replace: results that are there may be replaced by those of other options.
        said: notes on the images that were printed already.
    """

    folder: RunFolder
    source: str
    config: RunConfig
    quiet: bool = False
    opened: Source | None = None
    replace: bool = False
    said: set[str] = field(default_factory=set)
    dist: Dist = field(default_factory=Dist)
    _read: tuple[str, ImageSet] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.source = parse(self.source).absolute()
        self.config = finetuning.resolved(with_all_constants(self.config))

    def log(self, text: str) -> None:
        if not self.quiet and self.dist.main:
            print(text, flush=True)

    def execute(self, wanted: Sequence[str] = STAGES) -> Path:
        """Runs the wanted stages, in order; returns the report's path.

        Raises:
            ImbdiffError: the folder is of another run or data, or a stage it needs is missing.
        """
        self.dist = start(self.config.device)
        self.device = resolve_device(self.config.device)
        if tuple(wanted) != ("report",):  # which uses none of what is loaded for it
            check_options(self.config, training="train" in wanted)
        self.folder.check_usable(self.source)
        with self.folder.locked() if self.dist.main else nullcontext():
            with Timer() as timer:
                prepared = self.open()
            stages = {"training": "train" in wanted, "classifying": "classify" in wanted}
            check_fit(prepared, self.config, **stages, world=self.dist.world)
            try:
                if self.dist.main:
                    self.folder.begin(self.source, self.config, prepared.manifest, str(self.device), timer.seconds)
                    if not self._kept:
                        keep(self.folder.path, prepared, self._source, self.config.data)
                self.dist.barrier()
                for stage in self._stages(prepared):
                    # from "classify" on the first process works alone; the others are done, and wait for nothing
                    if stage.name in wanted and (stage.everywhere or self.dist.main):
                        self._perform(stage, prepared)
                if "report" in wanted and self.dist.main:
                    from imbdiff.reporting.report import build_report

                    write_text(self.folder / "report.html", build_report(self.report_data(prepared)))
                    self.log(f"report: {self.folder / 'report.html'}")
            except OSError as error:
                raise self.folder.unwritable(error) from error
        return self.folder / "report.html"

    def plan(self) -> Plan:
        """What the run would do, from a measured probe, or why it is refused; writes nothing."""
        self.dist = start(self.config.device)
        check_options(self.config)
        self.folder.check_usable(self.source)
        prepared = self.open()
        check_fit(prepared, self.config)
        self.log("measuring steps: a minute or so")
        return make_plan(prepared, self.config, self.source)

    def open(self) -> Prepared:
        """The data of the run, checked against its split; what was left to the images is in the options afterwards.

        Raises:
            RunError: the folder is of a run with other options or other images.
        """
        if self.folder.exists:
            self.config = self.folder.settled(self.config)
            self.folder.check_same(self.config)
        prepared = self._prepare()
        self.folder.check_data(prepared.manifest)
        self.config = training.settled(prepared, self.config)
        return prepared

    def _prepare(self) -> Prepared:
        self._source = opened = self.opened or load(self.source)
        if opened.kind == "benchmark":  # with the root that an environment variable may have named
            self.source = parse(opened.name).absolute()
        found = kept(self.folder.path, opened, self.config.data)
        self._kept = found is not None
        if found is not None:
            return found
        self.config = training.sized(opened, self.config)
        prepared = training.prepare_data(opened, self.config.data)
        prepared = replace(prepared, warnings=(*prepared.warnings, *training.doubts(self.config, opened.kind)))
        if self.folder.exists:  # it was all said when the run began
            return prepared
        stats, val = prepared.stats, "none" if prepared.val is None else str(len(prepared.val))
        self.log(
            f"data: {self.source}: {stats.total} training images of {stats.num_classes} classes "
            f"({max(stats.counts)} to {min(stats.counts)}, imbalance factor {stats.imbalance_factor:.4g}), "
            f"{val} for validation, {len(prepared.test)} for testing, {'x'.join(map(str, prepared.train.shape))}"
        )
        notes = [*(w for w in prepared.warnings if w not in self.said), *training.codec_note(prepared, self.config)]
        notes += finetuning.notes(self.config, stats.names, prepared.train.shape)
        for note in notes:
            self.log(f"  note: {note}")
        self.said |= set(prepared.warnings)
        if self.config.data.augment == "auto":
            self.log(f"  note: {unasked_changes(prepared.flippable)}")
        return prepared

    def _perform(self, stage: Stage, prepared: Prepared) -> None:
        """Does `stage`, or skips it where it was done from the same inputs and its output is whole.

        Its mark, and those of the stages that build on it, are removed before its work begins; where the work is
        refused with the earlier output untouched, they are put back. Where lost output is made again as it was, the
        stages that build on it stay done.

        Raises:
            RunError: results by other options are there, and `replace` is not set.
        """
        inputs, folder, marks = stage.inputs(), self.folder, self.folder.stages()
        if inputs is None:
            folder.check_replaced(stage.name, marks if stage.name in marks else {}, self.replace)
            if self.dist.main:
                if stage.name in marks:
                    folder.forget(stage.name)
                folder.keep_options(stage.name, self.config, (stage.name,))
            if stage.everywhere:
                self.dist.barrier()
            return
        key = self._key(stage.name, inputs, prepared)
        before = marks.get(stage.name)
        same = before is not None and before["inputs"] == key
        done = self.dist.main and before is not None and same and self._whole(stage, before)
        if self.dist.broadcast(done) if stage.everywhere else done:
            self.log(f"{stage.name}: done before, skipped")
            if self.dist.main:
                folder.keep_options(stage.name, self.config)
            return
        if not same:
            folder.check_replaced(stage.name, marks, self.replace)
        if self.dist.main:
            folder.forget(stage.name)
        try:
            with Timer() as timer:
                facts = stage.work(inputs)
        except ImbdiffError:
            if self.dist.main and before and self._whole(stage, before):
                folder.write_stages(marks)
            raise
        if self.dist.main:
            folder.mark(stage.name, {"inputs": key, "seconds": round(timer.seconds, 2), **facts}, str(self.device))
            clocks = ("seconds", "files")
            if before is not None and same and all(before.get(k) == v for k, v in facts.items() if k not in clocks):
                folder.write_stages({**marks, **folder.stages()})
            folder.keep_options(stage.name, self.config)
        if stage.everywhere:
            self.dist.barrier()

    def _stages(self, prepared: Prepared) -> tuple[Stage, ...]:
        """The stages that leave a mark, in order; each asks for its inputs when those before it are done."""
        folder = self.folder
        return (
            Stage(
                "train",
                lambda: training.training_inputs(prepared, self.config),
                lambda _: self._train(prepared),
                lambda mark: training.model_whole(folder / "model", mark),
            ),
            Stage(
                "sample",
                lambda: self._todo(prepared),
                lambda todo: self._sample(prepared, todo),
                lambda mark: finished(folder / "samples", mark["plan"]),
            ),
            Stage("curate", lambda: self._curation_inputs(prepared), lambda _: self._curate(prepared)),
            Stage("evaluate", lambda: self._evaluation_inputs(prepared), lambda _: self._evaluate(prepared)),
            Stage(
                "classify",
                lambda: recognising.classification_inputs(prepared, self.synthetic(prepared), self.config),
                lambda _: self._classify(prepared),
                lambda mark: recognising.classifiers_whole(folder / "classifier", mark.get("classifiers", {})),
                everywhere=False,
            ),
        )

    # -- training and sampling

    def _whole(self, stage: Stage, mark: Mapping[str, Any]) -> bool:
        """Whether all that a stage has left is there as it was.

        Raises:
            RunError: what it cannot make again is not.
        """
        altered, checkpoints = self.folder.altered(mark, stage.name), self.folder / "checkpoints"
        if altered is not None and altered.name in WATCHED and checkpoints.exists():
            raise RunError(
                f"{altered} {ALTERED}",
                f"remove {checkpoints} and {self.folder / 'watch.jsonl'} and repeat the command: it trains again",
            )
        return altered is None and stage.whole(mark)

    def _train(self, prepared: Prepared) -> dict[str, Any]:
        watch = None
        if self.config.train.watch_images:
            watch = Watch(prepared, self.config, self.folder.path, self.log)
        method, previews = method_of(self.config), self.folder / "previews"
        model = training.train(
            prepared, self.config, self.folder.path, on_watch=watch, quiet=self.quiet, log=self.log,
            on_preview=lambda model, seen: write_bytes(
                previews / f"{seen:012d}.png", preview_grid(model, self.config, prepared.groups)
            ),
        )  # fmt: skip
        if not self.dist.main:
            return {}
        if watch is not None:
            model = watch.best_of(model)
        save_model(model, self.folder / "model")
        before = training.seen_by_init(self.config)
        seen = None if before is None else sorted({*prepared.train.hashes, *before})
        write_json(self.folder / "model" / "trained_on.json", {"image_hashes": seen})
        names = [training.log_name(method, phase) for phase in method.phases]
        logs = [read_jsonl(self.folder / name) for name in names]
        described = [f"model/{name}.json" for name in ("model", "guide", "trained_on")]
        watched = WATCHED.values() if self.config.train.watch_images else ()
        return {
            "seconds": round(sum(rows[-1]["seconds"] for rows in logs if rows), 2),  # of all the calls it took
            "parameters": model.num_parameters,
            "weights": saved_identity(self.folder / "model"),
            "files": self.folder.hashes(*names, *described, *watched),
        }

    def _todo(self, prepared: Prepared) -> dict[str, Any]:
        """The plan of the samples."""
        identity = saved_identity(self.folder.trained())
        if more := sampling_identity(sampling(self.config), prepared, self.config):
            identity = digest([identity, *more])
        names, counts = prepared.train.class_names, self._candidates(prepared)
        return plan_in(self.folder / "samples", counts, names, self.config, identity, train=prepared.train)

    def _sample(self, prepared: Prepared, todo: dict[str, Any]) -> dict[str, Any]:
        folder, how = self.folder, sampling(self.config)
        self.dist.barrier()  # none changes the folder before all have read the plan that is there
        if not todo["images"]:
            self.log("sample: nothing to generate: every class is as large as the strategy asks for")
        model = load_model(folder / "model", device=self.device)
        guidance = guide_of(how, model, prepared, self.config, folder / "curation")
        sample_into(model, todo, folder / "samples", how, guidance, train=prepared.train, quiet=self.quiet)
        if not self.dist.main:
            return {}
        output = sha256_file(folder / "samples" / "manifest.json")
        return {"images": len(todo["images"]), "counts": list(todo["counts"]), "plan": digest(todo), "output": output}

    def sampled(self, prepared: Prepared) -> ImageSet:
        """All images in ``samples/``; RunError: sampling is not finished, or they are not those of this run."""
        mark = self._sample_mark()
        if self._read is None or self._read[0] != mark["plan"]:  # four stages ask for them
            train = prepared.train
            images = load_samples(self.folder / "samples", train.shape, train.class_names, plan=mark["plan"])
            self._read = mark["plan"], images
        return self._read[1]

    def synthetic(self, prepared: Prepared) -> ImageSet | None:
        """The synthetic images of this run that curation keeps, or None if there are none.

        Raises:
            RunError: there are candidates that have not been chosen among, or the choice is of others.
        """
        if "sample" not in self.folder.stages():
            return None
        images = self.sampled(prepared)
        if (choice := self.curated(prepared)) is not None:
            images = images.select([i for i, row in enumerate(choice["images"]) if row["kept"]])
        return images if len(images) else None

    # -- curation

    @property
    def _choice(self) -> Path:
        return self.folder / "curation" / "manifest.json"

    def _candidates(self, prepared: Prepared) -> tuple[int, ...]:
        """(C,) images to sample of each class."""
        return curation.candidates(images_to_draw(self.config.sample.strategy, prepared.stats), self.config)

    def _curation_inputs(self, prepared: Prepared) -> Any:
        """None where there is nothing to choose: no policy, and no more candidates than are wanted."""
        if not curation.chooses(self.config):
            if "curate" in self.folder.stages():
                self.log("curate: every image is kept again")
            return None
        mark = self._sample_mark()
        if list(mark["counts"]) != list(self._candidates(prepared)):
            option = ("--curate.candidates", f"{self.config.curate.candidates:g}")
            raise RunError(
                f"{self.folder / 'samples'} holds {sum(mark['counts']):,} images, the options ask for "
                f"{sum(self._candidates(prepared)):,} candidates ({' '.join(option)})",
                f"run `{self.folder.command('sample', *option, '--replace')}` first",
            )
        return curation.curation_inputs(prepared, mark["plan"], self.config)

    def _curate(self, prepared: Prepared) -> dict[str, Any]:
        if not self.dist.main:
            return {}
        images, policy = self.sampled(prepared), self.config.curate.policy
        self.log(f"curate: {policy}, among {len(images):,} candidates")
        wanted = images_to_draw(self.config.sample.strategy, prepared.stats)
        found = curation.curate_run(images, wanted, policy, prepared, self.config, self._choice.parent)
        kept = self._write(self._choice, found)
        counts = {name: sum(values) for name, values in found["counts"].items()}
        self.log(f"curate: kept {counts['kept']:,} of {counts['candidates']:,}, wanted {counts['wanted']:,}")
        for warning in found["warnings"]:
            self.log(f"  note: {warning}")
        return {**counts, **kept}

    def curated(self, prepared: Prepared) -> dict[str, Any] | None:
        """The manifest of the choice that belongs to the samples and the options; None where there is none to make.

        Raises:
            RunError: it was not made yet, or is of other samples, another policy or another working classifier.
        """
        if not curation.chooses(self.config):
            return None
        place, mark = self._choice, self.folder.stages().get("curate")
        if mark is None or not place.exists():
            raise RunError(
                f"the images in {self.folder / 'samples'} have not been chosen among yet",
                f"run `{self.folder.command('curate')}` first",
            )
        wrong = "" if sha256_file(place) == mark["output"] else ALTERED
        if mark["inputs"] != self._key("curate", self._curation_inputs(prepared), prepared):
            wrong = "was made with other options"
        if wrong:
            options = self.folder.options_of("curate", self.config)
            raise RunError(f"{place} {wrong}", f"run `{self.folder.command('curate', *options, '--replace')}` first")
        return dict(read_json(place))

    # -- measuring and comparing

    def _evaluation_inputs(self, prepared: Prepared) -> Any:
        if not (path := self.folder / "samples" / "manifest.json").exists():
            raise RunError(f"{path} is missing", f"run `{self.folder.command('sample')}` first")
        synthetic = self.synthetic(prepared)
        if synthetic is None:
            self.log("evaluate: there are no synthetic images to measure")
            return None
        return evaluation.evaluation_inputs(prepared, synthetic, self.config)

    def _evaluate(self, prepared: Prepared) -> dict[str, Any]:
        synthetic = self.synthetic(prepared)
        assert synthetic is not None
        self.log("evaluate: training the judge and measuring" if prepared.pool is not None else "evaluate: measuring")
        found = evaluation.evaluate_run(
            prepared, synthetic, self.config, self.folder.path, device=str(self.device), dist=self.dist,
            quiet=self.quiet,
        )  # fmt: skip
        if other := found["protocol"]["pretrained_judge"]:
            self.log(f"  judge: {other}")
        for warning in found["memorisation"]["warnings"]:
            self.log(f"  copies: {warning}")
        for warning in found["warnings"]:
            self.log(f"  warning: {warning}")
        return self._write(self.folder / "metrics.json", found) if self.dist.main else {}

    def _classify(self, prepared: Prepared) -> dict[str, Any]:
        result = recognising.classify_run(
            prepared, self.synthetic(prepared), self.config, self.folder.path, quiet=self.quiet
        )
        from imbdiff.reporting.answer import answer

        told = answer(result.to_json(), str(self.folder.path))
        lines = [result.verdict.sentence] if told is None else told.lines()
        self.log("\n  ".join([f"verdict: {lines[0]}", *lines[1:]]))
        written = recognising.save_classifiers(result.classifiers, self.folder / "classifier")
        self.log(f"classifier: {next(iter(result.classifiers))}; to use it: {self.folder.command('predict', 'IMAGES')}")
        output = self._write(self.folder / "classifier" / "results.json", result.to_json())
        return {**output, "classifiers": written}

    def _write(self, path: Path, result: Any) -> dict[str, str]:
        """Writes the result of a stage; returns the fact by which it is known."""
        write_json(path, result)
        return {"output": sha256_file(path)}

    def report_data(self, prepared: Prepared) -> ReportData:
        """What the page is made of, from what there is in the folder."""
        self.folder.check_whole()
        data = report_data(self.folder, self.source, self.config, prepared, self.synthetic(prepared))
        choice = self.curated(prepared) if "curate" in self.folder.stages() else None
        return data if choice is None else replace(data, curated={**choice, "candidates": self.sampled(prepared)})

    # -- what a stage needs

    def _key(self, name: str, inputs: Any, prepared: Prepared) -> str:
        return digest([name, prepared.manifest["hash"], self.config.seed, inputs])

    def _sample_mark(self) -> dict[str, Any]:
        mark = self.folder.stages().get("sample")
        if mark is None:
            place = self.folder / "samples"
            raise RunError(f"{place} is not finished", f"run `{self.folder.command('sample')}` first")
        return dict(mark)


def run(
    source: str | Path,
    out: str | Path,
    config: RunConfig | None = None,
    *,
    wanted: Sequence[str] = STAGES,
    quiet: bool = False,
    replace: bool = False,
) -> Path:
    """Prepare, train, sample, evaluate, classify and report, in the run folder `out`.

    Args:
        source: "digits", a folder of class folders, or an .npz file.
        out: the run folder; the same call continues what is there.
        config: from `imbdiff.preset`; default: chosen by image size.
        wanted: stages to run, of `STAGES`.
        replace: replace results of other options that are there.

    Returns:
        The path of the report.
    """
    opened, folder = None, RunFolder(Path(out))
    if config is None and folder.exists:
        config = preset(folder.saved()[1].preset)
    elif config is None:
        opened = load(str(source))
        config = default_config(opened)
    return Run(folder, str(source), config, quiet, opened, replace).execute(wanted)


def open_run(path: str | Path, *, quiet: bool = True) -> tuple[Run, Prepared]:
    """A finished or unfinished run, with its data prepared again and checked against its split.

    Raises:
        RunError: there is no run, or its source holds other images now.
    """
    folder = RunFolder(Path(path))
    source, config = folder.saved()
    opened = Run(folder, source, config, quiet)
    return opened, opened.open()
