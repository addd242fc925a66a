"""The same losses from their formulas, in float64, by plain loops: nothing of the package but networks and raw tensors.

An oracle takes the networks and the parts of the global batch and gives {"objective/term": value}, each the mean over
the global batch. Networks are evaluated one row at a time; gradients are autograd's through these loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

STEPS = 1000
ABAR = [1.0]
for _k in range(STEPS):
    ABAR.append(ABAR[-1] * (1 - (1e-4 + (0.02 - 1e-4) * _k / (STEPS - 1))))
ABAR = ABAR[1:]

Losses = dict[str, Tensor]
Networks = Mapping[str, Callable[..., Any]]


class Raw:
    """One part of the global batch as numbers. `kind` is "ddpm", "ddpm-v" or "flow"."""

    def __init__(self, kind: str, batch: Any, counts: tuple[int, ...]) -> None:
        self.kind, self.n, self.counts = kind, len(batch.labels), counts
        self.x0, self.noise = batch.x0.double(), batch.noise.double()
        self.t = batch.t
        self.labels, self.group = batch.labels.tolist(), batch.group.tolist()
        self.dropped = batch.dropped.tolist()
        self.null = len(counts)
        self.given = [self.null if d else y for d, y in zip(self.dropped, self.labels, strict=True)]
        self.draws = {k: v.reshape(self.n).tolist() for k, v in batch.draws.items()}
        self.level = [self._level(float(t)) for t in self.t]
        self.a, self.s = [], []
        for t in self.t.tolist():
            if kind == "flow":
                self.a.append(1 - t)
                self.s.append(t)
            else:
                self.a.append(math.sqrt(ABAR[t]))
                self.s.append(math.sqrt(1 - ABAR[t]))
        self.x = [self.a[i] * self.x0[i] + self.s[i] * self.noise[i] for i in range(self.n)]

    def _level(self, t: float) -> float:
        return t if self.kind == "flow" else t / STEPS

    def target(self, i: int, x0: Tensor, noise: Tensor) -> Tensor:
        if self.kind == "ddpm":
            return noise
        if self.kind == "ddpm-v":
            return self.a[i] * noise - self.s[i] * x0
        return noise - x0

    def eps(self, i: int, prediction: Tensor) -> Tensor:
        """The noise that a prediction implies, whole: differences are taken after the conversion, not before."""
        if self.kind == "ddpm":
            return prediction
        if self.kind == "ddpm-v":
            return self.s[i] * self.x[i] + self.a[i] * prediction
        return self.x[i] + self.a[i] * prediction

    def clean(self, i: int, prediction: Tensor) -> Tensor:
        """The clean image that a prediction implies."""
        if self.kind == "ddpm":
            return (self.x[i] - self.s[i] * prediction) / self.a[i]
        if self.kind == "ddpm-v":
            return self.a[i] * self.x[i] - self.s[i] * prediction
        return self.x[i] - self.s[i] * prediction

    def call(self, network: Callable[..., Any], i: int, label: int, base: bool = False) -> tuple[Tensor, Tensor]:
        """(prediction, features) of row i under `label`."""
        extra = {"capacity": torch.zeros(1, dtype=torch.float64)} if base else {}
        out, taps = network(self.x[i][None], self.t[i : i + 1], torch.tensor([label]), ("mid",), 1, **extra)
        return out[0], taps["mid"].flatten()


def mse(a: Tensor, b: Tensor) -> Tensor:
    total = (a - b).flatten()
    return (total * total).sum() / total.numel()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def mean(values: list[Tensor]) -> Tensor:
    return sum(values, torch.zeros((), dtype=torch.float64)) / len(values)


ZERO = torch.zeros((), dtype=torch.float64)


def denoising(nets: Networks, parts: Mapping[str, Raw], step: Any) -> Losses:
    raw = parts["main"]
    rows = [
        mse(raw.call(nets["model"], i, raw.given[i])[0], raw.target(i, raw.x0[i], raw.noise[i])) for i in range(raw.n)
    ]
    return {"denoising/mse": mean(rows)}


def balancing_row(raw: Raw, network: Callable[..., Any], i: int, label: int) -> tuple[Tensor, Tensor]:
    h, other = raw.call(network, i, raw.given[i])[0], raw.call(network, i, label)[0]
    return raw.level[i] * mse(h, other.detach()), 0.25 * raw.level[i] * mse(h.detach(), other)


def class_balancing(nets: Networks, parts: Mapping[str, Raw], step: Any) -> Losses:
    raw = parts["main"]
    pull, commit = [], []
    for i in range(raw.n):
        p, c = (ZERO, ZERO)
        if not raw.dropped[i]:
            p, c = balancing_row(raw, nets["model"], i, raw.draws["comparison"][i])
        pull.append(p)
        commit.append(c)
    return {"class_balancing/pull": mean(pull), "class_balancing/commit": mean(commit)}


def ucl(nets: Networks, parts: Mapping[str, Raw], step: Any) -> Losses:
    raw = parts["main"]
    h = [raw.call(nets["model"], i, raw.null)[1] for i in range(raw.n)]
    rows = []
    for i in range(raw.n):
        inside = 1 + sum(((cosine(h[i], h[j]) - 1) / 0.1).exp() for j in range(raw.n) if j != i)
        rows.append(raw.level[i] * torch.as_tensor(inside).log())
    return {"ucl/repel": mean(rows)}


def alignment(nets: Networks, parts: Mapping[str, Raw], step: Any) -> Losses:
    raw, net = parts["main"], nets["model"]
    rows = []
    for i in range(raw.n):
        given, null = raw.call(net, i, raw.given[i])[0], raw.call(net, i, raw.null)[0]
        rows.append(ZERO if raw.dropped[i] else raw.level[i] * mse(given, null))
    return {"alignment/gap": mean(rows)}


def transfers(raw: Raw, law: str = "t2h") -> list[int]:
    """The row whose clean image every row is sent to; under the law "full", whatever its class."""
    chosen = []
    for i in range(raw.n):
        sigma = raw.s[i] / raw.a[i]
        logits = [-float(((raw.x[i] / raw.a[i] - raw.x0[j]) ** 2).sum()) / (2 * sigma * sigma) for j in range(raw.n)]
        top = max(logits)
        weights = [math.exp(v - top) for v in logits]
        left, z = raw.draws["transfer"][i] * sum(weights), raw.n - 1
        for j in range(raw.n):
            left -= weights[j]
            if left < 0:
                z = j
                break
        chosen.append(z if law == "full" or raw.counts[raw.labels[z]] >= raw.counts[raw.labels[i]] else i)
    return chosen


def t2h(nets: Networks, parts: Mapping[str, Raw], step: Any) -> Losses:
    raw = parts["main"]
    rows = []
    for i, z in enumerate(transfers(raw)):
        noise = (raw.x[i] - raw.a[i] * raw.x0[z]) / raw.s[i]
        rows.append(mse(raw.call(nets["model"], i, raw.given[i])[0], raw.target(i, raw.x0[z], noise)))
    return {"t2h/mse": mean(rows)}


def cm(nets: Networks, parts: Mapping[str, Raw], step: Any) -> Losses:
    raw, c = parts["main"], len(parts["main"].counts)
    consistent, diverse = [], []
    for i in range(raw.n):
        full, base = (raw.call(nets["model"], i, raw.given[i], base=off)[0] for off in (False, True))
        n_y = raw.counts[raw.labels[i]]
        gap = ZERO if raw.dropped[i] else mse(full, base)
        consistent.append(c * n_y / sum(raw.counts) * gap)
        diverse.append(-c / (n_y * sum(1 / n for n in raw.counts)) * gap)
    return {"cm/consistent": mean(consistent), "cm/diverse": mean(diverse)}


def coral(nets: Networks, parts: Mapping[str, Raw], step: Any) -> Losses:
    raw = parts["main"]
    head = next(o.head for o in step.objectives if o.name == "coral")
    z = []
    for i in range(raw.n):
        out = head.weight @ raw.call(nets["model"], i, raw.given[i])[1] + head.bias
        z.append(out / (out * out).sum().sqrt())
    rows = []
    for i in range(raw.n):
        partners = [p for p in range(raw.n) if p != i and raw.labels[p] == raw.labels[i]]
        denominator = sum(((z[i] * z[j]).sum() / 0.1).exp() for j in range(raw.n) if j != i)
        terms = [-(((z[i] * z[p]).sum() / 0.1).exp() / denominator).log() for p in partners]
        rows.append(math.exp((1 - raw.level[i]) / 0.5) * mean(terms) if terms else ZERO)
    return {"coral/supcon": mean(rows)}


def diffrc(nets: Networks, parts: Mapping[str, Raw], step: Any) -> Losses:
    raw, gamma = parts["grouped"], 0.1
    x_target = [raw.clean(i, raw.call(nets["model"], i, raw.given[i])[0]).flatten() for i in range(raw.n)]
    x_source = [raw.clean(i, raw.call(nets["source"], i, raw.null)[0]).flatten().detach() for i in range(raw.n)]
    rows = []
    for i in range(raw.n):
        peers = [j for j in range(raw.n) if j != i and raw.group[j] == raw.group[i]]
        hot = 1 + gamma * raw.counts[raw.labels[i]]
        p = [(cosine(x_target[i], x_target[j]) / hot).exp() for j in peers]
        q = [cosine(x_source[i], x_source[j]).exp() for j in peers]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        rows.append(torch.as_tensor(sum(a * (a / b).log() for a, b in zip(p, q, strict=True))))
    return {"diffrc/pair": mean(rows)}


def diffrop(nets: Networks, parts: Mapping[str, Raw], step: Any) -> Losses:
    raw, net = parts["main"], nets["model"]
    keys = raw.draws["pairing"]
    order = sorted(range(raw.n), key=lambda i: keys[i])
    rows = []
    for i in range(raw.n):
        other = raw.labels[order[i]]
        if raw.dropped[i] or other == raw.labels[i]:
            rows.append(ZERO)
            continue
        rows.append(raw.level[i] * mse(raw.call(net, i, raw.labels[i])[0], raw.call(net, i, other)[0]))
    return {"diffrop/overlap": 1 / (1 + mean(rows))}


def dispersive(nets: Networks, parts: Mapping[str, Raw], step: Any) -> Losses:
    raw = parts["main"]
    h = [raw.call(nets["model"], i, raw.given[i])[1] for i in range(raw.n)]
    values = [(-mse(h[i], h[j])).exp() for i in range(raw.n) for j in range(raw.n)]
    return {"dispersive/spread": mean(values).log()}


def inclusion(weights: list[float], k: int) -> list[float]:
    """pi_i = min(1, k w_i / sum w): certain rows are taken out, the rest shares what is left, until none exceeds 1."""
    certain: set[int] = set()
    while True:
        free = [i for i in range(len(weights)) if i not in certain]
        total = sum(weights[i] for i in free)
        pi = {i: (k - len(certain)) * weights[i] / total for i in free}
        new = {i for i in free if pi[i] >= 1}
        if not new:
            return [1.0 if i in certain else pi[i] for i in range(len(weights))]
        certain |= new


def systematic(pi: list[float], k: int, u: float) -> list[int]:
    """The rows in whose stretch of the running sum one of u, u + 1, ..., u + k - 1 falls."""
    chosen = []
    for point in range(k):
        running = 0.0
        for i, p in enumerate(pi):
            if running <= u + point < running + p:
                chosen.append(i)
            running += p
    return chosen


def sampled_balancing(nets: Networks, parts: Mapping[str, Raw], step: Any, k: int = 3, size: int = 8) -> Losses:
    raw = parts["main"]
    pull, commit = [ZERO] * raw.n, [ZERO] * raw.n
    for start in range(0, raw.n, size):
        w = [(0 if raw.dropped[i] else raw.level[i]) + 1e-6 for i in range(start, start + size)]
        pi = inclusion(w, k)
        for j in systematic(pi, k, raw.draws["systematic"][start]):
            if not raw.dropped[start + j]:
                p, c = balancing_row(raw, nets["model"], start + j, raw.draws["comparison"][start + j])
                pull[start + j], commit[start + j] = p / pi[j], c / pi[j]
    return {"sampled_balancing/pull": mean(pull), "sampled_balancing/commit": mean(commit)}
