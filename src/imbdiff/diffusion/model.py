"""A diffusion model as one object: network, process and codec, with what is needed to save, load and sample it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.backbones import DiTBackbone, MLPBackbone, UNetBackbone
from imbdiff.diffusion.codec import Codec, IdentityCodec
from imbdiff.diffusion.contract import Backbone, Taps
from imbdiff.diffusion.process import Process, process_from_json
from imbdiff.runtime.errors import ConfigError, RunError, listing
from imbdiff.runtime.files import atomic, digest, read_json, sha256_file, write_json
from imbdiff.runtime.streams import seed_of
from imbdiff.runtime.tables import lookup

KINDS: dict[str, type[UNetBackbone] | type[DiTBackbone] | type[MLPBackbone]] = {
    "unet": UNetBackbone,
    "dit": DiTBackbone,
    "mlp": MLPBackbone,
}


def _unet(
    channels: Sequence[int], attention: Sequence[int], layers: int, groups: int, dropout: float
) -> dict[str, Any]:
    """Arguments of diffusers' UNet2DModel: `attention` names the levels, from 0 = full resolution, that attend."""
    down = ["AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(channels))]
    up = ["AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(len(channels)))]
    return {
        "block_out_channels": list(channels),
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": layers,
        "attention_head_dim": None,
        "norm_num_groups": groups,
        "dropout": dropout,
    }


def _adaptive(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same U-Net with adaptive group norm: time and class scale and shift what is normalised, as in ADM."""
    return {**arguments, "resnet_time_scale_shift": "scale_shift"}


def _dit(layers: int, width: int, heads: int) -> dict[str, Any]:
    """Arguments of diffusers' DiTTransformer2DModel with patches of 2 x 2."""
    return {"num_attention_heads": heads, "attention_head_dim": width // heads, "num_layers": layers, "patch_size": 2}


_U8, _U16 = _unet((32, 64), (1,), 1, 8, 0.1), _unet((32, 64, 64), (2,), 1, 8, 0.1)
_U32 = _unet((128, 256, 256, 256), (1,), 2, 32, 0.1)
_SIT = "which is a SiT when trained with --model.process flow"
_S, _B, _L, _XL = _dit(12, 384, 6), _dit(12, 768, 12), _dit(24, 1024, 16), _dit(28, 1152, 16)

#: name -> (kind, arguments, what it is for). Parameter counts: RGB, 10 classes. For 1,000 classes and latents the DiT
#: papers count 33, 130, 458 and 675 M for S, B, L and XL; here there are then 40, 147, 512 and 750 M, because diffusers
#: has the layers that embed time and class in every block and not once. Without the copies it is the papers' count.
BACKBONES: dict[str, tuple[str, dict[str, Any], str]] = {
    "unet-8": ("unet", _U8, "8 to 16 pixels on a CPU, 0.7 M parameters"),
    "unet-16": ("unet", _U16, "12 to 32 pixels on a CPU, 1.1 M parameters"),
    "unet-32-small": ("unet", _unet((64, 128, 128), (1,), 1, 32, 0.1), "28 to 32 pixels, 4.4 M parameters"),
    "unet-32": ("unet", _U32, "28 to 32 pixels, the 35.8 M parameters that the papers of this field use"),
    "unet-64": ("unet", _unet((128, 256, 256, 384), (2, 3), 2, 32, 0.1), "48 to 64 pixels, 52.8 M parameters"),
    "unet-8-adagn": ("unet", _adaptive(_U8), "unet-8 with ADM's adaptive group norm, 0.8 M parameters"),
    "unet-16-adagn": ("unet", _adaptive(_U16), "unet-16 with ADM's adaptive group norm, 1.2 M parameters"),
    "unet-32-adagn": (
        "unet",
        _adaptive(_U32),
        "unet-32 with ADM's adaptive group norm, as in DiffRC's paper, 38.3 M parameters",
    ),
    "dit-tiny": ("dit", _dit(4, 128, 4), "a small transformer for latents or square images, 1.4 M parameters"),
    "dit-s": ("dit", _S, "DiT-S/2, latents or square images, 35 M parameters"),
    "dit-b": ("dit", _B, "DiT-B/2, latents or square images, 138 M parameters"),
    "dit-l": ("dit", _L, "DiT-L/2, latents or square images, 487 M parameters"),
    "dit-xl": ("dit", _XL, "DiT-XL/2, latents or square images, 718 M parameters"),
    "sit-s": ("dit", _S, f"SiT-S/2: the network of dit-s, {_SIT}"),
    "sit-b": ("dit", _B, f"SiT-B/2: the network of dit-b, {_SIT}"),
    "sit-l": ("dit", _L, f"SiT-L/2: the network of dit-l, {_SIT}"),
    "sit-xl": ("dit", _XL, f"SiT-XL/2: the network of dit-xl, {_SIT}"),
    "mlp": ("mlp", {"width": 128}, "points and toy worlds"),
    "mlp-512": (
        "mlp",
        {"width": 512, "stem": 2},
        "8-pixel images, a fiftieth of unet-8's operations, 1.0 M parameters",
    ),
    "mlp-fine": ("mlp", {"width": 192, "waves": 5, "stem": 1}, "points whose density has detail finer than 0.1"),
}


@dataclass(frozen=True)
class ModelSpec:
    """Everything that rebuilds a model apart from its weights.

    Attributes:
        kind, config: the backbone's kind ("unet", "dit", "mlp") and its arguments.
        shape: (C, H, W) of the images.
        process: the process, as JSON.
        stats: class statistics of the training set; the model's labels are their order.
    """

    kind: str
    config: Mapping[str, Any]
    shape: tuple[int, int, int]
    process: Mapping[str, Any]
    stats: ClassStats

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": dict(self.config),
            "shape": list(self.shape),
            "process": dict(self.process),
            "stats": self.stats.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ModelSpec:
        shape = tuple(int(n) for n in value["shape"])
        if len(shape) != 3:
            raise ValueError(f"shape {shape} is not (C, H, W)")
        return cls(value["kind"], value["config"], shape, value["process"], ClassStats.from_json(value["stats"]))


class DiffusionModel(nn.Module):
    """A class-conditional network on model space, its process and its codec.

    Calling it evaluates the network: ``model(x_t, t, labels, taps, predict_rows) -> (prediction, taps)``, with t as the
    process gives it, labels (B,) in [0, C] and C = `null` for "no class".
    """

    def __init__(self, spec: ModelSpec, backbone: Backbone, process: Process, codec: Codec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.process = process
        self.codec = codec
        #: what guides the sampling of this model, where its method trains such a network
        self.guide: nn.Module | None = None
        self._beside: dict[str, DiffusionModel] = {}  # outside of the module tree: no part of the weights

    @property
    def num_classes(self) -> int:
        return self.backbone.num_classes

    @property
    def weak(self) -> DiffusionModel | None:
        """An earlier average of the same training, for autoguidance; None: none was kept."""
        return self._beside.get("weak")

    def keep_weak(self, weak: DiffusionModel | None) -> None:
        """Takes `weak` as the earlier average; its weights are fixed."""
        self._beside = {} if weak is None else {"weak": weak.eval().requires_grad_(False)}

    @property
    def null(self) -> int:
        """The null label, C."""
        return self.backbone.num_classes

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor,
        taps: Sequence[str] = (),
        predict_rows: int | None = None,
        capacity: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> tuple[Tensor, Taps]:
        """See `Backbone.forward`. `capacity` (B,) is for networks with a low-rank part that can be switched off."""
        if capacity is not None:
            raise ConfigError("this network has one capacity only", "use a method's own network for capacity='base'")
        told = {} if augment is None else {"augment": augment}  # a backbone of your own need not know of it
        return self.backbone(x_t, self.process.model_time(t), labels, taps, predict_rows, **told)

    @property
    def num_parameters(self) -> int:
        """Those that train; those of a guide or a weak model are not counted."""
        return sum(p.numel() for p in self.backbone.parameters() if p.requires_grad)

    def save(self, folder: Path) -> None:
        """Writes ``model.json`` and ``model.safetensors``; whole or not at all. Guide and weak model go beside them."""
        from imbdiff.diffusion.encoder import save_guide

        save_weights(self, Path(folder) / "model.safetensors")
        save_guide(self.guide, Path(folder))
        if self.weak is None:
            (Path(folder) / "weak.safetensors").unlink(missing_ok=True)
        else:
            save_weights(self.weak, Path(folder) / "weak.safetensors")
        # so that one that was lost is noticed
        beside = {name: True for name in ("guide", "weak") if getattr(self, name) is not None}
        write_json(Path(folder) / "model.json", {**self.spec.to_json(), **beside})


def build_model(
    backbone: str,
    process: Process,
    shape: tuple[int, int, int],
    stats: ClassStats,
    *,
    seed: int = 0,
    dropout: float | None = None,
    augment: bool = False,
) -> DiffusionModel:
    """A new model with weights drawn from `seed`; no global random state is read or left changed.

    Args:
        backbone: a name in `BACKBONES`.
        process: the noising process.
        shape: (C, H, W) of the images.
        stats: class statistics of the training labels.
        dropout: in place of the backbone's own.
        augment: with a layer for the vector of geometric changes of the images; the other weights are the same.

    Raises:
        ConfigError: unknown backbone, or one that does not fit `shape`.
    """
    kind, config, _ = lookup("backbones", BACKBONES, backbone, kind=tuple)
    if dropout is not None and kind != "mlp":
        config = {**config, "dropout": dropout}
    if augment:
        config = {**config, "augment": True}
    return from_spec(ModelSpec(kind, config, shape, process.to_json(), stats), seed=seed)


def from_spec(spec: ModelSpec, *, seed: int = 0) -> DiffusionModel:
    """The model that `spec` describes, freshly initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "init"))
        backbone = KINDS[spec.kind](spec.shape, spec.stats.num_classes, dict(spec.config))
    return DiffusionModel(spec, backbone, process_from_json(dict(spec.process)), IdentityCodec(spec.shape))


def without_augmentation(model: DiffusionModel) -> DiffusionModel:
    """The model without its layer for geometric changes: the same predictions for images as they are.

    A copy; `model` itself where there is no such layer.
    """
    if model.backbone.augmentation is None:
        return model
    spec = replace(model.spec, config={k: v for k, v in model.spec.config.items() if k != "augment"})
    backbone = copy.deepcopy(model.backbone)
    backbone.augmentation = None
    return DiffusionModel(spec, backbone, model.process, model.codec).train(model.training)


def load_model(folder: Path, *, device: torch.device | str = "cpu", guide: bool = True) -> DiffusionModel:
    """Loads a folder that `DiffusionModel.save` wrote; in eval mode.

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
    load_weights(model, folder / "model.safetensors")
    if guided and guide:
        from imbdiff.diffusion.encoder import load_guide

        model.guide = load_guide(folder)
    if weak is not None:
        load_weights(weak, folder / "weak.safetensors")
        model.keep_weak(weak.to(device))
    return model.to(device).eval()


def save_weights(model: DiffusionModel, path: Path) -> None:
    """Writes the network's weights as safetensors; whole or not at all."""
    from safetensors.torch import save_file

    with atomic(path) as aside:
        save_file({k: v.detach().cpu().contiguous() for k, v in model.backbone.state_dict().items()}, aside)


def load_weights(model: DiffusionModel, path: Path) -> None:
    """Loads safetensors weights into `model`, naming every tensor that does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist", "give the folder of a saved model") from error
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {error}", "restore it, or train again") from error
    wrong = misfits(state, model.backbone.state_dict())
    if wrong:
        raise RunError(
            f"the weights in {path} do not fit this model:\n{listing(wrong, 8)}",
            "start from a model with the same backbone, image shape and number of classes",
        )
    model.backbone.load_state_dict(state)


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
    """A hash of the weights in a folder that `DiffusionModel.save` wrote, with those of a guide and a weak model."""
    parts = [Path(folder) / f"{name}.safetensors" for name in ("model", "guide", "weak")]
    found = [sha256_file(path) for path in parts if path.exists()]
    return found[0] if len(found) == 1 else digest(found)


def spec_from_folder(folder: Path) -> dict[str, Any]:
    """The description of a saved model, without its weights."""
    return read_json(Path(folder) / "model.json")
