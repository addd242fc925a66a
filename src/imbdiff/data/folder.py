"""Class folders, ``DIR/cat/1.png`` or ``DIR/train/cat/1.png``, on a disk or in a zip file: classes and splits.

With a folder ``train`` that holds class folders, the splits are the folders called ``train``, ``val`` and ``test``, in
the spellings of :mod:`imbdiff.data.split_names`, or those that the options train, val and test name; without, every
folder is a class. Hidden files, files that are no images, and by-products of other images are left out and counted.
"""

from __future__ import annotations

import json
import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os.path import splitext
from pathlib import Path

import numpy as np

from imbdiff.data.arrays import ONE_CLASS
from imbdiff.data.byproducts import KEEP, is_hidden, is_pictures, left_out_byproducts
from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.grouping import by_pattern, unused_names
from imbdiff.data.labels import in_class_order
from imbdiff.data.names import counted, is_text, named, safe_class_dirs, shown
from imbdiff.data.reading import PathReader
from imbdiff.data.source import Records, Source
from imbdiff.data.spec import Spec, user_path
from imbdiff.data.split_names import SPELLINGS, assigned, looks_like_split, word_of
from imbdiff.runtime.errors import ConfigError, DataError, listing

OPTIONS = ("split", "train", "val", "test", "group", KEEP)
_PLAIN = ("train", "val", "valid", "validation", "test")
METADATA = frozenset({"metadata.jsonl", "metadata.csv", "metadata.parquet"})
"""Files beside images that say their labels, as the library `datasets` reads them."""
UNREAD = frozenset({".heic", ".heif", ".avif", ".dcm", ".jp2", ".jxl", ".psd", ".svg", ".cr2", ".cr3", ".nef", ".dng"})
"""Endings of images of kinds that are not read."""


@dataclass
class Tree:
    """What is below a root, by paths with forward slashes.

    Attributes:
        images: files that are images by their names.
        folders: that are not hidden.
        others: files that are no images.
        hidden: files and folders that are hidden, and of such folders not what is inside.
        linked: links to folders, which are not followed.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: int = 0
    linked: int = 0

    @cached_property
    def inside(self) -> dict[str, set[str]]:
        """{folder: the names of the folders in it}, "" being the root."""
        found: dict[str, set[str]] = defaultdict(set)
        for folder in self.folders:
            found[posixpath.dirname(folder)].add(posixpath.basename(folder))
        return found

    @cached_property
    def pictured(self) -> set[str]:
        """The folders that hold images, not those that hold them deeper."""
        return {posixpath.dirname(path) for path in self.images}

    def holds(self, folder: str) -> tuple[bool, bool]:
        """Whether a folder holds folders, and images."""
        return bool(self.inside.get(folder)), folder in self.pictured


def open_source(spec: Spec) -> Source:
    """Image files in class folders; where it is not for training, also a single image.

    Raises:
        DataError: no image, one class only, a class without images, a class in val or test that train lacks; links
            that leave the folder, names that are not valid text.
    """
    path = user_path(spec.rest)
    if path.is_file():
        one = {"train": Records([path.name], [ONE_CLASS])}
        return Source(spec.text, "file", one, PathReader(path.parent), strict=False)
    tree = walk(path, spec)
    try:
        splits, names, notes = by_class(tree, spec)
        if said := [name for name in ("manifest.json", "plan.json") if name in tree.others]:  # a plan: unfinished
            splits, names = as_called(splits, names, (path / said[0]).read_bytes())
        reader = PathReader(path)
        return Source(spec.text, "folder", splits, reader, names, notes, strict=spec.strict, spare=False)
    except DataError as error:
        if described := [name for name in tree.others if posixpath.basename(name) in METADATA]:
            remedy = f"where {described[0]} says the labels, give hf:{path}, which reads it; otherwise {error.remedy}"
            raise DataError(error.message, remedy) from error
        raise


def walk(root: Path, spec: Spec) -> Tree:
    """The files below a folder on disk; where it has splits, not those in folders next to them.

    Raises:
        DataError: a folder that cannot be listed, links that lead out of `root`, links to folders in place of splits or
            classes, names that are not text.
    """
    tree = Tree()
    parts: Collection[str] = ()
    real = os.path.realpath(root)
    refused = []
    todo = [""]
    while todo:
        folder = todo.pop()
        found = _listed(root / folder)
        if not folder:
            tops = [e.name for e in found if not is_hidden(e.name) and os.path.isdir(root / e.name)]
            parts = split_folders(tops, lambda top: _holds(root / top), spec)
        for entry in found:
            path = f"{folder}/{entry.name}" if folder else entry.name
            link = entry.is_symlink()
            if is_hidden(entry.name):
                tree.hidden += 1
            elif not is_text(entry.name):
                refused.append(f"{str(root / path)!a}: not valid UTF-8")
            elif link and not is_inside(os.path.realpath(root / path), real):
                refused.append(f"{root / path}: a symbolic link that leads out of the folder")
            elif os.path.isdir(root / path) if link else entry.is_dir():
                ignored = bool(parts) and not folder and path not in parts
                if not link:
                    tree.folders.append(path)
                    todo += [] if ignored else [path]
                elif ignored or path.count("/") > bool(parts):
                    tree.linked += 1
                else:  # a split or a class
                    refused.append(f"{root / path}: a link to a folder: copy it, or give the folder itself")
            # ordinary files only: opening a pipe would wait for ever
            elif is_image(path) and (os.path.isfile(root / path) if link else entry.is_file()):
                tree.images.append(path)
            else:
                tree.others.append(path)
    if refused:
        raise DataError(
            f"{counted(len(refused), 'name')} below {root} cannot be used:\n{listing(sorted(refused))}",
            "rename these files or folders, and copy what links lead to into the folder",
        )
    return tree


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}", "check its permissions") from error


def _holds(folder: Path) -> tuple[bool, bool]:
    """Whether a folder holds folders, and images, by their names."""
    found = _listed(folder)
    return any(e.is_dir() for e in found), any(is_image(e.name) for e in found)


def split_folders(tops: Collection[str], holds: Callable[[str], tuple[bool, bool]], spec: Spec) -> dict[str, str]:
    """{folder: train, val or test} as options say, or by their names; {} where every folder is a class.

    Raises:
        ConfigError: options that contradict each other.
        DataError: no such folders; more than one folder of a split.
    """
    asked = {split: spec.options[split] for split in SPELLINGS if spec.options.get(split)}
    if spec.options.get("split") or ("split" in spec.options and asked):
        raise ConfigError(
            f"{spec.text}: of folders, split= can only be empty, and stand alone",
            "split= makes every folder a class; train=FOLDER&test=FOLDER say which are splits",
        )
    if "split" in spec.options:
        return {}
    if asked:
        names = {split: [text] if text in tops else text.split(",") for split, text in asked.items()}
        every = [name for some in names.values() for name in some]
        if not set(every) <= set(tops) or len(set(every)) < len(every) or "train" not in names:
            raise DataError(
                f"{spec.text}: no such folders, one twice, or none for training: {', '.join(every)}",
                f"it has the folders {', '.join(sorted(tops)[:20])}; choose: ?train=FOLDER,FOLDER&val=...&test=...",
            )
        return {name: split for split, some in names.items() for name in some}
    found = {split: [top for top in same if holds(top)[0]] or same for split, same in assigned(tops).items()}
    if not any(holds(top)[0] for top in found["train"]):
        return {}
    beside = [top for top in tops if not looks_like_split(top) and holds(top)[1]]
    if not (found["val"] or found["test"]) and len(beside) > 1:
        train = found["train"][0]
        raise DataError(
            f"{spec.text}: {train} may be a split, or a class as {named(beside, 3)} next to it",
            f"write SOURCE?split= where every folder is a class, SOURCE?train={train} where the others do not count",
        )
    for split, same in found.items():
        if len(same) > 1:
            raise DataError(
                f"{spec.text} has more than one {split} folder: {', '.join(sorted(same))}",
                f"keep one of them, or say which are splits, several with a comma: "
                f"SOURCE?train={found['train'][0]}&{split if split != 'train' else 'test'}=FOLDER",
            )
    return {same[0]: split for split, same in found.items() if same}


def by_class(tree: Tree, spec: Spec) -> tuple[dict[str, Records], list[str], list[str]]:
    """The images of every split, class by class, the names of the classes, and notes.

    Where it is not for training, images in no folder are one class if there is no other.

    Raises:
        DataError: no image in a class folder, or splits that are not clear.
    """
    where = spec.text
    splits = split_folders(tree.inside[""], tree.holds, spec)
    keep = spec.options.get(KEEP) == "keep"
    lost, notes = left_out_byproducts(tree.images, where, len(splits) > 0, keep)
    tree, whole = _without(tree, lost), tree
    tops = tree.inside[""]
    if len(tops) == 1 < len(whole.inside[""]) and not any(tree.inside.get(top) for top in tops):
        # one class alone would be left: it is not the masks of the other that have its numbers
        tree, tops, notes = whole, whole.inside[""], left_out_byproducts(whole.images, where, 0, keep=True)[1]
    if spec.strict and not splits:
        _check_classes(tree, spec)
        notes += _same_inside(tree, where)
    inner = {top: _inner(top, tree) for top in splits}
    rows: dict[str, list[tuple[str, str]]] = {split: [] for split in (splits or {"": "train"}).values()}
    outside = []
    for path in tree.images:
        top, _, below = path.partition("/") if splits else ("", "", path)
        name, inside, _ = below.removeprefix(inner.get(top, "")).partition("/")
        if not inside:
            outside.append(path)
        elif top in splits or not splits:
            rows[splits.get(top, "train")].append((_nfc(name), path))
    if not spec.strict and not any(rows.values()):
        rows["train"], outside = [(ONE_CLASS, path) for path in outside], []
    notes += [f"ignored in {where}: {counted(len(outside), 'image')} outside a class folder"] if outside else []
    if not (rows["train"] if spec.strict else any(rows.values())):
        nothing = f"no class folder with images found in {where}" if spec.strict else f"there is no image in {where}"
        raise DataError(
            "\n  ".join([nothing, *notes, *left_out(tree, where)]),
            "give a folder that has one folder per class (DIR/cat/1.png), or DIR/train/cat/1.png",
        )
    # classes without a training image too: they are refused by name
    train = [f"{top}/{inner[top]}".rstrip("/") for top in splits if splits[top] == "train"] or [""]
    folders = {_nfc(name) for top in train for name in tree.inside.get(top, ())} if spec.strict else set()
    names = in_class_order(folders.union(*({name for name, _ in some} for some in rows.values())))
    stray = sorted(tops - set(splits)) if splits else []
    notes += [f"ignored next to {train[0]}/: the folders {', '.join(stray[:20])}"] if stray else []
    notes += [
        f"{top}/ in {where} holds no image in a class folder and counts as not given"
        for top, split in splits.items()
        if not rows[split]
    ]
    if any(top.lower() not in _PLAIN for top in splits):
        notes.append(f"the splits of {where}: " + ", ".join(f"{top}/ is {split}" for top, split in splits.items()))
    records = {split: _records(images, names) for split, images in rows.items() if images}
    records, more = grouped(records, spec.options.get("group"), where, warn=spec.strict)
    return records, names, [*notes, *more, *left_out(tree, where)]


def grouped(
    records: dict[str, Records], pattern: str | None, where: str, *, warn: bool
) -> tuple[dict[str, Records], list[str]]:
    """The images with their groups by a pattern on their paths, and notes; "": none; None: a warning may be due."""
    ids = {split: one.ids for split, one in records.items()}
    if not pattern:
        every = [path for paths in ids.values() for path in paths]
        return records, unused_names(every, where) if pattern is None and warn else []
    groups, notes = by_pattern(ids, pattern, where)
    return {split: replace(one, groups=groups[split]) for split, one in records.items()}, notes


def _without(tree: Tree, lost: Collection[str]) -> Tree:
    """A tree without some images, and without folders that held nothing else."""
    kept = [path for path in tree.images if path not in lost]
    dead = {above for path in lost for above in _above(path)} - {above for path in kept for above in _above(path)}
    return replace(tree, images=kept, folders=[folder for folder in tree.folders if folder not in dead])


def _above(path: str) -> list[str]:
    """The folders that a path is in."""
    return [path[:i] for i, char in enumerate(path) if char == "/"]


def _inner(top: str, tree: Tree) -> str:
    """``name/`` where the only folder of a split has the name of a split again, or is called images; otherwise ""."""
    names = tree.inside.get(top, set())
    name = next(iter(names), "")
    steps = len(names) == 1 and tree.holds(f"{top}/{name}") == (True, False)
    return f"{name}/" if steps and (looks_like_split(name) or is_pictures(name)) else ""


def _check_classes(tree: Tree, spec: Spec) -> None:
    """Refuses folders that are no classes by all that they look like, where no option says what they are.

    Raises:
        DataError: a single one with folders inside; splits without one for training, without class folders, or of names
            that leave open which is which.
    """
    if root := common_root(tree.images, tree.folders):
        raise DataError(
            f"{spec.text} has only one class folder, {root.split('/')[0]!r}, and that has folders inside",
            f"the classes may be deeper: give {user_path(spec.rest) / root}"
            if not spec.rest.lower().endswith(".zip")
            else f"the classes may be deeper: unpack it, and give the folder {root}",
        )
    if "split" in spec.options:
        return
    tops, found = sorted(tree.inside[""]), assigned(tree.inside[""])
    alone = [top for top in tops if tree.holds(top) == (True, False)]
    orphans = [top for top in found["val"] + found["test"] if top in alone]
    like = [top for top in alone if looks_like_split(top)]
    classes = "where they are classes, write SOURCE?split="
    if len(like) > 1 and not orphans and any(tree.inside[like[0]] & tree.inside[other] for other in like[1:]):
        raise DataError(
            f"these folders of {spec.text} look like splits, with the same class folders inside: "
            f"{', '.join(like[:20])}",
            f"say which they are, several with a comma: SOURCE?train={like[-1]}&test={like[0]}; {classes}",
        )
    if orphans:
        raise DataError(
            f"{spec.text} has {', '.join(sorted(orphans))}/ with class folders inside, but no train/",
            "put the training images into train/CLASS/, give the folder that holds the class folders, or say which "
            f"folder is for training: SOURCE?train=FOLDER&test={orphans[0]}; {classes}",
        )
    if len(tops) > 1 and found["train"] and all(word_of(top) for top in tops):
        raise DataError(
            f"no class folder with images found in {spec.text}: {', '.join(tops)} look like splits",
            f"put the images into {found['train'][0]}/CLASS/; {classes}",
        )


def _same_inside(tree: Tree, where: str) -> list[str]:
    """A note where all folders hold the same folders, which may be the classes."""
    tops = sorted(tree.inside[""])
    shared = set.intersection(*(tree.inside.get(top, set()) for top in tops)) if len(tops) > 1 else set()
    if len(shared) < 2 or any(tree.holds(top)[1] for top in tops):
        return []
    return [
        f"the folders {', '.join(tops[:5])} of {where} are the classes, and all hold the folders "
        f"{', '.join(sorted(shared)[:5])}: if those are the classes, give one of the folders alone"
    ]


def _records(rows: Iterable[tuple[str, str]], names: Sequence[str]) -> Records:
    """Records of (class, path), class by class, each sorted by path."""
    number = {name: k for k, name in enumerate(names)}
    found = sorted((number[name], path) for name, path in rows)
    return Records([path for _, path in found], np.array([k for k, _ in found], np.int64))


def left_out(tree: Tree, where: str) -> list[str]:
    """Notes on what was left out because of what it is."""

    unread = [name for name in tree.others if splitext(name)[1].lower() in UNREAD]
    no_images = sorted(set(tree.others) - set(unread))
    kinds = ", ".join(sorted({splitext(name)[1].lower() for name in unread}))
    notes = [
        (tree.hidden, counted(tree.hidden, "hidden file")),
        (tree.linked, f"{counted(tree.linked, 'linked folder')}, which are not followed"),
        (len(no_images), f"{counted(len(no_images), 'file that is no image', 'files that are no images')}: "
                         f"{shown(no_images)}"),
        (len(unread), f"{counted(len(unread), 'image')} of a kind that is not read ({kinds}), to be converted to PNG "
                      f"or JPEG: {shown(sorted(unread))}"),
    ]  # fmt: skip
    return [f"ignored in {where}: {text}" for n, text in notes if n]


def as_called(splits: dict[str, Records], names: list[str], manifest: bytes) -> tuple[dict[str, Records], list[str]]:
    """Generated images with the names of their classes, which their folders may not bear; others as they are.

    Args:
        splits, names: with the names of the folders.
        manifest: the file manifest.json beside the folders, which may be of something else.
    """
    try:
        classes = json.loads(manifest)["class_names"]
        called = dict(zip(safe_class_dirs(classes), classes, strict=True))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return splits, names
    true = [called.get(name, name) for name in names]
    order = in_class_order(set(true))
    label = np.array([order.index(name) for name in true], np.int64)
    return {split: replace(rows, labels=label[rows.labels]) for split, rows in splits.items()}, order


def common_root(images: Collection[str], folders: Collection[str]) -> str:
    """The folder below which all class or split folders are: "" unless folders are alone above it.

    Args:
        images: their paths.
        folders: all that are there, also those without images.
    """
    parents = {posixpath.dirname(path) for path in images}
    if not parents or "" in parents:
        return ""
    root = posixpath.commonpath(parents)
    if root in parents:  # images are in it: it is a class
        root = posixpath.dirname(root)
    kept: list[str] = []
    for part in root.split("/"):
        beside = [folder for folder in folders if posixpath.dirname(folder) == "/".join(kept)]
        if word_of(part) or len(beside) > 1:
            break
        kept.append(part)
    return "/".join(kept)


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS writes accents as separate characters


def is_image(path: str) -> bool:
    return splitext(path)[1].lower() in EXTENSIONS


def is_inside(path: str, root: str) -> bool:
    """Whether a path is `root` or below it; both without links and dots."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
