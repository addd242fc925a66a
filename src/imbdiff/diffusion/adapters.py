"""Low-rank adapters (LoRA, Hu et al. 2022) of a frozen network, by peft: what is trained, averaged, saved and exported.

W x + (alpha / rank) B A x with A normal, as in diffusers' scripts, and B zero: the network begins as it was. Capacity
manipulation has low-rank parts of its own (`imbdiff.diffusion.low_rank`), which it switches off row by row in one pass:
peft does not do that in training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.tables import optional


def add_adapters(net: nn.Module, rank: int, layers: Sequence[str]) -> None:
    """Freezes `net` and gives adapters in float32 to its linear layers whose names end with one of `layers`, in place.

    A is drawn from the global generator: call it where that is forked.

    Raises:
        ConfigError: peft is not installed, or the rank is larger than a layer.
    """
    peft = optional("peft", "pretrained", "fine-tuning by adapters")
    net.requires_grad_(False)
    narrow = [
        (min(m.in_features, m.out_features), name)
        for name, m in net.named_modules()
        if isinstance(m, nn.Linear) and name.endswith(tuple(f".{layer}" for layer in layers))
    ]
    width, name = min(narrow)
    if rank > width:
        raise ConfigError(f"--model.rank {rank} is more than the {width} numbers of the layer {name}", f"give {width}")
    config = peft.LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(layers))
    peft.inject_adapter_in_model(config, net)
    for p in net.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def adapter_state(net: nn.Module) -> dict[str, Tensor]:
    """The adapters by the names that diffusers' files have: ``...to_q.lora_A.weight``."""
    from peft.utils import get_peft_model_state_dict

    return {k: v.detach().cpu().float().contiguous() for k, v in get_peft_model_state_dict(net).items()}


def merged(net: nn.Module) -> Any:
    """A copy in float32 whose weights have the adapters in them: a plain network of diffusers."""
    from peft.tuners.lora import LoraLayer

    net = copy.deepcopy(net).float()
    for name, layer in list(net.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            net.set_submodule(name, layer.get_base_layer())
    for trace in ("peft_config", "_hf_peft_config_loaded"):
        net.__dict__.pop(trace, None)
    return net.eval()


def sharing(net: nn.Module) -> nn.Module:
    """A copy of the network with the same parameters, not copies of them: for what is frozen."""
    return copy.deepcopy(net, {id(p): p for p in net.parameters()})


def is_half(net: nn.Module) -> bool:
    """Whether the network's own weights are in bfloat16."""
    return any(p.dtype == torch.bfloat16 for p in net.parameters())
