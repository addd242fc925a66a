"""What belongs together stays together: stages that are redone, outputs that are lost, options that were never used."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from imbdiff.cli import main
from imbdiff.config import RunConfig, override
from imbdiff.methods import with_all_constants
from imbdiff.pipeline import recognising
from imbdiff.pipeline import sampling as samples
from imbdiff.pipeline.folder import RunFolder, repeat_command
from imbdiff.pipeline.run import open_run, run
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.errors import ConfigError, DataError, RunError
from imbdiff.training.parts import Part
from tests.pipeline.conftest import write_tree
from tests.pipeline.test_run import files
from tests.test_cli import fails


@pytest.fixture
def copy(finished: tuple[Path, RunConfig], tmp_path: Path) -> tuple[Path, RunConfig]:
    shutil.copytree(finished[0], tmp_path / "copy")
    return tmp_path / "copy", finished[1]


class KilledError(Exception):
    pass


def test_a_killed_resampling_is_made_good_by_either_command(copy, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder, config = copy
    original = files(folder, "samples/**/*")
    real = samples.generate_batches

    def dies(*arguments, **options):  # type: ignore[no-untyped-def]
        for i, batch in enumerate(real(*arguments, **options)):
            if i == 1:
                raise KilledError
            yield batch

    other = override(config, {"sample.guidance.omega": 3.0})
    monkeypatch.setattr(samples, "generate_batches", dies)
    with pytest.raises(KilledError):
        run("digits", folder, other, wanted=("sample",), quiet=True, replace=True)
    monkeypatch.undo()
    run("digits", folder, config, wanted=("sample",), quiet=True, replace=True)
    assert files(folder, "samples/**/*") == original
    assert not list(folder.glob(".*.old"))


def test_a_page_never_shows_old_numbers_beside_new_images(copy) -> None:  # type: ignore[no-untyped-def]
    folder, config = copy
    opened, prepared = open_run(folder)
    before = opened.report_data(prepared)
    assert before.metrics is not None
    assert before.classifier is not None
    run(
        "digits",
        folder,
        override(config, {"sample.guidance.omega": 3.0}),
        wanted=("sample", "report"),
        quiet=True,
        replace=True,
    )
    opened, prepared = open_run(folder)
    after = opened.report_data(prepared)
    assert after.metrics is None
    assert after.classifier is None
    assert after.memorisation is None
    assert "classifier-free 3.0" in after.protocol["Sampler"]
    assert "--sample.guidance.omega 3.0" in after.command


@pytest.mark.parametrize(
    ("lost", "wanted"),
    [
        ("model/model.safetensors", ("train",)),
        ("metrics.json", ("evaluate",)),
        ("classifier/results.json", ("classify",)),
        ("samples/manifest.json", ("sample",)),
    ],
)
def test_a_lost_output_is_made_again(copy, lost: str, wanted: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    folder, config = copy
    content = (folder / lost).read_bytes()
    (folder / lost).unlink()
    run("digits", folder, config, wanted=wanted, quiet=True, replace=True)
    assert (folder / lost).read_bytes() == content


def test_an_image_without_its_bytes_is_drawn_again(copy) -> None:  # type: ignore[no-untyped-def]
    folder, config = copy
    original = files(folder, "samples/**/*")
    (folder / "samples" / "manifest.json").unlink()
    next(iter(sorted((folder / "samples").rglob("*.png")))).write_bytes(b"")
    run("digits", folder, config, wanted=("sample",), quiet=True, replace=True)
    assert files(folder, "samples/**/*") == original


def test_debris_of_killed_commands_is_swept(copy) -> None:  # type: ignore[no-untyped-def]
    folder, config = copy
    (folder / "samples" / ".x.png.77.partial").write_bytes(b"half")
    (folder / "checkpoints" / "target" / ".ckpt-1.77.partial").mkdir()
    run("digits", folder, config, wanted=("report",), quiet=True, replace=True)
    assert not list(folder.rglob("*.partial"))


def test_a_verb_takes_the_options_of_its_stage_only(copy, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    folder, _ = copy
    before = files(folder, "*")
    assert main(["report", str(folder), "--sample.guidance.omega", "9"]) == 2
    assert "--sample.guidance.omega" in capsys.readouterr().err
    assert main(["sample", "--replace", str(folder), "--train.images", "5"]) == 2
    assert files(folder, "*") == before
    assert main(["sample", "--replace", "--sample.guidance.omega", "2", str(folder), "--quiet"]) == 0, (
        "options may stand before the folder"
    )


def state(folder: Path) -> dict[str, str]:
    return files(folder, "*.yaml", "*.json", "model/*", "samples/**/*", "classifier/*")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classify.protocol", "cifar-lt"], "1 channels cannot be standardised by 3 means"),
        (["--classify.synthetic-share", "0.01"], "synthetic share of 0.01"),
    ],
)
def test_a_refused_option_writes_and_forgets_nothing(
    copy, options: list[str], message: str, capsys, monkeypatch
) -> None:  # type: ignore[no-untyped-def]
    folder, _ = copy
    before, config = state(folder), (folder / "config.yaml").stat()
    assert main(["classify", "--replace", str(folder), *options]) == 2
    assert message in capsys.readouterr().err
    assert state(folder) == before
    assert (folder / "config.yaml").stat().st_mtime_ns == config.st_mtime_ns
    run("digits", folder, RunFolder(folder).saved()[1], wanted=("classify",))
    assert "classify: done before, skipped" in capsys.readouterr().out


def test_options_that_do_not_fit_are_refused_before_a_run_begins(tmp_path: Path, arguments, capsys) -> None:  # type: ignore[no-untyped-def]
    line = ["run", "digits", "--out", str(tmp_path / "run"), *arguments, "--classify.protocol", "cifar-lt"]
    assert "cannot be standardised" in fails(capsys, *line)
    assert "cannot be standardised" in fails(capsys, *line, "--dry-run")
    assert not (tmp_path / "run").exists()


def refuses(*_: object, **__: object) -> None:
    raise DataError("such images are not compared")


def test_what_was_finished_before_a_refusal_stays_with_its_options(copy, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder, _ = copy
    config = RunFolder(folder).saved()[1]  # with what was decided by the images
    marks = RunFolder(folder).stages()
    changed = override(config, {"sample.guidance.omega": 3.0, "curate.candidates": 2.0, "classify.steps": 7})
    with pytest.raises(RunError, match="not been chosen among"):
        run("digits", folder, changed, wanted=("sample", "classify"), quiet=True, replace=True)
    kept = RunFolder(folder).stages()
    assert set(kept) == {"data", "train", "sample"}  # what was measured was of other images
    assert kept["train"] == marks["train"]
    assert kept["sample"]["inputs"] != marks["sample"]["inputs"]
    saved = RunFolder(folder).saved()[1]
    assert saved == with_all_constants(override(config, {"sample.guidance.omega": 3.0, "curate.candidates": 2.0}))
    # evaluation and comparison do not build on each other
    run("digits", folder, saved, wanted=("curate", "classify"), quiet=True, replace=True)
    marks = RunFolder(folder).stages()
    monkeypatch.setattr(recognising, "classify_run", refuses)
    changed = override(saved, {"evaluate.cas": False, "classify.steps": 7})
    with pytest.raises(DataError, match="are not compared"):
        run("digits", folder, changed, wanted=("evaluate", "classify"), quiet=True, replace=True)
    kept = RunFolder(folder).stages()
    assert {name: kept[name] for name in marks} == marks
    assert "evaluate" in kept
    assert RunFolder(folder).saved()[1] == override(saved, {"evaluate.cas": False})


def test_a_drawing_that_is_refused_on_its_way_is_not_finished(copy, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folder, _ = copy
    config = RunFolder(folder).saved()[1]  # with what was decided by the images
    original = files(folder, "samples/**/*")
    monkeypatch.setattr(samples, "generate_batches", refuses)
    with pytest.raises(DataError):
        run(
            "digits",
            folder,
            override(config, {"sample.guidance.omega": 3.0}),
            wanted=("sample",),
            quiet=True,
            replace=True,
        )
    monkeypatch.undo()
    assert set(RunFolder(folder).stages()) == {"data", "train"}
    assert RunFolder(folder).saved()[1] == with_all_constants(config)
    opened, prepared = open_run(folder)
    assert opened.report_data(prepared).metrics is None
    run("digits", folder, config, wanted=("sample",), quiet=True, replace=True)
    assert files(folder, "samples/**/*") == original


def test_images_of_another_run_are_refused(copy, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    folder, config = copy
    original = files(folder, "samples/**/*")
    other = override(config, {"seed": 1})
    run("digits", tmp_path / "other", other, wanted=("train", "sample"), quiet=True)
    shutil.rmtree(folder / "samples")
    shutil.copytree(tmp_path / "other" / "samples", folder / "samples")
    for verb in ("evaluate", "classify", "report"):
        assert main([verb, str(folder)]) == 2
        said = capsys.readouterr().err
        assert str(folder / "samples") in said
        assert f"run `imbdiff sample {folder}`" in said
        assert f"run `imbdiff sample {folder}`" in said
    run("digits", folder, config, wanted=("sample",), quiet=True, replace=True)
    assert files(folder, "samples/**/*") == original


def test_a_model_that_saw_the_test_images_is_no_start(finished, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = override(finished[1], {"data.split_seed": 1, "model.init": str(finished[0])})
    with pytest.raises(RunError, match="test images here"):
        run("digits", tmp_path / "run", other, wanted=("train",), quiet=True)
    assert not (tmp_path / "run").exists()
    shutil.copytree(finished[0] / "model", tmp_path / "unknown")
    (tmp_path / "unknown" / "trained_on.json").unlink()
    # a model of unknown history may be continued, and the page says so
    free = override(finished[1], {"model.init": str(tmp_path / "unknown"), "train.images": 32})
    run("digits", tmp_path / "free", free, wanted=("train", "report"), quiet=True)
    page = (tmp_path / "free" / "report.html").read_text()
    assert "may have seen test images" in page
    assert "is not known" in page
    known = override(finished[1], {"model.init": str(finished[0]), "train.images": 32})
    run("digits", tmp_path / "known", known, wanted=("train", "report"), quiet=True)
    assert "saw none of the test images" in (tmp_path / "known" / "report.html").read_text()


def test_a_run_folder_among_the_images_is_refused(tmp_path: Path, monkeypatch, capsys, config: RunConfig) -> None:  # type: ignore[no-untyped-def]
    photos = write_tree(tmp_path / "photos", {"a": 20, "b": 9})
    monkeypatch.chdir(photos)
    assert main(["run", "."]) == 2
    assert "inside the images" in capsys.readouterr().err
    assert sorted(p.name for p in photos.iterdir()) == ["a", "b"]


def test_a_run_can_be_continued_from_another_folder(tmp_path: Path, monkeypatch, config: RunConfig) -> None:  # type: ignore[no-untyped-def]
    write_tree(tmp_path / "images", {"a": 30, "b": 9})
    monkeypatch.chdir(tmp_path)
    plain = override(config, {"data.imbalance_factor": None, "sample.strategy": "auto"})
    run("images", "run", plain, wanted=("train",), quiet=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["sample", "--replace", "../run", "--quiet"]) == 0


def test_the_repeat_command_gives_the_same_configuration(finished, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shlex

    from imbdiff.running import read_run

    for more in (
        {},
        {"method": "cbdm", "method.tau": 0.3, "sample.guidance": "autoguidance", "sample.guidance.omega": 2},
    ):
        config = override(finished[1], {"sample.strategy": "1=99", **more})
        line = shlex.split(repeat_command("digits", tmp_path / "x y", config))
        asked = read_run("run", line[2:])
        parsed, options = asked.command, asked.first
        assert with_all_constants(options) == with_all_constants(config)
        assert options.constants == config.constants
    assert parsed.out == str(tmp_path / "x y")


def test_harmless_options_may_change_on_a_finished_run(copy) -> None:  # type: ignore[no-untyped-def]
    folder, config = copy
    weights = files(folder, "model/*")
    run("digits", folder, override(config, {"train.preview_images": 32}), quiet=True, replace=True)
    assert files(folder, "model/*") == weights


def test_checkpoints_that_cannot_be_read_just_now_are_left_alone(finished, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import imbdiff.runtime.checkpoint as module

    store = CheckpointStore(finished[0] / "checkpoints" / "target")
    before = store.paths()

    def too_many(path: Path) -> str:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module, "sha256_file", too_many)
    with pytest.raises(RunError, match="cannot be read"):
        store.latest()
    assert store.paths() == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "digits", "--device", "meta"], "not supported"),
        (["run", "digits", "--out", "file/sub"], "is a file"),
        (["run", "digits", "--config", "."], "cannot be read"),
        (["run", "digits", "--config", "list.yaml"], "data is a group of options"),
        (["run", "digits", "--data.split-seed", "-1"], "split_seed"),
        (["run", "digits", "--classify.batch-size", "1"], "classify.batch_size"),
        (["run", "digits", "--train.batch-size", "15", "--train.accumulate", "4"], "not a multiple"),
    ],
)
def test_more_bad_options(arguments, expected: str, tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "list.yaml").write_text("data: [1]\n")
    assert expected in fails(capsys, *arguments)
    assert sorted(os.listdir(tmp_path)) == ["file", "list.yaml"]


def test_a_batch_that_two_processes_cannot_share_is_refused_beforehand() -> None:
    Part().check(16, 2, 4)
    with pytest.raises(ConfigError, match="2 processes x 1"):
        Part().check(15, 2, 1)


def test_a_dry_run_of_the_ancestral_sampler(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--preset tiny --dry-run --sample.sampler ddpm --sample.steps 20 --sample.batch-size 4"
    assert main(["run", "digits", *options.split()]) == 0
    assert "ddpm, 20 steps" in capsys.readouterr().out


def test_what_each_stage_was_done_with_is_kept(finished) -> None:  # type: ignore[no-untyped-def]
    known = json.loads((finished[0] / "environment.json").read_text())
    assert set(known["stages"]) == {"train", "sample", "evaluate", "classify"}
    assert known["packages"]["torch"]
    assert RunFolder(finished[0]).stages()["train"]["seconds"] > 0


def test_other_weights_at_the_same_path_are_another_evaluation(tmp_path: Path, config: RunConfig) -> None:
    from imbdiff.pipeline.evaluation import evaluation_inputs
    from imbdiff.pipeline.training import prepare_data

    prepared = prepare_data("digits", config.data)
    weights = tmp_path / "weights.pth"
    asked = override(config, {"evaluate.inception_weights": str(weights)})
    hashes = []
    for content in (b"one", b"two", b"two"):
        weights.write_bytes(content)
        hashes.append(evaluation_inputs(prepared, prepared.train, asked))
    assert hashes[0] != hashes[1] == hashes[2]
