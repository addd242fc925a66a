"""What a run trains: the model it starts from, each phase's training step, and whether its batches can be drawn."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from imbdiff.config import RunConfig
from imbdiff.data.geometric import Geometric
from imbdiff.data.source import Symmetry
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.model import DiffusionModel, build_model, without_augmentation
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import load_model
from imbdiff.methods import method_of
from imbdiff.objectives.row_sampling import sample_branches
from imbdiff.recipe import Phase
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import read_json
from imbdiff.runtime.streams import seed_of
from imbdiff.training.parts import check_groups
from imbdiff.training.step import TrainingStep


def symmetry_of(prepared: Prepared, config: RunConfig) -> Symmetry:
    """What may be done to images while training: as configured, otherwise as is known to be safe for the source."""
    if config.data.augment == "auto":
        return "mirror" if prepared.flippable else "none"
    return config.data.augment


def choose_backbone(config: RunConfig, shape: tuple[int, int, int]) -> str:
    """The backbone's name; "auto" goes by image side, and by whether there is a GPU.

    Args:
        shape: (H, W, C).
    """
    if config.model.backbone != "auto":
        return config.model.backbone
    side = max(shape[:2])
    if side <= 10:
        return "unet-8"
    if resolve_device(config.device).type == "cpu":
        return "unet-16"
    return "unet-32" if side <= 40 else "unet-64"


def init_folder(name: str) -> Path:
    """The folder of a saved model: itself, or a run's."""
    for folder in (Path(name), Path(name) / "model"):
        if (folder / "model.json").exists():
            return folder
    raise RunError(f"{name} holds no model (model.json is missing)", "give a run folder, or its model folder")


def files_there(folder: Path) -> bool:
    """Whether a run's model folder has all files that its model says it has."""
    if not all((folder / name).exists() for name in ("model.json", "model.safetensors", "trained_on.json")):
        return False
    described = read_json(Path(folder) / "model.json")
    beside = {"guide.json": "guide", "guide.safetensors": "guide", "weak.safetensors": "weak"}
    return all((folder / name).exists() for name, what in beside.items() if described.get(what))


def seen_by_init(config: RunConfig) -> set[str] | None:
    """Hashes of the images that the model to start from was trained on; the empty set if there is no such model.

    None where that is not known: a model that was not trained by `imbdiff train`.
    """
    if config.model.init is None:
        return set()
    path = init_folder(config.model.init) / "trained_on.json"
    hashes = read_json(path)["image_hashes"] if path.exists() else None
    return None if hashes is None else set(hashes)


def ada(config: RunConfig) -> float:
    """Probability of each geometric change that networks are told of: as configured, otherwise the method's."""
    return method_of(config).ada if config.train.ada is None else config.train.ada


def geometric(phase: Phase, config: RunConfig) -> Geometric | None:
    """The geometric changes of a phase's images. A guide sees none: it guides upright images and is told nothing."""
    p = ada(config)
    return Geometric(p) if p > 0 and phase.gives == "model" else None


def new_model(prepared: Prepared, config: RunConfig) -> DiffusionModel:
    """The model that training starts from: new weights, or those of ``model.init``.

    Under ADA it has a layer for the vector of geometric changes, otherwise none.

    Raises:
        RunError: the saved model does not fit these images, classes or process, or lacks that layer.
        ConfigError: the backbone does not fit the images.
    """
    height, width, channels = prepared.train.shape
    shape = (channels, height, width)
    if config.model.init is None:
        backbone = choose_backbone(config, prepared.train.shape)
        process = PROCESSES[config.model.process]
        return build_model(
            backbone, process, shape, prepared.stats,
            seed=config.seed, dropout=config.model.dropout, augment=ada(config) > 0,
        )  # fmt: skip
    folder = init_folder(config.model.init)
    model = load_model(folder, guide=False)  # this run trains its own, or has none
    leaked = set(prepared.test.hashes) & (seen_by_init(config) or set())
    if leaked:
        raise RunError(
            f"the model in {folder} was trained on {len(leaked)} images that are test images here",
            "use the split that it was trained with (--data.split_seed), or train anew",
        )
    found = model.spec
    problems = []
    if found.shape != shape:
        problems.append(f"its images are {found.shape}, these are {shape} (channels, height, width)")
    if found.stats.names != prepared.stats.names:
        problems.append(f"its {found.stats.num_classes} classes are not these {prepared.stats.num_classes}")
    if dict(found.process) != PROCESSES[config.model.process].to_json():
        problems.append(f"its process is {dict(found.process)}, not {config.model.process}")
    if problems:
        raise RunError(
            f"the model in {folder} cannot be continued here: {'; '.join(problems)}",
            "use the same --data.size and --model.process as that model, on the same classes",
        )
    if ada(config) > 0 and model.backbone.augmentation is None:
        raise RunError(
            f"the model in {folder} has no layer for geometric changes (ADA)",
            f"train it with --train.ada {ada(config):g} too, or continue without: --train.ada 0",
        )
    fresh = DiffusionModel(type(found)(found.kind, found.config, shape, found.process, prepared.stats),
                           model.backbone, model.process, model.codec)  # fmt: skip
    return (fresh if ada(config) > 0 else without_augmentation(fresh)).train()


def build_step(
    phase: Phase, prepared: Prepared, config: RunConfig, trained: Mapping[str, nn.Module] | None = None
) -> TrainingStep:
    """The training step of one phase; `trained` are the results of earlier phases, by name."""
    trained = trained or {}
    start = trained[phase.start] if phase.start else None
    model = copy.deepcopy(start).train() if start is not None else new_model(prepared, config)
    if phase.make is not None:
        assert isinstance(model, DiffusionModel)
        model = model if geometric(phase, config) else without_augmentation(model)
        model = phase.make(model, seed_of(config.seed, "phase", phase.name)).train()
    networks: dict[str, nn.Module] = {"model": model, **{name: trained[name] for name in phase.frozen}}
    objectives = phase.objectives()
    check_groups(phase.parts, objectives)
    if config.train.branch_rows < 1:
        sample_branches(objectives, config.train.branch_rows)
    return TrainingStep(networks, objectives, frozen=phase.frozen, max_rows=config.train.max_rows)


def check_phases(prepared: Prepared, config: RunConfig, *, world: int = 1) -> dict[str, str]:
    """Refuses parts of a batch that cannot be drawn, of every phase, before the first is trained.

    Returns:
        The losses that keep all rows, see `check_branches`.

    Raises:
        ConfigError: a batch that cannot be divided, classes that there are none of, or class groups that are too small.
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
        name -> reason of those beside the denoising loss that keep all rows, where a share of them is asked for.

    Raises:
        ConfigError: with each loss's reason.
    """
    share, method = config.train.branch_rows, method_of(config)
    objectives = [o for phase in method.phases for o in phase.objectives()]
    refused = dict(sample_branches(objectives, share))
    if share < 1 and len(refused) == len({o.name for o in objectives}):
        raise ConfigError(
            f"train.branch_rows={share:g}, but no loss of {config.method} can be estimated from some of the rows: "
            + "; ".join(f"{name}: {why}" for name, why in refused.items()),
            "leave it out, or choose a method with CBDM's, alignment's or CM's loss",
        )
    base = {o.name for o in objectives if o.base}
    return {name: why for name, why in refused.items() if share < 1 and name not in base}
