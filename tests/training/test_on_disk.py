"""Training on images that stay on disk gives what training on the same images in memory gives, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imbdiff import preset
from imbdiff.config import RunConfig, override
from imbdiff.data.imageset import Rows
from imbdiff.data.splits import Prepared
from imbdiff.pipeline import training
from imbdiff.recognition.fitting import fit
from imbdiff.recognition.plan import FitPlan
from imbdiff.runtime.log import read_jsonl
from tests.data.making import folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("set"), {"a": 30, "b": 12, "c": 6}, channels=1)


def configured(**data: object) -> RunConfig:
    train = {"images": 48, "batch_size": 8, "accumulate": 2}
    return override(
        preset("tiny"),
        {"train": train, "data": {"augment": "mirror", **data}, "model": {"backbone": "mlp"}, "device": "cpu"},
    )


def prepared(source: Path, cache: Path | str) -> tuple[Prepared, RunConfig]:
    config = configured()
    return training.prepare_data(source, config.data, cache), config


def test_generators(source: Path, tmp_path: Path) -> None:
    method, found = "diffrc", []
    for cache in ("off", tmp_path / "cache"):
        data, config = prepared(source, cache)
        assert isinstance(data.train.images, Rows) == (cache != "off")
        model = training.train(data, override(config, {"method": method}), tmp_path / str(cache != "off"), quiet=True)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    logs = [read_jsonl(tmp_path / str(on) / "log.jsonl") for on in (False, True)]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]]
    assert all("waited" not in row for row in logs[0])
    assert all(0 <= row["waited"] <= row["seconds"] for row in logs[1])


def test_batches_are_announced(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the very first micro-batch was read ahead."""
    from imbdiff.data.gather import Gather

    read, ahead = [], []
    rows, announce = Gather.rows, Gather.ahead
    monkeypatch.setattr(Gather, "rows", lambda self, i: (read.append(i.tolist()), rows(self, i))[1])
    monkeypatch.setattr(Gather, "ahead", lambda self, i: (ahead.append(i.tolist()), announce(self, i))[1])
    data, config = prepared(source, tmp_path)
    training.train(data, config, quiet=True)
    assert len(read) == 12
    assert read[1:] == ahead[:-1]


def test_classifiers(source: Path, tmp_path: Path) -> None:
    found = []
    for cache in ("off", tmp_path):
        data, _ = prepared(source, cache)
        found.append(fit(data.train, FitPlan(steps=3, batch_size=8)).state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
