"""Caches in folders of their own, and no network."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _nothing_outside(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("IMBDIFF_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "hf"))
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")
