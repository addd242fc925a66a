"""The stages as plain functions on objects: no folder is needed, except to resume.

data = prepare_data("digits", config.data)
model = train(data, config)
images = sample(model, images_to_draw("auto", data.stats), config)
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from imbdiff.config import ADDED, NOT_DECISIVE, DataConfig, RunConfig, TrainConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.data.source import Source
from imbdiff.data.splits import Prepared, prepare
from imbdiff.data.stats import Groups
from imbdiff.diffusion.guidance import Guidance
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.methods import METHODS, method_of, with_all_constants
from imbdiff.pipeline import drawing, samples
from imbdiff.pipeline.building import build_step, check_phases, geometric, init_folder, symmetry_of
from imbdiff.pipeline.sampling import sampling
from imbdiff.recipe import Method, Phase
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.files import digest, sha256_file
from imbdiff.runtime.log import JsonLog
from imbdiff.runtime.tables import code_identity
from imbdiff.training.trainer import OnPreview, Trainer


def prepare_data(source: str | Path | Source | ImageSet, config: DataConfig) -> Prepared:
    """Opens a source and splits it as the configuration says; see `imbdiff.data.splits.prepare`."""
    return prepare(
        source,
        size=config.size,
        resize=config.resize,
        imbalance_factor=config.imbalance_factor,
        profile=config.profile,
        protocol=config.protocol,
        test_fraction=config.test_fraction,
        test_per_class=config.test_per_class,
        val_fraction=config.val_fraction,
        seed=config.split_seed,
        cache=config.cache,
    )


def train(
    prepared: Prepared,
    config: RunConfig,
    folder: Path | None = None,
    *,
    on_preview: OnPreview | None = None,
    on_watch: OnPreview | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> DiffusionModel:
    """Trains a diffusion model by ``config.method`` on ``prepared.train``, and on nothing else.

    Args:
        folder: where ``checkpoints/`` and ``log.jsonl`` go; with it, a repeated call continues.
        on_preview: called now and then, while the model to be sampled trains, with its average and the images seen.
        on_watch: the same, every `config.watch.every` images.

    Returns:
        The model with averaged weights, in eval mode.

    Raises:
        ConfigError: a phase's parts cannot be drawn; before anything is trained.
    """
    method: Method = method_of(config)
    keep_all = check_phases(prepared, config, world=Dist.current().world)
    if not quiet and Dist.current().main:
        for name, why in keep_all.items():
            say(f"{name} keeps all rows: {why}")
    identity = training_identity(prepared, config)
    trained: dict[str, nn.Module] = {}
    weak: list[DiffusionModel] = []
    weak_folder = None if folder is None else folder / "checkpoints" / "weak"

    def keep_weak(model: DiffusionModel, _: int) -> None:
        weak.append(model)
        if weak_folder is not None:
            save_model(model, weak_folder)

    for phase in method.phases:
        place = None if folder is None else folder / "checkpoints" / phase.name
        final = phase is method.target
        told = geometric(phase, config)
        trainer = Trainer(
            step=build_step(phase, prepared, config, trained),
            data=prepared.train,
            groups=prepared.groups,
            parts=phase.parts,
            config=phase_config(phase, config),
            seed=config.seed,
            device=config.device,
            store=None if place is None else CheckpointStore(place),
            log=None if folder is None else JsonLog(folder / log_name(method, phase)),
            # geometric changes mirror and turn too, and say so
            augmentation=Augmentation.of(symmetry_of(prepared, config) if told is None else "none"),
            geometric=told,
            on_preview=on_preview if final else None,
            on_watch=on_watch if final else None,
            on_weak=keep_weak if final else None,
            watch_images=config.watch.every,
            identity=digest([identity, phase.name]),
            finish=phase.finish,
            quiet=quiet,
            say=say,
        )
        trained[phase.name] = trainer.run()
    model = trained[method.target.name]
    assert isinstance(model, DiffusionModel)
    model.guide = next((trained[phase.name] for phase in method.phases if phase.gives == "guide"), None)
    if not weak and config.train.weak_at and weak_folder is not None and Dist.current().main:
        weak.append(load_model(weak_folder))  # kept before this call
    model.keep_weak(weak[0] if weak else None)
    return model


def log_name(method: Method, phase: Phase) -> str:
    """The log of a phase, in the run folder."""
    return "log.jsonl" if phase is method.target else f"log-{phase.name}.jsonl"


def phase_config(phase: Phase, config: RunConfig) -> TrainConfig:
    """The options of one phase: its share of the images, and its label dropout where it has one."""
    changed: dict[str, Any] = {"images": max(config.train.batch_size, round(config.train.images * phase.share))}
    if phase.label_dropout is not None:
        changed["label_dropout"] = phase.label_dropout
    return replace(config.train, **changed)


def training_identity(prepared: Prepared, config: RunConfig) -> str:
    """A hash of everything that decides what training gives: contents, not paths."""
    from dataclasses import asdict

    options = {k: v for k, v in asdict(config.train).items() if k not in NOT_DECISIVE}
    options = {k: v for k, v in options.items() if not (k in ADDED and v == getattr(TrainConfig, k))}
    options["channels_last"] = bool(options["channels_last"])
    model = asdict(config.model)
    if config.model.init is not None:
        model["init"] = sha256_file(init_folder(config.model.init) / "model.safetensors")
    watch = [asdict(config.watch)] if config.watch.every else []
    constants = with_all_constants(config).constants
    code = code_identity("methods", METHODS, config.method.split("+"))
    return digest(
        [
            prepared.manifest["hash"],
            config.method,
            constants,
            config.seed,
            model,
            options,
            symmetry_of(prepared, config),
            *watch,
            *code,
        ]
    )


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
        todo = samples.plan_in(where, counts, names, config, identity)
        if not samples.finished(where, todo):
            how = sampling(config)
            drawing.draw(model, todo, where, how, guidance=guidance or how.guide(model, groups), quiet=quiet)
        return samples.load_samples(where, (height, width, channels), names)


def weights_identity(model: DiffusionModel) -> str:
    """A hash of the model's weights."""
    h = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        h.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()
