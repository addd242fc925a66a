"""The tests of pretrained models, in a process of their own: transformers slows every start of diffusers by half."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("IMBDIFF_PRETRAINED", Path(sys.prefix) / "pretrained"))


@pytest.mark.skipif(
    not (FOLDER / "peft").is_dir() and not (find_spec("peft") and find_spec("transformers")),
    reason=f"peft and transformers are neither installed nor in {FOLDER}, where `make pretrained` puts them",
)
def test_pretrained_models() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/pretrained"]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "IMBDIFF_PRETRAINED": str(FOLDER)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
