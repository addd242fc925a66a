"""What is finished stays: more images go beside a run, other options replace results only where that is asked for."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from imbdiff.cli import main
from imbdiff.config import RunConfig, override
from imbdiff.data.sources import load
from imbdiff.pipeline import training
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.run import open_run, run
from imbdiff.runtime.errors import RunError
from tests.pipeline.conftest import small_arguments, write_tree

Finished = tuple[Path, RunConfig]
#: the command, which fails where something heavy was loaded for it
LIGHT = (
    "import sys; from imbdiff.cli import main; code = main(sys.argv[1:]); "
    "assert 'torch' not in sys.modules; sys.exit(code)"
)


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, but for its lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def images(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in content(folder).items() if name.endswith(".png")}


def test_more_images_go_beside_the_run_and_continue_its_numbers(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = finished
    before, out = content(folder), tmp_path / "more"
    have = json.loads((folder / "samples" / "manifest.json").read_text())["counts"]
    command = ["sample", str(folder), "--out", str(out), "--number"]
    assert main([*command, "7=3", "2=1"]) == 0
    assert "-more" not in capsys.readouterr().err
    first = images(out)
    assert sorted(first) == [f"2/{have[2]:06d}.png", *(f"7/{have[7] + i:06d}.png" for i in range(3))]
    assert not set(first.values()) & set(images(folder / "samples").values())
    assert main([*command, "7=5"]) == 0  # what is there stays, with what was asked for before
    assert first.items() <= images(out).items()
    assert len(images(out)) == 6
    again = content(out)
    assert main([*command, "7=4"]) == 0  # nothing is taken away
    assert content(out) == again
    assert content(folder) == before
    # each image depends on class, number and seed alone: the same as in one larger run
    larger = override(config, {"sample.strategy": "equal=0.5"})
    whole = tmp_path / "whole"
    run("digits", whole, larger, wanted=("train",), quiet=True)
    assert main(["sample", str(whole), "--out", str(tmp_path / "all"), "--quiet"]) == 0
    assert images(out).items() <= images(tmp_path / "all").items()
    # it is a source like any other
    source = load(out, strict=False)
    assert {"7", "2"} <= set(source.class_names)


def test_one_number_for_all_classes_and_other_options_of_sampling(finished: Finished, tmp_path: Path) -> None:
    folder, _ = finished
    before, out = content(folder), tmp_path / "guided"
    assert main(["sample", str(folder), "--number", "2", "--out", str(out), "--sample.guidance.omega", "3"]) == 0
    assert len(images(out)) == 20
    assert content(folder) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--number", "sevn=3"], "unknown class 'sevn'"),
        (["--number", "7=many"], "'many' is no number"),
        (["--number", "7=0"], "'0' is no number"),
        (["--number", "7=1.5"], "'1.5' is no number"),
    ],
)
def test_numbers_that_make_no_sense(
    words: list[str], said: str, finished_once: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sample", str(finished_once[0]), *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_without_a_folder_of_their_own_the_remedy_works(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(finished[0]), "--number", "3=1"]) == 2
    remedy = re.search(r"--out \S+", capsys.readouterr().err)
    assert remedy is not None
    assert main(["sample", str(finished[0]), "--number", "3=1", *remedy[0].split()]) == 0
    assert len(images(tmp_path / remedy[0].split()[1])) == 1


def test_a_folder_with_other_images_is_refused_and_replaced_where_asked(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "more"
    command = ["sample", str(finished[0]), "--out", str(out), "--number", "3=2"]
    assert main(command) == 0
    before = content(out)
    other = [*command, "--sample.guidance.omega", "2.5"]
    assert main(other) == 2
    assert "--replace" in capsys.readouterr().err
    assert content(out) == before
    assert main([*other, "--replace"]) == 0
    assert set(images(out)) == {name for name in before if name.endswith(".png")}
    assert images(out) != {k: v for k, v in before.items() if k.endswith(".png")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert main(["sample", str(finished[0]), "--number", "3=2", "--out", str(tmp_path / "mine"), "--replace"]) == 2
    assert content(tmp_path / "mine") == {"notes.txt": hashlib.sha256(b"mine").hexdigest()}


@pytest.mark.parametrize(
    ("verb", "options", "lost"),
    [
        ("sample", ["--sample.strategy", "7=150"], "sample, evaluate, classify"),
        ("sample", ["--sample.steps", "4"], "sample, evaluate, classify"),
        ("curate", ["--curate.policy", "no-copies"], "evaluate, classify"),
        ("evaluate", ["--evaluate.no-cas"], "evaluate"),
        ("classify", ["--classify.steps", "7"], "classify"),
        ("run", ["--classify.steps", "7"], "evaluate"),  # which trains classifiers too
        ("run", ["--sample.strategy", "0.1"], "sample, evaluate, classify"),
    ],
)
def test_results_are_replaced_only_where_that_is_asked_for(
    verb: str, options: list[str], lost: str, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    before = {k: v for k, v in content(folder).items() if k != "report.html"}
    command = ["run", "digits", *small_arguments(), "--out", str(folder)] if verb == "run" else [verb, str(folder)]
    assert main([*command, *options, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert f"would replace: {lost}\n" in said
    assert "--replace" in said
    assert {k: v for k, v in content(folder).items() if k != "report.html"} == before
    if verb == "classify":
        assert main([*command, *options, "--quiet", "--replace"]) == 0
        assert RunFolder(folder).saved()[1].classify.steps == 7


MEASURE = ("--extractor", "raw-pixels", "--quiet", "--out", "folder")


@pytest.mark.parametrize(
    ("command", "others"),
    [
        (["evaluate", "one", "--reference", "two"], ["evaluate", "two", "--reference", "one"]),
        (["reference", "one"], ["reference", "two"]),
    ],
)
def test_numbers_and_features_of_other_images_are_replaced_only_where_that_is_asked_for(
    command: list[str], others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    digits = np.asarray(load("digits").read().images)[..., 0]
    for i, x in enumerate(digits[:16]):
        place = tmp_path / ("one" if i < 8 else "two") / "xy"[i % 2] / f"{i % 8}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(place)
    folder = tmp_path / "folder"
    for _ in range(2):  # the same again is no loss
        assert main([*command, *MEASURE]) == 0
    before = content(folder)
    capsys.readouterr()
    assert main([*others, *MEASURE]) == 2
    assert "--replace" in capsys.readouterr().err
    assert content(folder) == before
    assert main([*others, *MEASURE, "--replace"]) == 0
    assert content(folder) != before
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "report.html").write_text("mine")
    assert main([*command, *MEASURE, "--replace"]) == 2
    assert content(folder) == {"report.html": hashlib.sha256(b"mine").hexdigest()}


def test_lost_images_that_are_made_again_as_they_were_cost_no_result(finished: Finished) -> None:
    folder, _ = finished
    before = content(folder)
    next((folder / "samples").rglob("*.png")).unlink()
    assert main(["sample", str(folder), "--quiet"]) == 0
    assert {"evaluate", "classify"} <= set(RunFolder(folder).stages())
    after = content(folder)
    for name in ("report.html", "stages.json"):
        del before[name], after[name]
    assert after == before


def test_all_checkpoints_are_kept_where_asked_and_each_can_be_sampled_from(
    tmp_path: Path, config: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run("digits", folder, override(config, {"train.keep_checkpoints": True}), wanted=("train",), quiet=True)
    kept = sorted((folder / "checkpoints").glob("*/ckpt-*"))
    assert len(kept) == 4
    found = {}
    for images_seen in (48, 192, None):
        chosen = [] if images_seen is None else ["--checkpoint", str(images_seen)]
        out = tmp_path / f"at-{images_seen}"
        assert main(["sample", str(folder), "--out", str(out), "--number", "3=2", *chosen]) == 0
        found[images_seen] = images(out)
    assert found[192] == found[None]  # the last one is the model
    assert found[48] != found[None]
    capsys.readouterr()
    assert main(["sample", str(folder), "--out", str(tmp_path / "x"), "--checkpoint", "50"]) == 2
    assert "48, 96, 144, 192" in capsys.readouterr().err


def test_a_folder_in_use_is_refused_before_anything_is_loaded(finished: Finished, tmp_path: Path) -> None:
    folder, _ = finished
    new = tmp_path / "new"
    new.mkdir()
    for command in (["report", str(folder)], ["sample", str(folder)], ["run", "digits", "--out", str(new)],
                    ["run", "digits", *small_arguments(), "--out", str(folder)]):  # fmt: skip
        with FileLock(Path(command[-1] if command[0] == "run" else folder) / ".lock"):
            done = subprocess.run([sys.executable, "-c", LIGHT, *command], capture_output=True, text=True)
        assert "another imbdiff command is working" in done.stderr
        assert done.returncode == 2


@pytest.mark.parametrize("name", ["sevn", "Cat", "cta", "dgo"])
def test_an_unknown_class_is_said_before_any_image_is_read(name: str, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "set", {"cat": 20, "dog": 9})
    (source / "cat" / "0.png").write_bytes(b"damaged")  # reading would find it
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, "run", str(source), "--out", str(out), "--sample.strategy", f"{name}=40"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"unknown class {name!r}" in done.stderr
    nearest = {"Cat": "cat", "cta": "cat", "dgo": "dog"}.get(name)
    assert f"did you mean {nearest}?" in done.stderr if nearest else "'cat', 'dog'" in done.stderr
    assert not out.exists()  # nor is a folder left


def test_later_verbs_do_not_decode_the_source_again(tmp_path: Path, config: RunConfig, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    source = write_tree(tmp_path / "set", {"cat": 30, "dog": 20})
    for path in sorted((source / "dog").iterdir())[:2]:  # copies, so that there is something to note
        (source / "dog" / f"again-{path.name}").write_bytes(path.read_bytes())
    plain, folder = override(config, {"data.imbalance_factor": None, "train.images": 32}), tmp_path / "run"
    run(str(source), folder, plain, wanted=("train",))
    assert "data: " in capsys.readouterr().out
    _, prepared = open_run(folder)
    monkeypatch.setattr(training, "prepare_data", lambda *_, **__: pytest.fail("the source was decoded again"))
    _, again = open_run(folder)
    assert again.manifest == prepared.manifest
    assert again.warnings == prepared.warnings
    for split in ("train", "val", "test"):
        one, other = getattr(prepared, split), getattr(again, split)
        assert one.ids == other.ids
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert main(["report", str(folder)]) == 0
    assert "note:" not in capsys.readouterr().out  # it was said when the run began
    # files that changed are seen: here the run is refused, as of other data
    monkeypatch.undo()
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(source / "cat" / "3.png")
    with pytest.raises(RunError, match="of other data"):
        open_run(folder)


def test_a_run_decides_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for k, (name, n) in enumerate({"a b": 24, "c": 9}.items()):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(n):
            grey = generator.integers(40 * k, 200, (9 + i % 3, 20)).astype(np.uint8)
            Image.fromarray(grey).convert("RGB").save(tmp_path / "set" / name / f"{i}.png")
    small = ["--train.images", "32", "--train.batch_size", "16", "--train.preview_images", "0", "--device", "cpu"]
    assert main(["train", "set", *small]) == 0
    said = capsys.readouterr().out
    (folder,) = (tmp_path / "runs").iterdir()
    data = RunFolder(folder).saved()[1].data
    assert (data.size, data.resize, data.channels, data.augment) == (8, "pad", "grey", "none")
    for option in ("size", "resize", "channels", "augment"):
        assert f"--data.{option}" in said
    before = content(folder)
    assert main(["train", "set", *small]) == 0  # the same command again
    assert main(["train", "set", *small, "--size", "8", "--resize", "pad", "--channels", "grey"]) == 0
    assert {k: v for k, v in content(folder).items() if k != "stages.json"} == {
        k: v for k, v in before.items() if k != "stages.json"
    }
    assert main(["train", "set", *small, "--size", "8x16"]) == 2
    assert "'8x16' here" in capsys.readouterr().err
    # the commands that are printed make the same run
    assert main(["inspect", "set"]) == 0
    printed = re.search(r"^next: imbdiff run (.*)$", capsys.readouterr().out, re.M)
    assert printed is not None
    assert main(["train", *shlex.split(printed[1]), *small]) == 0
    assert main(["train", "set", *small, "--size", "8x16", "--out", "wide"]) == 0
    assert RunFolder(Path("wide")).saved()[1].data.size == "8x16"
    assert json.loads(Path("wide/split.json").read_text())["shape"] == [8, 16, 1]
