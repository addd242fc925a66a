"""Backbones of pretrained text-to-image pipelines: diffusers' networks, called by class through a table of prompts.

======== ========================================= ========================================= ====================
kind     network                                   takes besides x_t, time and prompt        ``mid``
======== ========================================= ========================================= ====================
sd       UNet2DConditionModel (SD 1, 2, XL)        XL: pooled prompt, sizes in pixels        the middle block
sd3      SD3Transformer2DModel                     pooled prompt                             block L//4
flux     FluxTransformer2DModel                    pooled prompt, positions, guidance 1      block L//4
pixart   PixArtTransformer2DModel                  mask of the prompt                        block L//4
dit      DiTTransformer2DModel                     no prompt: a table of its own classes     block L//4
======== ========================================= ========================================= ====================

Objectives and guidance speak of labels; the null label's prompt is the empty one. The network's forward pass is
diffusers' own, with hooks for the length of a call where taps are asked for. Its weights come from the pipeline's
folder whenever a model is made, are compared with a fingerprint, and are shared by all models of a process and their
copies while frozen: a saved model holds what was trained, and the table.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from imbdiff.diffusion.adapters import add_adapters, is_half, sharing
from imbdiff.diffusion.backbone import Backbone, Taps
from imbdiff.diffusion.codecs.autoencoder import variant_of
from imbdiff.diffusion.pretrained import fingerprint_of, open_pretrained, quietly
from imbdiff.diffusion.tokens import TokenEncoder
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import read_json

_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_JOINT = (*_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class _Enough(Exception):
    """Ends a forward pass at the last tap."""


class PromptedBackbone(Backbone):
    """See the module.

    Args:
        shape: (c, h, w) of one input.
        num_classes: C.
        config: ``pretrained``, the folder or name of the pipeline; ``fingerprint`` of its network; ``table``, {name:
            [type, *shape of a row]}; ``adapt``, "lora" with ``rank``, "tokens" with ``text``, the fingerprint of the
            text encoder, or "full"; ``half``: frozen weights in bfloat16;
            ``checkpointing``: activations are computed again in the backward pass; ``size``, (H, W) in pixels.

    Raises:
        RunError: the pipeline is not there, cannot be loaded, or has other weights.
    """

    layers: ClassVar[tuple[str, ...]]
    compiles = False
    net: Any
    text: TokenEncoder

    def __init__(self, shape: tuple[int, int, int], num_classes: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.shape, self.num_classes, self.size = shape, num_classes, (int(config["size"][0]), int(config["size"][1]))
        self.adapt = config["adapt"]
        # past nn.Module: while it is held, other models take the same weights
        self.__dict__["_origin"] = net = _network(config["pretrained"], config["fingerprint"], bool(config["half"]))
        if self.adapt == "lora":
            self.net = sharing(net)
            add_adapters(self.net, int(config["rank"]), self.layers)
        elif self.adapt == "tokens":
            self.net, self.text = sharing(net), _words(config, num_classes)
        else:
            self.net = _network(config["pretrained"], config["fingerprint"], False, anew=True).requires_grad_(True)
        self._prepare()
        if config.get("checkpointing"):
            self.net.enable_gradient_checkpointing()
        for name, row in config["table"].items():
            self.register_buffer(name, torch.zeros(num_classes + 1, *row[1:], dtype=getattr(torch, row[0])))
        self.trained = {n for n, p in self.named_parameters() if p.requires_grad}
        self._name_taps()

    def _prepare(self) -> None:
        """Changes the network where it does not fit the classes."""

    def _name_taps(self) -> None:
        depth = len(self._blocks())
        self.tap_names = tuple(f"block{i}" for i in range(depth))
        self.roles = {"mid": f"block{depth // 4}", "quarter": f"block{max(depth // 4 - 1, 0)}"}

    def _blocks(self) -> Sequence[nn.Module]:
        return self.net.transformer_blocks

    def _layer(self, tap: str) -> nn.Module:
        return self._blocks()[int(self.layer_of(tap).removeprefix("block"))]

    def own_state(self) -> dict[str, Tensor]:
        names = self.trained | {name for name, _ in self.named_buffers(recurse=False)}
        return {name: value for name, value in self.state_dict().items() if name in names}

    def __deepcopy__(self, memo: dict[int, Any]) -> PromptedBackbone:
        memo |= {id(p): p for name, p in self.named_parameters() if name not in self.trained}
        memo[id(self._origin)] = self._origin
        memo[id(self)] = made = self.__class__.__new__(self.__class__)
        made.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return made

    def fill(self, table: dict[str, Tensor]) -> None:
        """Takes over the rows of prompts, (C + 1, ...) each."""
        for name, rows in table.items():
            self.get_buffer(name).copy_(rows)

    @property
    def learned(self) -> nn.Parameter:
        """(C, d) the vectors of the classes' words, under "tokens"."""
        return self.text.tokens.learned

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
        self.add_augmentation(x_t.flatten(1), augment)  # refuses one
        n = len(x_t) if predict_rows is None else predict_rows
        half = torch.autocast(x_t.device.type, torch.bfloat16) if is_half(self.net) else nullcontext()
        found: list[Taps] = []
        prediction = x_t[:0]
        with half:
            # rows that need no prediction end at the last tap
            for rows, whole in ((slice(0, n), True), (slice(n, len(x_t)), False)):
                if len(x_t[rows]):
                    with self._tapped(taps, stop=not whole) as seen:
                        out = self._call(x_t[rows], time[rows], self._rows(labels[rows], x_t))
                        prediction = out[:, : self.shape[0]] if whole else prediction
                    found.append(seen)
        return prediction, {tap: torch.cat([seen[tap] for seen in found]) for tap in taps}

    def _rows(self, labels: Tensor, like: Tensor) -> dict[str, Tensor]:
        if self.adapt == "tokens":
            return {"embeds": self.text(self.get_buffer("ids")[labels]).to(like.dtype)}
        return {name: rows[labels].to(like.dtype) for name, rows in self.named_buffers(recurse=False)}

    @contextmanager
    def _tapped(self, taps: Sequence[str], stop: bool) -> Iterator[Taps]:
        """Within it the features of `taps` are kept, in what is given; with `stop` the pass ends when all are there."""
        seen: Taps = {}

        def keep(tap: str) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                seen[tap] = output[-1] if isinstance(output, tuple) else output
                if stop and len(seen) == len(set(taps)):
                    raise _Enough

            return hook

        handles = [self._layer(tap).register_forward_hook(keep(tap)) for tap in taps]
        try:
            yield seen
        except _Enough:
            pass
        finally:
            for handle in handles:
                handle.remove()

    def _call(self, x: Tensor, time: Tensor, given: dict[str, Tensor]) -> Tensor:
        """diffusers' network, of x (n, c, h, w), times (n,) in [0, 1000) and rows of the table."""
        raise NotImplementedError

    def _lacks(self, method: str, what: str) -> ConfigError:
        return ConfigError(
            "this method makes a network of its own from parts of the model's, and a pretrained one is not cut",
            "choose a method that trains the model alone, such as cbdm, ccua or t2h",
        )


class StableBackbone(PromptedBackbone):
    """Stable Diffusion 1, 2 and XL."""

    layers = _ATTENTION

    def _name_taps(self) -> None:
        self.tap_names, self.roles = ("mid",), {"mid": "mid", "quarter": "mid"}

    def _layer(self, tap: str) -> nn.Module:
        return self.net.mid_block

    def _call(self, x: Tensor, time: Tensor, given: dict[str, Tensor]) -> Tensor:
        added = None
        if "pooled" in given:
            sizes = torch.tensor([*self.size, 0, 0, *self.size], dtype=x.dtype, device=x.device)
            added = {"text_embeds": given["pooled"], "time_ids": sizes.expand(len(x), -1)}
        return self.net(x, time, given["embeds"], added_cond_kwargs=added, return_dict=False)[0]


class StableThreeBackbone(PromptedBackbone):
    """Stable Diffusion 3."""

    layers = _JOINT

    def _call(self, x: Tensor, time: Tensor, given: dict[str, Tensor]) -> Tensor:
        return self.net(x, given["embeds"], given["pooled"], time, return_dict=False)[0]


class FluxBackbone(PromptedBackbone):
    """Flux, whose network sees squares of 2 x 2 latents; a distilled one is asked for a guidance of 1."""

    layers = _JOINT

    def _call(self, x: Tensor, time: Tensor, given: dict[str, Tensor]) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)
        places = torch.zeros(h // 2, w // 2, 3, dtype=x.dtype, device=x.device)
        places[..., 1] = torch.arange(h // 2, device=x.device)[:, None]
        places[..., 2] = torch.arange(w // 2, device=x.device)
        guidance = x.new_ones(n) if self.net.config.guidance_embeds else None
        out = self.net(
            tokens, given["embeds"], given["pooled"], time / 1000, places.reshape(-1, 3),
            x.new_zeros(given["embeds"].shape[1], 3), guidance, return_dict=False,
        )[0]  # fmt: skip
        return out.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)

    def _blocks(self) -> Sequence[nn.Module]:
        return [*self.net.transformer_blocks, *self.net.single_transformer_blocks]


class PixArtBackbone(PromptedBackbone):
    """PixArt-alpha and -sigma."""

    layers = _ATTENTION

    def _call(self, x: Tensor, time: Tensor, given: dict[str, Tensor]) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.net.use_additional_conditions:
            size = torch.tensor(self.size, dtype=x.dtype, device=x.device)
            ratio = (size[:1] / size[1:]).expand(len(x), -1)
            added = {"resolution": size.expand(len(x), -1), "aspect_ratio": ratio}
        return self.net(
            x, given["embeds"], time, added, encoder_attention_mask=given["mask"], return_dict=False
        )[0]  # fmt: skip


class TunedDiTBackbone(PromptedBackbone):
    """A DiT of other classes: each block has a new table, which begins at its vector of "no class" and is trained."""

    layers = _ATTENTION

    def _prepare(self) -> None:
        for embedder in self.embedders(self.net):
            null = embedder.embedding_table.weight.detach()[-1:].float()
            embedder.embedding_table = nn.Embedding.from_pretrained(null.repeat(self.num_classes + 1, 1), freeze=False)
            embedder.dropout_prob = 0.0

    @staticmethod
    def embedders(net: Any) -> list[Any]:
        """Of its labels, one in each block."""
        return [block.norm1.emb.class_embedder for block in net.transformer_blocks]

    def _rows(self, labels: Tensor, like: Tensor) -> dict[str, Tensor]:
        null = self.embedders(self.net)[0].embedding_table.num_embeddings - 1
        return {"labels": torch.where(labels == self.num_classes, null, labels)}

    def _call(self, x: Tensor, time: Tensor, given: dict[str, Tensor]) -> Tensor:
        return self.net(x, time, given["labels"], return_dict=False)[0]


PROMPTED: dict[str, type[PromptedBackbone]] = {
    "sd": StableBackbone,
    "sd3": StableThreeBackbone,
    "flux": FluxBackbone,
    "pixart": PixArtBackbone,
    "dit-tuned": TunedDiTBackbone,
}


def _words(config: dict[str, Any], num_classes: int) -> TokenEncoder:
    pretrained = open_pretrained(config["pretrained"])
    if pretrained.text != config["text"]:
        raise RunError(
            f"the text encoder of {pretrained.name} is another than that of the training", "put its files back"
        )
    return TokenEncoder(pretrained, num_classes, bool(config["half"]))


_LOADED: WeakValueDictionary[tuple[Any, ...], nn.Module] = WeakValueDictionary()


def _network(name: str, fingerprint: str, half: bool, anew: bool = False) -> Any:
    """The network of a pipeline, frozen; while some model holds it, the same one is given again.

    Raises:
        RunError: it is not there, cannot be loaded, or is not the one of that fingerprint.
    """
    try:
        pretrained = open_pretrained(name)
    except ConfigError as error:
        raise RunError(
            f"the pretrained model that this one was fine-tuned from is not there: {error.message}",
            f'{error.remedy}; or write where it is into model.json ("pretrained")',
        ) from error
    folder = pretrained.network
    if fingerprint_of(folder) != fingerprint:
        raise RunError(
            f"{folder} holds other weights than those that were fine-tuned",
            "put these back; what was trained fits no others",
        )
    key = (str(folder), fingerprint, half)
    if (net := _LOADED.get(key)) is None or anew:
        net = load_network(folder, torch.bfloat16 if half else torch.float32)
        if not anew:
            _LOADED[key] = net
    return net


def load_network(folder: Path, dtype: torch.dtype) -> Any:
    """The network in a folder of diffusers, frozen.

    Raises:
        RunError: it cannot be loaded, or weights are missing.
    """
    import diffusers

    try:
        with quietly():
            kind = read_json(folder / "config.json")["_class_name"]
            net, about = getattr(diffusers, kind).from_pretrained(
                folder, use_safetensors=True, local_files_only=True, torch_dtype=dtype, output_loading_info=True,
                variant=variant_of(folder),
            )  # fmt: skip
    except Exception as error:  # of diffusers, accelerate and safetensors, each of its own types
        raise RunError(f"the network in {folder} cannot be loaded: {error}", "download it again") from error
    if about["missing_keys"]:
        raise RunError(f"the weights in {folder} lack {sorted(about['missing_keys'])[0]}", "download them again")
    return net.requires_grad_(False)
