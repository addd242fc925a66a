"""Training a diffusion model: from a training step and data to averaged weights, resumed by calling it again.

Nothing here knows any method. The global generator serves network dropout alone and is reseeded at every micro-step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from imbdiff.config import TrainConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.geometric import Geometric
from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.objectives.objective import Objective
from imbdiff.runtime.device import cpu_threads, make_accelerator, set_backends
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.progress import Progress
from imbdiff.training.loop import Loop, TrainingFiles
from imbdiff.training.parts import Batches, Part
from imbdiff.training.step import TrainingStep
from imbdiff.training.update import Update

OnPreview = Callable[[DiffusionModel, int], None]
OnStep = Callable[[int, Mapping[str, float]], None]
#: share of the training after which the averaged weights are kept as autoguidance's weak model (Karras et al. 2024)
WEAK_AT = 1 / 16
#: lines of the log in all
LOG_LINES = 200
REMEDY = (
    "lower train.lr or the weight of that term, lengthen train.warmup_images, or use --train.precision fp32; then "
    "repeat the command in a new run folder"
)


@dataclass
class Trainer:
    """Trains the network "model" of a `TrainingStep`.

    Attributes:
        step: networks and objectives.
        data: the training split, and nothing else.
        groups: many / medium / few, for parts that sample from some of them.
        parts: how the parts of a batch are sampled.
        config: amounts, rates, cadences.
        seed: of all random numbers.
        device: "auto", "cpu", "cuda", ...
        files: where checkpoints and losses go; a checkpoint of another identity is refused.
        augmentation: of the training images.
        geometric: changes of the training images, which the networks take as a condition; None: none.
        on_preview: called with the averaged model and the images seen, on the first process.
        on_watch: the same, every `config.watch_images` images and at the end.
        on_weak: the same, once: after the share `WEAK_AT` of the steps.
        on_step: called after every step on the first process, with the images seen and, where the log has a row of this
            step, its numbers.
        finish: what the averaged network becomes when it is handed out; gets the objectives too.
        notify: prints notices.
    """

    step: TrainingStep
    data: ImageSet
    groups: Groups
    parts: Sequence[Part]
    config: TrainConfig
    seed: int = 0
    device: str = "auto"
    files: TrainingFiles = field(default_factory=TrainingFiles)
    augmentation: Augmentation = field(default_factory=Augmentation)
    geometric: Geometric | None = None
    on_preview: OnPreview | None = None
    on_watch: OnPreview | None = None
    on_weak: OnPreview | None = None
    on_step: OnStep | None = None
    finish: Callable[[Any, Sequence[Objective]], nn.Module] | None = None
    quiet: bool = False
    notify: Callable[[str], None] = print

    def run(self) -> nn.Module:
        """Trains from the newest checkpoint, or from the start, to the end; returns the averaged network in eval mode.

        Raises:
            NonFiniteLossError: a loss or gradient is not finite; nothing was updated with it.
            RunError: the checkpoint belongs to another run, or the disk is full.
        """
        threads = cpu_threads(getattr(self.step.networks["model"], "cpu_threads", None))
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())), threads:
            return self._run()

    def _run(self) -> nn.Module:
        config, steps, batch = self.config, self.config.steps, self.config.batch_size
        network: Any = self.step.networks["model"]
        accelerator = make_accelerator(self.device, config.precision, min(network.codec.shape[1:]))
        dist = Dist.current()
        set_backends(config.deterministic)
        self.step.to(accelerator.device)
        bf16 = accelerator.mixed_precision == "bf16"
        batches = Batches(
            self.step, self.parts, self.data, self.groups, config, device=accelerator.device, seed=self.seed, dist=dist,
            augmentation=self.augmentation, geometric=self.geometric,
            # convolutions in bf16 on a GPU want it; on a CPU it is worth a fifth, or costs it
            channels_last=bf16 and accelerator.device.type == "cuda",
        )  # fmt: skip
        update = Update(self.step, batches, config, accelerator)
        loop = Loop(
            update, steps, batch, self.files, log_every=self._every(None, LOG_LINES),
            save_every=self._every(config.checkpoint_images, 20), dist=dist, remedy=REMEDY, report=self.notify,
        )  # fmt: skip
        before = loop.resume()
        notify = self.notify if dist.main and not self.quiet else _nothing
        if before:
            was, now = before["precision"], update.precision
            other = "" if was == now else f", in {now} what was trained in {was} so far"
            notify(f"continuing after {loop.first * batch:,} images{other}")
        update.wrap(notify)
        self._describe(bf16, notify)
        previews = preview_every(config)
        watches = 0 if config.watch_images == 0 else self._every(config.watch_images, 1)
        weak = max(1, round(WEAK_AT * steps))
        still = [
            n for n in range(loop.first + 1, steps + 1)
            if (self.on_preview and _due(n, previews, steps)) or (self.on_watch and _due(n, watches, steps))
        ]  # fmt: skip
        with Progress(
            "train", steps * batch, start=loop.first * batch, quiet=self.quiet or not dist.main, interludes=len(still)
        ) as progress:
            for done, row in loop.run():
                progress.update(done * batch, f"loss {row['loss']:.4f}" if row else "")
                if self.on_step is not None and dist.main:
                    self.on_step(done * batch, dict(row or {}))
                calls = (
                    (self.on_preview, _due(done, previews, steps)),
                    (self.on_watch, _due(done, watches, steps)),
                    (self.on_weak, done == weak),
                )
                for what, (call, due) in zip(("generating a preview", "measuring", ""), calls, strict=True):
                    if call and due and dist.main:
                        with progress.interlude(what) if what else nullcontext():
                            call(self._averaged(update), done * batch)  # type: ignore[arg-type]
        return self._averaged(update)

    def _every(self, images: int | None, share: int) -> int:
        """Steps that take `images` images, at least one; None: that share of the run."""
        return max(1, (images or self.config.images // share) // self.config.batch_size)

    def _averaged(self, update: Update) -> nn.Module:
        """A finished copy of the network with the averaged weights; the training weights are not touched."""
        result = update.average(self.step.networks["model"])
        with torch.no_grad():
            return result if self.finish is None else self.finish(result, self.step.active).eval()

    def _describe(self, bf16: bool, notify: Callable[[str], None]) -> None:
        config = self.config
        if config.precision == "auto" and bf16:
            notify("in bfloat16, for which this machine has units (--train.precision fp32: without them)")
        if config.compared < config.batch_size:
            notify(
                f"batches of {config.batch_size} in {config.accumulate} micro-batches: losses that compare rows with "
                f"each other (contrasts, transfer) compare {config.compared}"
            )


def preview_every(config: TrainConfig) -> int:
    """Steps between previews; 0: there are none."""
    if config.preview_images == 0:
        return 0
    return max(1, (config.preview_images or config.images // 5) // config.batch_size)


def _due(done: int, every: int, steps: int) -> bool:
    return every > 0 and (done == steps or done % every == 0)


def _nothing(text: str) -> None:
    pass
