"""The command: help, and bad input, each a clear error that names thing and remedy and leaves everything as it was."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from imbdiff.arguments import given
from imbdiff.cli import VERBS, RunCommand, main
from imbdiff.config import RunConfig
from tests.pipeline.conftest import small_arguments, write_tree


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The error text of a command that must fail with status 2, without a traceback."""
    try:
        status = main(arguments)
    except SystemExit as exit_:
        status = exit_.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    text = captured.err + captured.out
    assert status == 2, text
    assert "Traceback" not in text
    return " ".join(text.split())


@pytest.mark.parametrize("words", ["--help", "run --help", "methods"])
def test_a_reader_that_goes_away_is_no_traceback(words: str) -> None:
    command = [sys.executable, "-m", "imbdiff", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_help_answers_in_half_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "imbdiff", "--help"], capture_output=True, text=True, check=True)
        assert "imbdiff run SOURCE" in done.stdout
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_has_help_of_its_own_length(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = []
    for help_ in ("--help", "--help-all"):
        assert main([verb, help_]) == 0
        text = capsys.readouterr().out
        assert "usage" in text
        lengths.append(len(text.splitlines()))
    assert lengths[0] <= 60
    assert lengths[1] >= lengths[0]


def test_help_shows_a_verbs_own_options_with_the_defaults_that_will_hold(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*arguments: str) -> str:
        assert main(arguments) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "--train.lr X Learning rate of Adam. Default: 0.001." in shown("run", "--preset", "demo", "--help-all")
    assert "--train.lr X Learning rate of Adam. Default: 0.0002." in shown("run", "--preset", "standard", "--help-all")
    common = shown("run", "--help")
    assert "--train.lr" not in common
    assert common.index("--data.size N|HxW") < common.index("--train.images N") < common.index("--sample.strategy TEXT")
    assert "--train.images" not in shown("sample", "--help-all")
    own = shown("sample", "--help")
    assert "--sample.steps" in own
    assert "--train.images" not in own
    assert "--classify." not in own


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--train.batch-size", "32"], "train.batch_size", 32),
        (["--train.batch_size=32"], "train.batch_size", 32),
        (["--evaluate.no-cas"], "evaluate.cas", False),
        (["--evaluate.cas", "False"], "evaluate.cas", False),
        (["--evaluate.cas"], "evaluate.cas", True),
        (["--sample.sampler", "None"], "sample.sampler", None),
        (["--sample.interval", "0.1", "0.9"], "sample.interval", (0.1, 0.9)),
        (["--classify.recipes", "ce", "resampling"], "classify.recipes", ("ce", "resampling")),
        (["--sample.strategy", "not minority"], "sample.strategy", "not minority"),
        (
            ["--sample.guidance.classifier-free.omega", "-0.5,few=1"],
            "sample.guidance.classifier-free.omega",
            "-0.5,few=1",
        ),
        (["--method.tau=0.3"], "method.tau", 0.3),
        (["--train.images", "1e5"], "train.images", 100_000),
        (["--size", "24x32"], "data.size", "24x32"),
        (["--data.size", "32"], "data.size", 32),
        (["--resize=pad"], "data.resize", "pad"),
        (["--keep-checkpoints"], "train.keep_checkpoints", True),
        (["--no-cas"], "evaluate.cas", False),
        (["--strategy", "0.5"], "sample.strategy", "0.5"),
        (["--sample.guidance.omega", "None"], "sample.guidance.omega", None),
    ],
)
def test_options_are_read_once_into_what_was_given(words: list[str], name: str, value: object) -> None:
    assert given("run", ["digits", *words], RunCommand, RunConfig) == ({"source": "digits", name: value}, "")


def test_a_source_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from imbdiff.data import sources

    opened, load = [], sources.load
    monkeypatch.setattr(sources, "load", lambda *a, **k: opened.append(a) or load(*a, **k))
    source = write_tree(tmp_path / "images", {"cat": 30, "dog": 9})
    assert main(["run", str(source), "--dry-run", "--classify.steps", "20", "--train.batch_size", "8"]) == 0
    assert len(opened) == 1


def test_version_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("imbdiff 0.")
    assert main([]) == 2


def test_methods_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    text = capsys.readouterr().out
    assert "cbdm" in text
    assert "unet-32" in text
    assert main(["methods", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["methods"]["cbdm"]["cost"] == 2
    assert main(["doctor"]) == 0
    assert "a training step on a small model: right" in capsys.readouterr().out


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "images", {"cat": 30, "dog": 9})
    before = snapshot(tmp_path)
    assert main(["run", "images", "--dry-run", "--classify.batch-size", "8", "--sample.batch-size", "8"]) == 0
    text = capsys.readouterr().out
    assert "cat 22+22, dog 7+22" in text
    assert "parameters" in text
    assert "memory" in text
    assert "in all" in text
    assert snapshot(tmp_path) == before


def test_yaml_and_options_on_top(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("preset: demo\nsample: {strategy: equal=0.5}\ntrain: {lr: 1e-3, images: 64}\n")
    assert main(["run", "digits", "--config", str(file), "--dry-run", "--train.images", "128"]) == 0
    text = capsys.readouterr().out
    assert "9 2+55" in text
    assert "0 110+55" in text
    assert "128 images in batches" in text
    file.write_text("trian: {lr: 1}")
    assert "unknown option trian" in fails(capsys, "run", "digits", "--config", str(file))
    file.write_text("- a\n- b")
    assert "must hold a mapping" in fails(capsys, "run", "digits", "--config", str(file))
    assert "does not exist" in fails(capsys, "run", "digits", "--config", str(tmp_path / "no.yaml"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu", "digits"], "unknown verb 'rnu' -> did you mean run?"),
        (["run", "digits", "--preset", "dmeo"], "unknown preset 'dmeo'"),
        (["run", "digits", "--method", "cbmd"], "unknown name 'cbmd' among the methods -> did you mean cbdm?"),
        (["run", "digits", "--train.lrr", "1"], "--train.lr"),
        (["run", "digits", "--train.images", "many"], "--train.images"),
        (["run", "digits", "--train.images", "-5"], "train.images=-5"),
        (["run", "digits", "--model.backbone", "vgg"], "unknown name 'vgg' among the backbones"),
        (["run", "digits", "--device", "cuda:9"], "--device"),
        (["run", "digits", "--sample.strategy", "most"], "sampling strategy 'most' is not understood"),
        (["run", "digits", "--classify.network", "vgg"], "vgg"),
        (["run", "digits", "--sample.sampler", "euler"], "euler"),
        (["run", "nowhere"], "nowhere"),
        (["run", "digits", "--no-config"], "no option --no_config"),
        (["run"], "required"),
        (["sample", "nowhere"], "not a run folder"),
        (["report", "nowhere"], "not a run folder"),
        (["compare", "nowhere"], "at least two"),
        (["run", "digits", "--method", "cbdm-finetune"], "--model.init"),
        (["run", "digits", "--model.init", "nowhere"], "holds no model"),
    ],
)
def test_bad_options(arguments: list[str], expected: str, capsys, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert expected in fails(capsys, *arguments)
    assert snapshot(tmp_path) == {}, "nothing may be written before the options are known to be good"


def test_bad_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    began = time.perf_counter()
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(capsys, "run", "empty")

    write_tree(tmp_path / "one", {"cat": 10})
    assert "class" in fails(capsys, "run", "one")

    damaged = write_tree(tmp_path / "damaged", {"cat": 10, "dog": 10})
    (damaged / "cat" / "3.png").write_bytes(b"")
    (damaged / "dog" / "4.png").write_bytes(b"not an image")
    cut = (damaged / "dog" / "5.png").read_bytes()
    (damaged / "dog" / "5.png").write_bytes(cut[: len(cut) // 2])
    text = fails(capsys, "run", "damaged")
    assert all(name in text for name in ("cat/3.png", "dog/4.png", "dog/5.png"))

    np.savez(tmp_path / "labels.npz", x_train=np.zeros((4, 8, 8), np.uint8), y_train=np.array([0, 1, 1, -2]))
    assert "label" in fails(capsys, "run", "labels.npz")
    assert not (tmp_path / "runs").exists()
    assert time.perf_counter() - began < 20


def test_odd_class_names_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["<script>alert(1)</script>".replace("/", "∕"), "n" * 200, "Größe 大小", "x..", "a b&c"]
    counts = dict(zip(names, (12, 10, 9, 8, 8), strict=True))
    write_tree(tmp_path / "images", counts)
    options = [a for a in small_arguments() if a not in ("--data.imbalance_factor", "20")]
    assert main(["run", "images", "--out", "run", *options, "--sample.strategy", "auto", "--quiet"]) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<script>alert" not in page
    assert "Größe" in page
    drawn = {p.relative_to(tmp_path / "run" / "samples").parts for p in (tmp_path / "run" / "samples").rglob("*.png")}
    assert all(len(parts) == 2 and len(parts[0].encode()) < 256 for parts in drawn)
    manifest = json.loads((tmp_path / "run" / "samples" / "manifest.json").read_text())
    assert set(manifest["class_names"]) == set(names)


def test_class_names_that_are_paths_stay_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = np.array(["../x", "a/b", "/etc/passwd", "CON", "a\\b"])
    labels = np.repeat(np.arange(5), (12, 9, 8, 8, 8))
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x_train=images, y_train=labels, class_names=names)
    options = [a for a in small_arguments() if a not in ("--data.imbalance_factor", "20")]
    verb = ["train", "images.npz", "--out", "deep/run", *options, "--sample.strategy", "auto", "--quiet"]
    assert main(verb) == 0
    assert main(["sample", "deep/run", "--quiet"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"images.npz", "deep"}
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"run"}
    drawn = list((tmp_path / "deep" / "run" / "samples").rglob("*.png"))
    assert len(drawn) == 3 + 4 + 4 + 4
    assert len({p.parent.name for p in drawn}) == 4
