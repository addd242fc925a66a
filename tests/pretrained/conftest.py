"""Pretrained models made here; what their packages need stands in a folder beside the environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(os.environ.get("IMBDIFF_PRETRAINED", str(Path(sys.prefix) / "pretrained")))

from tests.pipeline.conftest import write_tree
from tests.pretrained.tiny import KINDS, save

CLASSES = {"frequent": 24, "some {odd}": 12, "rare": 6}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline of each class, by kind."""
    place = tmp_path_factory.mktemp("pipelines")
    return {kind: save(kind, place / kind) for kind in KINDS}


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("trees") / "images", CLASSES, (16, 16), mode="RGB")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMBDIFF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
