"""Where the files of the benchmarks are, and how they are read: class folders and list files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imbdiff.data.folder import walk
from imbdiff.data.lists import read_lines
from imbdiff.data.names import counted
from imbdiff.data.reading import PathReader
from imbdiff.data.source import Records, Source
from imbdiff.data.spec import Spec
from imbdiff.runtime.errors import DataError, listing

_NUMBER = re.compile("[0-9]{1,9}")
TRIED = 16
"""Listed images that are looked for on opening; the rest is when headers are read."""


@dataclass(frozen=True)
class Files:
    """Where the files of a benchmark may be.

    Attributes:
        name: the benchmark's.
        text: the source as it was written.
        root: the folder that was given.
        lists: the folder of list files that was given, or None.
        get: where one gets the files, in words.
    """

    name: str
    text: str
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


Read = Callable[[Files], Source]


def read_tiny_imagenet(files: Files) -> Source:
    """Tiny-ImageNet; its validation images, by ``val_annotations.txt`` or in class folders, are the split "test".

    The literature reads it with torchvision's ImageFolder: classes by WordNet id, not in the order of ``wnids.txt``,
    and files sorted by name. Classes are called by ``words.txt``, by their id where there is no word.

    Raises:
        DataError: not there, or validation images without a class.
    """
    wordnet = "n" + 8 * "[0-9]"
    roots = [root for root in files.below("tiny-imagenet-200") if any((root / "train").glob(f"{wordnet}/"))]
    if not roots:
        raise files.missing(
            [
                "[tiny-imagenet-200/]train/nXXXXXXXX/images/*.JPEG",
                "[tiny-imagenet-200/]val/images/*.JPEG with val/val_annotations.txt, or val/nXXXXXXXX/*.JPEG",
                "[tiny-imagenet-200/]words.txt (the names of the classes; may be left out)",
            ]
        )
    root = roots[0]
    paths = sorted(walk(root, Spec(str(root))).images)
    train = [path for path in paths if re.match(f"train/{wordnet}/", path)]
    ids = sorted({path.split("/")[1] for path in train})
    val = [path for path in paths if path.startswith("val/")]
    annotated = dict(line.split("\t")[:2] for line in _lines(root / "val" / "val_annotations.txt") if "\t" in line)
    labels = [annotated.get(path.rpartition("/")[2]) or path.split("/")[1] for path in val]
    strange = [path for path, label in zip(val, labels, strict=True) if label not in ids]
    if strange or not val:
        raise DataError(
            f"validation images of {root} without a class of train:\n{listing(strange or ['there is none'])}",
            "unpack the archive again; val/val_annotations.txt or folders in val/ say the classes",
        )
    words = dict(line.split("\t", 1) for line in _lines(root / "words.txt") if "\t" in line)
    names = [words.get(one, one).split(",")[0].strip() for one in ids]
    unique = {one: n if names.count(n) == 1 else f"{n} ({one})" for one, n in zip(ids, names, strict=True)}
    splits = {"train": Records(train, [path.split("/")[1] for path in train]), "test": Records(val, labels)}
    return Source(files.text, "benchmark", splits, PathReader(root), unique)


def _lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


@dataclass(frozen=True)
class Lists:
    """A benchmark by list files, which name images below a folder and their class numbers.

    Attributes:
        files: {split: list file}.
        folders: below the root, in which the lists may be.
        roots: below the root, in which the images may be.
        skip: folders in front of those that name the class.
        moved: (pattern, replacement) of paths whose files may be elsewhere below that folder.
    """

    files: dict[str, str]
    folders: tuple[str, ...]
    roots: tuple[str, ...]
    skip: int
    moved: tuple[str, str] = ("", "")

    def __call__(self, files: Files) -> Source:
        where = [files.lists] if files.lists else files.below(*self.folders, *self.roots)
        found = [folder for folder in where if all((folder / file).is_file() for file in self.files.values())]
        if not found:
            places = str(files.lists) if files.lists else f"the folder itself, {', '.join(self.folders + self.roots)}"
            raise files.missing([", ".join(self.files.values()), f"in: {places}"])
        rows = {split: _rows(found[0] / file) for split, file in self.files.items()}
        numbers = {int(label) for _, label in rows["train"]}
        if gaps := sorted(set(range(len(numbers))) - numbers):
            raise DataError(
                f"{found[0] / self.files['train']} has no image of these classes:\n{listing(map(str, gaps))}",
                "complete the list; classes are numbered from 0",
            )
        for root in files.below(*self.roots):
            splits = {split: self._placed(root, some) for split, some in rows.items()}
            if all(splits.values()):
                records = {split: one for split, one in splits.items() if one}
                return Source(files.text, "benchmark", records, PathReader(root), self._names(rows["train"]))
        raise files.missing([f"{some[0][0]} ({split})" for split, some in rows.items()])

    def _placed(self, root: Path, rows: list[tuple[str, str]]) -> Records | None:
        """The images, if a few of them, evenly taken, are where the list says or where they are often moved to."""
        ids, labels = [path for path, _ in rows], [label for _, label in rows]
        for places in (ids, [re.sub(*self.moved, path) for path in ids]):
            if all((root / path).is_file() for path in places[:: max(1, len(places) // TRIED)]):
                return Records(ids, labels, places)
        return None

    def _names(self, rows: list[tuple[str, str]]) -> dict[str, str] | None:
        """{label: folder of its images}; None where a class has several folders or shares one: numbers are names."""
        folders: dict[str, set[str]] = defaultdict(set)
        for path, label in rows:
            folders[label].add("/".join(path.split("/")[self.skip : -1]))
        names = {label: "/".join(found) for label, found in folders.items() if len(found) == 1}
        return names if len(set(names.values())) == len(folders) and all(names.values()) else None


def _rows(path: Path) -> list[tuple[str, str]]:
    """(path of an image, label) of every line of a list.

    Raises:
        DataError: no list, paths that lead out of the folder, labels that are no class numbers, images listed twice.
    """
    lines = [(number, name.strip().removeprefix("/"), label) for number, (name, label) in read_lines(path, [])]
    rows = [(name, label) for _, name, label in lines]
    outside = [repr(name) for name, _ in rows if name[:1] in ("", "/") or ".." in re.split(r"[/\\]", name)]
    if outside or not rows:
        raise DataError(
            f"{path} lists no image, or has paths that lead out of the folder:\n{listing(outside)}",
            "write paths below it",
        )
    first: dict[str, int] = {}
    wrong = [f"line {i}: {label!r} is no class number" for i, _, label in lines if not _NUMBER.fullmatch(label)]
    wrong += [f"line {i}: {name!r} is in line {first[name]} too" for i, name, _ in lines
              if first.setdefault(name, i) != i]  # fmt: skip
    if wrong:
        raise DataError(
            f"{path} has {counted(len(wrong), 'line')} that cannot be used:\n{listing(wrong)}",
            "list each image once, as PATH LABEL, the label a class number",
        )
    return rows


IMAGENET_LT = Lists(
    {split: f"ImageNet_LT_{split}.txt" for split in ("train", "val", "test")},
    ("ImageNet_LT", "data_txt/ImageNet_LT"),
    ("imagenet", "ImageNet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC"),
    1, (r"^val/.*/", "val/"),
)  # fmt: skip
PLACES_LT = Lists(
    {split: f"Places_LT_{split}.txt" for split in ("train", "val", "test")},
    ("Places_LT_v2", "data_txt/Places_LT_v2"),
    ("places365", "Places365", "places365_standard", "Places_LT"),
    2, (r"^data_256/", "data_256_standard/"),
)  # fmt: skip
INATURALIST = Lists(
    {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
    ("iNaturalist18", "data_txt/iNaturalist18"),
    ("inaturalist2018", "iNaturalist18", "iNat18", "inat2018"),
    1,
)
