"""What fine-tuning a pretrained network takes in memory, from its description alone: shapes, no numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional

from imbdiff.diffusion.adapters import add_adapters
from imbdiff.diffusion.pretrained import Pretrained
from imbdiff.diffusion.prompted import PROMPTED

GIB = 2**30
#: of a GPU: its context, workspaces and fragments
OVERHEAD = 1.0 * GIB
NAME = "scaled_dot_product_attention"
WIDTHS = ("joint_attention_dim", "caption_channels", "cross_attention_dim")
CARDS = (8, 12, 16, 24, 40, 80)


@dataclass(frozen=True)
class Bill:
    """Bytes, while training.

    Attributes:
        frozen: of the frozen weights.
        trained: numbers that are trained; each has a gradient, two moments of Adam and an average, in float32.
        image: activations that the backward pass needs of one image.
        rows: images in a pass.
    """

    frozen: int
    trained: int
    image: int
    rows: float

    @property
    def total(self) -> float:
        return self.frozen + self.trained * 20 + self.image * self.rows

    def text(self) -> str:
        """In a line, with the cards that it fits."""
        fits = [f"{card} GB" for card in CARDS if self.total + OVERHEAD < card * 1e9]
        frozen, trained, image = (n / GIB for n in (self.frozen, self.trained * 20, self.image))
        return (
            f"frozen weights {frozen:.2f} GiB, {self.trained:,} trained numbers {trained:.2f}, activations {image:.2f} "
            f"an image x {self.rows:g}: {self.total / GIB:.1f} GiB, and about {OVERHEAD / GIB:g} that a GPU takes for "
            f"itself: a card of {fits[0] if fits else 'more than 80 GB'} or more"
        )


def bill(pretrained: Pretrained, size: tuple[int, int], adapt: str, rank: int, half: bool, rows: float) -> Bill:
    """The bill of training on images of `size` (H, W), from what autograd keeps in a pass without numbers.

    Args:
        half: frozen weights and activations in bfloat16.
        rows: images in a pass.
    """
    import diffusers

    kind: Any = PROMPTED[pretrained.kind]
    backbone = kind.__new__(kind)
    torch.nn.Module.__init__(backbone)
    with torch.device("meta"):
        net = getattr(diffusers, pretrained.config["_class_name"]).from_config(dict(pretrained.config))
        frozen = sum(p.numel() for p in net.parameters())
        if adapt == "lora":
            add_adapters(net, rank, kind.layers)
        elif adapt == "tokens":  # which are nothing in size; what hangs on the prompt is kept
            net.requires_grad_(False)
        trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
        backbone.net, backbone.size = net, size
        kept: dict[int, int] = {}
        weights = {p.untyped_storage()._cdata for p in net.parameters()}

        def keep(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if not isinstance(x, torch.nn.Parameter) and storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), patch.object(functional, NAME, _attention):
            c, h, w = int(pretrained.vae["latent_channels"]), size[0] // pretrained.factor, size[1] // pretrained.factor
            out = backbone._call(torch.randn(1, c, h, w), torch.zeros(1), _given(pretrained, adapt == "tokens"))
        assert out is not None  # held until here, with its graph
    share = 2 if half else 4
    return Bill(0 if adapt == "full" else frozen * share, trained, sum(kept.values()) * share // 4, rows)


class _Attention(torch.autograd.Function):
    """What fused attention keeps: no matrix of all positions by all."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return torch.empty_like(q)


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return _Attention.apply(query, key, value)


def _given(pretrained: Pretrained, learned: bool = False) -> dict[str, Tensor]:
    """Rows of prompts of the usual lengths."""
    config = pretrained.config
    if pretrained.kind == "dit-tuned":
        return {"labels": torch.zeros(1, dtype=torch.int64)}
    length = {"sd": 77, "sd3": 333, "flux": 512, "pixart": 300 if "Sigma" in pretrained.pipeline else 120}[
        pretrained.kind
    ]
    width: Any = next(config[key] for key in WIDTHS if config.get(key))
    pooled = config.get("pooled_projection_dim")
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    given = {"embeds": torch.zeros(1, length, int(width)).requires_grad_(learned)}
    return given | ({"pooled": torch.zeros(1, pooled)} if pooled else {}) | {"mask": torch.ones(1, length)}
