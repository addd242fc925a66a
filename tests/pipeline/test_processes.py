"""Two processes under torchrun: the same images as one, and the same training at the same global batch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from imbdiff.cli import main
from imbdiff.config import override
from imbdiff.pipeline import plan
from imbdiff.presets import preset
from imbdiff.runtime.launch import launch as start_processes
from tests.pipeline.test_run import files


def launch(processes: int, *arguments: str) -> None:
    """`processes` as torchrun starts them; one alone is this process, which has all modules loaded."""
    if processes == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            assert main(list(arguments)) == 0
        finally:
            torch.set_num_threads(threads)
        return
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*start, "-m", "imbdiff", *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def forget(run: Path, stage: str) -> None:
    stages = json.loads((run / "stages.json").read_text())
    stages.pop(stage)
    (run / "stages.json").write_text(json.dumps(stages))


def test_two_processes_train_as_one_and_draw_the_same_images(tmp_path: Path, arguments: list[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*arguments, "--method", "cbdm", "--model.dropout", "0", "--evaluate.no-cas"]
    launch(1, "train", "digits", "--out", str(one), *options)
    launch(2, "run", "digits", "--out", str(two), *options)  # the other process leaves after measuring
    assert (two / "report.html").exists()
    both = json.loads((two / "metrics.json").read_text())
    shutil.rmtree(two / "features")
    forget(two, "evaluate")
    launch(1, "evaluate", str(two))
    alone = json.loads((two / "metrics.json").read_text())
    assert len(alone["numbers"]) == len(both["numbers"]) > 50
    for a_row, b_row in zip(alone["numbers"], both["numbers"], strict=True):
        assert (a_row["metric"], a_row["refused"]) == (b_row["metric"], b_row["refused"])
        if a_row["value"] is not None:
            assert abs(a_row["value"] - b_row["value"]) <= 1e-4 * abs(a_row["value"]) + 1e-9, a_row["metric"]
    a, b = (load_file(folder / "model" / "model.safetensors") for folder in (one, two))
    # sums are taken in another order: stated tolerance 1e-3 absolute after twelve Adam steps of at most 1e-3 each
    worst = max(float((a[k] - b[k]).abs().max()) for k in a)
    moved = max(float(v.abs().max()) for v in a.values())
    assert worst < 1e-3
    assert moved > 0.1
    losses = [json.loads((f / "log.jsonl").read_text().splitlines()[0]) for f in (one, two)]
    for name in ("loss", "denoising/mse", "class_balancing/pull", "grad_norm"):
        assert abs(losses[0][name] - losses[1][name]) <= 1e-5 * abs(losses[0][name]), name

    # the same weights: the images are the same to the bit
    launch(1, "sample", str(one))
    drawn = files(one, "samples/**/*")
    shutil.rmtree(one / "samples")
    forget(one, "sample")
    launch(2, "sample", str(one))
    assert files(one, "samples/**/*") == drawn
    assert len(drawn) > 20
    assert torch.distributed.is_available()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imbdiff", *arguments], capture_output=True, text=True, timeout=240,
        env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"},
    )  # fmt: skip


def test_a_command_starts_its_processes_itself(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "two"
    done = command("train", "digits", "--out", str(out), *arguments, "--processes", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "model" / "model.safetensors").exists()
    assert done.stdout.count("training images of") == 1, "both processes speak"
    assert "Warning" not in done.stderr
    again = command("train", "digits", "--out", str(out), *arguments, "--processes", "2")
    assert "done before, skipped" in again.stdout, again.stderr[-2000:]
    # what they refuse, the command says once, and ends
    odd = "--train.batch_size=31"
    failed = command("train", "digits", "--out", str(tmp_path / "no"), *arguments, "--processes", "2", odd)
    assert failed.returncode == 2, failed.stderr[-2000:]
    assert failed.stderr.count("cannot be divided over 2 processes") == 1
    assert "Traceback" not in failed.stderr
    assert main(["train", "digits", "--out", str(tmp_path / "no"), *arguments, "--processes=0"]) == 2
    assert "give 1 to" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="processes end with their parent on Linux")
def test_no_process_outlives_a_killed_command(tmp_path: Path, arguments: list[str]) -> None:
    words = ["train", "digits", "--out", str(tmp_path / "a"), *arguments, "--processes", "2"]
    words += ["--train.images", "50000000"]  # hours
    started = subprocess.Popen(
        [sys.executable, "-m", "imbdiff", *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 60
    while len(children := psutil.Process(started.pid).children()) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_how_many_processes_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    config = override(preset("demo"), {"device": "cpu"})
    for there, batch, expected in ((8, 64, 4), (3, 64, 2), (1, 64, 1), (4, 15, 3), (2, 15, 1)):
        monkeypatch.setattr(plan, "cores", lambda n=there: n)
        assert plan.count_processes("auto", override(config, {"train.batch_size": batch})) == expected
    assert plan.count_processes(5, config) == 5
    monkeypatch.setattr(plan, "cores", lambda: 3)
    assert plan.count_processes("auto", override(config, {"method": "diffrc"})) == 2  # 8 class groups


def test_the_error_of_the_process_that_failed_first_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "python"
    program.write_text("""#!/bin/sh
if [ "$RANK" = 1 ]; then echo "error: the disk of process 1 is full" >&2; exit 2; fi
sleep 0.5; echo "connection closed by peer" >&2; exit 1
""")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert start_processes(2, ["train"]) == 2
    said = capfd.readouterr().err
    assert "the disk of process 1 is full" in said
    # of three, the long words of the third do not push the cause out
    program.write_text("""#!/bin/sh
if [ "$RANK" = 1 ]; then echo "error: the disk of process 1 is full" >&2; exit 2; fi
sleep 0.3; if [ "$RANK" = 2 ]; then yes "connection closed by peer" | head -n 9999 >&2; fi; exit 1
""")
    assert start_processes(3, ["train"]) == 2
    assert capfd.readouterr().err == "error: the disk of process 1 is full\n"
    # what both refuse is said once, whichever of them ends first
    for last in (0, 1):
        program.write_text(f"""#!/bin/sh
[ "$RANK" = {last} ] && sleep 0.5
echo "error: a batch of 31 cannot be divided" >&2; exit 2
""")
        assert start_processes(2, ["train"]) == 2
        assert capfd.readouterr().err.count("cannot be divided") == 1
    program.write_text('#!/bin/sh\n[ "$RANK" = 1 ] && kill -9 $$\nexec sleep 60\n')
    assert start_processes(2, ["train"]) == 137
    assert "process 1 of 2 was ended by signal 9 (out of memory?)" in capfd.readouterr().err
