"""Where the files of the benchmarks are, and how they are read: class folders, list files, and the source they make."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imbdiff.data.cifar import CifarSource, read_cifar
from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.labels import check_classes
from imbdiff.data.reading import PathReader
from imbdiff.data.source import EncodedSource, Records, Source
from imbdiff.runtime.errors import DataError, listing


@dataclass(frozen=True)
class Places:
    """Where the files of a benchmark may lie.

    Attributes:
        name: the benchmark's.
        root: the folder that was given.
        lists: the folder of list files that was given, or None.
        get: where one gets the files, in words.
    """

    name: str
    root: Path
    lists: Path | None
    get: str

    def below(self, *names: str) -> list[Path]:
        """The folder itself, and those of these names below it, that exist."""
        return [p for p in (self.root, *(self.root / name for name in names)) if p.is_dir()]

    def missing(self, looked_for: Sequence[str]) -> DataError:
        """The error that nothing usable is there, to be raised."""
        return DataError(
            f"{self.name} is not found below {self.root}; looked for:\n{listing(looked_for)}",
            f"give the folder that holds it ({self.name}?root=FOLDER, or the environment variable IMBDIFF_DATASETS); "
            f"one gets it from: {self.get}",
        )


WORDNET = re.compile(r"n\d{8}")
TRIED = 16
"""Listed images that are looked for on opening; the rest is when headers are read."""


@dataclass(frozen=True)
class Listed:
    """Images of a split in order: (N,) paths below a folder, with forward slashes, and (N,) labels.

    `places` are where the files lie below the folder, where that is not where the list says.
    """

    paths: Sequence[str]
    labels: Sequence[int]
    places: Sequence[str] | None = None


class TreeSource(EncodedSource):
    """The image files of a benchmark below one folder.

    Raises:
        DataError: a label that no training image has, a class without training images.
    """

    kind = "benchmark"

    def __init__(self, name: str, root: Path, names: Sequence[str], splits: Mapping[str, Listed]) -> None:
        records = {}
        for split, listed in splits.items():
            labels = np.asarray(listed.labels, dtype=np.int64)
            strange = sorted(set(labels[(labels < 0) | (labels >= len(names))].tolist()))
            if strange:
                raise DataError(
                    f"{name}: {split} has labels that train has not: {strange[:20]}",
                    "take the lists of all splits from one place",
                )
            records[split] = Records(listed.paths, labels, listed.places)
        check_classes(np.bincount(records["train"].labels, minlength=len(names)), names, name)
        super().__init__(name, names, records, PathReader(root), True)


def class_folders(folder: Path, wordnet: bool = False) -> list[str]:
    """Names of the folders in `folder` in sorted order, hidden ones left out; `wordnet`: only WordNet ids."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    return sorted(name for name in names if not wordnet or WORDNET.fullmatch(name))


def images_of(root: Path, folder: str, names: Sequence[str], inner: str = "") -> Listed:
    """The images in ``root/folder/NAME[/inner]``, class by class, each sorted by name as torchvision's ImageFolder is.

    Raises:
        DataError: classes without a folder or image, all listed.
    """
    paths: list[str] = []
    labels: list[int] = []
    empty = []
    for k, name in enumerate(names):
        below = "/".join(part for part in (folder, name, inner) if part)
        found = image_files(root / below)
        if not found:
            empty.append(below)
        paths += [f"{below}/{file}" for file in found]
        labels += [k] * len(found)
    if empty:
        raise DataError(f"these folders of {root} are missing or hold no image:\n{listing(empty)}", "unpack it again")
    return Listed(paths, labels)


def image_files(folder: Path) -> list[str]:
    """Sorted names of the image files directly in a folder; none if it is not there.

    Pipes, devices and folders are left out: opening a pipe waits for ever. Links that lead nowhere are kept and are
    unusable later, rather than missing without a word.
    """
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        named = [e for e in entries if os.path.splitext(e.name)[1].lower() in EXTENSIONS and e.name[0] != "."]
        return sorted(e.name for e in named if e.is_file(follow_symlinks=False) or _may_be_file(e.path))


def _may_be_file(path: str) -> bool:
    return os.path.isfile(path) or not os.path.exists(path)


def read_list(path: Path) -> Listed:
    """A list file with a path and a class number on each line.

    Raises:
        DataError: lines that are something else, paths that lead out of the folder, paths listed twice; all of them.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "give a text file with PATH LABEL on each line") from error
    paths, labels, wrong = [], [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2 or not re.fullmatch(r"[0-9]{1,9}", parts[1]):
            wrong.append(f"line {number}: {line[:80]!r}")
        else:
            paths.append(parts[0].strip().removeprefix("/"))
            labels.append(int(parts[1]))
    if wrong or not paths:
        raise DataError(
            f"{path}: {listing(wrong) if wrong else 'no line in it'}", "write PATH LABEL, the label a class number"
        )
    return checked(path, paths, labels)


def checked(path: Path, paths: list[str], labels: list[int]) -> Listed:
    """The images that the file `path` lists, once no path leads out of the folder or occurs twice."""
    outside = [repr(p) for p in paths if not inside(p)]
    if outside:
        raise DataError(f"{path} has paths that lead out of the folder:\n{listing(outside)}", "write paths below it")
    if len(set(paths)) < len(paths):
        seen: set[str] = set()
        twice = [repr(p) for p in paths if p in seen or seen.add(p)]  # type: ignore[func-returns-value]
        raise DataError(f"{path} lists images twice:\n{listing(twice)}", "list each image once")
    return Listed(paths, labels)


def inside(path: str) -> bool:
    """Whether a path with forward slashes stays below the folder it starts from."""
    return bool(path) and path[0] != "/" and ".." not in path.split("/") and "\\" not in path and "\0" not in path


def first_existing(root: Path, listed: Iterable[str]) -> bool:
    """Whether all of a few images, evenly taken from the list, lie below `root`."""
    every = list(listed)
    return all((root / p).is_file() for p in every[:: max(1, len(every) // TRIED)])


def names_of(listed: Listed, skip: int) -> list[str]:
    """Names of the classes 0 to the largest label, from the folders of their images less the first `skip` ones.

    A class whose images lie in several folders, or in another class's, makes all of them be called by number.

    Raises:
        DataError: a label larger than the number of images.
    """
    if max(listed.labels) >= len(listed.labels):
        raise DataError(
            f"{listed.paths[int(np.argmax(listed.labels))]} has the label {max(listed.labels)}, and there are "
            f"{len(listed.labels)} images: most classes would have none",
            "number classes from 0",
        )
    folders: dict[int, set[str]] = {}
    for path, k in zip(listed.paths, listed.labels, strict=True):
        folders.setdefault(k, set()).add("/".join(path.split("/")[skip:-1]))
    count = max(folders) + 1
    names = [next(iter(folders[k])) if len(folders.get(k, ())) == 1 else "" for k in range(count)]
    return names if all(names) and len(set(names)) == count else [str(k) for k in range(count)]


def read_tiny_imagenet(name: str, places: Places) -> TreeSource:
    """Tiny-ImageNet; its validation images are the split "test".

    The literature reads it with torchvision's ImageFolder: classes by WordNet id, not in the order of ``wnids.txt``,
    and files sorted by name. Classes are called by ``words.txt``, by their id where there is no word.

    Raises:
        DataError: not there, or parts of it missing; all named.
    """
    for root in places.below("tiny-imagenet-200"):
        ids = class_folders(root / "train", wordnet=True)
        if not ids:
            continue
        inner = "images" if (root / "train" / ids[0] / "images").is_dir() else ""
        train = images_of(root, "train", ids, inner)
        return TreeSource(name, root, _words(root / "words.txt", ids), {"train": train, "test": _tiny_val(root, ids)})
    raise places.missing(
        [
            "[tiny-imagenet-200/]train/nXXXXXXXX/images/*.JPEG",
            "[tiny-imagenet-200/]val/images/*.JPEG with val/val_annotations.txt, or val/nXXXXXXXX/*.JPEG",
            "[tiny-imagenet-200/]words.txt (the names of the classes; may be left out)",
        ]
    )


def _tiny_val(root: Path, ids: list[str]) -> Listed:
    annotations = root / "val" / "val_annotations.txt"
    if class_folders(root / "val", wordnet=True) == ids:
        return images_of(root, "val", ids, "images" if (root / "val" / ids[0] / "images").is_dir() else "")
    if not annotations.is_file():
        raise DataError(f"{annotations} is missing: the validation images have no labels", "unpack the archive again")
    label = {wordnet: k for k, wordnet in enumerate(ids)}
    paths, labels, wrong = [], [], []
    for number, line in enumerate(annotations.read_text(errors="replace").splitlines(), start=1):
        file, _, rest = line.partition("\t")
        wordnet = rest.partition("\t")[0].strip()
        if wordnet in label:
            paths.append(f"val/images/{file}")
            labels.append(label[wordnet])
        elif line.strip():
            wrong.append(f"line {number}: {line[:60]!r}")
    if wrong or not paths:
        raise DataError(
            f"{annotations}: not an image and the id of a class of train:\n{listing(wrong or ['no line in it'])}",
            "unpack the archive again",
        )
    return checked(annotations, paths, labels)


def _words(path: Path, ids: list[str]) -> list[str]:
    """The first word for each WordNet id in a file of "id<tab>word, word"."""
    if not path.is_file():
        return ids
    lines = (line.split("\t", 1) for line in path.read_text(errors="replace").splitlines() if "\t" in line)
    words = {wordnet.strip(): text.split(",")[0].strip() for wordnet, text in lines}
    chosen = [words.get(wordnet) or wordnet for wordnet in ids]
    return [w if chosen.count(w) == 1 else f"{w} ({wordnet})" for w, wordnet in zip(chosen, ids, strict=True)]


Rewrite = Callable[[str], str]

IMAGENET = ("imagenet", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
PLACES = ("places365", "Places365", "places365_standard")
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


def _cifar(name: str, places: Places) -> CifarSource:
    found = read_cifar(name, places.root, 100 if places.name.startswith("cifar100") else 10)
    if isinstance(found, CifarSource):
        return found
    raise places.missing(found)


READERS: dict[str, Callable[[str, Places], Source]] = {
    "cifar": _cifar,
    "tiny_imagenet": read_tiny_imagenet,
    "imagenet_lt": read_imagenet_lt,
    "places_lt": read_places_lt,
    "inaturalist": read_inaturalist,
}
"""{layout: function (name, places) -> source}."""
