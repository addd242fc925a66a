"""What a run gives is pinned: a change of these numbers is a decision, and the commit that makes it says why.

Two runs of seconds in float32 on one thread: the embedded digits, and a folder of class folders. Splits are compared
exactly; everything else bit for bit on the kind of processor that the values were recorded on, and losses and image
means within a tolerance on others, which round differently. To record anew: ``IMBDIFF_GOLDEN=write make test``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imbdiff.config import RunConfig, override
from imbdiff.metrics.numbers import Number
from imbdiff.pipeline.run import run
from imbdiff.presets import preset
from tests.pipeline.conftest import SMALL, write_tree

VALUES = Path(__file__).parent / "golden"
FIXED = {"train": {"precision": "fp32"}}


def machine() -> str:
    """What decides how a processor rounds."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__}"


def digits(folder: Path) -> tuple[str, RunConfig]:
    values = {"train.images": 640, "sample.strategy": "equal=0.2", "sample.batch_size": 64, "classify.steps": 30,
              "classify.seeds": 2, "device": "cpu"}  # fmt: skip
    return "digits", override(override(preset("demo"), FIXED), values)


def tree(folder: Path) -> tuple[str, RunConfig]:
    source = write_tree(folder / "images", {"frequent": 40, "some": 20, "rare": 9}, (16, 12), mode="RGB")
    values = {"method": "cbdm+ccua", "data": {"imbalance_factor": None, "size": 8}, "sample": {"strategy": "auto"}}
    return str(source), override(override(override(preset("tiny"), SMALL), FIXED), values)


def found_in(run_folder: Path) -> dict[str, Any]:
    """The pinned values of a finished run."""
    read = {n: json.loads((run_folder / f"{n}.json").read_text()) for n in ("split", "metrics", "samples/manifest")}
    results = json.loads((run_folder / "classifier" / "results.json").read_text())
    per_group = results["verdict"]["per_group"]
    log = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    rows = [log[i] for i in (0, len(log) // 2, -1)]
    files = [run_folder / "samples" / row["file"] for row in read["samples/manifest"]["images"]]
    pixels = [np.asarray(Image.open(file)).astype(np.float64) for file in files]
    return {
        "split": read["split"]["hash"],
        "losses": [[row["images"], row["loss"]] for row in rows],
        "sample_means": [float(image.mean()) for image in pixels],
        "sample_hash": hashlib.sha256(b"".join(image.astype(np.uint8).tobytes() for image in pixels)).hexdigest(),
        "numbers": {
            f"{number.label} | {number.scope} | {number.reference}": number.value
            for number in map(Number.from_json, read["metrics"]["numbers"])
        },
        "arms": {arm["name"]: [one["accuracy"] for one in arm["runs"]] for arm in results["arms"]},
        "verdict": {g: [v["outcome"], v["difference"], v["low"], v["high"]] for g, v in per_group.items()},
    }


@pytest.mark.parametrize("make", [digits, tree], ids=["digits", "folder"])
def test_a_run_gives_what_it_gave(make: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        source, config = make(tmp_path)
        run(source, tmp_path / "run", config, quiet=True)
    finally:
        torch.set_num_threads(before)
    found = {"machine": machine(), **found_in(tmp_path / "run")}
    path = VALUES / f"{request.node.callspec.id}.json"
    if os.environ.get("IMBDIFF_GOLDEN") == "write":
        path.write_text(json.dumps(found, indent=1) + "\n")
    kept = json.loads(path.read_text())
    assert found["split"] == kept["split"]
    if found["machine"] == kept["machine"]:
        assert found == kept
        return
    assert found["losses"] == [[n, pytest.approx(loss, rel=1e-3)] for n, loss in kept["losses"]]
    assert found["sample_means"] == pytest.approx(kept["sample_means"], abs=1.0)
    assert found["numbers"].keys() == kept["numbers"].keys()
    assert found["arms"].keys() == kept["arms"].keys()
