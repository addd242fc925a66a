"""A run of the tests whose worker dies or hangs ends with an error."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
FORKED = """
import os, signal, time
def test_dies():
    if os.fork() == 0:  # as a pool of processes would: it holds the pipe of the worker open
        time.sleep(30)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSEGV)
"""
HELD = """
import ctypes
def test_hangs():
    ctypes.PyDLL(None).sleep(30)  # with the interpreter's lock held, where no Python code can end it
"""


def _run(folder: Path, program: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text("from tests.dead_workers import pytest_configure\n")
    (folder / "test_it.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--rootdir", ".", "-p", "no:cacheprovider", *options, "test_it.py"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT), "IMBDIFF_GRACE": "0.5"}, capture_output=True, text=True,
        timeout=25, check=False, start_new_session=True,
    )  # fmt: skip


def _options() -> list[str]:
    """Of `make test`, with one process in place of two."""
    line = re.search(r"-m pytest (-n 2.*) \$\(TESTS\)", (ROOT / "Makefile").read_text())
    assert line is not None
    return ["-n", "1", *shlex.split(line[1])[2:]]


def test_a_run_whose_worker_dies_ends_though_a_child_of_it_lives(tmp_path: Path) -> None:
    done = _run(tmp_path, FORKED, *_options())
    assert done.returncode == 1, done.stderr
    assert "crashed while running 'test_it.py::test_dies'" in done.stdout
    assert "1 failed" in done.stdout  # it is not tried again


def test_a_test_that_hangs_ends_its_process(tmp_path: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert settings["faulthandler_timeout"] <= 600
    assert settings["faulthandler_exit_on_timeout"] is True
    done = _run(tmp_path, HELD, "-o", "faulthandler_timeout=0.5", "-o", "faulthandler_exit_on_timeout=true")
    assert done.returncode == 1
    assert "in test_hangs" in done.stderr
