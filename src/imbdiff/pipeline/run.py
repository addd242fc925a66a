"""`run`: the stages over one run folder. A stage that is complete, from unchanged inputs, is skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.source import Source
from imbdiff.data.sources import load, parse
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.saved import load_model, save_model, saved_identity
from imbdiff.methods import method_of, with_all_constants
from imbdiff.pipeline import curation, samples, training
from imbdiff.pipeline.folder import RunFolder, repeat_command
from imbdiff.pipeline.page import report_data
from imbdiff.pipeline.plan import check_fit, check_options
from imbdiff.pipeline.samples import preview_grid
from imbdiff.pipeline.sampling import guide_of, sampling, sampling_identity
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.pipeline.watch import METRIC, Watch
from imbdiff.reporting.content import ReportData
from imbdiff.runtime.device import resolve_device, start
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest, write_bytes, write_json, write_text
from imbdiff.runtime.log import read_jsonl
from imbdiff.runtime.progress import Timer, duration

STAGES = ("train", "sample", "curate", "evaluate", "classify", "report")


@dataclass
class Run:
    """One run folder at work.

    Attributes:
        folder: the run folder.
        source: "digits", or the path of a folder or file; kept absolute, so that a run can be continued from anywhere.
        config: the resolved configuration.
        quiet: prints nothing but errors.
        opened: the source, where it is open already.
    """

    folder: RunFolder
    source: str
    config: RunConfig
    quiet: bool = False
    opened: Source | None = None
    dist: Dist = field(default_factory=Dist)
    _read: tuple[str, ImageSet] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.source = parse(self.source).absolute()
        self.config = with_all_constants(self.config)

    def say(self, text: str) -> None:
        if not self.quiet and self.dist.main:
            print(text, flush=True)

    def execute(self, wanted: Sequence[str] = STAGES) -> Path:
        """Runs the wanted stages, in order.

        Returns:
            The report's path.

        Raises:
            ImbdiffError: the folder is of another run or data, or a stage it needs is missing.
        """
        self.dist = start(self.config.device)
        check_options(self.config, training="train" in wanted)
        self.folder.check_usable(self.source)
        if self.folder.exists:
            self.folder.check_same(self.config)
        prepared = self._prepare()
        self.folder.check_data(prepared.manifest)
        check_fit(prepared, self.config, training="train" in wanted, world=self.dist.world)
        with self.folder.locked() if self.dist.main else nullcontext():
            try:
                with self.folder.put_back_if_refused() if self.dist.main else nullcontext():
                    return self._stages(prepared, wanted)
            except OSError as error:
                raise self.folder.unwritable(error) from error

    def _prepare(self) -> Prepared:
        with Timer() as timer:
            opened = self.opened or load(self.source)
            if opened.kind == "benchmark":  # with the root that an environment variable may have named
                self.source = parse(opened.name).absolute()
            prepared = training.prepare_data(opened, self.config.data)
        stats = prepared.stats
        val = "none" if prepared.val is None else str(len(prepared.val))
        self.say(
            f"data: {self.source}: {stats.total} training images of {stats.num_classes} classes "
            f"({max(stats.counts)} to {min(stats.counts)}, imbalance factor {stats.imbalance_factor:.4g}), "
            f"{val} for validation, {len(prepared.test)} for testing, {'x'.join(map(str, prepared.train.shape))}"
        )
        if training.seen_by_init(self.config) is None:
            unknown = f"what the model {self.config.model.init} was trained on is not known: perhaps on test images"
            prepared = replace(prepared, warnings=(*prepared.warnings, unknown))
        for warning in prepared.warnings:
            self.say(f"  note: {warning}")
        self._data_seconds = timer.seconds
        return prepared

    def _stages(self, prepared: Prepared, wanted: Sequence[str]) -> Path:
        if self.dist.main:
            self.folder.sweep()
            self.folder.save_config(self.source, self.config)
            write_json(self.folder / "split.json", prepared.manifest)
            if "data" not in self.folder.stages():
                self.folder.mark("data", prepared.manifest["hash"], self._data_seconds)
            self.folder.save_environment("run", str(resolve_device(self.config.device)))
        self.dist.barrier()
        if "train" in wanted:
            self._train(prepared)
        if "sample" in wanted:
            self._sample(prepared)
        if "curate" in wanted:
            curation.stage(self, prepared, lambda: self._drawn(prepared))
        if "evaluate" in wanted:
            self._evaluate(prepared)
        # from here on one process works; the others are done, and wait for nothing
        if self.dist.main:
            if "classify" in wanted:
                self._classify(prepared)
            if "report" in wanted:
                from imbdiff.reporting.report import build_report

                write_text(self.folder / "report.html", build_report(self.report_data(prepared)))
                self.say(f"report: {self.folder / 'report.html'}")
        return self.folder / "report.html"

    def begin(self, stage: str, inputs: str, whole: Callable[[], bool]) -> bool:
        """Whether `stage` has to be done. If so, its mark and those of the stages that build on it are taken back."""
        done = self.dist.main and self.folder.finished(stage, inputs) and whole()
        if stage != "classify":  # the stages that every process takes part in
            done = self.dist.broadcast(done)
        if done:
            self.say(f"{stage}: done before, skipped")
        elif self.dist.main:
            self.folder.forget(stage)
        return not done

    def end(self, stage: str, inputs: str, seconds: float, **facts: Any) -> None:
        """Marks `stage` as done."""
        self.folder.mark(stage, inputs, seconds, **facts)
        self.folder.save_environment(stage, str(resolve_device(self.config.device)))

    # -- training, sampling and measuring: on every process

    def _train(self, prepared: Prepared) -> None:
        identity = training.training_identity(prepared, self.config)
        if not self.begin("train", identity, self._model_whole):
            return

        def preview(model: DiffusionModel, seen: int) -> None:
            write_bytes(
                self.folder / "previews" / f"{seen:012d}.png", preview_grid(model, self.config, prepared.groups)
            )

        watch = None
        if self.config.watch.every:
            device = str(resolve_device(self.config.device))
            watch = Watch(prepared, self.config, self.folder.path, device=device, log=self.say)
        model = training.train(
            prepared,
            self.config,
            self.folder.path,
            on_preview=preview if self.config.train.preview_images != 0 else None,
            on_watch=watch,
            quiet=self.quiet,
            say=self.say,
        )
        if self.dist.main:
            kept = watch.best() if watch else None
            if watch and kept is None:
                self.say(f"kept: the last weights: no measurement gave a {METRIC}")
            if kept is not None:
                kept[0].guide = model.guide
                kept[0].keep_weak(model.weak)
                model, found = kept
                value = found[METRIC]["value"]
                self.say(f"kept: the weights after {found['images']:,} images, {METRIC} {value:.4g}")
            save_model(model, self.folder / "model")
            before = training.seen_by_init(self.config)
            seen = None if before is None else sorted({*prepared.train.hashes, *before})
            write_json(self.folder / "model" / "trained_on.json", {"image_hashes": seen})
            method = method_of(self.config)
            logs = [read_jsonl(self.folder / training.log_name(method, phase)) for phase in method.phases]
            weights = saved_identity(self.folder / "model")
            seconds = sum(rows[-1]["seconds"] for rows in logs if rows)
            self.end("train", identity, seconds, parameters=model.num_parameters, weights=weights)
        self.dist.barrier()

    def _model_whole(self) -> bool:
        folder = self.folder / "model"
        return training.files_there(folder) and saved_identity(folder) == self.folder.stages()["train"]["weights"]

    def _sample(self, prepared: Prepared) -> None:
        weights_file = self._needs("model/model.safetensors", "run")
        wanted = images_to_draw(self.config.sample.strategy, prepared.stats)
        counts = curation.candidates_to_draw(wanted, self.config)
        folder, identity = self.folder / "samples", saved_identity(weights_file.parent)
        if more := sampling_identity(sampling(self.config), prepared, self.config):
            identity = digest([identity, *more])
        todo = samples.plan_in(folder, counts, prepared.train.class_names, self.config, identity)
        inputs = digest(todo)
        if not self.begin("sample", inputs, lambda: samples.finished(folder, todo)):
            return
        if sum(counts) == 0:
            self.say("sample: nothing to draw: every class is as large as the strategy asks for")
        self.dist.barrier()
        with Timer() as timer:
            model = load_model(weights_file.parent, device=resolve_device(self.config.device))
            how = sampling(self.config)
            guidance = guide_of(how, model, prepared, self.config, self.folder / "curation")
            samples.sample_into(model, todo, folder, how, guidance=guidance, quiet=self.quiet)
        if self.dist.main:
            self.end("sample", inputs, timer.seconds, images=sum(counts), counts=list(counts))
        self.dist.barrier()

    def synthetic(self, prepared: Prepared) -> ImageSet | None:
        """The synthetic images of this run that curation keeps, or None if there are none.

        Raises:
            RunError: there are candidates that have not been chosen among, or the choice is of others.
        """
        if self.folder.stages().get("sample", {}).get("inputs") is None:
            return None
        choice, images = curation.curated(self, prepared), self._drawn(prepared)
        if choice is not None:
            images = curation.kept_of(images, choice, self.folder.path)
        return images if len(images) else None

    def _drawn(self, prepared: Prepared) -> ImageSet:
        """All images in ``samples/``."""
        drawn = self.folder.stages()["sample"]["inputs"]
        if self._read is None or self._read[0] != drawn:  # four stages ask for them
            folder = self.folder / "samples"
            shape, names = prepared.train.shape, prepared.train.class_names
            self._read = drawn, samples.load_samples(folder, shape, names, inputs=drawn)
        return self._read[1]

    def _evaluate(self, prepared: Prepared) -> None:
        from imbdiff.pipeline.evaluation import evaluate_run, evaluation_inputs

        self._needs("samples/manifest.json", "sample")
        synthetic = self.synthetic(prepared)
        if synthetic is None:
            if self.dist.main:
                self.folder.forget("evaluate")
            self.say("evaluate: there are no synthetic images to measure")
            return
        inputs = evaluation_inputs(prepared, synthetic, self.config)
        if not self.begin("evaluate", inputs, (self.folder / "metrics.json").exists):
            return
        self.say("evaluate: training the judge and measuring" if prepared.pool is not None else "evaluate: measuring")
        with Timer() as timer:
            found = evaluate_run(
                prepared, synthetic, self.config, self.folder.path,
                device=str(resolve_device(self.config.device)), dist=self.dist, quiet=self.quiet,
            )  # fmt: skip
        if self.dist.main:
            write_json(self.folder / "metrics.json", found)
            for warning in found["memorisation"]["warnings"]:
                self.say(f"  copies: {warning}")
            self.end("evaluate", inputs, timer.seconds)

    def _classify(self, prepared: Prepared) -> None:
        from imbdiff.pipeline.recognising import classification_inputs, classify_run

        synthetic = self.synthetic(prepared)
        inputs = classification_inputs(prepared, synthetic, self.config)
        if not self.begin("classify", inputs, (self.folder / "classifier" / "results.json").exists):
            return
        with Timer() as timer:
            result = classify_run(prepared, synthetic, self.config, self.folder.path, quiet=self.quiet)
        write_json(self.folder / "classifier" / "results.json", result.to_json())
        self.end("classify", inputs, timer.seconds)
        self.say(f"verdict: {result.verdict.sentence}")

    # -- reporting

    def report_data(self, prepared: Prepared) -> ReportData:
        """What the page is made of, from what there is in the folder."""
        data = report_data(self.folder, self.source, self.config, prepared, self.synthetic(prepared))
        choice = curation.curated(self, prepared) if "curate" in self.folder.stages() else None
        return data if choice is None else replace(data, curated={**choice, "candidates": self._drawn(prepared)})

    def _needs(self, name: str, verb: str) -> Path:
        path = self.folder / name
        if not path.exists():
            line = repeat_command(self.source, self.folder.path, self.config) if verb == "run" else None
            raise RunError(f"{path} is missing", f"run `{line or f'imbdiff {verb} {self.folder.path}'}` first")
        return path


def run(
    source: str | Path,
    out: str | Path,
    config: RunConfig | None = None,
    *,
    wanted: Sequence[str] = STAGES,
    quiet: bool = False,
) -> Path:
    """Prepare, train, sample, evaluate, classify and report, in the run folder `out`.

    Args:
        source: "digits", a folder of class folders, or an .npz file.
        out: the run folder; the same call continues what is there.
        config: from `imbdiff.preset`; default: chosen by image size.
        wanted: stages to run, of `STAGES`.

    Returns:
        The path of the report.
    """
    from imbdiff.pipeline.plan import default_config

    opened = None if config is not None else load(str(source))
    if opened is not None:
        config = default_config(opened)
    assert config is not None
    return Run(RunFolder(Path(out)), str(source), config, quiet, opened).execute(wanted)


def open_run(path: str | Path, *, quiet: bool = True) -> tuple[Run, Prepared]:
    """A finished or unfinished run, with its data prepared again and checked against its split.

    Raises:
        RunError: there is no run, or its source holds other images now.
    """
    folder = RunFolder(Path(path))
    source, config = folder.saved()
    opened = Run(folder, source, config, quiet)
    prepared = training.prepare_data(source, config.data)
    folder.check_data(prepared.manifest)
    return opened, prepared


__all__ = ["STAGES", "Run", "duration", "open_run", "run"]
