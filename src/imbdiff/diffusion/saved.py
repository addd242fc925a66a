"""Models on disk: a description as JSON, weights as safetensors; whole or not at all.

``model.json`` and ``model.safetensors`` are the model, ``codec.safetensors`` what its codec has in tensors;
``guide.json`` and ``guide.safetensors`` the encoder that guides it, ``weak.safetensors`` its earlier average for
autoguidance, where it has these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from imbdiff.diffusion.backbone import Backbone
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.model import DiffusionModel, ModelSpec, from_spec
from imbdiff.runtime.errors import ConfigError, RunError, listing
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_json


def save_model(model: DiffusionModel, folder: str | Path) -> None:
    """Writes the model with its codec, its guide and its weak model, where it has them."""
    folder = Path(folder)
    codec = folder / "codec.safetensors"
    if tensors := model.codec.tensors():
        save_tensors(tensors, codec)
    else:
        codec.unlink(missing_ok=True)
    save_weights(model.backbone, folder / "model.safetensors")
    save_guide(model.guide, folder)
    weak = folder / "weak.safetensors"
    if model.weak is None:
        weak.unlink(missing_ok=True)
    else:
        save_weights(model.weak.backbone, weak)
    # so that one that was lost is noticed
    parts = {name: True for name in ("guide", "weak") if getattr(model, name) is not None}
    write_json(folder / "model.json", {**model.spec.to_json(), **parts})


def load_model(folder: str | Path, *, device: torch.device | str = "cpu", guide: bool = True) -> DiffusionModel:
    """Loads a folder that `save_model` wrote; in eval mode.

    Args:
        guide: False leaves the model's guide and weak model unread: for training on from its weights, which needs none.

    Raises:
        RunError: the folder holds no model, or its weights do not fit its description; the same of its guide.
    """
    folder = Path(folder)
    with _described(folder / "model.json", "a model"):
        described = read_json(folder / "model.json")
        spec, parts = ModelSpec.from_json(described, folder), described if guide else {}
        model = from_spec(spec)
    load_weights(model.backbone, folder / "model.safetensors")
    if parts.get("guide"):
        model.guide = load_guide(folder)
    if parts.get("weak"):
        weak = from_spec(spec)
        load_weights(weak.backbone, folder / "weak.safetensors")
        model.keep_weak(weak.to(device))
    return model.to(device).eval()


def save_weights(network: nn.Module, path: Path) -> None:
    """Writes a network's weights as safetensors, whole or not at all: of a pretrained one what was trained."""
    save_tensors(own_state(network), path)


def own_state(network: nn.Module) -> dict[str, Tensor]:
    """See `Backbone.own_state`; of other networks all of it."""
    return network.own_state() if isinstance(network, Backbone) else network.state_dict()


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    with atomic(path) as aside:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, aside)


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
    if wrong := misfits(state, own_state(network)):
        raise RunError(
            f"the weights in {path} do not fit this model:\n{listing(wrong, 8)}",
            "start from a model with the same backbone, image shape and number of classes",
        )
    network.load_state_dict(state, strict=False)  # what is not there, the network has brought along


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
    """A hash of the weights in a folder that `save_model` wrote, with those of a guide, a weak model and a codec."""
    parts = [Path(folder) / f"{name}.safetensors" for name in ("model", "guide", "weak", "codec")]
    found = [sha256_file(path) for path in parts if path.exists()]
    return found[0] if len(found) == 1 else digest(found)


def save_guide(guide: nn.Module | None, folder: Path) -> None:
    """Writes ``guide.json`` and ``guide.safetensors``; without a guide, those of an earlier model are removed."""
    weights, described = folder / "guide.safetensors", folder / "guide.json"
    if guide is None:
        weights.unlink(missing_ok=True)
        described.unlink(missing_ok=True)
        return
    assert isinstance(guide, PrototypeEncoder), "no other guide is known"
    save_weights(guide, weights)
    write_json(described, {"tau": guide.tau, "spec": guide.spec.to_json()})


def load_guide(folder: Path) -> PrototypeEncoder:
    """Loads what `save_guide` wrote; in eval mode, its weights fixed.

    Raises:
        RunError: a file is missing or damaged, or the weights do not fit the description.
    """
    described = folder / "guide.json"
    with _described(described, "a guide"):
        value = read_json(described)
        guide = PrototypeEncoder(ModelSpec.from_json(value["spec"], folder), tau=float(value["tau"]))
    load_weights(guide, folder / "guide.safetensors")
    return guide.requires_grad_(False).eval()


@contextmanager
def _described(path: Path, what: str) -> Iterator[None]:
    """Refuses a file that is missing, or of which nothing can be made within."""
    if not path.exists():
        raise RunError(f"{path} is missing: there is no description of {what}", "give the folder of a saved model")
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise RunError(
            f"{path} does not describe {what}: {type(error).__name__} {error}", "restore it, or train again"
        ) from error


def weights_identity(model: DiffusionModel) -> str:
    """A hash of the model's weights, and of its codec where that has some."""
    h = hashlib.sha256(model.codec.fingerprint.encode() if model.codec.tensors() else b"")
    for name, value in sorted(model.state_dict().items()):
        h.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()
