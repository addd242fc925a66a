"""What an objective may ask for, and what it gets: conditions, rows, `Request`, `Answer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from imbdiff.runtime.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Labels:
    """As a condition: other labels than the batch's, such as drawn ones or those of other rows.

    Two are the same if their names are.

    Attributes:
        name: what they are; objectives that use the same name share the answer.
        values: (B,) int64 in [0, C], C = null.
    """

    name: str
    values: Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of the batch. Two are the same if their names are: comparing values would wait for the device.

    Attributes:
        name: how they were chosen.
        index: (k,) int64, distinct; k follows from configuration and batch size alone. Never a mask.
    """

    name: str
    index: Tensor


@dataclass(frozen=True)
class Request:
    """One evaluation of a network on the batch's x_t and t.

    Attributes:
        condition: "given" (labels after dropout), "null", or `Labels(name, values)`.
        rows: all rows, or some.
        network: one of the names that the method declares.
        grad: whether gradients flow back into the network's parameters.
        taps: intermediate features to return.
        prediction: False asks for taps alone; those rows stop there.
        capacity: "base" switches a low-rank part off.
    """

    condition: Literal["given", "null"] | Labels = "given"
    rows: Rows | None = None
    network: str = "model"
    grad: bool = True
    taps: tuple[str, ...] = ()
    prediction: bool = True
    capacity: Literal["full", "base"] = "full"

    def __post_init__(self) -> None:
        if not self.prediction and not self.taps:
            raise ConfigError("a request without prediction needs at least one tap")


@dataclass(frozen=True, eq=False)
class Answer:
    """What a request gave, in float32 (float64 from a float64 network).

    Attributes:
        prediction: (k, c, h, w) in the process's own space; None if not asked for.
        taps: features by name, each (k, ...).
        labels: (k,) the condition that it was made with.
        rows: (k,) the rows of the batch, None for all.
    """

    prediction: Tensor | None
    taps: Mapping[str, Tensor]
    labels: Tensor
    rows: Tensor | None

    @property
    def pred(self) -> Tensor:
        """The prediction, where it was asked for."""
        assert self.prediction is not None, "the request asked for taps alone"
        return self.prediction

    def of(self, x: Tensor) -> Tensor:
        """The rows of a batch-sized tensor that this answer is about."""
        return x if self.rows is None else x.index_select(0, self.rows)


@dataclass(frozen=True)
class Usage:
    """What a step's evaluations cost: for the methods table and the benchmarks."""

    passes: int = 0
    rows: int = 0
    predicted_rows: int = 0
