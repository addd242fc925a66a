"""Trainings in threads leave the environment of the process alone: torch reads it in every forward pass of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SET_UP = """
import os
import sys
import threading
import time

import torch

from imbdiff.recognition.cas import classification_accuracy_score
from imbdiff.recognition.arms import Arm
from imbdiff.recognition.jobs import Conditions, train_arms
from imbdiff.recognition.use import Use
from tests.recognition.conftest import make_prepared, make_set
from tests.recognition.test_jobs import PLAN

prepared, synthetic = make_prepared(make_set((8, 8, 8), 1)), make_set((0, 30, 36), 9)


def train(seeds, workers):
    arms = {Arm("ce"): None, Arm("balanced-softmax", Use()): synthetic, Arm("crt"): None}
    conditions = Conditions(PLAN, prepared, tuple(seeds), workers=workers)
    return sum(map(len, train_arms(arms, conditions).values()))
"""

COUNT = """
changes = []


def watch(event, arguments):
    if event in ("os.putenv", "os.unsetenv"):
        changes.append((event, arguments, threading.current_thread().name))


sys.addaudithook(watch)
os.environ["IMBDIFF_TEST"] = "1"
del os.environ["IMBDIFF_TEST"]
assert [event for event, _, _ in changes] == ["os.putenv", "os.unsetenv"], changes


def in_threads():
    return [change for change in changes if change[2] != "MainThread"]


assert train(range(2), 3) == 6
assert not in_threads(), (len(in_threads()), in_threads()[:3])
changes.clear()  # what is written once, before there are threads, is written by now
assert train(range(2, 4), 3) == 6
classification_accuracy_score(make_set((30, 30, 30), 7), prepared.train, prepared.test, prepared.groups, PLAN,
                              seeds=(0, 1))
assert not changes, (len(changes), changes[:3])
"""

RACE = """
os.environ["IMBDIFF_TEST"] = "1"
sys.setswitchinterval(1e-5)
norm, x = torch.nn.BatchNorm2d(4), torch.randn(8, 4, 4, 4)
end, passes, missing = time.monotonic() + 3, 0, 0


def read():
    global passes, missing
    while time.monotonic() < end:
        norm(x)
        passes += 1
        missing += sum("IMBDIFF_TEST" not in os.environ for _ in range(20))


thread = threading.Thread(target=read)
thread.start()
trained = 0
while time.monotonic() < end:
    trained += train([trained], 2)
thread.join()
assert trained >= 3, trained
assert passes > 100, passes
assert not missing, f"a variable was missing {missing} times of {20 * passes}"
"""


@pytest.mark.parametrize("program", [COUNT, RACE], ids=["counted", "beside batch norm"])
def test_trainings_in_threads_leave_the_environment_alone(program: str) -> None:
    """In a process of its own: an audit hook stays for ever, and a race lost ends the process."""
    done = subprocess.run(
        [sys.executable, "-c", SET_UP + program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
