"""The parts of a step's batch, each with its own sampling distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from imbdiff.data.augment import Augmentation
from imbdiff.data.gather import Gather
from imbdiff.data.geometric import Geometric
from imbdiff.data.imageset import ImageSet
from imbdiff.data.samplers import BatchSampler, GroupedSampler
from imbdiff.data.stats import Groups
from imbdiff.diffusion.codec import Codec
from imbdiff.diffusion.process import Process
from imbdiff.objectives.batch import DrawKind, NoisyBatch, noisy_batch
from imbdiff.objectives.objective import Objective
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng


@dataclass(frozen=True)
class Part:
    """How one part of a batch is sampled.

    Attributes:
        name: objectives name the part that they read.
        distribution: "natural", "balanced", "sqrt", or "tempered" (CCUA's batch resampling, head : tail = 1 : factor).
        factor: of the tempered distribution.
        groups, group_size: above 0, the part is `groups` class groups of `group_size` rows that share one t; the
            batch size does not matter to it.
        of: the classes that it samples from: all, the many-shot ones, or the others.
    """

    name: str = "main"
    distribution: Literal["natural", "balanced", "sqrt", "tempered"] = "natural"
    factor: float = 0.1
    groups: int = 0
    group_size: int = 0
    of: Literal["all", "head", "non-head"] = "all"

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise ConfigError(f"the part {self.name!r}: factor={self.factor} must be finite and above 0")
        if self.groups < 0 or self.group_size < 0:
            raise ConfigError(
                f"the part {self.name!r}: groups={self.groups} and group_size={self.group_size} must be at least 0"
            )

    @property
    def text(self) -> str:
        """Its sampling, for messages."""
        distribution = (
            f"{self.distribution} ({self.factor:g})" if self.distribution == "tempered" else self.distribution
        )
        grouped = f", {self.groups} groups of {self.group_size}" if self.groups else ""
        return distribution + grouped + ("" if self.of == "all" else f", from {self.of} classes")

    def check(self, batch_size: int, world: int, accumulate: int) -> None:
        """Refuses a part that cannot be divided evenly.

        Raises:
            ConfigError: naming what to change.
        """
        if (self.groups or batch_size) % (world * accumulate):
            what = (
                f"the {self.groups} class groups of part {self.name!r}" if self.groups else f"a batch of {batch_size}"
            )
            raise ConfigError(
                f"{what} cannot be divided over {world} processes x {accumulate} micro-batches",
                f"choose a multiple of {world * accumulate}",
            )

    def classes(self, groups: Groups) -> Sequence[int]:
        """The classes that it samples from.

        Raises:
            ConfigError: there are none.
        """
        of = np.asarray(groups.of_class)
        chosen = {"all": of >= 0, "head": of == 0, "non-head": of != 0}[self.of]
        classes = np.flatnonzero(chosen).tolist()
        if not classes:
            raise ConfigError(
                f"the part {self.name!r} samples from {self.of} classes, and there are none ({groups.rule})",
                "choose other groups, or a method that does not need them",
            )
        return classes


def check_groups(parts: Sequence[Part], objectives: Sequence[Objective]) -> None:
    """Refuses class groups too small for an objective that compares the rows of a group (`smallest_group`).

    Raises:
        ConfigError: naming the objective and the part.
    """
    sizes = {part.name: part.group_size if part.groups else 0 for part in parts}
    for objective in objectives:
        least, size = getattr(objective, "smallest_group", 0), sizes.get(objective.part, 0)
        if size < least and objective.weight > 0:
            raise ConfigError(
                f"{objective.name} compares the rows of a class group, and the part {objective.part!r} has groups of "
                f"{size} rows: with fewer than {least} it is 0",
                f"give it a part with groups, and a group_size of at least {least}",
            )


class PartLoader:
    """Makes this process's rows of a part, for any step: a pure function of (seed, step).

    Args:
        images: of all images, see :class:`~imbdiff.data.gather.Gather`; images on disk are read one micro-batch ahead.
        labels: (N,) int64, on the device.
    """

    def __init__(
        self,
        part: Part,
        data: ImageSet,
        images: Gather,
        labels: Tensor,
        groups: Groups,
        batch_size: int,
        *,
        seed: int,
        dist: Dist,
        accumulate: int = 1,
    ) -> None:
        self.part, self.data, self.images, self.labels = part, data, images, labels
        self.seed, self.dist, self.accumulate = seed, dist, accumulate
        allowed = part.classes(groups)
        self.size = part.groups * part.group_size if part.groups else batch_size
        part.check(batch_size, dist.world, accumulate)
        self.rows_of: np.ndarray | None = None
        labels_np = data.labels
        if part.groups:
            self.grouped = GroupedSampler(
                labels_np, allowed, part.groups, part.group_size, seed=seed, name=f"part:{part.name}"
            )
        else:
            if part.of != "all":
                self.rows_of = np.flatnonzero(np.isin(labels_np, allowed))
                labels_np = labels_np[self.rows_of]
            self.sampler = BatchSampler(
                labels_np,
                batch_size,
                distribution=part.distribution,
                factor=part.factor,
                seed=seed,
                name=f"part:{part.name}",
            )

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows of the data for the *global* batch, and their class-group numbers where there are groups."""
        if self.part.groups:
            return self.grouped.indices(step)
        index = self.sampler.indices(step)
        return (index if self.rows_of is None else self.rows_of[index]), None

    def _share(self, micro: int) -> slice:
        """This process's rows of the global batch in one micro-batch."""
        n = self.size // (self.dist.world * self.accumulate)
        start = (self.dist.rank * self.accumulate + micro) * n
        return slice(start, start + n)

    def load(
        self,
        step: int,
        micro: int,
        *,
        codec: Codec,
        process: Process,
        draws: dict[str, DrawKind],
        augmentation: Augmentation,
        label_dropout: float,
        dropout_per: Literal["sample", "batch"],
        channels_last: bool = False,
        geometric: Geometric | None = None,
    ) -> NoisyBatch:
        """This process's micro-batch `micro` of the part at `step`."""
        index, group = self.indices(step)
        share = self._share(micro)
        x = self.images.rows(index[share])
        if not self.images.on_device:
            last = micro + 1 == self.accumulate
            following = self.indices(step + 1)[0] if last else index
            self.images.ahead(following[self._share(0 if last else micro + 1)])
        labels = self.labels.index_select(0, torch.from_numpy(index[share]).to(self.labels.device))
        drawn = augmentation.draw(self.size, torch_rng(self.seed, "augment", self.part.name, step))
        x0 = codec.encode(augmentation.apply(x, drawn[share].to(x.device)))
        change = None
        if geometric is not None:
            # after encoding, so that nothing is rounded; both are linear, and the weights of a pixel sum to 1
            change = geometric.draw(self.size, torch_rng(self.seed, "geometric", self.part.name, step))[share]
            x0 = geometric.apply(x0, change)
            change = change.to(x.device)
        if channels_last:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        return noisy_batch(
            x0,
            labels,
            process=process,
            stats=self.data.stats,
            seed=self.seed,
            step=step,
            size=self.size,
            share=share,
            part=self.part.name,
            draws=draws,
            label_dropout=label_dropout,
            dropout_per=dropout_per,
            group=None if group is None else torch.from_numpy(group[share]).to(x.device),
            groups=self.part.groups,
            dist=self.dist,
            augment=change,
        )


def make_loaders(
    parts: Sequence[Part],
    data: ImageSet,
    groups: Groups,
    batch_size: int,
    *,
    seed: int,
    dist: Dist,
    accumulate: int = 1,
    device: torch.device,
) -> list[PartLoader]:
    """A loader per part, on one copy of the images where they fit on the device."""
    images = Gather(data.images, device)
    labels = torch.from_numpy(data.labels).to(device)
    return [
        PartLoader(part, data, images, labels, groups, batch_size, seed=seed, dist=dist, accumulate=accumulate)
        for part in parts
    ]
