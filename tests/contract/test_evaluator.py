"""What the evaluator promises: merging, chunking, leaving out change nothing but the cost; bad requests are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.batch import LabelDraw, NoisyBatch, UniformDraw
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.evaluator import evaluate
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.overlap import ClassOverlap
from imbdiff.objectives.requests import Answer, Labels, Request, Rows
from imbdiff.objectives.supervised_contrast import SupervisedContrast
from imbdiff.runtime.errors import ConfigError
from imbdiff.training.step import TrainingStep

from .cases import CASES, KINDS, N, make_batches, make_step, step_of

each_kind = pytest.mark.parametrize("kind", KINDS)
Grads = dict[str, Tensor]


def backward(step: TrainingStep, batches: dict[str, NoisyBatch]) -> tuple[dict[str, Tensor], Grads]:
    step.zero_grad()
    out = step(batches)
    out["loss"].backward()
    return out, {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}


def assert_close(got: Grads, expected: Grads, tolerance: float) -> None:
    scale = max(float(v.abs().max()) for v in expected.values())
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert float((got[name] - value).abs().max()) <= tolerance * scale, name


@each_kind
@pytest.mark.parametrize(
    ("case", "dtype", "tolerance"),
    [("denoising + CBDM + CCUA", torch.float32, 1e-5), ("everything", torch.float64, 1e-12)],
)
def test_a_combination_is_the_sum_of_its_parts(case: str, kind: str, dtype: torch.dtype, tolerance: float) -> None:
    process, network = PROCESSES[kind], CASES[case].network
    together = step_of(case, kind, dtype=dtype)
    batches = make_batches(together, process, dtype=dtype)
    out, grads = backward(together, batches)
    total, summed = 0.0, {n: torch.zeros_like(g) for n, g in grads.items()}
    for number, objective in enumerate(CASES[case].make()):
        alone, own = backward(make_step([objective], process, network=network, dtype=dtype), batches)
        total += float(alone["loss"].detach())
        for n, g in own.items():
            summed[n.replace("objectives.0.", f"objectives.{number}.")] += g
    assert float(out["loss"].detach()) == pytest.approx(total, rel=tolerance)
    assert_close(grads, summed, tolerance)


@each_kind
def test_merged_equals_separate_passes(kind: str) -> None:
    """Whole and some rows, all conditions and capacities, taps with and without predictions, with gradient and not."""
    process = PROCESSES[kind]
    step = make_step([ClassBalancing()], process, network="low rank", dtype=torch.float32)
    batches = make_batches(step, process, dtype=torch.float32)
    some, few = Rows("some", torch.tensor([9, 2, 5])), Rows("few", torch.tensor([1, 0]))
    asked = [
        ("main", request)
        for request in [
            Request("null", taps=("mid",), prediction=False),
            Request("given"),
            Request("given", taps=("mid",), grad=False),
            Request("given", some, taps=("mid",)),
            Request("given", capacity="base"),
            Request("given", few, capacity="base"),
            Request(Labels("comparison", batches["main"].draws["comparison"]), some),
            Request(
                Labels("comparison", batches["main"].draws["comparison"]),
                few,
                grad=False,
                taps=("mid",),
                prediction=False,
            ),
            Request(Labels("flipped", batches["main"].labels.flip(0))),
            Request(Labels("flipped", batches["main"].labels.flip(0)), few, grad=False),
        ]
    ]
    networks = {"model": step.networks["model"]}
    merged, usage = evaluate(networks, batches, asked)
    # null, given, given base, flipped, comparison of three; and without gradient comparison of two
    assert (usage.passes, usage.rows, usage.predicted_rows) == (2, 4 * N + 3 + 2, 3 * N + 3)
    separate = [evaluate(networks, batches, [pair])[0][0] for pair in asked]

    def gradient(answers: list[Answer]) -> Grads:
        step.zero_grad()
        total = torch.zeros(())
        for i, a in enumerate(answers):
            for x in [*([] if a.prediction is None else [a.pred]), *a.taps.values()]:
                total = total + (i + 1) * x.sin().sum()
        total.backward()
        return {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}

    for (_, request), one, other in zip(asked, merged, separate, strict=True):
        assert (one.prediction is None) == (not request.prediction)
        assert one.taps.keys() == set(request.taps)
        pairs = [(one.taps[tap], other.taps[tap]) for tap in request.taps]
        if request.prediction:
            pairs.append((one.pred, other.pred))
        for x, y in pairs:
            assert x.requires_grad == request.grad
            assert torch.allclose(x, y, rtol=1e-5, atol=1e-6)
        assert torch.equal(one.labels, other.labels)
        assert (one.rows is None) == (request.rows is None)
        if request.rows is not None and one.rows is not None:
            assert torch.equal(one.rows, request.rows.index)
        x_t = one.of(batches["main"].x_t)
        assert request.prediction is False or len(x_t) == len(one.pred)
    assert_close(gradient(merged), gradient(separate), 1e-5)


def test_weight_zero_is_leaving_out_bit_for_bit() -> None:
    process = PROCESSES["flow"]
    left_out = make_step([Denoising()], process, dtype=torch.float32)
    zero = [ClassBalancing(weight=0.0), Denoising(), SupervisedContrast(width=128, weight=0.0)]
    silent = make_step(zero, process, dtype=torch.float32)
    assert silent.draws() == {}
    assert [n for n, _ in silent.named_parameters()] == [n for n, _ in left_out.named_parameters()]
    expected, grads = backward(left_out, make_batches(left_out, process, dtype=torch.float32))
    out, others = backward(silent, make_batches(silent, process, dtype=torch.float32))
    assert out.keys() == expected.keys()
    assert all(torch.equal(out[n], v) for n, v in expected.items())
    assert others.keys() == grads.keys()
    assert all(torch.equal(others[n], g) for n, g in grads.items())
    assert silent.usage == left_out.usage


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_answers_are_float32_or_better(dtype: torch.dtype) -> None:
    process = PROCESSES["ddpm"]
    batches = make_batches(make_step([Denoising()], process), process)

    def network(x_t: Tensor, t: Tensor, labels: Tensor, taps: object, n: int) -> tuple[Tensor, dict[str, Tensor]]:
        return x_t[:n].to(dtype), {"mid": x_t.to(dtype)}

    answer = evaluate({"model": network}, batches, [("main", Request("given", taps=("mid",)))])[0][0]
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert (answer.pred.dtype, answer.taps["mid"].dtype) == (expected, expected)


@pytest.mark.parametrize("share", [slice(0, 8), slice(8, 16)])
def test_pairs_are_made_among_the_rows_of_a_micro_batch(share: slice) -> None:
    """Eight rows of a global batch of 16, as in an accumulated step: partners are among the rows at hand."""
    step = step_of("overlap", "ddpm")
    batch = make_batches(step, PROCESSES["ddpm"], share=share)["main"]
    (objective,) = step.active
    assert isinstance(objective, ClassOverlap)
    assert sorted(objective.partners(batch, torch.arange(8)).tolist()) == list(range(8))
    assert batch.draws["cycle"].max() >= 8
    assert torch.isfinite(step({"main": batch})["loss"])


class Asks(Objective):
    """Asks for whatever it is told to."""

    name = "asks"

    def __init__(self, *wanted: Request, part: str = "main") -> None:
        super().__init__(part=part)
        self.wanted = wanted

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return self.wanted

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        return {"x": answers[0].pred.flatten(1).mean(1)}


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        (Asks(Request(), part="elsewhere"), "elsewhere"),
        (Asks(Request(network="teacher")), "teacher"),
        (Asks(Request(taps=("block7",))), "block7"),
        (Asks(Request(capacity="base")), "capacity"),
        (Asks(Request("null", Rows("r", torch.arange(2))), Request("null", Rows("r", torch.arange(3)))), "'r'"),
    ],
)
def test_bad_requests_name_what_is_wrong(objective: Objective, named: str) -> None:
    process = PROCESSES["ddpm"]
    step = make_step([Denoising(), objective], process)
    batches = {"main": make_batches(make_step([Denoising()], process), process)["main"]}
    with pytest.raises(ConfigError, match=named):
        step(batches)


def test_requests_that_cannot_be_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="tap"):
        Request(prediction=False)
    with pytest.raises(ConfigError, match="weight"):
        Denoising(weight=-1.0)
    with pytest.raises(ConfigError, match="weight"):
        Denoising(weight=float("nan"))


def test_steps_that_cannot_be_are_refused() -> None:
    process = PROCESSES["ddpm"]
    networks = {"model": make_step([Denoising()], process).networks["model"]}
    with pytest.raises(ConfigError, match="weight"):
        TrainingStep(networks, [Denoising(weight=0.0)])
    with pytest.raises(ConfigError, match="same name"):
        TrainingStep(networks, [Denoising(), Denoising()])
    with pytest.raises(ConfigError, match="teacher"):
        TrainingStep(networks, [Denoising()], frozen=["teacher"])
    one, two = Asks(Request()), Denoising()
    one.draws, two.draws = {"d": LabelDraw("prior")}, {"d": UniformDraw()}
    with pytest.raises(ConfigError, match="'d'"):
        TrainingStep(networks, [one, two]).draws()


def test_parts_keep_to_themselves() -> None:
    """The same request on two parts is two evaluations, and a change of one part moves only its own objectives."""
    step = step_of("everything", "flow")
    batches = make_batches(step, PROCESSES["flow"])
    before = step(batches)
    grouped = batches["grouped"]
    after = step({**batches, "grouped": replace(grouped, x_t=grouped.x_t + 1)})
    moved = {n for n, v in before.items() if not torch.equal(v, after[n])}
    assert moved == {"pair_diversity/kl", "loss"}


def test_frozen_networks_stay_in_eval_mode_and_get_no_gradient() -> None:
    step = step_of("pair_diversity", "ddpm").train()
    assert (step.networks["model"].training, step.networks["source"].training) == (True, False)
    _, grads = backward(step, make_batches(step, PROCESSES["ddpm"]))
    assert grads
    assert all(n.startswith("networks.model.") for n in grads)
