"""Backbones: the networks, as ``backbone(x_t, time, cond, taps) -> (prediction, taps)``.

The networks are diffusers' `UNet2DModel` and `DiTTransformer2DModel`, untouched, so that what is
trained here loads there. The forward passes are written out over their sub-modules for two reasons: intermediate
features ("taps") come back as values and not through hooks, and a request for taps alone stops where the taps are.

A tap is a layer, or a role that every backbone maps to a layer of its own: ``mid``, the features that contrasts use
(CCUA's transformer takes block 3 of 12), and ``quarter``, those of the dispersive loss (its paper takes block 2 of 12).

=========== ======================================= ================================= ============ ==================
backbone    layer                                   shape                             ``mid``      ``quarter``
=========== ======================================= ================================= ============ ==================
U-Net       ``mid``: after the middle block         (B, c, h / 2^(L-1), w / 2^(L-1))  mid          mid
DiT         ``block3``: after block 3 of L, from 0  (B, tokens, width)                block L//4   block L//4 - 1, or 0
MLP         ``mid``: hidden layer                   (B, width)                        mid          mid
=========== ======================================= ================================= ============ ==================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbdiff.diffusion.backbone import (
    AugmentationConditioner,
    Backbone,
    NoCondition,
    Taps,
    VectorConditioner,
)
from imbdiff.diffusion.prompted import PROMPTED
from imbdiff.runtime.errors import ConfigError


def _grown(x: Tensor, pad: tuple[int, int]) -> Tensor:
    """x with its border repeated at the right and at the bottom, by so many columns and rows."""
    return F.pad(x, (0, pad[0], 0, pad[1]), mode="replicate") if any(pad) else x


class UNetBackbone(Backbone):
    """diffusers' `UNet2DModel`; the condition is added to the time embedding (``class_embed_type="identity"``).

    Sides that the down-sampling does not divide are padded at the right and bottom by repeating the border, and the
    prediction is cropped.

    Args:
        shape: (c, h, w) of one input.
        num_classes: C.
        config: keyword arguments of `UNet2DModel`; ``augment=True`` among them adds a layer for geometric changes.
    """

    tap_names = ("mid",)
    roles = MappingProxyType({"mid": "mid", "quarter": "mid"})

    def __init__(self, shape: tuple[int, int, int], num_classes: int, config: dict[str, Any]) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel

        config = dict(config)
        augment = config.pop("augment", False)
        channels, height, width = shape
        stride = 2 ** (len(config["block_out_channels"]) - 1)
        self.pad = (-width % stride, -height % stride)
        self.shape = shape
        self.num_classes = num_classes
        size = (height + self.pad[1], width + self.pad[0])
        self.net = UNet2DModel(
            sample_size=size, in_channels=channels, out_channels=channels, class_embed_type="identity", **config
        )
        dim = config["block_out_channels"][0] * 4
        self.conditioner = VectorConditioner(num_classes, dim)
        if augment:  # last, so that the other weights are drawn as without it
            self.augmentation = AugmentationConditioner(dim)

    def forward(
        self,
        x_t: Tensor,
        time: Tensor,
        labels: Tensor,
        taps: Sequence[str] = (),
        predict_rows: int | None = None,
        augment: Tensor | None = None,
    ) -> tuple[Tensor, Taps]:
        self.check_taps(taps)
        net, n = self.net, len(x_t) if predict_rows is None else predict_rows
        x = self._enter(x_t)
        height, width = x.shape[-2:]
        h = _grown(x, self.pad)
        emb = net.time_embedding(net.time_proj(time).to(x_t.dtype)) + self.conditioner(labels).to(x_t.dtype)
        emb = self.add_augmentation(emb, augment)
        h = net.conv_in(h)
        skips = [h]
        for block in net.down_blocks:
            h, outputs = block(hidden_states=h, temb=emb)
            skips.extend(outputs)
        h = net.mid_block(h, emb)
        found: Taps = dict.fromkeys(taps, h)
        if n == 0:
            return x_t[:0], found
        if n < len(h):
            h, emb, skips = h[:n], emb[:n], [skip[:n] for skip in skips]
        for block in net.up_blocks:
            used = len(block.resnets)
            h = block(h, tuple(skips[-used:]), emb)
            skips = skips[:-used]
        h = net.conv_out(net.conv_act(net.conv_norm_out(h)))
        return self._leave(h[..., :height, :width], x_t), found

    def _enter(self, x: Tensor) -> Tensor:
        """What the network sees of (B, c, h, w)."""
        return x

    def _leave(self, prediction: Tensor, x: Tensor) -> Tensor:
        """The prediction as `x` is."""
        return prediction

    def cut_to_encoder(self) -> str:
        self.conditioner = NoCondition()
        self.net.up_blocks = nn.ModuleList()
        self.net.conv_norm_out = self.net.conv_out = None
        return "mid"

    def low_rank_layers(self) -> list[str]:
        return self._layers_in(nn.Conv2d, "net.up_blocks.")


class FoldedUNetBackbone(UNetBackbone):
    """The U-Net on squares of 2 x 2 pixels: (c, h, w) is seen as (4 c, h / 2, w / 2), and the prediction unfolded.

    At the same network a quarter of the positions: three to four times as fast on small images. It is no plain
    diffusers network: its pipeline is not exported.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, config: dict[str, Any]) -> None:
        channels, height, width = shape
        self.fold = (width % 2, height % 2)
        super().__init__((4 * channels, (height + 1) // 2, (width + 1) // 2), num_classes, config)
        self.shape = shape

    def _enter(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(_grown(x, self.fold), 2)

    def _leave(self, prediction: Tensor, x: Tensor) -> Tensor:
        return F.pixel_shuffle(prediction, 2)[..., : x.shape[-2], : x.shape[-1]]


class DiTBackbone(Backbone):
    """diffusers' `DiTTransformer2DModel` for square inputs.

    The network owns its label table and, in training mode, drops labels by itself, at random and independently in
    every block. That is switched off here: label dropout is drawn by the trainer, once per row, and is known to the
    objectives. Channels beyond c (learned variance) are split off.

    Every block embeds time and class by tables of its own (the papers' networks share one), so that there is no
    embedding of the whole network: the vector of a geometric change is added to all tokens, behind `pos_embed`.

    Args:
        shape: (c, h, h) of one input.
        num_classes: C.
        config: keyword arguments of `DiTTransformer2DModel`; ``augment=True`` among them adds a layer for
            geometric changes.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, config: dict[str, Any]) -> None:
        super().__init__()
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

        config = dict(config)
        augment = config.pop("augment", False)
        channels, height, width = shape
        if height != width or height % config.get("patch_size", 2):
            raise ConfigError(
                f"the DiT backbone needs squares whose side is a multiple of its patch size, not {height}x{width}",
                "choose a U-Net preset, or another --data.size",
            )
        self.shape = shape
        self.num_classes = num_classes
        self.net = DiTTransformer2DModel(
            in_channels=channels, sample_size=height, num_embeds_ada_norm=num_classes, **config
        )
        for block in self.net.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0
        depth = len(self.net.transformer_blocks)
        self.tap_names = tuple(f"block{i}" for i in range(depth))
        self.roles = {"mid": f"block{depth // 4}", "quarter": f"block{max(depth // 4 - 1, 0)}"}
        if augment:  # last, so that the other weights are drawn as without it
            self.augmentation = AugmentationConditioner(self.net.inner_dim)

    def forward(
        self,
        x_t: Tensor,
        time: Tensor,
        labels: Tensor,
        taps: Sequence[str] = (),
        predict_rows: int | None = None,
        augment: Tensor | None = None,
    ) -> tuple[Tensor, Taps]:
        self.check_taps(taps)
        net, n = self.net, len(x_t) if predict_rows is None else predict_rows
        ids = labels
        wanted = {tap: int(self.layer_of(tap).removeprefix("block")) for tap in taps}
        last = max(wanted.values(), default=-1)
        found: Taps = {}
        h = self.add_augmentation(net.pos_embed(x_t), augment)
        for i, block in enumerate(net.transformer_blocks):
            if i == last + 1 and n < len(h):
                h, time, ids = h[:n], time[:n], ids[:n]
                if n == 0:
                    return x_t[:0], found
            h = block(h, timestep=time, class_labels=ids)
            found.update({tap: h for tap, layer in wanted.items() if layer == i})
        h, time, ids = h[:n], time[:n], ids[:n]
        if n == 0:
            return x_t[:0], found
        emb = net.transformer_blocks[0].norm1.emb(time, ids, hidden_dtype=h.dtype)
        shift, scale = net.proj_out_1(F.silu(emb)).chunk(2, dim=1)
        h = net.proj_out_2(net.norm_out(h) * (1 + scale[:, None]) + shift[:, None])
        side, p = int(h.shape[1] ** 0.5), net.patch_size
        h = h.reshape(n, side, side, p, p, net.out_channels)
        h = torch.einsum("nhwpqc->nchpwq", h).reshape(n, net.out_channels, side * p, side * p)
        return h[:, : self.shape[0]], found

    def cut_to_encoder(self) -> str:
        net, depth = self.net, max(1, len(self.net.transformer_blocks) // 2)
        net.transformer_blocks = net.transformer_blocks[:depth]
        for block in net.transformer_blocks:
            block.norm1.emb.class_embedder = NoCondition()
        net.norm_out = net.proj_out_1 = net.proj_out_2 = None
        self.tap_names = self.tap_names[:depth]
        return self.tap_names[-1]

    def low_rank_layers(self) -> list[str]:
        depth = len(self.net.transformer_blocks)
        blocks = [f"net.transformer_blocks.{i}." for i in range(depth // 2, depth)]
        return self._layers_in(nn.Linear, *(block + place for block in blocks for place in ("attn1.", "ff.")))

    def class_tables(self) -> list[nn.Parameter]:
        return [block.norm1.emb.class_embedder.embedding_table.weight for block in self.net.transformer_blocks]


class MLPBackbone(Backbone):
    """A small fully connected network for low-dimensional worlds and tiny images: two hidden layers.

    Its products are too small to be shared between threads: on a busy machine two were twenty times slower than one.

    Args:
        config: ``width`` of the hidden layers; ``waves``: also give it sin and cos of pi / 2 2^k x, k = 0 .. waves - 1,
            for worlds with detail finer than about 0.1; ``stem``: how many more hidden layers, before the condition
            is added and the tap is taken. 0 of both is the plain network, with the same weights.
    """

    tap_names = ("mid",)
    roles = MappingProxyType({"mid": "mid", "quarter": "mid"})
    cpu_threads = 1

    def __init__(self, shape: tuple[int, int, int], num_classes: int, config: dict[str, Any]) -> None:
        super().__init__()
        width = int(config.get("width", 64))
        dim = shape[0] * shape[1] * shape[2]
        self.shape = shape
        self.num_classes = num_classes
        self.conditioner = VectorConditioner(num_classes, width)
        frequencies = torch.exp(torch.linspace(0, 7, 8)) * 0.001
        self.register_buffer("frequencies", frequencies, persistent=False)
        waves = int(config.get("waves", 0))
        self.register_buffer("waves", torch.pi / 2 * 2.0 ** torch.arange(waves), persistent=False)
        first = nn.Linear(dim * (1 + 2 * waves) + 16, width)
        stem = [layer for _ in range(int(config.get("stem", 0))) for layer in (nn.SiLU(), nn.Linear(width, width))]
        self.inner = nn.Sequential(first, *stem) if stem else first
        self.outer = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim))
        if config.get("augment"):
            self.augmentation = AugmentationConditioner(width)

    def forward(
        self,
        x_t: Tensor,
        time: Tensor,
        labels: Tensor,
        taps: Sequence[str] = (),
        predict_rows: int | None = None,
        augment: Tensor | None = None,
    ) -> tuple[Tensor, Taps]:
        self.check_taps(taps)
        n = len(x_t) if predict_rows is None else predict_rows
        assert isinstance(self.frequencies, Tensor)
        assert isinstance(self.waves, Tensor)
        angle = (time[:, None] * self.frequencies).to(x_t.dtype)
        x = x_t.flatten(1)
        phase = (x[:, :, None] * self.waves.to(x.dtype)).flatten(1)
        h = torch.cat([x, angle.sin(), angle.cos(), phase.sin(), phase.cos()], 1)
        h = self.add_augmentation(self.inner(h) + self.conditioner(labels).to(x_t.dtype), augment)
        return self.outer(h[:n]).reshape(n, *self.shape), dict.fromkeys(taps, h)

    def cut_to_encoder(self) -> str:
        self.conditioner, self.outer = NoCondition(), nn.Sequential()
        return "mid"

    def low_rank_layers(self) -> list[str]:
        return self._layers_in(nn.Linear, "outer.")


KINDS: dict[str, Callable[[tuple[int, int, int], int, dict[str, Any]], Backbone]] = {
    "unet": UNetBackbone,
    "folded-unet": FoldedUNetBackbone,
    "dit": DiTBackbone,
    "mlp": MLPBackbone,
    **PROMPTED,
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
    "unet-16-folded": (
        "folded-unet",
        _U16,
        "16 pixels on a CPU: unet-16 on squares of 2 x 2 pixels, four times as fast, 1.1 M parameters",
    ),
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
    "dit-tiny-4": (
        "dit",
        {**_dit(4, 128, 4), "patch_size": 4},
        "the same with patches of 4 x 4: a quarter of its time",
    ),
    "dit-s": ("dit", _S, "DiT-S/2, latents or square images, 35 M parameters"),
    "dit-b": ("dit", _B, "DiT-B/2, latents or square images, 138 M parameters"),
    "dit-l": ("dit", _L, "DiT-L/2, latents or square images, 487 M parameters"),
    "dit-xl": ("dit", _XL, "DiT-XL/2, latents or square images, 718 M parameters"),
    "sit-s": ("dit", _S, f"SiT-S/2: the network of dit-s, {_SIT}"),
    "sit-b": ("dit", _B, f"SiT-B/2: the network of dit-b, {_SIT}"),
    "sit-l": ("dit", _L, f"SiT-L/2: the network of dit-l, {_SIT}"),
    "sit-xl": ("dit", _XL, f"SiT-XL/2: the network of dit-xl, {_SIT}"),
    "mlp": ("mlp", {"width": 128}, "points and toy worlds"),
    "mlp-384": ("mlp", {"width": 384, "stem": 2}, "8-pixel images, a fortieth of unet-8's time, 0.5 M parameters"),
    "mlp-512": (
        "mlp",
        {"width": 512, "stem": 2},
        "8-pixel images, a fiftieth of unet-8's operations, 1.0 M parameters",
    ),
    "mlp-fine": ("mlp", {"width": 192, "waves": 5, "stem": 1}, "points whose density has detail finer than 0.1"),
}
