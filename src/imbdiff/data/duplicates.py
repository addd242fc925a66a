"""Exact duplicates: images whose pixels are equal after decoding and resizing."""

from __future__ import annotations

from collections import defaultdict

from imbdiff.data.imageset import ImageSet


def across(first: ImageSet, second: ImageSet) -> list[tuple[str, str]]:
    """(id in `first`, id in `second`) of every image of `second` that `first` holds too."""
    where: dict[str, str] = {}
    for name, key in zip(first.ids, first.hashes, strict=True):
        where.setdefault(key, name)
    pairs = zip(second.ids, second.hashes, strict=True)
    return [(where[key], name) for name, key in pairs if key in where]


def within(images: ImageSet) -> list[list[str]]:
    """Ids of the images that are equal to each other, group by group."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, key in zip(images.ids, images.hashes, strict=True):
        groups[key].append(name)
    return [names for names in groups.values() if len(names) > 1]


def conflicting(images: ImageSet) -> list[list[str]]:
    """Those of `within` whose members carry different labels: at least one label is wrong."""
    label = dict(zip(images.ids, images.labels.tolist(), strict=True))
    return [names for names in within(images) if len({label[name] for name in names}) > 1]
