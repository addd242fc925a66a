"""Preparing data and training a generator: plain functions on objects; a folder is needed only to resume.

data = prepare_data("digits", config.data)
model = train(data, config)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from imbdiff.config import NOT_DECISIVE, DataConfig, RunConfig, TrainConfig, flatten, to_dict
from imbdiff.data.augment import Augmentation
from imbdiff.data.decode import common_side
from imbdiff.data.geometric import Geometric
from imbdiff.data.imageset import ImageSet
from imbdiff.data.source import Source
from imbdiff.data.splits import Prepared, prepare
from imbdiff.data.symmetry import Symmetry, unasked
from imbdiff.diffusion.codec import Codec, IdentityCodec
from imbdiff.diffusion.codecs.autoencoder import AutoencoderCodec, open_autoencoder, size_for
from imbdiff.diffusion.codecs.patch import PatchCodec
from imbdiff.diffusion.model import DiffusionModel, build_model, without_augmentation
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import load_model, save_model, saved_identity
from imbdiff.methods import METHODS, method_of, with_all_constants
from imbdiff.objectives.row_sampling import sample_branches
from imbdiff.pipeline import finetuning
from imbdiff.pipeline.folder import RunFolder
from imbdiff.recipe import Method, Phase
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import digest, read_json, sha256_file
from imbdiff.runtime.log import JsonLog, Trackers
from imbdiff.runtime.streams import seed_of
from imbdiff.runtime.tables import code_identity
from imbdiff.training.loop import TrainingFiles
from imbdiff.training.parts import check_changes, check_groups, stored_latents
from imbdiff.training.step import TrainingStep
from imbdiff.training.trainer import OnPreview, OnStep, Trainer


def symmetry_of(prepared: Prepared, config: RunConfig) -> Symmetry:
    """What may be done to images while training: as configured, otherwise as is known to be safe for the source."""
    return unasked(prepared.flippable) if config.data.augment == "auto" else config.data.augment


def choose_backbone(config: RunConfig, side: int) -> str:
    """The backbone's name; "auto" goes by the larger side of model space, and by whether there is a GPU."""
    if config.model.backbone != "auto":
        return config.model.backbone
    if side <= 10:
        return "unet-8"
    if resolve_device(config.device).type == "cpu":
        return "unet-16"
    return "unet-32" if side <= 40 else "unet-64"


def model_text(config: RunConfig, model: DiffusionModel) -> str:
    """A model, to print."""
    if config.model.pretrained is not None:
        return f"{Path(config.model.pretrained).name}, {config.model.adapt}"
    return choose_backbone(config, max(model.codec.shape[1:]))


def init_folder(name: str) -> Path:
    """The folder of a saved model: itself, or a run's, whose weights are those that it trained."""
    for folder in (Path(name), Path(name) / "model"):
        if (folder / "model.json").exists():
            run = RunFolder(folder.parent)
            run.allow_code()
            return run.trained() if folder.name == "model" and run.exists else folder
    raise RunError(f"{name} holds no model (model.json is missing)", "give a run folder, or its model folder")


def model_whole(folder: Path, mark: Mapping[str, Any]) -> bool:
    """Whether a run's model folder has all files that its model says it has, and the weights of `mark`."""
    if not all((folder / name).exists() for name in ("model.json", "model.safetensors", "trained_on.json")):
        return False
    described = read_json(folder / "model.json")
    parts = {"guide.json": "guide", "guide.safetensors": "guide", "weak.safetensors": "weak"}
    whole = all((folder / name).exists() for name, part in parts.items() if described.get(part))
    return whole and saved_identity(folder) == mark["weights"]


def seen_by_init(config: RunConfig) -> set[str] | None:
    """Hashes of the images that the model to start from was trained on; the empty set if there is no such model.

    None where that is not known: a model that was not trained by `imbdiff train`.
    """
    if config.model.init is None:
        return set()
    path = init_folder(config.model.init) / "trained_on.json"
    hashes = read_json(path)["image_hashes"] if path.exists() else None
    return None if hashes is None else set(hashes)


def doubts(config: RunConfig, kind: str) -> list[str]:
    """What the reader of a run has to know about its options, given the kind of its source."""
    found = []
    if seen_by_init(config) is None:
        found.append(f"what the model {config.model.init} was trained on is not known: perhaps on test images")
    found += finetuning.doubts(config)
    if config.preset in ("cifar-lt", "diffrc-cifar") and kind != "benchmark":
        found.append(
            f"the preset {config.preset} is for cifar10-lt and cifar100-lt: this split is not the literature's"
        )
    return found


def geometric(phase: Phase, method: Method, symmetry: Symmetry) -> Geometric | None:
    """The geometric changes of a phase's images. A guide guides unchanged images: it sees none."""
    if not method.ada or phase.gives != "model":
        return None
    return Geometric(method.ada, None if method.ada_range == "all" else symmetry)


#: options of training that came later, with the value at which training is what it was before: with it they are no part
#: of what a training is, so that what an earlier version made counts and goes on
ADDED = {"noise_levels": "uniform"}
#: the same, of the model: of a pretrained one
FINETUNING = ("pretrained", "adapt", "rank", "prompt", "names", "checkpointing")

Kind = Literal["identity", "patch", "vae"]
LARGEST_IN_PIXELS, LARGEST_ON_CPU = 64, 32
"""Side of images whose model space is pixels where nothing is said; with a GPU, and without."""
_FITTED: dict[tuple[Any, ...], Codec] = {}


def codec_kind(config: RunConfig, shape: tuple[int, int, int]) -> Kind:
    """The codec of a new model, by name; "auto" goes by the side of images (H, W, C), and by whether there is a GPU.

    Raises:
        ConfigError: options of another codec.
    """
    codec = config.codec
    largest = LARGEST_ON_CPU if resolve_device(config.device).type == "cpu" else LARGEST_IN_PIXELS
    unasked: Kind = "vae" if codec.weights else "patch" if max(shape[:2]) > largest else "identity"
    kind = unasked if codec.kind == "auto" else codec.kind
    given = [f"--codec.{name}" for name in ("factor", "latent_channels") if getattr(codec, name) is not None]
    if given and kind != "patch":
        why = f" (images up to {largest} pixels)" if kind == "identity" else ""
        raise ConfigError(
            f"{' and '.join(given)} without effect: the codec is {kind}{why}",
            "leave them out, or give --codec.kind patch",
        )
    if (kind == "vae") != (codec.weights is not None):
        raise ConfigError(
            f"--codec.kind {kind} with --codec.weights {codec.weights}: weights are of the codec vae, which needs some",
            "give both, or neither",
        )
    return kind


def sized(source: Source, config: RunConfig) -> RunConfig:
    """`config` with a size that suits the autoencoder's factor, where there is one and no size is asked for."""
    sizes = source.sizes() if config.codec.weights and config.data.size is None and config.model.init is None else {}
    if not sizes:
        return config
    common = next(iter(sizes)) if len(sizes) == 1 else (common_side(sizes),) * 2
    height, width = size_for(config.codec.weights or "", *common)
    return replace(config, data=replace(config.data, size=f"{height}x{width}"))


def open_vae(prepared: Prepared, config: RunConfig) -> AutoencoderCodec:
    """The autoencoder that is asked for, not whitened.

    Raises:
        ConfigError: it cannot be used, or not with these images or this method.
    """
    height, width, channels = prepared.train.shape
    codec = open_autoencoder(config.codec.weights or "", (channels, height, width))
    method = method_of(config)
    check_changes(codec, Augmentation(), geometric(method.target, method, "none"))
    return codec


def codec_of(prepared: Prepared, config: RunConfig, *, fitted: bool = True) -> Codec:
    """The codec of a new model, with what it takes from the training images.

    Args:
        fitted: False leaves a VAE as it is: its whitening takes the latents of all images.
    """
    height, width, channels = prepared.train.shape
    kind = codec_kind(config, prepared.train.shape)
    if kind == "identity":
        return IdentityCodec((channels, height, width))
    if kind == "vae":
        codec, dist = open_vae(prepared, config), Dist.current()
        if config.model.pretrained is not None:  # its network was trained on latents as that configuration scales them
            return codec.as_trained()
        if not fitted:
            return codec
        symmetry, device = Augmentation(symmetry_of(prepared, config)), resolve_device(config.device)
        return codec.whitened(stored_latents(prepared.train, codec, symmetry, device, dist)[0])
    key = (prepared.manifest["hash"], prepared.train.shape, config.codec)
    if key not in _FITTED:
        _FITTED.clear()
        _FITTED[key] = PatchCodec.fit(prepared.train.images, config.codec.factor or 4, config.codec.latent_channels)
    return _FITTED[key]


def codec_text(codec: Codec) -> str:
    """A codec, to print."""
    shapes = ["x".join(map(str, shape)) for shape in (codec.shape, codec.image)]
    if isinstance(codec, AutoencoderCodec):
        return "; ".join(
            [f"vae, {shapes[0]} numbers of {shapes[1]}, by the {codec.kind} {codec.weights}", *codec.notes]
        )
    if not isinstance(codec, PatchCodec):
        return codec.name
    return f"patch, {shapes[0]} numbers of {shapes[1]}, {codec.psnr:.1f} dB (pixels: --codec.kind identity)"


def codec_note(prepared: Prepared, config: RunConfig) -> list[str]:
    """What is said of a codec that the size of the images or its weights chose; empty where they stay pixels."""
    unasked = (config.codec.kind == "auto" or config.codec.weights) and config.model.init is None
    chosen = unasked and codec_kind(config, prepared.train.shape) != "identity"
    return [f"codec {codec_text(codec_of(prepared, config, fitted=False))}"] if chosen else []


def new_model(prepared: Prepared, config: RunConfig, *, fitted: bool = False) -> DiffusionModel:
    """The model that training starts from: new weights, or those of ``model.init``.

    Under ADA it has a layer for the vector of geometric changes, otherwise none.

    Args:
        fitted: as of `codec_of`; False is enough to see that it can be made, and what it costs.

    Raises:
        RunError: the saved model does not fit these images, classes or process, or lacks that layer.
        ConfigError: the backbone does not fit the images.
    """
    height, width, channels = prepared.train.shape
    shape, process, ada = (channels, height, width), PROCESSES[config.model.process], method_of(config).ada
    if config.model.pretrained is not None:
        return finetuning.pretrained_model(config, codec_of(prepared, config), prepared.stats)
    if config.model.init is None:
        codec = codec_of(prepared, config, fitted=fitted)
        return build_model(
            choose_backbone(config, max(codec.shape[1:])), process, shape, prepared.stats,
            seed=config.seed, dropout=config.model.dropout, augment=ada > 0, codec=codec,
        )  # fmt: skip
    folder = init_folder(config.model.init)
    model = load_model(folder, guide=False)  # this run trains its own, or has none
    found, problems = model.spec, []
    if leaked := set(prepared.test.hashes) & (seen_by_init(config) or set()):
        problems.append(f"it was trained on {len(leaked)} images that are test images here (--data.split_seed)")
    if found.shape != shape:
        problems.append(f"its images are {found.shape}, these are {shape} (channels, height, width: --data.size)")
    if config.codec.kind not in ("auto", found.codec.name):
        problems.append(f"its codec is {found.codec.name}, not {config.codec.kind} (--codec.kind)")
    if found.stats.names != prepared.stats.names:
        problems.append(f"its {found.stats.num_classes} classes are not these {prepared.stats.num_classes}")
    if dict(found.process) != process.to_json():
        problems.append(f"its process is {dict(found.process)}, not {config.model.process} (--model.process)")
    if ada > 0 and model.backbone.augmentation is None:
        problems.append(f"it has no layer for geometric changes, which the method makes (--method.ada {ada:g})")
    if problems:
        raise RunError(
            f"the model in {folder} cannot be continued here: {'; '.join(problems)}",
            "use the data and options that it was trained with, or train anew",
        )
    spec = replace(found, stats=prepared.stats)
    fresh = DiffusionModel(spec, model.backbone, model.process)
    return (fresh if ada > 0 else without_augmentation(fresh)).train()


def build_step(
    phase: Phase,
    prepared: Prepared,
    config: RunConfig,
    trained: Mapping[str, nn.Module] | None = None,
    *,
    fitted: bool = True,
) -> TrainingStep:
    """The training step of one phase; `trained` are earlier phases' results by name, `fitted` as of `codec_of`."""
    trained = trained or {}
    start = trained[phase.start] if phase.start else None
    model = copy.deepcopy(start).train() if start is not None else new_model(prepared, config, fitted=fitted)
    if phase.make is not None:
        assert isinstance(model, DiffusionModel)
        if phase.gives != "model":  # a guide sees unchanged images
            model = without_augmentation(model)
        model = phase.make(model, seed_of(config.seed, "phase", phase.name)).train()
    networks: dict[str, nn.Module] = {"model": model, **{name: trained[name] for name in phase.frozen}}
    objectives = phase.objectives()
    check_groups(phase.parts, objectives)
    if config.train.branch_rows < 1:
        sample_branches(objectives, config.train.branch_rows)
    return TrainingStep(networks, objectives, frozen=phase.frozen)


def check_phases(prepared: Prepared, config: RunConfig, *, world: int = 1) -> dict[str, str]:
    """Refuses parts of a batch that cannot be sampled, of every phase, before the first is trained.

    Returns:
        The losses that keep all rows, see `check_branches`.

    Raises:
        ConfigError: a batch that cannot be divided, classes that there are none of, class groups that are too small,
            or losses none of which can be estimated from a share of the rows.
    """
    for phase in method_of(config).phases:
        for part in phase.parts:
            part.check(config.train.batch_size, world, config.train.accumulate)
            part.classes(prepared.groups)
        check_groups(phase.parts, phase.objectives())
    return check_branches(config)


def check_branches(config: RunConfig) -> dict[str, str]:
    """Refuses to sample the rows of a method none of whose losses can be estimated from some of them.

    Returns:
        name -> reason of those besides the denoising loss that keep all rows, where a share of them is asked for.

    Raises:
        ConfigError: with each loss's reason.
    """
    share, method = config.train.branch_rows, method_of(config)
    if share == 1:
        return {}
    objectives = [o for phase in method.phases for o in phase.objectives()]
    refused = dict(sample_branches(objectives, share))
    if len(refused) == len({o.name for o in objectives}):
        raise ConfigError(
            f"train.branch_rows={share:g}, but no loss of {config.method} can be estimated from some of the rows: "
            + "; ".join(f"{name}: {why}" for name, why in refused.items()),
            "leave it out, or choose a method with CBDM's, alignment's or CM's loss",
        )
    base = {o.name for o in objectives if o.base}
    return {name: why for name, why in refused.items() if name not in base}


def settled(prepared: Prepared, config: RunConfig) -> RunConfig:
    """`config` with what was left to the images as it was decided for them: size, resize policy, channels, changes."""
    height, width, channels = prepared.train.shape
    data = replace(
        config.data, size=f"{height}x{width}", resize=prepared.manifest["resize"],
        channels="grey" if channels == 1 else "colour", augment=symmetry_of(prepared, config),
    )  # fmt: skip
    if config.model.init is not None:  # the codec is that model's
        return replace(config, data=data)
    return replace(config, data=data, codec=replace(config.codec, kind=codec_kind(config, prepared.train.shape)))


def prepare_data(
    source: str | Path | Source | ImageSet, config: DataConfig, cache: str | Path | None = None
) -> Prepared:
    """Opens a source and splits it as the configuration says; see `imbdiff.data.splits.prepare`."""
    return prepare(
        source,
        size=config.size,
        resize=config.resize,
        channels=config.channels,
        imbalance_factor=config.imbalance_factor,
        test_fraction=config.test_fraction,
        val_fraction=config.val_fraction,
        seed=config.split_seed,
        cache=cache,
    )


def train(
    prepared: Prepared,
    config: RunConfig,
    folder: Path | None = None,
    *,
    on_preview: OnPreview | None = None,
    on_watch: OnPreview | None = None,
    on_step: OnStep | None = None,
    quiet: bool = False,
    log: Callable[[str], None] = print,
) -> DiffusionModel:
    """Trains a diffusion model by ``config.method`` on ``prepared.train``, and on nothing else.

    Args:
        folder: where ``checkpoints/`` and ``log.jsonl`` go; with it, a repeated call continues.
        on_preview: called now and then, while the model to be sampled trains, with its average and the images seen.
        on_watch: the same, every `config.train.watch_images` images.
        on_step: called after every step of that model, with the images seen and the row of the log: its numbers where
            it has one, else empty. What it raises ends the training, which a repeated call continues.

    Returns:
        The model with averaged weights, in eval mode.

    Raises:
        ConfigError: a phase's parts cannot be sampled; before anything is trained.
    """
    config = finetuning.resolved(config)
    method, dist = method_of(config), Dist.current()
    keep_all = check_phases(prepared, config, world=dist.world)
    if not quiet and dist.main:
        for name, why in keep_all.items():
            log(f"{name} keeps all rows: {why}")
    identity, symmetry = training_inputs(prepared, config), symmetry_of(prepared, config)
    trained: dict[str, nn.Module] = {}
    weak: list[DiffusionModel] = []
    weak_folder = None if folder is None else folder / "checkpoints" / "weak"
    trackers = None
    if folder is not None and config.track and dist.main:
        trackers = Trackers(config.track, folder.resolve().name, folder / "trackers", flatten(to_dict(config)))

    def keep_weak(model: DiffusionModel, _: int) -> None:
        weak.append(model)
        if weak_folder is not None:
            save_model(model, weak_folder)

    for phase in method.phases:
        files = TrainingFiles()
        if folder is not None:
            track = None if trackers is None else partial(trackers.log, prefix=f"{phase.name}/")
            rows = JsonLog(folder / log_name(method, phase), track)
            files = TrainingFiles(
                CheckpointStore(folder / "checkpoints" / phase.name, config.train.keep_checkpoints),
                rows,
                f"{identity}/{phase.name}",
            )
        final, changes = phase is method.target, geometric(phase, method, symmetry)
        trainer = Trainer(
            step=build_step(phase, prepared, config, trained),
            data=prepared.train,
            groups=prepared.groups,
            parts=phase.parts,
            config=phase_config(phase, config),
            seed=config.seed,
            device=config.device,
            files=files,
            # geometric changes mirror and turn too
            augmentation=Augmentation(symmetry if changes is None else "none"),
            geometric=changes,
            on_preview=on_preview if final else None,
            on_watch=on_watch if final else None,
            on_step=on_step if final else None,
            on_weak=keep_weak if final else None,
            finish=phase.finish,
            quiet=quiet,
            notify=log,
        )
        trained[phase.name] = trainer.run()
    if trackers is not None:
        trackers.close()
    model = trained[method.target.name]
    assert isinstance(model, DiffusionModel)
    model.guide = next((trained[phase.name] for phase in method.phases if phase.gives == "guide"), None)
    if not weak and weak_folder is not None and dist.main:
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


def training_inputs(prepared: Prepared, config: RunConfig) -> str:
    """A hash of everything that decides what training gives: contents, not paths."""
    model, decisive = asdict(config.model), asdict(config.train)
    model = {k: v for k, v in model.items() if k not in FINETUNING} | finetuning.inputs(config, prepared.stats.names)
    for name in [n for n in decisive if n in NOT_DECISIVE or (n in ADDED and decisive[n] == ADDED[n])]:
        del decisive[name]
    known = with_all_constants(config).constants
    if not known["training.ada"] or known["training.ada_range"] == "all":  # what earlier versions did
        known = {name: value for name, value in known.items() if name != "training.ada_range"}
    if config.model.init is not None:
        model["init"] = sha256_file(init_folder(config.model.init) / "model.safetensors")
    codec = {**asdict(config.codec), "kind": codec_kind(config, prepared.train.shape)}
    named = config.model.init is None and codec["kind"] != "identity"  # otherwise it is that model's, or pixels
    weights = codec.pop("weights")
    if named and weights is not None:
        codec["weights"] = open_vae(prepared, config).network
    return digest({
        **({"codec": codec} if named else {}),
        "data": prepared.manifest["hash"],
        "method": [config.method, *code_identity("methods", METHODS, config.method.split("+"))],
        "constants": known,
        "seed": config.seed,
        "model": model,
        "train": decisive,
        "symmetry": symmetry_of(prepared, config),
    })  # fmt: skip
