"""torch.compile, behind a check: gradients of one batch, compiled against eager.

With torch 2.13 on a CPU, inductor gives wrong gradients for diffusers' `UNet2DModel` (everything upstream of the first
up-sampler gets 0) without a word, and right ones without its layout optimisation. So nothing is compiled here that was
not compared first, on this machine, with this network and this batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from imbdiff.diffusion.model import DiffusionModel
from imbdiff.runtime.errors import RunError
from imbdiff.training.step import TrainingStep

BACKEND = "inductor"
#: inductor's options that are tried, in order
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"layout_optimization": False})
#: largest relative error of the whole gradient: float32, and under bfloat16 autocast, whose rounding is 2^-9
FP32, BF16 = 1e-3, 3e-2


def compilable(step: TrainingStep) -> list[nn.Module]:
    """The backbones that are worth it: those of plain diffusion models. Others change between calls, or are small."""
    return [net.backbone for net in step.networks.values() if type(net) is DiffusionModel]


def compile_checked(
    step: TrainingStep,
    loss: Callable[[], Tensor],
    *,
    bf16: bool = False,
    must: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Compiles the networks of `step` in place, if the gradients of `loss` are those without.

    Args:
        step: its parameters hold no gradients, before and after.
        loss: calls the step on one batch; called several times, without network dropout.
        bf16: the step runs under bfloat16 autocast, whose rounding the comparison allows for.
        must: raise where it cannot be done; otherwise say so and go on without.

    Returns:
        Whether they are compiled.

    Raises:
        RunError: `must`, and the gradients differ, or compiling fails (no compiler, an unknown operation).
    """
    networks = compilable(step)
    if not networks:
        return _refuse("no network of this method is compiled", must, say)
    with _undisturbed(step):
        expected = _gradients(step, loss)
        why = ""
        for options in OPTIONS if BACKEND == "inductor" else ({},):
            for network in networks:
                more = {"options": options} if options else {}
                network.compile(backend=BACKEND, dynamic=False, **more)
            try:
                why = compare(_gradients(step, loss), expected, BF16 if bf16 else FP32)
            except Exception as error:  # whatever a compiler raises
                words = " ".join(str(error).split())
                why = f"compiling failed: {type(error).__name__}: {words[:300]}"
            if not why:
                break
            for network in networks:
                network._compiled_call_impl = None
    if why:
        return _refuse(why, must, say)
    say("compiled: the gradients of one batch are those without")
    return True


def _refuse(why: str, must: bool, say: Callable[[str], None]) -> bool:
    if must:
        raise RunError(f"not compiled: {why}", "use --train.compile off")
    say(f"not compiled: {why}")
    return False


def _gradients(step: TrainingStep, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    step.zero_grad(set_to_none=True)
    loss().backward()
    found = {n: p.grad.detach().clone() for n, p in step.named_parameters() if p.grad is not None}
    step.zero_grad(set_to_none=True)
    return found


def compare(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float) -> str:
    """What is wrong with gradients; "" if nothing is."""
    if found.keys() != expected.keys():
        return f"{len(expected)} parameters have gradients, compiled {len(found)}"
    lost = [n for n, g in expected.items() if bool(g.any()) and not bool(found[n].any())]
    if lost:
        return f"compiled, the gradients of {len(lost)} of {len(expected)} parameters are 0, such as {lost[0]}"
    norm = sum(float(g.double().square().sum()) for g in expected.values()) ** 0.5
    off = sum(float((found[n].double() - g.double()).square().sum()) for n, g in expected.items()) ** 0.5
    if not off <= limit * norm:
        return f"compiled, the gradient differs by {off / max(norm, 1e-30):.1%}"
    return ""


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
