"""The one loop of this package, for diffusion models and classifiers: update after update, resumed by calling it again.

A step's batch is a pure function of (seed, step), so what follows a checkpoint does not depend on what came before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from imbdiff.runtime.checkpoint import Checkpoint, CheckpointStore
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import NonFiniteLossError, RunError
from imbdiff.runtime.log import JsonLog, read_jsonl


class Learner(Protocol):
    """What the loop trains."""

    optimizer: torch.optim.Optimizer

    def gradients(self, step: int) -> dict[str, Tensor]:
        """Sets the gradients of step number `step`, from 0. Returns named scalars on the device, "loss" among them."""

    def apply(self, step: int) -> None:
        """Updates the weights by these gradients."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON values from which training continues bit for bit."""

    def restore(self, found: Checkpoint) -> None:
        """Takes over what `state` gave."""

    def columns(self) -> dict[str, Any]:
        """Further columns of a row of the log."""


@dataclass(frozen=True)
class TrainingFiles:
    """Where the checkpoints and the log of a training go, and a hash of what is trained; None: nowhere."""

    store: CheckpointStore | None = None
    log: JsonLog | None = None
    identity: str = ""


@dataclass
class Loop:
    """The steps of one training.

    Attributes:
        steps: in all.
        batch_size: images per step, over all processes.
        log_every: steps between rows of the log, which hold means over these steps; there is one at each checkpoint.
        save_every: steps between checkpoints, of which the last step is one.
        save_seconds: least time between them, also at the last step.
        name: of what is trained, in errors.
        remedy: for a loss that is not finite.
        report: prints notices.
    """

    learner: Learner
    steps: int
    batch_size: int
    files: TrainingFiles
    log_every: int
    save_every: int
    save_seconds: float = 0.0
    dist: Dist = field(default_factory=Dist)
    name: str = ""
    remedy: str = "use a smaller learning rate"
    report: Callable[[str], None] = print
    first: int = 0

    def resume(self) -> Mapping[str, Any]:
        """Continues from the newest whole checkpoint, with the log as it was then; its JSON values, {} without one.

        Raises:
            RunError: the checkpoint is of other data or options.
        """
        store, log, main = self.files.store, self.files.log, self.dist.main
        found = store.latest(self.report) if store and main else None
        if self.dist.world > 1:
            there = self.dist.broadcast(found is not None)
            if store and there and not main:
                found = store.latest(lambda _: None)
            self.dist.barrier()
        if found is not None:
            if found.meta.get("identity") != self.files.identity:
                raise RunError(
                    f"the checkpoint {found.path} belongs to a run with other data or options",
                    "repeat the original command, or use another run folder",
                )
            self.learner.restore(found)
            self.first = int(found.meta["step"])
        if log and main and found is not None and "log" in found.meta:
            log.restore(found.meta["log"])
        elif log and main:  # a checkpoint of an earlier version has no log
            log.cut(lambda row: row.get("step", 0) <= self.first)
        return {} if found is None else found.meta

    def run(self) -> Iterator[tuple[int, dict[str, float] | None]]:
        """Trains; after each update gives how many there were, and the means of the losses where a row was logged.

        The checkpoint follows: a training killed in between passes there again.

        Raises:
            NonFiniteLossError: a loss or gradient is not finite; nothing was updated with it.
        """
        sums: dict[str, Tensor] = {}
        counted, saved = 0, time.monotonic()
        began = saved - self._seconds_before()
        for step in range(self.first, self.steps):
            done = step + 1
            losses = self.learner.gradients(step)
            sums = {name: sums[name] + value if name in sums else value for name, value in losses.items()}
            counted += 1
            save = done == self.steps or done % self.save_every == 0
            save = save and time.monotonic() - saved >= self.save_seconds
            logged = save or done == self.steps or done % self.log_every == 0
            # on a CPU reading costs nothing; a GPU is waited for when the log wants numbers
            if logged or losses["loss"].device.type == "cpu":
                self._check_finite(sums, done)
            self.learner.apply(step)
            row = None
            if logged:
                row = self._write(sums, counted, done, time.monotonic() - began)
                sums, counted = {}, 0
            yield done, row
            if save and self.files.store and self.dist.main:
                tensors, values = self.learner.state()
                rows = read_jsonl(self.files.log.path) if self.files.log else []
                meta = {**values, "step": done, "identity": self.files.identity, "log": rows}
                self.files.store.save(done * self.batch_size, tensors, meta)
                saved = time.monotonic()

    def _seconds_before(self) -> float:
        """Seconds that were spent before this call, as the log has them."""
        rows = read_jsonl(self.files.log.path) if self.files.log else []
        return float(rows[-1]["seconds"]) if rows else 0.0

    def _check_finite(self, sums: Mapping[str, Tensor], done: int) -> None:
        if bool(torch.isfinite(sums["loss"] + sums.get("grad_norm", 0.0))):
            return
        bad = [name for name, value in sums.items() if not bool(torch.isfinite(value))]
        terms = [name for name in bad if "/" in name] or bad
        newest = self.files.store.paths()[-1:] if self.files.store else []
        kept = f"the checkpoint {newest[0].name} is kept" if newest else "there is no checkpoint yet"
        raise NonFiniteLossError(
            f"{self.name + ', ' if self.name else ''}step {done}: not finite: {', '.join(terms)}; {kept}",
            self.remedy,
        )

    def _write(self, sums: Mapping[str, Tensor], counted: int, done: int, seconds: float) -> dict[str, float]:
        """Logs the means of `sums` over steps and processes, and returns them."""
        names = sorted(sums)
        mean = self.dist.total(torch.stack([sums[n] / counted for n in names])) / self.dist.world
        row = dict(zip(names, (float(v) for v in mean.tolist()), strict=True))
        if self.files.log and self.dist.main:
            self.files.log.write(
                step=done, images=done * self.batch_size, lr=self.learner.optimizer.param_groups[0]["lr"],
                seconds=round(seconds, 3), **self.learner.columns(), **row,
            )  # fmt: skip
        return row
