"""Benchmarks by name, ``cifar100-lt?root=FOLDER``: the sets of the literature, split as the literature splits them.

Sources: LDAM-DRW, CBDM, CCUA and OC for the exponential sets, OLTR for ImageNet-LT and Places-LT; see docs/sources.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

from imbdiff.data.benchmark_files import (
    IMAGENET_LT,
    INATURALIST,
    PLACES_LT,
    Files,
    Read,
    read_tiny_imagenet,
)
from imbdiff.data.cifar import CIFAR10, CIFAR100
from imbdiff.data.source import Defaults, Source
from imbdiff.data.spec import SAFE, Spec, user_path
from imbdiff.data.stats import GROUP_NAMES, ClassStats, Groups
from imbdiff.runtime.errors import ConfigError

OPTIONS = ("root", "list")
VARIABLE = "IMBDIFF_DATASETS"
"""Environment variable with the folder of all benchmarks, where no root is given."""


@dataclass(frozen=True)
class Benchmark:
    """A row of the table.

    Attributes:
        what: one line.
        read: finds and reads its files.
        images, classes: {split: images} and classes as published, before a tail is cut.
        get: where one gets it, in words.
        defaults: how it is split.
    """

    what: str
    read: Read
    images: Mapping[str, int]
    classes: int
    get: str
    defaults: Defaults = field(default_factory=Defaults)


def shots(stats: ClassStats) -> Groups:
    """More than 100, 20 to 100, fewer than 20 training images; thirds of the class order where one would be empty.

    OLTR's own code counts 100 as many and 20 as few; that of most others, and this, does not.
    """
    groups = Groups.by_threshold(stats)
    return groups if set(groups.of_class) == {0, 1, 2} else thirds(stats)


def thirds(stats: ClassStats) -> Groups:
    """Thirds of the class order, cut at floor(C/3) and floor(2C/3), as CM reports: 0-2, 3-5, 6-9 of ten classes."""
    c = stats.num_classes
    cuts = (0, c // 3, 2 * c // 3, c)
    of_class = tuple(0 if k < cuts[1] else 1 if k < cuts[2] else 2 for k in range(c))
    spans = [f"classes {a} to {b - 1}" if b > a else "none" for a, b in pairwise(cuts)]
    rule = ", ".join(f"{name}: {span}" for name, span in zip(GROUP_NAMES, spans, strict=True))
    return Groups(GROUP_NAMES, of_class, f"{rule} (thirds of the class order)")


_CIFAR = "the CIFAR page of the University of Toronto: the 'python' version, unpacked"
_TINY = "tiny-imagenet-200.zip of Stanford's course CS231n, unpacked"
_IMAGENET = "ILSVRC 2012 (image-net.org after registration, or the ImageNet challenge on Kaggle)"
_PLACES = "Places365-standard, small images (256 x 256), from the Places2 project of MIT"
_INAT = "the iNaturalist 2018 competition (its repository inat_comp on GitHub): train_val2018"
_LISTS = "lists from the repositories of OLTR or its successors (BalancedMetaSoftmax, SADE)"

_TINY_NOTE = "its 10,000 validation images are the test split, as in the literature: its own test images have no labels"


def _exponential(groups: Callable[[ClassStats], Groups], *notes: str) -> Defaults:
    return Defaults(imbalance_factor=100.0, protocol="cifar-lt", order="label", groups=groups, notes=notes)


BENCHMARKS: dict[str, Benchmark] = {
    "cifar10-lt": Benchmark(
        "CIFAR-10-LT: exponential, the literature's index lists; 12,406 images at imbalance factor 100",
        CIFAR10, {"train": 50_000, "test": 10_000}, 10, _CIFAR, _exponential(thirds),
    ),
    "cifar100-lt": Benchmark(
        "CIFAR-100-LT: exponential, the literature's index lists; 10,847 images at imbalance factor 100",
        CIFAR100, {"train": 50_000, "test": 10_000}, 100, _CIFAR, _exponential(shots),
    ),
    "tiny-imagenet-lt": Benchmark(
        "TinyImageNet-LT: exponential, 200 classes in the order of their WordNet ids; 21,549 images at factor 100",
        read_tiny_imagenet, {"train": 100_000, "test": 10_000}, 200, _TINY, _exponential(shots, _TINY_NOTE),
    ),
    "imagenet-lt": Benchmark(
        "ImageNet-LT by OLTR's lists: 115,846 images of 1,000 classes, 1,280 to 5",
        IMAGENET_LT, {"train": 115_846, "val": 20_000, "test": 50_000}, 1000, f"{_IMAGENET}; {_LISTS}",
        Defaults(groups=shots),
    ),
    "places-lt": Benchmark(
        "Places-LT by OLTR's lists (v2): 62,500 images of 365 classes, 4,980 to 5",
        PLACES_LT, {"train": 62_500, "val": 7_300, "test": 36_500}, 365, f"{_PLACES}; {_LISTS}",
        Defaults(groups=shots),
    ),
    "inaturalist2018": Benchmark(
        "iNaturalist 2018: 437,513 images of 8,142 species, 1,000 to 2, long-tailed by nature",
        INATURALIST, {"train": 437_513, "test": 24_426}, 8142, f"{_INAT}; {_LISTS}",
        Defaults(groups=shots, notes=(
            "its validation images are the test split, as in the literature, which trains on all training images: "
            "--data.val_fraction 0 does so too",
        )),
    ),
    "cifar10": Benchmark(
        "CIFAR-10, balanced", CIFAR10, {"train": 50_000, "test": 10_000}, 10, _CIFAR, Defaults(groups=thirds),
    ),
    "cifar100": Benchmark(
        "CIFAR-100, balanced", CIFAR100, {"train": 50_000, "test": 10_000}, 100, _CIFAR, Defaults(groups=thirds),
    ),
}  # fmt: skip


def open_source(spec: Spec) -> Source:
    """Opens a benchmark. Its photographs may be mirrored.

    Options of `spec`: root, the folder that holds the files (default: the environment variable IMBDIFF_DATASETS); list,
    the folder of the list files, for those that are read from lists.

    Raises:
        ConfigError: no folder given.
        DataError: the files are not there or damaged; says which were looked for, where.
    """
    name, options = spec.rest, spec.options
    row = BENCHMARKS[name]
    root = options.get("root") or os.environ.get(VARIABLE)
    if not root:
        here = f"; the folder of that name is ./{name}" if Path(name).is_dir() else ""
        raise ConfigError(
            f"{name} is a benchmark, and no folder with its files is given{here}",
            f"write '{name}?root=FOLDER', or set the environment variable {VARIABLE}; one gets it from: {row.get}",
        )
    text = spec.text
    if not options.get("root"):  # the name says where the images came from, whatever the variable says later
        text += f"{'&' if '?' in text else '?'}root={quote(os.path.abspath(root), safe=SAFE)}"
    lists = user_path(options["list"]) if options.get("list") else None
    source = row.read(Files(name, text, user_path(root), lists, row.get))
    source.flippable = True
    source.defaults = row.defaults
    found = {split: len(source.labels(split)) for split in source.splits} | {"classes": len(source.class_names)}
    wanted = {**row.images, "classes": row.classes}
    differ = [f"{found.get(what, 0):,} {what} in place of {n:,}" for what, n in wanted.items() if found.get(what) != n]
    if differ:
        source.warnings += (
            f"this is not {name} as published: {'; '.join(differ)}. Numbers on it do not compare with the literature's",
        )
    return source
