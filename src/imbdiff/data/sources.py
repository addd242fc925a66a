"""Opening a source of labelled images: the digits that come with scikit-learn, a folder, an .npz file, arrays."""

from __future__ import annotations

import difflib
import errno
from importlib import import_module
from pathlib import Path

import numpy as np

from imbdiff.data.arrays import ArraySource
from imbdiff.data.benchmarks.table import BENCHMARKS
from imbdiff.data.folder import FolderSource
from imbdiff.data.imageset import ImageSet
from imbdiff.data.npz import NpzSource
from imbdiff.data.shards.names import PACKED, shards_of_folder
from imbdiff.data.source import Defaults, Source, Survey
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import DataError
from imbdiff.runtime.tables import known

__all__ = ["ArraySource", "DigitsSource", "FolderSource", "NpzSource", "Source", "Survey", "load"]


def load(
    source: str | Path | Source | ImageSet | tuple[np.ndarray, np.ndarray], *, flippable: bool | None = None
) -> Source:
    """Opens a source of labelled images.

    Args:
        source: "digits" (scikit-learn's 1,797 handwritten digits, 8 x 8, grey, no download; a folder of that name is
            "./digits"); a path or name of any kind that docs/sources.md lists, with its options behind a question mark;
            an ImageSet; a pair (X, y) of arrays as in :class:`ArraySource`; or a source, which is returned as it is.
        flippable: whether images mean the same when mirrored; None = no.

    Raises:
        DataError: nothing there, or not usable as it is; the message says why and what to do.
    """
    if isinstance(source, Source):
        if flippable is not None:
            source.flippable = flippable
        return source
    flip = bool(flippable)
    if isinstance(source, ImageSet):
        return ArraySource.of(source, flip)
    if isinstance(source, tuple):
        if len(source) != 2:
            raise DataError(f"a tuple of {len(source)} values is no source", "give a pair of arrays (X, y)")
        return ArraySource({"train": source}, flippable=flip)
    if not isinstance(source, str | Path):
        raise DataError(f"a {type(source).__name__} is no source", "give 'digits', a path, or a pair of arrays (X, y)")
    spec = parse(str(source))
    try:
        opened = _open(spec, flip)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise DataError(f"{spec.text[:80]}... does not exist: the name is too long", REMEDY) from error
    if flippable is not None:
        opened.flippable = flippable
    return opened


SCHEMES: dict[str, str] = {
    "hf": "imbdiff.data.hub.opening",
    "torchvision": "imbdiff.data.torchvision_sets",
    "module": "imbdiff.data.outside",
    **dict.fromkeys(("https", "http", "file"), "imbdiff.data.shards.remote"),
    **dict.fromkeys(("pipe", "s3", "gs", "hdfs", "ais", "ftp"), "imbdiff.data.shards.remote"),  # refused, with a reason
}
"""{prefix: module} of sources that are named, not lying at a path; each module has ``open_source(spec, flippable)``."""
ENDINGS: dict[str, str] = {
    ".txt": "imbdiff.data.listed.lists",
    ".csv": "imbdiff.data.listed.lists",
    ".tsv": "imbdiff.data.listed.lists",
    ".parquet": "imbdiff.data.listed.lists",
    ".zip": "imbdiff.data.archive",
    **dict.fromkeys((".tar", ".tar}", *PACKED), "imbdiff.data.shards.local"),
}
"""{ending of a file's name: module}."""
NAMES: dict[str, str] = {
    **dict.fromkeys(BENCHMARKS, "imbdiff.data.benchmarks"),
}
"""{name: module} of the built-in names and benchmarks; entry points of the group ``imbdiff.sources`` are names too."""


def parse(text: str) -> Spec:
    """A source as it is written on the command line, in its parts."""
    return Spec.parse(text, SCHEMES, _names())


def _names() -> list[str]:
    return known("sources", {"digits": "", **NAMES})


def _open(spec: Spec, flippable: bool) -> Source:
    if spec.scheme:
        return import_module(SCHEMES[spec.scheme]).open_source(spec, flippable)
    if spec.rest == "digits":
        spec.finish(())
        return DigitsSource(flippable)
    if spec.rest in NAMES:
        return import_module(NAMES[spec.rest]).open_source(spec, flippable)
    if spec.built_in:
        return import_module("imbdiff.data.outside").open_source(spec, flippable)
    path = user_path(spec.rest)
    for ending, module in ENDINGS.items():
        if path.name.lower().endswith(ending) and not path.is_dir():
            return import_module(module).open_source(spec, flippable)
    if shards_of_folder(path):
        return import_module("imbdiff.data.shards.local").open_source(spec, flippable)
    if path.is_dir():
        spec.finish(())
        return FolderSource(path, spec.text, flippable)
    if path.suffix.lower() == ".npz" and path.is_file():
        spec.finish(())
        return NpzSource(path, spec.text, flippable)
    if path.exists():
        raise DataError(f"{spec.text} is neither a folder nor a file of a kind that is read", REMEDY)
    near = difflib.get_close_matches(spec.rest, _names(), n=1)
    raise DataError(f"{spec.text} does not exist", f"did you mean {near[0]}? Otherwise {REMEDY}" if near else REMEDY)


REMEDY = (
    "give a folder of class folders, a zip, npz, parquet or tar file, a list or table of files (.txt, .csv, .tsv), "
    "hf:NAME, torchvision:NAME, module:PACKAGE.MODULE:NAME, the name of a benchmark, or digits: docs/sources.md"
)


class DigitsSource(ArraySource):
    """scikit-learn's handwritten digits (UCI, 1,797 images of 8 x 8 grey pixels, 10 classes): the built-in default.

    The values 0..16 are scaled to 0..255. `prepare` holds out 60 test images per class; a long tail starts at 110
    images, which leaves at least 4 of every class for validation.
    """

    kind = "digits"
    defaults = Defaults(test_per_class=60, n_max=110)

    def __init__(self, flippable: bool = False) -> None:
        from sklearn.datasets import load_digits

        data = load_digits()
        images = np.round(data.images * (255 / 16)).astype(np.uint8)
        ids = [f"digits/{i:04d}" for i in range(len(images))]
        names = [str(k) for k in range(10)]
        super().__init__({"train": (images, data.target)}, names, "digits", {"train": ids}, flippable)
