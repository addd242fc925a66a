"""The loss of DiffRC's encoder and its prototypes: formulas by loops, two processes as one, and exact continuation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imbdiff.diffusion.encoder import PrototypeEncoder
from imbdiff.diffusion.model import build_model
from imbdiff.diffusion.process import PROCESSES, Process
from imbdiff.objectives.batch import NoisyBatch, class_prior
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Answer
from imbdiff.objectives.pair_diversity import PairDiversity
from imbdiff.objectives.prototype_contrast import PrototypeContrast, with_prototypes
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError
from imbdiff.testing import SHAPE, check_objective
from imbdiff.training.step import TrainingStep
from imbdiff.training.trainer import Trainer
from tests.contract.cases import LABELS, STATS, N, make_batches, make_step, one_of_two
from tests.contract.oracles import Raw
from tests.training.test_trainer import CONFIG, StopError, data, stop_at
from tests.training.test_trainer import trainer as of_a_model

KINDS = ("ddpm", "ddpm-v", "flow")


def encoder(process: Process, seed: int = 5) -> PrototypeEncoder:
    return PrototypeEncoder.like(build_model("mlp", process, SHAPE, STATS, seed=3), seed)


def new_step(kind: str, **options: Any) -> TrainingStep:
    return TrainingStep({"model": encoder(PROCESSES[kind])}, [PrototypeContrast(**options)]).double()


def batch_of(step: TrainingStep, kind: str, seed: int = 46, **options: Any) -> NoisyBatch:
    return make_batches(step, PROCESSES[kind], seed=seed, **options)["main"]


def test_frequencies_are_copied_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = class_prior(STATS, torch.device("cpu"))
    assert first.tolist() == pytest.approx([n / sum(STATS.counts) for n in STATS.counts])
    assert class_prior(STATS, torch.device("cpu")) is first
    step = new_step("ddpm")
    step.objectives[0].prepare(step.networks)
    batches = make_batches(step, PROCESSES["ddpm"])
    step(batches)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("made anew, and copied to the device, in every step")

    monkeypatch.setattr(torch, "tensor", refused)
    monkeypatch.setattr(torch, "from_numpy", refused)
    step(batches)


def formula(
    raw: Raw, step: TrainingStep, sums: list[Tensor], *, prior: bool, clean: bool, m: float, tau: float
) -> tuple[Tensor, list[Tensor]]:
    """(mean loss, the sums after it), by loops."""
    f = [step.networks["model"].features(raw.x[i][None], raw.t[i : i + 1])[0] for i in range(raw.n)]
    after = []
    for k in range(4):
        rows = [i for i in range(raw.n) if raw.labels[i] == k]
        weights = [raw.a[i] ** 2 if clean else 1.0 for i in rows]
        n = sum(weights)
        if not rows:
            after.append(sums[k])
            continue
        mean = sum((w * f[i].detach() for w, i in zip(weights, rows, strict=True)), torch.zeros(128).double()) / n
        after.append(m**n * sums[k] + (1 - m**n) * mean)
    used = [a if float(s.norm()) == 0 else s for s, a in zip(sums, after, strict=True)]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(raw.n):
        values = []
        for k in range(4):
            length = float((used[k] * used[k]).sum()) ** 0.5
            cos = (f[i] * used[k]).sum() / length if length > 0 else torch.zeros(()).double()
            values.append((STATS.counts[k] / sum(STATS.counts) if prior else 1.0) * (cos / tau).exp())
        total = total - (values[raw.labels[i]] / sum(values)).log()
    return total / raw.n, after


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"prior": False, "momentum": 0.9}, {"clean": False, "tau": 0.3, "momentum": 0.8}]
)
def test_three_steps_are_the_formula(kind: str, options: dict[str, Any]) -> None:
    """Values, gradients and prototypes; in the first batch a class is missing."""
    step = new_step(kind, **options)
    (objective,) = step.active
    assert isinstance(objective, PrototypeContrast)
    sums = [torch.zeros(128, dtype=torch.float64) for _ in range(4)]
    constants = {"prior": objective.prior, "clean": objective.clean, "m": objective.momentum, "tau": objective.tau}
    for i in range(3):
        batch = batch_of(step, kind, seed=46 + i)
        if i == 0:
            batch = replace(batch, labels=torch.where(LABELS == 3, 2, LABELS))
        step.zero_grad()
        out = step({"main": batch})
        out["loss"].backward()
        expected, sums = formula(Raw(kind, batch, STATS.counts), step, sums, **constants)
        assert float(out["prototype_contrast/loss"]) == pytest.approx(float(expected.detach()), rel=1e-6)
        named = dict(step.named_parameters())
        grads = torch.autograd.grad(expected, list(named.values()))
        largest = max(float(g.abs().max()) for g in grads)
        assert largest > 1e-4
        for (name, p), grad in zip(named.items(), grads, strict=True):
            assert p.grad is not None
            gap = float((p.grad - grad).abs().max())
            assert gap <= 1e-6 * max(float(grad.abs().max()), 1e-3 * largest), (i, name)
            assert float(grad.abs().max()) > 0, f"{name} does not train"
        assert torch.allclose(objective.sums, torch.stack(sums), rtol=1e-9, atol=1e-15)
        units = torch.stack([s / s.norm() if float(s.norm()) else s for s in sums])
        assert torch.allclose(objective.prototypes(), units, rtol=1e-6)
        assert float(objective.prototypes()[3].norm()) == pytest.approx(0.0 if i == 0 else 1.0, abs=1e-6)
        with torch.no_grad():  # another encoder at the next step
            for p in step.parameters():
                p.add_(0.05 * torch.ones_like(p))


def test_constants_are_the_papers() -> None:
    objective = PrototypeContrast()
    assert (objective.tau, objective.momentum, objective.prior, objective.weight) == (0.07, 0.999, True, 1.0)


def test_conforms() -> None:
    def build(name: str, process: Process) -> PrototypeEncoder:
        return encoder(process)

    check_objective(PrototypeContrast(), build=build)
    check_objective(PrototypeContrast(prior=False, clean=False, momentum=0.0), build=build)


def answered(objective: PrototypeContrast, batch: NoisyBatch, f: Tensor) -> Tensor:
    return objective.terms(batch, [Answer(None, {"features": f}, batch.condition, None)])["loss"]


def prepared(**options: Any) -> PrototypeContrast:
    objective = PrototypeContrast(**options)
    objective.prepare({"model": encoder(PROCESSES["ddpm"])})
    return objective.double()


def test_one_image_per_step_is_equation_11() -> None:
    """c <- m c + (1 - m) f, from 0, its direction alone used."""
    objective = prepared(momentum=0.9, clean=False)
    batch = batch_of(new_step("ddpm"), "ddpm")
    one = replace(batch, labels=torch.full((1,), 2), t=batch.t[:1])
    generator = torch.Generator().manual_seed(0)
    c = torch.zeros(128, dtype=torch.float64)
    for _ in range(5):
        f = torch.nn.functional.normalize(torch.randn(1, 128, generator=generator, dtype=torch.float64), dim=1)
        answered(objective, one, f)
        c = 0.9 * c + 0.1 * f[0]
    assert torch.allclose(objective.sums[2], c)
    assert torch.allclose(objective.prototypes()[2], c / c.norm())
    assert float(objective.sums[[0, 1, 3]].abs().max()) == 0


def test_a_class_starts_as_its_mean_however_little_it_weighs() -> None:
    """At nothing but noise the weight of an image is 4e-5, under a flow 4e-15."""
    for kind, t in (("ddpm", torch.full((N,), 999)), ("flow", torch.full((N,), 1 - 2.0**-24))):
        objective = prepared()
        batch = replace(batch_of(new_step(kind), kind), t=t)
        f = torch.nn.functional.normalize(
            torch.randn(N, 128, generator=torch.Generator().manual_seed(1)).double(), dim=1
        )
        answered(objective, batch, f)
        for k in range(4):
            mean = f[k == LABELS].mean(0)
            assert torch.allclose(objective.prototypes()[k], mean / mean.norm(), rtol=1e-6), kind


def test_clean_images_count_most() -> None:
    batch = batch_of(new_step("ddpm"), "ddpm")
    batch = replace(batch, labels=torch.zeros_like(LABELS), t=torch.where(torch.arange(N) == 3, 0, 900))
    f = torch.eye(N, 128, dtype=torch.float64)
    found = {}
    for clean in (True, False):
        objective = prepared(clean=clean)
        answered(objective, batch, f)
        found[clean] = objective.prototypes()[0]
    assert float(found[True][3]) > 0.999
    assert float(found[False][3]) == pytest.approx(N**-0.5)


def test_prototypes_have_no_gradient_and_stand_still_in_evaluation() -> None:
    objective = prepared()
    batch = batch_of(new_step("ddpm"), "ddpm")
    f = torch.nn.functional.normalize(torch.randn(N, 128, generator=torch.Generator().manual_seed(1)).double(), dim=1)
    answered(objective, batch, f)
    assert not objective.sums.requires_grad
    before = objective.sums.clone()
    objective.eval()
    answered(objective, batch, f.flip(0))
    assert torch.equal(before, objective.sums)
    objective.train()
    answered(objective, batch, f.flip(0))
    assert not torch.equal(before, objective.sums)


def test_the_prior_is_balanced_softmax() -> None:
    """With features that say nothing, the loss is -log pi_y; without prior, log C."""
    batch = batch_of(new_step("ddpm"), "ddpm")
    for prior in (True, False):
        objective = prepared(prior=prior)
        rows = answered(objective, batch, torch.full((N, 128), 128**-0.5, dtype=torch.float64))
        pi = [STATS.counts[y] / sum(STATS.counts) if prior else 0.25 for y in LABELS.tolist()]
        assert rows.tolist() == pytest.approx([-math.log(p) for p in pi], rel=1e-6)


def test_finish_gives_the_encoder_what_it_was_trained_with() -> None:
    step = new_step("ddpm", tau=0.2)
    step({"main": batch_of(step, "ddpm")})
    (objective,) = step.active
    assert isinstance(objective, PrototypeContrast)
    net = step.networks["model"]
    assert isinstance(net, PrototypeEncoder)
    assert float(net.prototypes.abs().max()) == 0
    done = with_prototypes(net, [objective])
    assert torch.equal(done.prototypes, objective.prototypes())
    assert done.tau == 0.2
    assert not any(p.requires_grad for p in done.parameters())


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="PrototypeEncoder"):
        TrainingStep({"model": build_model("mlp", PROCESSES["ddpm"], SHAPE, STATS)}, [PrototypeContrast()])
    for bad in ({"tau": 0.0}, {"tau": math.nan}, {"momentum": 1.0}, {"momentum": -0.1}, {"weight": -1.0}):
        with pytest.raises(ConfigError):
            PrototypeContrast(**bad)  # type: ignore[arg-type]


# -- in the loop


def training(folder: Path | None, **options: Any) -> Trainer:
    images = data()
    made = of_a_model(folder, replace(CONFIG, accumulate=2), **options)
    model = build_model("mlp", PROCESSES["ddpm"], (1, 4, 4), images.stats)
    made.step = TrainingStep({"model": PrototypeEncoder.like(model, 1)}, [PrototypeContrast()])
    made.parts, made.finish = [type(made.parts[0])()], with_prototypes
    return made


def test_a_stopped_training_continues_with_the_same_prototypes(tmp_path: Path) -> None:
    whole = training(tmp_path / "a").run()
    assert isinstance(whole, PrototypeEncoder)
    assert torch.allclose(whole.prototypes.norm(dim=1), torch.ones(3), rtol=1e-5)
    with pytest.raises(StopError):
        training(tmp_path / "b", on_preview=stop_at(16 * 10)).run()
    again = training(tmp_path / "b").run()
    read_back = training(tmp_path / "b").run()
    for other in (again, read_back):
        assert whole.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in whole.state_dict().items())


# -- two processes of 8 rows are one of 16

Result = tuple[dict[str, Tensor], dict[str, Tensor], Tensor]


def run(name: str, kind: str, dist: Dist) -> Result:
    """Losses and gradients of the second of two steps, and the prototypes after it."""
    process = PROCESSES[kind]
    step = new_step(kind) if name == "prototypes" else make_step([Denoising(), PairDiversity()], process)
    module = step if dist.world == 1 else torch.nn.parallel.DistributedDataParallel(step)
    for seed in (46, 47):
        step.zero_grad()
        out = module(make_batches(step, process, dist=dist, seed=seed))
        out["loss"].backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in step.named_parameters()}
    sums = step.active[0].sums if name == "prototypes" else torch.zeros(1)
    assert isinstance(sums, Tensor)
    return {n: dist.total(v) / dist.world for n, v in out.items()}, grads, sums


CASES = [(name, kind) for name in ("prototypes", "pairs") for kind in ("ddpm", "flow")]


def worker(rank: int, folder: str) -> None:
    with one_of_two(rank, folder) as dist:
        torch.save({case: run(*case, dist) for case in CASES}, Path(folder) / f"rank{rank}.pt")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, args=(str(tmp_path),), nprocs=2)
    on_two = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for case in CASES:
        losses, grads, sums = run(*case, Dist())
        largest = max(float(g.abs().max()) for g in grads.values())
        assert largest > 1e-6
        for results in on_two:
            found, found_grads, found_sums = results[case]
            for term, value in losses.items():
                assert float(found[term]) == pytest.approx(float(value), rel=1e-9), (case, term)
            for parameter, grad in grads.items():
                gap = float((found_grads[parameter] - grad).abs().max())
                assert gap <= 1e-9 * max(float(grad.abs().max()), 1e-3 * largest), (case, parameter)
            assert torch.allclose(found_sums, sums, rtol=1e-9, atol=1e-18)
