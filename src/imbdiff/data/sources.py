"""Opening a source of labelled images, of any kind: one table of prefixes, names and endings."""

from __future__ import annotations

import difflib
import errno
from importlib import import_module
from pathlib import Path
from typing import Any

from imbdiff.data.arrays import ArraySource, DigitsSource, NpzSource
from imbdiff.data.benchmarks import BENCHMARKS
from imbdiff.data.folder import FolderSource
from imbdiff.data.imageset import ImageSet
from imbdiff.data.source import Source, Survey
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.tables import known

__all__ = ["ArraySource", "DigitsSource", "FolderSource", "NpzSource", "Source", "Survey", "load", "parse"]

SCHEMES: dict[str, str] = {
    "hf": "imbdiff.data.datasets_source",
    "module": "imbdiff.data.objects",
    **dict.fromkeys(("https", "http"), "imbdiff.data.datasets_source"),
}
"""{prefix: module} of sources that are named, not a path; each module has ``open_source(spec, flippable)``."""
ENDINGS: dict[str, str] = {
    **dict.fromkeys((".txt", ".csv", ".tsv"), "imbdiff.data.lists"),
    ".zip": "imbdiff.data.archive",
    **dict.fromkeys((".parquet", ".tar", ".tar.gz", ".tgz"), "imbdiff.data.datasets_source"),
}
"""{ending of a file's name: module}."""
NAMES: dict[str, str] = {"digits": "", **dict.fromkeys(BENCHMARKS, "imbdiff.data.benchmarks")}
"""{name: module} of the built-in names and benchmarks; entry points of the group ``imbdiff.sources`` are names too."""

REMEDY = (
    "give a folder of class folders, a zip, npz, parquet or tar file, a list or table of files (.txt, .csv, .tsv), "
    "hf:NAME, module:PACKAGE.MODULE:NAME, the name of a benchmark, or digits: docs/sources.md"
)


def load(source: Any, *, flippable: bool | None = None) -> Source:
    """Opens a source of labelled images.

    Args:
        source: "digits" (scikit-learn's 1,797 handwritten digits, 8 x 8, grey, no download; a folder of that name is
            "./digits"); a path or name of any kind that docs/sources.md lists, with its options behind a question mark;
            an ImageSet; a pair (X, y) of arrays as in :class:`ArraySource`; an object with a length whose items are
            (image, label), such as a data set of torch or torchvision, or {"train": ..., "test": ...} of these; or a
            source, which is returned as it is.
        flippable: whether images mean the same when mirrored; None = no.

    Raises:
        DataError: nothing there, or not usable as it is; the message says why and what to do.
    """
    if isinstance(source, Source):
        opened = source
    elif isinstance(source, ImageSet):
        opened = ArraySource.of(source)
    elif isinstance(source, tuple):
        if len(source) != 2:
            raise DataError(f"a tuple of {len(source)} values is no source", "give a pair of arrays (X, y)")
        opened = ArraySource({"train": source})
    elif not isinstance(source, str | Path):
        from imbdiff.data.objects import HOW, as_source, is_content

        if not is_content(source):
            raise DataError(f"a {type(source).__name__} is no source", f"give 'digits' or a path, or {HOW}")
        opened = as_source(source, "the data set")
    else:
        spec = parse(str(source))
        place = spec.absolute()
        try:
            opened = _open(spec, bool(flippable))
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise DataError(f"{spec.text[:80]}... does not exist: the name is too long", REMEDY) from error
        opened.place = place if opened.place == spec.text else opened.place
    if flippable is not None:
        opened.flippable = flippable
    return opened


def parse(text: str) -> Spec:
    """A source as it is written on the command line, in its parts."""
    return Spec.parse(text, SCHEMES, known("sources", NAMES))


def _open(spec: Spec, flippable: bool) -> Source:
    path = user_path(spec.rest)
    module = SCHEMES[spec.scheme] if spec.scheme else NAMES.get(spec.rest, "")
    if spec.rest == "digits" and not spec.scheme:
        spec.finish(())
        return DigitsSource(flippable)
    if not module and spec.built_in:
        module = "imbdiff.data.objects"
    if not module and not path.is_dir():
        name = path.name.lower()
        module = next((module for ending, module in ENDINGS.items() if name.endswith((ending, ending + "}"))), "")
    if not module and path.is_dir() and any(path.glob("*.tar")) and not any(entry.is_dir() for entry in path.iterdir()):
        module = "imbdiff.data.datasets_source"
    if module:
        return import_module(module).open_source(spec, flippable)
    if path.is_dir():
        spec.finish(())
        return FolderSource(path, spec.text, flippable)
    if path.suffix.lower() == ".npz" and path.is_file():
        spec.finish(())
        return NpzSource(path, spec.text, flippable)
    if path.exists():
        raise DataError(f"{spec.text} is neither a folder nor a file of a kind that is read", REMEDY)
    near = difflib.get_close_matches(spec.rest, known("sources", NAMES), n=1)
    raise DataError(f"{spec.text} does not exist", f"did you mean {near[0]}? Otherwise {REMEDY}" if near else REMEDY)
