"""Runs in the latents of an autoencoder: to the page, continued, and refused before anything is trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from imbdiff.config import RunConfig, override
from imbdiff.data.decode import parse_size
from imbdiff.data.sources import load
from imbdiff.data.splits import Prepared
from imbdiff.diffusion.generate import generate
from imbdiff.diffusion.saved import load_model
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.plan import check_fit
from imbdiff.pipeline.run import Run, run
from imbdiff.pipeline.training import prepare_data, sized, training_inputs
from imbdiff.presets import preset
from imbdiff.runtime.errors import ConfigError, ImbdiffError
from tests.diffusion.vae import save_vae
from tests.pipeline.conftest import SMALL, write_tree

CLASSES = {"frequent": 24, "some": 12, "rare": 6}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMBDIFF_CACHE", str(tmp_path / "cache"))


def small(weights: Path, **values: object) -> RunConfig:
    config = override(preset("tiny"), SMALL)
    return override(
        config,
        {
            "data.imbalance_factor": None, "data.augment": "mirror", "codec.kind": "auto",
            "codec.weights": str(weights), "model.backbone": "mlp", "train.images": 32, "evaluate.cas": False,
            "classify.steps": 2, "classify.seeds": 1, "sample.strategy": "equal", **values,
        },
    )  # fmt: skip


def test_a_run_goes_to_its_page_and_needs_its_autoencoder_no_more(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_tree(tmp_path / "images", CLASSES, (16, 16), mode="L")
    own = shutil.copytree(weights, tmp_path / "vae")
    config = small(own)
    plan = Run(RunFolder(tmp_path / "run"), str(tree), config, quiet=True).plan().text()
    assert "vae, 4x4x4" in plan
    assert not (tmp_path / "cache" / "latents").exists()  # a plan writes nothing
    assert run(tree, tmp_path / "run", config).exists()
    assert "grey images are repeated" in capsys.readouterr().out
    codec = load_model(tmp_path / "run" / "model").codec
    assert codec.name == "vae"
    assert max(abs(m) for m in codec.mean) > 1e-3  # type: ignore[attr-defined]
    run(tree, tmp_path / "run", config)
    assert capsys.readouterr().out.count("done before") >= 4
    shutil.rmtree(own)
    Run(RunFolder(tmp_path / "run"), str(tree), config, quiet=True).execute(("sample", "evaluate", "report"))
    assert generate(load_model(tmp_path / "run" / "model"), [0], [0], steps=2, batch_size=1).shape == (1, 16, 16, 1)
    with pytest.raises(ConfigError, match="no folder"):  # training again would need it
        run(tree, tmp_path / "run", config)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("trees") / "images", CLASSES, (16, 16), mode="RGB")


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"method": "ddpm-augmented"}, {"method": "ddpm-augmented", "method.ada": 0.0}),
        ({"data.size": 18}, {"data.size": 16}),
        ({"codec.weights": "nowhere"}, {}),
        ({"codec.factor": 4}, {}),
        ({"codec.kind": "identity"}, {"codec.kind": "identity", "codec.weights": None}),
        ({"codec.kind": "patch"}, {"codec.kind": "vae"}),
        ({"codec.kind": "vae", "codec.weights": None}, {"codec.kind": "vae"}),
        ({"model.process": "ddpm-cosine"}, {"model.process": "flow"}),
    ],
)
def test_refused_before_anything_is_encoded(
    colour: Path, weights: Path, tmp_path: Path, values: dict[str, object], remedy: dict[str, object]
) -> None:
    def check(config: RunConfig) -> None:
        check_fit(prepare_data(colour, config.data), config)

    with pytest.raises(ConfigError) as error:
        check(small(weights, **values))
    assert error.value.remedy
    check(small(weights, **remedy))
    assert not (tmp_path / "cache" / "latents").exists()


def test_what_training_is_depends_on_the_weights_and_not_on_their_place(
    colour: Path, weights: Path, tmp_path: Path
) -> None:
    prepared: Prepared = prepare_data(colour, small(weights).data)
    moved, other = shutil.copytree(weights, tmp_path / "moved"), save_vae(tmp_path / "other", seed=1)
    found = [training_inputs(prepared, small(folder)) for folder in (weights, moved, other)]
    assert found[0] == found[1] != found[2]


def test_a_run_whose_autoencoder_was_changed_is_not_continued_with_it(
    colour: Path, weights: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(weights, tmp_path / "vae")
    config = small(own)
    Run(RunFolder(tmp_path / "run"), str(colour), config, quiet=True).execute(("train",))
    shutil.rmtree(own)
    save_vae(own, seed=1)
    with pytest.raises(ImbdiffError):
        Run(RunFolder(tmp_path / "run"), str(colour), config, quiet=True).execute(("train",))


def test_what_encoding_takes_is_planned(weights: Path, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "images", CLASSES, (16, 16), mode="RGB")
    folder = RunFolder(tmp_path / "run")
    prepared = prepare_data(tree, small(weights).data)

    def row() -> str:
        return dict(Run(folder, str(tree), small(weights), quiet=True).plan().rows)["encode"]

    n = len(prepared.train)
    assert f"{2 * n} latents" in row()
    assert "are there" not in row()
    Run(folder, str(tree), small(weights), quiet=True).execute(("train",))
    assert f"{2 * n} of them are there" in row()


@pytest.mark.parametrize(
    ("size", "expected"), [((16, 16), (16, 16)), ((30, 44), (24, 40)), ((300, 600), (128, 256)), ((5, 5), (8, 8))]
)
def test_images_get_a_size_that_suits_the_autoencoder(
    weights: Path, tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Of a factor of 4: multiples of 8, near their own up to 256."""
    tree = write_tree(tmp_path / "images", {"a": 2, "b": 2}, size, mode="RGB")
    source = load(tree)
    config = small(weights, **{"data.size": None})
    assert parse_size(str(sized(source, config).data.size)) == expected
    assert sized(source, small(weights, **{"data.size": 12})).data.size == 12
    assert sized(source, small(weights, **{"data.size": None, "codec.weights": None})).data.size is None
