"""`imbdiff evaluate FAKE --reference REAL`, `imbdiff reference`: any two sets, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imbdiff.cli import main
from imbdiff.data.imageset import ImageSet
from imbdiff.pipeline.direct import Measuring, evaluate_any, reference_any
from imbdiff.runtime.errors import DataError

QUIET = Measuring(quiet=True)


def _digits(n: int, seed: int, noise: float = 0.0, names: tuple[str, ...] | None = None) -> ImageSet:
    from imbdiff.data.plain import read_any

    every = read_any("digits").images
    g = np.random.default_rng(seed)
    rows = np.sort(g.choice(len(every), n, replace=False))
    x = every.images[rows].astype(float) + noise * g.normal(size=(n, 8, 8, 1))
    return ImageSet(np.clip(x, 0, 255).astype(np.uint8), every.labels[rows], names or every.class_names)


def _write(images: ImageSet, folder: Path, flat: bool = False, mode: str = "L") -> Path:
    for i, (x, k) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        place = folder if flat else folder / images.class_names[k]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[..., 0]).convert(mode).save(place / f"{i:05d}.png")
    return folder


def _value(found: dict[str, Any], metric: str, scope: str = "all", reference: str | None = None) -> dict[str, Any]:
    rows = [r for r in found["numbers"] if r["metric"] == metric and r["scope"] == scope]
    return next(r for r in rows if reference is None or r["reference"] == reference)


def test_folders_arrays_and_references_give_the_same_numbers(tmp_path: Path) -> None:
    fake, real = _digits(150, 0, 20), _digits(200, 1)
    folders = evaluate_any(_write(fake, tmp_path / "fake"), _write(real, tmp_path / "real"), how=QUIET)
    sets = evaluate_any(fake, real, how=QUIET)
    reference_any(tmp_path / "real", tmp_path / "ref", how=QUIET)
    stored = evaluate_any(tmp_path / "fake", tmp_path / "ref", how=QUIET)
    for other in (sets, stored):
        for row, twin in zip(folders["numbers"], other["numbers"], strict=True):
            assert (row["metric"], row["value"], row["low"]) == (twin["metric"], twin["value"], twin["low"])
    assert folders["memorisation"] is None
    assert "no training images" in folders["protocol"]["memorisation"]
    assert folders["classes"]["group"] is None


def test_training_images_bring_groups_and_memorisation(tmp_path: Path) -> None:
    train = _digits(300, 2)
    keep = np.flatnonzero((train.labels < 8) | (np.arange(300) % 4 == 0))
    train = train.select(keep)
    found = evaluate_any(_digits(150, 0, 20), _digits(200, 1), train, how=QUIET)
    assert {r["scope"] for r in found["numbers"]} == {"all", "many", "medium", "few"}
    assert {r["reference"] for r in found["numbers"]} >= {"images", "train"}
    assert found["memorisation"]["summary"][0]["n_synthetic"] == 150
    copied = evaluate_any(train, _digits(200, 1), train, how=QUIET)
    assert copied["memorisation"]["summary"][0]["exact_copies"] == len(train)


def test_flat_folders_and_single_classes_are_measured_without_labels(tmp_path: Path) -> None:
    fake = _write(_digits(60, 0), tmp_path / "fake", flat=True)
    real = _write(_digits(80, 1), tmp_path / "real")
    found = evaluate_any(fake, real, how=QUIET)
    assert found["classes"]["names"] == ["all images"]
    assert _value(found, "KD[random-conv]")["n_reference"] == 80


def test_the_command_writes_numbers_and_page_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake, real = _write(_digits(60, 0), tmp_path / "fake"), _write(_digits(80, 1), tmp_path / "real")
    out = tmp_path / "out"
    command = ["evaluate", str(fake), "--reference", str(real), "--out", str(out)]
    assert main([*command, "--extractor", "random-conv", "raw-pixels"]) == 0
    found = json.loads((out / "metrics.json").read_text())
    assert {e["name"] for e in found["protocol"]["extractors"]} == {"random-conv", "raw-pixels"}
    assert "random-conv" in (out / "report.html").read_text()
    assert "random-conv" in capsys.readouterr().out
    kept = {p.name: p.stat().st_mtime_ns for p in (out / "features").glob("*.npy")}
    assert main([*command, "--extractor", "random-conv", "raw-pixels", "--quiet"]) == 0
    assert {p.name: p.stat().st_mtime_ns for p in (out / "features").glob("*.npy")} == kept
    (out / "mine.txt").write_text("x")
    assert main(command) == 2
    assert "holds other files" in capsys.readouterr().err


def test_the_reference_command_and_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake, real = _write(_digits(60, 0), tmp_path / "fake"), _write(_digits(80, 1), tmp_path / "real")
    assert main(["reference", str(real), "--out", str(tmp_path / "ref"), "--extractor", "raw-pixels"]) == 0
    assert "80 images" in capsys.readouterr().out
    command = ["evaluate", str(fake), "--reference", str(tmp_path / "ref"), "--out", str(tmp_path / "out")]
    assert main([*command, "--quiet"]) == 0  # with the extractors that it was made with
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["protocol"]["reference"] == str(real)
    assert [e["name"] for e in found["protocol"]["extractors"]] == ["raw-pixels"]
    # by an extractor that it was not made with: before any features are taken
    assert main([*command, "--extractor", "random-conv", "--quiet"]) == 2
    assert "no features of random-conv, but of raw-pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("mode", "is RGB and .* is grey"),
        ("size", "give --size 8"),
        ("classes", "no class of .* is in"),
        ("one", "at least two are needed"),
    ],
)
def test_sets_that_do_not_belong_together_are_refused(tmp_path: Path, how: str, said: str) -> None:
    real = _write(_digits(40, 1), tmp_path / "real")
    if how == "mode":
        fake: Any = _digits(40, 0)
        fake = ImageSet(fake.images.repeat(3, -1), fake.labels, fake.class_names)
    elif how == "size":
        fake = _digits(40, 0)
        fake = ImageSet(fake.images.repeat(2, 1).repeat(2, 2), fake.labels, fake.class_names)
    elif how == "classes":
        fake = _digits(40, 0, names=tuple("abcdefghij"))
    else:
        fake = _digits(1, 0)
    with pytest.raises(DataError, match=said):
        evaluate_any(fake, real, how=QUIET, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_weights_are_said_before_any_long_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("IMBDIFF_OFFLINE", "1")
    fake, real = _write(_digits(40, 0), tmp_path / "fake"), _write(_digits(40, 1), tmp_path / "real")
    out = tmp_path / "out"
    command = ["evaluate", str(fake), "--reference", str(real), "--out", str(out), "--extractor", "inception"]
    assert main(command) == 2
    said = capsys.readouterr().err
    for word in ("6726825d", "weights-inception-2015-12-05", "--inception-weights", "https://"):
        assert word in said
    assert not out.exists()
    assert main([*command, "--inception-weights", str(tmp_path / "none.pth")]) == 2
    assert "none.pth" in capsys.readouterr().err


def test_a_folder_that_is_no_run_says_what_to_give(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = _write(_digits(40, 0), tmp_path / "fake")
    assert main(["evaluate", str(fake)]) == 2
    assert "--reference REAL" in capsys.readouterr().err
