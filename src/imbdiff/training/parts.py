"""The parts of a step's batch, each with its own sampling distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from imbdiff.config import TrainConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.gather import Gather
from imbdiff.data.geometric import Geometric
from imbdiff.data.imageset import ImageSet
from imbdiff.data.samplers import BatchSampler, Distribution, GroupedSampler
from imbdiff.data.stats import Groups
from imbdiff.diffusion.codec import as_pixels
from imbdiff.objectives.batch import NoisyBatch, noisy_batch
from imbdiff.objectives.objective import Objective
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng
from imbdiff.training.step import TrainingStep


@dataclass(frozen=True)
class Part:
    """How one part of a batch is sampled.

    Attributes:
        name: objectives name the part that they read.
        distribution: "natural", "balanced", "sqrt", "half-balanced" (half of both), or "tempered" (CCUA's
            batch resampling, head : tail = 1 : factor).
        factor: of the tempered distribution.
        groups, group_size: above 0, the part is `groups` class groups of `group_size` rows that share one t; the
            batch size does not matter to it.
        of: the classes that it samples from: all, the many-shot ones, or the others.
    """

    name: str = "main"
    distribution: Distribution = "natural"
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
        factor = f" ({self.factor:g})" if self.distribution == "tempered" else ""
        grouped = f", {self.groups} groups of {self.group_size}" if self.groups else ""
        return self.distribution + factor + grouped + ("" if self.of == "all" else f", from {self.of} classes")

    @property
    def constants(self) -> tuple[str, ...]:
        """Fields that are constants of a method, see `imbdiff.recipe`."""
        if self.groups:
            return ("groups", "group_size")
        return ("distribution", "factor") if self.of == "all" else ("distribution",)

    def check(self, batch_size: int, world: int, accumulate: int) -> None:
        """Refuses a part that cannot be divided evenly.

        Raises:
            ConfigError: naming what to change.
        """
        if (self.groups or batch_size) % (world * accumulate):
            what = f"the {self.groups} class groups of part {self.name!r}"
            raise ConfigError(
                f"{what if self.groups else f'a batch of {batch_size}'} cannot be divided over {world} processes x "
                f"{accumulate} micro-batches",
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


class _PartRows:
    """The rows of the data that a part has at each step: a pure function of (seed, step)."""

    def __init__(self, part: Part, labels: np.ndarray, groups: Groups, batch_size: int, seed: int) -> None:
        self.part, self.size = part, part.groups * part.group_size or batch_size
        allowed, name = part.classes(groups), f"part:{part.name}"
        self.rows: np.ndarray | None = None
        if part.groups:
            self.grouped = GroupedSampler(labels, allowed, part.groups, part.group_size, seed=seed, name=name)
            return
        if part.of != "all":
            self.rows = np.flatnonzero(np.isin(labels, allowed))
            labels = labels[self.rows]
        self.sampler = BatchSampler(
            labels, batch_size, distribution=part.distribution, factor=part.factor, seed=seed, name=name
        )

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows of the data for the *global* batch, and their class-group numbers where there are groups."""
        if self.part.groups:
            return self.grouped.indices(step)
        index = self.sampler.indices(step)
        return (index if self.rows is None else self.rows[index]), None


class Batches:
    """This process's rows of every part of a batch, noised, for any step: a pure function of (seed, step).

    Images are kept on the device where they fit; those on disk are read one micro-batch ahead.

    Args:
        step: its objectives read the parts, its network "model" has the codec and the process of the images.
        config: batch size, micro-batches and label dropout.
        augmentation: of the images.
        geometric: changes of the images, which the network takes as a condition.
        channels_last: the memory format.
    """

    def __init__(
        self,
        step: TrainingStep,
        parts: Sequence[Part],
        data: ImageSet,
        groups: Groups,
        config: TrainConfig,
        *,
        device: torch.device,
        seed: int = 0,
        dist: Dist | None = None,
        augmentation: Augmentation | None = None,
        geometric: Geometric | None = None,
        channels_last: bool = False,
    ) -> None:
        model: Any = step.networks["model"]
        self.codec, self.process = model.codec, model.process
        self.config, self.stats, self.seed, self.dist = config, data.stats, seed, dist or Dist()
        self.augmentation, self.geometric = augmentation or Augmentation(), geometric
        self.channels_last = channels_last
        for part in parts:
            part.check(config.batch_size, self.dist.world, config.accumulate)
        self.parts = [_PartRows(part, data.labels, groups, config.batch_size, seed) for part in parts]
        self.draws = {part.name: step.draws(part.name) for part in parts}
        self.images = Gather(data.images, device)
        self.labels = torch.from_numpy(data.labels).to(device)

    def __call__(self, step: int, micro: int = 0) -> dict[str, NoisyBatch]:
        """The micro-batch number `micro` of a step, by part."""
        return {rows.part.name: self._load(rows, step, micro) for rows in self.parts}

    def _share(self, size: int, micro: int) -> slice:
        """This process's rows of the global batch in one micro-batch."""
        n = size // (self.dist.world * self.config.accumulate)
        start = (self.dist.rank * self.config.accumulate + micro) * n
        return slice(start, start + n)

    def _load(self, rows: _PartRows, step: int, micro: int) -> NoisyBatch:
        part, size = rows.part, rows.size
        index, group = rows.indices(step)
        share = self._share(size, micro)
        x = self.images.rows(index[share])
        if not self.images.on_device:
            last = micro + 1 == self.config.accumulate
            following = rows.indices(step + 1)[0] if last else index
            self.images.ahead(following[self._share(size, 0 if last else micro + 1)])
        labels = self.labels.index_select(0, torch.from_numpy(index[share]).to(self.labels.device))
        drawn = self.augmentation.draw(size, torch_rng(self.seed, "augment", part.name, step))
        images = self.augmentation.apply(x, drawn[share].to(x.device))
        change = None
        if self.geometric is not None:
            # of float images, so that nothing is rounded
            change = self.geometric.draw(size, torch_rng(self.seed, "geometric", part.name, step))[share]
            images = self.geometric.apply(as_pixels(images), change)
            change = change.to(x.device)
        x0 = self.codec.encode(self.codec.store(images))
        if self.channels_last:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        return noisy_batch(
            x0,
            labels,
            process=self.process,
            stats=self.stats,
            seed=self.seed,
            step=step,
            size=size,
            share=share,
            part=part.name,
            draws=self.draws[part.name],
            label_dropout=self.config.label_dropout,
            group=None if group is None else torch.from_numpy(group[share]).to(x.device),
            groups=part.groups,
            dist=self.dist,
            augment=change,
            noise_levels=self.config.noise_levels,
        )
