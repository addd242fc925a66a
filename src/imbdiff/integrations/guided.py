"""`ImbalancedDiffusionPipeline`: images from networks and schedulers of diffusers.

Saved beside the weights as ``pipeline.py``, which loads where this package is not installed.
"""

# No `from __future__ import annotations` here: diffusers reads the types of `__init__` at run time.

import inspect
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    DiTTransformer2DModel,
    ImagePipelineOutput,
    SchedulerMixin,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn import functional as F

from imbdiff.diffusion.codecs.patch import from_patches
from imbdiff.diffusion.schedulers import align, start
from imbdiff.runtime.errors import ConfigError, ImbdiffError

CARD = """---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags: [class-conditional, long-tailed, imbalanced-diffusion]
---

# Class-conditional images of {classes} classes, {width} x {height}

Made by imbalanced-diffusion from long-tailed images: {network}, {process}, {scheduler}.

```python
from diffusers import DiffusionPipeline

# trust_remote_code: the pipeline is pipeline.py of this folder, {lines} lines that need torch and diffusers alone
pipe = DiffusionPipeline.from_pretrained("FOLDER OR NAME", trust_remote_code=True)
images = pipe(class_labels=[{example}], guidance_scale=1.5, num_inference_steps=20).images
```

`class_labels` are numbers or names of the table. Label {null} is "no class": classifier-free guidance compares with it,
`guidance_scale` 1 is none. `unet` and `scheduler` are plain diffusers: `unet(x, t, class_labels=labels)`.

## Classes

Rare classes were learnt from few images: look at theirs before you use them, and for copies of the training images.
{rows}
## Not said here

Licence, origin and permissions of the training images, and measured quality: fill them in before you publish. The page
of the run (`report.html`) has the measurements.
"""


class ImbalancedDiffusionPipeline(DiffusionPipeline):
    """Class-conditional images with classifier-free guidance, of networks on pixels, patches of pixels or latents.

    Args:
        unet: a network with C + 1 class embeddings, the last for "no class"; called as ``unet(x, t, class_labels)``.
        scheduler: any diffusers scheduler for its process.
        image_size: [height, width] of the images; the network's own size by default. Where it is smaller, inputs are
            padded at the right and bottom by repeating the border.
        class_names, class_counts: of the training labels, in label order.
        patches: of a network on patches: their "factor", and "weight" and "bias" of `from_patches`.
        vae: of a network on latents: their autoencoder.
        latents: "factor", pixels of a side per latent, "channels" of the images, and "mean" and "std" of each channel
            of the latents.
    """

    model_cpu_offload_seq = "unet->vae"
    _optional_components: ClassVar[list] = ["vae"]

    def __init__(
        self,
        unet: UNet2DModel | DiTTransformer2DModel,
        scheduler: SchedulerMixin,
        image_size: list | None = None,
        class_names: list | None = None,
        class_counts: list | None = None,
        patches: dict | None = None,
        vae: AutoencoderKL | AutoencoderTiny | AutoencoderDC | None = None,
        latents: dict | None = None,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae)
        self.register_to_config(
            image_size=image_size, class_names=class_names, class_counts=class_counts, patches=patches, latents=latents
        )

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As diffusers reads it; the class named there is this one, so that no code is loaded from the folder."""
        config = super().load_config(*args, **kwargs)
        if isinstance(config, dict):
            config["_class_name"] = cls.__name__
        return config

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As diffusers writes it, with pipeline.py for ``DiffusionPipeline.from_pretrained``, and a model card."""
        super().save_pretrained(save_directory, *args, **kwargs)
        index = Path(save_directory) / "model_index.json"
        # where diffusers looks for a class of its own it finds this one in the file of that name
        named = json.loads(index.read_text("utf-8")) | {"_class_name": ["pipeline", type(self).__name__]}
        index.write_text(json.dumps(named, indent=2) + "\n", "utf-8")
        (index.parent / "pipeline.py").write_text(own_code(), "utf-8")
        (index.parent / "README.md").write_text(self.model_card(), "utf-8")

    def model_card(self) -> str:
        """What README.md of a saved folder says: how to use it, its classes (at most 100) and what is not known."""
        names, counts = self.config.class_names or [], self.config.class_counts or []
        size = self.config.image_size or pair(self.unet.config.sample_size)
        rows = [f"| {i} | {cell(name)} | {n} |" for i, (name, n) in enumerate(zip(names, counts, strict=True))]
        if rows:
            more = [f"{len(rows) - 100} further classes stand in model_index.json.", ""] if len(rows) > 100 else []
            rows = ["", "| label | class | training images |", "|---|---|---|", *rows[:100], "", *more]
        config = described(self.scheduler)
        return CARD.format(
            classes=self.null_label,
            height=size[0],
            width=size[1],
            network=type(self.unet).__name__,
            process="flow" if is_flow(config) else config.get("prediction_type", "epsilon"),
            scheduler=config["_class_name"],
            lines=len(own_code().splitlines()),
            example=", ".join(map(str, range(min(3, self.null_label)))),
            null=self.null_label,
            rows="\n".join(rows),
        )

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **options: Any
    ) -> str:
        """Uploads what `save_pretrained` writes, model card included, to the Hugging Face hub.

        Args:
            options: of ``huggingface_hub.upload_folder``, such as commit_message or create_pr.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: the hub cannot be reached, or does not let you write there.
        """
        from huggingface_hub import create_repo, upload_folder
        from huggingface_hub.errors import HFValidationError

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            try:
                made = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
                return str(upload_folder(repo_id=made, folder_path=folder, token=token, **options))
            except HFValidationError as error:
                raise ConfigError(f"{repo_id!r} is no name on the hub: {error}", "give USER/NAME") from error
            except Exception as error:  # of the network, in the types of whatever library huggingface_hub uses for it
                raise ConfigError(
                    f"nothing was uploaded to {repo_id}: {type(error).__name__}: {error}",
                    "check the network and `hf auth login`; or write a folder by save_pretrained and upload it later, "
                    f"from a machine that has both: hf upload {repo_id} FOLDER",
                ) from error

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
        class_labels: Sequence[int | str] | int | str,
        guidance_scale: float = 1.0,
        num_inference_steps: int = 20,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Samples one image per label.

        Args:
            class_labels: in [0, C), or names of classes; C is "no class".
            guidance_scale: w of w p_c + (1 - w) p_u, which is 1 + omega elsewhere in this package; 1 is no guidance.
            num_inference_steps: number of steps.
            generator: one, or one per image.
            output_type: "pil", "np" (N, H, W, c) float32 in [0, 1], or "pt" (N, c, H, W) likewise.

        Raises:
            ConfigError: labels out of range, or an unknown output type.
        """
        given = [class_labels] if isinstance(class_labels, int | str) else class_labels
        numbers = {name: k for k, name in enumerate(self.config.class_names or [])}
        unknown = [k for k in given if isinstance(k, str) and k not in numbers]
        if unknown:
            raise ConfigError(
                f"there are no classes {unknown[:20]}", f"give some of {', '.join(numbers)[:500] or 'none'}"
            )
        labels = [numbers[k] if isinstance(k, str) else int(k) for k in given]
        bad = [k for k in labels if not 0 <= k <= self.null_label]
        if bad or not labels:
            raise ConfigError(f"class_labels {bad[:20]} are out of range", f"give some of 0..{self.null_label}")
        if output_type not in ("pil", "np", "pt"):
            raise ConfigError(f"unknown output_type {output_type!r}", "use pil, np or pt")
        device = self._execution_device
        y = torch.tensor(labels, device=device)
        size, patches, latents = self.config.image_size, self.config.patches, self.config.latents
        if latents or patches:
            size = [-(-side // (latents or patches)["factor"]) for side in size]
        size = size or pair(self.unet.config.sample_size)
        shape = (len(labels), self.unet.config.in_channels, *size)
        x = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        start(self.scheduler, num_inference_steps)
        x = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        draws_noise = "generator" in self.scheduler.step.__code__.co_varnames
        options: dict[str, Any] = {"generator": generator} if draws_noise else {}
        times = self.scheduler.timesteps.float()
        if is_flow(described(self.scheduler)):  # its multistep solvers cut timesteps to integers
            times = self.scheduler.sigmas[: len(times)].float() * 1000
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
        if patches:
            weight, bias = (torch.tensor(patches[name], device=device) for name in ("weight", "bias"))
            x = from_patches(x.float(), weight, bias, patches["factor"], self.config.image_size)
        if latents:
            mean, std = (torch.tensor(latents[name], device=device).reshape(1, -1, 1, 1) for name in ("mean", "std"))
            z = (x.float() * std + mean).to(self.vae.dtype)
            x = torch.cat([self.vae.decode(row[None], return_dict=False)[0] for row in z]).float()
            if latents["channels"] == 1:
                x = x.mean(1, keepdim=True)
        images: Any = (x.float() / 2 + 0.5).clamp(0, 1).cpu()
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def own_code() -> str:
    """This file as one that needs diffusers alone: what it imports from this package stands in it."""
    used = "\n\n".join(inspect.getsource(one) for one in (ImbdiffError, ConfigError, align, start, from_patches))
    return re.sub(r"(?:^from imbdiff\..*\n)+", lambda _: f"\n{used}\n", Path(__file__).read_text("utf-8"), flags=re.M)


def cell(text: Any) -> str:
    """A class name as a cell of a Markdown table."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(str(text).split()))


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
