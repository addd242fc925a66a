"""The benchmarks that list files define: ImageNet-LT, Places-LT and iNaturalist 2018."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from imbdiff.data.benchmarks.imagenet import ROOTS as IMAGENET
from imbdiff.data.benchmarks.opening import Places
from imbdiff.data.benchmarks.places import ROOTS as PLACES
from imbdiff.data.benchmarks.trees import Listed, TreeSource, checked, first_existing, names_of, read_list
from imbdiff.runtime.errors import DataError

Rewrite = Callable[[str], str]

INATURALIST = ("inaturalist2018", "iNaturalist18", "iNat18", "inat2018")


def read_imagenet_lt(name: str, places: Places) -> TreeSource:
    """OLTR's ImageNet-LT. Validation images of ImageNet may be sorted into class folders or not.

    Raises:
        DataError: lists or images are not there, or lists do not fit each other.
    """
    files = {split: f"ImageNet_LT_{split}.txt" for split in ("train", "val", "test")}
    lists = _lists(places, files, ("ImageNet_LT", "data_txt/ImageNet_LT", *IMAGENET))
    flat: Rewrite = lambda p: "val/" + p.rsplit("/", 1)[-1] if p.startswith("val/") else p  # noqa: E731
    return _source(name, places, lists, IMAGENET, 1, (flat,))


def read_places_lt(name: str, places: Places) -> TreeSource:
    """OLTR's Places-LT, images of 256 x 256 pixels.

    Raises:
        DataError: as of :func:`read_imagenet_lt`.
    """
    files = {split: f"Places_LT_{split}.txt" for split in ("train", "val", "test")}
    lists = _lists(places, files, ("Places_LT_v2", "Places_LT", "data_txt/Places_LT_v2", *PLACES))
    standard: Rewrite = lambda p: p.replace("data_256/", "data_256_standard/", 1)  # noqa: E731
    return _source(name, places, lists, (*PLACES, "Places_LT"), 2, (standard,))


def read_inaturalist(name: str, places: Places) -> TreeSource:
    """iNaturalist 2018 by the lists of the long-tail literature, or by its own json files; val is the split "test".

    Raises:
        DataError: as of :func:`read_imagenet_lt`.
    """
    files = {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"}
    own = {"train": "train2018.json", "test": "val2018.json"}
    folders = ("iNaturalist18", "data_txt/iNaturalist18", *INATURALIST)
    found = _find(places, own, folders) if _find(places, files, folders) is None else None
    if found is not None:
        lists = {split: _annotations(found / file) for split, file in own.items()}
    else:
        lists = _lists(places, files, folders, "or " + ", ".join(own.values()) + " in one of these places")
    return _source(name, places, lists, INATURALIST, 1, ())


def _find(places: Places, files: dict[str, str], folders: Sequence[str]) -> Path | None:
    """The folder that holds all list files: the one given and no other, or the first."""
    where = [places.lists] if places.lists else places.below(*folders)
    return next((f for f in where if all((f / file).is_file() for file in files.values())), None)


def _lists(places: Places, files: dict[str, str], folders: Sequence[str], also: str = "") -> dict[str, Listed]:
    found = _find(places, files, folders)
    if found is None:
        where = str(places.lists) if places.lists else f"the folder itself, {', '.join(dict.fromkeys(folders))}"
        looked_for = [f"{', '.join(files.values())}", *([also] if also else []), f"in: {where}"]
        raise places.missing(looked_for)
    return {split: read_list(found / file) for split, file in files.items()}


def _annotations(path: Path) -> Listed:
    """Images and categories of a json file of iNaturalist."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        category = {one["image_id"]: int(one["category_id"]) for one in content["annotations"]}
        pairs = [(str(image["file_name"]), category[image["id"]]) for image in content["images"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is no annotation file of iNaturalist 2018: {type(error).__name__} {error}", "unpack it again"
        ) from error
    if not pairs:
        raise DataError(f"{path} lists no image", "unpack it again")
    return checked(path, [p for p, _ in pairs], [k for _, k in pairs])


def _source(
    name: str, places: Places, lists: dict[str, Listed], folders: Sequence[str], skip: int, rewrites: Sequence[Rewrite]
) -> TreeSource:
    """The images of `lists`, below the first folder that has them where the lists say or where a rewrite says."""
    names = names_of(lists["train"], skip)
    roots = places.below(*folders)
    for root in roots:
        found = {split: _placed(root, listed, rewrites) for split, listed in lists.items()}
        if all(found.values()):
            return TreeSource(name, root, names, {split: one for split, one in found.items() if one})
    samples = [f"{listed.paths[0]} ({split})" for split, listed in lists.items()]
    raise places.missing([*samples, f"below: {', '.join(map(str, roots))}"])


def _placed(root: Path, listed: Listed, rewrites: Sequence[Rewrite]) -> Listed | None:
    """The list with places where a few of its images are, or None."""
    if first_existing(root, listed.paths):
        return listed
    for rewrite in rewrites:
        moved = [rewrite(path) for path in listed.paths]
        if first_existing(root, moved):
            return Listed(listed.paths, listed.labels, moved)
    return None
