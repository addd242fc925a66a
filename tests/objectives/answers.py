"""Batches and answers that no network gave, for what an objective makes of given predictions and features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.requests import Answer
from tests.contract.cases import STATS, make_batches, make_step
from tests.contract.oracles import Raw


def example(
    kind: str = "ddpm",
    objective: Objective | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 46,
    **fields: Any,
) -> NoisyBatch:
    """A batch of 16 rows with the draws of `objective`, some of its fields replaced."""
    process = PROCESSES[kind]
    step = make_step([objective or Denoising()], process)
    (batch,) = make_batches(step, process, dtype=dtype, seed=seed).values()
    return replace(batch, **fields)


def raw_of(kind: str, batch: NoisyBatch) -> Raw:
    """The batch as numbers."""
    return Raw(kind, batch, STATS.counts)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    """A float64 leaf with gradient."""
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
