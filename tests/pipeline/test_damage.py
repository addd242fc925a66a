"""Files of a run that are damaged or of another run: noticed and named, or made again as they were; never shown."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from imbdiff.cli import main
from imbdiff.config import RunConfig, override
from imbdiff.pipeline.folder import RunFolder
from imbdiff.pipeline.run import run
from imbdiff.runtime.errors import RunError
from tests.pipeline.conftest import small_arguments
from tests.pipeline.test_nothing_is_lost import content

Finished = tuple[Path, RunConfig]
RUN = ["run", "digits", *small_arguments()]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, finished_once: Finished) -> Path:
    """The same run with another seed."""
    folder = tmp_path_factory.mktemp("other") / "small"
    run("digits", folder, override(finished_once[1], {"seed": 1}), quiet=True)
    return folder


def flipped(path: Path, other: Path) -> None:
    """A digit is another one; of binary files a byte in the middle."""
    data = path.read_bytes()
    digits = [found.start() for found in re.finditer(rb"[0-9]", data)] if path.suffix in (".json", ".jsonl") else []
    at = digits[len(digits) // 2] if digits else len(data) // 2
    new = b"%d" % ((data[at] - 47) % 10) if digits else bytes([data[at] ^ 64])
    path.write_bytes(data[:at] + new + data[at + 1 :])


def foreign(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def null(path: Path, other: Path) -> None:
    path.write_text("null")


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SHOWN = ["metrics.json", "classifier/results.json", "log.jsonl", "samples/manifest.json", "model/model.json"]


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_stage_left_is_refused_on_the_page_and_made_again(
    name: str, finished: Finished, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    before, whole = content(folder), (folder / name).read_bytes()
    for damage in (foreign, null, cut, lambda path, _: path.unlink(), flipped):
        (folder / name).write_bytes(whole)
        damage(folder / name, other / name)
        if damage != foreign or (other / name).read_bytes() != whole:
            with pytest.raises(RunError, match=re.escape(str(folder / name))):
                RunFolder(folder).check_whole()
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err
    assert str(folder / name) in said
    command = re.search(r"`(imbdiff .*)`", said)
    assert command is not None
    assert main([*shlex.split(command[1])[1:], "--quiet"]) == 0
    after = content(folder)
    changed = {file for file in before if before[file] != after.get(file)}
    assert changed <= {"report.html", "stages.json", "environment.json"}  # which have the seconds that it took


def test_weights_that_are_not_those_of_training_are_not_sampled_from(
    finished: Finished, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    before = content(folder)
    weights = "model/model.safetensors"
    shutil.copyfile(other / weights, folder / weights)
    more = ["--number", "3=1", "--out", str(tmp_path / "more")]
    new = ["train", "digits", "--model.init", str(folder), *small_arguments(), "--out", str(tmp_path / "new")]
    for words in (["sample", str(folder)], ["sample", str(folder), *more], ["study", str(folder), "--dry-run"], new):
        assert main(words) == 2, words
        assert str(folder / weights) in capsys.readouterr().err
    assert main([*RUN, "--out", str(folder), "--quiet"]) == 0
    assert content(folder)[weights] == before[weights]
    assert main(["sample", str(folder), *more, "--quiet"]) == 0


@pytest.mark.parametrize("name", ["stages.json", "environment.json", "split.json"])
def test_records_carry_a_checksum_and_the_remedy_works(
    name: str, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished
    before = content(folder)
    flipped(folder / name, folder)
    assert main(["report", str(folder)]) == 2
    assert str(folder / name) in capsys.readouterr().err
    (folder / name).unlink()
    assert main([*RUN, "--out", str(folder), "--quiet"]) == 0
    after = content(folder)
    for clocked in ("report.html", "stages.json", "environment.json"):
        del before[clocked], after[clocked]
    assert after == before


def test_a_mark_may_be_taken_out_by_hand(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    marks = finished[0] / "stages.json"
    marks.write_text(json.dumps({k: v for k, v in json.loads(marks.read_text()).items() if k != "evaluate"}))
    assert main(["evaluate", str(finished[0]), "--quiet"]) == 0
    assert '"evaluate"' in marks.read_text()


@pytest.mark.parametrize("text", ["", "[1]\n", "\0\xff\n", "foreign"])
def test_the_log_of_half_a_training_comes_back_with_its_checkpoint(
    text: str, tmp_path: Path, finished_once: Finished, other: Path
) -> None:
    folder, config = finished_once
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    shutil.rmtree(half / "model")
    (half / "stages.json").unlink()
    shutil.rmtree(sorted((half / "checkpoints" / "target").iterdir())[-1])
    (half / "log.jsonl").write_text((other / "log.jsonl").read_text() if text == "foreign" else text)
    run("digits", half, config, wanted=("train",), quiet=True)
    rows, known = ([json.loads(x) for x in (f / "log.jsonl").read_text().splitlines()] for f in (half, folder))
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in known]


def test_what_is_no_checkpoint_does_not_stop_a_training(tmp_path: Path, finished_once: Finished) -> None:
    folder, config = finished_once
    again = tmp_path / "again"
    store = again / "checkpoints" / "target"
    store.mkdir(parents=True)
    (store / "ckpt-999999999999").write_text("a file")
    (store / "ckpt-000000000096").write_text("a file where a checkpoint will be")
    (store / "ckpt-old").mkdir()
    shutil.copyfile(folder / "config.yaml", again / "config.yaml")
    run("digits", again, config, wanted=("train",), quiet=True)
    assert content(again)["model/model.safetensors"] == content(folder)["model/model.safetensors"]


@pytest.mark.parametrize("key", ["step", "identity", "images"])
def test_a_checkpoint_whose_facts_were_altered_is_not_used(key: str, tmp_path: Path, finished_once: Finished) -> None:
    folder, config = finished_once
    shutil.copytree(folder, tmp_path / "copy")
    newest = sorted((tmp_path / "copy" / "checkpoints" / "target").iterdir())[-1] / "meta.json"
    facts = json.loads(newest.read_text())
    newest.write_text(json.dumps({**facts, key: 1 if key != "identity" else "x"}))
    shutil.rmtree(tmp_path / "copy" / "model")
    run("digits", tmp_path / "copy", config, wanted=("train",), quiet=True)
    assert content(tmp_path / "copy")["model/model.safetensors"] == content(folder)["model/model.safetensors"]


def test_a_folder_where_a_file_belongs_is_named(finished: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = finished
    for name in ("metrics.json", "stages.json"):
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).mkdir()
        assert main(["report", str(folder)]) == 2
        said = capsys.readouterr().err
        assert name in said
        (folder / name).rmdir()
        (folder / name).write_bytes(kept)
    assert main(["report", str(folder), "--quiet"]) == 0
