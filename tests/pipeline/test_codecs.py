"""Runs in the model space of a codec: chosen by size, kept, continued, refused where it has no effect."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from imbdiff.config import RunConfig, override
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.saved import load_model, save_model
from imbdiff.methods import METHODS, method_of
from imbdiff.pipeline import training
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.plan import check_fit
from imbdiff.pipeline.run import Run, run
from imbdiff.pipeline.training import LARGEST_ON_CPU, codec_of, prepare_data, settled, train
from imbdiff.presets import preset
from imbdiff.runtime.errors import ConfigError
from tests.pipeline.conftest import SMALL, write_tree

QUICK = {"codec.kind": "auto", "train.images": 32, "evaluate.cas": False, "classify.steps": 2, "classify.seeds": 1}
TRAIN = ("train",)
CLASSES = {"frequent": 24, "some": 12, "rare": 6}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("trees") / "images", CLASSES, (16, 16), mode="RGB")


def small(**values: object) -> RunConfig:
    return override(
        override(preset("tiny"), SMALL),
        {"data.imbalance_factor": None, "codec.kind": "patch", "model.backbone": "mlp", **values},
    )


@pytest.fixture(scope="module")
def prepared(tree: Path) -> Prepared:
    return prepare_data(tree, small().data)


def test_the_size_of_images_chooses(tree: Path) -> None:
    large = prepare_data(tree, small(**{"data.size": LARGEST_ON_CPU + 4}).data)
    for size, kind, shape in ((LARGEST_ON_CPU, "identity", None), (LARGEST_ON_CPU + 4, "patch", (16, 9, 9))):
        config = small(**{"codec.kind": "auto", "data.size": size})
        data = large if kind == "patch" else prepare_data(tree, config.data)
        assert settled(data, config).codec.kind == kind
        if shape is not None:
            assert codec_of(data, config).shape == shape


@pytest.mark.parametrize("values", [{"model.process": "ddpm-cosine"}, {"codec.kind": "auto", "codec.factor": 8}])
def test_what_does_not_fit_is_refused_before_training(prepared: Prepared, values: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_fit(prepared, small(**values))
    assert caught.value.remedy
    check_fit(prepared, small(**{**values, "model.process": "flow", "codec.kind": "patch"}))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_trains_on_patches(prepared: Prepared, name: str, tmp_path: Path) -> None:
    config = small(method=name, **{"train.images": 16, "train.checkpoint_images": 16})
    if method_of(config).init == "required":
        first = small(method="ddpm-brs", **{"train.images": 16, "model.backbone": "mlp"})
        save_model(train(prepared, first, quiet=True), tmp_path / "model")
        config = override(config, {"model.init": str(tmp_path / "model"), "model.backbone": "auto"})
    model = train(prepared, config, quiet=True)
    assert model.codec.shape == (16, 4, 4)
    assert generate(model, [0, 1], [0, 1], steps=2, batch_size=2).shape == (2, 16, 16, 3)


def test_a_run_on_patches_goes_to_its_page_and_continues(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LARGEST_ON_CPU", 8)
    config = small(method="cbdm+ccua", **QUICK)
    page = run(tree, tmp_path / "run", config)
    assert "--codec.kind identity" in capsys.readouterr().out
    assert page.exists()
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["codec"] == {"kind": "patch", "weights": None, "factor": None, "latent_channels": None}
    assert load_model(tmp_path / "run" / "model").codec.name == "patch"
    run(tree, tmp_path / "run", config)
    said = capsys.readouterr().out
    assert "train: done before" in said
    assert "classify: done before" in said
    assert "patch, 16x4x4" in Run(RunFolder(tmp_path / "run"), str(tree), config, quiet=True).plan().text()
    (tmp_path / "run" / "model" / "codec.safetensors").unlink()
    run(tree, tmp_path / "run", config)  # a part of the model that is lost is noticed
    assert load_model(tmp_path / "run" / "model").codec.name == "patch"


def test_a_run_of_a_version_without_codecs_stays_one_of_pixels(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LARGEST_ON_CPU", 8)
    Run(RunFolder(tmp_path / "run"), str(tree), small(**{**QUICK, "codec.kind": "identity"}), quiet=True).execute(TRAIN)
    path = tmp_path / "run" / "config.yaml"
    old = yaml.safe_load(path.read_text())
    del old["codec"]
    path.write_text(yaml.safe_dump(old))
    work = Run(RunFolder(tmp_path / "run"), str(tree), small(**QUICK), quiet=True)
    work.execute(TRAIN)
    assert work.config.codec.kind == "identity"
