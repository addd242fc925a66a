"""Two processes under torchrun: the same images as one, and the same training at the same global batch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from imbdiff.cli import main
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
    done = start(processes, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]


def start(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*torchrun, "-m", "imbdiff", *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


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


def test_what_processes_refuse_they_refuse_in_words(tmp_path: Path, arguments: list[str]) -> None:
    odd = ["train", "digits", "--out", str(tmp_path / "no"), *arguments, "--train.batch_size", "31"]
    done = start(2, *odd)
    assert done.returncode != 0
    assert "cannot be divided over 2 processes" in done.stderr
    assert not (tmp_path / "no").exists()
