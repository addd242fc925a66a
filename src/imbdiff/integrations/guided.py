"""`ImbalancedDiffusionPipeline`: images from networks and schedulers of diffusers."""

# No `from __future__ import annotations` here: diffusers reads the types of `__init__` at run time.

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from imbdiff.diffusion.process import DDPM, Flow
from imbdiff.diffusion.schedulers import process_times, start
from imbdiff.runtime.errors import ConfigError


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
        full_height, full_width = pair(self.unet.config.sample_size)
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
        """Samples one image per label.

        Args:
            class_labels: in [0, C); C is "no class".
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
        size = self.config.image_size or pair(self.unet.config.sample_size)
        shape = (len(labels), self.unet.config.in_channels, *size)
        x = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        start(self.scheduler, num_inference_steps)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        draws_noise = "generator" in self.scheduler.step.__code__.co_varnames
        options: dict[str, Any] = {"generator": generator} if draws_noise else {}
        process = Flow() if is_flow(described(self.scheduler)) else DDPM()
        times = process.model_time(process_times(self.scheduler, process))
        for timestep, time in self.progress_bar(list(zip(self.scheduler.timesteps, times, strict=True))):
            scale = getattr(self.scheduler, "scale_model_input", lambda x, _: x)
            model_input = scale(x, timestep)
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


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """A size as diffusers' configurations give it, as (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def num_labels(net: Any) -> int:
    """Rows of the network's class embedding: C + 1 where it has a null label."""
    if isinstance(net, DiTTransformer2DModel):
        return int(net.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings)
    return int(net.config.num_class_embeds or 0)


def described(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration with the name of its class, as diffusers writes it to a file."""
    return dict(scheduler.config) | {"_class_name": type(scheduler).__name__}


def is_flow(config: dict[str, Any]) -> bool:
    """Whether a diffusers scheduler configuration is one of flow matching."""
    return bool(config.get("use_flow_sigmas")) or str(config.get("_class_name", "")).startswith("FlowMatch")
