"""Holds an objective against a formula: value and gradient in float64, from raw tensors and the network alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.objective import Answer, Objective
from tests.contract.cases import STATS, make_batches, make_step
from tests.contract.oracles import Raw

KINDS = ("ddpm", "ddpm-v", "flow")
#: (the global batch as numbers, the network) -> {name of the term: mean over the batch}
Formula = Callable[[Raw, Any], dict[str, Tensor]]


def assert_follows(objective: Objective, kind: str, formula: Formula, tolerance: float = 1e-6) -> dict[str, float]:
    """Every term and the gradient of every parameter equal those of `formula`; gives the terms."""
    process = PROCESSES[kind]
    step = make_step([objective], process)
    batches = make_batches(step, process)
    out = step(batches)
    out["loss"].backward()
    expected = formula(Raw(kind, batches[objective.part], STATS.counts), step.networks["model"])
    assert {f"{objective.name}/{name}" for name in expected} == set(out) - {"loss"}
    for name, value in expected.items():
        got, value = out[f"{objective.name}/{name}"], value.detach()
        assert float((got - value).abs()) <= tolerance * max(1e-3, float(value.abs())), (name, got, value)
    total = objective.weight * sum(expected.values(), torch.zeros((), dtype=torch.float64))
    named = dict(step.named_parameters())
    grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    largest = max(float(g.abs().max()) for g in grads if g is not None)
    assert largest > 1e-6, "there is no gradient to compare"
    for (name, parameter), grad in zip(named.items(), grads, strict=True):
        got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        want = torch.zeros_like(parameter) if grad is None else grad
        scale = max(float(want.abs().max()), 1e-3 * largest)
        assert float((got - want).abs().max()) <= tolerance * scale, name
    return {name: float(value.detach()) for name, value in expected.items()}


def example(kind: str = "ddpm", objective: Objective | None = None, **fields: Any) -> NoisyBatch:
    """A float64 batch of 16 rows, some of its fields replaced."""
    from imbdiff.objectives.denoising import Denoising

    process = PROCESSES[kind]
    return replace(make_batches(make_step([objective or Denoising()], process), process)["main"], **fields)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    """A float64 leaf with gradient: an answer that no network gave."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def answer(batch: NoisyBatch, prediction: Tensor | None = None, **taps: Tensor) -> Answer:
    return Answer(prediction, taps, batch.condition, None)


def gradients(value: Tensor, *leaves: Tensor) -> Sequence[Tensor]:
    return torch.autograd.grad(value, leaves, retain_graph=True)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gave, forward and backward."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out
