"""Named random streams: random numbers are a pure function of (seed, what they are for, step).

Nothing in this package seeds or reads a global generator, apart from network dropout, which torch takes from its
global one: the trainer reseeds that at every micro-step. A stream is named by plain values::

    rng(seed, "split")                       # numpy
    torch_rng(seed, "noise", step)           # torch, on the CPU unless another device is given
"""

from __future__ import annotations

import hashlib
import operator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = int | str


def seed_of(*key: Key) -> int:
    """A 63-bit seed from a key of integers and strings; different keys give unrelated seeds.

    numpy's integers count as the integers that they are; 1 and "1" are different keys.
    """
    text = "\x1f".join(_part(part) for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _part(part: Key) -> str:
    if isinstance(part, str):
        return "str:" + part.replace("\x1f", "\\x1f")
    return f"int:{operator.index(part)}"


def rng(*key: Key) -> np.random.Generator:
    """A numpy generator of its own for `key`."""
    return np.random.Generator(np.random.Philox(seed_of(*key)))


def torch_rng(*key: Key, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator of its own for `key`. Generators of different devices give different numbers."""
    import torch

    return torch.Generator(device=device).manual_seed(seed_of(*key))
