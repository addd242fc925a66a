"""What ends a command from outside: signals, full disks, damaged records, a terminal without letters."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imbdiff.cli import main
from imbdiff.pipeline.folder import RunFolder
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import read_json, write_json
from tests.pipeline.conftest import small_arguments, write_tree

BEGIN = [sys.executable, "-c", "import sys; from imbdiff.cli import main; sys.exit(main(sys.argv[1:]))"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_command_with_a_word(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("imbdiff.cli._execute", lambda *_, **__: signal.raise_signal(number))
    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # tests in the background ignore some
    try:
        assert main(["run", "digits"]) == 128 + number
        assert signal.getsignal(number) == usual
    finally:
        signal.signal(number, before)
    said = capsys.readouterr().err
    assert "the same command continues" in said
    assert (number.name in said) == (number != signal.SIGINT)


def test_a_run_in_training_ends_at_once_and_lets_go_of_its_folder(tmp_path: Path) -> None:
    words = ["run", "digits", "--out", str(tmp_path / "run"), *small_arguments()]
    words += ["--train.images", "1000000", "--train.checkpoint_images", "64", "--train.preview_images", "0"]
    process = subprocess.Popen([*BEGIN, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not list((tmp_path / "run" / "checkpoints").glob("*/ckpt-*/meta.json")):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in said
    assert "Traceback" not in said
    with RunFolder(tmp_path / "run").locked():
        assert not list((tmp_path / "run").rglob("*.partial"))


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As under nohup."""
    code = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); from imbdiff.cli import stoppable\n"
    code += "with stoppable(): signal.raise_signal(signal.SIGHUP)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_processes_that_are_started_end_at_once() -> None:
    code = "import os, signal, sys, time; from imbdiff.cli import stoppable\n"
    code += "with stoppable():\n child = os.fork()\n if not child: time.sleep(60)\n"
    code += " time.sleep(0.2); os.kill(child, signal.SIGTERM); sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))"
    done = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")


@pytest.mark.parametrize("text", ["null", "[]", "3", '"x"', "[" * 100_000, "{", ""])
def test_a_record_that_is_no_object_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "stages.json").write_text(text)
    with pytest.raises(RunError, match=r"stages\.json is damaged"):
        read_json(tmp_path / "stages.json")


@pytest.mark.parametrize("text", ["", "null\n", "preset: tiny\n"])
def test_a_configuration_without_images_is_not_of_the_current_folder(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "images", {"a": 12, "b": 8})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(text)
    assert main(["report", "run"]) == 2
    assert "config.yaml is damaged" in capsys.readouterr().err


def test_files_are_readable_by_whom_the_umask_says(tmp_path: Path) -> None:
    """Weights too, which safetensors writes for their owner alone."""
    code = "import os, sys; os.umask(0o027); import torch; from pathlib import Path\n"
    code += "from imbdiff.diffusion.saved import save_weights; from imbdiff.runtime.checkpoint import CheckpointStore\n"
    code += "from imbdiff.runtime.files import write_json\n"
    code += f"at = Path({str(tmp_path)!r}); save_weights(torch.nn.Linear(1, 1), at / 'w.safetensors')\n"
    code += "write_json(at / 'a.json', {}); CheckpointStore(at).save(1, {'x': torch.ones(1)}, {})"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_file()}
    assert {"w.safetensors", "a.json", "state.safetensors", "meta.json"} <= set(modes)
    assert set(modes.values()) == {0o640}


def test_a_full_standard_output_is_an_error_and_no_traceback() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        done = subprocess.run([*BEGIN, "methods"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr


def test_names_in_any_script_reach_a_terminal_of_ascii(tmp_path: Path) -> None:
    write_tree(tmp_path / "images", {"a": 12, "b": 8})
    (tmp_path / "images" / "a").rename(tmp_path / "images" / "méduse 水母")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*BEGIN, "inspect", str(tmp_path / "images")], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"m\xe9duse" in done.stdout


def test_what_cannot_be_written_is_an_error_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "x.json"))

    monkeypatch.setattr("imbdiff.cli.complete", refuse)
    assert main(["--completion", "bash"]) == 2
    said = capsys.readouterr().err
    assert "x.json: Permission denied" in said
    assert "\n  ->" in said
    write_json(tmp_path / "x.json", json.loads("{}"))
