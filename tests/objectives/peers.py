"""Formulas of transfer, supervised contrast and overlap in float64, by plain loops, and the cases that use them.

As in `tests.contract.oracles`: nothing of the package but networks and raw tensors; gradients are autograd's through
these loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.overlap import ClassOverlap
from imbdiff.objectives.supervised_contrast import SupervisedContrast
from imbdiff.objectives.transfer import Transfer
from imbdiff.training.step import TrainingStep

from ..contract.cases import STATS, Case
from ..contract.oracles import ZERO, Raw, mean, mse

Oracle = Callable[[Raw, NoisyBatch, TrainingStep], dict[str, Tensor]]


def raw_of(kind: str, batch: NoisyBatch) -> Raw:
    """The batch as numbers; draws are read from the batch itself."""
    return Raw(kind, replace(batch, draws={}), STATS.counts)


def posterior(raw: Raw, i: int, tau: float = 0.0) -> list[float]:
    """P(z = j) of row i: which clean image its noisy one came from."""
    logits = []
    for j in range(raw.n):
        gap = float(((raw.x[i] - raw.a[i] * raw.x0[j]) ** 2).sum())
        logits.append(tau * math.log(raw.counts[raw.labels[j]]) - gap / (2 * raw.s[i] ** 2))
    weights = [math.exp(v - max(logits)) for v in logits]
    return [w / sum(weights) for w in weights]


def sources(raw: Raw, draws: Tensor, direction: str, tau: float) -> list[int]:
    u, keys = draws[:, 0].tolist(), draws[:, 1].tolist()
    order = sorted(range(raw.n), key=lambda j: keys[j])
    chosen = []
    for i in range(raw.n):
        p, left, z = posterior(raw, i, tau), u[i], order[-1]
        for j in order:
            left -= p[j]
            if left < 0:
                z = j
                break
        there, here = raw.counts[raw.labels[z]], raw.counts[raw.labels[i]]
        refused = (direction == "t2h" and there < here) or (direction == "h2t" and there > here)
        chosen.append(i if refused else z)
    return chosen


def transfer(direction: str = "t2h", tau: float = 0.0) -> Oracle:
    def losses(raw: Raw, batch: NoisyBatch, step: TrainingStep) -> dict[str, Tensor]:
        rows = []
        for i, z in enumerate(sources(raw, batch.draws["transfer"], direction, tau)):
            noise = (raw.x[i] - raw.a[i] * raw.x0[z]) / raw.s[i]
            target = raw.target(i, raw.x0[z], noise)
            rows.append(mse(raw.call(step.networks["model"], i, raw.given[i])[0], target))
        return {"transfer/mse": mean(rows)}

    return losses


def contrast(drop: bool = False, released: bool = False) -> Oracle:
    def losses(raw: Raw, batch: NoisyBatch, step: TrainingStep) -> dict[str, Tensor]:
        (head,) = [o.head for o in step.active if isinstance(o, SupervisedContrast)]
        assert head is not None
        z = []
        for i in range(raw.n):
            out = head.weight @ raw.call(step.networks["model"], i, raw.given[i])[1] + head.bias
            z.append(out / (out * out).sum().sqrt())
        there = [i for i in range(raw.n) if not (drop and raw.dropped[i])]
        rows, alone = [ZERO] * raw.n, 0
        for i in there:
            partners = [p for p in there if p != i and raw.labels[p] == raw.labels[i]]
            below = sum(((z[i] @ z[j]) / 0.1).exp() for j in there if j != i)
            if partners:
                rows[i] = mean([-(((z[i] @ z[p]) / 0.1).exp() / below).log() for p in partners])
            else:
                alone += 1
        w = [math.exp((1 - level) / 0.3) for level in raw.level]
        if released:
            having = len(there) - alone
            return {"supervised_contrast/supcon": sum(w) / raw.n * sum(rows, ZERO) / having}
        return {"supervised_contrast/supcon": mean([a * b for a, b in zip(w, rows, strict=True)])}

    return losses


def after(keys: list[int]) -> list[int]:
    """The row with the next larger key; of the largest, the one with the smallest."""
    up = sorted(keys)
    return [keys.index(up[(up.index(k) + 1) % len(up)]) for k in keys]


def overlap(exact: bool = True, time: str = "noise", eps: bool = False) -> Oracle:
    def losses(raw: Raw, batch: NoisyBatch, step: TrainingStep) -> dict[str, Tensor]:
        net = step.networks["model"]

        def predict(i: int, label: int) -> Tensor:
            out = raw.call(net, i, label)[0]
            return raw.eps(i, out) if eps else out

        rows = []
        for i, j in enumerate(after(batch.draws["cycle"].tolist())):
            w = {"noise": raw.level[i], "clean": 1 - raw.level[i], "none": 1.0}[time]
            if raw.labels[i] == raw.labels[j] or (exact and raw.dropped[i]):
                rows.append(ZERO)
            elif exact:
                rows.append(w * mse(predict(i, raw.labels[i]), predict(i, raw.labels[j])))
            else:
                rows.append(w * mse(predict(i, raw.given[i]), predict(j, raw.given[j])))
        return {"overlap/overlap": 1 / (1 + mean(rows))}

    return losses


def _alone(make: Callable[[], Objective], calls: tuple[tuple[int, int], ...], **options: Any) -> Case:
    return Case(lambda: [make()], {"model": calls}, **options)


def _contrast(**options: bool) -> Case:
    return _alone(lambda: SupervisedContrast(width=128, **options), ((16, 0),), taps_only=True)


#: name -> (what `tests.contract.cases` runs, its formula)
PEERS: dict[str, tuple[Case, Oracle]] = {
    "t2h": (_alone(Transfer, ((16, 16),)), transfer()),
    "h2t": (_alone(lambda: Transfer(direction="h2t"), ((16, 16),)), transfer("h2t")),
    "full with prior": (_alone(lambda: Transfer(direction="full", tau=1.0), ((16, 16),)), transfer("full", 1.0)),
    "contrast": (_contrast(), contrast()),
    "contrast without dropped": (_contrast(drop=True), contrast(drop=True)),
    "contrast as released": (_contrast(released=True), contrast(released=True)),
    "contrast wholly as released": (_contrast(drop=True, released=True), contrast(drop=True, released=True)),
    "overlap": (_alone(ClassOverlap, ((32, 32),)), overlap()),
    "overlap, eps": (
        _alone(lambda: ClassOverlap(space="eps", time="none"), ((32, 32),)),
        overlap(time="none", eps=True),
    ),
    "overlap as released": (
        _alone(lambda: ClassOverlap(exact=False, time="clean"), ((16, 16),)),
        overlap(False, "clean"),
    ),
    "overlap as released, eps": (
        _alone(lambda: ClassOverlap(exact=False, space="eps"), ((16, 16),)),
        overlap(False, eps=True),
    ),
}


def expected(case: str, kind: str, step: TrainingStep, batch: NoisyBatch) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(losses, gradients by parameter) of a case from its formula; `step` is in float64."""
    losses = PEERS[case][1](raw_of(kind, batch), batch, step)
    losses["loss"] = sum((step.active[0].weight * v for v in losses.values()), ZERO)
    named = {n: p for n, p in step.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(losses["loss"], list(named.values()), allow_unused=True)
    return (
        {n: v.detach() for n, v in losses.items()},
        {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)},
    )


def one_batch(objective: Objective, kind: str, **options: Any) -> NoisyBatch:
    """The 16 rows of the contract's tests with the draws of `objective`, in float64."""
    from ..contract.cases import make_batches, make_step

    process = PROCESSES[kind]
    return make_batches(make_step([objective], process), process, **options)["main"]


def two_processes(rank: int, folder: str) -> None:
    """`tests.contract.cases.two_processes` over the cases of this file."""
    from ..contract import cases

    cases.CASES.clear()
    cases.CASES.update({name: case for name, (case, _) in PEERS.items()})
    cases.two_processes(rank, folder)
