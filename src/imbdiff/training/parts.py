"""The parts of a step's batch, each with its own sampling distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from imbdiff.config import TrainConfig
from imbdiff.data.augment import Augmentation
from imbdiff.data.gather import Gather
from imbdiff.data.geometric import Geometric
from imbdiff.data.imageset import ImageSet, Rows
from imbdiff.data.latents import latents
from imbdiff.data.samplers import BatchSampler, Distribution, GroupedSampler
from imbdiff.data.stats import Groups
from imbdiff.diffusion.codec import Codec, as_pixels
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


def check_changes(codec: Codec, augmentation: Augmentation, geometric: Geometric | None) -> None:
    """Refuses changes of images that cannot be made of their latents.

    Raises:
        ConfigError: with the reason.
    """
    if codec.symmetries == "any":
        return
    why = f"the codec {codec.name} keeps latents of the training images, which cannot be"
    if geometric is not None:
        raise ConfigError(
            f"{why} rotated, scaled and moved as this method does with images ({geometric.describe()})",
            "use --method.ada 0, or the codec patch, which encodes at every step: leave --codec.weights out",
        )
    if augmentation != Augmentation(augmentation.symmetry):
        raise ConfigError(f"{why} {augmentation.describe()}", "mirror and turn them alone")


def stored_latents(
    images: ImageSet, codec: Codec, augmentation: Augmentation, device: torch.device, dist: Dist
) -> tuple[Rows, int]:
    """See `imbdiff.data.latents`: the first process makes what is not there, the others read it."""
    if not dist.main:
        dist.barrier()
    found = latents(images, codec, augmentation, device=device, quiet=not dist.main)
    if dist.main:
        dist.barrier()
    return found


class Batches:
    """This process's rows of every part of a batch, noised, for any step: a pure function of (seed, step).

    Images are kept on the device where they fit; those on disk are read one micro-batch ahead. Of a codec for which
    storing is expensive, it is latents that are kept, see :mod:`imbdiff.data.latents`: they are made here where they
    are not there, by the first process.

    Args:
        step: its objectives read the parts, its network "model" has the codec and the process of the images.
        config: batch size, micro-batches and label dropout.
        augmentation: of the images.
        geometric: changes of the images, which the network takes as a condition.
        channels_last: the memory format.
        stored: in place of the latents of the images, see `stored_latents`.

    Raises:
        ConfigError: changes of the images which cannot be made of latents.
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
        stored: tuple[Rows, int] | None = None,
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
        check_changes(self.codec, self.augmentation, geometric)
        kept: tuple[Any, int] = (data.images, 1)
        if self.codec.symmetries == "cached":
            kept = stored or stored_latents(data, self.codec, self.augmentation, device, self.dist)
        self.images, self.variants = Gather(kept[0], device), kept[1]
        self.labels = torch.from_numpy(data.labels).to(device)

    def __call__(self, step: int, micro: int = 0) -> dict[str, NoisyBatch]:
        """The micro-batch number `micro` of a step, by part."""
        return {rows.part.name: self._load(rows, step, micro) for rows in self.parts}

    def _rows(self, rows: _PartRows, index: np.ndarray, step: int, micro: int) -> np.ndarray:
        """This process's rows of what is kept: of latents, those of the variant that is drawn for each image."""
        share = self._share(rows.size, micro)
        if self.variants == 1:
            return index[share]
        return (
            index[share] * self.variants
            + self.augmentation.variant(self._drawn(rows, step), self.variants)[share].numpy()
        )

    def _drawn(self, rows: _PartRows, step: int) -> Tensor:
        return self.augmentation.draw(rows.size, torch_rng(self.seed, "augment", rows.part.name, step))

    def _share(self, size: int, micro: int) -> slice:
        """This process's rows of the global batch in one micro-batch."""
        n = size // (self.dist.world * self.config.accumulate)
        start = (self.dist.rank * self.config.accumulate + micro) * n
        return slice(start, start + n)

    def _load(self, rows: _PartRows, step: int, micro: int) -> NoisyBatch:
        part, size = rows.part, rows.size
        index, group = rows.indices(step)
        share = self._share(size, micro)
        x = self.images.rows(self._rows(rows, index, step, micro))
        if not self.images.on_device:
            last = micro + 1 == self.config.accumulate
            following, after = (rows.indices(step + 1)[0], (step + 1, 0)) if last else (index, (step, micro + 1))
            self.images.ahead(self._rows(rows, following, *after))
        labels = self.labels.index_select(0, torch.from_numpy(index[share]).to(self.labels.device))
        change = noise = None
        if self.geometric is not None:
            change = self.geometric.draw(size, torch_rng(self.seed, "geometric", part.name, step))[share]
        if self.codec.symmetries == "any":
            x = self.augmentation.apply(x, self._drawn(rows, step)[share].to(x.device))
            if self.geometric is not None and change is not None:
                # of float images, so that nothing is rounded
                x = self.geometric.apply(as_pixels(x), change)
            x = self.codec.store(x)
        if self.codec.random:
            generator = torch_rng(self.seed, "codec", part.name, step)
            noise = torch.randn((size, *self.codec.shape), generator=generator)[share].to(x.device)
        x0 = self.codec.encode(x, noise)
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
            augment=None if change is None else change.to(x.device),
            noise_levels=self.config.noise_levels,
        )
