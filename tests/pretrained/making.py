"""Small runs with a pretrained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imbdiff.config import RunConfig, override
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.pipeline import finetuning, training
from imbdiff.presets import preset


def small(folder: Path, **values: Any) -> RunConfig:
    """Options of a run of seconds."""
    options = {
        "model.pretrained": str(folder), "model.rank": 4, "data.size": 16, "train.images": 64, "train.batch_size": 8,
        "train.checkpoint_images": 16, "train.preview_images": 0, "train.warmup_images": 0, "train.lr": 1e-3,
        "sample.steps": 2, "sample.batch_size": 8, "sample.strategy": "rare=8", "evaluate.cas": False,
        "classify.steps": 2, "classify.batch_size": 16, "classify.seeds": 1, "classify.ensemble": 0,
        "classify.synthetic_prior": "train", "device": "cpu",
    }  # fmt: skip
    return override(preset("finetune"), {**options, **values})


def opened(images: Path, folder: Path, **values: Any) -> tuple[Prepared, RunConfig]:
    config = finetuning.resolved(small(folder, **values))
    return training.prepare_data(images, config.data), config


def model_of(images: Path, folder: Path, **values: Any) -> DiffusionModel:
    prepared, config = opened(images, folder, **values)
    return training.new_model(prepared, config)
