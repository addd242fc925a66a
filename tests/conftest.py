"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.dead_workers import pytest_configure

__all__ = ["pytest_configure"]


@pytest.fixture(autouse=True)
def _denormal_numbers() -> Iterator[None]:
    """Runs on a CPU flush denormal numbers to zero, a setting of the thread: here it ends with the test."""
    yield
    torch.set_flush_denormal(False)
