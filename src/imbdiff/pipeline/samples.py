"""Synthetic images on disk: class folders of PNGs and a manifest; a killed sampling continues where it was.

``SAMPLES/<class folder>/<number>.png``, ``SAMPLES/plan.json`` (what is to be drawn, written first) and
``SAMPLES/manifest.json`` (what was drawn, written last). Class folders are made safe: class names are data.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from imbdiff.config import RunConfig, SampleConfig
from imbdiff.data.folders import safe_class_dirs
from imbdiff.data.imageset import ImageSet
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.generate import generate_batches
from imbdiff.diffusion.guidance import ClassifierFree, Guidance, Guided
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.prototype_guidance import Norm, prototype_guidance
from imbdiff.methods import get_method
from imbdiff.runtime.compiling import compile_if_equal
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import atomic, digest, read_json, write_json
from imbdiff.runtime.progress import Progress
from imbdiff.runtime.streams import seed_of


@dataclass(frozen=True)
class Sampling:
    """How images are drawn, with everything settled that a configuration leaves to the method.

    `prototype_scale` is None where neither the method nor the configuration says anything of prototype guidance.
    """

    sampler: str
    steps: int
    omega: float
    interval: tuple[float, float]
    batch_size: int
    prototype_scale: float | None
    prototype_norm: Norm
    prototype_adaptive: bool
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: Literal["auto", "on", "off"] = "auto"

    def guidance(self, model: DiffusionModel) -> Guidance:
        """Classifier-free guidance, and that of the model's guide if it has one."""
        free = ClassifierFree(self.omega, model.null, model.process, self.interval)
        if not isinstance(model.guide, PrototypeEncoder) or not self.prototype_scale:
            return free
        outer = prototype_guidance(
            model.guide, self.prototype_scale, sampler=self.sampler, steps=self.steps,
            norm=self.prototype_norm, adaptive=self.prototype_adaptive, interval=self.interval,
        )  # fmt: skip
        return Guided(outer, free)


def prototype_options(config: RunConfig) -> list[str]:
    """The options of prototype guidance that the configuration sets, as they are written."""
    names = ("prototype_scale", "prototype_norm", "prototype_adaptive")
    default = SampleConfig()
    return [f"--sample.{n}" for n in names if getattr(config.sample, n) != getattr(default, n)]


def sampling(config: RunConfig) -> Sampling:
    """What the configuration says; where it leaves that open, what the method says, and otherwise dpm++ in 20 steps.

    A method's number of steps goes with its sampler; another one takes 20.
    """
    method, options = get_method(config.method), config.sample
    own = method.sampler
    if own in ("ddpm", "ddim") and config.model.process == "flow":
        own = "euler"
    own = own or "dpm++"
    sampler = options.sampler or own
    scale = method.prototype_scale if method.guided else None
    return Sampling(
        sampler=sampler,
        steps=options.steps or (method.steps if sampler == own else None) or 20,
        omega=method.omega if options.omega is None else options.omega,
        interval=options.interval,
        batch_size=options.batch_size or (64 if resolve_device(config.device).type == "cpu" else 512),
        prototype_scale=scale if options.prototype_scale is None else options.prototype_scale,
        prototype_norm=options.prototype_norm,
        prototype_adaptive=options.prototype_adaptive,
        precision=options.precision,
        compile=options.compile,
    )


def plan(counts: Sequence[int], names: Sequence[str], how: Sampling, seed: int, identity: str) -> dict[str, Any]:
    """What is to be drawn: one row per image, with its class, seed and file."""
    settled = {**asdict(how), "interval": list(how.interval)}
    del settled["compile"]
    if how.precision == "fp32":  # as in runs from before there was a choice
        del settled["precision"]
    if how.prototype_scale is None:
        settled = {k: v for k, v in settled.items() if not k.startswith("prototype_")}
    rows = []
    for k, (n, folder) in enumerate(zip(counts, safe_class_dirs(names), strict=True)):
        rows += [{"file": f"{folder}/{i:06d}.png", "label": k, "seed": seed_of(seed, "sample", k, i)} for i in range(n)]
    return {
        "identity": identity,
        "class_names": list(names),
        "counts": list(counts),
        **settled,
        "images": rows,
    }


def draw(model: DiffusionModel, todo: dict[str, Any], folder: Path, how: Sampling, *, quiet: bool = False) -> None:
    """Draws what `plan` says into `folder`; images that are there and whole are not drawn again.

    Under ``torchrun`` every process draws its share of the batches; the images are the same as one process gives.

    Raises:
        RunError: the folder holds files that are not from here; nothing is touched.
    """
    dist = Dist.current()
    if dist.main:
        _open(folder, todo)
    dist.barrier()
    rows = todo["images"]
    # an image depends on its own seed and label alone, so what is missing goes into batches of its own
    missing = [row for row in rows if not _readable(folder / row["file"])]
    dist.barrier()  # nobody draws before everybody has looked
    n = how.batch_size
    mine = [row for b in range(dist.rank, -(-len(missing) // n), dist.world) for row in missing[b * n : (b + 1) * n]]
    done = len(rows) - len(missing)
    with Progress("sample", len(rows), start=done, quiet=quiet or not dist.main) as progress:
        for drawn in draw_rows(model, mine, folder, how, say=(lambda _: None) if quiet else print):
            done += drawn * dist.world
            progress.update(min(done, len(rows)))
    dist.barrier()
    if dist.main:
        record(folder, todo)
    dist.barrier()


def draw_rows(
    model: DiffusionModel,
    rows: Sequence[dict[str, Any]],
    folder: Path,
    how: Sampling,
    *,
    say: Callable[[str], None] = print,
) -> Iterator[int]:
    """Draws the images of `rows` into their files in `folder`; yields how many, batch after batch.

    Where the device's memory does not suffice, batches are halved: images are then the same up to rounding.

    Raises:
        RunError: it does not suffice for one image.
    """
    import torch

    device = next(model.parameters()).device
    guidance, n, left = how.guidance(model), how.batch_size, list(rows)
    if how.compile == "on" or (how.compile == "auto" and device.type == "cuda" and len(rows) >= 16 * n):
        compile_network(model, how, say=say)
    while left:
        labels, seeds = (np.array([row[what] for row in left], dtype=np.int64) for what in ("label", "seed"))
        begun = 0
        try:
            for indices, images in generate_batches(
                model, labels, seeds, sampler=how.sampler, steps=how.steps, guidance=guidance, batch_size=n,
                bf16=how.precision == "bf16",
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
            torch.cuda.empty_cache()
        left = left[begun:]


def compile_network(model: DiffusionModel, how: Sampling, *, say: Callable[[str], None] = print) -> bool:
    """Compiles the network for batches of this size, if its predictions are those without."""
    import torch

    device, rows = next(model.parameters()).device, how.batch_size * (1 if how.omega == 0 else 2)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((rows, *model.codec.shape), generator=generator).to(device)
    t = model.process.time_from_uniform(torch.rand(rows, generator=generator)).to(device)
    labels = (torch.arange(rows) % (model.null + 1)).to(device)

    def predictions() -> dict[str, Any]:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=how.precision == "bf16"):
            return {"prediction": model(x, t, labels)[0].float()}

    return compile_if_equal(
        [model.backbone], predictions, what="predictions of one batch", bf16=how.precision == "bf16",
        must=how.compile == "on", option="--sample.compile", say=say,
    )  # fmt: skip


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


def drawn_inputs(folder: Path) -> str | None:
    """The hash of the plan that the images in `folder` were drawn by; None where drawing is not finished."""
    path = folder / "manifest.json"
    return digest(_planned(read_json(path))) if path.exists() else None


def _planned(manifest: dict[str, Any]) -> dict[str, Any]:
    """What `plan` said, from the manifest of what was drawn."""
    return {**manifest, "images": [{k: v for k, v in row.items() if k != "sha256"} for row in manifest["images"]]}


def _open(folder: Path, todo: dict[str, Any]) -> None:
    """Makes `folder` ready for what `todo` says; images of another plan are moved away first, in one step.

    Images of a plan that differs in the number of images alone stay: an image depends on its own seed and on nothing
    else.
    """
    if (folder / "plan.json").exists():
        plan = read_json(folder / "plan.json")
        if plan == todo:
            return
        if _alike(plan, todo):
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


def _alike(plan: dict[str, Any], todo: dict[str, Any]) -> bool:
    """Whether two plans differ in the numbers of images alone."""
    own, other = ({k: v for k, v in p.items() if k not in ("counts", "images")} for p in (plan, todo))
    seeds = {row["file"]: row["seed"] for row in plan["images"]}
    return own == other and all(seeds.get(row["file"], row["seed"]) == row["seed"] for row in todo["images"])


def _readable(path: Path) -> bool:
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
