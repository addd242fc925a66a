"""Collectives: one process, or several under ``torchrun``.

`Dist.gather` is the *autograd* all-gather: the gradient of a row flows back to the process that holds it, summed over
all processes that used it. On one process it is the identity.

NCCL moves nothing that lies on the CPU. `Dist.gather` and `Dist.total` take tensors where the network is, on the GPU;
`Dist.gather_array`, `Dist.gather_objects` and `Dist.broadcast` take what lies on the CPU and pass it over the current
CUDA device of each process, which :func:`imbdiff.runtime.device.make_accelerator` sets before it joins the group.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
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
        """(B, ...) on each process -> (world B, ...) on all, in rank order, differentiable. Equal shapes on all."""
        if self.world == 1:
            return x
        from torch.distributed.nn.functional import all_gather

        return torch.cat(all_gather(x.contiguous()))

    def gather_array(self, x: np.ndarray) -> np.ndarray:
        """(B, ...) numbers of any type on each process -> (world B, ...) on all, in rank order, with any backend.

        Equal shapes and types on all. Give large arrays in blocks: with NCCL, world + 1 copies pass through the GPU.
        """
        if self.world == 1:
            return x
        # as bytes: backends do not know every type; a copy: what comes from a file may be read-only
        mine = torch.from_numpy(np.array(x, order="C").reshape(-1).view(np.uint8)).to(carrier())
        every = [torch.empty_like(mine) for _ in range(self.world)]
        torch.distributed.all_gather(every, mine)
        return torch.cat(every).cpu().numpy().view(x.dtype).reshape(self.world * len(x), *x.shape[1:])

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


def carrier() -> torch.device:
    """Where a tensor must lie for the process group to move it: the current GPU if NCCL is all there is, or the CPU.

    A group of several backends ("cuda:nccl,cpu:gloo") moves tensors of the CPU by its second.
    """
    if torch.distributed.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def launched() -> bool:
    """Whether this process was started by ``torchrun`` or ``accelerate launch`` among several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
