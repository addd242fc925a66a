"""One update after another: batches, one wrapped call per micro-batch, clipping, Adam, averaging. Nothing is read
back from the device here: losses stay there until the log wants them.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from imbdiff.config import TrainConfig
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.runtime.checkpoint import Checkpoint
from imbdiff.runtime.compiling import compile_if_equal, compiles
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.streams import seed_of
from imbdiff.training.parts import Batches
from imbdiff.training.step import TrainingStep

#: largest norm of the gradient
CLIP = 1.0


def learning_rate(config: TrainConfig, step: int) -> float:
    """Adam's learning rate at `step`: a linear warm-up (at most a tenth of the run), then constant or cosine to 0."""
    warmup = min(config.warmup_images // config.batch_size, config.steps // 10)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(config.steps - warmup, 1)))


class Update:
    """Updates the weights of a training step, and the average of its network "model".

    Args:
        step: on the device already.
        batches: of its parts.
        config: rates, label dropout.
        accelerator: of accelerate; wraps the step.

    Attributes:
        parameters: all that are trained, by name.
        averaged: those of "model" that the average covers.
        ema: diffusers' `EMAModel` of them.
    """

    def __init__(self, step: TrainingStep, batches: Batches, config: TrainConfig, accelerator: Any) -> None:
        from diffusers.training_utils import EMAModel

        self.step, self.batches, self.config, self.accelerator = step, batches, config, accelerator
        self.device: torch.device = accelerator.device
        self.precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
        if batches.channels_last:
            step.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.parameters = {n: p for n, p in step.named_parameters() if p.requires_grad}
        self.averaged = [p for p in step.networks["model"].parameters() if p.requires_grad]
        decay = 0.5 ** (1 / max(config.ema_half_life * config.steps, 1e-9))
        self.ema = EMAModel(self.averaged, decay=decay, foreach=True)
        self.ema.to(device=self.device)
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.parameters.values(), lr=config.lr, fused=True)
        # a share of a gradient costs a backward pass for every term: a few percent of a training at most
        self.share_every = max(1, config.steps // 20, min(100, config.steps // 2))
        self.shares: dict[str, float] = {}
        self.wrapped: nn.Module = step
        self._first = True

    def wrap(self, notify: Callable[[str], None]) -> None:
        """Makes the step ready to be called, and compiles its networks on a GPU; weights are loaded before."""
        with warnings.catch_warnings():  # accelerate asks torch by a name that torch 2.13 calls deprecated
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            self.wrapped = self.accelerator.prepare_model(self.step)
        self.wrapped.train()
        if compiles(self.device) and not self.config.deterministic:
            batch = self.batches(0)

            def loss() -> Tensor:  # of this process alone: a compiler that fails on one leaves no other waiting
                return self.step(batch)["loss"]

            bf16 = self.accelerator.mixed_precision == "bf16"
            compile_checked(self.step, loss, bf16=bf16, notify=notify)

    def gradients(self, step: int) -> dict[str, Tensor]:
        """Sets the clipped gradients of step number `step`; returns the named losses, on the device.

        A gradient that is not finite makes `apply` skip the update, on the device itself.
        """
        config = self.config
        losses: dict[str, Tensor] = {}
        for micro in range(config.accumulate):
            batch = self.batches(step, micro)
            if micro == 0 and (step + 1) % self.share_every == 0:
                self._reseed(step, 0)
                self.shares = self.step.gradient_shares(batch, self.accelerator.autocast)
            self._reseed(step, micro)
            last = micro == config.accumulate - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                out = self.wrapped(batch)
                self.accelerator.backward(out["loss"] / config.accumulate)
            for name, value in out.items():
                value = value.detach().float() / config.accumulate
                losses[name] = losses[name] + value if name in losses else value
        if self._first:
            _check_used(self.parameters)
            self._first = False
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP)
        # after the all-reduce all processes see the same norm
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        losses["grad_norm"] = norm.detach()
        return losses

    def _reseed(self, step: int, micro: int) -> None:
        """The one global generator in use: network dropout's."""
        torch.manual_seed(seed_of(self.batches.seed, "dropout", step, micro, self.batches.dist.rank))

    def apply(self, step: int) -> None:
        """Takes the step that `gradients` prepared, and averages."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.step(self.averaged)

    def columns(self) -> dict[str, Any]:
        """Of the log, since the row before: batch sizes, shares of the gradient, and seconds waited for the disk."""
        found: dict[str, Any] = {"batch": self.config.batch_size, "compared": self.config.compared, **self.shares}
        if not self.batches.images.on_device:
            found["waited"] = round(self.batches.images.waited, 3)  # since the start
        self.shares = {}
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a checkpoint holds."""
        state: dict[str, Tensor] = {f"step.{n}": p for n, p in self.parameters.items()}
        for i, shadow in enumerate(self.ema.shadow_params):
            state[f"ema.{i}"] = shadow
        for n, p in self.parameters.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                state[f"adam.{key}.{n}"] = torch.as_tensor(value)
        for n, buffer in self.step.objectives.named_buffers():  # EMA prototypes and the like
            state[f"buffer.{n}"] = buffer
        return state, {"ema_step": self.ema.optimization_step, "precision": self.precision}

    def restore(self, found: Checkpoint) -> None:
        """Takes over what `state` gave.

        Raises:
            RunError: it is of another model.
        """
        tensors = found.tensors
        try:
            with torch.no_grad():
                for n, p in self.parameters.items():
                    p.copy_(tensors[f"step.{n}"])
                for i, shadow in enumerate(self.ema.shadow_params):
                    shadow.copy_(tensors[f"ema.{i}"])
                for n, buffer in self.step.objectives.named_buffers():
                    buffer.copy_(tensors[f"buffer.{n}"])
        except (KeyError, RuntimeError) as error:
            raise RunError(
                f"the checkpoint {found.path} does not fit this model: {error}", "use another run folder"
            ) from error
        self.ema.optimization_step = int(found.meta["ema_step"])
        moments: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, kind, name = key.split(".", 2)
                moments.setdefault(name, {})[kind] = value
        for n, own in moments.items():
            p = self.parameters[n]
            # in the memory format of the weights: fused Adam pairs values by where they lie
            self.optimizer.state[p] = {
                kind: torch.empty_like(p).copy_(v) if v.shape == p.shape else v.to(p.device) for kind, v in own.items()
            }

    def average(self, model: nn.Module) -> nn.Module:
        """A copy of the target network with the averaged weights, in eval mode; nothing else is touched."""
        result = copy.deepcopy(model).eval()
        with torch.no_grad():
            own = [p for p in result.parameters() if p.requires_grad]
            for p, shadow in zip(own, self.ema.shadow_params, strict=True):
                p.copy_(shadow)
                p.grad = None
        return result


def _check_used(parameters: Mapping[str, Tensor]) -> None:
    """Refuses a parameter that takes no part in a step: data parallelism would leave it unaveraged, without a word."""
    unused = [n for n, p in parameters.items() if p.grad is None]
    if unused:
        raise ConfigError(
            f"{len(unused)} trainable parameters take no part in the loss, such as {unused[0]}",
            "add an objective that needs them, or freeze their network",
        )


def compile_checked(
    step: TrainingStep,
    loss: Callable[[], Tensor],
    *,
    bf16: bool = False,
    notify: Callable[[str], None] = print,
) -> bool:
    """Compiles the backbones of `step` in place, if the gradients of `loss` are those without.

    Only those of plain diffusion models: others change between calls, or are small.

    Args:
        step: its parameters hold no gradients, before and after.
        loss: calls the step on one batch; called several times, without network dropout.
        bf16, notify: see `compile_if_equal`.

    Returns:
        Whether they are compiled.
    """
    models = [net for net in step.networks.values() if type(net) is DiffusionModel]
    networks = [net.backbone for net in models if net.backbone.compiles]

    def gradients() -> dict[str, Tensor]:
        step.zero_grad(set_to_none=True)
        loss().backward()
        found = {n: p.grad.detach().clone() for n, p in step.named_parameters() if p.grad is not None}
        step.zero_grad(set_to_none=True)
        return found

    dropouts = [(m, m.p) for m in step.modules() if isinstance(m, nn.Dropout)]
    for module, _ in dropouts:
        module.p = 0.0
    try:
        with step.undisturbed():
            return compile_if_equal(
                networks, gradients, what="gradients of one batch", bf16=bf16, together=True, notify=notify
            )  # fmt: skip
    finally:
        for module, p in dropouts:
            module.p = p
