"""The loop: from a training step and data to averaged weights, resumed by calling it again.

Nothing here knows any method. A step's batch is a pure function of (seed, step); the global generator serves network
dropout alone and is reseeded at every micro-step; so what follows a checkpoint does not depend on what came before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from imbdiff.config import TrainConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.geometric import Geometric
from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.diffusion.codec import Codec
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.diffusion.process import Process
from imbdiff.objectives.objective import Objective
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.device import make_accelerator, set_backends
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import NonFiniteLossError, RunError
from imbdiff.runtime.log import JsonLog, read_jsonl
from imbdiff.runtime.progress import Progress
from imbdiff.training.parts import Part, make_loaders
from imbdiff.training.schedule import learning_rate, make_cadence
from imbdiff.training.step import TrainingStep
from imbdiff.training.update import Update

OnPreview = Callable[[DiffusionModel, int], None]


class Trainable(Protocol):
    """A network that can be trained: it also has the codec and the process of its images."""

    codec: Codec
    process: Process


@dataclass
class Trainer:
    """Trains one network of a `TrainingStep`.

    Attributes:
        step: networks and objectives; its network `target` is the one that is averaged and returned.
        data: the training split, and nothing else.
        groups: many / medium / few, for parts that sample from some of them.
        parts: how the parts of a batch are sampled.
        config: amounts, rates, cadences.
        seed: of all random numbers.
        device: "auto", "cpu", "cuda", ...
        store: where checkpoints go; None: none are written.
        log: where losses go; None: nowhere.
        augmentation: of the training images.
        geometric: changes of the training images, which the networks take as a condition; None: none.
        on_preview: called with the averaged model and the images seen, on the first process.
        on_watch: the same, every `watch_images` images and at the end.
        on_weak: the same, once: after the share `config.weak_at` of the steps.
        finish: what the averaged network becomes when it is handed out; gets the objectives too.
        identity: a hash of what the run is; a checkpoint of another is refused.
        say: prints notices.
    """

    step: TrainingStep
    data: ImageSet
    groups: Groups
    parts: Sequence[Part]
    config: TrainConfig
    seed: int = 0
    device: str = "auto"
    store: CheckpointStore | None = None
    log: JsonLog | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    geometric: Geometric | None = None
    on_preview: OnPreview | None = None
    on_watch: OnPreview | None = None
    on_weak: OnPreview | None = None
    watch_images: int = 0
    identity: str = ""
    target: str = "model"
    finish: Callable[[Any, Sequence[Objective]], nn.Module] | None = None
    quiet: bool = False
    say: Callable[[str], None] = print

    def run(self) -> nn.Module:
        """Trains from the newest checkpoint, or from the start, to the end; returns the averaged network in eval mode.

        Raises:
            NonFiniteLossError: a loss or gradient is not finite; nothing was updated with it.
            RunError: the checkpoint belongs to another run, or the disk is full.
        """
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            return self._run()

    def _run(self) -> nn.Module:
        config = self.config
        accelerator = make_accelerator(self.device, config.precision, min(self.data.shape[:2]))
        self.precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
        self.dist = Dist.current()
        device: torch.device = accelerator.device
        set_backends(config.deterministic)
        self.step.to(device)
        model = self.step.networks[self.target]
        data = cast(Trainable, model)
        self.loaders = make_loaders(
            self.parts, self.data, self.groups, config.batch_size,
            seed=self.seed, dist=self.dist, accumulate=config.accumulate, device=device,
        )  # fmt: skip
        update = Update(
            self.step, self.loaders, config, accelerator, codec=data.codec, process=data.process, target=self.target,
            seed=self.seed, augmentation=self.augmentation, geometric=self.geometric,
        )  # fmt: skip
        first = self._resume(update)
        update.wrap(self.say if self.dist.main and not self.quiet else lambda _: None)

        cadence = make_cadence(config, self.watch_images)
        sums: dict[str, Tensor] = {}
        shares: dict[str, float] = {}
        counted = 0
        began = time.monotonic() - self._earlier()
        self._say_how()
        title = f"train {self.target}" if self.target != "model" else "train"
        with Progress(
            title, config.steps * config.batch_size, start=first * config.batch_size,
            quiet=self.quiet or not self.dist.main,
        ) as progress:  # fmt: skip
            for step in range(first, config.steps):
                due = cadence.due(step, config)
                if due.shares:
                    shares = update.shares(step)
                losses = update.gradients(step)
                sums = {k: sums[k] + v if k in sums else v for k, v in losses.items()}
                counted += 1
                seen = (step + 1) * config.batch_size
                # on a CPU reading costs nothing; on a GPU the device skips updates that are not finite until the log
                if device.type == "cpu" or due.log:
                    self._check_finite(losses, sums, step)
                update.apply(step)
                if due.log:
                    row = self._log_row(
                        sums, shares, counted, seen, step, learning_rate(config, step), time.monotonic() - began
                    )
                    progress.update(seen, f"loss {row['loss']:.4f}")
                    sums, shares, counted = {}, {}, 0
                else:
                    progress.update(seen)
                # these first: killed before the checkpoint, a resumed run comes by here again
                calls = ((due.preview, self.on_preview), (due.watch, self.on_watch), (due.weak, self.on_weak))
                for wanted, call in calls:
                    if wanted and call and self.dist.main:
                        call(cast(DiffusionModel, self._averaged(update)), seen)
                if due.checkpoint and self.store and self.dist.main:
                    self.store.save(seen, update.state(), self._meta(step + 1, update))
        return self._averaged(update)

    def _resume(self, update: Update) -> int:
        found = self.store.latest(self.say) if self.store and self.dist.main else None
        if self.dist.world > 1:
            path = self.dist.broadcast(found.path if found else None)
            if self.store and not self.dist.main and path is not None:
                found = self.store.latest(lambda _: None)
            self.dist.barrier()
        if found is None:
            if self.log and self.dist.main:
                self.log.cut(lambda row: False)
            return 0
        if found.meta.get("identity") != self.identity:
            raise RunError(
                f"the checkpoint {found.path} belongs to a run with other data or options",
                "repeat the original command, or use another run folder",
            )
        update.restore(found)
        first = int(found.meta["step"])
        if self.log and self.dist.main:
            self.log.cut(lambda row: row.get("step", 0) <= first)
        if self.dist.main and not self.quiet:
            was = found.meta.get("precision", self.precision)
            other = "" if was == self.precision else f", in {self.precision} what was trained in {was} so far"
            self.say(f"continuing after {first * self.config.batch_size:,} images{other}")
        return first

    def _earlier(self) -> float:
        """Seconds that were spent before this call, as the log has them."""
        rows = read_jsonl(self.log.path) if self.log else []
        return float(rows[-1]["seconds"]) if rows else 0.0

    def _meta(self, step: int, update: Update) -> dict[str, Any]:
        ema_step = update.ema.optimization_step
        return {"step": step, "ema_step": ema_step, "identity": self.identity, "precision": self.precision}

    def _averaged(self, update: Update) -> nn.Module:
        """A finished copy of the network with the averaged weights; the training weights are not touched."""
        result = update.average(self.step.networks[self.target])
        with torch.no_grad():
            return result if self.finish is None else self.finish(result, self.step.active).eval()

    def _check_finite(self, losses: Mapping[str, Tensor], sums: Mapping[str, Tensor], step: int) -> None:
        if bool(torch.isfinite(losses["grad_norm"])) and bool(torch.isfinite(sums["loss"])):
            return
        bad = [name for name, value in {**sums, **losses}.items() if not bool(torch.isfinite(value))]
        terms = [name for name in bad if "/" in name] or bad
        newest = self.store.paths()[-1:] if self.store else []
        kept = f"the checkpoint {newest[0].name} is kept" if newest else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"step {step + 1}: not finite: {', '.join(terms)}; the update was not made and {kept}",
            "lower train.lr or the weight of that term, lengthen train.warmup_images, or use --train.precision fp32; "
            "then repeat the command in a new run folder",
        )

    def _log_row(
        self,
        sums: Mapping[str, Tensor],
        shares: Mapping[str, float],
        counted: int,
        seen: int,
        step: int,
        lr: float,
        seconds: float,
    ) -> dict[str, Any]:
        names = sorted(sums)
        mean = self.dist.total(torch.stack([sums[n] / counted for n in names])) / self.dist.world
        row = dict(zip(names, (float(v) for v in mean.tolist()), strict=True))
        if self.log and self.dist.main:
            batch: dict[str, Any] = {"batch": self.config.batch_size, "compared": self.config.compared}
            disk = {id(p.images): p.images.waited for p in self.loaders if not p.images.on_device}
            if disk:
                batch["waited"] = round(sum(disk.values()), 3)  # seconds, for images on disk, since the start
            self.log.write(step=step + 1, images=seen, lr=lr, seconds=round(seconds, 3), **batch, **row, **shares)
        return row

    def _say_how(self) -> None:
        config = self.config
        if config.precision == "auto" and self.precision == "bf16" and self.dist.main and not self.quiet:
            self.say("in bfloat16, for which this machine has units (--train.precision fp32: without them)")
        if config.compared < config.batch_size and self.dist.main and not self.quiet:
            self.say(
                f"batches of {config.batch_size} in {config.accumulate} micro-batches: losses that compare rows with "
                f"each other (contrasts, transfer) compare {config.compared}"
            )
