"""Backbones of every class of pipeline: what they predict is what diffusers' own pipeline makes of the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from imbdiff.runtime.errors import ConfigError
from tests.pretrained.making import model_of
from tests.pretrained.tiny import KINDS

PROMPTED = [kind for kind in KINDS if kind != "dit"]


def seen_by_diffusers(folder: Path, prompt: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(latents, time in [0, 1000), prediction) of the first call of the network by the pipeline itself."""
    from diffusers import DiffusionPipeline

    absent: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None} if folder.name == "sd3" else {}
    pipe: Any = DiffusionPipeline.from_pretrained(folder, **absent)
    pipe.set_progress_bar_config(disable=True)
    network = getattr(pipe, "unet", None) or pipe.transformer
    calls: list[Any] = []
    network.register_forward_hook(lambda _, args, options, out: calls.append((args, options, out)), with_kwargs=True)
    options: dict[str, Any] = {"use_resolution_binning": False} if "PixArt" in type(pipe).__name__ else {}
    seed = torch.Generator().manual_seed(0)
    pipe(
        prompt, height=16, width=16, num_inference_steps=2, guidance_scale=1.0, generator=seed, output_type="latent",
        **options,
    )  # fmt: skip
    args, options, out = calls[0]
    x = args[0] if args else options["hidden_states"]
    t = args[1] if len(args) > 1 else options["timestep"]
    out = out[0]
    if "Flux" in type(pipe).__name__:
        x, out, t = pipe._unpack_latents(x, 16, 16, 2), pipe._unpack_latents(out, 16, 16, 2), t * 1000
    return x, t.reshape(-1)[:1].float(), out[:, : x.shape[1]]


@pytest.mark.parametrize("kind", PROMPTED)
def test_predictions_are_those_of_the_pipeline(images: Path, folders: dict[str, Path], kind: str) -> None:
    model = model_of(images, folders[kind]).eval()
    backbone, names = model.backbone, model.spec.stats.names
    for label, prompt in ((1, f"a photo of a {names[1]}"), (2, f"a photo of a {names[2]}")):
        x, t, expected = seen_by_diffusers(folders[kind], prompt)
        with torch.no_grad():
            found, _ = backbone(x, t, torch.tensor([label]))
            other, _ = backbone(x, t, torch.tensor([model.null]))
        assert torch.allclose(found, expected, atol=2e-6), kind
        assert not torch.equal(other, expected)

    # taps, and rows that end at them
    x = torch.randn(4, *backbone.shape, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([1.0, 300.0, 600.0, 900.0]), torch.tensor([0, 1, 2, 3])
    with torch.no_grad():
        whole, taps = backbone(x, t, y, ("mid",))
        part, same = backbone(x, t, y, ("mid", "quarter"), 2)
        none, only = backbone(x, t, y, ("mid",), 0)
    assert torch.allclose(part, whole[:2], atol=2e-6)
    assert none.shape == (0, *backbone.shape)
    assert taps["mid"].shape[0] == 4
    assert all(torch.allclose(taps["mid"], other["mid"], atol=2e-6) for other in (same, only))
    assert not torch.allclose(taps["mid"][0], taps["mid"][1], atol=1e-3)
    assert not any(m._forward_hooks for m in backbone.modules())
    with pytest.raises(ConfigError, match="no tap"):
        backbone(x, t, y, ("nowhere",))

    # in training: the same numbers twice, gradients in adapters alone and in all of them, with and without recomputing
    model.train()
    with torch.no_grad():
        assert torch.equal(backbone(x, t, y)[0], backbone(x, t, y)[0])
        for name, p in backbone.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            backbone.net.enable_gradient_checkpointing()
        backbone.zero_grad()
        prediction, found_taps = backbone(x, t, y, ("mid",), 3)
        (prediction.square().mean() + found_taps["mid"].square().mean()).backward()
        grads.append({n: p.grad for n, p in backbone.named_parameters() if p.requires_grad})
        assert all("lora_" in n for n, p in backbone.named_parameters() if p.grad is not None)
    assert all(g is not None for g in grads[0].values())
    scale = max(float(g.abs().max()) for g in grads[0].values())
    assert all(torch.allclose(grads[0][n], grads[1][n], atol=1e-5 * scale) for n in grads[0])
