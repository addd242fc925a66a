"""Collectives: one process, or several under ``torchrun``.

NCCL moves nothing that is on the CPU. `Dist.gather` and `Dist.total` take tensors where the network is;
`Dist.gather_objects` and `Dist.broadcast` take anything, which torch passes over the current CUDA device of each
process: :func:`imbdiff.runtime.device.make_accelerator` sets it before it joins the group.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dist:
    """This process's place among all of them.

    Attributes:
        rank: 0 <= rank < world.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def current(cls) -> Dist:
        """The initialised process group, or a single process."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return cls()

    @property
    def main(self) -> bool:
        return self.rank == 0

    def gather(self, x: Tensor) -> Tensor:
        """(B, ...) on each process -> (world B, ...) on all, in rank order, differentiable. Equal shapes on all.

        The gradient of a row flows back to the process that holds it, summed over all processes that used it.
        """
        if self.world == 1:
            return x
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(x.contiguous()))

    def total(self, x: Tensor) -> Tensor:
        """The sum of `x` over all processes, without gradient."""
        if self.world == 1:
            return x.detach()
        y = x.detach().clone()
        torch.distributed.all_reduce(y)
        return y

    def share(self, n: int) -> slice:
        """The rows of a global batch of `n` that this process holds; `n` is a multiple of `world`."""
        size = n // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def barrier(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()

    def gather_objects(self, value: Any) -> list[Any]:
        """The `value` of every process, in rank order, on all of them."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(box, value)
        return box

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value`, on all processes."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]


def launched() -> bool:
    """Whether this process was started by ``torchrun`` or ``accelerate launch`` among several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
