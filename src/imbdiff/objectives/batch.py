"""The noisy batch that every objective reads, and the named random draws that go with it.

All randomness is drawn for the *global* batch from (seed, step, name), and each process takes its slice: one process of
32 rows and two of 16 see the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import torch
from torch import Tensor

from imbdiff.data.stats import ClassStats
from imbdiff.diffusion.process import NOISE_LEVELS, Process, expand
from imbdiff.objectives.requests import Answer
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.streams import torch_rng

Space = Literal["native", "eps"]
FAR = -1e9  # a logit without weight in any softmax; finite, so that a row with no other to compare with is too


@lru_cache(maxsize=16)
def class_counts(stats: ClassStats, device: torch.device) -> Tensor:
    """(C,) int64 images per class; one copy per device: no host-to-device copy in the loop."""
    return torch.tensor(stats.counts, device=device)


@lru_cache(maxsize=16)
def class_prior(stats: ClassStats, device: torch.device) -> Tensor:
    """(C,) float64 class frequencies; one copy per device as well."""
    return torch.from_numpy(stats.prior).to(device)


class DrawKind(Protocol):
    """A named per-row random draw that an objective declares."""

    def make(self, n: int, generator: torch.Generator, stats: ClassStats) -> Tensor:
        """(n, ...) for a global batch of n rows, on the generator's device."""
        ...


LabelDistribution = Literal["prior", "uniform", "inverse"]


@dataclass(frozen=True)
class LabelDraw:
    """Labels, independent of the images: q(y) in proportion to n_y ("prior"), 1 ("uniform") or 1 / n_y ("inverse"), n_y
    the training images of the class. (n,) int64."""

    distribution: LabelDistribution = "prior"

    def make(self, n: int, generator: torch.Generator, stats: ClassStats) -> Tensor:
        prior = class_prior(stats, generator.device)
        distribution = torch.full_like(prior, 1 / len(prior)) if self.distribution == "uniform" else prior
        distribution = 1 / prior if self.distribution == "inverse" else distribution
        return torch.multinomial(distribution, n, replacement=True, generator=generator)


@dataclass(frozen=True)
class UniformDraw:
    """Uniform numbers in [0, 1). (n, columns) float32."""

    columns: int = 1

    def make(self, n: int, generator: torch.Generator, stats: ClassStats) -> Tensor:
        return torch.rand(n, self.columns, generator=generator, device=generator.device)


@dataclass(frozen=True)
class PermutationDraw:
    """A random order of the rows of the global batch. (n,) distinct int64."""

    def make(self, n: int, generator: torch.Generator, stats: ClassStats) -> Tensor:
        return torch.randperm(n, generator=generator, device=generator.device)


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """One part of a training step's batch, as this process sees it. B rows of n in the global batch.

    Attributes:
        x0: (B, c, h, w) clean data in model space.
        labels: (B,) the true classes, never dropped.
        condition: (B,) labels after label dropout; `null` where dropped.
        dropped: (B,) bool.
        group: (B,) number of the class group a row belongs to, -1 for none. A group never straddles processes.
        t: (B,) times of the process.
        noise, x_t: (B, c, h, w).
        noise_level: (B,) in [0, 1], 0 = clean, 1 = noise.
        process, stats, null: the noising process, the training set's class statistics, the null label.
        draws: the named draws of the objectives, each (B, ...).
        dist: collectives; `dist.gather` is differentiable, the identity on one process.
        augment: (B, 9) the geometric change of each row's image, a condition of the network; None: none had one.
    """

    x0: Tensor
    labels: Tensor
    condition: Tensor
    dropped: Tensor
    group: Tensor
    t: Tensor
    noise: Tensor
    x_t: Tensor
    noise_level: Tensor
    process: Process
    stats: ClassStats
    null: int
    draws: Mapping[str, Tensor]
    dist: Dist
    augment: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def target(self) -> Tensor:
        """(B, c, h, w) what the network should predict for (x0, noise, t)."""
        return self.process.target(self.x0, self.noise, self.t)

    def difference(self, a: Tensor, b: Tensor, answer: Answer, space: Space = "native") -> Tensor:
        """a - b, two predictions for the rows of `answer`.

        "native": in the units of the network's own target. What decides the effect of a regulariser is its *ratio* to
        the denoising loss at the same noise level; under v and flow this keeps the ratio of the papers' networks, which
        predict eps. "eps": as differences of predicted noises, a(t) times those of v or velocity; the term vanishes at
        noisy times then (docs/fidelity.md). For networks that predict eps the two are bit-identical.
        """
        if space == "native":
            return a - b
        scale = self.process.eps_scale(answer.of(self.t)).to(a.dtype)
        return expand(scale, a) * (a - b)

    def spread(self, values: Tensor, answer: Answer) -> Tensor:
        """(k,) values for the rows of `answer` -> (B,) with zeros elsewhere."""
        if answer.rows is None:
            return values
        return values.new_zeros(len(self)).index_copy(0, answer.rows, values)


def noisy_batch(
    x0: Tensor,
    labels: Tensor,
    *,
    process: Process,
    stats: ClassStats,
    seed: int,
    step: int,
    size: int | None = None,
    share: slice | None = None,
    part: str = "main",
    draws: Mapping[str, DrawKind] | None = None,
    label_dropout: float = 0.1,
    group: Tensor | None = None,
    groups: int = 0,
    dist: Dist | None = None,
    augment: Tensor | None = None,
    noise_levels: str = "uniform",
) -> NoisyBatch:
    """Noises a batch. Everything random is drawn for the global batch, then cut to this process's rows.

    Args:
        x0: (B, c, h, w) this process's rows of clean data.
        labels: (B,) their classes.
        size: rows of the global batch; B if not given.
        share: which of them these are; all if not given.
        part: name of the part; parts draw from unrelated streams.
        draws: what the objectives declared.
        label_dropout: probability that a label is dropped.
        group: (B,) numbers in [0, groups) of class groups: rows of a group share one t.
        groups: number of class groups in the global batch; 0 if rows are not grouped.
        augment: (B, 9) the geometric changes that were made to `x0`.
        noise_levels: how they are distributed, a name of `NOISE_LEVELS`.
    """
    n = len(x0) if size is None else size
    rows = slice(0, n) if share is None else share
    device = x0.device

    def stream(name: str) -> torch.Generator:
        return torch_rng(seed, "batch", part, name, step, device=device)

    noise = torch.randn((n, *x0.shape[1:]), generator=stream("noise"), device=device)[rows]
    u = torch.rand(groups or n, generator=stream("t"), device=device)
    t = process.time_from_uniform(NOISE_LEVELS[noise_levels](u))[group if groups else rows]
    coins = torch.rand(n, generator=stream("dropout"), device=device)[rows]
    dropped = coins < label_dropout
    null = stats.num_classes
    made = {name: kind.make(n, stream(f"draw:{name}"), stats)[rows] for name, kind in (draws or {}).items()}
    return NoisyBatch(
        x0=x0,
        labels=labels,
        condition=torch.where(dropped, null, labels),
        dropped=dropped,
        group=torch.full_like(labels, -1) if group is None else group,
        t=t,
        noise=noise,
        x_t=process.add_noise(x0, noise, t),
        noise_level=process.noise_level(t),
        process=process,
        stats=stats,
        null=null,
        draws=made,
        dist=dist or Dist(),
        augment=augment,
    )
