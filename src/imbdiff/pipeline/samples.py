"""Sampling images: into class folders of PNGs with a manifest, in batches that fit, over all processes.

``SAMPLES/<class folder>/<number>.png``, ``SAMPLES/plan.json`` (what is to be sampled, written first) and
``SAMPLES/manifest.json`` (what was sampled, written last). Class folders are made safe: class names are data. A killed
sampling continues where it was.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import safe_class_dirs
from imbdiff.data.stats import Groups
from imbdiff.diffusion.generate import generate, generate_batches
from imbdiff.diffusion.guidance import ClassifierFree, Guidance, Guided
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.scales import scale_table
from imbdiff.pipeline.sampling import Sampling, sampling
from imbdiff.reporting.pictures import sample_grid
from imbdiff.runtime.compiling import compile_if_equal, compiles, uncompile
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import atomic, digest, read_json, write_json
from imbdiff.runtime.progress import Progress
from imbdiff.runtime.streams import seed_of


def plan(counts: Sequence[int], names: Sequence[str], how: Sampling, seed: int, identity: str) -> dict[str, Any]:
    """What is to be drawn: one row per image, with its class, seed and file."""
    rows = []
    for k, (n, folder) in enumerate(zip(counts, safe_class_dirs(names), strict=True)):
        rows += [{"file": f"{folder}/{i:06d}.png", "label": k, "seed": seed_of(seed, "sample", k, i)} for i in range(n)]
    return {
        "identity": identity,
        "class_names": list(names),
        "counts": list(counts),
        **how.to_json(),
        "images": rows,
    }


def plan_in(
    folder: Path, counts: Sequence[int], names: Sequence[str], config: RunConfig, identity: str
) -> dict[str, Any]:
    """The `plan` for `folder`, as configured; drawing goes on with what is there: see `in_batches_of`."""
    return in_batches_of(plan(counts, names, sampling(config), config.seed, identity), folder, config)


def in_batches_of(todo: dict[str, Any], folder: Path, config: RunConfig) -> dict[str, Any]:
    """`todo`, with the batch size of the images that are in `folder` where the configuration names none.

    The default depends on the device; drawing goes on with another one, and images differ by rounding alone.
    """
    if config.sample.batch_size is not None or not (folder / "plan.json").exists():
        return todo
    return {**todo, "batch_size": read_json(folder / "plan.json").get("batch_size", todo["batch_size"])}


def record(folder: Path, todo: dict[str, Any]) -> None:
    """Writes the manifest of what was drawn: `todo`, and the hash of every file."""
    drawn = [{**r, "sha256": hashlib.sha256((folder / r["file"]).read_bytes()).hexdigest()} for r in todo["images"]]
    write_json(folder / "manifest.json", {**todo, "images": drawn})


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 1 or 3) uint8 -> PNG."""
    out = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(out, "PNG")
    return out.getvalue()


def finished(folder: Path, todo: dict[str, Any]) -> bool:
    """Whether everything that `todo` says was drawn and is still there."""
    if not (folder / "manifest.json").exists():
        return False
    return _planned(read_json(folder / "manifest.json")) == todo and all(
        (folder / row["file"]).exists() for row in todo["images"]
    )


def sampled_inputs(folder: Path) -> str | None:
    """The hash of the plan that the images in `folder` were drawn by; None where drawing is not finished."""
    path = folder / "manifest.json"
    return digest(_planned(read_json(path))) if path.exists() else None


def _planned(manifest: dict[str, Any]) -> dict[str, Any]:
    """What `plan` said, from the manifest of what was drawn."""
    return {**manifest, "images": [{k: v for k, v in row.items() if k != "sha256"} for row in manifest["images"]]}


def make_ready(folder: Path, todo: dict[str, Any]) -> None:
    """Makes `folder` ready for what `todo` says; images of another plan are moved away first, in one step.

    Images of a plan that differs in the number of images alone stay: an image depends on its own seed and on nothing
    else.
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
    elif folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} holds files that are not from imbdiff", "move them, or use another run folder")
    write_json(folder / "plan.json", todo)


def alike(plan: dict[str, Any], todo: dict[str, Any]) -> bool:
    """Whether two plans differ in the numbers of images alone."""
    own, other = ({k: v for k, v in p.items() if k not in ("counts", "images")} for p in (plan, todo))
    seeds = {row["file"]: row["seed"] for row in plan["images"]}
    return own == other and all(seeds.get(row["file"], row["seed"]) == row["seed"] for row in todo["images"])


def readable(path: Path) -> bool:
    """Whether an image is there and whole: after a power cut its name may be there without its bytes."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):
        return False
    return True


def load_samples(
    folder: Path, shape: tuple[int, int, int], class_names: Sequence[str], *, inputs: str | None = None
) -> ImageSet:
    """The images of a finished sampling.

    Args:
        inputs: of a run, the hash of the plan that it drew by; None: the images may be of any plan.

    Raises:
        RunError: it is not finished, a file is missing or altered, or it is of other classes or another plan.
    """
    manifest = read_json(folder / "manifest.json")
    if inputs is not None and digest(_planned(manifest)) != inputs:
        raise RunError(
            f"the images in {folder} are not those that this run drew", f"run `imbdiff sample {folder.parent}`"
        )
    if tuple(manifest["class_names"]) != tuple(class_names):
        raise RunError(f"the images in {folder} are of other classes than this run's", "sample again in this run")
    rows = manifest["images"]
    height, width, channels = shape
    images = np.zeros((len(rows), height, width, channels), dtype=np.uint8)
    for i, row in enumerate(rows):
        try:
            data = (folder / row["file"]).read_bytes()
        except FileNotFoundError as error:
            raise RunError(f"{folder / row['file']} is missing", "run `imbdiff sample` again") from error
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise RunError(
                f"{folder / row['file']} was altered since it was drawn", "remove it and run `imbdiff sample` again"
            )
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        images[i] = pixels.reshape(height, width, channels)
    labels = np.array([r["label"] for r in rows], dtype=np.int64)
    return ImageSet(images, labels, tuple(class_names), tuple(r["file"] for r in rows))


def sample_into(
    model: DiffusionModel,
    todo: dict[str, Any],
    folder: Path,
    how: Sampling,
    *,
    guidance: Guidance | None = None,
    quiet: bool = False,
) -> None:
    """Draws into `folder` what :func:`imbdiff.pipeline.samples.plan` says; images that are there and whole stay.

    Args:
        guidance: of `how`, made; default: made here, without a classifier.

    Under ``torchrun`` every process draws its share of the batches; the images are the same as one process gives.

    Raises:
        RunError: the folder holds files that are not from here; nothing is touched.
    """
    dist = Dist.current()
    if dist.main:
        make_ready(folder, todo)
    dist.barrier()
    rows = todo["images"]
    # an image depends on its own seed and label alone, so what is missing goes into batches of its own
    missing = [row for row in rows if not readable(folder / row["file"])]
    dist.barrier()  # nobody draws before everybody has looked
    n = how.batch_size
    mine = [row for b in range(dist.rank, -(-len(missing) // n), dist.world) for row in missing[b * n : (b + 1) * n]]
    done = len(rows) - len(missing)
    with Progress("sample", len(rows), start=done, quiet=quiet or not dist.main) as progress:
        say: Callable[[str], None] = (lambda _: None) if quiet or not dist.main else print
        for drawn in sample_rows(model, mine, folder, how, guidance=guidance, say=say):
            done += drawn * dist.world
            progress.update(min(done, len(rows)))
    dist.barrier()
    if dist.main:
        record(folder, todo)
    dist.barrier()


def sample_rows(
    model: DiffusionModel,
    rows: Sequence[dict[str, Any]],
    folder: Path,
    how: Sampling,
    *,
    guidance: Guidance | None = None,
    say: Callable[[str], None] = print,
) -> Iterator[int]:
    """Draws the images of `rows` into their files in `folder`; yields how many, batch after batch.

    Where the device's memory does not suffice, batches are halved: images are then the same up to rounding.

    Raises:
        RunError: it does not suffice for one image.
    """
    import torch

    device = next(model.parameters()).device
    guidance, n, left = guidance or how.guide(model), how.batch_size, list(rows)
    # gradients through a compiled network may be wrong
    wanted = not guidance.differentiates and compiles(device) and len(rows) >= 16 * n
    checked = 0  # the batch size that it is compiled for
    while left:
        labels, seeds = (np.array([row[what] for row in left], dtype=np.int64) for what in ("label", "seed"))
        begun = 0
        try:
            if wanted and checked != n:
                wanted = compile_network(model, how, n, guidance=guidance, say=say)
                checked = n
            for indices, images in generate_batches(
                model, labels, seeds, sampler=how.sampler, steps=how.steps, guidance=guidance, batch_size=n,
                bf16=how.precision == "bf16", boost=how.boost, skip=how.skip,
            ):  # fmt: skip
                for i, image in zip(indices, images, strict=True):
                    with atomic(folder / left[i]["file"], sync=False) as aside:
                        aside.write_bytes(encode_png(image))
                begun = indices[-1] + 1
                yield len(indices)
        except torch.OutOfMemoryError as error:
            if n == 1:
                raise RunError(
                    "the memory of the device does not suffice to draw one image",
                    "choose a smaller --data.size or --model.backbone",
                ) from error
            n //= 2
            say(f"the device's memory does not suffice for batches of {2 * n} images: {n} from here on")
            uncompile([model.backbone])
            torch.cuda.empty_cache()
        left = left[begun:]


def doubles(guidance: Guidance) -> bool:
    """Whether a step evaluates the network for twice as many rows: some class has an omega other than 0."""
    if isinstance(guidance, Guided):
        return doubles(guidance.outer) or doubles(guidance.inner)
    return isinstance(guidance, ClassifierFree) and any(scale_table(guidance.omega, guidance.classes, least=-1.0))


def compile_network(
    model: DiffusionModel,
    how: Sampling,
    n: int,
    *,
    guidance: Guidance,
    say: Callable[[str], None] = print,
) -> bool:
    """Compiles the network for batches of `n` images, if its predictions are those without."""
    import torch

    device, rows = next(model.parameters()).device, n * (2 if doubles(guidance) else 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((rows, *model.codec.shape), generator=generator).to(device)
    t = model.process.time_from_uniform(torch.rand(rows, generator=generator)).to(device)
    labels = (torch.arange(rows) % (model.null + 1)).to(device)

    def predictions() -> dict[str, Any]:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=how.precision == "bf16"):
            return {"prediction": model(x, t, labels)[0].float()}

    return compile_if_equal(
        [model.backbone], predictions, what="predictions of one batch", bf16=how.precision == "bf16", say=say,
    )  # fmt: skip


CLASSES, PER_CLASS, STEPS = 10, 6, 20


def preview_grid(model: DiffusionModel, config: RunConfig, groups: Groups | None = None) -> bytes:
    """A PNG of the same images each time: at most the 10 largest classes, 6 images of each, at most 20 steps.

    `groups` are those of the classes, by which scales may be given; default: those of the class counts.
    """
    stats = model.spec.stats
    largest = np.argsort(-np.asarray(stats.counts), kind="stable")[:CLASSES]
    labels = np.repeat(np.sort(largest), PER_CLASS)
    how = sampling(config)
    how = replace(how, steps=min(how.steps, STEPS))
    images = generate(
        model, labels, np.arange(len(labels)), sampler=how.sampler, steps=how.steps,
        guidance=how.guide(model, groups, partial=True), batch_size=30, boost=how.boost, skip=how.skip,
    )  # fmt: skip
    grid = sample_grid(ImageSet(images, labels, stats.names), per_class=PER_CLASS, max_classes=CLASSES)
    return encode_png(np.asarray(grid.convert("RGB")))


def sample(
    model: DiffusionModel,
    counts: Sequence[int],
    config: RunConfig,
    folder: Path | None = None,
    *,
    groups: Groups | None = None,
    guidance: Guidance | None = None,
    quiet: bool = False,
) -> ImageSet:
    """Draws `counts` (C,) images of each class.

    Args:
        folder: where class folders and manifest go; with it, a repeated call continues. Without, nothing is kept.
        groups: of the classes, by which guidance scales may be given: `data.groups` of the data that was trained on,
            whose source may have a rule of its own. Default: those of the class counts.
        guidance: in place of what `config` says, which takes no classifier.

    Returns:
        The images, ordered by class; their ids are file names.
    """
    channels, height, width = model.spec.shape
    names, identity = model.spec.stats.names, weights_identity(model)
    model = model.to(resolve_device(config.device))
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as place:
        where = Path(place) / "samples" if folder is None else Path(place)
        todo = plan_in(where, counts, names, config, identity)
        if not finished(where, todo):
            how = sampling(config)
            sample_into(model, todo, where, how, guidance=guidance or how.guide(model, groups), quiet=quiet)
        return load_samples(where, (height, width, channels), names)


def weights_identity(model: DiffusionModel) -> str:
    """A hash of the model's weights."""
    h = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        h.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()
