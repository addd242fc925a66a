"""An update against a loop as anyone would write it, and what an update must not do: wait for the device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from imbdiff.config import TrainConfig
from imbdiff.data.imageset import ImageSet
from imbdiff.data.stats import Groups
from imbdiff.diffusion.backbones import _unet
from imbdiff.diffusion.model import ModelSpec, from_spec
from imbdiff.diffusion.process import DDPM
from imbdiff.methods import METHODS
from imbdiff.objectives.alignment import Alignment
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.objective import Objective
from imbdiff.objectives.row_sampling import sample_branches
from imbdiff.runtime.checkpoint import Checkpoint
from imbdiff.runtime.device import make_accelerator
from imbdiff.training import update as update_module
from imbdiff.training.parts import Batches, Part
from imbdiff.training.step import TrainingStep
from imbdiff.training.update import Update, learning_rate

CONFIG = TrainConfig(images=16 * 8, batch_size=16, lr=1e-3, warmup_images=0)
CLIP = 0.5  # so that it matters here


@pytest.fixture(autouse=True)
def _clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_module, "CLIP", CLIP)


def data() -> ImageSet:
    labels = np.repeat(np.arange(3), (20, 8, 4)).astype(np.int64)
    images = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 1)).astype(np.uint8)
    return ImageSet(images, labels, ("a", "b", "c"))


def update_of(
    objectives: list[Objective],
    config: TrainConfig = CONFIG,
    parts: tuple[Part, ...] = (Part(),),
    *,
    channels_last: bool = False,
    **networks: Any,
) -> Update:
    """On a U-Net without dropout."""
    images = data()
    model = from_spec(ModelSpec("unet", _unet((8, 8), (), 1, 4, 0.0), (1, 8, 8), DDPM().to_json(), images.stats))
    step = TrainingStep({"model": model, **networks}, objectives, frozen=tuple(networks))
    accelerator = make_accelerator("cpu", config.precision)
    batches = Batches(
        step, parts, images, Groups.by_quantile(images.stats), config, device=torch.device("cpu"), seed=4,
        channels_last=channels_last,
    )  # fmt: skip
    made = Update(step, batches, config, accelerator)
    made.share_every = 1000
    made.wrap(lambda _: None)
    return made


class PlainLoop:
    """Separate passes, one after the other; clipping, Adam and averaging spelled out, parameter by parameter."""

    def __init__(self, like: Update, method: str) -> None:
        self.like, self.method = like, method
        model = like.step.networks["model"]
        assert isinstance(model, torch.nn.Module)
        self.model: Any = from_spec(model.spec)  # type: ignore[arg-type]
        self.model.load_state_dict(model.state_dict())
        self.parameters = list(self.model.parameters())
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.averaged = [p.detach().clone() for p in self.parameters]

    def loss(self, step: int) -> Tensor:
        batch = self.like.batches(step)["main"]
        given, _ = self.model(batch.x_t, batch.t, batch.condition)
        loss = ((given - batch.noise) ** 2).mean()
        w = (batch.t.float() / 1000 * ~batch.dropped).reshape(-1, 1, 1, 1)
        if self.method == "cbdm":
            other, _ = self.model(batch.x_t, batch.t, batch.draws["comparison"])
            loss = loss + (w * (given - other.detach()) ** 2).mean()
            loss = loss + 0.25 * (w * (given.detach() - other) ** 2).mean()
        if self.method == "alignment":
            null, _ = self.model(batch.x_t, batch.t, torch.full_like(batch.labels, 3))
            loss = loss + (w * (given - null) ** 2).mean()
        return loss

    def step(self, step: int) -> list[Tensor]:
        """One update; its gradients after clipping."""
        for p in self.parameters:
            p.grad = None
        self.loss(step).backward()
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = sum(float((g**2).sum()) for g in grads) ** 0.5
        factor = min(1.0, CLIP / norm)
        decay = 0.5 ** (1 / (CONFIG.ema_half_life * CONFIG.steps))
        decay = min(decay, (1 + step) / (10 + step))  # diffusers' warm-up of the average
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(self.parameters, grads, strict=True)):
                g *= factor
                self.m[i] = 0.9 * self.m[i] + 0.1 * g
                self.v[i] = 0.999 * self.v[i] + 0.001 * g * g
                m, v = self.m[i] / (1 - 0.9 ** (step + 1)), self.v[i] / (1 - 0.999 ** (step + 1))
                p -= learning_rate(CONFIG, step) * m / (v.sqrt() + 1e-8)
                self.averaged[i] = decay * self.averaged[i] + (1 - decay) * p
        return [g.clone() for g in grads]


OBJECTIVES: dict[str, list[Objective]] = {
    "ddpm": [Denoising()],
    "cbdm": [Denoising(), ClassBalancing()],
    "alignment": [Denoising(), Alignment()],
}


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    norm = sum(float(e.double().square().sum()) for e in expected) ** 0.5
    off = sum(float((f.double() - e.double()).square().sum()) for f, e in zip(found, expected, strict=True)) ** 0.5
    return off / norm


@pytest.mark.parametrize(("method", "channels_last"), [("ddpm", True), ("cbdm", False), ("alignment", True)])
def test_it_is_the_plain_loop(method: str, channels_last: bool) -> None:
    """Merged passes, fused Adam, foreach clipping and averaging, either memory format: the same numbers."""
    made = update_of(OBJECTIVES[method], CONFIG, channels_last=channels_last)
    plain = PlainLoop(made, method)
    start = [p.detach().clone() for p in plain.parameters]
    for step in range(CONFIG.steps):
        losses = made.gradients(step)
        grads = [p.grad.clone() for p in made.parameters.values() if p.grad is not None]
        assert float(losses["loss"]) == pytest.approx(float(plain.loss(step).detach()), rel=1e-5)
        expected = plain.step(step)
        made.apply(step)
        assert relative(grads, expected) < 1e-5 * 10**step, step  # rounding grows from step to step
        if step == 1:
            break
    moved = [p.detach() - s for p, s in zip(made.parameters.values(), start, strict=True)]
    assert relative(moved, [p.detach() - s for p, s in zip(plain.parameters, start, strict=True)]) < 1e-2
    shadows = [s - b for s, b in zip(made.ema.shadow_params, start, strict=True)]
    assert relative(shadows, [a - b for a, b in zip(plain.averaged, start, strict=True)]) < 1e-2


def test_bfloat16_gives_the_same_gradient_up_to_its_digits() -> None:
    grads = []
    for precision in ("fp32", "bf16"):
        made = update_of(OBJECTIVES["cbdm"], replace(CONFIG, precision=precision))
        made.gradients(0)
        grads.append([p.grad.clone() for p in made.parameters.values() if p.grad is not None])
    assert 1e-6 < relative(grads[1], grads[0]) < 3e-2


class Unread(TorchDispatchMode):
    """Fails where a number would have to be read from the device, or a shape depends on one."""

    banned = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "is_nonzero", "equal", "bincount")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not any(name == b or (b == "_unique" and name.startswith(b)) for b in self.banned), name
        if name in ("index", "index_put", "index_put_"):  # by a mask: its length must be read
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), f"{name} by a mask"
        return func(*args, **(kwargs or {}))


def test_the_option_of_noise_levels_reaches_the_batches() -> None:
    """Logit-normal levels have a standard deviation of 0.208, uniform ones of 0.289, from the same draws."""
    for name, spread in (("uniform", 0.289), ("logit-normal", 0.208)):
        made = update_of([Denoising()], replace(CONFIG, noise_levels=name)).batches
        levels = torch.cat([made(step)["main"].noise_level for step in range(100)])
        assert float(levels.std()) == pytest.approx(spread, abs=0.015)


def test_what_would_be_noticed() -> None:
    x = torch.arange(3.0)
    for bad in (lambda: float(x[0]), lambda: x[x > 1], lambda: bool((x > 1).all()), lambda: x.unique()):
        with pytest.raises(AssertionError), Unread():
            bad()


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("cbdm", 0.4),
        ("ccua", 0.4),
        ("coral", 1),
        ("t2h", 1),
        ("diffrop", 1),
        ("dispersive", 1),
        ("ddpm-focal", 1),
        ("diffrc", 1),
    ],
)
def test_an_update_waits_for_nothing(name: str, rows: float) -> None:
    phase = METHODS[name].target
    objectives = phase.objectives()
    sample_branches(objectives, rows)
    networks = {n: update_of([Denoising()]).step.networks["model"] for n in phase.frozen}
    config = replace(CONFIG, batch_size=32, images=128)
    made = update_of(objectives, config, phase.parts, **networks)
    made.gradients(0)  # tables are put on the device once
    made.apply(0)
    with Unread():
        made.gradients(1)
        made.apply(1)


@pytest.mark.parametrize("channels_last", [False, True])
def test_moments_go_on_with_the_weights_that_they_are_of(channels_last: bool) -> None:
    """A checkpoint holds contiguous tensors; fused Adam pairs values by where they lie."""

    def steps(update: Update, numbers: range) -> None:
        for step in numbers:
            update.gradients(step)
            update.apply(step)

    whole = update_of([Denoising()], channels_last=channels_last)
    steps(whole, range(4))
    stopped = update_of([Denoising()], channels_last=channels_last)
    steps(stopped, range(2))
    tensors = {n: x.detach().contiguous().clone() for n, x in stopped.state()[0].items()}
    went_on = update_of([Denoising()], channels_last=channels_last)
    went_on.restore(Checkpoint(Path("of a test"), tensors, {"ema_step": stopped.ema.optimization_step}))
    steps(went_on, range(2, 4))
    for (name, a), b in zip(whole.state()[0].items(), went_on.state()[0].values(), strict=True):
        assert torch.equal(a, b), name


def test_an_update_whose_gradient_is_not_finite_is_skipped_on_the_device() -> None:
    """On a GPU losses are read every few steps only."""
    made = update_of([Denoising()])
    parameter = next(iter(made.parameters.values()))
    for step, bad in enumerate((False, True, False)):
        before = [p.detach().clone() for p in made.parameters.values()]
        hook = parameter.register_hook(lambda g: g * float("nan")) if bad else None
        made.gradients(step)
        if hook is not None:
            hook.remove()
        made.apply(step)
        same = [torch.equal(a, b) for a, b in zip(before, made.parameters.values(), strict=True)]
        assert all(same) if bad else not any(same)
