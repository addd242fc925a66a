from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
from torch import nn

from imbdiff.recognition.networks.identity import is_pretrained, network_identity

SHAPE = (8, 8, 1)
MODULE = """
from torch import nn

def make(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, {width}), nn.{act}(), nn.Linear({width}, classes))
"""


def _wide(shape: tuple[int, int, int], classes: int, width: int = 4, bias: float = 0.0) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Linear(width, classes))
    nn.init.constant_(network[1].bias, bias)  # type: ignore[arg-type]
    return network


def test_a_name_is_enough_for_our_own() -> None:
    assert network_identity("resnet32x2", SHAPE, 3) == "resnet32x2"
    assert not is_pretrained("resnet32")
    assert is_pretrained("timm:resnet18?pretrained")
    assert not is_pretrained("timm:resnet18")
    assert not is_pretrained(_wide)


def test_functions_of_one_name_are_told_apart_by_what_they_make() -> None:
    same = network_identity(partial(_wide, width=4), SHAPE, 3)
    assert same == network_identity(partial(_wide, width=4), SHAPE, 3)
    for other in (partial(_wide, width=9), partial(_wide, bias=1.0), _wide):
        differs = network_identity(other, SHAPE, 3) != same
        assert differs == (other is not _wide)  # the last one is the same with defaults


def test_a_module_that_was_edited_is_another_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "identity_of_mine.py"
    seen = []
    for width, act in ((4, "ReLU"), (4, "Tanh"), (5, "ReLU")):
        path.write_text(MODULE.format(width=width, act=act))
        importlib.invalidate_caches()
        sys.modules.pop("identity_of_mine", None)
        sys.dont_write_bytecode = True
        seen.append(network_identity("module:identity_of_mine:make", SHAPE, 3))
    assert seen[0] != seen[1] != seen[2] != seen[0]
