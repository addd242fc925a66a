"""Trained models as diffusers folders, and back.

`to_diffusers` writes an ordinary ``model_index.json`` folder. The class vectors go into the network's own
``class_embedding`` table of C + 1 rows, the last one zero ("no class"), so that ``unet/`` is a plain class-conditional
`UNet2DModel` (or `DiTTransformer2DModel`) and ``scheduler/`` a plain scheduler. The whole folder loads without this
package too: the pipeline itself stands in it, as ``pipeline.py``, with a model card.

    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    images = pipe(class_labels=[7, 7, 9], guidance_scale=1.8, num_inference_steps=20).images

`from_diffusers` reads such a folder, or one that diffusers' training scripts wrote, into a `DiffusionModel`.
"""

from __future__ import annotations

import copy
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import Tensor

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.backbones import DiTBackbone, UNetBackbone
from imbdiff.diffusion.codec import Codec, IdentityCodec
from imbdiff.diffusion.codecs.autoencoder import AutoencoderCodec, open_autoencoder
from imbdiff.diffusion.codecs.patch import PatchCodec
from imbdiff.diffusion.model import DiffusionModel, ModelSpec, from_spec
from imbdiff.diffusion.process import DDPM, Process
from imbdiff.diffusion.schedulers import make_scheduler, process_of
from imbdiff.integrations.guided import ImbalancedDiffusionPipeline, num_labels, pair
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import atomic, read_json

#: arguments of diffusers' networks that follow from a model's shape and number of classes
DERIVED = ("sample_size", "in_channels", "out_channels", "class_embed_type", "num_class_embeds", "num_embeds_ada_norm")
#: parts of a pipeline without which its network gives no images, and what they make of the model
UNREAD = {
    "vqvae": "its network makes latents, which that part decodes to images",
    "text_encoder": "its network takes prompts, not classes",
}
#: options of `UNet2DModel` that `UNetBackbone` does not have: only these values are understood
UNET_DEFAULTS = {"center_input_sample": False, "time_embedding_type": "positional", "time_embedding_dim": None}


def scheduler_for(process: Process, sampler: str | None = None, bound: float | None = 1.0) -> Any:
    """A diffusers scheduler of `process` whose configuration names its schedule, as diffusers' own do.

    Args:
        sampler: a name in `schedulers.SAMPLERS`; "dpm++" by default.
        bound: of the model's codec.
    """
    scheduler = make_scheduler(sampler or "dpm++", process, 20, bound)
    if isinstance(process, DDPM) and process == DDPM(process.schedule, process.prediction):
        named: dict[str, Any] = {"trained_betas": None, "beta_schedule": "squaredcos_cap_v2"}
        if process.schedule == "linear":
            named |= {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
        scheduler = type(scheduler).from_config(scheduler.config, **named)
    return scheduler


def plain_network(model: DiffusionModel) -> Any:
    """A copy of the model's network as a plain class-conditional diffusers network, with C + 1 class embeddings."""
    backbone = model.backbone
    if isinstance(backbone, DiTBackbone):
        return _build(type(backbone.net), _options(backbone.net.config), backbone.net.state_dict())
    if type(backbone) is not UNetBackbone:
        raise ConfigError(
            f"diffusers has no network like {type(backbone).__name__}", "use a U-Net (unet-8, unet-16, ...) or a DiT"
        )
    options = _options(backbone.net.config) | {"class_embed_type": None, "num_class_embeds": model.num_classes + 1}
    table = backbone.conditioner.state_dict()["table"]
    state = dict(backbone.net.state_dict())
    state["class_embedding.weight"] = torch.cat([table, torch.zeros_like(table[:1])])
    return _build(UNet2DModel, options, state)


def _options(config: Any) -> dict[str, Any]:
    return {k: v for k, v in dict(config).items() if not k.startswith("_")}


def _build(kind: Any, options: dict[str, Any], state: dict[str, Tensor]) -> Any:
    with torch.random.fork_rng(devices=[]):
        net = kind(**options)
    net.load_state_dict({k: v.detach().cpu() for k, v in state.items()})
    return net.eval()


def to_pipeline(model: DiffusionModel, *, sampler: str | None = None) -> ImbalancedDiffusionPipeline:
    """A diffusers pipeline with a copy of the model's weights; see `to_diffusers`.

    A guide (DiffRC) has no place there: it is left out, with a warning.
    """
    if model.guide is not None:
        warnings.warn(
            "the guide of this model is not exported: diffusers samples without prototype guidance, which a model "
            "trained without labels needs to generate a class at all",
            stacklevel=2,
        )
    if isinstance(model.process, DDPM) and model.process.num_steps != 1000:
        raise ConfigError(
            f"diffusers' networks count time in training steps; this model has {model.process.num_steps}, not 1,000"
        )
    stats, codec = model.spec.stats, model.codec
    decoding: dict[str, Any] = {}
    if isinstance(codec, PatchCodec):
        weight = codec.basis * codec.std
        decoding["patches"] = {"factor": codec.factor, "weight": weight.tolist(), "bias": codec.mean.tolist()}
    elif isinstance(codec, AutoencoderCodec):
        decoding["vae"] = copy.deepcopy(codec.autoencoder())
        decoding["latents"] = {
            "factor": codec.factor, "channels": codec.image[0], "mean": list(codec.mean), "std": list(codec.std)
        }  # fmt: skip
    return ImbalancedDiffusionPipeline(
        unet=plain_network(model),
        scheduler=scheduler_for(model.process, sampler, model.codec.bound),
        image_size=list(model.spec.shape[1:]),
        class_names=list(stats.names),
        class_counts=list(stats.counts),
        **decoding,
    )


def new_folder(folder: str | Path) -> Path:
    """A folder to export into.

    Raises:
        RunError: it exists and is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists already", "choose a new folder")
    return folder


def to_diffusers(model: DiffusionModel, folder: str | Path, *, sampler: str | None = None) -> None:
    """Writes `model` as a diffusers pipeline folder, whole or not at all.

    Args:
        sampler: which scheduler to write; "dpm++" by default.

    Raises:
        RunError: `folder` exists and is not empty.
        ConfigError: diffusers has no such network.
    """
    folder = new_folder(folder)
    pipe = to_pipeline(model, sampler=sampler)
    with atomic(folder) as aside:
        pipe.save_pretrained(aside, safe_serialization=True)


def from_diffusers(
    folder: str | Path, *, stats: ClassStats | None = None, process: Process | None = None
) -> DiffusionModel:
    """Reads a diffusers folder, to sample from or to start training from; in eval mode.

    The folder is one that `to_diffusers` wrote, another pipeline's with ``unet/`` or ``transformer/``, ``scheduler/``
    and for latents ``vae/`` (as facebook/DiT-XL-2-256 is laid out; a learned variance is read and not used), or that of
    a `UNet2DModel` alone. Its class embeddings become the conditioner's, which has the zero vector for the null label:

    - C + 1 embeddings: the last is the null label's. If it is not zero, it is subtracted from all and added to the bias
      of the time embedding, to which they are added: the same network up to rounding.
    - C embeddings: the null label, which the network was not trained with, is the zero vector.

    Args:
        stats: class statistics; needed where the folder does not hold them. Their order is that of the embeddings.
        process: needed where the folder holds no scheduler.

    Raises:
        RunError: no such network in the folder, or a number of classes that does not fit.
        ConfigError: a network or noise schedule that this package does not have, `stats` or `process` missing, or a
            model of latents or of prompts.
    """
    folder = Path(folder)
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
    for part, what in UNREAD.items():
        if index.get(part) or (folder / part).exists():
            raise ConfigError(
                f"{folder} has a {part}: {what}, which cannot be read yet",
                "give a model of pixels whose condition is the class, with unet or transformer, and scheduler, alone",
            )
    home = next((folder / n for n in ("unet", "transformer") if (folder / n / "config.json").exists()), folder)
    if not (home / "config.json").exists():
        raise RunError(f"{folder} holds no diffusers model", "give a folder with model_index.json or config.json")
    if process is None:
        path = folder / "scheduler" / "scheduler_config.json"
        if not path.exists():
            raise ConfigError(f"{folder} holds no scheduler", "give the process that the network was trained with")
        process = process_of(read_json(path))
    if stats is None:
        if not (index.get("class_names") and index.get("class_counts")):
            raise ConfigError(f"{folder} does not say how many training images each class had", "give class statistics")
        stats = ClassStats(tuple(index["class_names"]), tuple(index["class_counts"]))
    net = _load_network(home)
    rows = num_labels(net)
    if rows not in (stats.num_classes, stats.num_classes + 1):
        raise RunError(
            f"the network in {home} has {rows} class embeddings for {stats.num_classes} classes",
            "give a network with one per class, or one more for 'no class'",
        )
    own = index.get("latents")  # of a folder that `to_diffusers` wrote
    size = [side // own["factor"] for side in index["image_size"]] if own else index.get("image_size")
    shape = (net.config.in_channels, *(size or pair(net.config.sample_size)))
    is_dit = isinstance(net, DiTTransformer2DModel)
    config = json.loads(json.dumps(_spec_config(net, is_dit)))
    codec: Codec = IdentityCodec(shape)
    if patches := index.get("patches"):
        weight, f = torch.tensor(patches["weight"]), int(patches["factor"])
        std, image = weight.norm(dim=0), (len(weight) // f**2, *shape[1:])
        codec = PatchCodec(image, f, torch.tensor(patches["bias"]), weight / std, std, 0.0)
    elif (folder / "vae").exists() or any(index.get("vae") or ()):
        codec = _codec(folder / "vae", shape, own)
    spec = ModelSpec("dit" if is_dit else "unet", config, codec.image, process.to_json(), stats, codec)
    model = from_spec(spec)
    try:
        if is_dit:
            model.backbone.net.load_state_dict(net.state_dict())  # type: ignore[union-attr]
        else:
            _load_unet(model, net, rows)
    except RuntimeError as error:
        raise RunError(f"the network in {home} does not fit its description: {error}") from error
    return model.eval()


def _codec(folder: Path, latent: tuple[int, int, int], own: dict[str, Any] | None) -> Codec:
    """The codec of a pipeline, in whose model space latents (c, h, w) are shifted and scaled as its VAE says, or `own`,
    see `ImbalancedDiffusionPipeline`."""
    if not (folder / "config.json").exists():
        raise RunError(f"the model makes latents, and {folder} is missing", "download the whole pipeline")
    config = read_json(folder / "config.json")
    channels = own["channels"] if own else config.get("out_channels", 3)
    factor = open_autoencoder(folder, (channels, 0, 0)).factor
    codec = open_autoencoder(folder, (channels, *(side * factor for side in latent[1:])))
    if codec.shape != latent:
        raise RunError(f"{folder} is for {codec.shape[0]} channels, the network for {latent[0]}", "give one that fits")
    if own:
        return replace(codec, mean=tuple(own["mean"]), std=tuple(own["std"]))
    return codec.as_trained()


def _load_network(home: Path) -> Any:
    config = read_json(home / "config.json")
    name = config.get("_class_name")
    kinds = {"UNet2DModel": UNet2DModel, "DiTTransformer2DModel": DiTTransformer2DModel}
    if name not in kinds:
        raise ConfigError(f"{home} holds a {name}", f"this package reads {', '.join(kinds)}")
    other = {k: config[k] for k, v in UNET_DEFAULTS.items() if name == "UNet2DModel" and config.get(k, v) != v}
    if config.get("in_channels") != config.get("out_channels") and name == "UNet2DModel":
        other["out_channels"] = config.get("out_channels")
    if config.get("mid_block_type", "") is None or any("Skip" in str(b) for b in config.get("down_block_types", ())):
        other["blocks"] = "without a middle block, or with skip blocks"
    if other:
        raise ConfigError(f"the network in {home} has options that are not understood here: {other}")
    try:
        return kinds[name].from_pretrained(home, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RunError(
            f"the network in {home} cannot be loaded: {error}", "its weights must be a safetensors file that fits"
        ) from error


def _spec_config(net: Any, is_dit: bool) -> dict[str, Any]:
    drop = set(DERIVED) | (set() if is_dit else set(UNET_DEFAULTS))
    if is_dit and net.config.out_channels is not None:
        drop.remove("out_channels")
    return {k: v for k, v in _options(net.config).items() if k not in drop}


def _load_unet(model: DiffusionModel, net: UNet2DModel, rows: int) -> None:
    state = dict(net.state_dict())
    table = state.pop("class_embedding.weight")
    if rows == model.num_classes + 1:
        table, null = table[:-1], table[-1]
        if bool(null.any()):
            table = table - null
            state["time_embedding.linear_2.bias"] = state["time_embedding.linear_2.bias"] + null
    model.backbone.net.load_state_dict(state)  # type: ignore[union-attr]
    model.backbone.conditioner.load_state_dict({"table": table})
