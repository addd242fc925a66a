"""Oracles that cannot live in the development environment: run with ``make oracles``.

torch-fidelity needs torchvision, whose PyPI wheel does not import beside a CPU build of torch: its compiled part is not
loaded, and declaring fakes for two operators then fails. Declaring these two first is enough for what is used here.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch

_KEPT: list[object] = []  # a library of operators lives as long as its object


def pytest_configure() -> None:
    if torch.version.cuda is None and importlib.util.find_spec("torchvision") is not None:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("torch_fidelity") is None:
        for item in items:
            if "oracles" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason="torch-fidelity is not installed: run `make oracles`"))
