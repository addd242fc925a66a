"""From a name and a folder to a source: where to look, what to say if it is not there, how it differs from the real."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from urllib.parse import quote

from imbdiff.data.benchmarks.table import BENCHMARKS, Benchmark
from imbdiff.data.profiles import parse_imbalance_factor
from imbdiff.data.source import Defaults, Source
from imbdiff.data.spec import Spec, user_path
from imbdiff.runtime.errors import ConfigError, DataError, listing

VARIABLE = "IMBDIFF_DATASETS"
"""Environment variable with the folder of all benchmarks, where no root is given."""


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
            f"give the folder that holds it ({self.name}?root=FOLDER, or the environment variable {VARIABLE}); "
            f"one gets it from: {self.get}",
        )


def open_source(spec: Spec, flippable: bool) -> Source:
    """Opens a benchmark. Its photographs may be mirrored.

    Options of `spec`: root, the folder that holds the files (default: the environment variable IMBDIFF_DATASETS);
    factor, the imbalance factor in place of 100, for those whose tail is cut; list, the folder of the list files, for
    those that are read from lists.

    Raises:
        ConfigError: no folder given, an unknown option, or one that this benchmark does not have.
        DataError: the files are not there or damaged; says which were looked for, where.
    """
    name = spec.rest
    row = BENCHMARKS[name]
    given, factor, lists = spec.take("root"), spec.take("factor"), spec.take("list")
    root = given or os.environ.get(VARIABLE)
    spec.finish(("root", "factor", "list"))
    defaults = row.defaults if factor is None else _with_factor(name, row, factor)
    if lists is not None and not row.lists:
        raise ConfigError(f"{name} is not read from list files, so list={lists} means nothing", "leave it out")
    if not root:
        here = f"; the folder of that name is ./{name}" if Path(name).is_dir() else ""
        raise ConfigError(
            f"{name} is a benchmark, and no folder with its files is given{here}",
            f"write '{name}?root=FOLDER', or set the environment variable {VARIABLE}; one gets it from: {row.get}",
        )
    folders = {"root": user_path(root), **({"list": user_path(lists)} if lists else {})}
    gone = [f"{option}={path}" for option, path in folders.items() if not path.is_dir()]
    if gone:
        raise DataError(f"{name}: no such folder: {', '.join(gone)}", f"one gets {name} from: {row.get}")
    layout = import_module(f"imbdiff.data.benchmarks.{MODULES.get(row.layout, row.layout)}")
    places = Places(name, folders["root"], folders.get("list"), row.get)
    source: Source = getattr(layout, f"read_{row.layout}")(spec.text, places)
    if not given:  # so that the name says where the images came from, whatever the variable says later
        mark = "&" if "?" in spec.text else "?"
        source.name = f"{spec.text}{mark}root={quote(os.path.abspath(folders['root']), safe='/:,{}[]*+ ')}"
    source.defaults = defaults
    source.warnings = (*source.warnings, *_differences(name, row, source))
    return source


MODULES = {
    "tiny_imagenet": "imagenet", "imagenet_lt": "listed", "places_lt": "listed", "inaturalist": "listed",
}  # fmt: skip
"""{layout: module}, where it is not called as the layout."""


def _with_factor(name: str, row: Benchmark, factor: str) -> Defaults:
    if row.defaults.imbalance_factor is None:
        have = "is balanced" if f"{name}-lt" in BENCHMARKS else "has its tail already"
        instead = f"take {name}-lt?factor={factor}" if f"{name}-lt" in BENCHMARKS else "leave it out"
        raise ConfigError(f"{name} {have}: factor={factor} means nothing", instead)
    try:
        number = parse_imbalance_factor(float(factor))
    except ValueError:
        raise ConfigError(f"{name}: factor={factor} is not a number", "give for example factor=50") from None
    return replace(row.defaults, imbalance_factor=number)


def _differences(name: str, row: Benchmark, source: Source) -> list[str]:
    """A warning where the files are not those of the benchmark: numbers on them compare with nobody else's."""
    found = {split: len(source.labels(split)) for split in source.splits}
    differ = [
        f"{found.get(split, 0):,} {split} images in place of {wanted:,}"
        for split, wanted in row.images.items()
        if found.get(split, 0) != wanted
    ]
    if len(source.class_names) != row.classes:
        differ.insert(0, f"{len(source.class_names)} classes in place of {row.classes}")
    if not differ:
        return []
    return [f"this is not {name} as published: {'; '.join(differ)}. Numbers on it do not compare with the literature's"]
