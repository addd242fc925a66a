"""Sampling: how images are generated, and class folders of PNGs that a killed command continues.

``SAMPLES/<class folder>/<number>.png``, ``SAMPLES/plan.json`` (what is to be generated, written first) and
``SAMPLES/manifest.json`` (what was generated, written last). Class folders are made safe: class names are data.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import safe_class_dirs
from imbdiff.data.splits import Prepared
from imbdiff.data.stats import ClassStats, Groups
from imbdiff.diffusion.generate import generate_batches
from imbdiff.diffusion.guidance import ClassifierFree, Guidance, Guided
from imbdiff.diffusion.guidances import (
    GUIDANCE,
    SamplingContext,
    guidance_constants,
    guidance_entries,
    guidance_needs,
    lacking,
    make_guidance,
)
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.saved import weights_identity
from imbdiff.diffusion.scales import per_class, scale_table
from imbdiff.diffusion.schedulers import SAMPLERS
from imbdiff.methods import method_of
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.recognising import plan_of, working_of
from imbdiff.pipeline.variations import STRENGTHS, Sources, beginnings, picker
from imbdiff.runtime.compiling import compile_if_equal, compiles, uncompile
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import atomic, digest, read_json, understood, write_json
from imbdiff.runtime.progress import Progress
from imbdiff.runtime.streams import seed_of
from imbdiff.runtime.tables import code_identity

Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How images are generated, with everything resolved that a configuration leaves to the method.

    Attributes:
        guidance: names of guidances, joined by +; the first is the outermost.
        constants: every constant of these by NAME.FIELD.
        start, strength, sources: whether images begin as real ones, of which classes, at which strengths; empty and
            "own" where they begin as noise.
    """

    sampler: str
    steps: int
    guidance: str
    constants: Mapping[str, Any]
    interval: tuple[float, float]
    batch_size: int
    boost: float = 1.0
    skip: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    start: Literal["noise", "real"] = "noise"
    strength: tuple[float, ...] = ()
    sources: Sources = "own"

    def guide(
        self,
        model: DiffusionModel,
        groups: Groups | None = None,
        classifier: Classifier | None = None,
        *,
        partial: bool = False,
    ) -> Guidance:
        """The guidance for `model`.

        Args:
            groups: of its classes, by which scales may be given; default: those of its class counts.
            classifier: for guidances that need one.
            partial: leave out guidances of which something is missing, as while a model is still being trained.

        Raises:
            ConfigError: a scale of an unknown class or group, or something that a guidance needs is missing.
        """
        context = SamplingContext(
            model=model, sampler=self.sampler, steps=self.steps, interval=self.interval, classifier=classifier,
            groups=groups or Groups.default(model.spec.stats), bf16=self.precision == "bf16",
        )  # fmt: skip
        names, constants = self.guidance, dict(self.constants)
        if partial:
            kept = [n for n in guidance_entries(names) if n not in self.missing(model, classifier)]
            names = "+".join(kept) or "none"
            constants = {k: v for k, v in constants.items() if k.rpartition(".")[0] in kept}
        return make_guidance(names, context, constants)

    def missing(self, model: DiffusionModel, classifier: Classifier | None = None) -> dict[str, str]:
        """The guidances that `model` cannot serve, and what each lacks: "guide", "weak" or "classifier"."""
        context = SamplingContext(model, self.sampler, self.steps, classifier=classifier)
        found = lacking(guidance_entries(self.guidance), context)
        return {name: ", ".join(needs) for name, needs in found.items()}

    def generator_options(self, guidance: Guidance) -> dict[str, Any]:
        """The keyword arguments of `imbdiff.diffusion.generate.generate`."""
        return {
            "sampler": self.sampler, "steps": self.steps, "guidance": guidance, "batch_size": self.batch_size,
            "bf16": self.precision == "bf16", "boost": self.boost, "skip": self.skip,
        }  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """What decides the images; settings that leave the sampler as it is published are left out."""
        added = ("boost", "skip", "precision", "start", "strength", "sources")
        kept = {k: v for k, v in asdict(self).items() if k not in added or v != getattr(Sampling, k)}
        kept |= {k: list(v) for k, v in kept.items() if isinstance(v, tuple)}
        return {**kept, "constants": dict(self.constants)}

    def check(self, stats: ClassStats, groups: Groups) -> None:
        """Refuses scales that are out of range, and those of unknown classes or groups.

        Raises:
            ConfigError: naming the value, or the nearest name.
        """
        for name, value in self.constants.items():
            if name.endswith((".omega", ".scale")) and isinstance(value, int | float | str):
                scale = per_class(value, stats.names, groups)
                scale_table(scale, stats.num_classes, least=-1.0 if name.endswith(".omega") else 0.0)


def sampling(config: RunConfig) -> Sampling:
    """What the configuration says; where it leaves that open, what the method says, and otherwise dpm++ in 20 steps.

    A method's number of steps goes with its sampler; another one takes 20.

    Raises:
        ConfigError: an unknown guidance, one that the method's model cannot serve, or constants that do not fit.
    """
    method, options = method_of(config), config.sample
    own = method.sampler or "dpm++"
    if own in ("ddpm", "ddim") and config.model.process == "flow":
        own = "euler"
    sampler = options.sampler or own
    entries = guidance_entries(options.guidance or method.guidance)
    names = "+".join(entries)
    needs = guidance_needs(names)
    if "guide" in needs and not method.guided:
        raise ConfigError(
            f"the guidance {names} needs a guide, and the method {config.method} trains none",
            "leave it out, or train by diffrc or diffrc-paper",
        )
    given = {k: v for k, v in method.guidance_constants.items() if k.rpartition(".")[0] in entries}
    if "classifier-free" in entries:
        given.setdefault("classifier-free.omega", method.omega)
    asked = {name: value for name, value in options.constants.items() if value not in (None, "None")}
    found = guidance_constants(names, {**given, **asked})
    return Sampling(
        sampler=sampler,
        steps=options.steps or (method.steps if sampler == own else None) or 20,
        guidance=names,
        constants={f"{name}.{k}": v for name, values in found.items() for k, v in asdict(values).items()},
        interval=options.interval,
        batch_size=options.batch_size or (64 if resolve_device(config.device).type == "cpu" else 512),
        boost=options.boost,
        skip=options.skip,
        precision=options.precision,
        start=options.start,
        strength=options.strength or (STRENGTHS[options.sources] if options.start == "real" else ()),
        sources=options.sources,
    )


def guide_of(
    how: Sampling, model: DiffusionModel, prepared: Prepared, config: RunConfig, folder: Path | None = None
) -> Guidance:
    """The guidance for `model` with the class groups of its data, and the working classifier where it needs one.

    Args:
        folder: where the working classifier is kept; with it, a repeated call reads it. It saw the training split
            alone.
    """
    if "classifier" not in guidance_needs(how.guidance):
        return how.guide(model, prepared.groups)
    dist = Dist.current()
    if not dist.main:  # the first process trains it, the others read it
        dist.barrier()
    extractor = working_of(prepared, config, folder)
    if dist.main:
        dist.barrier()
    return how.guide(model, prepared.groups, extractor.network.requires_grad_(False).eval())


def sampling_identity(how: Sampling, prepared: Prepared, config: RunConfig) -> list[str]:
    """What decides the images besides plan and weights: the working classifier, and code from outside the package."""
    found = code_identity("guidance", GUIDANCE, how.guidance.split("+"))
    found += code_identity("samplers", SAMPLERS, [how.sampler])
    if "classifier" in guidance_needs(how.guidance):
        train = prepared.train
        plan = plan_of(prepared, config).identity(train.shape, len(train.class_names))
        found.append(digest([train.fingerprint, *plan, config.seed]))
    return found


# -- sample folders


def plan_in(
    folder: Path,
    counts: Sequence[int],
    names: Sequence[str],
    config: RunConfig,
    identity: str,
    first: Sequence[int] | None = None,
    train: ImageSet | None = None,
) -> dict[str, Any]:
    """What is to be generated into `folder`: the settings, and a row per image with its class, seed and file.

    Images of a class are numbered from `first` (C,), or from 0. With ``sample.start real`` a row has the image of
    `train` that it begins as, too.

    Where the configuration names no batch size, that of the images already there is kept: the default depends on the
    device, and images of another one differ by rounding alone.
    """
    how = sampling(config)
    settings = how.to_json()
    if config.sample.batch_size is None and (folder / "plan.json").exists():
        settings["batch_size"] = read_json(folder / "plan.json").get("batch_size", settings["batch_size"])
    rows: list[dict[str, Any]] = []
    for k, (n, place) in enumerate(zip(counts, safe_class_dirs(names), strict=True)):
        begin = first[k] if first else 0
        real = n and how.start == "real"
        pick = picker(train, names, k, how.sources, how.strength, config.seed) if real else lambda i: {}
        rows += [
            {"file": f"{place}/{i:06d}.png", "label": k, "seed": seed_of(config.seed, "sample", k, i), **pick(i)}
            for i in range(begin, begin + n)
        ]
    if first:
        settings["first"] = list(first)
    return {"identity": identity, "class_names": list(names), "counts": list(counts), **settings, "images": rows}


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 1 or 3) uint8 -> PNG."""
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(out, "PNG")
    return out.getvalue()


def plan_of_samples(folder: Path) -> dict[str, Any] | None:
    """The plan by which the images in `folder` were generated; None where that is not finished."""
    with understood(path := folder / "manifest.json"):
        return _planned(read_json(path)) if path.exists() else None


def _planned(manifest: dict[str, Any]) -> dict[str, Any]:
    """The plan in a manifest, which has the hashes of the files too."""
    return {**manifest, "images": [{k: v for k, v in row.items() if k != "sha256"} for row in manifest["images"]]}


def finished(folder: Path, todo: Mapping[str, Any] | str) -> bool:
    """Whether everything in the plan `todo`, or in the plan with that digest, was generated and is still there."""
    plan = plan_of_samples(folder)
    same = plan is not None and (digest(plan) if isinstance(todo, str) else plan) == todo
    return same and plan is not None and all((folder / row["file"]).exists() for row in plan["images"])


def alike(plan: dict[str, Any], todo: dict[str, Any]) -> bool:
    """Whether two plans differ in the numbers of images alone."""
    own, other = ({k: v for k, v in p.items() if k not in ("counts", "images")} for p in (plan, todo))
    rows = {row["file"]: row for row in plan["images"]}
    return own == other and all(rows.get(row["file"], row) == row for row in todo["images"])


def make_ready(folder: Path, todo: dict[str, Any]) -> None:
    """Makes `folder` ready for the plan `todo`; images of another plan are moved away first, in one step.

    Images of a plan that differs in the numbers of images alone stay: an image depends on its own seed alone.

    Raises:
        RunError: the folder holds files that are not from here; nothing is touched.
    """
    if (folder / "plan.json").exists():
        plan = read_json(folder / "plan.json")
        if plan == todo:
            return
        if alike(plan, todo):
            # the manifest first: from here on the sampling is unfinished, whenever this is killed
            (folder / "manifest.json").unlink(missing_ok=True)
            for name in {row["file"] for row in plan["images"]} - {row["file"] for row in todo["images"]}:
                (folder / name).unlink(missing_ok=True)
            write_json(folder / "plan.json", todo)
            return
    if any((folder / name).exists() for name in ("plan.json", "manifest.json")):
        aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
    elif folder.exists() and any(path.name != ".lock" for path in folder.iterdir()):
        raise RunError(f"{folder} holds files that are not from imbdiff", "move them, or use another run folder")
    write_json(folder / "plan.json", todo)


def load_samples(
    folder: Path, shape: tuple[int, int, int], class_names: Sequence[str], *, plan: str | None = None
) -> ImageSet:
    """The images of a finished sampling, ordered by class; their ids are file names.

    Args:
        plan: the digest that their plan must have.

    Raises:
        RunError: a file is missing or altered, or the images are of other classes or another plan.
    """
    with understood(path := folder / "manifest.json"):
        manifest: Any = read_json(path) if plan is None or path.exists() else None
        if plan is not None and (manifest is None or digest(_planned(manifest)) != plan):
            raise RunError(
                f"the images in {folder} are not those of this run",
                f"run `{RunFolder(folder.parent).command('sample')}`",
            )
        if tuple(manifest["class_names"]) != tuple(class_names):
            raise RunError(f"the images in {folder} are of other classes than this run's", "sample again in this run")
        rows = manifest["images"]
        images = np.zeros((len(rows), *shape), dtype=np.uint8)
        for i, row in enumerate(rows):
            place, again = folder / row["file"], "run `imbdiff sample` again"
            try:
                data = place.read_bytes()
            except OSError as error:
                raise RunError(f"{place} is missing", again) from error
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise RunError(f"{place} was altered since it was generated", f"remove it and {again}")
            images[i] = np.asarray(Image.open(io.BytesIO(data))).reshape(shape)
        labels = np.array([r["label"] for r in rows], dtype=np.int64)
        return ImageSet(images, labels, tuple(class_names), tuple(r["file"] for r in rows))


def sample_into(
    model: DiffusionModel, todo: dict[str, Any], folder: Path, how: Sampling, guidance: Guidance, *,
    train: ImageSet | None = None, quiet: bool = False,
) -> None:  # fmt: skip
    """Generates into `folder` the images of the plan `todo`; those that are there and whole stay.

    Under ``torchrun`` every process generates its share of the batches; the images are the same as of one process.

    Args:
        train: the training images, where some begin as these.

    Raises:
        RunError: the folder holds files that are not from here, an image begins as one that is none of these, or the
            device's memory does not suffice for one image.
    """
    dist = Dist.current()
    if dist.main:
        make_ready(folder, todo)
    dist.barrier()
    rows = todo["images"]
    # an image depends on its own seed and label alone, so what is missing goes into batches of its own
    missing = [row for row in rows if not _readable(folder / row["file"])]
    dist.barrier()  # none writes before all have looked
    n = how.batch_size
    mine = [row for b in range(dist.rank, -(-len(missing) // n), dist.world) for row in missing[b * n : (b + 1) * n]]
    done = len(rows) - len(missing)
    quiet = quiet or not dist.main
    with Progress("sample", len(rows), start=done, quiet=quiet) as progress:
        log = (lambda _: None) if quiet else print
        for count in _sample_rows(model, mine, folder, how, guidance, train, log):
            done += count * dist.world
            progress.update(min(done, len(rows)))
    dist.barrier()
    if dist.main:
        hashed = [{**r, "sha256": hashlib.sha256((folder / r["file"]).read_bytes()).hexdigest()} for r in rows]
        write_json(folder / "manifest.json", {**todo, "images": hashed})
    dist.barrier()


def _readable(path: Path) -> bool:
    """Whether an image is there and whole: after a power cut its name may be there without its bytes."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):
        return False
    return True


def _sample_rows(
    model: DiffusionModel,
    rows: Sequence[dict[str, Any]],
    folder: Path,
    how: Sampling,
    guidance: Guidance,
    train: ImageSet | None,
    log: Callable[[str], None],
) -> Iterator[int]:
    """Generates the images of `rows` into their files; yields how many, batch after batch.

    Where the device's memory does not suffice, batches are halved: images are then the same up to rounding.
    """
    device, left = next(model.parameters()).device, list(rows)
    # gradients through a compiled network may be wrong
    compiling = not guidance.differentiates and compiles(device) and len(rows) >= 16 * how.batch_size
    compiling = compiling and model.backbone.compiles
    compiled_for = 0  # rows of a batch
    while left:
        labels, seeds = (np.array([row[what] for row in left], dtype=np.int64) for what in ("label", "seed"))
        real, done = beginnings(left, train), set()
        try:
            if compiling and compiled_for != how.batch_size:
                compiling = _compile(model, how, guidance, log)
                compiled_for = how.batch_size
            for indices, images in generate_batches(model, labels, seeds, **how.generator_options(guidance), **real):
                for i, image in zip(indices, images, strict=True):
                    with atomic(folder / left[i]["file"], sync=False) as aside:
                        aside.write_bytes(encode_png(image))
                done |= {*indices}
                yield len(indices)
        except torch.OutOfMemoryError as error:
            if how.batch_size == 1:
                raise RunError(
                    "the memory of the device does not suffice for one image",
                    "choose a smaller --data.size or --model.backbone",
                ) from error
            how = replace(how, batch_size=how.batch_size // 2)
            log(f"the device's memory does not suffice: batches of {how.batch_size} images from here on")
            uncompile([model.backbone])
            torch.cuda.empty_cache()
        left = [row for i, row in enumerate(left) if i not in done]


def doubles(guidance: Guidance) -> bool:
    """Whether a step evaluates the network for twice as many rows: some class has an omega other than 0."""
    if isinstance(guidance, Guided):
        return doubles(guidance.outer) or doubles(guidance.inner)
    return isinstance(guidance, ClassifierFree) and any(scale_table(guidance.omega, guidance.classes, least=-1.0))


def _compile(model: DiffusionModel, how: Sampling, guidance: Guidance, log: Callable[[str], None]) -> bool:
    """Compiles the network for batches of this size, if its predictions are those without."""
    device, rows = next(model.parameters()).device, how.batch_size * (2 if doubles(guidance) else 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((rows, *model.codec.shape), generator=generator).to(device)
    t = model.process.time_from_uniform(torch.rand(rows, generator=generator)).to(device)
    labels = (torch.arange(rows) % (model.null + 1)).to(device)

    def predictions() -> dict[str, Any]:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=how.precision == "bf16"):
            return {"prediction": model(x, t, labels)[0].float()}

    return compile_if_equal(
        [model.backbone], predictions, what="predictions of one batch", bf16=how.precision == "bf16", notify=log,
    )  # fmt: skip


def sample(
    model: DiffusionModel,
    counts: Sequence[int],
    config: RunConfig,
    folder: Path | None = None,
    *,
    groups: Groups | None = None,
    guidance: Guidance | None = None,
    train: ImageSet | None = None,
    quiet: bool = False,
) -> ImageSet:
    """Generates `counts` (C,) images of each class.

    Args:
        folder: where class folders and manifest go; with it, a repeated call continues. Without, nothing is kept.
        groups: of the classes, by which guidance scales may be given: `Prepared.groups` of the training data, whose
            source may have a rule of its own. Default: those of the class counts.
        guidance: in place of the configured one.
        train: the training images, which ``sample.start real`` begins with.

    Returns:
        The images, ordered by class; their ids are file names.
    """
    channels, height, width = model.spec.shape
    model = model.to(resolve_device(config.device))
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        where = Path(place) / "samples" if folder is None else Path(place)
        todo = plan_in(where, counts, model.spec.stats.names, config, weights_identity(model), train=train)
        if not finished(where, todo):
            how = sampling(config)
            sample_into(model, todo, where, how, guidance or how.guide(model, groups), train=train, quiet=quiet)
        return load_samples(where, (height, width, channels), model.spec.stats.names)
