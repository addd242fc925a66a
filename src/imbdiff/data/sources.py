"""Opening a source of labelled images, of any kind: one table of prefixes, names and endings."""

from __future__ import annotations

import difflib
import errno
from importlib import import_module
from pathlib import Path
from typing import Any

from imbdiff.data.benchmarks import BENCHMARKS
from imbdiff.data.folder import is_image
from imbdiff.data.names import counted
from imbdiff.data.source import Source
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import ConfigError, DataError, listing
from imbdiff.runtime.tables import known

SCHEMES: dict[str, str] = {"hf": "datasets_source", "https": "datasets_source", "http": "datasets_source",
                           "module": "objects"}  # fmt: skip
"""{prefix: module of imbdiff.data} of sources that are named, not a path.

Each module has ``open_source(spec)``, and OPTIONS, the names of the options that it takes; None = any.
"""
ENDINGS: dict[str, str] = {
    **dict.fromkeys((".txt", ".csv", ".tsv"), "lists"),
    ".zip": "archive",
    ".npz": "arrays",
    **dict.fromkeys((".parquet", ".tar", ".tar.gz", ".tgz"), "datasets_source"),
}
"""{ending of a file's name: module}."""
NAMES: dict[str, str] = {"digits": "arrays", **dict.fromkeys(BENCHMARKS, "benchmarks")}
"""{name: module} of the built-in names and benchmarks; entry points of the group ``imbdiff.sources`` are names too."""

REMEDY = (
    "give a folder of class folders, a zip, npz, parquet or tar file, a list or table of files (.txt, .csv, .tsv), "
    "hf:NAME, module:PACKAGE.MODULE:NAME, the name of a benchmark, or digits: docs/sources.md"
)


def load(
    source: Any, *, flippable: bool | None = None, strict: bool = True, group: Any = None, incomplete: bool = False
) -> Source:
    """Opens a source of labelled images.

    Args:
        source: "digits" (scikit-learn's 1,797 handwritten digits, 8 x 8, grey, no download; a folder of that name is
            "./digits"); a path or name of any kind that docs/sources.md lists, with its options behind a question mark;
            an ImageSet; a pair (X, y) of arrays as in :class:`ArraySource`; an object with a length whose items are
            (image, label), such as a data set of torch or torchvision, or {"train": ..., "test": ...} of these; or a
            source, which is returned as it is.
        flippable: whether images mean the same when mirrored; None = as the source says.
        strict: for training. To measure images or predict their classes (False), one class or no labels are enough of a
            folder, zip file, list or .npz file; so is a single image.
        group: which images belong together: (N,) values of the training images, {split: (N,) values}, or the option
            ``group`` of a source that is a path; docs/sources.md.
        incomplete: classes may lack training images.

    Raises:
        DataError: nothing there, or not usable as it is; the message says why and what to do.
        ConfigError: options that sources of this kind do not take, or that make no sense.
    """
    if isinstance(source, Source):
        opened = source
    elif isinstance(source, str | Path):
        spec = parse(str(source))
        spec.strict = strict
        if isinstance(group, str):
            spec.options["group"], group = group, None
        try:
            opened = _open(spec)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise DataError(f"{spec.text[:80]}... does not exist: the name is too long", REMEDY) from error
    else:
        from imbdiff.data.objects import as_source

        opened = as_source(source, "the data")
    if flippable is not None:
        opened.flippable = flippable
    if group is not None:
        opened.group_by(group)
    if opened.without_images and strict and not incomplete:
        empty = opened.without_images
        raise DataError(
            f"{opened.name}: {counted(len(empty), 'class has', 'classes have')} no training image:\n"
            f"{listing(map(repr, empty))}",
            "add images of them, or remove these folders"
            if opened.kind in ("folder", "zip")
            else "add training images of them, or leave out the images of these classes and their names",
        )
    return opened


def parse(text: str) -> Spec:
    """A source as it is written on the command line, in its parts."""
    return Spec.parse(text, SCHEMES, known("sources", NAMES))


def _open(spec: Spec) -> Source:
    module = import_module(f"imbdiff.data.{_module(spec)}")
    strange = [] if module.OPTIONS is None else [name for name in spec.options if name not in module.OPTIONS]
    if strange:
        takes = ", ".join(sorted(module.OPTIONS)) or "no options"
        raise ConfigError(f"{spec.text}: unknown option {', '.join(strange)}", f"sources of this kind take {takes}")
    opened: Source = module.open_source(spec)
    return opened


def _module(spec: Spec) -> str:
    """The module of imbdiff.data that opens a source."""
    if spec.scheme:
        return SCHEMES[spec.scheme]
    if spec.built_in:
        return NAMES.get(spec.rest, "objects")
    path = user_path(spec.rest)
    if path.is_dir():
        shards = any(path.glob("*.tar")) and not any(entry.is_dir() for entry in path.iterdir())
        return "datasets_source" if shards else "folder"
    if not spec.strict and is_image(path.name) and path.is_file():
        return "folder"
    name = path.name.lower()
    for ending, module in ENDINGS.items():
        if name.endswith((ending, ending + "}")):
            return module
    if path.exists():
        raise DataError(f"{spec.text} is neither a folder nor a file of a kind that is read", REMEDY)
    near = difflib.get_close_matches(spec.rest, known("sources", NAMES), n=1)
    raise DataError(f"{spec.text} does not exist", f"did you mean {near[0]}? Otherwise {REMEDY}" if near else REMEDY)
