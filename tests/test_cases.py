"""Programs that make files as people have them, and say what this software must do with them.

They stand in the folder ``cases`` beside the data that ``IMBDIFF_DATA`` names, and are skipped where there are none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("IMBDIFF_DATA") or "missing").parent / "cases"
NOT_INSTALLED = 77
PROGRAMS = sorted(FOLDER.glob("*.py")) or [pytest.param(None, marks=pytest.mark.skip("no folder of cases"))]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem if path else "none")
def test_case(program: Path, tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=300, env=env, check=False)
    if done.returncode == NOT_INSTALLED:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
