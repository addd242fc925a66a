"""What happens when in a training: the learning rate, and when it logs, saves, shows previews and measures."""

from __future__ import annotations

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Due:
    """What is to be done after a step."""

    log: bool
    checkpoint: bool
    preview: bool
    watch: bool
    shares: bool
    weak: bool


@dataclass(frozen=True)
class Cadence:
    """Steps between log lines, checkpoints, previews and measurements."""

    log: int
    checkpoint: int
    preview: int
    watch: int

    def due(self, step: int, config: TrainConfig) -> Due:
        """What is to be done after step number `step`, from 0; everything after the last."""
        last = step == config.steps - 1
        checkpoint = last or (step + 1) % self.checkpoint == 0
        preview = self.preview > 0 and (last or (step + 1) % self.preview == 0)
        # the log is written at every checkpoint, so that a resumed run's averages start where the first one's did
        watch = self.watch > 0 and (last or (step + 1) % self.watch == 0)
        # a share of a gradient costs a backward pass for every term: a few percent of a training at most
        every = max(1, config.steps // 20, min(100, config.steps // 2))
        shares = (step + 1) % every == 0
        weak = config.weak_at > 0 and step + 1 == max(1, round(config.weak_at * config.steps))
        return Due(checkpoint or (step + 1) % self.log == 0, checkpoint, preview, watch, shares, weak)


def make_cadence(config: TrainConfig, watch_images: int) -> Cadence:
    """The cadence that the options give, in steps: images between two of a kind, at least one step."""

    def steps(images: int | None, share: int) -> int:
        return max(1, (images or config.images // share) // config.batch_size)

    preview = 0 if config.preview_images == 0 else steps(config.preview_images, 5)
    watch = 0 if watch_images == 0 else steps(watch_images, 1)
    return Cadence(steps(config.log_images, 200), steps(config.checkpoint_images, 20), preview, watch)
