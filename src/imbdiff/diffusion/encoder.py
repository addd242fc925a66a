"""The encoder that guides sampling towards classes: half a backbone, a head, and one prototype per class (DiffRC)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbdiff.diffusion.backbone import Taps, linear, pooled
from imbdiff.diffusion.codec import Codec
from imbdiff.diffusion.model import DiffusionModel, ModelSpec, from_spec
from imbdiff.diffusion.process import Process
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.streams import seed_of, torch_rng

DIM = 128  # of the feature


class PrototypeEncoder(nn.Module):
    """A feature f(x_t, t) of unit length, and how far it is from the prototype of a class.

    The network is what `Backbone.cut_to_encoder` leaves of a backbone, without labels: of a U-Net the down path and the
    middle block, of a DiT the first half of its blocks, of an MLP its first layer; then SiLU, the mean over pixels or
    tokens, and a linear layer (where there are neither pixels nor tokens, as in an MLP, two, with SiLU between them).
    The other half is left out, so that every parameter trains.

    It is trained as a network of its own (`imbdiff.objectives.prototype_contrast`), to which it answers the tap
    "features", (B, 128), and no prediction.

    Args:
        spec: of the model that it is to guide; process, codec and class statistics are that model's.
        tau: temperature of L_PC.
        seed: of the initial weights; no global random state is read or left changed.

    Attributes:
        prototypes: (C, 128) of unit length; zero for a class that was never seen.
        prior: (C,) class frequencies of the training set.
    """

    prototypes: Tensor
    prior: Tensor
    process: Process
    codec: Codec

    def __init__(self, spec: ModelSpec, *, tau: float = 0.07, seed: int = 0) -> None:
        super().__init__()
        # geometric changes are ordinary augmentation to it: it takes no vector of them, also where the model does
        spec = replace(spec, config={k: v for k, v in spec.config.items() if k != "augment"})
        model = from_spec(spec, seed=seed_of(seed, "encoder"))
        self.spec, self.process, self.codec, self.tau = spec, model.process, model.codec, tau
        self.backbone, self.tap = model.backbone, model.backbone.cut_to_encoder()
        h = self._example()
        width = pooled(h).shape[1]
        hidden = [linear(width, width, torch_rng(seed, "encoder", "hidden")), nn.SiLU()] if h.ndim == 2 else []
        self.before = nn.Sequential(nn.SiLU(), *hidden)
        self.head = linear(width, DIM, torch_rng(seed, "encoder", "head"))
        self.register_buffer("prototypes", torch.zeros(spec.stats.num_classes, DIM))
        self.register_buffer("prior", torch.from_numpy(spec.stats.prior).float())

    @classmethod
    def like(cls, model: DiffusionModel, seed: int) -> PrototypeEncoder:
        """A new encoder for images, process and classes of `model`; its initial weights come from `seed`."""
        return cls(model.spec, seed=seed)

    def _example(self) -> Tensor:
        """The tap of one image."""
        x = torch.zeros(1, *self.codec.shape)
        t = torch.zeros(1)
        with torch.no_grad():
            self.backbone.eval()
            _, taps = self.backbone(x, t, torch.zeros(1, dtype=torch.int64), (self.tap,), 0)
            self.backbone.train()
        return taps[self.tap]

    def features(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(B, 128) features of unit length, of x_t (B, c, h, w) at times t (B,) of the process."""
        labels = torch.zeros(len(x_t), dtype=torch.int64, device=x_t.device)
        _, taps = self.backbone(x_t, self.process.model_time(t), labels, (self.tap,), 0)
        f = self.head(pooled(self.before(taps[self.tap])))
        return F.normalize(f if f.dtype == torch.float64 else f.float(), dim=1)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor,
        taps: Sequence[str] = (),
        predict_rows: int | None = None,
        **_: Any,
    ) -> tuple[Tensor, Taps]:
        """The tap "features"; labels, capacity and geometric changes do not matter to it.

        Raises:
            ConfigError: a prediction or another tap is asked for.
        """
        if predict_rows != 0 or tuple(taps) != ("features",):
            raise ConfigError(
                f"the guidance encoder gives the tap features alone, not {', '.join(taps)} or a prediction",
                'ask for Request("null", taps=("features",), prediction=False)',
            )
        return x_t[:0], {"features": self.features(x_t, t)}

    def loss(self, x_t: Tensor, t: Tensor, labels: Tensor, prior: bool = True) -> Tensor:
        """(B,) the prototype contrastive loss, Eq. 12 with c_y in its numerator:

            L_PC = -log( pi_y exp(f c_y / tau) / sum_j pi_j exp(f c_j / tau) ),    f = f(x_t, t)

        Args:
            labels: (B,) in [0, C]; where it is C, "no class", the loss is 0.
            prior: False leaves pi out, which pushes a rare class no longer mostly away from frequent ones.
        """
        logits = prototype_logits(self.features(x_t, t), self.prototypes, self.tau, self.prior if prior else None)
        rows = F.cross_entropy(logits, labels.clamp_max(len(self.prior) - 1), reduction="none")
        return torch.where(labels < len(self.prior), rows, 0)


def prototype_logits(features: Tensor, prototypes: Tensor, tau: float, prior: Tensor | None) -> Tensor:
    """(B, C) f c_j / tau + log pi_j: what Eq. 12 takes the softmax of."""
    logits = features @ prototypes.to(features.dtype).T / tau
    return logits if prior is None else logits + prior.to(features.dtype).log()
