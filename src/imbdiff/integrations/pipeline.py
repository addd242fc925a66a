"""Trained models as diffusers folders, and back.

`to_diffusers` writes an ordinary ``model_index.json`` folder. The class vectors go into the network's own
``class_embedding`` table of C + 1 rows, the last one zero ("no class"), so that ``unet/`` is a plain class-conditional
`UNet2DModel` (or `DiTTransformer2DModel`) and ``scheduler/`` a plain scheduler: both load without this package.

    pipe = ImbalancedDiffusionPipeline.from_pretrained(folder)
    images = pipe(class_labels=[7, 7, 9], guidance_scale=1.8, num_inference_steps=20).images

`from_diffusers` reads such a folder, or one that diffusers' training scripts wrote, into a `DiffusionModel`.
"""

# No `from __future__ import annotations` here: diffusers reads the types of `__init__` at run time.

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.backbones import DiTBackbone, UNetBackbone
from imbdiff.diffusion.model import DiffusionModel, ModelSpec, from_spec
from imbdiff.diffusion.process import DDPM, Flow, Process
from imbdiff.diffusion.schedulers import make_scheduler, process_times, start
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import atomic, read_json

#: arguments of diffusers' networks that follow from a model's shape and number of classes
DERIVED = ("sample_size", "in_channels", "out_channels", "class_embed_type", "num_class_embeds", "num_embeds_ada_norm")
#: options of `UNet2DModel` that `UNetBackbone` does not have: only these values are understood
UNET_DEFAULTS = {"center_input_sample": False, "time_embedding_type": "positional", "time_embedding_dim": None}


class ImbalancedDiffusionPipeline(DiffusionPipeline):
    """Class-conditional images in pixel space with classifier-free guidance.

    Args:
        unet: a network with C + 1 class embeddings, the last for "no class"; called as ``unet(x, t, class_labels)``.
        scheduler: any diffusers scheduler for its process.
        image_size: [height, width] of the images; the network's own size by default. Where it is smaller, inputs are
            padded at the right and bottom by repeating the border.
        class_names, class_counts: of the training labels, in label order.
    """

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: UNet2DModel | DiTTransformer2DModel,
        scheduler: SchedulerMixin,
        image_size: list | None = None,
        class_names: list | None = None,
        class_counts: list | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(image_size=image_size, class_names=class_names, class_counts=class_counts)

    @property
    def null_label(self) -> int:
        """The label of "no class", C."""
        return num_labels(self.unet) - 1

    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The network's prediction: x_t (B, c, h, w), t (B,) in [0, 1000), labels (B,) in [0, C] -> (B, c, h, w)."""
        height, width = x_t.shape[-2:]
        full_height, full_width = _pair(self.unet.config.sample_size)
        if (height, width) != (full_height, full_width):
            x_t = F.pad(x_t, (0, full_width - width, 0, full_height - height), mode="replicate")
        prediction = self.unet(x_t, t, class_labels=labels, return_dict=False)[0]
        return prediction[:, : x_t.shape[1], :height, :width]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int] | int,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Draws one image per label.

        Args:
            class_labels: in [0, C); C draws "no class".
            guidance_scale: w of w p_c + (1 - w) p_u, which is 1 + omega elsewhere in this package; 1 is no guidance.
            num_inference_steps: number of steps.
            generator: one, or one per image.
            output_type: "pil", "np" (N, H, W, c) float32 in [0, 1], or "pt" (N, c, H, W) likewise.

        Raises:
            ConfigError: labels out of range, or an unknown output type.
        """
        labels = [class_labels] if isinstance(class_labels, int) else [int(k) for k in class_labels]
        bad = [k for k in labels if not 0 <= k <= self.null_label]
        if bad or not labels:
            raise ConfigError(f"class_labels {bad[:20]} are out of range", f"give some of 0..{self.null_label}")
        if output_type not in ("pil", "np", "pt"):
            raise ConfigError(f"unknown output_type {output_type!r}", "use pil, np or pt")
        device = self._execution_device
        y = torch.tensor(labels, device=device)
        size = self.config.image_size or _pair(self.unet.config.sample_size)
        shape = (len(labels), self.unet.config.in_channels, *size)
        x = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        start(self.scheduler, num_inference_steps)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        options = self.prepare_extra_step_kwargs(generator)
        process = Flow() if is_flow(described(self.scheduler)) else DDPM()
        times = process.model_time(process_times(self.scheduler, process))
        for timestep, time in self.progress_bar(list(zip(self.scheduler.timesteps, times, strict=True))):
            model_input = self.scheduler.scale_model_input(x, timestep) if _scales(self.scheduler) else x
            t = time.to(device).expand(len(x))
            if guidance_scale == 1:
                prediction = self.predict(model_input, t, y)
            else:
                both = self.predict(
                    torch.cat([model_input] * 2), torch.cat([t, t]), torch.cat([y, torch.full_like(y, self.null_label)])
                )
                conditional, unconditional = both.chunk(2)
                prediction = conditional + (guidance_scale - 1) * (conditional - unconditional)
            x = self.scheduler.step(prediction, timestep, x, **options, return_dict=False)[0]
        images: Any = (x.float() / 2 + 0.5).clamp(0, 1).cpu()
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def prepare_extra_step_kwargs(self, generator: torch.Generator | list[torch.Generator] | None) -> dict[str, Any]:
        """The generator, for schedulers whose steps draw noise."""
        return {"generator": generator} if "generator" in self.scheduler.step.__code__.co_varnames else {}


def _scales(scheduler: Any) -> bool:
    return hasattr(scheduler, "scale_model_input")


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def num_labels(net: Any) -> int:
    """Rows of the network's class embedding: C + 1 where it has a null label."""
    if isinstance(net, DiTTransformer2DModel):
        return int(net.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings)
    return int(net.config.num_class_embeds or 0)


def scheduler_for(process: Process, sampler: str | None = None) -> Any:
    """A diffusers scheduler of `process` whose configuration names its schedule, as diffusers' own do.

    Args:
        sampler: a name in `schedulers.SAMPLERS`; "dpm++" by default.
    """
    scheduler = make_scheduler(sampler or "dpm++", process, 20)
    if isinstance(process, DDPM):
        named: dict[str, Any] = {"trained_betas": None, "beta_schedule": "squaredcos_cap_v2"}
        if process.schedule == "linear":
            named |= {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
        scheduler = type(scheduler).from_config(scheduler.config, **named)
    return scheduler


def described(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration with the name of its class, as diffusers writes it to a file."""
    return dict(scheduler.config) | {"_class_name": type(scheduler).__name__}


def is_flow(config: dict[str, Any]) -> bool:
    """Whether a diffusers scheduler configuration is one of flow matching."""
    return bool(config.get("use_flow_sigmas")) or str(config.get("_class_name", "")).startswith("FlowMatch")


def process_of(config: dict[str, Any]) -> Process:
    """The process that a diffusers scheduler configuration describes.

    Raises:
        ConfigError: a schedule that this package does not have.
    """
    steps = config.get("num_train_timesteps", 1000)
    remedy = "this package knows DDPM linear (1e-4 to 0.02) and cosine with 1,000 steps, predicting eps or v, and flow"
    if steps != 1000 or config.get("rescale_betas_zero_snr"):
        raise ConfigError(f"a process of {steps} steps, or with zero terminal SNR, cannot be read", remedy)
    if is_flow(config):
        return Flow()
    schedules = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
    schedule, prediction = config.get("beta_schedule", "linear"), config.get("prediction_type", "epsilon")
    ends = (config.get("beta_start", 1e-4), config.get("beta_end", 0.02))
    betas = config.get("trained_betas")
    if betas is not None:
        found = [DDPM(s, prediction) for s in ("linear", "cosine") if np.allclose(DDPM(s).betas, betas, rtol=1e-4)]
        if found:
            return found[0]
    elif schedule in schedules and (schedule != "linear" or np.allclose(ends, (1e-4, 0.02))):
        return DDPM(schedules[schedule], prediction)  # type: ignore[arg-type]
    raise ConfigError(f"the noise schedule {schedule!r} with betas {ends} cannot be read", remedy)


def plain_network(model: DiffusionModel) -> Any:
    """A copy of the model's network as a plain class-conditional diffusers network, with C + 1 class embeddings."""
    backbone = model.backbone
    if isinstance(backbone, DiTBackbone):
        return _build(type(backbone.net), _options(backbone.net.config), backbone.net.state_dict())
    if not isinstance(backbone, UNetBackbone):
        raise ConfigError(f"diffusers has no network like {type(backbone).__name__}", "use a U-Net or a DiT")
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
    """A diffusers pipeline with a copy of the model's weights; see `to_diffusers`."""
    if isinstance(model.process, DDPM) and model.process.num_steps != 1000:
        raise ConfigError(
            f"diffusers' networks count time in training steps; this model has {model.process.num_steps}, not 1,000"
        )
    stats = model.spec.stats
    return ImbalancedDiffusionPipeline(
        unet=plain_network(model),
        scheduler=scheduler_for(model.process, sampler),
        image_size=list(model.spec.shape[1:]),
        class_names=list(stats.names),
        class_counts=list(stats.counts),
    )


def to_diffusers(model: DiffusionModel, folder: Path, *, sampler: str | None = None) -> None:
    """Writes `model` as a diffusers pipeline folder, whole or not at all.

    Args:
        sampler: which scheduler to write; "dpm++" by default.

    Raises:
        RunError: `folder` exists and is not empty.
        ConfigError: diffusers has no such network.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists already", "choose a new folder")
    pipe = to_pipeline(model, sampler=sampler)
    with atomic(folder) as aside:
        pipe.save_pretrained(aside, safe_serialization=True)


def from_diffusers(folder: Path, *, stats: ClassStats | None = None, process: Process | None = None) -> DiffusionModel:
    """Reads a diffusers folder, to sample from or to start training from; in eval mode.

    The folder is one that `to_diffusers` wrote, another pipeline's with ``unet/`` and ``scheduler/``, or that of a
    `UNet2DModel` alone. Its class embeddings become the conditioner's, which has the zero vector for the null label:

    - C + 1 embeddings: the last is the null label's. If it is not zero, it is subtracted from all and added to the bias
      of the time embedding, to which they are added: the same network up to rounding.
    - C embeddings: the null label, which the network was not trained with, is the zero vector.

    Args:
        stats: class statistics; needed where the folder does not hold them. Their order is that of the embeddings.
        process: needed where the folder holds no scheduler.

    Raises:
        RunError: no such network in the folder, or a number of classes that does not fit.
        ConfigError: a network or noise schedule that this package does not have, or `stats` or `process` missing.
    """
    folder = Path(folder)
    index = read_json(folder / "model_index.json") if (folder / "model_index.json").exists() else {}
    home = next((folder / n for n in ("unet", "transformer") if (folder / n / "config.json").exists()), folder)
    if not (home / "config.json").exists():
        raise RunError(f"{folder} holds no diffusers model", "give a folder with model_index.json or config.json")
    if process is None:
        path = folder / "scheduler" / "scheduler_config.json"
        if not path.exists():
            raise ConfigError(f"{folder} holds no scheduler", "say with which process the network was trained")
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
    shape = (net.config.in_channels, *(index.get("image_size") or _pair(net.config.sample_size)))
    is_dit = isinstance(net, DiTTransformer2DModel)
    config = json.loads(json.dumps(_spec_config(net, is_dit)))
    spec = ModelSpec("dit" if is_dit else "unet", config, shape, process.to_json(), stats)
    model = from_spec(spec)
    with _fitting(home):
        if is_dit:
            model.backbone.net.load_state_dict(net.state_dict())  # type: ignore[union-attr]
        else:
            _load_unet(model, net, rows)
    return model.eval()


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


@contextlib.contextmanager
def _fitting(home: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(f"the network in {home} does not fit its description: {error}") from error
