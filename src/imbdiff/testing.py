"""`check_objective`: the conformance checks that every objective must pass, also a user's own.

from imbdiff.testing import check_objective
check_objective(MyObjective(weight=0.5))
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES, Process
from imbdiff.objectives.batch import NoisyBatch, noisy_batch
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Labels, Objective, Request
from imbdiff.runtime.streams import seed_of
from imbdiff.training.step import TrainingStep

#: (name of a network, process) -> a new network for images of `SHAPE` with classes `STATS`, the same at every call
Build = Callable[[str, Process], nn.Module]
STATS = ClassStats(("a", "b", "c", "d"), (40, 12, 4, 2))
SHAPE = (1, 2, 3)


def example_batch(
    objective: Objective, process: Process, *, rows: int = 12, seed: int = 0, step: int = 0, dropout: float = 0.25
) -> NoisyBatch:
    """A small random batch with the draws that `objective` declares; rows come in class groups of three, one t each."""
    generator = torch.Generator().manual_seed(seed + 1000 * step)
    x0 = torch.randn(rows, *SHAPE, generator=generator)
    group = torch.arange(rows) // 3
    return noisy_batch(
        x0, group % STATS.num_classes, process=process, stats=STATS, seed=seed, step=step, part=objective.part,
        draws=objective.draws, label_dropout=dropout, group=group, groups=-(-rows // 3),
    )  # fmt: skip


def _mlp(name: str, process: Process) -> nn.Module:
    return build_model("mlp", process, SHAPE, STATS, seed=seed_of("check", name))


def make_step(
    objective: Objective, process: Process, *, networks: tuple[str, ...] = ("model",), build: Build = _mlp
) -> TrainingStep:
    """A training step of `objective` alone on small networks, all trainable."""
    return TrainingStep({name: build(name, process) for name in networks}, [objective])


def check_objective(
    objective: Objective,
    *,
    processes: tuple[str, ...] = ("ddpm", "ddpm-v", "flow"),
    networks: tuple[str, ...] = ("model",),
    build: Build = _mlp,
    equivariant: bool = True,
    ratio: bool = True,
) -> None:
    """Runs every check; raises AssertionError naming the first that fails.

    What a training step itself refuses, such as a term of another shape, stays the ConfigError that it raises there.

    Args:
        objective: with a weight above 0. It is copied, not changed.
        processes: names in `PROCESSES` to check under.
        networks: the networks it asks for.
        build: makes each of them, where the default (a small MLP with the tap "mid" and one capacity) will not do.
        equivariant: False skips the check that permuting the rows permutes the terms (for draws that name rows).
        ratio: False skips the check of its size relative to the denoising loss (for differences in eps units).

    Checks: terms are scalars or one value per row and finite; gradients are finite and flow into the model and into
    the objective's own parameters; the same batch gives the same loss; requests do not depend on values; a batch of one
    row, one class, all labels dropped, and both ends of time work; bfloat16 gives the same up to its digits; no global
    random state is read; weight 0 makes no request; permuting rows and draws permutes the terms; where it compares
    predictions of the model with each other, its size relative to the denoising loss is the same whether the network
    predicts eps or v (`class_difference`).
    """
    for name in processes:
        case = _Case(objective, name, networks, build)
        case.check_values()
        case.check_edges()
        case.check_bfloat16()
        if equivariant:
            case.check_permutation()
        case.check_weight_zero()
    if ratio and networks == ("model",) and _compares_predictions(objective):
        check_ratio(objective)


@dataclass(frozen=True)
class _Case:
    """An objective under one process, on new networks for every run."""

    objective: Objective
    name: str
    networks: tuple[str, ...]
    build: Build

    @property
    def process(self) -> Process:
        return PROCESSES[self.name]

    def step(self) -> TrainingStep:
        return make_step(copy.deepcopy(self.objective), self.process, networks=self.networks, build=self.build)

    def that(self, condition: Any, otherwise: str) -> None:
        assert condition, f"{self.objective.name} under {self.name}: {otherwise}"

    def run(self, batch: NoisyBatch, step: TrainingStep | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a step, and its gradients by parameter."""
        step = step or self.step()
        loss = step({step.active[0].part: batch})["loss"]
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}

    def check_values(self) -> None:
        batch = example_batch(self.objective, self.process)
        before, step = torch.random.get_rng_state(), self.step()
        loss, grads = self.run(batch, step)
        again, grads_again = self.run(batch)
        self.that(torch.equal(before, torch.random.get_rng_state()), "reads the global random state")
        self.that(torch.isfinite(loss), "the loss is not finite")
        self.that(all(bool(g.isfinite().all()) for g in grads.values()), "a gradient is not finite")
        flows = any(bool((g != 0).any()) for n, g in grads.items() if n.startswith("networks."))
        self.that(flows, "no gradient flows")
        for n, p in step.objectives.named_parameters():
            self.that(f"objectives.{n}" in grads or not p.requires_grad, f"its own parameter {n} gets no gradient")
        self.that(torch.equal(loss, again), "the same batch gives another loss")
        same = all(torch.equal(g, grads_again[n]) for n, g in grads.items())
        self.that(same, "the same batch gives other gradients")
        asked = _asked(self.objective, batch)
        for other in (example_batch(self.objective, self.process, seed=5, step=3), *self.edges().values()):
            same = len(other) != len(batch) or asked == _asked(self.objective, other)
            self.that(same, "requests depend on the values of the batch")

    def edges(self) -> dict[str, NoisyBatch]:
        objective, process = self.objective, self.process
        batch = example_batch(objective, process)

        def at(t: Tensor) -> NoisyBatch:
            x_t = process.add_noise(batch.x0, batch.noise, t)
            return replace(batch, t=t, x_t=x_t, noise_level=process.noise_level(t))

        low, high = process.time_from_uniform(torch.tensor([0.0, 1 - 2**-24]))
        first = torch.where(batch.dropped, batch.null, 0)
        return {
            "a batch of one row": example_batch(objective, process, rows=1, dropout=0.0),
            "all labels dropped": example_batch(objective, process, dropout=1.1),
            "no label dropped": example_batch(objective, process, dropout=0.0),
            "one class": replace(batch, labels=torch.zeros_like(batch.labels), condition=first),
            "no noise at all": at(low.expand(len(batch))),
            "nothing but noise": at(high.expand(len(batch))),
            "both ends of time": at(torch.where(batch.group % 2 == 0, low, high)),
        }

    def check_edges(self) -> None:
        for what, batch in self.edges().items():
            loss, grads = self.run(batch)
            self.that(torch.isfinite(loss), f"{what}: the loss is not finite")
            self.that(all(bool(g.isfinite().all()) for g in grads.values()), f"{what}: a gradient is not finite")

    def check_bfloat16(self) -> None:
        batch = example_batch(self.objective, self.process)
        loss, _ = self.run(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half, grads = self.run(batch)
        self.that(half.dtype.itemsize >= 4, "the loss under bfloat16 is not float32")
        self.that(torch.allclose(half, loss, rtol=0.1, atol=1e-3), f"bfloat16 gives {half}, float32 {loss}")
        self.that(all(bool(g.isfinite().all()) for g in grads.values()), "under bfloat16 a gradient is not finite")

    def check_permutation(self) -> None:
        batch = example_batch(self.objective, self.process)
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
        fields = ("x0", "labels", "condition", "dropped", "group", "t", "noise", "x_t", "noise_level")
        draws = {k: v[order] for k, v in batch.draws.items()}
        moved = replace(batch, draws=draws, **{f: getattr(batch, f)[order] for f in fields})
        (loss, grads), (loss_moved, grads_moved) = self.run(batch), self.run(moved)
        self.that(torch.allclose(loss, loss_moved, rtol=1e-4, atol=1e-6), "permuting the rows changes the loss")
        for n, g in grads.items():
            same = torch.allclose(g, grads_moved[n], rtol=1e-3, atol=1e-5)
            self.that(same, f"permuting the rows changes grad of {n}")

    def check_weight_zero(self) -> None:
        silent = copy.deepcopy(self.objective)
        silent.weight = 0.0
        base = Denoising() if silent.name != "denoising" else type("Other", (Denoising,), {"name": "other"})()
        nets = {n: self.build(n, self.process) for n in self.networks}
        self.that(silent not in TrainingStep(nets, [base, silent]).active, "weight 0 must leave it out")


def _asked(objective: Objective, batch: NoisyBatch) -> list[tuple[object, ...]]:
    """What the requests ask for apart from values."""

    def shape(r: Request) -> tuple[object, ...]:
        condition = r.condition.name if isinstance(r.condition, Labels) else r.condition
        rows = None if r.rows is None else (r.rows.name, len(r.rows.index))
        return condition, rows, r.network, r.grad, r.taps, r.prediction, r.capacity

    return [shape(r) for r in objective.requests(batch)]


def _compares_predictions(objective: Objective) -> bool:
    requests = objective.requests(example_batch(objective, PROCESSES["ddpm"]))
    return sum(r.prediction and r.network == "model" for r in requests) > 1


def check_ratio(objective: Objective, levels: Sequence[float] = (0.5, 0.97), tolerance: float = 0.02) -> None:
    """Checks that `objective` has the same effect on the `class_difference` under eps and v, at each noise level.

    It is made weak (a weight of at most 0.1), so that the effect is proportional to the weight; effects are compared as
    logarithms of what is left.

    Raises:
        AssertionError: naming the level and both numbers.
    """
    weak = copy.deepcopy(objective)
    weak.weight = min(weak.weight, 0.1)
    for level in levels:
        eps, v = (class_difference(weak, PROCESSES[name], level) for name in ("ddpm-cosine", "ddpm-cosine-v"))
        assert abs(math.log(v) - math.log(eps)) <= tolerance * abs(math.log(eps)) + 1e-4, (
            f"{objective.name} at noise level {level}: it leaves {eps:.4f} of the difference between two classes where "
            f"the network predicts eps, {v:.4f} where it predicts v: compare predictions by batch.difference(...); "
            "a term that is not quadratic in it cannot keep the ratio: ratio=False"
        )


class _Affine(nn.Module):
    """p_y(x) = slope_y x + offset_y for y = a, b, null; without capacity, the mean of a's and b's for all labels."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor,
        taps: Sequence[str] = (),
        predict_rows: int | None = None,
        capacity: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        own = self.weights[labels]
        if capacity is not None:
            own = torch.where(capacity[:, None] > 0, own, self.weights[:2].mean(0))
        return own[:, :1, None, None] * x_t + own[:, 1:, None, None], {}


def class_difference(
    objective: Objective, process: Process, level: float, *, mean: float = 0.05, sd: float = 1.0, points: int = 8
) -> float:
    """What `objective`, added to the denoising loss, leaves of the difference between two classes of Gaussian data.

    Classes N(-mean, sd^2) and N(mean, sd^2), equally frequent, a fifth of the labels dropped, one time of noise level
    `level`. The networks are affine in x for each label, which holds both exact predictions; images and noises are
    `points` quantiles each. The zero of the gradient, stop-gradients included, is found by Newton's method: there is no
    sampling of images and no learning rate.

    Returns:
        The root mean square over noisy images of p_a(x) - p_b(x), divided by the same without `objective`: 1 where it
        has no effect, below 1 where it pulls predictions together, above 1 where it pushes them apart.
    """
    q = torch.tensor([NormalDist().inv_cdf((i + 0.5) / points) for i in range(points)], dtype=torch.float64)
    q = q / q.square().mean().sqrt()
    z, noise, y, drop = (
        g.flatten() for g in torch.meshgrid(q, q, torch.arange(2.0).double(), torch.arange(5.0).double(), indexing="ij")
    )
    labels, dropped = y.long(), drop == 0
    x0, noise = ((mean * (2 * y - 1) + sd * z)[:, None, None, None], noise[:, None, None, None])
    t = process.time_from_uniform(torch.full((len(y),), level))
    stats = ClassStats(("a", "b"), (1, 1))
    made = noisy_batch(x0, labels, process=process, stats=stats, seed=0, step=0, draws=objective.draws, label_dropout=0)
    batch = replace(
        made, t=t, noise=noise, x_t=process.add_noise(x0, noise, t), dropped=dropped,
        noise_level=process.noise_level(t).double(), condition=torch.where(dropped, made.null, labels),
    )  # fmt: skip

    def distance(objectives: Sequence[Objective]) -> float:
        network = _Affine()
        step = TrainingStep({"model": network}, objectives).double()
        eye = torch.eye(network.weights.numel(), dtype=torch.float64)

        def gradient(w: Tensor) -> Tensor:
            network.weights.data.copy_(w.reshape(network.weights.shape))
            return torch.autograd.grad(step({objective.part: batch})["loss"], network.weights)[0].flatten()

        w = torch.zeros(len(eye), dtype=torch.float64)
        for _ in range(20):
            slopes = torch.stack([(gradient(w + h) - gradient(w - h)) / 2e-4 for h in 1e-4 * eye], 1)
            move = torch.linalg.lstsq(slopes, gradient(w)[:, None], driver="gelsd").solution.flatten()
            w = w - move
            if float(move.abs().max()) < 1e-9:
                break
        a, b = w.reshape(3, 2)[:2]
        return float(((a - b)[0] * batch.x_t + (a - b)[1]).square().mean().sqrt())

    base = Denoising(part=objective.part)
    return distance([base, copy.deepcopy(objective)]) / distance([base])
