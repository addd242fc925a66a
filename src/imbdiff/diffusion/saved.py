"""Models on disk: a description as JSON, weights as safetensors; whole or not at all.

``model.json`` and ``model.safetensors`` are the model; ``guide.json`` and ``guide.safetensors`` the encoder that guides
it, ``weak.safetensors`` its earlier average for autoguidance, where it has these.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.model import DiffusionModel, ModelSpec, from_spec
from imbdiff.runtime.errors import ConfigError, RunError, listing
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_json


def save_model(model: DiffusionModel, folder: Path) -> None:
    """Writes the model with its guide and its weak model, where it has them."""
    save_weights(model.backbone, Path(folder) / "model.safetensors")
    save_guide(model.guide, Path(folder))
    weak = Path(folder) / "weak.safetensors"
    if model.weak is None:
        weak.unlink(missing_ok=True)
    else:
        save_weights(model.weak.backbone, weak)
    # so that one that was lost is noticed
    parts = {name: True for name in ("guide", "weak") if getattr(model, name) is not None}
    write_json(Path(folder) / "model.json", {**model.spec.to_json(), **parts})


def load_model(folder: Path, *, device: torch.device | str = "cpu", guide: bool = True) -> DiffusionModel:
    """Loads a folder that `save_model` wrote; in eval mode.

    Args:
        guide: False leaves the model's guide and weak model unread: for training on from its weights, which needs none.

    Raises:
        RunError: the folder holds no model, or its weights do not fit its description; the same of its guide.
    """
    folder = Path(folder)
    if not (folder / "model.json").exists():
        raise RunError(f"{folder} holds no model (model.json is missing)", "give a folder that `imbdiff train` wrote")
    described = read_json(folder / "model.json")
    try:
        model = from_spec(ModelSpec.from_json(described))
        guided = described.get("guide", False)
        weak = from_spec(ModelSpec.from_json(described)) if guide and described.get("weak", False) else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{folder / 'model.json'} does not describe a model: {type(error).__name__} {error}",
            "restore it; if another version of imbdiff wrote it, load it with that one",
        ) from error
    load_weights(model.backbone, folder / "model.safetensors")
    if guided and guide:
        model.guide = load_guide(folder)
    if weak is not None:
        load_weights(weak.backbone, folder / "weak.safetensors")
        model.keep_weak(weak.to(device))
    return model.to(device).eval()


def save_weights(network: nn.Module, path: Path) -> None:
    """Writes a network's weights as safetensors; whole or not at all."""
    from safetensors.torch import save_file

    with atomic(path) as aside:
        save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, aside)


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads safetensors weights into `network`, naming every tensor that does not fit.

    Raises:
        RunError: the file is missing or damaged, or holds other tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", "give the folder of a saved model") from error
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {error}", "restore it, or train again") from error
    if wrong := misfits(state, network.state_dict()):
        raise RunError(
            f"the weights in {path} do not fit this model:\n{listing(wrong, 8)}",
            "start from a model with the same backbone, image shape and number of classes",
        )
    network.load_state_dict(state)


def misfits(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """A line for each of the tensors of a file that does not fit those of a network; empty if all fit."""
    wrong = [f"{k}: missing" for k in own if k not in found]
    wrong += [f"{k}: not in this model" for k in found if k not in own]
    return wrong + [
        f"{k}: {tuple(found[k].shape)} here, {tuple(own[k].shape)} in the model"
        for k in own
        if k in found and found[k].shape != own[k].shape
    ]


def saved_identity(folder: Path) -> str:
    """A hash of the weights in a folder that `save_model` wrote, with those of a guide and a weak model."""
    parts = [Path(folder) / f"{name}.safetensors" for name in ("model", "guide", "weak")]
    found = [sha256_file(path) for path in parts if path.exists()]
    return found[0] if len(found) == 1 else digest(found)


def save_guide(guide: nn.Module | None, folder: Path) -> None:
    """Writes ``guide.json`` and ``guide.safetensors``; without a guide, those of an earlier model are removed.

    Raises:
        ConfigError: a guide of another kind.
    """
    weights, described = Path(folder) / "guide.safetensors", Path(folder) / "guide.json"
    if guide is None:
        weights.unlink(missing_ok=True)
        described.unlink(missing_ok=True)
        return
    if not isinstance(guide, PrototypeEncoder):
        raise ConfigError(f"a guide of type {type(guide).__name__} cannot be saved", "use a PrototypeEncoder")
    save_weights(guide, weights)
    write_json(described, {"kind": "prototypes", "dim": guide.dim, "tau": guide.tau, "spec": guide.spec.to_json()})


def load_guide(folder: Path) -> PrototypeEncoder:
    """Loads what `save_guide` wrote; in eval mode, its weights fixed.

    Raises:
        RunError: a file is missing or damaged, or the weights do not fit the description.
    """
    weights, described = Path(folder) / "guide.safetensors", Path(folder) / "guide.json"
    remedy = "restore it, or train again"
    for path in (described, weights):
        if not path.exists():
            raise RunError(f"{path} is missing: the model in {folder} is sampled with a guide", remedy)
    value = read_json(described)
    try:
        if value["kind"] != "prototypes":
            raise ValueError(f"kind {value['kind']!r} is not known")
        guide = PrototypeEncoder(ModelSpec.from_json(value["spec"]), dim=int(value["dim"]), tau=float(value["tau"]))
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise RunError(f"{described} does not describe a guide: {type(error).__name__} {error}", remedy) from error
    load_weights(guide, weights)
    return guide.requires_grad_(False).eval()
