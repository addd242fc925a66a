"""CORAL's contrast between the classes' features (Rodriguez et al., NeurIPS 2025, arXiv 2506.15933)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbdiff.diffusion.backbone import linear, pooled
from imbdiff.diffusion.model import DiffusionModel
from imbdiff.objectives.batch import FAR, NoisyBatch
from imbdiff.objectives.objective import COMPARES_ROWS, Answer, Objective, Request
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import torch_rng


@dataclass(eq=False, kw_only=True)
class SupervisedContrast(Objective):
    """Pulls the features of a class together and those of different classes apart, more so where there is less noise.

        L_i = exp((1 - s_i) / tau_r) mean_{p in P_i} -log( exp(z_i z_p / tau) / sum_{j != i} exp(z_i z_j / tau) )

    with s the noise level, P_i the other rows of i's class, z = g(h) / || g(h) ||, h the pooled features at `tap`, g a
    linear projection that sampling never sees; the contrast is SupCon (Khosla et al. 2020, Eq. 2), over the rows of all
    processes. Classes are the true ones, also where the condition was dropped. A row alone of its class gives 0, as
    most rare rows do: batch size and sampling distribution decide what this does for them. Memory is quadratic in the
    global batch.

    Args:
        width: channels of the tap; found by `prepare` if not given.
        dim: dimensions of z, 128 in the authors' code.
        tau: temperature of the contrast, 0.1 in the code.
        tau_r: temperature of the weight in time, 0.3 in the code.
        weight: 0.5 in the code, which later multiplies by tau once more: 0.05.
        drop: rows whose label was dropped take no part, neither as i nor as p or j: as the code, which drops the labels
            of whole batches and then leaves the contrast out.
        released: mean over rows of the weight in time, times the mean contrast of rows that have a partner (the code),
            in place of the mean of their products over all rows (the text).
        tap: features to contrast; "mid" is the role that every backbone has (a U-Net's middle block).
        seed: of the projection's initial weights.
    """

    name = "supervised_contrast"
    all_rows: ClassVar[str | None] = COMPARES_ROWS
    wiring: ClassVar[tuple[str, ...]] = ("part", "width", "seed")

    weight: float = 0.05
    width: int | None = None
    dim: int = 128
    tau: float = 0.1
    tau_r: float = 0.3
    drop: bool = False
    released: bool = False
    tap: str = "mid"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        wide = self.width is None or self.width > 0
        self.check(tau=self.tau > 0, tau_r=self.tau_r > 0, dim=self.dim > 0, width=wide)
        self.head: nn.Linear | None
        self.register_module("head", None if self.width is None else self._projection(self.width))

    def prepare(self, networks: Mapping[str, nn.Module]) -> None:
        """Builds the projection for the features of `networks["model"]`, if no width was given.

        Raises:
            ConfigError: the network has no such tap, or does not say what it takes.
        """
        if self.head is None:
            model = networks["model"]
            if not isinstance(model, DiffusionModel):
                raise ConfigError(f"{self.name} cannot tell how wide {type(model).__name__}'s taps are", "give `width`")
            like, was = next(model.parameters()), model.training
            x = like.new_zeros(1, *model.codec.shape)
            t = model.process.time_from_uniform(torch.zeros(1, device=like.device))
            with torch.no_grad():
                _, taps = model.eval()(x, t, torch.full_like(t, model.null, dtype=torch.int64), (self.tap,), 0)
            model.train(was)
            self.head = self._projection(pooled(taps[self.tap]).shape[1]).to(like)

    def _projection(self, width: int) -> nn.Linear:
        """g, from a generator of its own."""
        return linear(width, self.dim, torch_rng(self.seed, "objective", "supervised_contrast", width, self.dim))

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("given", taps=(self.tap,), prediction=False)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        if self.head is None:
            raise ConfigError(f"{self.name} has no projection", "give `width`, or call `prepare` before training")
        h = pooled(answers[0].taps[self.tap])
        with torch.autocast(h.device.type, enabled=False):  # cosines over 0.1 need more digits than bfloat16 has
            z = F.normalize(self.head(h), dim=1)
            everyone, labels = batch.dist.gather(z), batch.dist.gather(batch.labels)
            rows = torch.arange(len(everyone), device=z.device)
            other = rows[batch.dist.share(len(rows)), None] != rows
            if self.drop:
                other = other & ~batch.dropped[:, None] & ~batch.dist.gather(batch.dropped)
            log_p = (z @ everyone.T / self.tau).masked_fill(~other, FAR).log_softmax(1)
        partner = other & (batch.labels[:, None] == labels)
        contrast = -log_p.masked_fill(~partner, 0).sum(1) / partner.sum(1).clamp_min(1)
        in_time = ((1 - batch.noise_level) / self.tau_r).exp()
        if self.released:
            having = batch.dist.gather(partner.any(1)).sum().clamp_min(1)
            return {"supcon": batch.dist.gather(in_time).mean() * batch.dist.gather(contrast).sum() / having}
        return {"supcon": in_time * contrast}
