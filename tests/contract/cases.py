"""The cases, the batches, and one step of a case on one process or on two."""

from __future__ import annotations

import math
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
from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.low_rank import LowRankModel
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES, Process
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.batch import NoisyBatch, noisy_batch
from imbdiff.objectives.capacity import CapacityManipulation
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.dispersive import Dispersive
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.overlap import ClassOverlap
from imbdiff.objectives.pair_diversity import PairDiversity
from imbdiff.objectives.prototype_contrast import PrototypeContrast
from imbdiff.objectives.reweighting import EffectiveNumber, Focal, MinSNR
from imbdiff.objectives.supervised_contrast import SupervisedContrast
from imbdiff.objectives.transfer import Transfer
from imbdiff.objectives.unconditional_contrast import UnconditionalContrast
from imbdiff.runtime.dist import Dist
from imbdiff.training.step import TrainingStep

from . import oracles

KINDS = ("ddpm", "ddpm-v", "flow")
SHAPE = (1, 2, 3)
STATS = ClassStats(("a", "b", "c", "d"), (40, 12, 4, 2))
N = 16
LABELS = torch.tensor([0, 1, 0, 2, 0, 3, 0, 1, 0, 0, 2, 1, 0, 3, 1, 0])
GROUP = torch.arange(N) // 4
GROUP_CLASS = torch.tensor([1, 2, 3, 1])  # no head class

#: the papers' weights that are not 1
WEIGHTS: dict[type[Objective], float] = {
    ClassOverlap: 0.1,
    Dispersive: 0.5,
    PairDiversity: 0.5,
    SupervisedContrast: 0.05,
}
Calls = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Case:
    """Objectives and what they may cost.

    Attributes:
        objectives: each with its constants that are not the paper's.
        calls: (rows, predicted rows) of every call of the model with gradient, for the global batch.
        network: "mlp", "low rank" or "encoder".
        size, steps: rows of the global batch; how many steps, of which the last is compared.
    """

    objectives: tuple[tuple[type[Objective], dict[str, Any]], ...]
    calls: Calls
    network: str = "mlp"
    size: int = N
    steps: int = 1

    def make(self) -> list[Objective]:
        return [kind(**options) for kind, options in self.objectives]

    @property
    def unused(self) -> bool:
        """Whether some parameters are not used: those behind the taps, where nothing but taps is asked for."""
        return self.network != "encoder" and all(predicted == 0 for _, predicted in self.calls)


@dataclass(eq=False, kw_only=True)
class SampledBalancing(ClassBalancing):
    """Estimated from some rows, under a name of its own: next to one that is not."""

    name = "sampled_balancing"


def _alone(kind: type[Objective], calls: Calls, **variants: dict[str, Any]) -> dict[str, Case]:
    """The case of an objective with the paper's constants, and its variants."""
    network = {CapacityManipulation: "low rank", PrototypeContrast: "encoder"}.get(kind, "mlp")
    steps = 3 if kind is PrototypeContrast else 1
    every = {"": {}, **variants}
    return {f"{kind.name} {v}".strip(): Case(((kind, o),), calls, network, steps=steps) for v, o in every.items()}


ONE, TWO, TAPS = ((16, 16),), ((32, 32),), ((16, 0),)
_CBDM = ((Denoising, {}), (ClassBalancing, {"weight": 0.7}), (UnconditionalContrast, {"weight": 0.3}))
_CCUA = (*_CBDM, (Alignment, {"weight": 0.2}))
_EVERYTHING = (
    *_CCUA,
    (Transfer, {"weight": 0.5}),
    (CapacityManipulation, {"weight": 0.4}),
    (SupervisedContrast, {"width": 128}),
    (PairDiversity, {}),
    (ClassOverlap, {"weight": 0.8}),
    (Dispersive, {"weight": 0.9}),
    (Focal, {"weight": 0.35}),
)

CASES: dict[str, Case] = {
    **_alone(Denoising, ONE),
    **_alone(EffectiveNumber, ONE, beta={"beta": 0.9}, images={"mean": "images"}),
    **_alone(Focal, ONE, stronger={"beta": 2.0, "gamma": 2.0}, published={"against": "nothing"}, wider={"width": 0.5}),
    **_alone(MinSNR, ONE, gamma={"gamma": 1.0}),
    **_alone(
        ClassBalancing,
        TWO,
        uniform={"distribution": "uniform"},
        eps={"space": "eps"},
        constants={"tau": 0.7, "gamma": 0.5},
    ),
    **_alone(
        UnconditionalContrast,
        TAPS,
        tau={"tau": 0.5},
        none={"time": "none"},
        clean={"time": "clean"},
        block={"block": 4},
    ),
    **_alone(Alignment, TWO, none={"time": "none"}, clean={"time": "clean", "space": "eps"}),
    **_alone(Transfer, ONE, h2t={"direction": "h2t"}, full={"direction": "full", "tau": 1.0}),
    **_alone(
        SupervisedContrast,
        TAPS,
        dropping={"drop": True},
        released={"released": True},
        wholly={"drop": True, "released": True},
    ),
    **_alone(ClassOverlap, TWO, eps={"space": "eps", "time": "none"}),
    **{
        f"overlap {name}": Case(((ClassOverlap, {"exact": False, **options}),), ONE)
        for name, options in {"released": {"time": "clean"}, "released eps": {"space": "eps"}}.items()
    },
    **_alone(Dispersive, TAPS, tau={"tau": 1.0}, cosine={"distance": "cosine"}),
    **_alone(
        CapacityManipulation,
        TWO,
        free={"bound": math.inf},
        constants={"consistency": 0.3, "diversity": 2.0, "bound": 0.02, "weight": 0.7},
        eps={"space": "eps"},
    ),
    "capacity anchor": Case(((CapacityManipulation, {"detach_base": True}),), ONE, "low rank"),
    **_alone(
        PairDiversity,
        ONE,
        mean={"gamma": 0.0, "reduction": "mean"},
        null={"gamma": 0.7, "condition": "null", "weight": 1.3, "temperature": 0.2},
    ),
    **_alone(
        PrototypeContrast,
        TAPS,
        plain={"prior": False, "momentum": 0.9},
        alike={"clean": False, "tau": 0.3, "momentum": 0.8},
    ),
    "prototype_contrast at first": Case(((PrototypeContrast, {}),), TAPS, "encoder"),
    # 2 strata x 13 rows x 2 labels
    "sampled_balancing": Case(((SampledBalancing, {"rows": 0.4}),), ((52, 52),), size=64),
    # taps of the null condition ride on the same pass and stop where the taps are
    "denoising + CBDM + contrast": Case(_CBDM, ((48, 32),)),
    "denoising + CBDM + CCUA": Case(_CCUA, ((48, 48),)),
    # sampled rows of "given" are taken from the full evaluation
    "denoising + sampled": Case(((Denoising, {}), (SampledBalancing, {"rows": 0.4})), ((90, 90),), size=64),
    # given, comparison, null, base capacity, overlap, and the grouped part
    "everything": Case(_EVERYTHING, ((96, 96),), "low rank"),
}


def oracle(
    step: TrainingStep, case: Case, batches: Mapping[str, NoisyBatch], kind: str, **state: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(losses, gradients by parameter name) of a step from the formulas; `step` is in float64."""
    losses, total = {}, oracles.ZERO
    raws = {part: oracles.Raw(kind, batch, STATS.counts) for part, batch in batches.items()}
    for made, (of, options) in zip(step.active, case.objectives, strict=True):
        constants = {k: v for k, v in options.items() if k != "weight"} | state
        formula = getattr(oracles, of.name.replace("sampled", "class"))
        if of is SampledBalancing:
            constants["name"] = of.name
        for term, value in formula(raws[made.part], step.networks, step, **constants).items():
            losses[f"{of.name}/{term}"] = value
            total = total + (0 if term in of.monitors else options.get("weight", WEIGHTS.get(of, 1.0)) * value)
    losses["loss"] = total
    named = {n: p for n, p in step.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(losses["loss"], list(named.values()), allow_unused=True)
    return (
        {n: v.detach() for n, v in losses.items()},
        {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)},
    )


def low_rank(process: Process, shape: tuple[int, int, int] = SHAPE, spread: float = 0.5) -> LowRankModel:
    """A small network whose low-rank part is at work."""
    model = LowRankModel.of(build_model("mlp", process, shape, STATS, seed=1), 2)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".up"):
                p.copy_(spread * torch.randn(p.shape, generator=generator))
    return model.train()


def encoder(process: Process, shape: tuple[int, int, int] = SHAPE) -> PrototypeEncoder:
    return PrototypeEncoder.like(build_model("mlp", process, shape, STATS, seed=3), 5)


def make_step(
    objectives: list[Objective],
    process: Process,
    *,
    network: str = "mlp",
    dtype: torch.dtype = torch.float64,
) -> TrainingStep:
    """A step on small networks; `source` is there, frozen, if anyone reads the grouped part."""
    made: nn.Module
    if network == "mlp":
        made = build_model("mlp", process, SHAPE, STATS, seed=1)
    else:
        made = {"low rank": low_rank, "encoder": encoder}[network](process)
    frozen = ["source"] if any(o.part == "grouped" for o in objectives) else []
    networks = {"model": made, **{name: build_model("mlp", process, SHAPE, STATS, seed=2) for name in frozen}}
    return TrainingStep(networks, objectives, frozen=frozen).to(dtype)


def make_batches(
    step: TrainingStep,
    process: Process,
    *,
    dist: Dist | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 46,
    share: slice | None = None,
    shape: tuple[int, int, int] = SHAPE,
    size: int = N,
) -> dict[str, NoisyBatch]:
    """This process's rows of the parts that the objectives of `step` read."""
    dist = dist or Dist()
    rows = share or dist.share(size)
    out = {}
    for part in sorted({o.part for o in step.active}):
        grouped = part == "grouped"
        generator = torch.Generator().manual_seed(seed + grouped)
        x0 = torch.randn(size, *shape, generator=generator, dtype=torch.float64).to(dtype)
        labels = GROUP_CLASS[GROUP] if grouped else LABELS.repeat(size // N)
        out[part] = noisy_batch(
            x0[rows],
            labels[rows],
            process=process,
            stats=STATS,
            seed=seed,
            step=3,
            size=size,
            share=rows,
            part=part,
            draws=step.draws(part),
            label_dropout=0.25,
            group=GROUP[rows] if grouped else None,
            groups=4 if grouped else 0,
            dist=dist,
        )
    return out


def step_of(case: str, kind: str, **options: Any) -> TrainingStep:
    of = CASES[case]
    return make_step(of.make(), PROCESSES[kind], **{"network": of.network, **options})


@dataclass
class Result:
    """`losses` are means over processes, `grads` what this process's parameters hold after the last step."""

    losses: dict[str, Tensor]
    grads: dict[str, Tensor]
    buffers: dict[str, Tensor]
    calls: Calls
    forwards: int
    wrapped: int
    usage: Any


def run(case: str, kind: str, dist: Dist | None = None, **options: Any) -> Result:
    """The steps of a case; costs are those of the last."""
    dist, of = dist or Dist(), CASES[case]
    step = step_of(case, kind, **options)
    calls: list[tuple[int, int]] = []
    counted = {"step": 0, "wrapped": 0}

    def count(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if torch.is_grad_enabled():
            calls.append((len(args[0]), len(out[0])))

    def bump(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counted[name] += 1

        return hook

    step.networks["model"].register_forward_hook(count)
    step.register_forward_hook(bump("step"))
    module: nn.Module = step
    if dist.world > 1:
        module = nn.parallel.DistributedDataParallel(step, find_unused_parameters=of.unused)
        module.register_forward_hook(bump("wrapped"))
    for i in range(of.steps):
        calls.clear()
        step.zero_grad()
        out = module(make_batches(step, PROCESSES[kind], dist=dist, seed=46 + i, size=of.size))
        during = tuple(calls)
        out["loss"].backward()
    return Result(
        {n: dist.total(v) / dist.world for n, v in out.items()},
        {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in step.named_parameters() if p.requires_grad},
        dict(step.objectives.named_buffers()),
        during,
        counted["step"] // of.steps,
        counted["wrapped"] // of.steps,
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
