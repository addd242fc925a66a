"""The cases, the batches, and one step of a case on one process or on two."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES, Process
from imbdiff.objectives.batch import NoisyBatch, noisy_batch
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.runtime.dist import Dist
from imbdiff.training.step import TrainingStep

from . import oracles
from .miniatures import (
    CM,
    T2H,
    UCL,
    Alignment,
    Coral,
    DiffRC,
    DiffROP,
    Dispersive,
    LowRank,
    SampledBalancing,
)

KINDS = ("ddpm", "ddpm-v", "flow")
SHAPE = (1, 2, 3)
STATS = ClassStats(("a", "b", "c", "d"), (40, 12, 4, 2))
N = 16
LABELS = torch.tensor([0, 1, 0, 2, 0, 3, 0, 1, 0, 0, 2, 1, 0, 3, 1, 0])
GROUP = torch.arange(N) // 4
GROUP_CLASS = torch.tensor([1, 2, 3, 1])  # no head class

Calls = tuple[tuple[int, int], ...]  # (rows, predicted rows) of every call of a network


@dataclass(frozen=True)
class Case:
    """Objectives and what they may cost.

    Attributes:
        calls: network -> its calls for the global batch of 16, with gradient first.
        taps_only: parameters behind the taps are not used, which is only so without a denoising loss.
    """

    objectives: Callable[[], list[Objective]]
    calls: Mapping[str, Calls]
    low_rank: bool = False
    taps_only: bool = False
    max_rows: int | None = None


def _alone(make: Callable[[], Objective], calls: Calls, **options: Any) -> Case:
    return Case(lambda: [make()], {"model": calls}, **options)


def _ccua() -> list[Objective]:
    return [
        Denoising(),
        ClassBalancing(weight=0.7),
        UCL(weight=0.3),
        Alignment(weight=0.2),
    ]


def _everything() -> list[Objective]:
    return [
        *_ccua(),
        T2H(weight=0.5),
        CM(weight=0.4),
        Coral(24, weight=0.1),
        DiffRC(weight=0.6),
        DiffROP(weight=0.8),
        Dispersive(weight=0.9),
        SampledBalancing(weight=0.35),
    ]


CASES: dict[str, Case] = {
    "denoising": _alone(Denoising, ((16, 16),)),
    "class_balancing": _alone(ClassBalancing, ((32, 32),)),
    "ucl": _alone(UCL, ((16, 0),), taps_only=True),
    "alignment": _alone(Alignment, ((32, 32),)),
    "t2h": _alone(T2H, ((16, 16),)),
    "cm": _alone(CM, ((32, 32),), low_rank=True),
    "coral": _alone(lambda: Coral(128), ((16, 0),), taps_only=True),
    "diffrc": Case(lambda: [DiffRC()], {"model": ((16, 16),), "source": ((16, 16),)}),
    "diffrop": _alone(DiffROP, ((32, 32),)),
    "dispersive": _alone(Dispersive, ((16, 0),), taps_only=True),
    "sampled_balancing": _alone(SampledBalancing, ((12, 12),)),  # 2 strata x 3 rows x 2 labels
    # taps of the null condition ride on the same pass and stop where the taps are
    "denoising + CBDM + UCL": Case(lambda: _ccua()[:3], {"model": ((48, 32),)}),
    "denoising + CBDM + UCL + alignment": Case(_ccua, {"model": ((48, 48),)}),
    # sampled rows of "given" are taken from the full evaluation, and of the comparison labels too
    "everything": Case(
        _everything,
        # given, comparison, null, base capacity, pairing, and the grouped part
        {"model": ((96, 96),), "source": ((16, 16),)},
        low_rank=True,
    ),
    "denoising + sampled": Case(lambda: [Denoising(), SampledBalancing()], {"model": ((22, 22),)}),
    # chunks of 10 of 2 x 16 + 16 rows; on two processes of 2 x 8 + 8
    "chunked": Case(lambda: _ccua()[:3], {}, max_rows=10),
}


def oracle(
    step: TrainingStep, batches: Mapping[str, NoisyBatch], kind: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(losses, gradients by parameter name) of a step from the formulas; `step` is in float64."""
    parts = {name: oracles.Raw(kind, batch, STATS.counts) for name, batch in batches.items()}
    losses: dict[str, Tensor] = {}
    for o in step.active:
        losses.update(getattr(oracles, o.name)(step.networks, parts, step))
    weights = {o.name: o.weight for o in step.active}
    losses["loss"] = sum(
        (weights[name.split("/")[0]] * value for name, value in losses.items()), torch.zeros((), dtype=torch.float64)
    )
    named = {n: p for n, p in step.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(losses["loss"], list(named.values()), allow_unused=True)
    return (
        {n: v.detach() for n, v in losses.items()},
        {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)},
    )


def make_step(
    objectives: list[Objective],
    process: Process,
    *,
    low_rank: bool = False,
    dtype: torch.dtype = torch.float64,
    max_rows: int | None = None,
    backbone: str = "mlp",
    shape: tuple[int, int, int] = SHAPE,
) -> TrainingStep:
    """A step on small networks; `source` is there, frozen, if anyone reads the grouped part."""
    networks: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        if low_rank:
            networks["model"] = LowRank(process, shape, STATS.num_classes)
        else:
            networks["model"] = build_model(backbone, process, shape, STATS, seed=1)
    frozen = ["source"] if any(o.part == "grouped" for o in objectives) else []
    for name in frozen:
        networks[name] = build_model(backbone, process, shape, STATS, seed=2)
    return TrainingStep(networks, objectives, frozen=frozen, max_rows=max_rows).to(dtype)


def make_batches(
    step: TrainingStep,
    process: Process,
    *,
    dist: Dist | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 46,
    share: slice | None = None,
    shape: tuple[int, int, int] = SHAPE,
) -> dict[str, NoisyBatch]:
    """This process's rows of the parts that the objectives of `step` read."""
    dist = dist or Dist()
    rows = share or dist.share(N)
    out = {}
    for part in sorted({o.part for o in step.active}):
        grouped = part == "grouped"
        generator = torch.Generator().manual_seed(seed + grouped)
        x0 = torch.randn(N, *shape, generator=generator, dtype=torch.float64).to(dtype)
        labels = GROUP_CLASS[GROUP] if grouped else LABELS
        out[part] = noisy_batch(
            x0[rows],
            labels[rows],
            process=process,
            stats=STATS,
            seed=seed,
            step=3,
            size=N,
            share=rows,
            part=part,
            draws=step.draws(part),
            label_dropout=0.25,
            group=GROUP[rows] if grouped else None,
            groups=4 if grouped else 0,
            dist=dist,
        )
    return out


def objectives_of(case: str) -> list[Objective]:
    """New objectives of a case, their own parameters always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return CASES[case].objectives()


def step_of(case: str, kind: str, **options: Any) -> TrainingStep:
    options = {"low_rank": CASES[case].low_rank, "max_rows": CASES[case].max_rows, **options}
    return make_step(objectives_of(case), PROCESSES[kind], **options)


@dataclass
class Result:
    losses: dict[str, Tensor]
    grads: dict[str, Tensor]
    calls: dict[str, Calls]
    forwards: int
    wrapped: int
    usage: Any


def run(case: str, kind: str, dist: Dist | None = None, **options: Any) -> Result:
    """One step of a case: losses are means over processes, gradients what this process's parameters hold after it."""
    dist = dist or Dist()
    step = step_of(case, kind, **options)
    calls: dict[str, list[tuple[int, int]]] = {name: [] for name in step.networks}
    counted = {"step": 0, "wrapped": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if torch.is_grad_enabled() or name == "source":
                calls[name].append((len(args[0]), len(out[0])))

        return hook

    def bump(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counted[name] += 1

        return hook

    for name, network in step.networks.items():
        network.register_forward_hook(count(name))
    step.register_forward_hook(bump("step"))
    module: nn.Module = step
    if dist.world > 1:
        module = nn.parallel.DistributedDataParallel(step, find_unused_parameters=CASES[case].taps_only)
        module.register_forward_hook(bump("wrapped"))
    out = module(make_batches(step, PROCESSES[kind], dist=dist))
    during = {name: tuple(c) for name, c in calls.items()}  # checkpointed chunks are recomputed from here on
    out["loss"].backward()
    return Result(
        {n: dist.total(v) / dist.world for n, v in out.items()},
        {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in step.named_parameters() if p.requires_grad},
        during,
        counted["step"],
        counted["wrapped"],
        step.usage,
    )


@contextmanager
def one_of_two(rank: int, folder: str) -> Iterator[Dist]:
    """This process as one of two, that meet in `folder`."""
    torch.set_num_threads(1)
    if sys.platform == "linux":  # never ask what this machine is called
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = torch.distributed.FileStore(str(Path(folder) / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    yield Dist.current()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def two_processes(rank: int, folder: str) -> None:
    """Runs every case under every process on one of two processes and leaves the results in `folder`."""
    with one_of_two(rank, folder) as dist:
        results = {(case, kind): vars(run(case, kind, dist)) for case in CASES for kind in KINDS}
        torch.save(results, Path(folder) / f"rank{rank}.pt")
