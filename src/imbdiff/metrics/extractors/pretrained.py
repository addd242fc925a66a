"""Pretrained backbones of timm and Hugging Face transformers. The packages are extras, imported when used.

All see the image in one way: grey repeated to RGB, a bilinear resize with antialiasing to the size the model was made
for (no cropping: the border counts in a generated image), then the model's own mean and standard deviation. Libraries
differ in interpolation and cropping, so a number made here is comparable with others made here.

Their features come from other images: for ranking only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from imbdiff.metrics.extractors.base import Extractor, as_tensor, check_rgb, hash_weights, to_rgb
from imbdiff.metrics.extractors.weights import offline
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.tables import optional

# what needs a library that is not there, and what else there is
WHAT, OTHERWISE = "this extractor", "use hf:FOLDER"


class Backbone(Extractor):
    """Features of a pretrained image network.

    Args:
        network: kept in evaluation mode.
        name: for ``FD[name]``.
        size: (height, width) that images are resized to.
        mean, std: per channel, of pixels in [0, 1].
        call: (network, (B, 3, h, w) normalised) -> (B, D) features.
        trained_on_note: a description of what it learned from.
    """

    role = "judge"
    pretrained = True
    max_batch = 128

    def __init__(
        self,
        network: nn.Module,
        name: str,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        call: Callable[[Any, Tensor], Tensor] = lambda network, x: network(x),
        trained_on_note: str = "not known",
        device: str | torch.device = "cpu",
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.name, self.size, self.mean, self.std, self._call = name, size, tuple(mean), tuple(std), call
        self.device, self.trained_on_note = torch.device(device), trained_on_note
        figures = "; ".join(f"{k} {', '.join(f'{v:.4g}' for v in x)}" for k, x in (("mean", mean), ("std", std)))
        self.preprocessing = (
            f"grey repeated to RGB; pixels / 255; bilinear resize with antialias to {size[0]} x {size[1]}; {figures}"
        )
        values = network.state_dict().values()
        self.fingerprint = hash_weights(f"backbone {name} {self.preprocessing} {self.mean} {self.std}", values)
        with torch.no_grad():
            shape = self._call(self.network, torch.zeros((1, 3, *size), device=self.device)).shape
        if len(shape) != 2:
            raise ConfigError(f"{name} gives features of shape {tuple(shape)}, not (B, D)", "choose another model")
        self.dim = int(shape[1])

    def check(self, shape: tuple[int, ...]) -> None:
        check_rgb(self.name, shape)

    def _batch(self, x: np.ndarray) -> np.ndarray:
        self.network.eval()
        h = to_rgb(as_tensor(x, self.device))
        if tuple(h.shape[2:]) != self.size:
            h = functional.interpolate(h, self.size, mode="bilinear", align_corners=False, antialias=True)
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=h.device).view(1, -1, 1, 1) for v in (self.mean, self.std)
        )
        return self._call(self.network, (h / 255 - mean) / std).float().cpu().numpy()


def timm_backbone(name: str, *, device: str | torch.device = "cpu") -> Backbone:
    """A timm model without its head, with the weights that timm distributes, from the cache or the network.

    Args:
        name: as timm calls it, such as "resnet50.a1_in1k".

    Raises:
        ConfigError: timm is not installed, knows no such model, or its weights are neither here nor within reach.
    """
    timm = optional("timm", "timm", WHAT, OTHERWISE)
    try:
        network = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # of timm, of the hub, or of the network: many types
        raise ConfigError(
            f"timm cannot make {name!r} with its weights: {_first_line(error)}",
            "see timm.list_models(pretrained=True); without network copy the cache of a machine that has it, or use "
            "hf:FOLDER",
        ) from error
    cfg = timm.data.resolve_model_data_config(network)
    size = (cfg["input_size"][1], cfg["input_size"][2])
    tag = name.partition(".")[2]
    note = f"as the name of the weights says: {tag}" if tag else "not known"
    return Backbone(network, f"timm:{name}", size, cfg["mean"], cfg["std"], trained_on_note=note, device=device)


def hf_backbone(source: str, *, device: str | torch.device = "cpu") -> Backbone:
    """The image tower of a transformers model: its pooled output, or the mean of its last states where it has none.

    Only safetensors are read and no code of the repository is run. The size, mean and standard deviation come from
    ``preprocessor_config.json``.

    Args:
        source: a folder with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors``, or the name of a
            repository such as "facebook/dinov2-small".

    Raises:
        ConfigError: transformers is not installed, or there is no such model here or within reach.
    """
    transformers = optional("transformers", "hf", WHAT, OTHERWISE)
    hub = optional("huggingface_hub", "hf", WHAT, OTHERWISE)
    config = "preprocessor_config.json"
    try:
        own = {"local_files_only": offline()}
        path = Path(source) / config if Path(source).is_dir() else Path(hub.hf_hub_download(source, config, **own))
        size, mean, std = _preprocessing(json.loads(path.read_text(encoding="utf-8")))
        model = transformers.AutoModel.from_pretrained(source, use_safetensors=True, trust_remote_code=False, **own)
    except ImportError as error:
        raise ConfigError(
            f"transformers cannot make the model of {source}: {_first_line(error)}",
            "remove a torchvision that does not import, or install the one built for this torch",
        ) from error
    except Exception as error:  # of transformers, of the hub, of the network, of a file that is not what it should be
        raise ConfigError(
            f"{source} is no model of transformers here: {type(error).__name__}: {_first_line(error)}",
            "it needs config.json, model.safetensors, and preprocessor_config.json with size (or crop_size), "
            "image_mean and image_std; without network give a folder with them: hf:FOLDER",
        ) from error
    # CLIP and its like have a text tower too
    tower = getattr(model, "vision_model", model)
    name = f"hf:{Path(source).resolve().name if Path(source).is_dir() else source}"
    return Backbone(tower, name, size, mean, std, call=_hf_features, device=device)


def _hf_features(network: Any, x: Tensor) -> Tensor:
    out = network(pixel_values=x)
    pooled = getattr(out, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    last = out.last_hidden_state
    return last.flatten(2).mean(2) if last.ndim == 4 else last.mean(1)


def _preprocessing(settings: dict[str, Any]) -> tuple[tuple[int, int], list[float], list[float]]:
    """(height, width), mean and std that a preprocessor_config.json asks for."""
    size = settings.get("crop_size") or settings["size"]
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    height, width = (int(size.get(k) or size["shortest_edge"]) for k in ("height", "width"))
    mean, std = ([float(v) for v in settings[k]] for k in ("image_mean", "image_std"))
    return (height, width), mean, std


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
