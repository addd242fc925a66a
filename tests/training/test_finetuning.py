"""Fine-tuning (`--model.init`): everything starts from the saved weights, the averaged ones included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imbdiff.config import override
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.saved import save_model
from imbdiff.pipeline import training
from imbdiff.presets import preset
from imbdiff.runtime.log import read_jsonl

SMALL = {
    "data": {"imbalance_factor": 20},
    "model": {"backbone": "mlp"},
    "train": {"images": 32 * 5, "batch_size": 32, "preview_images": 0, "schedule": "constant"},
    "device": "cpu",
}


def gap(a: DiffusionModel, b: DiffusionModel) -> float:
    return max(float((v - b.state_dict()[k]).abs().max()) for k, v in a.state_dict().items())


def test_a_method_continues_from_a_saved_models_averaged_weights(tmp_path: Path) -> None:
    """At a learning rate of next to nothing what comes out is what went in: weights and their average alike."""
    config = override(preset("tiny"), SMALL)
    data = training.prepare_data("digits", config.data)
    start = training.train(data, config, quiet=True)
    save_model(start, tmp_path / "model")

    def tuned(**train: Any) -> DiffusionModel:
        more = {"method": "cbdm-finetune", "model": {"init": str(tmp_path), "backbone": "auto"}, "train": train}
        return training.train(data, override(config, more), tmp_path / str(train["lr"]), quiet=True)

    same, moved = tuned(lr=1e-9, ema_half_life=1.0), tuned(lr=1e-3)
    assert gap(start, same) < 1e-7
    assert same.spec.stats == start.spec.stats
    assert "class_balancing/pull" in read_jsonl(tmp_path / "0.001" / "log.jsonl")[0]
    assert 1e-4 < gap(start, moved) <= 5 * 1.1e-3, "five Adam steps of at most 1e-3 from the start"
