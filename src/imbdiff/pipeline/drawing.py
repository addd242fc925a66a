"""Drawing synthetic images into their files: in batches that fit, over all processes, going on where it was killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.diffusion.generate import generate_batches
from imbdiff.diffusion.guidance import ClassifierFree, Guidance, Guided
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.scales import scale_table
from imbdiff.pipeline import samples
from imbdiff.pipeline.sampling import Sampling
from imbdiff.runtime.compiling import compile_if_equal, uncompile
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import atomic
from imbdiff.runtime.progress import Progress


def draw(
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
        samples.make_ready(folder, todo)
    dist.barrier()
    rows = todo["images"]
    # an image depends on its own seed and label alone, so what is missing goes into batches of its own
    missing = [row for row in rows if not samples.readable(folder / row["file"])]
    dist.barrier()  # nobody draws before everybody has looked
    n = how.batch_size
    mine = [row for b in range(dist.rank, -(-len(missing) // n), dist.world) for row in missing[b * n : (b + 1) * n]]
    done = len(rows) - len(missing)
    with Progress("sample", len(rows), start=done, quiet=quiet or not dist.main) as progress:
        say: Callable[[str], None] = (lambda _: None) if quiet or not dist.main else print
        for drawn in draw_rows(model, mine, folder, how, guidance=guidance, say=say):
            done += drawn * dist.world
            progress.update(min(done, len(rows)))
    dist.barrier()
    if dist.main:
        samples.record(folder, todo)
    dist.barrier()


def draw_rows(
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
    wanted = not guidance.differentiates and (
        how.compile == "on" or (how.compile == "auto" and device.type == "cuda" and len(rows) >= 16 * n)
    )
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
                        aside.write_bytes(samples.encode_png(image))
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
        [model.backbone], predictions, what="predictions of one batch", bf16=how.precision == "bf16",
        must=how.compile == "on", option="--sample.compile", say=say,
    )  # fmt: skip
