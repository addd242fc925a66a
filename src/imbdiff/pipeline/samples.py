"""Synthetic images on disk: class folders of PNGs and a manifest; a killed sampling continues where it was.

``SAMPLES/<class folder>/<number>.png``, ``SAMPLES/plan.json`` (what is to be drawn, written first) and
``SAMPLES/manifest.json`` (what was drawn, written last). Class folders are made safe: class names are data.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imbdiff.config import RunConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import safe_class_dirs
from imbdiff.pipeline.sampling import Sampling, sampling
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest, read_json, write_json
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


def drawn_inputs(folder: Path) -> str | None:
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
