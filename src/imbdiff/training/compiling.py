"""Compiling the networks of a training step, if the gradients of one batch stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from imbdiff.diffusion.model import DiffusionModel
from imbdiff.runtime.compiling import compile_if_equal
from imbdiff.training.step import TrainingStep


def compile_checked(
    step: TrainingStep,
    loss: Callable[[], Tensor],
    *,
    bf16: bool = False,
    must: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Compiles the backbones of `step` in place, if the gradients of `loss` are those without.

    Only those of plain diffusion models: others change between calls, or are small.

    Args:
        step: its parameters hold no gradients, before and after.
        loss: calls the step on one batch; called several times, without network dropout.
        bf16, must, say: see `compile_if_equal`.

    Returns:
        Whether they are compiled.
    """
    networks = [net.backbone for net in step.networks.values() if type(net) is DiffusionModel]
    if must and not networks:
        say("not compiled: no network here is a plain diffusion model; others change between calls, or are small")

    def gradients() -> dict[str, Tensor]:
        step.zero_grad(set_to_none=True)
        loss().backward()
        found = {n: p.grad.detach().clone() for n, p in step.named_parameters() if p.grad is not None}
        step.zero_grad(set_to_none=True)
        return found

    with _undisturbed(step):
        return compile_if_equal(
            networks, gradients, what="gradients of one batch", bf16=bf16, must=must, together=True,
            option="--train.compile", say=say,
        )  # fmt: skip


@contextmanager
def _undisturbed(step: TrainingStep) -> Iterator[None]:
    """Without network dropout; random state, buffers and dropout are afterwards as before."""
    dropouts = [(m, m.p) for m in step.modules() if isinstance(m, nn.Dropout)]
    buffers = {n: b.detach().clone() for n, b in step.named_buffers()}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for module, _ in dropouts:
            module.p = 0.0
        try:
            yield
        finally:
            for module, p in dropouts:
                module.p = p
            with torch.no_grad():
                for n, b in step.named_buffers():
                    b.copy_(buffers[n])
