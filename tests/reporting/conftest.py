"""Plots are left out of most pages: most of a page's time, and no part of what most tests are about."""

from __future__ import annotations

import pytest

from imbdiff.reporting import plots


@pytest.fixture
def painted() -> None:
    """Asked for by tests that are about what plots show."""


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "painted" not in request.fixturenames:
        monkeypatch.setattr(plots, "render", lambda paint, size: "</svg>")
