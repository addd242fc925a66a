"""Every objective's formula in float64, by plain loops: nothing of the package but networks and raw tensors.

A formula takes the global batch, the networks, the step (for parameters of an objective's own) and the constants that
are not the paper's, and gives {term: value}, each the mean over the global batch. It has the objective's name. Networks
are evaluated one row at a time; gradients are autograd's through these loops.
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
        self.draws = {k: v.squeeze(-1).tolist() for k, v in batch.draws.items()}
        self.level = [self._level(float(t)) for t in self.t]
        self.a, self.s = [], []
        for t in self.t.tolist():
            if kind == "flow":
                self.a.append(1 - t)
                self.s.append(t)
            else:
                self.a.append(math.sqrt(ABAR[t]))
                self.s.append(math.sqrt(1 - ABAR[t]))
        self.answers: dict[tuple[int, int, int, bool], tuple[Tensor, Tensor]] = {}
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
        """(prediction, features) of row i under `label`; the same for every formula that asks."""
        key = (id(network), i, label, base)
        if key not in self.answers:
            extra = {"capacity": torch.zeros(1, dtype=torch.float64)} if base else {}
            out, taps = network(self.x[i][None], self.t[i : i + 1], torch.tensor([label]), ("mid",), 1, **extra)
            self.answers[key] = out[0], taps["mid"].flatten()
        return self.answers[key]

    def predict(
        self, network: Callable[..., Any], i: int, label: int, space: str = "native", base: bool = False
    ) -> Tensor:
        """The prediction of row i under `label`, in eps units if so wished."""
        out = self.call(network, i, label, base)[0]
        return self.eps(i, out) if space == "eps" else out


def mse(a: Tensor, b: Tensor) -> Tensor:
    total = (a - b).flatten()
    return (total * total).sum() / total.numel()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def mean(values: list[Tensor]) -> Tensor:
    return sum(values, torch.zeros((), dtype=torch.float64)) / len(values)


ZERO = torch.zeros((), dtype=torch.float64)


def in_time(raw: Raw, i: int, time: str) -> float:
    return {"noise": raw.level[i], "none": 1.0, "clean": 1 - raw.level[i]}[time]


def errors(raw: Raw, nets: Networks) -> list[Tensor]:
    targets = [raw.target(i, raw.x0[i], raw.noise[i]) for i in range(raw.n)]
    return [mse(raw.call(nets["model"], i, raw.given[i])[0], targets[i]) for i in range(raw.n)]


def denoising(raw: Raw, nets: Networks, step: Any) -> Losses:
    return {"mse": mean(errors(raw, nets))}


def effective_number(raw: Raw, nets: Networks, step: Any, *, beta: float = 0.9999, mean: str = "classes") -> Losses:
    w = [1 / sum(beta**k for k in range(n)) for n in raw.counts]  # (1 - beta^n) / (1 - beta) as the series that it is
    if mean == "classes":
        scale = len(w) / sum(w)
    else:
        scale = sum(raw.counts) / sum(n * v for n, v in zip(raw.counts, w, strict=True))
    rows = [scale * w[y] * e for y, e in zip(raw.labels, errors(raw, nets), strict=True)]
    return {"mse": sum(rows, ZERO) / raw.n}


def focal(
    raw: Raw,
    nets: Networks,
    step: Any,
    *,
    beta: float = 0.2,
    gamma: float = 1.0,
    against: str = "noise_level",
    width: float = 0.05,
) -> Losses:
    e, rows = errors(raw, nets), []
    for i in range(raw.n):
        r = float(e[i].detach())
        if against == "noise_level":
            near = [math.exp(-(((raw.level[i] - s) / width) ** 2) / 2) for s in raw.level]
            r /= sum(w * float(x.detach()) for w, x in zip(near, e, strict=True)) / sum(near)
        sigmoid, one = 1 / (1 + math.exp(-beta * math.sqrt(r))), 1 / (1 + math.exp(-beta))
        rows.append(((2 * sigmoid - 1) / (2 * one - 1)) ** gamma * e[i])
    return {"mse": mean(rows)}


def min_snr(raw: Raw, nets: Networks, step: Any, *, gamma: float = 5.0) -> Losses:
    """min(SNR, gamma) times the squared error of the clean image that each prediction implies (Eq. 8 of the paper)."""
    rows = []
    for i in range(raw.n):
        clean = raw.clean(i, raw.call(nets["model"], i, raw.given[i])[0])
        rows.append(min((raw.a[i] / raw.s[i]) ** 2, gamma) * mse(clean, raw.x0[i]))
    return {"mse": mean(rows)}


def inclusion(weights: list[float], k: int) -> list[float]:
    """min(1, k w_i / sum w) by the definition: what exceeds 1 becomes certain, the others share the rest, until
    nothing exceeds 1."""
    certain: set[int] = set()
    while True:
        left = sum(w for i, w in enumerate(weights) if i not in certain)
        pi = [1.0 if i in certain else (k - len(certain)) * w / left for i, w in enumerate(weights)]
        more = {i for i, p in enumerate(pi) if p >= 1 - 1e-12} - certain
        if not more:
            return pi
        certain |= more


def systematic(pi: list[float], k: int, u: float) -> set[int]:
    """The rows, likeliest first, in whose stretch of the running sum one of u, u + 1, ..., u + k - 1 falls."""
    chosen = set()
    for point in range(k):
        running = 0.0
        for i in sorted(range(len(pi)), key=lambda i: -pi[i]):
            if running <= u + point < running + pi[i]:
                chosen.add(i)
            running += pi[i]
    return chosen


def class_balancing(
    raw: Raw,
    nets: Networks,
    step: Any,
    *,
    tau: float = 1.0,
    gamma: float = 0.25,
    distribution: str = "prior",
    space: str = "native",
    rows: float = 1.0,
    name: str = "class_balancing",
) -> Losses:
    probability = [1.0] * raw.n  # of being evaluated, 0 for rows that are not
    for start in range(0, raw.n, 32) if rows < 1 else ():
        w = [0 if raw.dropped[i] else tau * raw.level[i] for i in range(start, start + 32)]
        k = round(rows * 32)
        pi = inclusion([x + 1e-9 * max(w) for x in w], k)
        kept = systematic(pi, k, raw.draws[f"rows of {name}"][start])
        probability[start : start + 32] = [p if i in kept else 0.0 for i, p in enumerate(pi)]
    pull, commit = [ZERO] * raw.n, [ZERO] * raw.n
    for i, p in enumerate(probability):
        if p and not raw.dropped[i]:
            h = raw.predict(nets["model"], i, raw.labels[i], space)
            other = raw.predict(nets["model"], i, raw.draws["comparison"][i], space)
            pull[i] = tau * raw.level[i] / p * mse(h, other.detach())
            commit[i] = gamma * tau * raw.level[i] / p * mse(h.detach(), other)
    return {"pull": mean(pull), "commit": mean(commit)}


def alignment(raw: Raw, nets: Networks, step: Any, *, time: str = "noise", space: str = "native") -> Losses:
    rows = []
    for i in range(raw.n):
        given, null = (raw.predict(nets["model"], i, label, space) for label in (raw.given[i], raw.null))
        rows.append(ZERO if raw.dropped[i] else in_time(raw, i, time) * mse(given, null))
    return {"gap": mean(rows)}


def unconditional_contrast(
    raw: Raw, nets: Networks, step: Any, *, tau: float = 0.1, time: str = "noise", block: int = 0
) -> Losses:
    h = [raw.call(nets["model"], i, raw.null)[1] for i in range(raw.n)]
    rows = []
    for i in range(raw.n):
        others = [j for j in range(raw.n) if j != i and (not block or i // block == j // block)]
        inside = 1 + sum((((cosine(h[i], h[j]) - 1) / tau).exp() for j in others), ZERO)
        rows.append(in_time(raw, i, time) * inside.log())
    return {"repel": mean(rows)}


def posterior(raw: Raw, i: int, tau: float = 0.0) -> list[float]:
    """P(z = j) of row i: which clean image its noisy one came from."""
    logits = []
    for j in range(raw.n):
        gap = float(((raw.x[i] - raw.a[i] * raw.x0[j]) ** 2).sum())
        logits.append(tau * math.log(raw.counts[raw.labels[j]]) - gap / (2 * raw.s[i] ** 2))
    weights = [math.exp(v - max(logits)) for v in logits]
    return [w / sum(weights) for w in weights]


def sources(raw: Raw, direction: str, tau: float = 0.0) -> list[int]:
    """The row whose clean image every row is sent to."""
    u, keys = (list(column) for column in zip(*raw.draws["transfer"], strict=True))
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


def transfer(raw: Raw, nets: Networks, step: Any, *, direction: str = "t2h", tau: float = 0.0) -> Losses:
    rows = []
    for i, z in enumerate(sources(raw, direction, tau)):
        noise = (raw.x[i] - raw.a[i] * raw.x0[z]) / raw.s[i]
        rows.append(mse(raw.call(nets["model"], i, raw.given[i])[0], raw.target(i, raw.x0[z], noise)))
    return {"mse": mean(rows)}


def supervised_contrast(
    raw: Raw, nets: Networks, step: Any, *, drop: bool = False, released: bool = False, width: int = 128
) -> Losses:
    (head,) = [o.head for o in step.objectives if o.name == "supervised_contrast"]
    z = []
    for i in range(raw.n):
        out = head.weight @ raw.call(nets["model"], i, raw.given[i])[1] + head.bias
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
        return {"supcon": sum(w) / raw.n * sum(rows, ZERO) / (len(there) - alone)}
    return {"supcon": mean([a * b for a, b in zip(w, rows, strict=True)])}


def next_on_cycle(keys: list[int]) -> list[int]:
    """The row with the next larger key; of the largest, the one with the smallest."""
    up = sorted(keys)
    return [keys.index(up[(up.index(k) + 1) % len(up)]) for k in keys]


def overlap(
    raw: Raw, nets: Networks, step: Any, *, exact: bool = True, time: str = "noise", space: str = "native"
) -> Losses:
    rows, net = [], nets["model"]
    for i, j in enumerate(next_on_cycle(raw.draws["cycle"])):
        w = in_time(raw, i, time)
        if raw.labels[i] == raw.labels[j] or (exact and raw.dropped[i]):
            rows.append(ZERO)
        elif exact:
            own, other = (raw.predict(net, i, raw.labels[k], space) for k in (i, j))
            rows.append(w * mse(own, other))
        else:
            own, other = (raw.predict(net, k, raw.given[k], space) for k in (i, j))
            rows.append(w * mse(own, other))
    return {"overlap": 1 / (1 + mean(rows))}


def dispersive(raw: Raw, nets: Networks, step: Any, *, tau: float = 0.5, distance: str = "l2") -> Losses:
    h = [raw.call(nets["model"], i, raw.given[i])[1] for i in range(raw.n)]
    far = mse if distance == "l2" else lambda a, b: 1 - cosine(a, b)
    return {"spread": mean([(-far(a, b) / tau).exp() for a in h for b in h]).log()}


def capacity(
    raw: Raw,
    nets: Networks,
    step: Any,
    *,
    consistency: float = 1.0,
    diversity: float = 0.2,
    bound: float = 0.1,
    detach_base: bool = False,
    space: str = "native",
) -> Losses:
    c, gaps, consistent, diverse = len(raw.counts), [], [], []
    for i in range(raw.n):
        full, base = (raw.predict(nets["model"], i, raw.labels[i], space, base=off) for off in (False, True))
        gap = ZERO if raw.dropped[i] else mse(full, base.detach() if detach_base else base)
        n_y = raw.counts[raw.labels[i]]
        grown = gap if math.isinf(bound) else bound * gap / (bound + gap)
        consistent.append(consistency * c * n_y / sum(raw.counts) * gap)
        diverse.append(-diversity * c / (n_y * sum(1 / n for n in raw.counts)) * grown)
        gaps.append(gap.detach())
    return {"consistent": mean(consistent), "diverse": mean(diverse), "gap": mean(gaps)}


def pair_diversity(
    raw: Raw,
    nets: Networks,
    step: Any,
    *,
    gamma: float = 0.1,
    reduction: str = "sum",
    temperature: float = 1.0,
    condition: str = "given",
) -> Losses:
    """Mean over anchors of KL(p_tar || p_sou); as "sum", Eq. 9, over all images of all classes."""
    asked = raw.given if condition == "given" else [raw.null] * raw.n
    target = [raw.clean(i, raw.call(nets["model"], i, asked[i])[0]).flatten() for i in range(raw.n)]
    source = [raw.clean(i, raw.call(nets["source"], i, raw.null)[0]).flatten().detach() for i in range(raw.n)]
    rows = []
    for i in range(raw.n):
        peers = [j for j in range(raw.n) if j != i and raw.group[j] == raw.group[i]]
        heat = temperature * (1 + gamma * raw.counts[raw.labels[i]])
        p = [(cosine(target[i], target[j]) / heat).exp() for j in peers]
        q = [(cosine(source[i], source[j]) / temperature).exp() for j in peers]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        rows.append(sum((a * (a / b).log() for a, b in zip(p, q, strict=True)), ZERO))
    return {"kl": mean(rows) * (raw.n if reduction == "sum" else 1)}


def prototypes(
    raw: Raw, features: list[Tensor], sums: list[Tensor], *, clean: bool = True, momentum: float = 0.999
) -> list[Tensor]:
    """The sums after a batch, by class: every image moves its class's by (1 - momentum)^weight, all at once."""
    after = []
    for k in range(len(raw.counts)):
        rows = [i for i in range(raw.n) if raw.labels[i] == k]
        weights = [raw.a[i] ** 2 if clean else 1.0 for i in rows]
        n = sum(weights)
        if not rows:
            after.append(sums[k])
            continue
        centre = sum((w * features[i].detach() for w, i in zip(weights, rows, strict=True)), ZERO) / n
        after.append(momentum**n * sums[k] + (1 - momentum**n) * centre)
    return after


def prototype_contrast(
    raw: Raw,
    nets: Networks,
    step: Any,
    *,
    prior: bool = True,
    clean: bool = True,
    momentum: float = 0.999,
    tau: float = 0.07,
    sums: list[Tensor] | None = None,
) -> Losses:
    """`sums`: those from before the step, zeros in the first. They are replaced by those after it."""
    f = [nets["model"].features(raw.x[i][None], raw.t[i : i + 1])[0] for i in range(raw.n)]
    sums = sums if sums is not None else [torch.zeros_like(f[0]).detach() for _ in raw.counts]
    before = list(sums)
    sums[:] = prototypes(raw, f, before, clean=clean, momentum=momentum)
    used = [a if float(b.norm()) == 0 else b for a, b in zip(sums, before, strict=True)]
    rows = []
    for i in range(raw.n):
        values = []
        for k, n in enumerate(raw.counts):
            cos = cosine(f[i], used[k]) if float(used[k].norm()) else ZERO
            values.append((n / sum(raw.counts) if prior else 1.0) * (cos / tau).exp())
        rows.append(-(values[raw.labels[i]] / sum(values)).log())
    return {"loss": mean(rows)}
