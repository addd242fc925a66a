"""Tiny pipelines of diffusers' text-to-image classes, with random weights, made from configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

KINDS = ("sd", "sdxl", "sd3", "flux", "pixart", "dit")
VAE = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


def letters() -> list[str]:
    """A printable letter for each byte, as byte-level tokenizers have them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(others)) for b in range(256)]


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    pieces = [*letters(), *(c + "</w>" for c in letters()), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=77)


def clip_text(projected: bool = False, width: int = 32) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514, hidden_size=width, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=512, eos_token_id=513, pad_token_id=513, projection_dim=32,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5() -> tuple[Any, Any]:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(c), -3.0) for c in range(33, 127))]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=77)
    config = T5Config(vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return tokenizer, T5EncoderModel(config).eval()


def unet(**options: Any) -> Any:
    import diffusers

    return diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8, norm_num_groups=8, **{"cross_attention_dim": 32, **options},
    )  # fmt: skip


def vae(channels: int = 4, **options: Any) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(**VAE, latent_channels=channels, **options)


STABLE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "steps_offset": 1,
}


def pipeline(kind: str) -> Any:
    """A pipeline of 16-pixel images: latents of a side of 8."""
    import diffusers as d

    if kind == "sd":
        return d.StableDiffusionPipeline(
            unet=unet(), vae=vae(), text_encoder=clip_text(), tokenizer=clip_tokenizer(),
            scheduler=d.DDIMScheduler(**STABLE), safety_checker=None, feature_extractor=None,
            requires_safety_checker=False,
        )  # fmt: skip
    if kind == "sdxl":
        return d.StableDiffusionXLPipeline(
            unet=unet(
                cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32, transformer_layers_per_block=1,
                use_linear_projection=True,
            ),
            vae=vae(scaling_factor=0.13025), text_encoder=clip_text(), text_encoder_2=clip_text(True),
            tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), scheduler=d.EulerDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        )  # fmt: skip
    if kind == "sd3":
        tokenizer, text = t5()
        return d.StableDiffusion3Pipeline(
            transformer=d.SD3Transformer2DModel(
                sample_size=8, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=4,
                joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
                pos_embed_max_size=16,
            ),
            vae=vae(shift_factor=0.1, scaling_factor=1.3), text_encoder=clip_text(True), text_encoder_2=clip_text(True),
            text_encoder_3=None, tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), tokenizer_3=None,
            scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        )  # fmt: skip
    if kind == "flux":
        tokenizer, text = t5()
        return d.FluxPipeline(
            transformer=d.FluxTransformer2DModel(
                patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
                guidance_embeds=True,
            ),
            vae=vae(shift_factor=0.1, scaling_factor=1.3), text_encoder=clip_text(), tokenizer=clip_tokenizer(),
            text_encoder_2=text, tokenizer_2=tokenizer,
            scheduler=d.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )  # fmt: skip
    if kind == "pixart":
        tokenizer, text = t5()
        return d.PixArtAlphaPipeline(
            transformer=d.PixArtTransformer2DModel(
                sample_size=8, num_layers=4, patch_size=2, attention_head_dim=8, num_attention_heads=4, in_channels=4,
                cross_attention_dim=32, out_channels=8, caption_channels=32, use_additional_conditions=False,
            ),
            vae=vae(), text_encoder=text, tokenizer=tokenizer,
            scheduler=d.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02),
        )  # fmt: skip
    return d.DiTPipeline(
        transformer=d.DiTTransformer2DModel(
            num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=4, sample_size=8,
            patch_size=2, num_embeds_ada_norm=10,
        ),
        vae=vae(), scheduler=d.DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False),
    )  # fmt: skip


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    """Saves one; the folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline(kind).save_pretrained(folder, safe_serialization=True)
    return folder
