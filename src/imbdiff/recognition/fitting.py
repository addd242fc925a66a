"""Training one classifier: phases, steps, validation, checkpoints. A training that was stopped continues from them.

Nothing here knows any recipe by name. A step's rows, augmentation and mixing are pure functions of (seed, step), so
what follows a checkpoint does not depend on what came before it. The network is not spread over processes: these
trainings are many and small, so that several run at a time instead, in threads. None of them may make an
`accelerate.Accelerator`: that empties and refills the environment of the process (accelerate 1.15), which torch's batch
normalisation reads in every forward pass of every thread: a segmentation fault in getenv, once in some thousand times.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbdiff.data.augment import scaled
from imbdiff.data.gather import Gather
from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.heads import ScaledHead, finished_head, linear_head
from imbdiff.recognition.losses import BatchLoss, Mixed, mix
from imbdiff.recognition.networks import Classifier, build_network, predict
from imbdiff.recognition.plan import MOMENTUM, FitPlan
from imbdiff.recognition.recipes import Recipe, get_recipe
from imbdiff.recognition.use import Mixture, Use
from imbdiff.runtime.checkpoint import Checkpoint, TrainingFiles
from imbdiff.runtime.device import resolve_device, resolve_precision
from imbdiff.runtime.dist import launched
from imbdiff.runtime.errors import NonFiniteLossError
from imbdiff.runtime.streams import seed_of, torch_rng

CHECK_EVERY = 50
"""Steps between readings of the loss: each reading waits for the device."""
SAVE_EVERY = 30.0
"""Seconds between checkpoints: shorter trainings write none."""


@dataclass(frozen=True)
class FitPhase:
    """A part of the steps.

    Attributes:
        name: of random streams and checkpoints; "" for the first.
        steps: how many.
        trains: "all", "new head" (drawn anew) or "scale" (of the head, per class).
        sampler: distribution over classes that batches are sampled by.
        real_only: from this step of the phase on, no synthetic rows.
    """

    name: str
    steps: int
    trains: str
    sampler: str
    real_only: int


def phases_of(plan: FitPlan, recipe: Recipe, use: Use, synthetic: bool) -> list[FitPhase]:
    """The parts of a training; together they take `plan.steps`, whatever the recipe.

    Where synthetic images are not seen to the end, the last `use.last` of *all* steps see real ones only.
    """
    total = plan.steps
    real_from = total - round(total * use.last) if synthetic and use.schedule == "real-last" else total
    if recipe.second not in ("crt", "lws"):
        return [FitPhase("", total, "all", recipe.sampler, real_from)]
    body = total - round(total * recipe.second_share)
    first = FitPhase("", body, "all", "natural", min(body, real_from))
    if body == total:
        return [first]
    trains = "new head" if recipe.second == "crt" else "scale"
    return [first, FitPhase(f" {recipe.second}", total - body, trains, "balanced", max(0, real_from - body))]


@dataclass(frozen=True, eq=False)
class Trained:
    """What training gives.

    Attributes:
        last: the network after the last step, in eval mode, with a plain head.
        best: that of the highest balanced accuracy on validation images; None where there was no validation.
        best_step: steps done by then.
        steps: in all.
    """

    last: Classifier
    best: Classifier | None
    best_step: int | None
    steps: int


@dataclass(eq=False)
class Fit:
    """One training; equal arguments give equal weights, bit-identical on a CPU at one thread count.

    Attributes:
        real: the training images.
        seed: of weights, batches, augmentation and mixing; the streams do not depend on what else is compared.
        synthetic, use: generated images, and how they take part.
        val, validations: how often, evenly spaced, the balanced accuracy on `val` is measured; the best weights are
            kept beside the last.
        name: for error messages.
        stop: asked now and then; training ends early where it returns True (its result is then worthless).
        files: where checkpoints and the loss go; a repeated call continues from there.
    """

    real: ImageSet
    plan: FitPlan
    recipe: Recipe
    seed: int = 0
    device: str | torch.device = "cpu"
    synthetic: ImageSet | None = None
    use: Use = field(default_factory=Use)
    val: ImageSet | None = None
    validations: int = 0
    name: str = "classifier"
    stop: Callable[[], bool] | None = None
    files: TrainingFiles = field(default_factory=TrainingFiles)

    def run(self) -> Trained:
        """Trains to the end, from the newest checkpoint where there is one; what there is where it is stopped.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
            ConfigError: recipe, network and use do not fit each other.
        """
        self._settle()
        self._prepare()
        phases = phases_of(self.plan, self.recipe, self.use, self.mixture.synthetic)
        total = sum(phase.steps for phase in phases)
        self.ends_real = phases[-1].real_only < phases[-1].steps
        validations = min(self.validations, total) if self.val is not None and len(self.val) else 0
        resumed = self._resume()
        done = 0
        for phase in phases:
            end = done + phase.steps
            first = done if resumed is None else int(resumed.meta["step"])
            if first >= end and phase is not phases[-1]:
                done = end
                continue
            optimizer = self._begin(phase, first > done, resumed if first >= done else None)
            for step in range(max(0, first - done), phase.steps):
                loss = self._step(phase, step, done + step, optimizer)
                at = done + step + 1
                if at % CHECK_EVERY == 0 or at == total:
                    if self.stop is not None and self.stop():
                        return Trained(self.network.eval(), None, None, at)
                    self._check(loss, at, optimizer)
                if at * validations // total > (at - 1) * validations // total:
                    self._validate(at)
                if at % CHECK_EVERY == 0 and at < total:
                    self._save(at, optimizer)
            done, resumed = end, None
        best = self._finished(self._best_network()) if self.best else None
        return Trained(self._finished(self.network), best, self.best.get("step"), total)

    def _settle(self) -> None:
        """Finds device and precision."""
        device = torch.device(self.device)
        if device.index is None or not launched():  # under a launch an index is this process's own, found already
            device = resolve_device(str(device))
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # of this thread: memory pinned in it is that GPU's
        self.place = device
        self.bf16 = resolve_precision(self.plan.precision, device, min(self.real.shape[:2])) == "bf16"

    def _prepare(self) -> None:
        """Puts what every step uses on the device."""
        device = self.place
        self.mixture = mixture = Mixture(self.real, self.synthetic, self.use, self.plan.batch_size, self.seed)
        counted = self.recipe.needs_prior
        self.counts = mixture.counts(self.use.prior) if counted else None  # and in the steps that see real images only:
        self.real_counts = mixture.counts("train") if counted else None
        self.loss = {real: BatchLoss(self.recipe, self._counts(real), device) for real in (False, True)}
        self.counts_tensor = None if self.counts is None else torch.from_numpy(self.counts).float().to(device)
        self.network = self._new_network(self.seed)
        check_head(self.network, self.recipe)
        self.data = Gather(mixture.images.images, device)
        self.labels = torch.from_numpy(np.array(mixture.images.labels)).to(device)
        self.row_weights: dict[tuple[bool, str], Tensor | None] = {}
        self.best: dict[str, Any] = {}
        self._saved = time.monotonic()

    def _counts(self, real_only: bool) -> np.ndarray | None:
        return self.real_counts if real_only else self.counts

    def _new_network(self, seed: int) -> Classifier:
        made = new_network(self.plan, self.recipe, self.mixture.images, seed)
        return made.to(self.place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _enter(self, phase: FitPhase) -> torch.optim.Optimizer:
        """Makes the network ready for a phase, and an optimizer of what it trains."""
        network = self.network
        if phase.trains == "new head":
            drawn = self._new_network(seed_of(self.seed, "second head")).head
            network.head.load_state_dict(drawn.state_dict())
        if phase.trains == "scale":
            network.head = ScaledHead(linear_head(network.head, self.recipe.label))
        network.train()
        if phase.trains != "all":
            network.requires_grad_(False)
            network.eval()  # the body's statistics stay
            (network.head.scale if isinstance(network.head, ScaledHead) else network.head).requires_grad_(True)
        return torch.optim.SGD(
            [p for p in network.parameters() if p.requires_grad],
            lr=self.plan.lr, momentum=MOMENTUM, weight_decay=self.plan.weight_decay, nesterov=self.plan.nesterov,
            fused=True if self.place.type == "cuda" else None,
        )  # fmt: skip

    def _step(self, phase: FitPhase, step: int, at: int, optimizer: torch.optim.Optimizer) -> Tensor:
        """Step number `step` of the phase and `at` of all; returns the loss, on the device."""
        plan, recipe = self.plan, self.recipe
        deferred = phase.trains == "all" and step < recipe.deferred * phase.steps
        sampler = "natural" if deferred else phase.sampler
        index = self._rows(phase, step, sampler)
        if not self.data.on_device and step + 1 < phase.steps:
            self.data.ahead(self._rows(phase, step + 1, sampler))
        rows = torch.from_numpy(index).to(self.place)
        draws = plan.augmentation.draw(plan.batch_size, torch_rng(self.seed, "classifier augmentation", at))
        x = scaled(plan.augmentation.apply(self.data.rows(index), draws.to(self.place)))
        y = self.labels[rows]
        mixed: Mixed | None = None
        if recipe.mixing != "none" and phase.trains == "all":
            generator = torch_rng(self.seed, "classifier mixing", at)
            counts = self.counts_tensor if self.counts_tensor is not None else x.new_ones(1)
            mixed = mix(recipe.mixing, x, y, counts, generator)
            x = x if mixed is None else mixed.x
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.network(x.contiguous(memory_format=torch.channels_last)).float()
        real_only = step >= phase.real_only
        weights = self._weights(real_only, sampler)
        own = None if weights is None else weights[rows]
        value = self.loss[real_only](logits, y, own, mixed, weighted=not deferred)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step, phase.steps)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value.detach()

    def _rows(self, phase: FitPhase, step: int, sampler: str) -> np.ndarray:
        return self.mixture.rows(step, sampler, real_only=step >= phase.real_only, name=phase.name)

    def _weights(self, real_only: bool, sampler: str) -> Tensor | None:
        key = (real_only, sampler)
        if key not in self.row_weights:
            found = self.mixture.relative_weights(sampler, real_only=real_only)
            self.row_weights[key] = None if found is None else torch.from_numpy(found).float().to(self.place)
        return self.row_weights[key]

    def _check(self, loss: Tensor, at: int, optimizer: torch.optim.Optimizer) -> None:
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"{self.name}: the loss is {value} at step {at}", f"use a smaller learning rate than {self.plan.lr}"
            )
        self.files.write(step=at, loss=value, lr=optimizer.param_groups[0]["lr"])

    # -- the best on validation images

    def _validate(self, at: int) -> None:
        assert self.val is not None
        training = self.network.training
        found = predict(self._finished(self.network), self.val)
        self.network.train(training)
        value = float(np.mean([(found[self.val.labels == k] == k).mean() for k in np.unique(self.val.labels)]))
        if not self.best or value > self.best["value"]:
            state = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}
            self.best = {
                "value": value,
                "step": at,
                "scaled": isinstance(self.network.head, ScaledHead),
                "state": state,
            }

    def _finished(self, network: Classifier) -> Classifier:
        """A copy that decides, with a plain head."""
        counts = self._counts(self.ends_real)
        made = copy.deepcopy(network).requires_grad_(True).eval()
        made.head = finished_head(made.head, self.recipe, None if counts is None else counts / counts.sum())
        return made

    def _best_network(self) -> Classifier:
        made = self._new_network(self.seed)
        if self.best["scaled"]:
            made.head = ScaledHead(linear_head(made.head, self.recipe.label))
        made.load_state_dict(self.best["state"])
        return made

    # -- checkpoints

    def _save(self, at: int, optimizer: torch.optim.Optimizer) -> None:
        if self.files.store is None or time.monotonic() - self._saved < SAVE_EVERY:
            return
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for i, p in enumerate(optimizer.param_groups[0]["params"]):
            if "momentum_buffer" in optimizer.state[p]:
                tensors[f"momentum.{i:04d}"] = optimizer.state[p]["momentum_buffer"]
        tensors |= {f"best.{k}": v for k, v in self.best.get("state", {}).items()}
        self.files.save(at, at, tensors, best={k: v for k, v in self.best.items() if k != "state"})
        self._saved = time.monotonic()

    def _resume(self) -> Checkpoint | None:
        """The newest checkpoint of this very training, with which the best is as it was; those of another go."""
        found = self.files.resume(discard_others=True)
        if found is not None and found.meta["best"]:
            state = {k.removeprefix("best."): v for k, v in found.tensors.items() if k.startswith("best.")}
            self.best = {**found.meta["best"], "state": state}
        return found

    def _begin(self, phase: FitPhase, inside: bool, resumed: Checkpoint | None) -> torch.optim.Optimizer:
        """Enters a phase; from a checkpoint made `inside` it, or at the end of the one before."""
        if resumed is None:
            return self._enter(phase)
        state = {k.removeprefix("network."): v for k, v in resumed.tensors.items() if k.startswith("network.")}
        if not inside:
            self.network.load_state_dict(state)
            return self._enter(phase)
        optimizer = self._enter(phase)
        self.network.load_state_dict(state)
        for i, p in enumerate(optimizer.param_groups[0]["params"]):
            if f"momentum.{i:04d}" in resumed.tensors:
                optimizer.state[p]["momentum_buffer"] = resumed.tensors[f"momentum.{i:04d}"].to(p)
        return optimizer


def fit(
    images: ImageSet,
    plan: FitPlan,
    recipe: str = "ce",
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    name: str = "classifier",
) -> Classifier:
    """The last network of a training by one recipe on real images alone; see :class:`Fit`."""
    return Fit(images, plan, get_recipe(recipe), seed, device, name=name).run().last


# -- what is refused beforehand


def new_network(plan: FitPlan, recipe: Recipe, images: ImageSet, seed: int) -> Classifier:
    """What a training begins with, weights drawn from `seed`."""
    return build_network(
        plan.network, images.shape, len(images.class_names), seed, head=recipe.head, normalise=plan.normalise
    )


def check_head(network: Classifier, recipe: Recipe) -> None:
    """Raises ConfigError where the recipe does something to the head that only a linear one takes."""
    if recipe.second != "none" or recipe.adjust:
        linear_head(network.head, recipe.label)


def check_trainings(train: ImageSet, plan: FitPlan, arms: Iterable[tuple[str, Use | None]]) -> None:
    """Refuses what :class:`Fit` would refuse after the expensive part; networks are built, and nothing is trained.

    Args:
        train: the training images; their shape and classes matter, and one image is read.
        arms: recipes by name, each with how synthetic images take part; None: they do not.

    Raises:
        ConfigError: plan, recipe, use and images do not fit each other.
    """
    one = train.select([0])
    built: dict[str, Classifier] = {}
    for name, use in dict.fromkeys(arms):
        recipe = get_recipe(name)
        Mixture(one, None if use is None else one, use or Use(), plan.batch_size, 0)
        if recipe.head not in built:
            built[recipe.head] = new_network(plan, recipe, train, 0)
        check_head(built[recipe.head], recipe)
