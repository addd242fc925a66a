"""The short form of benchmarks/faults.py: some kills and damages, none of them silent."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.test_harness import FOLDER, load

TRIALS = {"kill": 1, "damage": 8, "rest": 1}


def test_what_a_run_survives(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; from faults import summary, trials\n"
        f"print(json.dumps(summary(trials(Path(sys.argv[1]), 0, {TRIALS!r}))))"
    )
    done = subprocess.run(  # forks only from a process without threads
        [sys.executable, "-c", code, str(tmp_path)], cwd=FOLDER, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["problems"] == []
    assert found["kills"] >= 1
    assert found["damages"] >= 4


def test_damage_changes_a_file_and_is_counted(tmp_path: Path) -> None:
    faults = load("faults")
    other = tmp_path / "other.json"
    other.write_text('{"a": 5}')
    for name, damage in faults.DAMAGES.items():
        path = tmp_path / f"{name}.json"
        path.write_text('{"a": 12}')
        assert damage(path, other, random.Random(0)), name
        assert not path.is_file() or path.read_text(errors="replace") != '{"a": 12}', name
    silent = {"kind": "damage", "number": 0, "outcome": "silent", "differ": ["metrics.json"]}
    killed = {"kind": "kill", "number": 0, "fell": {"train SIGKILL": 2}, "differ": ["log.jsonl"], "problems": []}
    found = faults.summary([silent, killed])
    assert [row["trial"] for row in found["problems"]] == ["kill 0", "damage 0"]
    assert found["kills"] == found["kills by signal"]["SIGKILL"] == 2


def test_clocks_are_no_difference(tmp_path: Path) -> None:
    faults = load("faults")
    for folder, seconds, value in (("a", 1, 1), ("b", 2, 1), ("c", 2, 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.json").write_text(json.dumps({"seconds": seconds, "inner": [{"value": value}]}))
        (tmp_path / folder / "log.jsonl").write_text(json.dumps({"seconds": seconds, "loss": 1}) + "\n")
        (tmp_path / folder / "report.html").write_text(f"took {seconds}.5 s")
    a, b, c = (faults.content(tmp_path / folder) for folder in "abc")
    assert faults.apart(a, b) == []
    assert faults.apart(a, c) == ["x.json"]
