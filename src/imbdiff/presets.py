"""Presets: a table of configurations, with what came out of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imbdiff.config import RunConfig, override
from imbdiff.runtime.errors import ConfigError, nearest


@dataclass(frozen=True)
class Preset:
    """A row of the preset table."""

    idea: str
    expect: str
    """What came out of it, with the command; or that it has not been run."""
    overrides: Mapping[str, Any]


# Short runs predict v on the cosine schedule: trained for minutes on eps, a network gives noise in saturated colours,
# because at the noisiest times x0 is a difference of large numbers; the published recipes keep eps and linear betas.
_SHORT = {"lr": 1e-3, "schedule": "cosine"}
_CIFAR_LT: dict[str, Any] = {
    "data": {"imbalance_factor": 100.0, "augment": "mirror"},
    "model": {"backbone": "unet-32"},
    "train": {"images": 19_200_000, "warmup_images": 320_000, "ema_half_life": 0.023},
    "sample": {"sampler": "ddpm", "steps": 1000, "strategy": "auto"},
    "classify": {
        "recipes": ["ce", "resampling", "balanced-softmax", "ldam-drw"], "network": "resnet32", "steps": 17_000,
        "protocol": "cifar-lt", "shift": 4, "ensemble": 0, "synthetic_prior": "train",
    },
}  # fmt: skip


def _photographs(size: int | None = None) -> dict[str, Any]:
    return {
        **({"data": {"size": size}, "codec": {"kind": "patch"}} if size else {}),
        "model": {"process": "ddpm-cosine-v"},
        "train": {**_SHORT, "images": 200_000, "batch_size": 32, "warmup_images": 6_400},
        "classify": {"steps": 600, "batch_size": 64, "seeds": 3},
    }


def _finetuning(adapt: str, lr: float) -> dict[str, Any]:
    """Amounts of diffusers' scripts: a few thousand steps of small batches at a constant rate."""
    return {
        "model": {"adapt": adapt},
        "train": {"images": 16_000, "batch_size": 4, "lr": lr, "warmup_images": 400, "preview_images": 4_000},
        "sample": {"steps": 25, "batch_size": 4},
        "classify": {"steps": 600, "batch_size": 64},
    }


IMAGENET_LT = 115_846
"""Training images of ImageNet-LT."""


def _diffrc_imagenet(epochs: int) -> dict[str, Any]:
    """DiffRC's recipe for ImageNet-LT (Fu, He, Hu 2023, section 4.1.2)."""
    return {
        "method": "diffrc-paper",
        "data": {"augment": "mirror"},
        "model": {"backbone": "unet-32-adagn"},
        "train": {"images": 12_800_000, "batch_size": 128},
        "sample": {"strategy": "auto"},
        "classify": {
            "ensemble": 0, "synthetic_prior": "train",
            "network": "timm:resnext50_32x4d", "batch_size": 512, "lr": 0.2,
            "steps": round(epochs * IMAGENET_LT / 512),
        },
    }  # fmt: skip


PRESETS: dict[str, Preset] = {
    "demo": Preset(
        idea="digits with imbalance factor 50, in minutes on two CPU cores",
        expect="3.5 minutes on 2 shared cores; accuracy all / few: four networks of balanced softmax 0.948 / 0.861, "
        "two, and two with synthetic images, 0.953 / 0.894 (imbdiff run digits --preset demo; "
        "benchmarks/results/demo_*_2026-11-30_2); over ten other splits benchmarks/results/benefit_digits_50_*",
        overrides={
            "method": "ddpm-augmented",
            "data": {"imbalance_factor": 50.0},
            "model": {"process": "ddpm-cosine-v", "backbone": "mlp-384"},
            "train": {**_SHORT, "images": 384_000, "warmup_images": 6_400},
            "evaluate": {"cas": False},
            "classify": {"steps": 400, "seeds": 2},
        },
    ),
    "tiny": Preset(
        idea="images of up to 16 pixels on a CPU: minutes",
        expect="digits with imbalance factor 50: 6 to 14 minutes on 2 cores; accuracy all / few: balanced softmax "
        "0.938 / 0.833, with synthetic images 0.936 / 0.828, CE 0.903 / 0.711 (benchmarks/results/demo_*_2026-11-22)",
        overrides={
            "model": {"process": "ddpm-cosine-v"},
            "train": {**_SHORT, "images": 90_000, "warmup_images": 6_400},
        },
    ),
    "small": Preset(
        idea="images of up to 32 pixels on a CPU: a first look in minutes, not a good generator",
        expect="952 skin lesions of 7 classes at 32 pixels: 12 minutes on 2 shared cores, no difference shown "
        "(imbdiff run FOLDER; benchmarks/results/skin_lesions_*)",
        overrides={
            "model": {"process": "ddpm-cosine-v"},
            "train": {**_SHORT, "images": 16_000, "batch_size": 16, "warmup_images": 2_000, "ema_half_life": 0.05},
            "classify": {"steps": 300, "batch_size": 64, "seeds": 3},
        },
    ),
    "medium": Preset(
        idea="larger images on a CPU, in the space of the patch codec or of an autoencoder's latents: an hour",
        expect="not run to the end yet",
        overrides=_photographs(),
    ),
    "photo-128": Preset(
        idea="photographs at 128 pixels in the space of the patch codec, on a CPU: hours",
        expect="not run yet",
        overrides=_photographs(128),
    ),
    "photo-256": Preset(
        idea="photographs at 256 pixels in the space of the patch codec: a GPU, or a day on a CPU",
        expect="not run yet",
        overrides=_photographs(256),
    ),
    "finetune": Preset(
        idea="a pretrained text-to-image model (--model.pretrained), by low-rank adapters: taken where one is named",
        expect="not run: no weights can be had here; with small networks of random weights it is tested",
        overrides=_finetuning("lora", 1e-4),
    ),
    "finetune-full": Preset(
        idea="the same, all its weights: taken with --model.adapt full; hundreds of images of each class, 24 GB",
        expect="not run: no weights can be had here",
        overrides=_finetuning("full", 1e-5),
    ),
    "finetune-tokens": Preset(
        idea="the same, a learned word for each class alone: taken with --model.adapt tokens",
        expect="not run: no weights can be had here",
        overrides=_finetuning("tokens", 5e-4),
    ),
    "standard": Preset(
        idea="up to 64 pixels on a GPU: an hour or a few",
        expect="not run yet",
        overrides={
            "train": {"images": 6_400_000, "batch_size": 128},
            "classify": {"steps": 6_000, "network": "resnet32"},
        },
    ),
    "cifar-lt": Preset(
        idea="the field's protocols for CIFAR-LT at imbalance factor 100: 300,000 steps of 64, 35.7 M parameters; "
        "ResNet-32 for 200 epochs of CIFAR-100-LT",
        expect="not run yet: days on one GPU",
        overrides=_CIFAR_LT,
    ),
    "diffrc-cifar": Preset(
        idea="DiffRC on CIFAR-LT at imbalance factor 100, with the classifier of its section 4.1.2: ResNet-32, batches "
        "of 256, 13,000 steps (Ren et al. 2020, which it follows); the rate, not stated, is that of cifar-lt",
        expect="not run yet: days on one GPU",
        overrides={
            **_CIFAR_LT,
            "method": "diffrc-paper",
            "model": {"backbone": "unet-32-adagn"},
            "sample": {"strategy": "auto"},
            "classify": {**_CIFAR_LT["classify"], "batch_size": 256, "steps": 13_000},
        },
    ),
    "ccua-sit": Preset(
        idea="CCUA's transformer on ImageNet-LT of its own (1,281 to 12 images a class) at 256 pixels: SiT-S/2 in the "
        "latents of Stable Diffusion's autoencoder, 917,600 steps of 48; 50 steps of dpm++, theirs of dopri5",
        expect="not run yet: days on several GPUs; published FID: 32.25 without resampling, 28.05 of SiT with it",
        overrides={
            "method": "ccua-sit",
            "data": {"size": 256, "augment": "mirror", "imbalance_factor": 100.0},
            "codec": {"kind": "vae", "weights": "stabilityai/sd-vae-ft-ema"},
            "model": {"backbone": "sit-s", "process": "flow"},
            "train": {
                "images": 48 * 917_600,
                "batch_size": 48,
                "lr": 1e-4,
                "warmup_images": 0,
                "ema_half_life": 0.00755,
            },
            "sample": {"sampler": "dpm++", "steps": 50, "strategy": "auto"},
        },
    ),
    "diffrc-imagenet-90": Preset(
        idea="DiffRC on ImageNet-LT, with the classifier of its section 4.1.2: ResNeXt-50, batches of 512, 90 epochs, "
        "cosine from 0.2 to 0; the warm-up, size of images and lengths of the generators, not stated, are ours",
        expect="not run yet: needs several GPUs",
        overrides=_diffrc_imagenet(90),
    ),
    "diffrc-imagenet-200": Preset(
        idea="the same for 200 epochs",
        expect="not run yet: needs several GPUs",
        overrides=_diffrc_imagenet(200),
    ),
}


def choose_preset(largest_side: int, device: str) -> str:
    """The preset for images of that size where the user names none: by size, and by whether there is a GPU."""
    if device != "cpu":
        return "standard"
    return "tiny" if largest_side <= 16 else "small" if largest_side <= 32 else "medium"


def preset(name: str) -> RunConfig:
    """The configuration of a preset.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}", nearest(name, PRESETS, f"choose one of {', '.join(PRESETS)}"))
    return override(RunConfig(), {"preset": name, **PRESETS[name].overrides})
