"""A trained network in a folder: weights and a record of what it was trained from, read again by the same inputs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.networks import Classifier, build_network
from imbdiff.recognition.plan import FitPlan
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import atomic, read_json, sha256_file, write_json

_log = logging.getLogger(__name__)


def keep_network(weights: Path, network: Classifier, key: str, **facts: Any) -> None:
    """Writes `weights` and beside it a JSON record: the hash `key` of all inputs, the file's checksum and `facts`."""
    with atomic(weights) as aside:
        save_file({k: v.contiguous().cpu() for k, v in network.state_dict().items()}, aside)
    write_json(weights.with_suffix(".json"), {"input": key, "weights": sha256_file(weights), **facts})


def kept_network(
    weights: Path, key: str, plan: FitPlan, images: ImageSet, what: str, facts: tuple[str, ...] = ()
) -> tuple[Classifier, dict[str, Any]] | None:
    """The network and its record; None where there is none of these inputs, or a damaged one, which is reported.

    Args:
        plan, images: what it was made for.
        what: it is, in words.
        facts: that its record must hold.
    """
    record_path = weights.with_suffix(".json")
    if not weights.is_file() or not record_path.is_file():
        return None
    try:
        record = read_json(record_path)
        if record["input"] != key or record["weights"] != sha256_file(weights):
            raise KeyError("weights")
        network = build_network(plan.network, images.shape, len(images.class_names), normalise=plan.normalise)
        network.load_state_dict(load_file(weights))
        for name in facts:
            record[name]
        return network, record
    except (RunError, KeyError, TypeError, RuntimeError):
        _log.warning("%s is damaged: %s is trained again", weights, what)
        return None
