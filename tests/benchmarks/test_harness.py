"""The harness measures what it says: known work, known memory, known order; and a result file names no machine."""

from __future__ import annotations

import datetime
import functools
import importlib
import json
import os
import socket
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    """A program's module, found as it is when a program beside it runs: its folder comes first in the search path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    return load("harness")


@pytest.fixture(scope="module")
def files() -> ModuleType:
    return load("results_file")


def test_sides_alternate_and_preparation_comes_before_each_run(harness: ModuleType) -> None:
    seen: list[str] = []
    sides = [
        harness.Side("a", lambda: seen.append("A"), prepare=lambda: seen.append("pa")),
        harness.Side("b", lambda: seen.append("B")),
    ]
    result = harness.compare(sides, repeats=3, warmup=1, memory_repeats=0)
    assert "".join(seen) == "paAB" * 4 + "paA" + "B"
    assert [len(s["wall_s"]["values"]) for s in result["sides"]] == [3, 3]
    assert "peak_rss_mb" not in result["sides"][0]


def sleeper(folder: Path, seconds: float) -> object:
    """A side that sleeps, made in the process that is to run it."""
    (folder / f"{os.getpid()}").touch()
    return load("harness").Side("sleeper", functools.partial(time.sleep, seconds))


def failing() -> object:
    raise OSError("no side")


def test_sides_in_processes_of_their_own(harness: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))  # the new processes get it too
    sides = [
        (name, functools.partial(sleeper, tmp_path, seconds)) for name, seconds in (("short", 0.05), ("long", 0.2))
    ]
    found = harness.compare_apart(sides, repeats=2, warmup=1)
    assert [side["name"] for side in found["sides"]] == ["short", "long"]
    (ratio,) = found["ratios"]
    assert (ratio["name"], ratio["against"], ratio["wall"]["n"]) == ("long", "short", 2)
    assert 1.2 < ratio["wall"]["median"] < 20
    assert found["sides"][1]["cpu_s"]["max"] < 0.1, "sleeping is no work"
    assert len({f.name for f in tmp_path.iterdir()} - {str(os.getpid())}) == 2
    with pytest.raises(RuntimeError, match="'failing' has ended"):  # not: waits for ever
        harness.compare_apart([("failing", failing)], repeats=1)
    with pytest.raises(ValueError, match="different names"):
        harness.compare_apart([("a", failing), ("a", failing)])


def test_spread_agrees_with_numpy(harness: ModuleType) -> None:
    values = [5.0, 1.0, 9.0, 2.0]
    found = harness.spread(values)
    assert found["values"] == values
    assert [found[k] for k in ("min", "q1", "median", "q3", "max")] == np.percentile(
        values, [0, 25, 50, 75, 100]
    ).tolist()
    with pytest.raises(ValueError, match="no values"):
        harness.spread([])


def test_ratio_is_of_the_second_side_against_the_first(harness: ModuleType) -> None:
    sides = [harness.Side("short", lambda: time.sleep(0.02)), harness.Side("long", lambda: time.sleep(0.06))]
    (ratio,) = harness.compare(sides, repeats=3, warmup=0, memory_repeats=0)["ratios"]
    assert (ratio["name"], ratio["against"]) == ("long", "short")
    assert 1.2 < ratio["wall"]["median"] < 6


def test_peak_memory_sees_what_was_allocated_and_freed_again(harness: ModuleType) -> None:
    """A tensor of 200 MB that is gone at the end; the other side must not inherit it."""
    sides = [
        harness.Side("large", lambda: torch.ones(50_000_000).sum()),
        harness.Side("small", lambda: torch.ones(100).sum()),
    ]
    large, small = harness.compare(sides, repeats=1, memory_repeats=2)["sides"]
    assert 190 <= large["rise_mb"]["min"] <= large["rise_mb"]["max"] <= 260
    assert small["rise_mb"]["max"] < 30


def test_forwards_and_operations_are_counted(harness: ModuleType) -> None:
    a, b = torch.nn.Linear(7, 11, bias=False), torch.nn.Linear(11, 3, bias=False)
    x = torch.randn(5, 7)

    def run() -> None:
        b(a(x) + a(x)).sum().backward()

    side = harness.compare([harness.Side("s", run)], repeats=1, memory_repeats=0, modules=[a, b])["sides"][0]
    assert side["forwards"] == [2, 1]
    # forward: two of a, one of b; backward: weight gradients of all three, input gradient of b only (x needs none)
    assert side["flop"] == 2 * (2 * 5 * 7 * 11 + 5 * 11 * 3) + 2 * (2 * 5 * 7 * 11 + 2 * 5 * 11 * 3)
    assert not a._forward_pre_hooks


def test_text_is_scrubbed_of_paths_and_host(files: ModuleType) -> None:
    root = files.ROOT
    assert files.scrub(f"python {root}/benchmarks/x.py --out /tmp/someone/run1 --data=~/pictures/set") == (
        "python benchmarks/x.py --out run1 --data=set"
    )
    assert files.scrub({"a": [root, Path("/", "home", "me", "data.npz"), 3, "64/32 1e-3/s"]}) == {
        "a": [".", "data.npz", 3, "64/32 1e-3/s"]
    }
    assert files.scrub(f"on {socket.gethostname()}: x") == "on HOST: x"


def test_result_file_is_complete_and_names_no_machine(harness: ModuleType, files: ModuleType, tmp_path: Path) -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.ones(2, 4)
    result = harness.compare([harness.Side("one", lambda: layer(x)), harness.Side("two", lambda: layer(layer(x)))],
                             repeats=2, memory_repeats=1, modules=[layer])  # fmt: skip
    day = datetime.date(2026, 3, 4)
    paths = [
        harness.write_result("toy_case", result, config={"at": tmp_path / "x", "batch": 2}, folder=tmp_path, date=day)
        for _ in range(2)
    ]
    (data, text), (again, _) = paths
    assert data.name.startswith("toy_case_")
    assert data.name.endswith("_2026-03-04.json")
    assert text == data.with_suffix(".md")
    assert again.stem == data.stem + "_2"  # nothing is written over
    record = json.loads(data.read_text())
    assert record["hardware"]["cpu"]
    assert record["hardware"]["memory_gib"] > 0
    assert record["versions"]["torch"] == torch.__version__
    assert record["config"] == {"at": "x", "batch": 2}
    assert record["command"].startswith("python ")
    assert [side["forwards"] for side in record["result"]["sides"]] == [[1], [2]]
    for path in (data, text):
        assert str(tmp_path) not in path.read_text()
        assert str(files.ROOT) not in path.read_text()
        assert socket.gethostname() not in path.read_text()
    assert "| two |" in text.read_text()
    assert "two / one: wall" in text.read_text()


def test_bad_topics_and_numbers_are_refused(harness: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        harness.write_result("../Bad", {}, config={}, folder=tmp_path)
    with pytest.raises(ValueError):
        harness.write_result("bad", {"x": float("nan")}, config={}, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_hardware_slug_is_fit_for_a_file_name(files: ModuleType) -> None:
    cpu = {"cpu": "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", "cores": 2, "gpus": []}
    assert files.hardware_slug(cpu) == "2x-intel-xeon-platinum-8375c"
    assert files.hardware_slug({**cpu, "gpus": [{"model": "NVIDIA H200"}]}) == "nvidia-h200"


def test_records_of_equal_keys_become_a_table(files: ModuleType) -> None:
    record = {
        "topic": "x", "date": "d", "command": "c", "notes": "", "hardware": {}, "versions": {}, "config": {},
        "result": {"arms": [{"name": "a|b", "mean": {"all": 0.91234}}, {"name": "c", "mean": {"all": None}}]},
    }  # fmt: skip
    text = files.markdown(record)
    assert "| name | mean all |" in text
    assert "| a\\|b | 0.9123 |" in text
    assert "| c |  |" in text
