"""The images of a run, decoded and split, kept in its folder: later commands neither decode nor compare them again.

They count as long as the source lists the same files with the same sizes and times, and the options of the data are the
same; what is read is checked by the hashes in ``split.json``.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import __version__ as pillow

from imbdiff.config import DataConfig
from imbdiff.data.cache import LEAST
from imbdiff.data.imageset import ImageSet, Rows
from imbdiff.data.source import Source
from imbdiff.data.splits import Prepared
from imbdiff.data.stats import Groups
from imbdiff.runtime.errors import ImbdiffError
from imbdiff.runtime.files import digest, read_json, write_bytes
from imbdiff.version import __version__

NAME = "prepared.npz"
SPLITS = ("train", "val", "test", "pool")


def _key(source: Source, config: DataConfig) -> str | None:
    stamped = source.stamped()
    return None if stamped is None else digest([__version__, pillow, stamped, source.flippable, asdict(config)])


def keep(folder: Path, prepared: Prepared, source: Source, config: DataConfig) -> None:
    """Writes them, where they are in memory and fit into 512 MiB; `config` is the run's, with nothing left open."""
    sets = {name: x for name in SPLITS if (x := getattr(prepared, name)) is not None}
    key = _key(source, config)
    if key is None or any(isinstance(x.images, Rows) for x in sets.values()):
        return
    if sum(x.images.nbytes for x in sets.values()) > LEAST:
        return
    about = {
        "key": key, "split": prepared.manifest["hash"], "ids": {name: x.ids for name, x in sets.items()},
        "groups": {name: None if x.groups is None else [str(group) for group in x.groups] for name, x in sets.items()},
        "warnings": prepared.warnings,
        "flippable": prepared.flippable,
    }  # fmt: skip
    arrays = {f"{name}_images": x.images for name, x in sets.items()}
    arrays |= {f"{name}_labels": x.labels for name, x in sets.items()}
    out = io.BytesIO()
    np.savez(out, allow_pickle=False, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)
    write_bytes(folder / NAME, out.getvalue())


def kept(folder: Path, source: Source, config: DataConfig) -> Prepared | None:
    """What :func:`keep` wrote; None where there is nothing, or not of these images and options."""
    path, key = folder / NAME, _key(source, config)
    if key is None or not path.exists() or not (folder / "split.json").exists():
        return None
    try:
        manifest: dict[str, Any] = read_json(folder / "split.json")
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            if (about["key"], about["split"]) != (key, manifest["hash"]):
                return None
            names = tuple(manifest["class_names"])
            sets = {
                name: ImageSet(file[f"{name}_images"], file[f"{name}_labels"], names, tuple(ids), about["groups"][name])
                for name, ids in about["ids"].items()
            }
        if any(x.fingerprint != manifest["digests"][name] for name, x in sets.items()):
            return None
    except (ImbdiffError, OSError, KeyError, ValueError, TypeError, EOFError):
        return None  # damaged: the source is read
    train = sets["train"]
    return Prepared(
        train, sets.get("val"), sets["test"], sets.get("pool"), train.stats, Groups.from_json(manifest["groups"]),
        tuple(manifest["claimable"]), tuple(about["warnings"]), manifest, bool(about["flippable"]),
    )  # fmt: skip
