"""The classifier's loop: images are augmented on the device, steps are counted, and a stopped training goes on.

Nothing here knows any recipe by name. A step's rows, augmentation and mixing are pure functions of (seed, step), so
what follows a checkpoint does not depend on what came before it. The network is not spread over processes: these
trainings are many and small, so that several run at a time instead, in threads. None of them may make an
`accelerate.Accelerator`: that empties and refills the environment of the process (accelerate 1.15), which torch's batch
normalisation reads in every forward pass of every thread: a segmentation fault in getenv, once in some thousand times.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbdiff.data.augment import scaled
from imbdiff.data.gather import Gather
from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.batch_loss import BatchLoss
from imbdiff.recognition.batch_norm import plain, synthetic_rows
from imbdiff.recognition.decoupled import ScaledHead, finished_head, linear_head
from imbdiff.recognition.fitting import check_head, new_network
from imbdiff.recognition.mixing import Mixed, mix
from imbdiff.recognition.networks import Classifier
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.predict import predict
from imbdiff.recognition.recipes import Recipe
from imbdiff.recognition.timeline import Stage, stages_of
from imbdiff.recognition.use import Mixture
from imbdiff.runtime.checkpoint import Checkpoint, CheckpointStore
from imbdiff.runtime.device import resolve_device, resolve_precision
from imbdiff.runtime.dist import launched
from imbdiff.runtime.errors import NonFiniteLossError
from imbdiff.runtime.log import JsonLog
from imbdiff.runtime.streams import seed_of, torch_rng

CHECK_EVERY = 50
"""Steps between looks at the loss: each look waits for the device."""
SAVE_EVERY = 30.0
"""Seconds between checkpoints: shorter trainings write none."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What training gives.

    Attributes:
        last: the network after the last step, in eval mode, with a plain head.
        best: that of the look with the highest balanced accuracy on validation images; None: nobody looked.
        best_step: steps done by then.
        steps: in all.
    """

    last: Classifier
    best: Classifier | None
    best_step: int | None
    steps: int


@dataclass(eq=False)
class Loop:
    """One training; the arguments are those of :func:`imbdiff.recognition.fit.train_classifier`.

    Attributes:
        counts: (C,) images of each class, for recipes that need them.
        real_counts: the same in the steps that see real images only.
    """

    mixture: Mixture
    plan: FitPlan
    recipe: Recipe
    counts: np.ndarray | None
    real_counts: np.ndarray | None
    seed: int
    device: torch.device
    val: ImageSet | None
    looks: int
    stop: Callable[[], bool] | None
    name: str
    store: CheckpointStore | None
    log: JsonLog | None
    identity: str

    def run(self) -> Trained:
        """Trains to the end, from the newest checkpoint where there is one; what it is at when it is stopped."""
        plan, recipe, mixture = self.plan, self.recipe, self.mixture
        self._settle()
        self.network = self._network(self.seed).to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        check_head(self.network, recipe)
        self._prepare()
        stages = stages_of(plan, recipe, mixture.use, mixture.synthetic)
        total = sum(s.steps for s in stages)
        self.ends_real = stages[-1].real_only < stages[-1].steps
        looks = min(self.looks, total) if self.val is not None and len(self.val) else 0
        self.best: dict[str, Any] = {}
        self._saved = time.monotonic()
        resumed = self._checkpoint()
        done = 0
        for stage in stages:
            end = done + stage.steps
            first = done if resumed is None else int(resumed.meta["step"])
            if first >= end and stage is not stages[-1]:
                done = end
                continue
            optimizer = self._begin(stage, first > done, resumed if first >= done else None)
            for step in range(max(0, first - done), stage.steps):
                loss = self._step(stage, step, done + step, optimizer)
                at = done + step + 1
                if at % CHECK_EVERY == 0 or at == total:
                    if self.stop is not None and self.stop():
                        return Trained(self.network.eval(), None, None, at)
                    self._check(loss, at, optimizer)
                if at * looks // total > (at - 1) * looks // total:
                    self._look(at)
                if at % CHECK_EVERY == 0 and at < total:
                    self._save(at, optimizer)
            done, resumed = end, None
        best = None
        if self.best:
            best = self._plain(self._loaded(self.best["stage"], self.best["state"]))
        return Trained(self._plain(self.network), best, self.best.get("step"), total)

    def _settle(self) -> None:
        """Finds device and precision."""
        if self.device.index is None or not launched():  # under a launch an index is this process's own, found already
            self.device = resolve_device(str(self.device))
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)  # of this thread: memory pinned in it is that GPU's
        self.bf16 = resolve_precision(self.plan.precision, self.device, min(self.mixture.real.shape[:2])) == "bf16"

    def _network(self, seed: int) -> Classifier:
        return new_network(self.plan, self.recipe, self.mixture.images, seed, split=self.mixture.split)

    def _prepare(self) -> None:
        """What every step uses, on the device."""
        mixture, device = self.mixture, self.device
        self.data = Gather(mixture.images.images, device)
        self.labels = torch.from_numpy(np.array(mixture.images.labels)).to(device)
        self.row_weights: dict[tuple[bool, str], Tensor] = {}
        self.loss = {False: BatchLoss(self.recipe, self.counts, device)}
        self.loss[True] = BatchLoss(self.recipe, self.real_counts, device)
        self.counts_tensor = None if self.counts is None else torch.from_numpy(self.counts).float().to(device)

    def _enter(self, stage: Stage) -> torch.optim.Optimizer:
        """Makes the network ready for a stage, and an optimizer of what it trains."""
        network = self.network
        if stage.trains == "new head":
            drawn = self._network(seed_of(self.seed, "second head")).head.to(self.device)
            network.head.load_state_dict(drawn.state_dict())
        if stage.trains == "scale":
            network.head = ScaledHead(linear_head(network.head, self.recipe.label))
        network.train()
        if stage.trains != "all":
            network.requires_grad_(False)
            network.eval()  # the body's statistics stay
            (network.head.scale if isinstance(network.head, ScaledHead) else network.head).requires_grad_(True)
        return torch.optim.SGD(
            [p for p in network.parameters() if p.requires_grad],
            lr=self.plan.learning_rate, momentum=self.plan.momentum, weight_decay=self.plan.weight_decay,
            nesterov=self.plan.nesterov and self.plan.momentum > 0, fused=True if self.device.type == "cuda" else None,
        )  # fmt: skip

    def _step(self, stage: Stage, step: int, at: int, optimizer: torch.optim.Optimizer) -> Tensor:
        plan, recipe = self.plan, self.recipe
        deferred = stage.trains == "all" and step < recipe.deferred * stage.steps
        law = "natural" if deferred else stage.law
        index = self._rows(stage, step, law)
        if not self.data.on_device and step + 1 < stage.steps:
            self.data.ahead(self._rows(stage, step + 1, law))
        rows = torch.from_numpy(index).to(self.device)
        draws = plan.augmentation.draw(plan.batch_size, torch_rng(self.seed, "classifier augmentation", at))
        x = scaled(plan.augmentation.apply(self.data.rows(index), draws.to(self.device)))
        y = self.labels[rows]
        mixed: Mixed | None = None
        if recipe.mixing != "none" and stage.trains == "all":
            generator = torch_rng(self.seed, "classifier mixing", at)
            counts = self.counts_tensor if self.counts_tensor is not None else x.new_ones(1)
            mixed = mix(recipe.mixing, x, y, counts, generator)
            x = x if mixed is None else mixed.x
        narrow = torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)
        with self._synthetic_rows(rows), narrow:
            logits = self.network(x.contiguous(memory_format=torch.channels_last)).float()
        real_only = step >= stage.real_only
        weights = self._weights(real_only, law)
        own = None if weights is None else weights[rows]
        value = self.loss[real_only](logits, y, own, mixed, weighted=not deferred)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step, stage.steps)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    def _weights(self, real_only: bool, law: str) -> Tensor | None:
        """(N + M,) weights of the images, relative to their mean in such batches."""
        found = self.mixture.row_weights
        if found is not None and (real_only, law) not in self.row_weights:
            relative = found / self.mixture.mean_weight(real_only, law)
            self.row_weights[real_only, law] = torch.from_numpy(relative).float().to(self.device)
        return self.row_weights.get((real_only, law))

    def _rows(self, stage: Stage, step: int, law: str) -> np.ndarray:
        return self.mixture.rows(step, law, real_only=step >= stage.real_only, name=stage.name)

    def _synthetic_rows(self, rows: Tensor) -> Any:
        """Under separate batch norm, says which rows are synthetic."""
        if not self.mixture.split:
            return nullcontext()
        return synthetic_rows(self.network, rows >= self.mixture.num_real)

    def _check(self, loss: Tensor, at: int, optimizer: torch.optim.Optimizer) -> None:
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"{self.name}: the loss is {value} at step {at}",
                f"use a smaller learning rate than {self.plan.learning_rate}",
            )
        if self.log is not None:
            self.log.write(step=at, loss=value, lr=optimizer.param_groups[0]["lr"])

    # -- the best on validation images

    def _look(self, at: int) -> None:
        assert self.val is not None
        training = self.network.training
        found = predict(self._plain(self.network), self.val)
        self.network.train(training)
        right = [float((found[self.val.labels == k] == k).mean()) for k in np.unique(self.val.labels)]
        value = float(np.mean(right))
        if not self.best or value > self.best["value"]:
            state = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
            scaled = isinstance(self.network.head, ScaledHead)
            self.best = {"value": value, "step": at, "stage": "scale" if scaled else "", "state": state}

    def _plain(self, network: Classifier) -> Classifier:
        """A copy that decides: with a plain head, and statistics of real images only."""
        counts = self.real_counts if self.ends_real else self.counts
        prior = None if counts is None else counts / counts.sum()
        made = copy.deepcopy(network).requires_grad_(True).eval()
        made.head = finished_head(made.head, self.recipe, prior)
        if self.mixture.split:
            made = plain(made)
        return made

    def _loaded(self, stage: str, state: dict[str, Tensor]) -> Classifier:
        made = self._network(self.seed).to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if stage == "scale":
            made.head = ScaledHead(linear_head(made.head, self.recipe.label))
        made.load_state_dict(state)
        return made

    # -- checkpoints

    def _save(self, at: int, optimizer: torch.optim.Optimizer) -> None:
        if self.store is None or time.monotonic() - self._saved < SAVE_EVERY:
            return
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for i, p in enumerate(optimizer.param_groups[0]["params"]):
            if "momentum_buffer" in optimizer.state[p]:
                tensors[f"momentum.{i:04d}"] = optimizer.state[p]["momentum_buffer"]
        tensors |= {f"best.{k}": v for k, v in self.best.get("state", {}).items()}
        best = {k: v for k, v in self.best.items() if k != "state"}
        self.store.save(at, tensors, {"identity": self.identity, "step": at, "best": best})
        self._saved = time.monotonic()

    def _checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint of this very training, with which the log is cut back and the best is as it was.

        Those of another training are removed: the store keeps the highest steps, and would drop new ones for them.
        """
        found = None if self.store is None else self.store.latest()
        if found is None or found.meta["identity"] != self.identity:
            for path in [] if self.store is None else self.store.paths():
                shutil.rmtree(path, ignore_errors=True)
            if self.log is not None:
                self.log.cut(lambda row: False)
            return None
        if self.log is not None:
            self.log.cut(lambda row: row["step"] <= found.meta["step"])
        if found.meta["best"]:
            state = {k.removeprefix("best."): v for k, v in found.tensors.items() if k.startswith("best.")}
            self.best = {**found.meta["best"], "state": state}
        return found

    def _begin(self, stage: Stage, inside: bool, resumed: Checkpoint | None) -> torch.optim.Optimizer:
        """Enters a stage; from a checkpoint made `inside` it, or at the end of the one before."""
        if resumed is None:
            return self._enter(stage)
        state = {k.removeprefix("network."): v for k, v in resumed.tensors.items() if k.startswith("network.")}
        if not inside:
            self.network.load_state_dict(state)
            return self._enter(stage)
        optimizer = self._enter(stage)
        self.network.load_state_dict(state)
        for i, p in enumerate(optimizer.param_groups[0]["params"]):
            if f"momentum.{i:04d}" in resumed.tensors:
                optimizer.state[p]["momentum_buffer"] = resumed.tensors[f"momentum.{i:04d}"].to(p)
        return optimizer
