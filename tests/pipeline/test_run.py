"""The run folder: what it holds, what is skipped, what is refused, and that a killed run ends the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import imbdiff
from imbdiff.config import RunConfig, override
from imbdiff.methods import with_all_constants
from imbdiff.pipeline import sampling as samples
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.run import Run, open_run, run
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import sha256_file
from tests.pipeline.conftest import write_tree


def files(folder: Path, *patterns: str) -> dict[str, str]:
    """Hashes of what a run is worth: weights and images."""
    found = [p for pattern in (patterns or ("model/*", "samples/**/*.png")) for p in sorted(folder.glob(pattern))]
    found = [p for p in found if p.is_file()]
    return {str(p.relative_to(folder)): sha256_file(p) for p in found}


def test_a_run_leaves_everything_that_it_says(finished: tuple[Path, RunConfig]) -> None:
    folder, _ = finished
    names = {p.name for p in folder.iterdir()}
    assert {
        "config.yaml", "environment.json", "split.json", "log.jsonl", "checkpoints", "model", "samples", "metrics.json",
        "classifier", "report.html", "stages.json",
    } <= names  # fmt: skip
    assert not list(folder.rglob("*.partial"))
    manifest = json.loads((folder / "samples" / "manifest.json").read_text())
    assert len(manifest["images"]) == sum(manifest["counts"]) == len(list((folder / "samples").rglob("*.png")))
    assert manifest["counts"][0] == 0
    assert manifest["counts"][-1] > 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert all("n_synthetic" in row and "reference" in row for row in metrics["numbers"])
    assert not any(row["is_fid"] for row in metrics["numbers"])
    results = json.loads((folder / "classifier" / "results.json").read_text())
    assert len(results["arms"]) == 5
    assert results["verdict"]["sentence"] in (folder / "report.html").read_text().replace("&#34;", '"')


def test_the_same_command_again_does_nothing_and_changes_nothing(
    finished: tuple[Path, RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = finished
    before = files(folder, "model/*", "samples/**/*", "metrics.json", "classifier/*", "log.jsonl", "stages.json")
    run("digits", folder, config)
    assert (
        files(folder, "model/*", "samples/**/*", "metrics.json", "classifier/*", "log.jsonl", "stages.json") == before
    )
    out = capsys.readouterr().out
    assert [f"{stage}: done before, skipped" in out for stage in ("train", "sample", "evaluate", "classify")] == [
        True
    ] * 4


def test_a_lost_image_is_drawn_again_and_is_the_same(finished: tuple[Path, RunConfig]) -> None:
    folder, config = finished
    before = files(folder, "samples/**/*")
    victim = next(iter(sorted((folder / "samples").rglob("*.png"))))
    victim.unlink()
    (folder / "stages.json").write_text(
        json.dumps({k: v for k, v in json.loads((folder / "stages.json").read_text()).items() if k != "sample"})
    )
    run("digits", folder, config, wanted=("sample",), quiet=True, replace=True)
    assert files(folder, "samples/**/*") == before


def test_an_altered_image_is_noticed(finished: tuple[Path, RunConfig]) -> None:
    folder, config = finished
    victim = next(iter(sorted((folder / "samples").rglob("*.png"))))
    original = victim.read_bytes()
    victim.write_bytes(samples.encode_png(np.zeros((8, 8, 1), np.uint8)))
    with pytest.raises(RunError, match="was altered since it was generated"):
        run("digits", folder, config, wanted=("report",), quiet=True, replace=True)
    victim.write_bytes(original)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train.lr": 0.5}, r"--train.lr: 0.001 there, 0.5 here"),
        ({"method": "cbdm"}, r"--method: 'ddpm-brs' there, 'cbdm' here"),
        ({"seed": 7}, "--seed: 0 there, 7 here"),
        ({"data.imbalance_factor": 10.0}, "--data.imbalance_factor: 20"),
    ],
)
def test_a_run_with_other_options_is_refused_and_untouched(
    finished: tuple[Path, RunConfig], change: dict, message: str
) -> None:
    folder, config = finished
    before = files(folder, "**/*.json", "config.yaml", "model/*", "samples/**/*.png")
    with pytest.raises(RunError, match=message):
        run("digits", folder, override(config, change), quiet=True, replace=True)
    assert files(folder, "**/*.json", "config.yaml", "model/*", "samples/**/*.png") == before


def test_a_run_folder_of_other_data_is_refused_and_untouched(finished: tuple[Path, RunConfig], tmp_path: Path) -> None:
    folder, config = finished
    source = write_tree(tmp_path / "images", {"a": 40, "b": 40})
    before = files(folder, "**/*.json", "config.yaml", "model/*", "samples/**/*.png")
    with pytest.raises(RunError, match="is of other data"):
        run(source, folder, config, quiet=True, replace=True)
    assert files(folder, "**/*.json", "config.yaml", "model/*", "samples/**/*.png") == before


def test_a_folder_with_other_content_is_refused_and_untouched(tmp_path: Path, config: RunConfig) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"other files.*thesis.tex"):
        run("digits", tmp_path, config, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_sampling_options_draw_anew_in_the_same_run(finished: tuple[Path, RunConfig], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    run(
        "digits",
        copy,
        override(finished[1], {"sample.guidance.omega": 2.0}),
        wanted=("sample",),
        quiet=True,
        replace=True,
    )
    assert files(copy, "model/*") == files(finished[0], "model/*")
    assert files(copy, "samples/**/*.png") != files(finished[0], "samples/**/*.png")


def test_two_commands_at_once_on_one_folder_are_refused(tmp_path: Path, config: RunConfig) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(RunError, match="another imbdiff command"):
        Run(folder, "digits", config, quiet=True).execute(("train",))


def test_a_full_disk_while_saving_is_an_error_with_a_remedy(
    tmp_path: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import safetensors.torch

    real = safetensors.torch.save_file
    calls = []

    def full(tensors, path, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(path)
        if len(calls) == 4:  # the first is the weak model
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(tensors, path, *args, **kwargs)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(RunError, match="no space left") as error:
        run("digits", tmp_path / "run", config, wanted=("train",), quiet=True)
    assert "repeat the same command" in error.value.remedy
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints" / "target").iterdir())
    assert kept == ["ckpt-000000000048", "ckpt-000000000096"]
    monkeypatch.undo()
    run("digits", tmp_path / "run", config, wanted=("train",), quiet=True)
    run("digits", tmp_path / "other", config, wanted=("train",), quiet=True)
    assert files(tmp_path / "run", "model/*") == files(tmp_path / "other", "model/*")


def test_continuing_from_a_saved_model_and_refusing_one_that_does_not_fit(
    finished: tuple[Path, RunConfig], tmp_path: Path
) -> None:
    start = override(finished[1], {"model.init": str(finished[0]), "method": "cbdm-finetune", "train.images": 32})
    run("digits", tmp_path / "tuned", start, wanted=("train",), quiet=True)
    assert files(tmp_path / "tuned", "model/*") != files(finished[0], "model/*")
    with pytest.raises(RunError, match="its process is"):
        run("digits", tmp_path / "b", override(start, {"model.process": "flow"}), wanted=("train",), quiet=True)
    source = write_tree(tmp_path / "images", {"a": 40, "b": 20})
    with pytest.raises(RunError, match="10 classes are not these 2"):
        run(source, tmp_path / "c", override(start, {"data.imbalance_factor": None}), wanted=("train",), quiet=True)


def test_a_finished_run_can_be_opened_from_python(finished: tuple[Path, RunConfig]) -> None:
    opened, prepared = open_run(finished[0])
    decided = {"size": 8, "resize": "crop", "channels": "grey", "augment": "none"}
    assert opened.config == override(with_all_constants(finished[1]), {"data": decided, "codec.kind": "identity"})
    synthetic = opened.synthetic(prepared)
    assert synthetic is not None
    assert synthetic.shape == (8, 8, 1)
    model = imbdiff.load_model(finished[0] / "model")
    again = imbdiff.generate(model, [3, 9], [1, 2], steps=3, batch_size=4)
    assert again.shape == (2, 8, 8, 1)


def test_killed_at_random_moments_it_ends_with_the_same_bits(
    finished: tuple[Path, RunConfig], tmp_path: Path, arguments: list[str]
) -> None:
    """The short form of benchmarks/kill.py, which kills twenty times."""
    folder = tmp_path / "killed"
    line = [sys.executable, "-m", "imbdiff", "run", "digits", "--out", str(folder), *arguments]
    chance = random.Random(4)
    kills = 0
    for wait in (0.02, 0.25, None):
        child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if wait is None:
            assert child.wait(timeout=240) == 0
            break
        target = (folder / "checkpoints") if kills == 0 else (folder / "samples")
        limit = time.monotonic() + 120
        while child.poll() is None and not target.exists() and time.monotonic() < limit:
            time.sleep(0.005)  # into training the first time, into sampling the second
        time.sleep(wait * chance.random())
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            kills += 1
        child.wait()
    assert kills >= 1
    assert files(folder) == files(finished[0])
