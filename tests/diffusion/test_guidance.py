"""Guidance: signs, scales, intervals, one batch for both branches, composition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbdiff.data.stats import Groups
from imbdiff.diffusion.autoguidance import Autoguidance
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidance import ClassifierFree, Guidance, Guided, NoGuidance, Predict
from imbdiff.diffusion.process import PROCESSES, Process
from imbdiff.diffusion.scales import per_class
from imbdiff.runtime.errors import ConfigError
from tests.diffusion.worlds import STATS, GaussianBackbone, best_prediction, gaussian_model

DDPM = PROCESSES["ddpm"]
NULL = 3


class Network:
    """predict() whose answer for label k is k + 1 everywhere, 0 for the null label, plus x."""

    def __init__(self) -> None:
        self.labels: list[list[int]] = []

    def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        assert len(x_t) == len(t) == len(labels)
        self.labels.append(labels.tolist())
        value = torch.where(labels == NULL, 0, labels + 1).to(x_t.dtype)
        return x_t + value.reshape(-1, 1, 1, 1)


def ask(guidance: Guidance, t: int = 500, process: Process = DDPM, labels: tuple[int, ...] = (0, 1, 2)) -> Any:
    network = Network()
    y = torch.tensor(labels)
    x = torch.zeros(len(y), 1, 1, 1)
    time = torch.full((len(y),), t)
    return guidance(x, time, y, network).flatten(), network.labels


def test_omega_pushes_away_from_the_unconditional() -> None:
    """p_c = k + 1, p_u = 0: the guided prediction is (1 + omega)(k + 1), not between the two and not below."""
    guided, calls = ask(ClassifierFree(0.5, NULL, DDPM))
    assert guided.tolist() == [1.5, 3.0, 4.5]
    assert calls == [[0, 1, 2, NULL, NULL, NULL]]  # one batch for both branches
    assert ask(ClassifierFree(-1.0, NULL, DDPM))[0].tolist() == [0, 0, 0]  # the unconditional
    assert ask(ClassifierFree(-0.5, NULL, DDPM))[0].tolist() == [0.5, 1.0, 1.5]


def test_scale_per_class() -> None:
    scales = [0.0, 1.0, 3.0]
    for omega in (scales, tuple(scales), np.array(scales)):
        guided, _ = ask(ClassifierFree(omega, NULL, DDPM), labels=(2, 0, 1, 2))
        assert guided.tolist() == [12.0, 1.0, 4.0, 12.0]


def test_the_null_label_is_not_guided() -> None:
    guided, _ = ask(ClassifierFree([1.0, 1.0, 1.0], NULL, DDPM), labels=(0, NULL))
    assert guided.tolist() == [2.0, 0.0]
    guided, _ = ask(ClassifierFree(1.0, NULL, DDPM), labels=(0, NULL))
    assert guided.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("omega", [0, 0.0, [0.0, 0.0, 0.0]])
def test_omega_0_is_no_guidance(omega: Any) -> None:
    plain, calls = ask(NoGuidance())
    guided, guided_calls = ask(ClassifierFree(omega, NULL, DDPM))
    assert torch.equal(plain, guided)
    assert guided_calls == calls == [[0, 1, 2]]  # the second branch is not computed


@pytest.mark.parametrize(("t", "rows"), [(299, 3), (300, 6), (700, 6), (701, 3)])
def test_outside_the_interval_one_branch_is_computed(t: int, rows: int) -> None:
    guided, calls = ask(ClassifierFree(1.0, NULL, DDPM, interval=(0.3, 0.7)), t=t)
    assert [len(c) for c in calls] == [rows]
    assert guided.tolist() == ([2, 4, 6] if rows == 6 else [1, 2, 3])


def test_guided_nests() -> None:
    class Add(Guidance):
        def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
            return predict(x_t, t, labels) + 10

    cfg = ClassifierFree(1.0, NULL, DDPM)
    assert ask(Guided(Add(), cfg))[0].tolist() == [12, 14, 16]  # guided, then + 10
    # p + 10 on both branches: the difference is the same
    inside, calls = ask(Guided(cfg, Add()))
    assert inside.tolist() == [12, 14, 16]
    assert [len(c) for c in calls] == [6]

    class Double(Add):
        def __call__(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> Tensor:
            return torch.where(labels.reshape(-1, 1, 1, 1) == NULL, 1, 2) * predict(x_t, t, labels) + 1

    assert ask(Guided(Double(), cfg))[0].tolist() == [5, 9, 13]  # 2 (2 (k + 1)) + 1
    assert ask(Guided(cfg, Double()))[0].tolist() == [5, 9, 13]  # (2 (k+1) + 1) + (2 (k+1) + 1 - 1)
    twice, calls = ask(Guided(ClassifierFree([1.0, 0.0, 0.5], NULL, DDPM), cfg))
    assert twice.tolist() == [4, 4, 9]
    assert [len(c) for c in calls] == [12]


@pytest.mark.parametrize(
    "options",
    [
        {"omega": -1.5},
        {"omega": math.nan},
        {"omega": math.inf},
        {"omega": [1.0, 2.0]},
        {"omega": [1.0]},
        {"omega": [1.0, 2.0, -3.0]},
        {"omega": 1.0, "interval": (0.6, 0.4)},
        {"omega": 1.0, "interval": (-0.1, 1.0)},
        {"omega": 1.0, "interval": (0.0, 1.1)},
    ],
)
def test_bad_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ClassifierFree(null=NULL, process=DDPM, **options)


@pytest.mark.parametrize(("process", "sampler"), [("ddpm", "dpm++"), ("ddpm-v", "unipc"), ("flow", "euler")])
def test_guided_sampling_ends_at_the_extrapolated_mean(process: str, sampler: str) -> None:
    """Gaussian classes of equal width, unconditional mean 0: the end is exactly mu + omega (mu - 0), in any space."""
    p = PROCESSES[process]
    model = gaussian_model(p, means=(0.3, -0.2, 0.1))
    labels, seeds = [0, 1, 2] * 20, range(60)

    def means(guidance: Guidance | None) -> list[float]:
        images = generate(model, labels, list(seeds), sampler=sampler, steps=15, guidance=guidance, batch_size=60)
        x = images.astype(float) / 127.5 - 1
        return [float(x[k::3].mean()) for k in range(3)]

    assert means(None) == pytest.approx([0.3, -0.2, 0.1], abs=0.02)
    assert means(ClassifierFree(1.0, NULL, p)) == pytest.approx([0.6, -0.4, 0.2], abs=0.02)
    assert means(ClassifierFree([0.0, 2.0, 0.0], NULL, p)) == pytest.approx([0.3, -0.6, 0.1], abs=0.02)
    assert means(ClassifierFree(-1.0, NULL, p)) == pytest.approx([0.0, 0.0, 0.0], abs=0.02)


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-cosine-v", "flow"])
def test_autoguidance_of_two_gaussian_models_is_exact(kind: str) -> None:
    """Both best predictions are affine in the mean, so theirs is that of mean mu + omega (mu - mu_weak)."""
    process, means, weak_means = PROCESSES[kind], (0.3, -0.2, 0.1), (0.1, -0.3, 0.1)
    model, weak = gaussian_model(process, means), gaussian_model(process, weak_means)
    x = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1, 2, NULL])
    t = torch.full((4,), 0.6) if kind == "flow" else torch.full((4,), 600)

    def expected(omega: list[float]) -> Tensor:
        ends = [*(m + w * (m - o) for m, o, w in zip(means, weak_means, omega, strict=True)), 0.0]
        return best_prediction(process, x, t, torch.tensor(ends, dtype=torch.float64).reshape(-1, 1, 1, 1), 0.1)

    for omega, each in ((0.7, [0.7] * 3), ([0.0, 2.0, -1.0], [0, 2, -1])):
        found = Autoguidance(omega, weak)(x, t, y, lambda *a: model(*a)[0].double())
        torch.testing.assert_close(found, expected(each), rtol=1e-6, atol=1e-6)
    # it has the same label as the model, of one batch each
    assert isinstance(weak.backbone, GaussianBackbone)
    assert weak.backbone.calls == [[0, 1, 2, 3]] * 2
    # outside of the interval, and at omega 0, the weak model is not called
    for guidance in (Autoguidance(1.0, weak, (0.0, 0.3)), Autoguidance(0.0, weak)):
        assert torch.equal(guidance(x, t, y, lambda *a: model(*a)[0]), model(x, t, y)[0])
    assert len(weak.backbone.calls) == 2


def test_autoguidance_goes_away_from_the_weak_model_and_null_rows_too() -> None:
    process = PROCESSES["ddpm"]
    model, weak = gaussian_model(process, (0.3, -0.2, 0.1)), gaussian_model(process, (0.2, -0.3, 0.1))
    with torch.no_grad():
        weak.backbone.means[3] = -0.2  # type: ignore[index, union-attr]
    labels, seeds = [0, 1, 2, NULL] * 16, list(range(64))

    def means(omega: Any) -> list[float]:
        images = generate(model, labels, seeds, steps=15, guidance=Autoguidance(omega, weak), batch_size=64)
        return [float((images[k::4] / 127.5 - 1).mean()) for k in range(4)]

    assert means(2.0) == pytest.approx([0.5, 0.0, 0.1, 0.4], abs=0.02)
    assert means([2.0, 0.0, 1.0]) == pytest.approx([0.5, -0.2, 0.1, 0.0], abs=0.02)
    assert means((0.0, 0.0, 0.0, 1.0)) == pytest.approx([0.3, -0.2, 0.1, 0.2], abs=0.02)  # the null label's own
    with pytest.raises(ConfigError, match="training mode"):
        Autoguidance(1.0, gaussian_model(process).train())
    for bad in ([1.0, 2.0], -1.5, math.nan, [1.0] * 5):
        with pytest.raises(ConfigError):
            Autoguidance(bad, weak)


NAMES = ("nevus", "melanoma", "a,b", "c=d", "few")
GROUPS = Groups(("many", "medium", "few"), (0, 1, 2, 2, 1), "by hand")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (0, 0.0),
        (" -0.5 ", -0.5),
        ("many=1.6", (1.6, 9, 9, 9, 9)),
        ("medium=1, melanoma = 0.3", (9, 0.3, 9, 9, 1)),
        ("few=2", (9, 9, 9, 9, 2)),  # a class of that name
        ("1,a,b=3,c=d=4", (1, 1, 3, 4, 1)),
    ],
)
def test_scales_by_class_and_group(text: str | float, expected: Any) -> None:
    assert per_class(text, NAMES, GROUPS, 9.0) == expected


def test_scales_by_class_alone_where_there_are_no_groups() -> None:
    assert per_class("few=0.5", (*STATS.names, "few"), None, 1.0) == (1, 1, 1, 0.5)
    with pytest.raises(ConfigError, match="no class or group 'many'"):
        per_class("many=0.5", STATS.names, None, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("  ", "empty"),
        ("melanma=1", "did you mean melanoma"),
        ("zzz=1", "groups: many, medium, few"),
        ("many=much", "'much' is not a number"),
        ("=1", "no class or group"),
        ("many=1,2", "no class or group"),
        ("many=1,many=2", "given twice"),
        ("many=-1.1", "at least -1"),
        ("inf,many=1", "at least -1"),
        (True, "not a number"),
    ],
)
def test_scales_that_make_no_sense_are_refused(text: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        per_class(text, NAMES, GROUPS, 1.0)
