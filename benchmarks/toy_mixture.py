"""A world of points whose density is known: classes are columns, and all classes have the same rows.

    class k:  x = (column_k + sd a, row_m + sd b),   m uniform over the rows,   a, b ~ N(0, 1)

Ten columns 0.2 apart are the classes, seven rows 0.3 apart are their modes, sd 0.02. The row is what head and tail
share (a pose, a background), the column is what makes the class. A class of 500 images shows every row; of one with 5
images about half the rows have no image. A method that carries something from head to tail fills them: the class's
samples are then in rows that none of its images show (*borrowed*), and still in its own column (*precision*). There are
two ways to fail: the class keeps to the rows that it has seen, or its samples are in the columns of other classes. The
noise at which transfer can happen is the one that blurs columns and leaves rows apart.

Columns are not ordered by class size: on either side of each of the three smallest stands one of eight
times its size or more.
A point is an image of 1 x 2 pixels of 8 bits, [-1, 1] as 0 .. 255: a step of 0.0078 is 0.4 sd and adds 1 % to the
variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from imbdiff.data.imageset import ImageSet
from imbdiff.data.profiles import profile_counts
from imbdiff.data.splits import Prepared
from imbdiff.data.stats import Groups
from imbdiff.runtime.streams import rng

ORDER = (5, 0, 9, 1, 8, 2, 7, 3, 6, 4)
"""Classes, 0 the largest, from the left column to the right."""
ROWS = 7
SD = 0.02
NEAR = 4.0
"""A point belongs to a mode within so many sd: all but exp(-8) = 0.03 % of the mode's own."""
SHARE = 0.5
"""A mode is covered if it gets at least so much of its fair share, 1 / ROWS of the class's samples."""


@dataclass(frozen=True)
class World:
    """The true density.

    Attributes:
        modes: (C, M, 2) float64 centres.
        sd: of every mode, in both directions.
    """

    modes: np.ndarray
    sd: float = SD

    @property
    def num_classes(self) -> int:
        return len(self.modes)

    def sample(self, k: int, n: int, *key: int | str) -> np.ndarray:
        """(n, 2) float64 points of class `k` on the grid of 8-bit images, from the stream that `key` names."""
        g = rng("toy world", *key)
        centres = self.modes[k][g.integers(self.modes.shape[1], size=n)]
        return points(pixels(centres + self.sd * g.standard_normal((n, 2))))

    def mode(self, k: int, x: np.ndarray) -> np.ndarray:
        """(n,) the mode of class `k` that each of the points (n, 2) belongs to, -1 for none."""
        distance = cdist(x, self.modes[k])
        nearest = distance.argmin(1)
        return np.where(distance.min(1) <= NEAR * self.sd, nearest, -1)


def lattice(order: tuple[int, ...] = ORDER, rows: int = ROWS) -> World:
    """The world of this module's text."""
    c = len(order)
    column = np.empty(c)
    column[list(order)] = np.linspace(-0.9, 0.9, c)
    height = np.linspace(-0.9, 0.9, rows)
    modes = np.stack([np.repeat(column[:, None], rows, 1), np.repeat(height[None], c, 0)], axis=-1)
    return World(modes)


def pixels(x: np.ndarray) -> np.ndarray:
    """(n, 2) points -> (n, 1, 2, 1) uint8 images."""
    return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8).reshape(-1, 1, 2, 1)


def points(images: np.ndarray) -> np.ndarray:
    """(n, 1, 2, 1) uint8 images -> (n, 2) float64 points."""
    return images.reshape(-1, 2) / 127.5 - 1


def training_data(world: World, seed: int, n_max: int = 500, factor: float = 100.0) -> Prepared:
    """Images of the world, as many per class as the exponential profile says, and nothing to test on.

    Args:
        seed: of the draw.
        n_max: images of the largest class, class 0.
        factor: imbalance factor; 1 for a balanced world.
    """
    c = world.num_classes
    counts = profile_counts("exponential", n_max, c, factor)
    x = np.concatenate([world.sample(k, n, "training", seed, k) for k, n in enumerate(counts)])
    names = tuple(f"class {k}" for k in range(c))
    train = ImageSet(pixels(x), np.repeat(np.arange(c), counts), names)
    nothing = train.select(np.zeros(0, dtype=np.int64))
    return Prepared(
        train=train, val=None, test=nothing, pool=None, stats=train.stats, groups=Groups.default(train.stats),
        claimable=(False,) * c, warnings=(), manifest={"hash": train.fingerprint},
    )  # fmt: skip


def measure(world: World, k: int, x: np.ndarray, shown: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """How the points `x` (n, 2) that were drawn for class `k` compare with the true density.

    Args:
        shown: (m, 2) the class's training points.
        truth: a large sample of the class, for the distance.

    Returns:
        covered: share of the class's modes that get at least half of their fair share of the points.
        kept, borrowed: the same of the modes with a training point, and of those without one (None: there are none).
        precision: share of the points within 4 sd of a mode of the class.
        other class: share within 4 sd of a mode of another class.
        distance: squared energy distance to `truth` (Szekely and Rizzo 2013), 2 E|X-Y| - E|X-X'| - E|Y-Y'| with means
            over different points: no bias, in the world's unit of length; it scatters around 0 for equal ones.
    """
    m = world.modes.shape[1]
    own = world.mode(k, x)
    covered = np.bincount(own[own >= 0], minlength=m) >= SHARE * len(x) / m
    seen = np.isin(np.arange(m), world.mode(k, shown))
    others = [world.mode(j, x) >= 0 for j in range(world.num_classes) if j != k]
    return {
        "covered": float(covered.mean()),
        "kept": float(covered[seen].mean()) if seen.any() else None,
        "borrowed": float(covered[~seen].mean()) if not seen.all() else None,
        "precision": float((own >= 0).mean()),
        "other class": float(np.any(others, axis=0).mean()),
        "distance": float(2 * cdist(x, truth).mean() - _within(x) - _within(truth)),
    }


def _within(x: np.ndarray) -> float:
    """Mean distance of two different points."""
    return float(cdist(x, x).sum() / (len(x) * (len(x) - 1)))
