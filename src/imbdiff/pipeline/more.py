"""More images from the model of a run, in a folder of their own: the run stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from imbdiff.config import RunConfig
from imbdiff.data.names import counted
from imbdiff.data.stats import Groups
from imbdiff.diffusion.guidances import guidance_needs
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.saved import load_model, saved_identity, weights_identity
from imbdiff.methods import method_of
from imbdiff.pipeline import training
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.plan import check_options
from imbdiff.pipeline.run import Run
from imbdiff.pipeline.sampling import (
    alike,
    finished,
    guide_of,
    plan_in,
    sample_into,
    sampling,
    sampling_identity,
)
from imbdiff.pipeline.strategy import images_to_draw
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.device import resolve_device, start
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest, read_json


def sample_more(
    folder: RunFolder,
    source: str,
    config: RunConfig,
    out: Path,
    *,
    numbers: Mapping[str, int] | None = None,
    checkpoint: int | None = None,
    replace: bool = False,
    quiet: bool = False,
) -> Path:
    """Samples images from the model of a run into `out`; repeated, it keeps what is there and adds what is missing.

    Args:
        config: of the run, with options of sampling as wanted here.
        numbers: {class name: images beyond those of the run}; their numbering goes on where that of the run ends, so
            that none is an image of the run. Empty or None: as many as ``sample.strategy`` says, numbered from 0.
        checkpoint: images seen, of the checkpoint to sample from; None: the finished model.
        replace: replace images in `out` that are of another model or of other options.

    Returns:
        `out`.

    Raises:
        RunError: the run has no model or no such checkpoint; `out` holds other images, or files that are not from here.
    """
    dist = start(config.device)
    check_options(config, training=False)
    run = Run(folder, source, config, quiet)
    how, groups = sampling(config), Groups.from_json(read_json(folder / "split.json")["groups"])
    needed = checkpoint is not None or "classifier" in guidance_needs(how.guidance) or how.start == "real"
    prepared = run.open() if needed else None
    train = None if prepared is None else prepared.train
    if checkpoint is None:
        place = folder.trained()
        model, identity = load_model(place), saved_identity(place)
    else:
        assert prepared is not None
        model = _at_checkpoint(run, prepared, checkpoint)
        identity = weights_identity(model)
    model = model.to(resolve_device(config.device))
    stats = model.spec.stats
    if prepared is not None and (more := sampling_identity(how, prepared, config)):
        identity = digest([identity, *more])
    there = read_json(out / "plan.json") if (out / "plan.json").exists() else None
    first = [0] * stats.num_classes
    if numbers and (folder / "samples" / "plan.json").exists():
        first = read_json(folder / "samples" / "plan.json")["counts"]
    if there is not None and not replace and len(there.get("first", ())) == stats.num_classes:
        first = there["first"]  # the run may have more images by now
    counts = (
        [numbers.get(name, 0) for name in stats.names] if numbers else images_to_draw(config.sample.strategy, stats)
    )
    todo = plan_in(out, counts, stats.names, config, identity, first, train)
    if there is not None and alike(there, todo):  # whatever was asked for before stays
        todo = plan_in(out, [max(*pair) for pair in zip(there["counts"], counts, strict=True)], stats.names, config,
                       identity, first, train)  # fmt: skip
    elif there is not None and not replace:
        raise RunError(
            f"the images in {out} are of another model, or were sampled with other options",
            "give another --out, or --replace to replace them",
        )
    if finished(out, todo):
        run.log(f"sample: {out} has these images already; a larger number adds to them")
    else:
        if config.curate.policy != "none":
            run.log("  note: not curated: every image that is sampled is kept")
        guidance = (
            how.guide(model, groups)
            if prepared is None
            else guide_of(how, model, prepared, config, folder / "curation")
        )
        sample_into(model, todo, out, how, guidance, train=train, quiet=quiet)
    if dist.main:
        run.log(
            f"sampled: {out}: {counted(len(todo['images']), 'image')} in folders of "
            f"{counted(sum(n > 0 for n in todo['counts']), 'class', 'classes')}, manifest.json"
        )
    return out


def _at_checkpoint(run: Run, prepared: training.Prepared, images: int) -> DiffusionModel:
    """The model with the averaged weights after so many images seen, with the guide of the finished one."""
    method, config = method_of(run.config), run.config
    phase = method.target
    store = CheckpointStore(run.folder / "checkpoints" / phase.name)
    found = store.read(images)
    if found is None:
        there = ", ".join(str(n) for n in store.images()) or "none"
        raise RunError(
            f"there is no checkpoint after {images:,} images in {store.folder}",
            f"there are: {there}; a run with --train.keep_checkpoints keeps all of them",
        )
    earlier = {name: training.new_model(prepared, config) for name in {phase.start, *phase.frozen} if name}
    step = training.build_step(phase, prepared, config, earlier)
    network = step.networks["model"].eval()
    with torch.no_grad():
        for i, weights in enumerate(p for p in network.parameters() if p.requires_grad):
            weights.copy_(found.tensors[f"ema.{i}"])
        model = network if phase.finish is None else phase.finish(network, step.active).eval()
    assert isinstance(model, DiffusionModel)
    if (run.folder / "model" / "model.json").exists():
        whole = load_model(run.folder / "model")
        model.guide = whole.guide
        model.keep_weak(whole.weak)
    return model
