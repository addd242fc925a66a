"""Backbones: the networks, as ``backbone(x_t, time, cond, taps) -> (prediction, taps)``.

The networks are diffusers' `UNet2DModel` and `DiTTransformer2DModel`, untouched but for how dropout draws its coins, so
that what is trained here loads there. The forward passes are written out over their sub-modules for two reasons:
intermediate features ("taps") come back as values and not through hooks, and a request for taps alone stops where the
taps are.

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

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbdiff.diffusion.conditioner import AugmentationConditioner, LabelPassthrough, NoCondition, VectorConditioner
from imbdiff.diffusion.contract import Backbone, Taps
from imbdiff.diffusion.dropout import cheapen
from imbdiff.runtime.errors import ConfigError


class UNetBackbone(Backbone):
    """diffusers' `UNet2DModel`; the condition is added to the time embedding (``class_embed_type="identity"``).

    Sides that the down-sampling does not divide are padded at the right and bottom by repeating the border, and the
    prediction is cropped.

    Args:
        shape: (c, h, w) of one input.
        num_classes: C.
        config: keyword arguments of `UNet2DModel`; ``augment=True`` beside them: a layer for geometric changes.
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
        cheapen(self.net)
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
        height, width = x_t.shape[-2:]
        h = F.pad(x_t, (0, self.pad[0], 0, self.pad[1]), mode="replicate") if any(self.pad) else x_t
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
        return h[..., :height, :width], found

    def cut_to_encoder(self) -> str:
        self.conditioner = NoCondition(self.num_classes)
        self.net.up_blocks = nn.ModuleList()
        self.net.conv_norm_out = self.net.conv_out = None
        return "mid"

    def low_rank_layers(self) -> list[str]:
        return self._layers_in(nn.Conv2d, "net.up_blocks.")


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
        config: keyword arguments of `DiTTransformer2DModel`; ``augment=True`` beside them: a layer for geometric
            changes.
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
        self.conditioner = LabelPassthrough(num_classes)
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
        ids = self.conditioner(labels)
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
            block.norm1.emb.class_embedder = NoCondition(self.num_classes)
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
    """A small fully connected network for low-dimensional worlds and for tests: two hidden layers.

    Args:
        config: ``width`` of the hidden layers; ``waves``: also give it sin and cos of pi / 2 2^k x, k = 0 .. waves - 1,
            for worlds with detail finer than about 0.1; ``stem``: so many more hidden layers, before the condition
            is added and the tap is taken. 0 of both is the plain network, with the same weights.
    """

    tap_names = ("mid",)
    roles = MappingProxyType({"mid": "mid", "quarter": "mid"})

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
        self.conditioner, self.outer = NoCondition(self.num_classes), nn.Sequential()
        return "mid"

    def low_rank_layers(self) -> list[str]:
        return self._layers_in(nn.Linear, "outer.")
