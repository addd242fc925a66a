"""Training a classifier: plans, phases, bits, interruptions, validation, and what is refused beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imbdiff.config import ClassifyConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.samplers import BatchSampler
from imbdiff.recognition import fitting
from imbdiff.recognition.fitting import Fit, FitPhase, check_trainings, fit, phases_of
from imbdiff.recognition.losses import BatchLoss
from imbdiff.recognition.networks import Classifier, build_network, predict
from imbdiff.recognition.plan import CIFAR_PIXELS, FitPlan, literature
from imbdiff.recognition.recipes import RECIPES
from imbdiff.recognition.use import Mixture, Use
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.errors import ConfigError, NonFiniteLossError, RunError
from imbdiff.runtime.log import JsonLog, read_jsonl
from imbdiff.runtime.streams import torch_rng
from imbdiff.training.loop import TrainingFiles

from .conftest import NAMES, make_set, tiny

PLAN = FitPlan(tiny, steps=40, batch_size=12, lr=0.05, shift=1)
TRAIN, VAL, SYNTHETIC = make_set((40, 10, 4), 0), make_set((8, 8, 8), 1), make_set((0, 30, 36), 9)


def _train(recipe: str = "ce", plan: FitPlan = PLAN, train: ImageSet = TRAIN, **options: Any) -> Classifier:
    return Fit(train, plan, RECIPES[recipe], **options).run()


def _same(a: Classifier, b: Classifier) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)


# -- plans


def test_learning_rate_rises_then_falls_to_almost_nothing() -> None:
    plan = FitPlan(steps=100, lr=0.2)
    rates = [plan.rate(s) for s in range(100)]
    assert rates[9] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    # half of the way down the cosine: half of the rate
    assert plan.rate(54) == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * 45 / 91)))
    # a phase has the rates of a plan of its steps
    assert [plan.rate(s, 50) for s in range(50)] == [FitPlan(steps=50, lr=0.2).rate(s) for s in range(50)]
    for steps in (1, 2, 7):
        for protocol in ("imbdiff", "cifar-lt"):
            short = FitPlan(steps=steps, protocol=protocol)  # type: ignore[arg-type]
            assert all(0 < short.rate(s) <= short.lr for s in range(steps))


def test_the_protocol_of_the_literature() -> None:
    """Cao et al.: epochs 1 to 5 rise, 0.1 after them, 0.001 after 160 and 0.00001 after 180 of 200."""
    plan = literature(2000)
    assert [plan.rate(s) for s in (24, 49, 50, 1599)] == pytest.approx([0.05, 0.1, 0.1, 0.1])
    assert [plan.rate(s) for s in (1600, 1799, 1800, 1999)] == pytest.approx([1e-3, 1e-3, 1e-5, 1e-5])
    assert (plan.network, plan.weight_decay, plan.nesterov, plan.precision) == ("resnet32", 2e-4, False, "fp32")
    assert plan.normalise == CIFAR_PIXELS
    crop = plan.augmentation
    assert (crop.symmetry, crop.shift, crop.border, crop.policy, crop.erase) == ("mirror", 4, "zero", "none", 0)
    assert literature(mirror=False).augmentation.symmetry == "none"
    # 10,847 images of CIFAR-100-LT at imbalance factor 100: 85 batches in an epoch
    assert math.ceil(10_847 / 128) * 200 == literature().steps


def test_a_plan_has_the_options_of_the_configuration() -> None:
    options = ClassifyConfig(network="resnet32", steps=7, lr=0.3, shift=2, erase=3, policy="autoaugment-cifar")
    plan = FitPlan.of(options, symmetry="turns", precision="bf16")
    assert (plan.network, plan.steps, plan.lr, plan.precision, plan.nesterov) == ("resnet32", 7, 0.3, "bf16", True)
    a = plan.augmentation
    assert (a.symmetry, a.shift, a.erase, a.policy, a.border) == ("turns", 2, 3, "autoaugment-cifar", "edge")
    assert FitPlan.of(replace(options, protocol="cifar-lt"), precision="bf16").precision == "fp32"


# -- phases


@pytest.mark.parametrize("name", RECIPES)
def test_steps_of_all_phases_are_those_of_the_plan(name: str) -> None:
    for schedule in ("mixed", "real-last"):
        for steps in (1, 2, 7, 128):
            for last in (0.01, 0.2, 0.99):
                for synthetic in (False, True):
                    use = Use(schedule=schedule, last=last)  # type: ignore[arg-type]
                    found = phases_of(FitPlan(steps=steps), RECIPES[name], use, synthetic)
                    assert sum(phase.steps for phase in found) == steps
                    assert all(0 <= phase.real_only <= phase.steps for phase in found)
                    assert [phase.trains for phase in found].count("all") == 1
                    if not synthetic:
                        assert all(phase.real_only == phase.steps for phase in found)


@pytest.mark.parametrize(
    ("name", "use", "expected"),
    [
        ("ce", Use(), [FitPhase("", 0, 500, "all", "natural", 500)]),
        ("resampling", Use(), [FitPhase("", 0, 500, "all", "balanced", 500)]),
        ("ce", Use(schedule="real-last"), [FitPhase("", 0, 500, "all", "natural", 400)]),
        ("ce", Use(schedule="real-last", last=0.5), [FitPhase("", 0, 500, "all", "natural", 250)]),
        (
            "crt",
            Use(),
            [FitPhase("", 0, 450, "all", "natural", 450), FitPhase(" crt", 450, 50, "new head", "balanced", 50)],
        ),
        (
            "lws",
            Use(schedule="real-last"),
            [FitPhase("", 0, 450, "all", "natural", 400), FitPhase(" lws", 450, 50, "scale", "balanced", 0)],
        ),
        ("tau-norm", Use(), [FitPhase("", 0, 500, "all", "natural", 500)]),
    ],
)
def test_phases_by_hand(name: str, use: Use, expected: list[FitPhase]) -> None:
    assert phases_of(FitPlan(steps=500), RECIPES[name], use, True) == expected


# -- a training, literally


def _literal(
    images: ImageSet, plan: FitPlan, seed: int, sampler: str, prior: np.ndarray | None, weights: np.ndarray | None
) -> Classifier:
    """The loop as it is meant, step by step, with nothing but torch: what results have been made with."""
    network = build_network(plan.network, images.shape, 3, seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    x_all, y_all = torch.from_numpy(images.images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(images.labels)
    own = None
    if weights is not None:  # relative to the mean over the rows of batches
        of_class = [weights[images.labels == k].mean() for k in range(3)]
        own = torch.from_numpy(weights / (weights.mean() if sampler == "natural" else np.mean(of_class))).float()
    batches = BatchSampler(images.labels, plan.batch_size, distribution=sampler, seed=seed, name="classifier batch")
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
    rise = round(0.1 * plan.steps)
    for step in range(plan.steps):
        rows = torch.from_numpy(batches.indices(step))
        draws = plan.augmentation.draw(plan.batch_size, torch_rng(seed, "classifier augmentation", step))
        x = plan.augmentation.apply(x_all[rows], draws).float() / 127.5 - 1
        logits = network(x.contiguous(memory_format=torch.channels_last))
        if prior is not None:
            logits = logits + torch.from_numpy(np.log(prior)).float()
        loss = torch.nn.functional.cross_entropy(logits, y_all[rows], reduction="none")
        loss = (loss if own is None else loss * own[rows]).mean()
        fall = 0.5 * (1 + math.cos(math.pi * (step - rise + 1) / (plan.steps - rise + 1)))
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        for p, gradient in zip(network.parameters(), gradients, strict=True):
            p.grad = gradient
        optimizer.param_groups[0]["lr"] = plan.lr * ((step + 1) / rise if step < rise else fall)
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("name", ["ce", "balanced-softmax", "resampling"])
def test_weights_are_those_of_a_literal_loop_bit_for_bit(name: str) -> None:
    plan, recipe = FitPlan(steps=15, batch_size=16), RECIPES[name]
    counts = np.array([40.0, 10, 4])
    prior = counts / counts.sum() if name == "balanced-softmax" else None
    assert _same(fit(TRAIN, plan, name, seed=4), _literal(TRAIN, plan, 4, recipe.sampler, prior, None))
    both = ImageSet(
        np.concatenate([TRAIN.images, SYNTHETIC.images]), np.concatenate([TRAIN.labels, SYNTHETIC.labels]), NAMES
    )
    weights = np.concatenate([np.ones(54), np.full(66, 0.25)])
    for prior_of, seen in (("train", [40, 10, 4]), ("effective", [40, 17.5, 13])):
        use = Use(weight=0.25, prior=prior_of)  # type: ignore[arg-type]
        found = _train(name, plan, synthetic=SYNTHETIC, use=use, seed=4)
        prior = np.array(seen) / sum(seen) if name == "balanced-softmax" else None
        assert _same(found, _literal(both, plan, 4, recipe.sampler, prior, weights))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns_and_repeats_itself_bit_for_bit(name: str) -> None:
    """Three classes of 60, 20 and 10 images with a clear answer; chance is 1/3."""
    train, test = make_set((60, 20, 10), 5, noise=25), make_set((40, 40, 40), 6, noise=25)
    # cosines grow no larger than 1, and margins hold them back at first
    plan = replace(PLAN, steps=100 if RECIPES[name].loss == "ldam" else 60, batch_size=24, lr=0.1)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    found = _train(name, plan, train, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    right = predict(found, test) == test.labels
    assert np.mean([right[test.labels == k].mean() for k in range(3)]) > 0.75
    assert not found.training
    assert all(p.requires_grad for p in found.parameters())
    short = replace(plan, steps=10)
    torch.manual_seed(2)
    a, b, c = (_train(name, short, train, seed=s) for s in (3, 3, 4))
    assert _same(a, b)
    assert not _same(a, c)


def test_adjustment_when_deciding_is_cross_entropy_with_another_bias() -> None:
    plain, shifted = _train("ce"), _train("logit-adjustment")
    assert torch.equal(plain.head.weight, shifted.head.weight)
    prior = np.array([40, 10, 4]) / 54
    expected = plain.head.bias.detach().numpy() - np.log(prior)
    np.testing.assert_allclose(shifted.head.bias.detach().numpy(), expected, rtol=1e-5)
    # more decisions for the tail, and the prior of effective counts is flatter
    assert (predict(shifted, VAL) == 2).sum() >= (predict(plain, VAL) == 2).sum()
    effective = _train("logit-adjustment", synthetic=SYNTHETIC, use=Use(prior="effective"))
    real = _train("logit-adjustment", synthetic=SYNTHETIC)
    difference = (real.head.bias - effective.head.bias).detach().numpy()
    np.testing.assert_allclose(difference, np.log(np.full(3, 1 / 3)) - np.log(prior), rtol=1e-4, atol=1e-5)


# -- what each step does


def test_the_second_phase_leaves_the_body_and_its_statistics_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    def body(network: Classifier) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("head.")}

    for name in ("crt", "lws"):
        kept: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []
        enter = Fit._enter

        def spy(self: Any, phase: Any, enter: Any = enter, kept: Any = kept) -> Any:
            before, head = body(self.network), self.network.head.weight.detach().clone()
            made = enter(self, phase)
            entered = getattr(self.network.head, "fixed", self.network.head).weight.detach().clone()
            kept.append((before, head, entered))
            return made

        with monkeypatch.context() as patch:
            patch.setattr(Fit, "_enter", spy)
            found = _train(name, synthetic=SYNTHETIC)
        (_, first_head, _), (before, head, entered) = kept
        assert all(torch.equal(value, before[key]) for key, value in body(found).items())
        assert isinstance(found.head, nn.Linear)
        assert not torch.equal(found.head.weight, entered)
        if name == "crt":  # drawn anew, and not as the network was
            assert not torch.equal(entered, head)
            assert not torch.equal(entered, first_head)
        else:  # nothing but a factor per class, for weights and bias
            assert torch.equal(entered, head)
            ratio = (found.head.weight / head).detach()
            torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
            assert (ratio[:, 0] != 1).all()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the loss and the batches of each step were made from."""
    seen: dict[str, list[Any]] = {"weighted": [], "rows": [], "own": [], "prior": []}
    call, given = BatchLoss.__call__, Mixture.rows

    def loss(self: BatchLoss, logits: Any, y: Any, own: Any, mixed: Any, *, weighted: bool = True) -> Any:
        seen["weighted"].append(weighted)
        seen["own"].append(own)
        seen["prior"].append(None if self.log_prior is None else self.log_prior.exp().tolist())
        return call(self, logits, y, own, mixed, weighted=weighted)

    def rows(self: Mixture, step: int, sampler: str, *, real_only: bool = False, name: str = "") -> Any:
        seen["rows"].append((sampler, real_only, name))
        return given(self, step, sampler, real_only=real_only, name=name)

    monkeypatch.setattr(BatchLoss, "__call__", loss)
    monkeypatch.setattr(Mixture, "rows", rows)
    return seen


def test_deferred_weights_change_nothing_before_and_something_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 32 of 40 steps of DRW are those of cross-entropy, bit for bit."""
    states: dict[str, list[Tensor]] = {"ce": [], "drw": []}
    apply = Fit.apply
    running = ""

    def spy(self: Fit, step: int) -> None:
        apply(self, step)
        states[running].append(self.network.head.weight.detach().clone())  # type: ignore[union-attr]

    monkeypatch.setattr(Fit, "apply", spy)
    for running in states:
        _train(running)
    equal = [torch.equal(a, b) for a, b in zip(states["ce"], states["drw"], strict=True)]
    assert equal == [True] * 32 + [False] * 8


@pytest.mark.parametrize(
    ("name", "use", "expected"),
    [
        ("drs", Use(), [("natural", False, "")] * 32 + [("balanced", False, "")] * 8),
        ("resampling", Use(), [("balanced", False, "")] * 40),
        ("ce", Use(schedule="real-last"), [("natural", False, "")] * 32 + [("natural", True, "")] * 8),
        ("crt", Use(), [("natural", False, "")] * 36 + [("balanced", False, " crt")] * 4),
        (
            "lws",
            Use(schedule="real-last"),
            [("natural", False, "")] * 32 + [("natural", True, "")] * 4 + [("balanced", True, " lws")] * 4,
        ),
    ],
)
def test_which_rows_each_step_sees(name: str, use: Use, expected: list[Any], steps: dict[str, list[Any]]) -> None:
    _train(name, synthetic=SYNTHETIC, use=use)
    assert steps["rows"] == expected


def test_the_steps_of_real_images_count_real_images(steps: dict[str, list[Any]]) -> None:
    """Under the effective prior: where synthetic images are no longer seen, they are no longer counted either."""
    _train("balanced-softmax", synthetic=SYNTHETIC, use=Use(schedule="real-last", prior="effective"))
    both = np.bincount(np.concatenate([TRAIN.labels, SYNTHETIC.labels]))
    np.testing.assert_allclose(steps["prior"][0], both / both.sum(), rtol=1e-5)
    np.testing.assert_allclose(steps["prior"][-1], np.bincount(TRAIN.labels) / len(TRAIN), rtol=1e-5)
    assert [x == steps["prior"][0] for x in steps["prior"]] == [True] * 32 + [False] * 8


def test_an_empty_set_of_synthetic_images_is_none() -> None:
    use = Use(weight=0.3, share=0.5, schedule="real-last")
    assert _same(_train(synthetic=SYNTHETIC.select([]), use=use), _train())


def test_the_rate_of_each_phase_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECK_EVERY", 1)
    log = JsonLog(tmp_path / "log.jsonl")
    _train("crt", files=TrainingFiles(log=log))
    found = [row["lr"] for row in read_jsonl(log.path)]
    assert found == pytest.approx([PLAN.rate(s, 36) for s in range(36)] + [PLAN.rate(s, 4) for s in range(4)])
    assert all(math.isfinite(row["loss"]) for row in read_jsonl(log.path))


# -- interruptions


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint every second step."""
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(fitting, "CHECK_EVERY", 2)


STOPS = [
    ("ce", Use(), 10),
    ("remix-drw", Use(share=0.5), 30),
    ("crt", Use(), 36),  # between the phases
    ("crt", Use(), 38),  # in the second
    ("lws", Use(weight=0.5), 38),
    ("balanced-softmax", Use(schedule="real-last", share=0.5), 34),
]


def rows(log: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_jsonl(log)]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("name", "use", "at"), STOPS)
def test_what_is_stopped_goes_on_to_the_same_bits(
    name: str, use: Use, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"synthetic": SYNTHETIC, "use": use}

    def run(folder: str, until: int | None) -> tuple[Classifier, list[int], Path]:
        seen: list[int] = []
        done = iter(range(2 + first, 1000, 2))
        gradients = Fit.gradients

        def counted(self: Fit, step: int) -> Any:
            seen.append(step)
            return gradients(self, step)

        path = tmp_path / folder
        files = TrainingFiles(CheckpointStore(path / "ckpt"), JsonLog(path / "log.jsonl"), "this")
        with monkeypatch.context() as patch:
            patch.setattr(Fit, "gradients", counted)
            stop = None if until is None else lambda: next(done) == until
            return _train(name, files=files, stop=stop, **options), seen, path / "log.jsonl"

    first = 0
    whole, seen, log = run("whole", None)
    assert seen == list(range(40))
    # stopped once early, and once at the step in question, whose checkpoint is two steps before
    run("parts", 6)
    first = 4
    _, seen, _ = run("parts", at + 2)
    assert seen == list(range(4, at + 2))
    first = at
    again, seen, log_again = run("parts", None)
    assert seen == list(range(at, 40))
    assert _same(again, whole)
    assert rows(log_again) == rows(log)
    assert [row["step"] for row in rows(log)] == list(range(2, 41, 2))
    # a checkpoint of another training is refused
    other = TrainingFiles(CheckpointStore(tmp_path / "parts" / "ckpt"), identity="other")
    with pytest.raises(RunError, match="other data or options"):
        _train(name, files=other, **options)


def test_short_trainings_write_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECK_EVERY", 2)
    _train(files=TrainingFiles(CheckpointStore(tmp_path / "ckpt")))
    assert not (tmp_path / "ckpt").exists()


# -- device and precision


@pytest.mark.parametrize(
    ("given", "processes", "rank", "expected"),
    [("cpu", 1, 0, "cpu"), ("cuda", 1, 0, "cuda"), ("cuda:1", 1, 0, "cuda:1"), ("cuda", 2, 1, "cuda:1"),
     ("cuda:1", 2, 1, "cuda:1")],
)  # fmt: skip
def test_device_of_a_training(
    given: str, processes: int, rank: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.device] = []
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    training = Fit(TRAIN, PLAN, RECIPES["ce"], device=given)
    training._settle()
    assert str(training.place) == expected
    assert training.bf16 == expected.startswith("cuda")
    assert [str(d) for d in made] == ([expected] if ":" in expected else [])


def test_bf16_is_used_in_every_phase() -> None:
    seen: list[torch.dtype] = []

    def watched(shape: tuple[int, int, int], classes: int) -> Classifier:
        network = tiny(shape, classes)
        network.body[0].register_forward_hook(lambda m, a, out: seen.append(out.dtype))  # type: ignore[index]
        return network

    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("auto", torch.float32)):
        plan = FitPlan(watched, steps=10, batch_size=8, precision=precision)  # type: ignore[arg-type]
        seen.clear()
        found = _train("crt", plan)
        assert seen == [dtype] * 10
        assert all(p.dtype == torch.float32 for p in found.parameters())


# -- what does not fit


class Own(Classifier):
    """A classifier whose head has no bias."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(nn.Flatten(), int(np.prod(shape)), classes)
        self.head = nn.Linear(self.feature_dim, classes, bias=False)


@pytest.mark.parametrize(
    ("changes", "recipe", "use", "said"),
    [
        ({}, "ldam-drw", Use(share=0.5), ""),
        ({}, "balanced-softmax", Use(prior="domain"), ""),
        ({}, "ldam-drw", Use(prior="domain"), "LDAM-DRW has no prior per domain"),
        ({}, "cutmix", Use(prior="domain"), "CutMix has no prior per domain"),
        ({"protocol": "cifar-lt"}, "ce", None, "1 channels cannot be standardised by 3 means"),
        ({}, "ce", Use(share=0.01), "synthetic share of 0.01 is 0 of 8 rows"),
        ({}, "ce", Use(share=0.99), "synthetic share of 0.99 is 8 of 8 rows"),
        ({"network": Own}, "ldam", None, ""),
        ({"network": Own}, "logit-adjustment", None, "needs a linear head with a bias"),
        ({"network": Own}, "crt", None, "cRT needs a linear head with a bias"),
        ({"network": Own}, "ce", None, ""),
    ],
)
def test_a_training_and_the_check_before_it_refuse_the_same(
    changes: dict[str, Any], recipe: str, use: Use | None, said: str
) -> None:
    plan = replace(FitPlan(tiny, steps=3, batch_size=8), **changes)

    def refusal(call: Callable[[], Any]) -> str:
        try:
            call()
        except ConfigError as error:
            return str(error)
        return ""

    synthetic = None if use is None else make_set((9, 30, 36), 9)
    trained = refusal(lambda: _train(recipe, plan, synthetic=synthetic, use=use or Use()))
    assert refusal(lambda: check_trainings(TRAIN, plan, [("ce", None), (recipe, use)])) == trained
    assert said in trained
    assert bool(said) == bool(trained)


def test_a_class_without_images_has_no_prior() -> None:
    part = TRAIN.select(np.flatnonzero(TRAIN.labels != 1))
    for name in ("balanced-softmax", "ldam", "reweighting", "remix", "logit-adjustment"):
        with pytest.raises(ConfigError, match=r"classes \[1\]"):
            _train(name, replace(PLAN, steps=2), part)


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    with pytest.raises(NonFiniteLossError, match=r"the fourth, step \d: not finite: loss"):
        fit(TRAIN, replace(PLAN, steps=5, lr=1e38), name="the fourth")
