"""What one decoding pass over a source gives: hashes and small versions of all usable images, split by split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from imbdiff.data.cache import Decoding, run
from imbdiff.data.decode import Target
from imbdiff.data.encoded import EncodedSource
from imbdiff.data.parallel import chunks, in_chunks
from imbdiff.data.source import Source


@dataclass(frozen=True, eq=False)
class Look:
    """The usable images of a split.

    Attributes:
        split: its name.
        ids: (N,) names.
        labels: (N,) int64.
        hashes: (N,) hash of each image's pixels in its own size.
        small: (N, 8, 8, C) uint8, block means.
        rows: (N,) int64 place of each image in the split of the source, unusable ones counted.
    """

    split: str
    ids: tuple[str, ...]
    labels: np.ndarray
    hashes: tuple[str, ...]
    small: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def flat(self) -> np.ndarray:
        """(N,) bool: all 8 x 8 blocks have one colour, such as an image that is all black."""
        x = self.small
        return (x.max(axis=(1, 2)) == x.min(axis=(1, 2))).all(axis=1)

    def select(self, keep: np.ndarray) -> Look:
        """The images at `keep`, numbers in that order."""
        ids, hashes = (tuple(values[i] for i in keep.tolist()) for values in (self.ids, self.hashes))
        return Look(self.split, ids, self.labels[keep], hashes, self.small[keep], self.rows[keep])


def look(source: Source) -> tuple[dict[str, Look], dict[str, str]]:
    """Decodes every image of every split once.

    Returns:
        {split: its usable images}, and {id: why} of the unusable.
    """
    looks, bad = {}, dict(source.survey().bad)
    for split in source.splits:
        scan = source.scan(split)
        bad |= scan.bad
        usable = [i for i, key in enumerate(scan.hashes) if key is not None]
        rows = np.array(usable, dtype=np.int64)
        ids, labels = source.ids(split), source.labels(split)
        hashes = tuple(scan.hashes[i] or "" for i in usable)
        small = scan.small if len(rows) == len(ids) else scan.small[rows]
        looks[split] = Look(split, tuple(ids[i] for i in usable), labels[rows], hashes, small, rows)
    return looks, bad


def pictures(source: Source, split: str, rows: np.ndarray, target: Target, grey: bool) -> np.ndarray:
    """(n, H, W, C) uint8, the images at `rows` of a split; those of files are decoded alone.

    Args:
        rows: (n,) places in the split, of usable images.
        target: what every image becomes.
    """
    if not isinstance(source, EncodedSource):
        return np.asarray(source._decode(split, target, grey)[0][rows])
    places = source.records[split].opened
    wanted = [places[i] for i in rows.tolist()]
    decoding = Decoding(source.reader, target, grey)
    tasks = (decoding.task(part) for part in chunks(wanted, 16))
    parts = [x for x, _ in in_chunks(run, tasks, 0 if source.reader.streams else len(wanted))]
    return np.concatenate(parts) if parts else np.empty((0, *target.shape, 1 if grey else 3), np.uint8)
