"""`imbdiff predict`: the classes of new images, by the classifier of a run."""

from __future__ import annotations

import csv
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import imbdiff
from imbdiff.cli import main
from imbdiff.config import RunConfig, override
from imbdiff.data import reading, source
from imbdiff.data.sources import load
from imbdiff.pipeline import predicting
from imbdiff.pipeline.predicting import COLUMNS, load_classifier
from imbdiff.pipeline.run import open_run, run
from imbdiff.presets import preset
from imbdiff.recognition.saved import ImageClassifier
from imbdiff.runtime.errors import ConfigError, RunError
from tests.test_cli import fails

OPTIONS = {
    "data": {"imbalance_factor": 20},
    "classify": {"steps": 10, "batch_size": 16, "seeds": 1, "ensemble": 1},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunConfig]:
    """A run on digits whose classifiers are trained, without a generator."""
    folder, config = tmp_path_factory.mktemp("runs") / "run", override(preset("tiny"), OPTIONS)
    run("digits", folder, config, wanted=("classify",), quiet=True)
    return folder, config


@pytest.fixture
def copy(once: tuple[Path, RunConfig], tmp_path: Path) -> Path:
    return Path(shutil.copytree(once[0], tmp_path / "run"))


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return np.asarray(load("digits").read().images)


def pictures(folder: Path, images: np.ndarray, **options: object) -> Path:
    for name, x in zip("abcdefgh", images, strict=False):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[..., 0]).save(path)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_the_table_says_what_the_classifier_does(once, digits, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    run_folder, out = once[0], tmp_path / "table.csv"
    images = pictures(tmp_path / "new", digits[:5])
    assert main(["predict", str(run_folder), str(images), "--out", str(out)]) == 0
    found = rows(out)
    classifier = imbdiff.load_classifier(run_folder)
    p = classifier.predict_proba(digits[:5])
    assert [row["file"] for row in found] == [f"{c}.png" for c in "abcde"]
    assert list(found[0]) == [*COLUMNS, *(f"p_{k}" for k in range(10))]
    assert [row["predicted"] for row in found] == classifier.predict(digits[:5]).tolist()
    given = np.array([[float(row[f"p_{k}"]) for k in range(10)] for row in found])
    np.testing.assert_allclose(given, p, rtol=1e-5)
    np.testing.assert_allclose([float(row["probability"]) for row in found], p.max(axis=1), rtol=1e-5)
    said = capsys.readouterr().out
    assert "5 images" in said
    assert str(out) in said
    written = out.read_bytes()
    again = ["predict", str(run_folder), str(images), "--out", str(out), "--quiet"]
    out.write_text("mine")
    assert main(again) == 2
    assert out.read_text() == "mine"
    assert "--replace to replace it" in capsys.readouterr().err
    assert main([*again, "--replace"]) == 0
    assert out.read_bytes() == written


def test_all_ways_of_giving_images_agree(once, digits, tmp_path) -> None:  # type: ignore[no-untyped-def]
    flat = pictures(tmp_path / "flat", digits[:4])
    pictures(tmp_path / "classes" / "x", digits[:2])
    pictures(tmp_path / "classes" / "y" / "deeper", digits[2:4])
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        for path in sorted(flat.iterdir()):
            archive.write(path, path.name)
    (tmp_path / "table.csv").write_text("path,age\n" + "".join(f"flat/{c}.png,3\n" for c in "abcd"))
    (tmp_path / "list.txt").write_text("".join(f"flat/{c}.png\n" for c in "abcd"))
    np.save(tmp_path / "array.npy", digits[:4])
    np.savez(tmp_path / "arrays.npz", x=digits[:4])
    expected = load_classifier(once[0]).predict(digits[:4]).tolist()
    for name in ("flat", "classes", "flat.zip", "table.csv", "list.txt", "array.npy", "arrays.npz"):
        out = tmp_path / f"{name}.out"
        assert main(["predict", str(once[0]), str(tmp_path / name), "--out", str(out), "--quiet"]) == 0
        found = [row["predicted"] for row in rows(out)]
        assert (sorted(found) if name == "classes" else found) == (sorted(expected) if name == "classes" else expected)
    out = tmp_path / "one.out"
    assert main(["predict", str(once[0]), str(flat / "c.png"), "--out", str(out), "--quiet"]) == 0
    assert [row["predicted"] for row in rows(out)] == expected[2:3]


def test_other_sizes_and_colours_are_brought_to_the_run(once, digits, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    images = tmp_path / "new"
    images.mkdir()
    wide = Image.fromarray(digits[7][..., 0]).resize((40, 24)).convert("RGB")
    wide.putpixel((0, 0), (9, 0, 0))  # cut off below
    wide.save(images / "wide.png")
    Image.fromarray(digits[7][..., 0]).save(images / "own.png")
    out = tmp_path / "table.csv"
    assert main(["predict", str(once[0]), str(images), "--out", str(out)]) == 0
    classifier = load_classifier(once[0])
    grey = wide.convert("L").resize((8, 8), Image.Resampling.BICUBIC, box=(8, 0, 32, 24))  # the run crops
    p = classifier.predict_proba(np.stack([digits[7], np.asarray(grey)[..., None]]))
    given = np.array([[float(row[f"p_{k}"]) for k in range(10)] for row in rows(out)])
    np.testing.assert_allclose(given, p, rtol=1e-5)
    assert "1 image in colour" in capsys.readouterr().out


def test_unreadable_images_are_named_and_the_others_predicted(once, digits, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    images, out = pictures(tmp_path / "new", digits[:3]), tmp_path / "table.csv"
    (images / "bad.png").write_bytes(b"no image")
    (images / "empty.jpg").write_bytes(b"")
    said = fails(capsys, "predict", str(once[0]), str(images), "--out", str(out))
    assert "2 of 5 images" in said
    assert "bad.png" in said
    assert "empty.jpg" in said
    assert [row["file"] for row in rows(out)] == ["a.png", "b.png", "c.png"]
    for path in images.glob("[abc].png"):
        path.unlink()
    out.unlink()
    assert "2 of 2 images" in fails(capsys, "predict", str(once[0]), str(images), "--out", str(out))
    assert not out.exists()


def test_training_images_are_pointed_out(once, digits, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    _, prepared = open_run(once[0])
    images = pictures(tmp_path / "new", np.concatenate([prepared.train.images[:2], prepared.test.images[:3]]))
    assert main(["predict", str(once[0]), str(images), "--out", str(tmp_path / "x.csv")]) == 0
    assert "2 images are training images" in capsys.readouterr().out


def test_the_standard_output_gets_the_table_alone(once, digits, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    images = pictures(tmp_path / "new", digits[:3])
    assert main(["predict", str(once[0]), str(images), "--out", "-"]) == 0
    said = capsys.readouterr()
    assert [row["file"] for row in csv.DictReader(said.out.splitlines())] == ["a.png", "b.png", "c.png"]
    assert "3 images" in said.err


def test_more_images_than_a_block(once, digits, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(reading, "CHUNK", 2)
    monkeypatch.setattr(source, "BLOCK", 1)
    monkeypatch.setattr(predicting, "BATCH", 3)
    images, out = pictures(tmp_path / "new", digits[:8]), tmp_path / "table.csv"
    assert main(["predict", str(once[0]), str(images), "--out", str(out), "--quiet"]) == 0
    assert [row["predicted"] for row in rows(out)] == load_classifier(once[0]).predict(digits[:8]).tolist()


@pytest.mark.parametrize("given", ["empty", "nowhere", "folder as out", "input as out"])
def test_what_cannot_be_done_is_said_before_anything_is_written(given: str, once, digits, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "empty").mkdir()
    table = tmp_path / "table.csv"
    table.write_text("path\nnew/a.png\n")
    pictures(tmp_path / "new", digits[:1])
    images, out = {
        "empty": ("empty", "x.csv"), "nowhere": ("nowhere", "x.csv"), "folder as out": ("new", "empty"),
        "input as out": ("table.csv", "table.csv"),
    }[given]  # fmt: skip
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fails(capsys, "predict", str(once[0]), str(tmp_path / images), "--out", str(tmp_path / out))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_arms_by_name_and_by_a_part_of_it(once) -> None:  # type: ignore[no-untyped-def]
    folder = once[0]
    first = load_classifier(folder)
    assert load_classifier(folder, first.about["arm"]).about == first.about
    strong = load_classifier(folder, "STRONG")
    assert "strong augmentation" in strong.about["arm"]
    with pytest.raises(ConfigError, match="several"):
        load_classifier(folder, "softmax")
    with pytest.raises(ConfigError, match="strong augmentation"):
        load_classifier(folder, "nonsense")


def test_a_saved_folder_is_as_good_as_the_run(once, digits, tmp_path) -> None:  # type: ignore[no-untyped-def]
    load_classifier(once[0]).save(tmp_path / "mine")
    assert (
        load_classifier(tmp_path / "mine").predict(digits[:9]) == load_classifier(once[0]).predict(digits[:9])
    ).all()
    with pytest.raises(RunError, match=r"config\.yaml"):
        load_classifier(tmp_path)


def test_a_run_without_a_classifier_names_the_command_that_makes_it(copy, digits, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    images = str(pictures(tmp_path / "new", digits[:1]))
    (copy / "stages.json").write_text("{}")
    said = fails(capsys, "predict", str(copy), images, "--out", str(tmp_path / "x.csv"))
    command = said.split("`")[1].split()
    assert command[:2] == ["imbdiff", "classify"]
    assert main([*command[1:], "--quiet"]) == 0
    assert main(["predict", str(copy), images, "--out", str(tmp_path / "x.csv")]) == 0


@pytest.mark.parametrize("harm", ["member", "description", "another run"])
def test_a_damaged_classifier_is_refused_and_made_again(harm: str, copy, once, capsys) -> None:  # type: ignore[no-untyped-def]
    model = copy / "classifier" / "model"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    member = next(model.glob("*.safetensors"))
    if harm == "member":
        member.unlink()
    elif harm == "description":
        (model / "classifier.json").write_text("{}")
    else:
        other = load_classifier(copy, "strong")
        shutil.rmtree(model)
        other.save(model)
    with pytest.raises(RunError, match=member.name if harm == "member" else r"classifier\.json"):
        load_classifier(copy)
    run("digits", copy, once[1], wanted=("classify",), quiet=True)
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    run("digits", copy, once[1], wanted=("classify",))
    assert "done before, skipped" in capsys.readouterr().out


def test_networks_are_on_the_disk_once(once) -> None:  # type: ignore[no-untyped-def]
    folder = once[0] / "classifier"
    kept = {path.stat().st_ino for path in folder.glob("*.network.safetensors")}
    members = {path.stat().st_ino for path in folder.glob("model*/*.safetensors")}
    assert members
    assert members <= kept


def test_class_of_the_object(once) -> None:  # type: ignore[no-untyped-def]
    assert isinstance(imbdiff.load_classifier(str(once[0])), ImageClassifier)
