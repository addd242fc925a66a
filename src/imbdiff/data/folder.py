"""Class folders, ``DIR/cat/1.png`` or ``DIR/train/cat/1.png``, on a disk or in a zip file: classes and splits.

With a folder ``train``, the splits are the folders ``train``, ``val`` (or ``valid``, ``validation``) and ``test``;
without, every folder is a class. Hidden files and files that are no images are left out and counted.
"""

from __future__ import annotations

import json
import os
import posixpath
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from os.path import splitext
from pathlib import Path

import numpy as np

from imbdiff.data.arrays import ONE_CLASS
from imbdiff.data.decode import EXTENSIONS
from imbdiff.data.labels import in_class_order
from imbdiff.data.names import counted, display_name, is_text, safe_class_dirs
from imbdiff.data.reading import PathReader
from imbdiff.data.source import Records, Source
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import DataError, listing

OPTIONS = ()
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
NAMED = 3  # files that are no images, named in the note
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
    tree = walk(path, splits=spec.strict)
    if spec.strict and (root := common_root(tree.images, tree.folders)):
        raise DataError(
            f"{spec.text} has only one class folder, {root.split('/')[0]!r}, and that has folders inside",
            f"the classes may be deeper: give {path / root}",
        )
    try:
        splits, names, notes = by_class(tree, spec.text) if spec.strict else by_folder(tree, spec.text)
    except DataError as error:
        if described := [name for name in tree.others if posixpath.basename(name) in METADATA]:
            remedy = f"where {described[0]} says the labels, give hf:{path}, which reads it; otherwise {error.remedy}"
            raise DataError(error.message, remedy) from error
        raise
    notes += left_out(tree, spec.text)
    if described := [name for name in ("manifest.json", "plan.json") if name in tree.others]:  # a plan: unfinished
        splits, names = as_called(splits, names, (path / described[0]).read_bytes())
    return Source(spec.text, "folder", splits, PathReader(path), names, notes, strict=spec.strict)


def walk(root: Path, *, splits: bool = True) -> Tree:
    """The files below a folder on disk; with `splits`, where there is a folder train, not those in ignored ones.

    Raises:
        DataError: a folder that cannot be listed, links that lead out of `root`, links to folders in place of splits or
            classes, names that are not text.
    """
    tree = Tree()
    parted = False
    real = os.path.realpath(root)
    refused = []
    todo = [""]
    while todo:
        folder = todo.pop()
        try:
            with os.scandir(root / folder) as entries:
                found = list(entries)
        except OSError as error:
            raise DataError(f"cannot list {root / folder}: {error.strerror}", "check its permissions") from error
        if splits and not folder:
            parted = any(e.name.lower() in SPLIT_FOLDERS["train"] and os.path.isdir(root / e.name) for e in found)
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
                ignored = parted and not folder and not _is_split(path)
                if not link:
                    tree.folders.append(path)
                    todo += [] if ignored else [path]
                elif ignored or path.count("/") > parted:
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


def by_class(tree: Tree, where: str) -> tuple[dict[str, Records], list[str], list[str]]:
    """The images of every split, class by class, the names of the classes, and notes.

    Raises:
        DataError: no image in a class folder, or splits that are not clear.
    """
    tops = [folder for folder in tree.folders if "/" not in folder]
    found = {split: [top for top in tops if top.lower() in names] for split, names in SPLIT_FOLDERS.items()}
    for split, same in found.items():
        if found["train"] and len(same) > 1:
            raise DataError(f"{where} has more than one {split} folder: {', '.join(same)}", "keep one of them")
    orphans = [top for top in found["val"] + found["test"] if _holds_folders_alone(top, tree)]
    if orphans and not found["train"]:
        raise DataError(
            f"{where} has {', '.join(orphans)}/ with class folders inside, but no train/",
            "put the training images into train/CLASS/, or give the folder that holds the class folders",
        )
    splits = {same[0]: split for split, same in found.items() if same} if found["train"] else {"": "train"}
    rows: dict[str, list[tuple[str, str]]] = {split: [] for split in splits.values()}
    outside = 0
    for path in tree.images:
        top, _, below = path.partition("/") if found["train"] else ("", "", path)
        name, inside, _ = below.partition("/")
        if not inside:
            outside += 1
        elif top in splits:
            rows[splits[top]].append((_nfc(name), path))
    notes = [f"ignored in {where}: {counted(outside, 'image')} outside a class folder"] if outside else []
    if not rows["train"]:
        raise DataError(
            "\n  ".join([f"no class folder with images found in {where}", *notes, *left_out(tree, where)]),
            "give a folder that has one folder per class (DIR/cat/1.png), or DIR/train/cat/1.png",
        )
    train = next(top for top, split in splits.items() if split == "train")
    folders = {_nfc(posixpath.basename(f)) for f in tree.folders if posixpath.dirname(f) == train}
    names = in_class_order(folders.union(*({name for name, _ in some} for some in rows.values())))
    if empty := [repr(name) for name in names if name not in {name for name, _ in rows["train"]}]:
        raise DataError(
            f"{where}: {counted(len(empty), 'class has', 'classes have')} no training image:\n{listing(empty)}",
            "add images of them, or remove these folders",
        )
    stray = sorted(set(tops) - set(splits)) if found["train"] else []
    notes += [f"ignored next to train/: the folders {', '.join(stray[:20])}"] if stray else []
    notes += [f"{split}/ in {where} holds no image and counts as not given" for split in rows if not rows[split]]
    return {split: _records(images, names) for split, images in rows.items() if images}, names, notes


def by_folder(tree: Tree, where: str) -> tuple[dict[str, Records], list[str], list[str]]:
    """As :func:`by_class`, where every folder is a class; images in no folder are one class if there is no other."""
    rows = [(_nfc(path.split("/")[0]), path) for path in tree.images if "/" in path]
    outside = len(tree.images) - len(rows) if rows else 0
    rows = rows or [(ONE_CLASS, path) for path in tree.images]
    if not rows:
        raise DataError(f"there is no image in {where}", "give a folder of images, or of one folder per class")
    names = in_class_order({name for name, _ in rows})
    notes = [f"ignored in {where}: {counted(outside, 'image')} outside a class folder"] if outside else []
    return {"train": _records(rows, names)}, names, notes


def _records(rows: Iterable[tuple[str, str]], names: Sequence[str]) -> Records:
    """Records of (class, path), class by class, each sorted by path."""
    number = {name: k for k, name in enumerate(names)}
    found = sorted((number[name], path) for name, path in rows)
    return Records([path for _, path in found], np.array([k for k, _ in found], np.int64))


def left_out(tree: Tree, where: str) -> list[str]:
    """Notes on what was left out because of what it is."""

    def shown(names: list[str]) -> str:
        return ", ".join([display_name(name, 120) for name in sorted(names)[:NAMED]] + ["..."] * (len(names) > NAMED))

    unread = [name for name in tree.others if splitext(name)[1].lower() in UNREAD]
    no_images = sorted(set(tree.others) - set(unread))
    kinds = ", ".join(sorted({splitext(name)[1].lower() for name in unread}))
    notes = [
        (tree.hidden, counted(tree.hidden, "hidden file")),
        (tree.linked, f"{counted(tree.linked, 'linked folder')}, which are not followed"),
        (len(no_images), f"{counted(len(no_images), 'file that is no image', 'files that are no images')}: "
                         f"{shown(no_images)}"),
        (len(unread), f"{counted(len(unread), 'image')} of a kind that is not read ({kinds}), to be converted to PNG "
                      f"or JPEG: {shown(unread)}"),
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
        if _is_split(part) or len(beside) > 1:
            break
        kept.append(part)
    return "/".join(kept)


def _is_split(folder: str) -> bool:
    return any(folder.lower() in names for names in SPLIT_FOLDERS.values())


def _holds_folders_alone(folder: str, tree: Tree) -> bool:
    """Whether folders and no images are directly in a folder."""
    return any(posixpath.dirname(f) == folder for f in tree.folders) and not any(
        posixpath.dirname(path) == folder for path in tree.images
    )


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)  # macOS writes accents as separate characters


def is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def is_image(path: str) -> bool:
    return splitext(path)[1].lower() in EXTENSIONS


def is_inside(path: str, root: str) -> bool:
    """Whether a path is `root` or below it; both without links and dots."""
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
