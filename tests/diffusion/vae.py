"""Tiny autoencoders of diffusers, of a factor of 4 and with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

KINDS = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")


def save_vae(folder: Path, kind: str = "AutoencoderKL", seed: int = 0) -> Path:
    """Saves one; the folder."""
    import diffusers

    options = {
        "AutoencoderKL": {
            "block_out_channels": (8, 8, 8), "down_block_types": ("DownEncoderBlock2D",) * 3, "norm_num_groups": 4,
            "up_block_types": ("UpDecoderBlock2D",) * 3, "latent_channels": 4,
        },
        "AutoencoderTiny": {
            "encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8),
            "num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1),
        },
        "AutoencoderDC": {
            "encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8), "latent_channels": 4,
            "encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock",
            "encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1),
            "encoder_qkv_multiscales": ((), (), ()), "decoder_qkv_multiscales": ((), (), ()),
        },
    }[kind]  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        getattr(diffusers, kind)(**options).save_pretrained(folder)
    return folder


def pictures(n: int, size: tuple[int, int] = (16, 16), seed: int = 0) -> torch.Tensor:
    """(n, 3, H, W) uint8, smooth in places."""
    coarse = torch.rand((n, 3, 4, 4), generator=torch.Generator().manual_seed(seed)) * 255
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear").round().to(torch.uint8)
