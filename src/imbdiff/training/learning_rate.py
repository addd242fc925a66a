"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from imbdiff.config import TrainConfig


def learning_rate(config: TrainConfig, step: int) -> float:
    """Adam's learning rate at `step`: a linear warm-up (at most a tenth of the run), then constant or cosine to 0."""
    steps = config.steps
    warmup = min(config.warmup_images // config.batch_size, steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
