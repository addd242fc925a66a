"""Trackers get the rows of the log, and progress is lines where there is no terminal."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

import accelerate.tracking
import pytest

import imbdiff
from imbdiff.config import override
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.log import LOCAL, JsonLog, Trackers, check_trackers, read_jsonl
from imbdiff.runtime.progress import SHORT, Progress
from tests.pipeline.conftest import SMALL


class Fake:
    requires_logging_directory = True
    made: ClassVar[list[Fake]] = []

    def __init__(self, title: str, logging_dir: Path) -> None:
        self.title, self.folder, self.rows, self.done = title, logging_dir, list[tuple[int, dict[str, Any]]](), False
        Fake.made.append(self)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.options = values

    def log(self, values: dict[str, Any], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.done = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    Fake.made.clear()
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "ours", Fake)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: ["ours"])
    return Fake


def test_a_tracker_gets_every_row_of_the_log_and_changes_nothing(fake: type[Fake], tmp_path: Path) -> None:
    data = imbdiff.prepare("digits", imbalance_factor=20)
    config = override(imbdiff.preset("tiny"), {**SMALL, "track": ["ours"]})
    imbdiff.train(data, config, tmp_path / "run", quiet=True)
    (tracker,) = fake.made
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [step for step, _ in tracker.rows] == [row["images"] for row in rows]
    assert [values["target/loss"] for _, values in tracker.rows] == [row["loss"] for row in rows]
    assert (tracker.title, tracker.folder, tracker.done) == ("run", tmp_path / "run" / "trackers", True)
    assert tracker.options["train.images"] == config.train.images


@pytest.mark.parametrize(("name", "variable", "local"), [(name, *rule) for name, rule in LOCAL.items()])
def test_nothing_leaves_the_machine_unless_the_user_says_so(
    name: str, variable: str, local: str, fake: type[Fake], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, name, Fake)
    for own in (None, "mine"):
        monkeypatch.setenv(variable, own or "")
        if own is None:
            monkeypatch.delenv(variable)
        Trackers([name], "run", tmp_path, {}).log({"images": 1, "loss": 1.0})
        assert os.environ[variable] == (own or local)


def test_a_function_is_called_after_every_step(tmp_path: Path) -> None:
    data = imbdiff.prepare("digits", imbalance_factor=20)
    config = override(imbdiff.preset("tiny"), SMALL)
    calls: list[tuple[int, dict[str, float]]] = []

    def stop(seen: int, row: Any) -> None:
        calls.append((seen, row))
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imbdiff.train(data, config, tmp_path / "run", quiet=True, on_step=stop)
    imbdiff.train(data, config, tmp_path / "run", quiet=True, on_step=lambda seen, row: calls.append((seen, row)))
    seen = [images for images, _ in calls]
    assert seen[:4] == [16, 32, 48, 64]
    assert sorted(set(seen)) == list(range(16, 16 * 12 + 1, 16))
    rows = {row["images"]: row["loss"] for row in read_jsonl(tmp_path / "run" / "log.jsonl")}
    assert rows == {images: row["loss"] for images, row in calls if row}
    assert len(rows) > 2


def test_trackers_that_are_not_there_are_refused(fake: type[Fake]) -> None:
    check_trackers(["ours"])
    with pytest.raises(ConfigError, match="unknown tracker 'tensorbord'"):
        check_trackers(["tensorbord"])
    with pytest.raises(ConfigError, match=r"tensorboard is not installed\n.*imbalanced-diffusion\[track\]"):
        check_trackers(["tensorboard"])


def test_a_log_is_cut_back_and_goes_on(tmp_path: Path) -> None:
    also: list[dict[str, Any]] = []
    log = JsonLog(tmp_path / "log.jsonl", also.append)  # type: ignore[arg-type]
    for images in (1, 2, 3):
        log.write(images=images)
    log.cut(lambda row: row["images"] < 3)
    log.write(images=9)
    assert [json.loads(line)["images"] for line in log.path.read_text().splitlines()] == [1, 2, 9]
    assert [row["images"] for row in also] == [1, 2, 3, 9]


def test_progress_is_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("train", 100, start=20, every=0) as progress:
        progress.update(60, "loss 0.5")
    (line,) = capsys.readouterr().err.splitlines()  # its end does not say the same again
    assert line.startswith("train: 60 of 100 images, ")
    assert " left, loss 0.5" in line
    with Progress("sample", 100, every=0) as progress:
        progress.update(60)
        progress.every = 1e9
        progress.update(100)
    assert len(capsys.readouterr().err.splitlines()) == (1 if SHORT > 0 else 2)  # the end of short work is not said
    with Progress("train", 100, quiet=True) as progress:
        progress.update(100)
    assert not capsys.readouterr().err


def test_work_in_between_is_announced_and_counted_in_the_time_left_but_not_in_the_speed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("imbdiff.runtime.progress.time.monotonic", lambda: clock[0])
    with Progress("train", 100, every=0, interludes=3) as progress:
        clock[0] = 10
        progress.update(50)
        assert "5 images/s, 10 s left" in progress.line
        with progress.interlude("generating a preview"):
            clock[0] = 40
        assert "5 images/s, 1 min 10 s left" in progress.line  # 10 s, and two of 30 s
        assert "preview" not in progress.line
    assert "generating a preview" in capsys.readouterr().err


def test_bars_on_a_terminal_nest(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with Progress("train", 10) as outer, Progress("sample", 5) as inner:
        inner.update(5)
        outer.update(10)
    text = capsys.readouterr().err
    assert "train: 10 of 10 images" in text
    assert "sample: 5 of 5 images" in text
    assert Progress._display is None
