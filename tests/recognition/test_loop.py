"""The loop: bits, interruptions, looks, batch statistics, and that no recipe sees what it may not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from imbdiff.data.augment import Augmentation
from imbdiff.data.imageset import ImageSet
from imbdiff.recognition import loop
from imbdiff.recognition.batch_loss import BatchLoss
from imbdiff.recognition.fit import train_classifier
from imbdiff.recognition.loop import Trained
from imbdiff.recognition.networks import Classifier
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.predict import predict
from imbdiff.recognition.recipes import RECIPES
from imbdiff.recognition.use import Mixture, Use
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.log import JsonLog, read_jsonl
from imbdiff.runtime.streams import torch_rng

from .conftest import make_set, tiny

PLAN = FitPlan(tiny, steps=40, batch_size=12, learning_rate=0.05, augmentation=Augmentation(shift=1))
TRAIN, VAL, SYNTHETIC = make_set((40, 10, 4), 0), make_set((8, 8, 8), 1), make_set((0, 30, 36), 9)


def _train(recipe: str = "ce", plan: FitPlan = PLAN, train: ImageSet = TRAIN, **options: Any) -> Trained:
    return train_classifier(train, plan, RECIPES[recipe], **options)


def _same(a: Classifier | None, b: Classifier | None) -> bool:
    if a is None or b is None:
        return a is b
    mine, theirs = a.state_dict(), b.state_dict()
    return list(mine) == list(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)


# -- every recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns_and_repeats_itself_bit_for_bit(name: str) -> None:
    """Three classes of 60, 20 and 10 images with a clear answer; chance is 1/3."""
    train, test = make_set((60, 20, 10), 5, noise=25), make_set((40, 40, 40), 6, noise=25)
    plan = replace(PLAN, steps=60, batch_size=24, learning_rate=0.1)
    if RECIPES[name].loss == "ldam":  # cosines grow no larger than 1, and margins hold them back at first
        plan = replace(plan, steps=100)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    found = _train(name, plan, train, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    right = predict(found.last, test) == test.labels
    assert np.mean([right[test.labels == k].mean() for k in range(3)]) > 0.75
    assert not found.last.training
    assert all(p.requires_grad for p in found.last.parameters())
    short = replace(plan, steps=12)
    torch.manual_seed(2)
    a, b, c = (_train(name, short, train, seed=s).last for s in (3, 3, 4))
    assert _same(a, b)
    assert not _same(a, c)


def test_adjustment_when_deciding_is_cross_entropy_with_another_bias() -> None:
    plain, shifted = _train("ce").last, _train("logit-adjustment").last
    assert torch.equal(plain.head.weight, shifted.head.weight)
    prior = np.array([40, 10, 4]) / 54
    expected = plain.head.bias.detach().numpy() - np.log(prior)
    np.testing.assert_allclose(shifted.head.bias.detach().numpy(), expected, rtol=1e-5)
    # more decisions for the tail, and the prior of effective counts is flatter
    assert (predict(shifted, VAL) == 2).sum() >= (predict(plain, VAL) == 2).sum()
    effective = _train("logit-adjustment", synthetic=SYNTHETIC, use=Use(prior="effective")).last
    real = _train("logit-adjustment", synthetic=SYNTHETIC).last
    difference = (real.head.bias - effective.head.bias).detach().numpy()
    np.testing.assert_allclose(difference, np.log(np.full(3, 1 / 3)) - np.log(prior), rtol=1e-4, atol=1e-5)


# -- parts


def _body(network: Classifier) -> dict[str, torch.Tensor]:
    return {k: v for k, v in network.state_dict().items() if not k.startswith("head.")}


@pytest.mark.parametrize(("name", "use"), [("crt", Use()), ("lws", Use()), ("ce", Use(schedule="head-last", last=0.1))])
def test_the_second_part_leaves_the_body_and_its_statistics_bit_for_bit(
    name: str, use: Use, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[dict[str, torch.Tensor], torch.Tensor]] = []
    enter = loop.Loop._enter

    def spy(self: Any, stage: Any) -> Any:
        kept.append(({k: v.clone() for k, v in _body(self.network).items()}, self.network.head.weight.detach().clone()))
        made = enter(self, stage)
        if len(kept) == 2:
            kept.append(({}, getattr(self.network.head, "fixed", self.network.head).weight.detach().clone()))
        return made

    monkeypatch.setattr(loop.Loop, "_enter", spy)
    found = _train(name, synthetic=SYNTHETIC, use=use).last
    (_, first_head), (body, head), (_, entered) = kept
    for key, value in _body(found).items():
        assert torch.equal(value, body[key]), key
    assert isinstance(found.head, nn.Linear)
    assert not torch.equal(found.head.weight, entered)
    if name == "crt":  # drawn anew, and not as the network was
        assert not torch.equal(entered, head)
        assert not torch.equal(entered, first_head)
    else:
        assert torch.equal(entered, head)
    if name == "lws":  # nothing but a factor per class, for weights and bias
        ratio = (found.head.weight / head).detach()
        torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
        assert (ratio[:, 0] != 1).all()


def _spied(monkeypatch: pytest.MonkeyPatch) -> tuple[list[bool], list[tuple[str, bool, str]]]:
    weighted: list[bool] = []
    rows: list[tuple[str, bool, str]] = []
    call, given = BatchLoss.__call__, Mixture.rows

    def loss(self: BatchLoss, *args: Any, **options: Any) -> Any:
        weighted.append(options["weighted"])
        return call(self, *args, **options)

    def of(self: Mixture, step: int, law: str, **options: Any) -> Any:
        rows.append((law, options["real_only"], options["name"]))
        return given(self, step, law, **options)

    monkeypatch.setattr(BatchLoss, "__call__", loss)
    monkeypatch.setattr(Mixture, "rows", of)
    return weighted, rows


def test_deferred_class_weights_begin_at_80_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    weighted, rows = _spied(monkeypatch)
    _train("ldam-drw")
    assert weighted == [False] * 32 + [True] * 8
    assert {law for law, _, _ in rows} == {"natural"}


def test_deferred_weights_change_nothing_before_and_something_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first 32 of 40 steps of DRW are those of cross-entropy, bit for bit."""
    states: dict[str, list[torch.Tensor]] = {"ce": [], "drw": []}
    step = loop.Loop._step
    running = ""

    def spy(self: Any, *args: Any) -> Any:
        value = step(self, *args)
        states[running].append(self.network.head.weight.detach().clone())
        return value

    monkeypatch.setattr(loop.Loop, "_step", spy)
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
        (
            "resampling",
            Use(schedule="head-last"),
            [("balanced", False, "")] * 32 + [("balanced", True, " head")] * 8,
        ),
        ("crt", Use(), [("natural", False, "")] * 36 + [("balanced", False, " crt")] * 4),
        ("lws", Use(schedule="head-last"), [("natural", False, "")] * 32 + [("balanced", True, " lws")] * 8),
    ],
)
def test_which_rows_each_step_sees(name: str, use: Use, expected: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, rows = _spied(monkeypatch)
    _train(name, synthetic=SYNTHETIC, use=use)
    assert rows == expected


# -- synthetic images


def _bright(images: ImageSet) -> ImageSet:
    lit = np.clip(images.images.astype(np.int64) + 100, 0, 255).astype(np.uint8)
    return ImageSet(lit, images.labels, images.class_names)


def _still(name: str, use: Use) -> tuple[torch.Tensor, torch.Tensor, Classifier]:
    """Running mean and variance of the first normalisation where the weights stay as they are, and the network."""
    found = _train(name, replace(PLAN, learning_rate=1e-30), synthetic=_bright(SYNTHETIC), use=use).last
    norm = found.body[1]  # type: ignore[index]
    assert type(norm) is nn.BatchNorm2d
    return norm.running_mean, norm.running_var, found


def _expected(real_only: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Averages over the rows of every batch, in float64: momentum 0.1, the unbiased variance."""
    use = Use(share=0.5)
    mixture = Mixture(TRAIN, _bright(SYNTHETIC), use, 12, 0)
    start = _train("ce", replace(PLAN, learning_rate=1e-30, steps=1)).last.body[0].double()  # type: ignore[index]
    mean, var = torch.zeros(8).double(), torch.ones(8).double()
    for step in range(PLAN.steps):
        rows = mixture.rows(step, "natural")
        x = torch.from_numpy(np.array(mixture.images.images[rows])).permute(0, 3, 1, 2)
        draws = PLAN.augmentation.draw(12, torch_rng(0, "classifier augmentation", step))
        x = PLAN.augmentation.apply(x, draws).double() / 127.5 - 1
        with torch.no_grad():
            h = start(x[rows < len(TRAIN)] if real_only else x).transpose(0, 1).flatten(1)
        mean = 0.9 * mean + 0.1 * h.mean(1)
        var = 0.9 * var + 0.1 * h.var(1)
    return mean.float(), var.float()


def test_separate_statistics_are_of_real_rows_and_the_network_is_plain_after() -> None:
    for batch_norm in ("separate", "shared"):
        mean, var, network = _still("ce", Use(share=0.5, batch_norm=batch_norm))  # type: ignore[arg-type]
        expected = _expected(batch_norm == "separate")
        torch.testing.assert_close(mean, expected[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(var, expected[1], rtol=1e-3, atol=1e-4)
        assert list(network.state_dict()) == list(tiny((8, 10, 1), 3).state_dict())
    # the difference is one that matters
    assert (_expected(True)[0] - _expected(False)[0]).abs().max() > 0.05


def test_separate_statistics_in_the_looks_and_with_every_kind_of_head() -> None:
    for name in ("crt", "lws", "tau-norm", "logit-adjustment", "resampling"):
        found = _train(name, synthetic=_bright(SYNTHETIC), use=Use(batch_norm="separate"), val=VAL, looks=5)
        for network in (found.last, found.best):
            assert network is not None
            assert list(network.state_dict()) == list(tiny((8, 10, 1), 3).state_dict())
            assert type(network.body[1]) is nn.BatchNorm2d  # type: ignore[index]


def test_weight_of_synthetic_images_is_relative_to_the_mean_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor | None] = []
    call = BatchLoss.__call__

    def loss(self: BatchLoss, logits: Any, y: Any, own: Any, *args: Any, **options: Any) -> Any:
        seen.append(own)
        return call(self, logits, y, own, *args, **options)

    monkeypatch.setattr(BatchLoss, "__call__", loss)
    _train(synthetic=SYNTHETIC, use=Use(weight=0.25, share=0.5, schedule="real-last"))
    mixed, real = seen[0], seen[-1]
    assert mixed is not None
    assert real is not None
    np.testing.assert_allclose(mixed.numpy(), [1 / 0.625] * 6 + [0.25 / 0.625] * 6, rtol=1e-6)
    assert real.tolist() == [1.0] * 12
    seen.clear()
    _train()
    assert seen[0] is None


def test_an_empty_set_of_synthetic_images_is_none() -> None:
    empty = SYNTHETIC.select([])
    use = Use(weight=0.3, share=0.5, schedule="real-last", batch_norm="separate")
    assert _same(_train(synthetic=empty, use=use).last, _train().last)


# -- interruptions

STOPS = [
    ("ce", Use(), 10),
    ("ldam-drw", Use(), 34),
    ("remix-drw", Use(share=0.5), 30),
    ("crt", Use(), 20),  # in the body
    ("crt", Use(), 36),  # between the parts
    ("crt", Use(), 38),  # in the second
    ("lws", Use(batch_norm="separate"), 36),
    ("lws", Use(weight=0.5), 38),
    ("ce", Use(schedule="head-last"), 16),
    ("ce", Use(schedule="head-last"), 32),
    ("ce", Use(schedule="head-last"), 36),
    ("balanced-softmax", Use(schedule="real-last", batch_norm="separate", share=0.5), 34),
]


@pytest.mark.parametrize(("name", "use", "at"), STOPS)
def test_what_is_stopped_goes_on_to_the_same_bits(
    name: str, use: Use, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(loop, "CHECK_EVERY", 2)
    options: dict[str, Any] = {"synthetic": SYNTHETIC, "use": use, "val": VAL, "looks": 10, "identity": "this"}

    def run(folder: str, until: int | None) -> tuple[Trained, list[int], Path]:
        seen: list[int] = []
        done = iter(range(2 + first, 1000, 2))
        step = loop.Loop._step

        def counted(self: Any, stage: Any, inside: int, now: int, optimizer: Any) -> Any:
            seen.append(now)
            return step(self, stage, inside, now, optimizer)

        path = tmp_path / folder
        with monkeypatch.context() as patch:
            patch.setattr(loop.Loop, "_step", counted)
            found = _train(
                name, store=CheckpointStore(path / "ckpt"), log=JsonLog(path / "log.jsonl"),
                stop=None if until is None else lambda: next(done) == until, **options,
            )  # fmt: skip
        return found, seen, path / "log.jsonl"

    first = 0
    whole, seen, log = run("whole", None)
    assert seen == list(range(40))
    assert whole.steps == 40
    # stopped once early, and once at the step in question, whose checkpoint is two steps before
    run("parts", 6)
    first = 4
    _, seen, _ = run("parts", at + 2)
    assert seen == list(range(4, at + 2))
    first = at
    again, seen, log_again = run("parts", None)
    assert seen == list(range(at, 40))
    assert _same(again.last, whole.last)
    assert _same(again.best, whole.best)
    assert again.best_step == whole.best_step
    assert log_again.read_bytes() == log.read_bytes()
    assert [row["step"] for row in read_jsonl(log)] == list(range(2, 41, 2))


def test_checkpoints_of_another_training_are_not_taken_nor_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(loop, "CHECK_EVERY", 2)
    store, log = CheckpointStore(tmp_path / "ckpt"), JsonLog(tmp_path / "log.jsonl")
    _train("ce", store=store, log=log, identity="one")
    assert [p.name[-2:] for p in store.paths()] == ["36", "38"]
    asked = iter(range(2, 1000, 2))
    _train("focal", store=store, log=log, identity="two", stop=lambda: next(asked) == 12)
    # its own early checkpoints are there, though the other's were made after more steps
    assert [p.name[-2:] for p in store.paths()] == ["08", "10"]
    assert [row["step"] for row in read_jsonl(log.path)] == [2, 4, 6, 8, 10]
    found = _train("focal", store=store, log=log, identity="two")
    assert _same(found.last, _train("focal").last)
    assert [row["step"] for row in read_jsonl(log.path)] == list(range(2, 41, 2))


def test_short_trainings_write_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECK_EVERY", 2)
    _train(store=CheckpointStore(tmp_path / "ckpt"))
    assert not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize(
    ("given", "processes", "rank", "expected"),
    [
        ("cpu", 1, 0, "cpu"),
        ("cuda", 1, 0, "cuda"),
        ("cuda:1", 1, 0, "cuda:1"),
        ("cuda", 2, 1, "cuda:1"),
        ("cuda:1", 2, 1, "cuda:1"),  # as the stages hand it on
    ],
)
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
    mixture = Mixture(TRAIN, None, Use(), PLAN.batch_size, 0, None)
    training = loop.Loop(
        mixture, replace(PLAN, precision="auto"), RECIPES["ce"], None, None, 0, torch.device(given), None, 0, None,
        "classifier", None, None, "",
    )  # fmt: skip
    training._settle()
    assert str(training.device) == expected
    assert training.bf16 == expected.startswith("cuda")
    assert [str(d) for d in made] == ([expected] if ":" in expected else [])


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match="there is no cuda:5"):
        _train(device="cuda:5")


# -- looks at validation images


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["ce", "ldam-drw", "crt", "lws", "logit-adjustment"])
def test_looks_do_not_change_the_last_network(name: str, precision: Any) -> None:
    plan = replace(PLAN, steps=20, precision=precision)
    use = Use(batch_norm="separate")
    blind = _train(name, plan, synthetic=SYNTHETIC, use=use)
    looking = _train(name, plan, synthetic=SYNTHETIC, use=use, val=VAL, looks=5)
    assert _same(blind.last, looking.last)
    assert (blind.best, blind.best_step) == (None, None)
    assert looking.best is not None


def test_bf16_is_used_in_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def watched(shape: tuple[int, int, int], classes: int) -> Classifier:
        network = tiny(shape, classes)
        network.body[0].register_forward_hook(lambda m, a, out: seen.append(out.dtype))  # type: ignore[index]
        return network

    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32), ("auto", torch.float32)):
        plan = FitPlan(watched, steps=10, batch_size=8, precision=precision)  # type: ignore[arg-type]
        step = loop.Loop._step
        in_steps: list[torch.dtype] = []

        def spy(self: Any, *args: Any, step: Any = step, in_steps: Any = in_steps) -> Any:
            seen.clear()
            value = step(self, *args)
            in_steps.extend(seen)
            assert value.dtype == torch.float32
            return value

        with monkeypatch.context() as patch:
            patch.setattr(loop.Loop, "_step", spy)
            found = _train("crt", plan, val=VAL, looks=5)
        assert in_steps == [dtype] * 10
        assert all(p.dtype == torch.float32 for p in found.last.parameters())


def _scripted(monkeypatch: pytest.MonkeyPatch, right: list[int]) -> list[dict[str, torch.Tensor]]:
    """Looks that see so many right predictions; the weights that were looked at."""
    states: list[dict[str, torch.Tensor]] = []
    script = iter(right)

    def predictions(network: Classifier, images: ImageSet) -> np.ndarray:
        assert images is VAL
        assert not network.training
        states.append({k: v.clone() for k, v in network.state_dict().items()})
        n = next(script)
        return np.where(np.arange(len(VAL)) < n, VAL.labels, (VAL.labels + 1) % 3)

    monkeypatch.setattr(loop, "predict", predictions)
    return states


@pytest.mark.parametrize("name", ["ce", "crt", "lws", "logit-adjustment", "tau-norm"])
@pytest.mark.parametrize(("right", "best"), [([5, 9, 20, 20, 11], 2), ([7, 7, 7, 7, 7], 0), ([1, 2, 3, 4, 5], 4)])
def test_the_best_is_the_look_with_the_highest_accuracy_and_the_earlier_of_equal_ones(
    name: str, right: list[int], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = _scripted(monkeypatch, right)
    found = _train(name, val=VAL, looks=5)
    assert len(states) == 5
    assert found.best is not None
    assert found.best_step == 8 * (best + 1)
    mine = found.best.state_dict()
    assert list(mine) == list(states[best])
    assert all(torch.equal(mine[k], states[best][k]) for k in mine)
    # the last look is at what is handed back
    assert all(torch.equal(v, states[-1][k]) for k, v in found.last.state_dict().items())


def test_accuracy_of_a_look_is_balanced_over_the_classes_that_validation_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 images of one class and 2 of another: right on the 2 is worth as much as right on the 20."""
    val = make_set((20, 2, 0), 4)
    of_look = [np.zeros(22, np.int64), np.ones(22, np.int64), np.array([0] * 11 + [2] * 9 + [1, 1])]
    script = iter(of_look)
    monkeypatch.setattr(loop, "predict", lambda *_: next(script))
    assert _train(val=val, looks=3).best_step == 40  # 1/2, 1/2, 3/4; by images it would be the first


@pytest.mark.parametrize(("steps", "looks"), [(40, 7), (19, 10), (25, 10), (3, 10), (40, 1), (40, 0), (1, 1)])
def test_so_many_looks_evenly_spaced_with_one_at_the_end(
    steps: int, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[int] = []
    monkeypatch.setattr(loop.Loop, "_look", lambda self, now: at.append(now))
    _train(plan=replace(PLAN, steps=steps), val=VAL, looks=looks)
    assert len(at) == min(looks, steps)
    if looks:
        assert at[-1] == steps
        gaps = np.diff([0, *at])
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1


def test_no_looks_without_validation_images() -> None:
    for val in (None, VAL.select([])):
        found = _train(plan=replace(PLAN, steps=3), val=val, looks=3)
        assert found.best is None


# -- what does not fit


def test_heads_that_a_recipe_cannot_change_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_bias(shape: tuple[int, int, int], classes: int) -> Classifier:
        network = tiny(shape, classes)
        network.head = nn.Linear(72, classes, bias=False)
        return network

    monkeypatch.setattr(loop.Loop, "_step", lambda *_: pytest.fail("trained"))
    plan = FitPlan(without_bias, steps=3, batch_size=8)
    for name in ("crt", "lws", "tau-norm", "logit-adjustment"):
        with pytest.raises(ConfigError, match="needs a linear head with a bias"):
            _train(name, plan)


def test_a_class_without_images_has_no_prior() -> None:
    part = TRAIN.select(np.flatnonzero(TRAIN.labels != 1))
    for name in ("balanced-softmax", "ldam", "reweighting", "remix", "logit-adjustment"):
        with pytest.raises(ConfigError, match=r"classes \[1\]"):
            _train(name, replace(PLAN, steps=2), part)


def test_the_rate_of_each_part_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECK_EVERY", 1)
    log = JsonLog(tmp_path / "log.jsonl")
    _train("crt", log=log)
    found = [row["lr"] for row in read_jsonl(log.path)]
    expected = [PLAN.rate(s, 36) for s in range(36)] + [PLAN.rate(s, 4) for s in range(4)]
    assert found == pytest.approx(expected)
    assert all(math.isfinite(row["loss"]) for row in read_jsonl(log.path))


def test_the_steps_of_real_images_count_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the effective prior: where synthetic images are no longer seen, they are no longer counted either."""
    seen: list[list[float]] = []
    call = BatchLoss.__call__

    def spy(self: BatchLoss, *args: Any, **options: Any) -> Any:
        assert self.log_prior is not None
        seen.append(self.log_prior.exp().tolist())
        return call(self, *args, **options)

    monkeypatch.setattr(BatchLoss, "__call__", spy)
    _train("balanced-softmax", synthetic=SYNTHETIC, use=Use(schedule="real-last", prior="effective"))
    real = np.bincount(TRAIN.labels) / len(TRAIN)
    both = np.bincount(np.concatenate([TRAIN.labels, SYNTHETIC.labels]))
    np.testing.assert_allclose(seen[0], both / both.sum(), rtol=1e-5)
    np.testing.assert_allclose(seen[-1], real, rtol=1e-5)
    assert [x == seen[0] for x in seen] == [True] * 32 + [False] * 8
