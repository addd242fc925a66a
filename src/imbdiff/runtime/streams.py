"""Named random streams: every draw is a pure function of (seed, what it is for, step).

Nothing in this package seeds or reads a global generator, apart from network dropout, which torch draws from its
global one: the trainer reseeds that at every micro-step. A stream is named by plain values::

    rng(seed, "split")                       # numpy
    torch_rng(seed, "noise", step)           # torch, on the CPU: the same numbers for every device and process count
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = int | str


def seed_of(*key: Key) -> int:
    """A 63-bit seed from a key of integers and strings; different keys give unrelated seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def rng(*key: Key) -> np.random.Generator:
    """A numpy generator of its own for `key`."""
    return np.random.Generator(np.random.Philox(seed_of(*key)))


def torch_rng(*key: Key) -> torch.Generator:
    """A torch CPU generator of its own for `key`."""
    import torch

    return torch.Generator().manual_seed(seed_of(*key))
