"""Training under geometric changes (ADA): the same batch however it is divided, exact continuation, every method."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from imbdiff.config import RunConfig, TrainConfig, override
from imbdiff.data.augment import Augmentation
from imbdiff.data.geometric import Geometric
from imbdiff.data.splits import Prepared
from imbdiff.data.stats import Groups
from imbdiff.data.symmetry import SYMMETRIES
from imbdiff.diffusion.codec import IdentityCodec
from imbdiff.diffusion.model import DiffusionModel, build_model
from imbdiff.diffusion.process import DDPM
from imbdiff.diffusion.saved import save_model
from imbdiff.methods import METHODS, method_of
from imbdiff.objectives.batch import NoisyBatch
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.pipeline import plan, training
from imbdiff.presets import preset
from imbdiff.recipe import Phase
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.training.loop import TrainingFiles
from imbdiff.training.parts import Batches, Part
from imbdiff.training.step import TrainingStep
from imbdiff.training.trainer import Trainer
from tests.training.test_trainer import CONFIG, StopError, data, same, stop_at

PAIRS = Part("pairs", groups=4, group_size=3, of="non-head")
SMALL = {
    "data": {"imbalance_factor": 20},
    "model": {"backbone": "mlp"},
    "train": {"images": 64, "batch_size": 32, "checkpoint_images": 32, "preview_images": 0},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def digits() -> Prepared:
    return training.prepare_data("digits", configured().data)


def configured(**more: Any) -> RunConfig:
    return override(override(preset("tiny"), SMALL), more)


def load(rank: int = 0, world: int = 1, accumulate: int = 1, micro: int = 0, step: int = 2, **options: Any) -> Any:
    """name of a part -> its batch, as one process of several gets it."""
    images = data()
    model = SimpleNamespace(codec=IdentityCodec((1, 4, 4)), process=DDPM())
    made = Batches(
        SimpleNamespace(networks={"model": model}, draws=lambda part: {}),  # type: ignore[arg-type]
        [Part(distribution="balanced"), PAIRS], images, Groups.by_quantile(images.stats),
        TrainConfig(batch_size=16, accumulate=accumulate), device=torch.device("cpu"), seed=3, dist=Dist(rank, world),
        **{"geometric": Geometric(0.7), **options},
    )  # fmt: skip
    return made(step, micro)


def fields(batches: list[dict[str, NoisyBatch]], part: str) -> dict[str, torch.Tensor]:
    return {
        f: torch.cat([getattr(b[part], f) for b in batches]) for f in ("x0", "x_t", "noise", "t", "labels", "augment")
    }


@pytest.mark.parametrize("part", ["main", "pairs"])
def test_processes_and_micro_batches_see_slices_of_one_batch(part: str) -> None:
    whole = fields([load()], part)
    two = fields([load(rank=rank, world=2) for rank in (0, 1)], part)
    four = fields([load(rank=r, world=2, accumulate=2, micro=m) for r in (0, 1) for m in (0, 1)], part)
    for name, value in whole.items():
        assert torch.equal(value, two[name]), name
        assert torch.equal(value, four[name]), name


def test_a_batch_is_what_was_done_to_its_images_and_every_part_and_step_has_its_own() -> None:
    changed, plain = load(), load(geometric=None)
    for part in ("main", "pairs"):
        a, b = changed[part], plain[part]
        assert torch.equal(a.x0, Geometric(0.7).apply(b.x0, a.augment))
        assert torch.equal(a.x_t, DDPM().add_noise(a.x0, a.noise, a.t))
        assert not torch.equal(a.x0, b.x0)
        assert b.augment is None
        for name in ("noise", "t", "labels", "condition", "group"):  # nothing else is drawn otherwise for it
            assert torch.equal(getattr(a, name), getattr(b, name)), name
    angles = changed["main"].augment[:12, 3], changed["pairs"].augment[:, 3]
    assert not torch.equal(*angles), "of one stream the first twelve rows would be turned alike"
    assert not torch.equal(changed["main"].augment, load(step=3)["main"].augment)
    assert torch.equal(changed["main"].augment, load()["main"].augment)


def trainer(folder: Path | None, **options: Any) -> Trainer:
    images = data()
    model = build_model("mlp", DDPM(), (1, 4, 4), images.stats, augment=True)
    return Trainer(
        step=TrainingStep({"model": model}, [Denoising(), ClassBalancing()]),
        data=images, groups=Groups.by_quantile(images.stats), parts=[Part(distribution="tempered")], config=CONFIG,
        device="cpu", files=TrainingFiles(None if folder is None else CheckpointStore(folder)), quiet=True,
        **{"geometric": Geometric(0.5), **options},
    )  # fmt: skip


def test_a_stopped_run_continues_bit_for_bit(tmp_path: Path) -> None:
    whole = trainer(None).run()
    with pytest.raises(StopError):
        trainer(tmp_path, on_preview=stop_at(16 * 10)).run()
    resumed = trainer(tmp_path).run()
    assert isinstance(whole, DiffusionModel)
    assert isinstance(resumed, DiffusionModel)
    assert same(whole, resumed)
    layer = whole.backbone.augmentation
    assert layer is not None
    start = trainer(None).step.networks["model"].backbone.augmentation.weight  # type: ignore[union-attr]
    assert (layer.weight - start).abs().sum(0).min() > 1e-3, "every component has been learned from"  # type: ignore[operator]
    assert not same(whole, trainer(None, geometric=Geometric(0.2)).run())  # type: ignore[arg-type]


def test_a_network_with_the_layer_is_not_trained_without_the_changes() -> None:
    with pytest.raises(ConfigError, match=r"augmentation\.weight"):
        trainer(None, geometric=None).run()


# ---- as a user asks for it -------------------------------------------------------------------------------------------


def test_the_probability_is_the_options_otherwise_the_methods() -> None:
    assert method_of(configured(method="cbdm-ada")).ada == 0.12
    assert method_of(configured(method="cbdm-ada", **{"method.ada": 0.0})).ada == 0
    assert method_of(configured(method="cbdm")).ada == 0
    assert method_of(configured(method="cbdm", **{"method.ada": 0.3})).ada == 0.3
    assert method_of(configured(method="cbdm+cbdm-ada")).ada == 0.12
    with pytest.raises(ConfigError, match=r"ada=1\.2"):
        method_of(configured(**{"method.ada": 1.2}))
    guide = Phase("encoder", lambda: [Denoising()], gives="guide")
    target = Phase("target", lambda: [Denoising()])
    changing = method_of(configured(**{"method.ada": 0.3}))
    for symmetry in SYMMETRIES:
        assert training.geometric(target, changing, symmetry) == Geometric(0.3, symmetry)
        published = method_of(configured(method="cbdm-ada"))
        assert training.geometric(target, published, symmetry) == Geometric(0.12, None)
        assert training.geometric(target, method_of(configured()), symmetry) is None
        assert training.geometric(guide, changing, symmetry) is None


@pytest.mark.parametrize("name", ["ccua", "cm", "coral", "diffrc", "t2h"])
def test_methods_train_under_it(name: str, digits: Prepared, tmp_path: Path) -> None:
    more: dict[str, Any] = {"method": name, "method.ada": 0.4}
    if METHODS[name].init == "required":
        save_model(training.new_model(digits, configured(**{"method.ada": 0.4})), tmp_path)
        more["model"] = {"init": str(tmp_path)}
    model = training.train(digits, configured(**more), quiet=True)
    assert model.backbone.augmentation is not None
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(("ada", "plain"), [(0.0, Augmentation("mirror")), (0.4, Augmentation())])
def test_images_that_may_be_mirrored_are_mirrored_once_and_said_to_be(
    ada: float, plain: Augmentation, digits: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Trainer] = []
    real = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self: (seen.append(self), real(self))[1])
    model = training.train(digits, configured(**{"method.ada": ada}, data={"augment": "mirror"}), quiet=True)
    assert [t.augmentation for t in seen] == [plain]
    assert [t.geometric for t in seen] == [Geometric(ada, "mirror") if ada else None]
    assert (model.backbone.augmentation is not None) == (ada > 0)


def test_a_saved_model_without_the_layer_is_refused_and_one_with_it_goes_on_without(
    digits: Prepared, tmp_path: Path
) -> None:
    save_model(training.new_model(digits, configured()), tmp_path / "plain")
    told = training.train(digits, configured(**{"method.ada": 0.3}), quiet=True)
    save_model(told, tmp_path / "told")
    config = configured(method="cbdm-finetune", model={"init": str(tmp_path / "plain")}, **{"method.ada": 0.2})
    with pytest.raises(RunError, match="no layer for geometric changes") as error:
        training.new_model(digits, config)
    assert "--method.ada 0.2" in str(error.value)
    config = configured(method="cbdm-finetune", model={"init": str(tmp_path / "told")})
    start = training.new_model(digits, config)
    assert start.backbone.augmentation is None
    kept = {k: v for k, v in told.backbone.state_dict().items() if k != "augmentation.weight"}
    assert start.backbone.state_dict().keys() == kept.keys()
    assert all(torch.equal(v, start.backbone.state_dict()[k]) for k, v in kept.items())
    assert training.train(digits, config, quiet=True).backbone.augmentation is None
    again = training.new_model(digits, configured(model={"init": str(tmp_path / "told")}, **{"method.ada": 0.2}))
    assert again.backbone.augmentation is not None
    assert torch.equal(again.backbone.augmentation.weight, told.backbone.augmentation.weight)  # type: ignore[union-attr]


def test_the_plan_measures_it(digits: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = Geometric.apply
    monkeypatch.setattr(Geometric, "apply", lambda self, x, change: (seen.append(self), real(self, x, change))[1])
    phase = METHODS["cbdm-ada"].phases[0]
    plan._probe_training(phase, digits, configured(method="cbdm-ada"), torch.device("cpu"))
    assert set(seen) == {Geometric(0.12)}
