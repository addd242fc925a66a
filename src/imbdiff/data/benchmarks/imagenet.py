"""ImageNet and Tiny-ImageNet as they are distributed; classes are numbered in the order of their WordNet ids."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from imbdiff.data.benchmarks.opening import Places
from imbdiff.data.benchmarks.trees import Listed, TreeSource, checked, class_folders, image_files, images_of
from imbdiff.runtime.errors import DataError, listing

ROOTS = ("imagenet", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")
"""Folders below the root in which ImageNet's ``train`` and ``val`` are looked for."""
SOLUTION = "LOC_val_solution.csv"


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


def read_imagenet(name: str, places: Places) -> TreeSource:
    """All of ImageNet, whose validation images are the split "test"; classes are called by their WordNet ids.

    Raises:
        DataError: not there, or validation images without labels.
    """
    for root in places.below(*ROOTS):
        ids = class_folders(root / "train", wordnet=True)
        if ids:
            train = images_of(root, "train", ids)
            return TreeSource(name, root, ids, {"train": train, "test": _val(root, places, ids)}, nearly=True)
    raise places.missing([f"[{root}/]train/nXXXXXXXX/*.JPEG" for root in ROOTS])


def _val(root: Path, places: Places, ids: list[str]) -> Listed:
    if class_folders(root / "val", wordnet=True) == ids:
        return images_of(root, "val", ids)
    files = image_files(root / "val")
    solution = next((f / SOLUTION for f in (root, places.root) if (f / SOLUTION).is_file()), None)
    if not files or solution is None:
        raise DataError(
            f"the validation images of {root} have no labels; looked for val/nXXXXXXXX/*.JPEG of all {len(ids)} "
            f"classes of train, and for val/*.JPEG with {SOLUTION} here or in {places.root}",
            "sort them into class folders, or take the table of labels from the ImageNet challenge on Kaggle",
        )
    label = {wordnet: k for k, wordnet in enumerate(ids)}
    of_image = {}
    with open(solution, newline="", encoding="utf-8", errors="replace") as handle:
        for row in csv.reader(handle):
            found = re.match(r"n\d{8}", row[1].strip()) if len(row) > 1 else None
            if found and found[0] in label:
                of_image[row[0]] = label[found[0]]
    unknown = [file for file in files if Path(file).stem not in of_image]
    if unknown:
        raise DataError(
            f"{solution} gives {len(unknown)} validation images no class of train:\n{listing(unknown)}",
            "take the whole table and all class folders",
        )
    return Listed([f"val/{file}" for file in files], [of_image[Path(file).stem] for file in files])
