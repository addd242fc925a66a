"""Fine-tuning (`--model.init`): everything starts from the saved weights, the averaged ones included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from imbdiff.config import RunConfig, override
from imbdiff.diffusion.saved import load_model
from imbdiff.pipeline import training
from imbdiff.pipeline.run import run
from imbdiff.presets import preset
from imbdiff.runtime.log import read_jsonl
from imbdiff.training.schedule import learning_rate

SMALL = {
    "data": {"imbalance_factor": 20},
    "model": {"backbone": "mlp"},
    "train": {"images": 32 * 20, "batch_size": 32, "log_images": 32, "preview_images": 0, "schedule": "constant"},
    "device": "cpu",
}


def configured(**more: Any) -> RunConfig:
    return override(override(preset("tiny"), SMALL), more)


def test_a_run_is_continued_by_another_method_from_its_averaged_weights(tmp_path: Path) -> None:
    """At a learning rate of next to nothing what comes out is what went in: weights and their average alike."""
    first = tmp_path / "ddpm"
    run("digits", first, configured(method="ddpm"), wanted=("train",), quiet=True)
    start = load_model(first / "model")
    still = configured(
        method="cbdm-finetune",
        model={"init": str(first), "backbone": "auto"},
        train={"lr": 1e-9, "ema_half_life": 1.0, "images": 32 * 5},
    )
    run("digits", tmp_path / "same", still, wanted=("train",), quiet=True)
    same = load_model(tmp_path / "same" / "model")
    for key, value in start.state_dict().items():
        assert torch.allclose(value, same.state_dict()[key], atol=1e-7), key
    fresh = training.new_model(training.prepare_data("digits", still.data), configured())
    assert not all(torch.allclose(v, start.state_dict()[k], atol=1e-3) for k, v in fresh.state_dict().items())
    assert same.spec.stats == start.spec.stats

    tuned = configured(
        method="cbdm-finetune", model={"init": str(first), "backbone": "auto"}, train={"images": 32 * 5, "lr": 1e-3}
    )
    run("digits", tmp_path / "tuned", tuned, wanted=("train",), quiet=True)
    moved = load_model(tmp_path / "tuned" / "model")
    gap = max(float((v - moved.state_dict()[k]).abs().max()) for k, v in start.state_dict().items())
    assert 1e-4 < gap <= 5 * 1.1e-3, "five Adam steps of at most 1e-3 from the start"
    row = read_jsonl(tmp_path / "tuned" / "log.jsonl")[0]
    assert "class_balancing/pull" in row


def test_the_warm_up_of_a_short_run_is_a_tenth_of_it() -> None:
    config = configured(train={"images": 32 * 100, "warmup_images": 64_000, "lr": 0.5}).train
    rates = [learning_rate(config, step) for step in range(12)]
    assert rates[0] == 0.05
    assert rates[8] < 0.5
    assert set(rates[9:]) == {0.5}
