"""Networks that take the vector of a geometric change: what it changes, and that sampling needs none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from imbdiff.data.geometric import Geometric
from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.guidance import ClassifierFree
from imbdiff.diffusion.model import DiffusionModel, build_model, without_augmentation
from imbdiff.diffusion.process import PROCESSES
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.objectives.batch import NoisyBatch, noisy_batch
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.evaluator import evaluate
from imbdiff.objectives.requests import Labels, Request, Rows
from imbdiff.runtime.errors import ConfigError

STATS = ClassStats(("a", "b", "c"), (9, 4, 2))
SHAPES = {"unet-8": (1, 8, 8), "mlp": (1, 4, 5), "dit-tiny": (2, 8, 8), "unet-8-adagn": (1, 8, 8)}
EVERY = pytest.mark.parametrize("name", SHAPES)


def model(name: str, *, augment: bool = True, seed: int = 1, weights: float = 0.0) -> DiffusionModel:
    """`weights`: of the layer for changes, all of about that size; 0: as they start."""
    built = build_model(name, PROCESSES["ddpm"], SHAPES[name], STATS, seed=seed, dropout=0.0, augment=augment)
    if weights:
        layer = built.backbone.augmentation
        assert layer is not None
        with torch.no_grad():
            layer.weight.copy_(weights * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3)))
    return built.eval()


def inputs(name: str, n: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 3, 0, 2])[:n]
    return torch.randn(n, *SHAPES[name], generator=g), torch.arange(n) * 150, labels, Geometric(1).draw(n, g)


def batch(name: str, n: int = 6, *, changed: bool = True, part: str = "main") -> NoisyBatch:
    x0, _, labels, change = inputs(name, n)
    draws = ClassBalancing().draws
    return noisy_batch(
        x0, labels.clamp(max=2), process=PROCESSES["ddpm"], stats=STATS, seed=2, step=0, part=part, draws=draws,
        label_dropout=0.3, augment=change if changed else None,
    )  # fmt: skip


@EVERY
@torch.no_grad()
def test_no_vector_is_the_zero_vector_and_other_vectors_are_not(name: str) -> None:
    m = model(name, weights=0.5)
    x, t, labels, change = inputs(name)
    plain, _ = m(x, t, labels)
    zeros, _ = m(x, t, labels, augment=torch.zeros(6, 9))
    moved_by, _ = m(x, t, labels, augment=change)
    assert torch.equal(plain, zeros)
    assert (moved_by - plain).abs().amax((1, 2, 3)).min() > 1e-4
    for component in range(9):
        one = torch.zeros(6, 9)
        one[:, component] = 1
        assert not torch.allclose(m(x, t, labels, augment=one)[0], plain, atol=1e-4), component


@pytest.mark.parametrize("name", ["unet-8", "mlp", "unet-8-adagn"])
@torch.no_grad()
def test_it_is_added_where_time_and_class_are(name: str) -> None:
    """A vector v has the effect that class vectors moved by W v have, for all classes and the null label alike."""
    m = model(name, weights=0.5)
    x, t, labels, change = inputs(name)
    change = change[:1].expand(6, 9)
    moved_by, _ = m(x, t, labels, augment=change)
    layer, conditioner = m.backbone.augmentation, m.backbone.conditioner
    assert layer is not None
    moved = change[0] @ layer.weight.T
    conditioner.table += moved  # type: ignore[operator]
    conditioner.zero += moved  # type: ignore[operator]
    assert torch.allclose(m(x, t, labels)[0], moved_by, atol=1e-5)


@EVERY
@torch.no_grad()
def test_a_new_networks_other_weights_are_those_without_the_layer(name: str) -> None:
    with_layer, without = model(name), model(name, augment=False)
    state = with_layer.backbone.state_dict()
    assert float(state.pop("augmentation.weight").std()) == pytest.approx(1, abs=0.15), "as class vectors"
    assert state.keys() == without.backbone.state_dict().keys()
    assert all(torch.equal(value, without.backbone.state_dict()[key]) for key, value in state.items())
    x, t, labels, _ = inputs(name)
    assert torch.equal(with_layer(x, t, labels)[0], without(x, t, labels)[0])
    assert "augment" not in without.spec.config


def test_a_network_without_the_layer_refuses_changes() -> None:
    name = "mlp"
    x, t, labels, change = inputs(name)
    with pytest.raises(ConfigError, match="without a layer for geometric changes") as error:
        model(name, augment=False)(x, t, labels, augment=change)
    assert "--method.ada 0" in error.value.remedy


@torch.no_grad()
def test_a_transformer_adds_it_to_all_tokens() -> None:
    """A vector v has the effect that patch embeddings with W v added to their bias have."""
    m = model("dit-tiny", weights=0.5)
    x, t, labels, change = inputs("dit-tiny")
    change = change[:1].expand(6, 9)
    expected, _ = m(x, t, labels, augment=change)
    layer = m.backbone.augmentation
    assert layer is not None
    m.backbone.net.pos_embed.proj.bias += change[0] @ layer.weight.T  # type: ignore[union-attr, operator]
    assert torch.allclose(m(x, t, labels)[0], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["unet-8", "mlp", "dit-tiny"])
def test_every_request_gets_the_changes_of_its_rows(name: str) -> None:
    """Whatever labels are asked for, of whatever network, for some rows or all; beside another part
    whose images are as they are."""
    networks = {"model": model(name, weights=0.5), "other": model(name, seed=4, weights=0.3)}
    main, plain = batch(name), batch(name, 4, changed=False, part="plain")
    assert main.augment is not None
    index = torch.tensor([5, 1, 2])
    swapped = Labels("swapped", main.labels.flip(0))
    asked = [
        ("main", Request("given")),
        ("main", Request("null")),
        ("main", Request(swapped)),
        ("main", Request("null", network="other", grad=False)),
        ("main", Request(swapped, rows=Rows("three", index), network="other")),
        ("plain", Request("given")),
    ]
    answers, _ = evaluate(networks, {"main": main, "plain": plain}, asked)
    null = torch.full_like(main.labels, main.null)
    of_main = [main.condition, null, swapped.values, null, swapped.values[index]]
    rows = [slice(None)] * 4 + [index]
    nets = ["model"] * 3 + ["other"] * 2
    for answer, labels, r, net in zip(answers, of_main, rows, nets, strict=False):
        expected, _ = networks[net](main.x_t[r], main.t[r], labels, augment=main.augment[r])
        assert torch.allclose(answer.pred, expected, atol=1e-5)
        silent, _ = networks[net](main.x_t[r], main.t[r], labels)
        assert not torch.allclose(answer.pred, silent, atol=1e-3)
    expected, _ = networks["model"](plain.x_t, plain.t, plain.condition)
    assert torch.allclose(answers[-1].pred, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["unet-8-adagn", "dit-tiny"])
def test_sampling_saving_and_leaving_the_layer_out(name: str, tmp_path: Path) -> None:
    m = model(name, weights=0.5)
    save_model(m, tmp_path)
    loaded, less = load_model(tmp_path), without_augmentation(m)
    assert loaded.spec.config["augment"] is True
    x, t, labels, change = inputs(name)
    with torch.no_grad():
        assert torch.equal(loaded(x, t, labels, augment=change)[0], m(x, t, labels, augment=change)[0])
    assert less.spec == replace(m.spec, config={k: v for k, v in m.spec.config.items() if k != "augment"})
    assert "augmentation.weight" not in less.backbone.state_dict()
    save_model(less, tmp_path / "less")
    assert m.backbone.augmentation is not None, "the model itself keeps it"
    assert without_augmentation(less) is less
    options = {"steps": 2, "guidance": ClassifierFree(1.4, 3, m.process), "batch_size": 4}
    images = [
        generate(each, [0, 1, 2], [5, 6, 7], **options) for each in (m, loaded, less, load_model(tmp_path / "less"))
    ]
    assert all(np.array_equal(images[0], other) for other in images[1:])


@pytest.mark.parametrize("name", ["dit-tiny", "unet-8"])
def test_what_is_exported_is_the_network_for_images_as_they_are(name: str, tmp_path: Path) -> None:
    from imbdiff.integrations.pipeline import from_diffusers, to_diffusers

    m = model(name, weights=0.5)
    to_diffusers(m, tmp_path / "out")
    back = from_diffusers(tmp_path / "out")
    assert back.backbone.augmentation is None
    assert "augment" not in back.spec.config
    x, t, labels, _ = inputs(name)
    with torch.no_grad():
        assert torch.allclose(back(x, t, labels)[0], m(x, t, labels)[0], atol=1e-6)
