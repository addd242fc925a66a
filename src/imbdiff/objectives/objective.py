"""The contract: an objective says what it needs, the evaluator answers, the objective computes.

    requests(batch) -> [Request, ...]          what to evaluate; no network is at hand here
    terms(batch, answers) -> {name: Tensor}    the loss terms, from the answers in the same order

Terms have one of two forms. *Per row*: (B,), zeros where a row has no part in it; the trainer sums them over the global
batch and divides by its size. *Coupled*: either (B,) as well, each row's share computed against rows gathered from all
processes by `batch.dist.gather`; or a scalar, the same on every process, already a mean over the gathered rows. In all
cases the gradient that data parallelism averages is that of the loss over the global batch.

Entries of `terms` that the objective names in `monitors` have the same form; they are logged, and no part of the loss.

Every process must make the same requests and call the same collectives at every step, so neither may depend on values
in the batch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from imbdiff.objectives.batch import DrawKind, NoisyBatch
from imbdiff.objectives.requests import Answer, Labels, Request, Rows, Usage
from imbdiff.runtime.errors import ConfigError

__all__ = ["COMPARES_ROWS", "Answer", "Labels", "Objective", "Request", "Rows", "Usage"]

#: why a contrast cannot be estimated from some of the rows
COMPARES_ROWS = "it compares the batch's rows with each other: with fewer of them it is another loss"


@dataclass(eq=False, kw_only=True)
class Objective(nn.Module):
    """One training objective: a dataclass whose fields are its constants, with the paper's values as defaults.

    They are options of the command line and of YAML (`imbdiff.recipe`), so a field's line under *Args* says what it
    is and where its value comes from. A subclass is a ``@dataclass(eq=False, kw_only=True)`` too; one with more to set
    up or to `check` than fields does so in ``__post_init__``, after that of this class, which checks fields of a
    Literal type.

    Args:
        weight: factor of all its terms; at 0 it makes no request, as if it were left out.
        part: the part of the step's batch that it reads.

    Attributes:
        name: prefix of its terms in the log.
        base: whether it is, or stands for, the denoising loss: a step has one of these.
        draws: the named random draws that it needs, drawn for the global batch.
        monitors: names of entries of `terms` that are only logged.
        all_rows: why it cannot be estimated from some of the rows (`sample_rows`); None: it can.
        wiring: fields that say how a method is put together, and are no constants of it.
    """

    name = "objective"
    base = False
    all_rows: ClassVar[str | None] = "nothing says that its terms are sums over rows with weights known beforehand"
    monitors: ClassVar[tuple[str, ...]] = ()
    wiring: ClassVar[tuple[str, ...]] = ("part",)

    weight: float = 1.0
    part: str = "main"

    def __post_init__(self) -> None:
        nn.Module.__init__(self)
        words = {n: get_args(h) for n, h in get_type_hints(type(self)).items() if get_origin(h) is Literal}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{self.name}: unknown {name} {getattr(self, name)!r}", f"use {' or '.join(known)}")
        self.check(weight=0 <= self.weight < math.inf)
        self.weight = float(self.weight)
        self.draws: dict[str, DrawKind] = {}

    def check(self, **right: bool) -> None:
        """Refuses constants that are out of range, as in ``self.check(tau=self.tau > 0)``.

        Raises:
            ConfigError: naming the first whose condition is False.
        """
        for name, holds in right.items():
            if not holds:
                default = {field.name: field.default for field in fields(self)}[name]
                raise ConfigError(f"{self.name}: {name}={getattr(self, name)} is out of range", f"default: {default}")

    def sample_rows(self, share: float) -> None:
        """Evaluates a share of the rows only, from here on, without bias: see `imbdiff.objectives.row_sampling`.

        Raises:
            ConfigError: this loss cannot be had so, and why; or a share that is not in (0, 1].
        """
        raise ConfigError(f"{self.name} cannot be estimated from some of the rows: {self.all_rows}", "leave it at 1")

    def prepare(self, networks: Mapping[str, nn.Module]) -> None:
        """Called once, with the networks of the step, before anything is optimised: builds parameters whose shape
        depends on a network. Does nothing by default."""
        return

    @abstractmethod
    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        """The evaluations that this objective needs."""

    @abstractmethod
    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        """The loss terms, from the answers to `requests` in order; see the module's text for their form."""
