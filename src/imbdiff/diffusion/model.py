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
from imbdiff.diffusion.backbone import Backbone, Taps
from imbdiff.diffusion.backbones import BACKBONES, KINDS
from imbdiff.diffusion.codec import Codec, IdentityCodec
from imbdiff.diffusion.codecs import IDENTITY, codec_from_json
from imbdiff.diffusion.process import Process, process_from_json
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import seed_of
from imbdiff.runtime.tables import lookup


@dataclass(frozen=True)
class ModelSpec:
    """Everything that rebuilds a model apart from its weights.

    Attributes:
        kind, config: the backbone's kind, of `backbones.KINDS`, and its arguments.
        shape: (C, H, W) of the images.
        process: the process, as JSON.
        stats: class statistics of the training set; the model's labels are their order.
        codec: between images and model space; the identity by default.
    """

    kind: str
    config: Mapping[str, Any]
    shape: tuple[int, int, int]
    process: Mapping[str, Any]
    stats: ClassStats
    codec: Codec = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.codec is None:
            object.__setattr__(self, "codec", IdentityCodec(self.shape))

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "config": dict(self.config),
            "shape": list(self.shape),
            "process": dict(self.process),
            "stats": self.stats.to_json(),
            "codec": self.codec.to_json(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], folder: Path | None = None) -> ModelSpec:
        """What `to_json` gave; `folder` is that of the saved model, where its codec may have files."""
        shape = tuple(int(n) for n in value["shape"])
        if len(shape) != 3:
            raise ValueError(f"shape {shape} is not (C, H, W)")
        codec = codec_from_json(value.get("codec", IDENTITY), shape, folder)
        return cls(value["kind"], value["config"], shape, value["process"], ClassStats.from_json(value["stats"]), codec)


class DiffusionModel(nn.Module):
    """A class-conditional network on model space, its process and its codec.

    Calling it evaluates the network: ``model(x_t, t, labels, taps, predict_rows) -> (prediction, taps)``, with t as the
    process gives it, labels (B,) in [0, C] and C = `null` for "no class".

    Attributes:
        guide: the network that guides the sampling of this model, where its method trains one.
        weak: see `keep_weak`; None: none was kept.
    """

    weak: DiffusionModel | None

    def __init__(self, spec: ModelSpec, backbone: Backbone, process: Process) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.process = process
        self.codec = spec.codec
        self.guide: nn.Module | None = None
        self.keep_weak(None)

    @property
    def num_classes(self) -> int:
        return self.backbone.num_classes

    @property
    def cpu_threads(self) -> int | None:
        return self.backbone.cpu_threads

    def keep_weak(self, weak: DiffusionModel | None) -> None:
        """Takes `weak` as the earlier average of the same training, for autoguidance; its weights are fixed."""
        # past nn.Module, so that it is no part of the weights
        self.__dict__["weak"] = None if weak is None else weak.eval().requires_grad_(False)

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
        *,
        capacity: Tensor | None = None,
        **options: Tensor,
    ) -> tuple[Tensor, Taps]:
        """See `Backbone.forward`. `capacity` (B,) is for networks with a low-rank part that can be switched off."""
        if capacity is not None:
            raise ConfigError("this network has one capacity only", "use a method's own network for capacity='base'")
        return self.backbone(x_t, self.process.model_time(t), labels, taps, predict_rows, **options)

    @property
    def num_parameters(self) -> int:
        """Those that train; those of a guide or a weak model are not counted."""
        return sum(p.numel() for p in self.backbone.parameters() if p.requires_grad)


def build_model(
    backbone: str,
    process: Process,
    shape: tuple[int, int, int],
    stats: ClassStats,
    *,
    seed: int = 0,
    dropout: float | None = None,
    augment: bool = False,
    codec: Codec | None = None,
) -> DiffusionModel:
    """A new model with initial weights from `seed`; no global random state is read or left changed.

    Args:
        backbone: a name in `BACKBONES`.
        process: the noising process.
        shape: (C, H, W) of the images.
        stats: class statistics of the training labels.
        dropout: in place of the backbone's own.
        augment: with a layer for the vector of geometric changes of the images; the other weights are the same.
        codec: between images and model space; the identity by default.

    Raises:
        ConfigError: unknown backbone, or one that does not fit model space.
    """
    kind, config, _ = lookup("backbones", BACKBONES, backbone, kind=tuple)
    if dropout is not None and kind != "mlp":
        config = {**config, "dropout": dropout}
    if augment:
        config = {**config, "augment": True}
    return from_spec(ModelSpec(kind, config, shape, process.to_json(), stats, codec or IdentityCodec(shape)), seed=seed)


def from_spec(spec: ModelSpec, *, seed: int = 0) -> DiffusionModel:
    """The model that `spec` describes, freshly initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "init"))
        backbone = KINDS[spec.kind](spec.codec.shape, spec.stats.num_classes, dict(spec.config))
    return DiffusionModel(spec, backbone, process_from_json(dict(spec.process)))


def without_augmentation(model: DiffusionModel) -> DiffusionModel:
    """The model without its layer for geometric changes: the same predictions for images as they are.

    A copy; `model` itself where there is no such layer.
    """
    if model.backbone.augmentation is None:
        return model
    spec = replace(model.spec, config={k: v for k, v in model.spec.config.items() if k != "augment"})
    backbone = copy.deepcopy(model.backbone)
    backbone.augmentation = None
    return DiffusionModel(spec, backbone, model.process).train(model.training)


@torch.no_grad()
def forget_labels(model: DiffusionModel) -> DiffusionModel:
    """Makes every label mean "no class": in place, and returned.

    For models trained without labels, whose class vectors are still the random ones that they began with. Vectors that
    are added to the time embedding become zero; a DiT's become its null label's.

    Raises:
        ConfigError: the backbone does not say where its class vectors are.
    """
    for table in model.backbone.class_tables():
        c = model.num_classes
        if len(table) == c + 1:
            table[:c] = table[c:]
        else:
            table.zero_()
    return model
