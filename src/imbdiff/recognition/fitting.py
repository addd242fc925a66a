"""Training one classifier: phases, steps, checkpoints. A training that was stopped continues from them.

Nothing here knows any recipe by name. A step's rows, augmentation and mixing are pure functions of (seed, step), so
what follows a checkpoint does not depend on what came before it. The network is not spread over processes: these
trainings are many and small, so that several run at a time instead, in threads. None of them may make an
`accelerate.Accelerator`: that empties and refills the environment of the process (accelerate 1.15), which torch's batch
normalisation reads in every forward pass of every thread: a segmentation fault in getenv, once in some thousand times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from imbdiff.data.augment import scaled
from imbdiff.data.gather import Gather
from imbdiff.data.geometric import Geometric
from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.heads import ScaledHead, finished_head, linear_head
from imbdiff.recognition.losses import BatchLoss, distillation, mix
from imbdiff.recognition.networks import Classifier, build_network
from imbdiff.recognition.plan import MOMENTUM, FitPlan
from imbdiff.recognition.recipes import Recipe, get_recipe
from imbdiff.recognition.use import Mixture, Use
from imbdiff.runtime.checkpoint import Checkpoint
from imbdiff.runtime.device import resolve_device, resolve_precision
from imbdiff.runtime.dist import launched
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.streams import seed_of, torch_rng
from imbdiff.training.loop import Loop, TrainingFiles

CHECK_EVERY = 50
"""Steps between readings of the loss: each reading waits for the device."""
SAVE_EVERY = 30.0
"""Seconds between checkpoints: shorter trainings write none."""


@dataclass(frozen=True)
class FitPhase:
    """A part of the steps.

    Attributes:
        name: of random streams; "" for the first.
        start, steps: the first step, and how many there are.
        trains: "all", "new head" (drawn anew) or "scale" (of the head, per class).
        sampler: distribution over classes that batches are sampled by.
        real_only: from this step of the phase on, no synthetic rows.
    """

    name: str
    start: int
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
        return [FitPhase("", 0, total, "all", recipe.sampler, real_from)]
    body = total - round(total * recipe.second_share)
    trains = "new head" if recipe.second == "crt" else "scale"
    phases = [
        FitPhase("", 0, body, "all", "natural", min(body, real_from)),
        FitPhase(f" {recipe.second}", body, total - body, trains, "balanced", max(0, real_from - body)),
    ]
    return [phase for phase in phases if phase.steps]


@dataclass(eq=False)
class Fit:
    """One training; equal arguments give equal weights, bit-identical on a CPU at one thread count.

    Attributes:
        real: the training images.
        seed: of weights, batches, augmentation and mixing; the streams do not depend on what else is compared.
        synthetic, use: generated images, and how they take part.
        changes: probability of each geometric change of an image, see :class:`imbdiff.data.geometric.Geometric`.
        teacher: gives (B, C) soft labels of (B, ch, H, W) images in [-1, 1]; the network learns them, and no labels.
        name: for error messages.
        stop: asked now and then; training ends early where it returns True.
        files: where checkpoints and the loss go; a repeated call continues from there.
    """

    real: ImageSet
    plan: FitPlan
    recipe: Recipe
    seed: int = 0
    device: str | torch.device = "cpu"
    synthetic: ImageSet | None = None
    use: Use = field(default_factory=Use)
    changes: float = 0.0
    teacher: Callable[[Tensor], Tensor] | None = None
    name: str = "classifier"
    stop: Callable[[], bool] | None = None
    files: TrainingFiles = field(default_factory=TrainingFiles)

    def run(self) -> Classifier:
        """Trains from the newest checkpoint, or from the start, to the end.

        Returns:
            The network in eval mode, with a plain head; unfinished where it was stopped.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite.
            ConfigError: recipe, network and use do not fit each other.
            RunError: the checkpoint is of another training.
        """
        self._settle()
        self._prepare()
        loop = Loop(
            self, self.plan.steps, self.plan.batch_size, self.files, CHECK_EVERY, CHECK_EVERY, SAVE_EVERY,
            name=self.name, remedy=f"use a smaller learning rate than {self.plan.lr}",
        )  # fmt: skip
        loop.resume()
        for _, row in loop.run():
            if row is not None and self.stop is not None and self.stop():
                break
        network = self.network.requires_grad_(True).eval()
        network.head = finished_head(network.head, self.recipe, self.counts)
        return network

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
        self.mixture = mixture = Mixture(self.real, self.synthetic, self.use, self.plan.batch_size, self.seed)
        self.phases = phases_of(self.plan, self.recipe, self.use, mixture.synthetic)
        # by whether batches have real images only: a loss counts what they have
        priors = {True: "train", False: self.use.prior}
        counts = {real: mixture.counts(prior) if self.recipe.needs_prior else None for real, prior in priors.items()}
        self.loss = {
            real: BatchLoss(self.recipe, counts[real], self.place, synthetic_rows=0 if real else mixture.without_prior)
            for real in counts
        }
        self.geometric = Geometric(self.changes, self.plan.symmetry)
        self.counts = counts[self.phases[-1].real_only < self.phases[-1].steps]
        self.network = self._new_network(self.seed)
        check_head(self.network, self.recipe)
        self._enter(self.phases[0])
        self.data = Gather(mixture.images.images, self.place)
        self.labels = torch.from_numpy(np.array(mixture.images.labels)).to(self.place)
        self.row_weights: dict[tuple[bool, str], Tensor | None] = {}

    def _new_network(self, seed: int) -> Classifier:
        made = new_network(self.plan, self.recipe, self.mixture.images, seed)
        return made.to(self.place).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _phase_at(self, step: int) -> FitPhase:
        return next(phase for phase in reversed(self.phases) if step >= phase.start)

    def _enter(self, phase: FitPhase) -> None:
        """Makes the network ready for a phase, and an optimizer of what it trains."""
        network, self.phase = self.network, phase
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
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
            [p for p in network.parameters() if p.requires_grad],
            lr=self.plan.lr, momentum=MOMENTUM, weight_decay=self.plan.weight_decay, nesterov=self.plan.nesterov,
            fused=True if self.place.type == "cuda" else None,
        )  # fmt: skip

    # -- what the loop asks for

    def gradients(self, step: int) -> dict[str, Tensor]:
        """Sets the gradients of step number `step`; the loss, on the device."""
        plan, recipe, phase = self.plan, self.recipe, self._phase_at(step)
        if phase is not self.phase:
            self._enter(phase)
        inside = step - phase.start
        deferred = phase.trains == "all" and inside < recipe.deferred * phase.steps
        sampler, real_only = "natural" if deferred else phase.sampler, inside >= phase.real_only
        index = self.mixture.rows(inside, sampler, real_only=real_only, name=phase.name)
        if not self.data.on_device and inside + 1 < phase.steps:
            real_next = inside + 1 >= phase.real_only
            self.data.ahead(self.mixture.rows(inside + 1, sampler, real_only=real_next, name=phase.name))
        rows = torch.from_numpy(index).to(self.place)
        draws = plan.augmentation.draw(plan.batch_size, torch_rng(self.seed, "classifier augmentation", step))
        x = scaled(plan.augmentation.apply(self.data.rows(index), draws.to(self.place)))
        if self.changes:
            change = self.geometric.draw(plan.batch_size, torch_rng(self.seed, "classifier changes", step))
            x = self.geometric.apply(x, change).clamp_(-1, 1)
        y, loss, mixed = self.labels[rows], self.loss[real_only], None
        if recipe.mixing != "none" and phase.trains == "all":
            mixed = mix(recipe.mixing, x, y, loss.counts, torch_rng(self.seed, "classifier mixing", step))
            x = x if mixed is None else mixed.x
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.network(x.contiguous(memory_format=torch.channels_last)).float()
        weights = self._weights(real_only, sampler)
        own = None if weights is None else weights[rows]
        if self.teacher is None:
            value = loss(logits, y, own, mixed, weighted=not deferred)
        else:
            value = (distillation(logits, self.teacher(x)) * (1.0 if own is None else own)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        return {"loss": value.detach()}

    def apply(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(step - self.phase.start, self.phase.steps)
        self.optimizer.step()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for i, p in enumerate(self.optimizer.param_groups[0]["params"]):
            if "momentum_buffer" in self.optimizer.state[p]:
                tensors[f"momentum.{i:04d}"] = self.optimizer.state[p]["momentum_buffer"]
        return tensors, {}

    def restore(self, found: Checkpoint) -> None:
        of: dict[str, dict[str, Tensor]] = {"network": {}, "momentum": {}}
        for key, value in found.tensors.items():
            kind, _, name = key.partition(".")
            of[kind][name] = value
        self._enter(self._phase_at(int(found.meta["step"]) - 1))
        self.network.load_state_dict(of["network"])
        parameters = self.optimizer.param_groups[0]["params"]
        for i, value in of["momentum"].items():
            p = parameters[int(i)]
            self.optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(value)

    def columns(self) -> dict[str, Any]:
        return {}

    def _weights(self, real_only: bool, sampler: str) -> Tensor | None:
        key = (real_only, sampler)
        if key not in self.row_weights:
            found = self.mixture.relative_weights(sampler, real_only=real_only)
            self.row_weights[key] = None if found is None else torch.from_numpy(found).float().to(self.place)
        return self.row_weights[key]


def fit(
    images: ImageSet,
    plan: FitPlan,
    recipe: str = "ce",
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    name: str = "classifier",
) -> Classifier:
    """The network of a training by one recipe on real images alone; see :class:`Fit`."""
    return Fit(images, plan, get_recipe(recipe), seed, device, name=name).run()


# -- what is refused beforehand


def new_network(plan: FitPlan, recipe: Recipe, images: ImageSet, seed: int) -> Classifier:
    """What a training begins with, weights drawn from `seed`."""
    return build_network(
        plan.network, images.shape, len(images.class_names), seed, head=recipe.head, normalise=plan.normalise
    )


def load_network(weights: Path, plan: FitPlan, recipe: Recipe, images: ImageSet) -> Classifier:
    """A trained network from the file of its weights, in eval mode.

    Raises:
        RunError: the file is damaged, or of another network.
    """
    network = new_network(plan, recipe, images, 0)
    network.head = finished_head(network.head, replace(recipe, second="none", adjust=False), None)
    try:
        network.load_state_dict(load_file(weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"{weights} is damaged, or of another network: {error}", "remove it: it is trained again"
        ) from error
    # as it was trained: other formats round otherwise
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def check_head(network: Classifier, recipe: Recipe) -> None:
    """Raises ConfigError where the recipe does something to the head that only a linear one takes."""
    if recipe.second != "none" or recipe.adjust:
        linear_head(network.head, recipe.label)


def check_trainings(train: ImageSet, plan: FitPlan, arms: Iterable[tuple[str, Use | None]]) -> None:
    """Refuses what :class:`Fit` would refuse after the expensive part; networks are built, and nothing is trained.

    Args:
        train: the training images; their shape and classes matter, and one image of each class is read.
        arms: recipes by name, each with how synthetic images take part; None: they do not.

    Raises:
        ConfigError: plan, recipe, use and images do not fit each other.
    """
    one = train.select(np.unique(train.labels, return_index=True)[1])
    built: dict[str, Classifier] = {}
    for name, use in dict.fromkeys(arms):
        recipe = get_recipe(name)
        mixture = Mixture(one, None if use is None else one, use or Use(), plan.batch_size, 0)
        BatchLoss(recipe, None, torch.device("cpu"), synthetic_rows=mixture.without_prior)
        if recipe.head not in built:
            built[recipe.head] = new_network(plan, recipe, train, 0)
        check_head(built[recipe.head], recipe)
