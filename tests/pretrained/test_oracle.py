"""One LoRA batch against the lines of diffusers' train_text_to_image_lora.py: the same noise, loss and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from imbdiff.methods import method_of
from imbdiff.pipeline import training
from imbdiff.training.parts import Batches
from tests.pretrained.making import opened


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loss_and_gradients_are_those_of_diffusers_script(
    images: Path, folders: dict[str, Path], tmp_path: Path, prediction: str
) -> None:
    import shutil

    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from peft import LoraConfig
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    described = folder / "scheduler" / "scheduler_config.json"
    described.write_text(described.read_text().replace('"epsilon"', f'"{prediction}"'))
    prepared, config = opened(images, folder, method="ddpm")
    phase = method_of(config).target
    step = training.build_step(phase, prepared, config)
    mine = {n: p for n, p in step.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for i, p in enumerate(mine.values()):  # B is zero in the beginning, and then A has no gradient
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    batch = Batches(step, phase.parts, prepared.train, prepared.groups, config.train, device=torch.device("cpu"))(0)
    drawn, label = batch["main"], [*prepared.train.class_names, ""]
    step(batch)["loss"].backward()

    # -- from here on nothing of imbdiff but what it has drawn: rows, posterior sample, times, noise, dropped labels
    noise_scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    unet.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    lora = {n: p for n, p in unet.named_parameters() if p.requires_grad}
    assert {f"networks.model.backbone.net.{n}" for n in lora} == set(mine)
    with torch.no_grad():
        for n, p in lora.items():
            p.copy_(mine[f"networks.model.backbone.net.{n}"])
    latents, noise, timesteps = drawn.x0, drawn.noise, drawn.t
    noisy_latents = noise_scheduler.add_noise(latents, noise, timesteps)
    captions = [f"a photo of a {label[k]}" if label[k] else "" for k in drawn.condition.tolist()]
    assert "" in captions or drawn.condition.max() < 3
    tokens = tokenizer(captions, max_length=77, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        encoder_hidden_states = text_encoder(tokens.input_ids, return_dict=False)[0]
    target = noise if prediction == "epsilon" else noise_scheduler.get_velocity(latents, noise, timesteps)
    model_pred = unet(noisy_latents, timesteps, encoder_hidden_states, return_dict=False)[0]
    loss = F.mse_loss(model_pred.float(), target.float(), reduction="mean")
    loss.backward()

    assert step(batch)["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    for n, p in lora.items():
        grad, own = p.grad, mine[f"networks.model.backbone.net.{n}"].grad
        assert grad is not None
        assert own is not None
        assert torch.allclose(own, grad, rtol=1e-5, atol=1e-6 * float(grad.abs().max()) + 1e-9), n

    # the latents are the autoencoder's, scaled as it says: a posterior whose samples are around its mean
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    found = prepared.train.labels.tolist()
    pixels = torch.from_numpy(prepared.train.images[:]).permute(0, 3, 1, 2) / 127.5 - 1
    posterior = vae.encode(pixels.float()).latent_dist
    mean, std = (m.detach() * vae.config.scaling_factor for m in (posterior.mean, posterior.std))
    for x, k in zip(latents, drawn.labels.tolist(), strict=True):
        scores = [float((((x - m) / s) ** 2).mean()) for m, s, j in zip(mean, std, found, strict=True) if j == k]
        assert min(scores) < 2.0
