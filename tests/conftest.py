"""What holds for every test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.dead_workers import pytest_configure

__all__ = ["pytest_configure"]

#: tests/test_pretrained.py runs these in a process of their own
collect_ignore = [] if "IMBDIFF_PRETRAINED" in os.environ else ["pretrained"]
#: files of few and long tests: begun last, one process would work on them alone
FIRST = ("test_pretrained.py", "test_cases.py", "test_site.py", "test_no_leak.py", "test_stopped.py", "test_damage.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(autouse=True)
def _denormal_numbers() -> Iterator[None]:
    """Runs on a CPU flush denormal numbers to zero, a setting of the thread: here it ends with the test."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes the module ``outside`` of a package elsewhere: (its program, family="", **{entry point: name in it})."""
    sys.modules.pop("outside", None)

    def make(program: str, family: str = "", **points: str) -> None:
        (tmp_path / "outside.py").write_text(program)
        if points:
            package = tmp_path / "outside-1.0.dist-info"
            package.mkdir()
            (package / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
            lines = [f"{name.replace('_', '-')} = outside:{place}" for name, place in points.items()]
            (package / "entry_points.txt").write_text("\n".join([f"[imbdiff.{family}]", *lines]) + "\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield make
    sys.modules.pop("outside", None)
