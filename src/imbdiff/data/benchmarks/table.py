"""The table of benchmarks: what each is called, how it is split, what it holds, where one gets it.

Sources: LDAM-DRW, CBDM, CCUA and OC for the exponential sets, OLTR for ImageNet-LT and Places-LT; see docs/sources.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from imbdiff.data.benchmarks.groups import ccua_thirds, shots, thirds
from imbdiff.data.source import Defaults


@dataclass(frozen=True)
class Benchmark:
    """A row of the table.

    Attributes:
        what: one line.
        layout: the module beside this one that finds and reads its files, by ``read(name, places)``.
        images: {split: images as published, before a tail is cut}.
        classes: as published.
        get: where one gets it, in words.
        defaults: how it is split.
        nearly: classes differ in size, and the literature takes the set as balanced nevertheless.
        lists: it is read from list files, so that the option ``list`` makes sense.
    """

    what: str
    layout: str
    images: Mapping[str, int]
    classes: int
    get: str
    defaults: Defaults = field(default_factory=Defaults)
    nearly: bool = False
    lists: bool = False


_CIFAR = "the CIFAR page of the University of Toronto: the 'python' or the 'binary' version, unpacked"
_TINY = "tiny-imagenet-200.zip of Stanford's course CS231n, unpacked"
_IMAGENET = "ILSVRC 2012 (image-net.org after registration, or the ImageNet challenge on Kaggle)"
_PLACES = "Places365-standard, small images (256 x 256), from the Places2 project of MIT"
_INAT = "the iNaturalist 2018 competition (its repository inat_comp on GitHub): train_val2018 and the json files"
_LISTS = "lists from the repositories of OLTR or its successors (BalancedMetaSoftmax, SADE)"

_TINY_NOTE = "its 10,000 validation images are the test split, as in the literature: its own test images have no labels"
_EXPONENTIAL = (
    "{name} is the exponential tail that CCUA cuts from all of {full} and calls {paper}; numbers on it do not compare "
    "with the literature's {paper}, which is {lt}"
)


def _cut(groups: object, **more: object) -> Defaults:
    return Defaults(imbalance_factor=100.0, protocol="cifar-lt", order="label", groups=groups, **more)  # type: ignore[arg-type]


BENCHMARKS: dict[str, Benchmark] = {
    "cifar10-lt": Benchmark(
        "CIFAR-10-LT: exponential, the literature's index lists; 12,406 images at imbalance factor 100",
        "cifar", {"train": 50_000, "test": 10_000}, 10, _CIFAR, _cut(thirds),
    ),
    "cifar100-lt": Benchmark(
        "CIFAR-100-LT: exponential, the literature's index lists; 10,847 images at imbalance factor 100",
        "cifar", {"train": 50_000, "test": 10_000}, 100, _CIFAR, _cut(shots),
    ),
    "tiny-imagenet-lt": Benchmark(
        "TinyImageNet-LT: exponential, 200 classes in the order of their WordNet ids; 21,549 images at factor 100",
        "tiny_imagenet", {"train": 100_000, "test": 10_000}, 200, _TINY, _cut(shots, notes=(_TINY_NOTE,)),
    ),
    "imagenet-lt": Benchmark(
        "ImageNet-LT by OLTR's lists: 115,846 images of 1,000 classes, 1,280 to 5",
        "imagenet_lt", {"train": 115_846, "val": 20_000, "test": 50_000}, 1000, f"{_IMAGENET}; {_LISTS}",
        Defaults(groups=shots), lists=True,
    ),
    "places-lt": Benchmark(
        "Places-LT by OLTR's lists (v2): 62,500 images of 365 classes, 4,980 to 5",
        "places_lt", {"train": 62_500, "val": 7_300, "test": 36_500}, 365, f"{_PLACES}; {_LISTS}",
        Defaults(groups=shots), lists=True,
    ),
    "inaturalist2018": Benchmark(
        "iNaturalist 2018: 437,513 images of 8,142 species, 1,000 to 2, long-tailed by nature",
        "inaturalist", {"train": 437_513, "test": 24_426}, 8142, f"{_INAT}; or {_LISTS}",
        Defaults(groups=shots, notes=(
            "its validation images are the test split, as in the literature, which trains on all training images: "
            "--data.val_fraction 0 does so too",
        )), lists=True,
    ),
    "imagenet-exp": Benchmark(
        "CCUA's exponential tail of all of ImageNet: 275,288 images at factor 100; not the literature's ImageNet-LT",
        "imagenet", {"train": 1_281_167, "test": 50_000}, 1000, _IMAGENET,
        _cut(ccua_thirds, short=True, notes=(_EXPONENTIAL.format(
            name="imagenet-exp", full="ImageNet", paper="ImageNet-LT", lt="imagenet-lt"),)), nearly=True,
    ),
    "places-exp": Benchmark(
        "CCUA's exponential tail of Places365-standard: about 388,960 images at factor 100; not Places-LT",
        "places", {"train": 1_803_460, "test": 36_500}, 365, _PLACES,
        _cut(ccua_thirds, short=True, notes=(_EXPONENTIAL.format(
            name="places-exp", full="Places365-standard", paper="Places-LT", lt="places-lt"),)), nearly=True,
    ),
    "cifar10": Benchmark(
        "CIFAR-10, balanced", "cifar", {"train": 50_000, "test": 10_000}, 10, _CIFAR, Defaults(groups=thirds),
    ),
    "cifar100": Benchmark(
        "CIFAR-100, balanced", "cifar", {"train": 50_000, "test": 10_000}, 100, _CIFAR, Defaults(groups=thirds),
    ),
}  # fmt: skip
