"""Places365-standard as it is distributed: its own lists with ``data_256``, or the folders of its easy format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from imbdiff.data.benchmarks.opening import Places
from imbdiff.data.benchmarks.trees import (
    Listed,
    TreeSource,
    class_folders,
    first_existing,
    images_of,
    names_of,
    read_list,
)

ROOTS = ("places365", "Places365", "places365_standard")
TRAIN, VAL = "places365_train_standard.txt", "places365_val.txt"
TRAIN_FOLDERS = ("data_256_standard", "data_256", "data_large_standard", "data_large")
VAL_FOLDERS = ("val_256", "val_large")


def read_places(name: str, places: Places) -> TreeSource:
    """All of Places365-standard, whose validation images are the split "test"; classes in Places' own order.

    In the easy format, folders by class, the order is that of their names.

    Raises:
        DataError: not there.
    """
    for root in places.below(*ROOTS):
        if (root / TRAIN).is_file() and (root / VAL).is_file():
            train, val = (read_list(root / file) for file in (TRAIN, VAL))
            here = [_found(root, folders, one) for folders, one in ((TRAIN_FOLDERS, train), (VAL_FOLDERS, val))]
            if all(here):
                splits = {split: _below(str(f), one) for split, f, one in zip(("train", "test"), here, (train, val),
                                                                              strict=True)}  # fmt: skip
                return TreeSource(name, root, names_of(train, 1), splits, nearly=True)
        names = class_folders(root / "train")
        if names and class_folders(root / "val") == names:
            splits = {split: images_of(root, folder, names) for split, folder in (("train", "train"), ("test", "val"))}
            return TreeSource(name, root, names, splits, nearly=True)
    raise places.missing(
        [
            f"{TRAIN} and {VAL}, with the images in {' or '.join(TRAIN_FOLDERS)} and {' or '.join(VAL_FOLDERS)}",
            "or the easy format: train/CLASS/*.jpg and val/CLASS/*.jpg of the same classes",
            f"all of them here, or in a folder {', '.join(ROOTS)}",
        ]
    )


def _found(root: Path, folders: tuple[str, ...], listed: Listed) -> str | None:
    return next((f for f in folders if (root / f).is_dir() and first_existing(root / f, listed.paths)), None)


def _below(folder: str, listed: Listed) -> Listed:
    return replace(listed, paths=[f"{folder}/{path}" for path in listed.paths])
