"""The evaluator: merges the requests of all objectives, evaluates them in few passes, splits the answers.

1. Requests for the same thing (part, condition, rows, network, capacity - by *name*) are one evaluation: taps are
   united, and it carries gradients if anyone wants them (others get it detached). Some rows of what is evaluated
   for all rows anyway are taken from there.
2. Evaluations of one network are joined into one batch with gradient and one without; rows that only need taps come
   last and stop after them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imbdiff.data.geometric import CONDITION_SIZE
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.objective import Answer, Labels, Request, Usage
from imbdiff.runtime.errors import ConfigError

Network = Callable[..., tuple[Tensor, dict[str, Tensor]]]


class Key(NamedTuple):
    """What makes two requests the same evaluation; all by name. `rows` is "" for all rows."""

    part: str
    condition: str
    rows: str
    network: str
    capacity: str


@dataclass(eq=False)
class _Evaluation:
    batch: NoisyBatch
    request: Request
    grad: bool = False
    prediction: bool = False
    taps: set[str] = field(default_factory=set)

    @property
    def index(self) -> Tensor | None:
        return None if self.request.rows is None else self.request.rows.index

    def take(self, x: Tensor) -> Tensor:
        return x if self.index is None else x.index_select(0, self.index)

    @property
    def labels(self) -> Tensor:
        batch, condition = self.batch, self.request.condition
        if condition == "given":
            return self.take(batch.condition)
        if condition == "null":
            return torch.full_like(self.take(batch.labels), batch.null)
        assert isinstance(condition, Labels)
        return self.take(condition.values)

    @property
    def augment(self) -> Tensor:
        """What was done to the images, whatever labels are asked for; zeros for a batch of unchanged ones."""
        change = self.batch.augment
        return self.batch.x_t.new_zeros(len(self), CONDITION_SIZE) if change is None else self.take(change)

    def __len__(self) -> int:
        return len(self.batch) if self.index is None else len(self.index)


def _key(part: str, request: Request, all_rows: bool = False) -> Key:
    condition = f"labels:{request.condition.name}" if isinstance(request.condition, Labels) else request.condition
    rows = "" if request.rows is None or all_rows else f"rows:{request.rows.name}"
    return Key(part, condition, rows, request.network, request.capacity)


def evaluate(
    networks: Mapping[str, Any],
    batches: Mapping[str, NoisyBatch],
    asked: Sequence[tuple[str, Request]],
) -> tuple[list[Answer], Usage]:
    """Answers requests.

    Args:
        networks: name -> network, called as ``network(x_t, t, labels, taps, predict_rows)``; with ``capacity=`` where a
            request wants less than the full one, and with ``augment=`` where images were changed geometrically.
        batches: part name -> batch.
        asked: (part, request) pairs.

    Returns:
        One answer per pair, in order, and what it took.

    Raises:
        ConfigError: a request names an unknown part or network, or other rows by a name that is taken.
    """
    for part, request in asked:
        if part not in batches:
            raise ConfigError(f"an objective reads the part {part!r}", f"this step has {sorted(batches)}")
        if request.network not in networks:
            raise ConfigError(
                f"an objective asks for the network {request.network!r}", f"this method declares {sorted(networks)}"
            )
    served, evaluations = _merged(batches, asked)
    results: dict[Key, Answer] = {}
    passes = rows = predicted = 0
    for name in dict.fromkeys(key.network for key in evaluations):
        for grad in (True, False):
            found = [(k, e) for k, e in evaluations.items() if k.network == name and e.grad == grad]
            if not found:
                continue
            found.sort(key=lambda pair: not pair[1].prediction)  # stable: taps-only rows come last
            results.update(_one_pass(networks[name], dict(found), grad))
            passes += 1
            rows += sum(len(e) for _, e in found)
            predicted += sum(len(e) for _, e in found if e.prediction)
    answers = [_fit(results[key], request) for key, (_, request) in zip(served, asked, strict=True)]
    return answers, Usage(passes, rows, predicted)


def _merged(
    batches: Mapping[str, NoisyBatch], asked: Sequence[tuple[str, Request]]
) -> tuple[list[Key], dict[Key, _Evaluation]]:
    """For every request the key of the evaluation that serves it, and the evaluations."""
    whole = {_key(part, request) for part, request in asked if request.rows is None}
    evaluations: dict[Key, _Evaluation] = {}
    served: list[Key] = []
    for part, request in asked:
        key = _key(part, request)
        if request.rows is not None and _key(part, request, all_rows=True) in whole:
            key = _key(part, request, all_rows=True)
        served.append(key)
        if key not in evaluations:
            rows = request.rows if key.rows else None
            evaluations[key] = _Evaluation(
                batches[part], Request(request.condition, rows, request.network, capacity=request.capacity)
            )
        evaluation = evaluations[key]
        if key.rows and request.rows is not None and len(request.rows.index) != len(evaluation):
            raise ConfigError(
                f"two requests name {len(evaluation)} and {len(request.rows.index)} rows {request.rows.name!r}",
                "give different rows different names",
            )
        evaluation.grad |= request.grad
        evaluation.prediction |= request.prediction
        evaluation.taps |= set(request.taps)
    return served, evaluations


def _fit(answer: Answer, request: Request) -> Answer:
    """The part of a merged answer that one request asked for: its rows, its taps, detached if it wants no gradient."""
    index = request.rows.index if request.rows is not None and answer.rows is None else None

    def cut(x: Tensor) -> Tensor:
        x = x if index is None else x.index_select(0, index)
        return x if request.grad else x.detach()

    return Answer(
        prediction=cut(answer.pred) if request.prediction else None,
        taps={tap: cut(answer.taps[tap]) for tap in request.taps},
        labels=answer.labels if index is None else answer.labels.index_select(0, index),
        rows=answer.rows if index is None else index,
    )


def _full(x: Tensor) -> Tensor:
    """Half precisions become float32; float64 stays, so that losses can be checked against float64 formulas."""
    return x if x.dtype == torch.float64 else x.float()


def _one_pass(network: Network, evaluations: Mapping[Key, _Evaluation], grad: bool) -> dict[Key, Answer]:
    items = list(evaluations.values())
    x = torch.cat([e.take(e.batch.x_t) for e in items])
    t = torch.cat([e.take(e.batch.t) for e in items])
    labels = torch.cat([e.labels for e in items])
    extra: dict[str, Tensor] = {}
    if any(e.request.capacity == "base" for e in items):
        extra["capacity"] = torch.cat([x.new_full((len(e),), float(e.request.capacity == "full")) for e in items])
    if any(e.batch.augment is not None for e in items):
        extra["augment"] = torch.cat([e.augment for e in items])
    taps = tuple(sorted(set().union(*(e.taps for e in items))))
    predicted = sum(len(e) for e in items if e.prediction)
    with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
        prediction, found = network(x, t, labels, taps, predicted, **extra)

    answers: dict[Key, Answer] = {}
    start = 0
    for key, e in evaluations.items():
        rows = slice(start, start + len(e))
        answers[key] = Answer(
            prediction=_full(prediction[rows]) if e.prediction else None,
            taps={tap: _full(found[tap][rows]) for tap in e.taps},
            labels=labels[rows],
            rows=e.index,
        )
        start += len(e)
    return answers
