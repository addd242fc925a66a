"""Feedback guidance: images that a classifier is unsure of (Askari-Hemmat et al., TMLR 2024, arXiv 2310.00158)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbdiff.diffusion.guidance import Predict, Shift, differentiated, sampler_times
from imbdiff.diffusion.process import Process, expand
from imbdiff.runtime.errors import ConfigError

Criterion = Literal["entropy", "loss"]
Classifier = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EntropyGuidance(Shift):
    """Raises a criterion of a classifier f at the clean image that the prediction implies:

        score' = score + omega n(grad_{x_t} H(f(x0_hat(x_t)))),        eps' = eps - omega s(t) n(...)

    H is the entropy of softmax f, or with criterion="loss" the cross-entropy of the image's own class; the paper's
    third, hardness, is left out. Where the paper and its code (facebookresearch/Feedback-guided-Data-Synthesis,
    fg_pipe.py) leave room:

    - The gradient goes through the network, and gets the length of x_t, image by image: n(G) = |x_t| G / |G|; both as
      in the code.
    - The code adds 0.03 n to x_t, at every fifth of 30 steps, and leaves eps as it was; here omega is that of the score
      as in the paper, at every step. With a perfect model both move images alike in 30 steps of DDIM; 250 ancestral
      steps want a larger omega.
    - The code's classifier sees x0_hat s + x_t (1 - s), brought to [0, 1] by its own least and greatest value; here it
      sees x0_hat, clipped to `bound`. A pixel that is clipped has no gradient.

    Rows of the null label, and of a scale of 0, are left as they are.

    Attributes:
        classifier: (B, c, h, w) of model space, images in [-1, 1] where that is pixels -> (B, K) logits, K >= 2; a
            module must be in eval mode. Not one that judges the images afterwards.
        of: the model's process.
        num_classes: C, of the model.
        scale: omega, at least 0; one number, or one per class, (C,).
        criterion: "entropy" or "loss".
        bound: of the clean image; None: it is not clipped.
        every: guide at every n-th step of the sampler, the first among them; 5 of 30 in the paper's code.
        sampler, steps, interval, level: see `Shift`; `every` needs them.

    Raises:
        ConfigError: a scale is negative or not finite, or their number is wrong; bad interval; the classifier is in
            training mode; when called, it does not give (B, K) logits.
    """

    differentiates: ClassVar[bool] = True
    classifier: Classifier
    of: Process
    num_classes: int
    scale: float | Sequence[float]
    criterion: Criterion = "entropy"
    bound: float | None = 1.0
    every: int = 1
    sampler: str = ""
    steps: int = 0
    interval: tuple[float, float] = (0.0, 1.0)
    level: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.classifier, nn.Module) and any(m.training for m in self.classifier.modules()):
            raise ConfigError("entropy guidance: the classifier is in training mode", "call classifier.eval() first")

    @property
    def process(self) -> Process:
        return self.of

    @property
    def classes(self) -> int:
        return self.num_classes

    def guides_at(self, level: float) -> bool:
        if self.every > 1:
            times = torch.tensor(sampler_times(self.sampler, self.of, self.steps)[:: self.every])
            if not (self.of.noise_level(times) - level).abs().min() < 1e-6:
                return False
        return super().guides_at(level)

    def step(self, x_t: Tensor, t: Tensor, labels: Tensor, scale: Tensor, predict: Predict) -> tuple[Tensor, Tensor]:
        prediction, g = self.gradient(x_t, t, labels, predict)
        length = g.flatten(1).norm(dim=1).clamp_min(torch.finfo(g.dtype).tiny)
        return prediction, expand(scale * x_t.flatten(1).norm(dim=1), g) * (g / expand(length, g))

    def gradient(self, x_t: Tensor, t: Tensor, labels: Tensor, predict: Predict) -> tuple[Tensor, Tensor]:
        """`predict`'s answer and the gradient of the criterion in x_t, each (B, c, h, w)."""
        outside = differentiated(x_t)
        with torch.enable_grad():
            x = x_t if outside else x_t.detach().requires_grad_()
            prediction = predict(x, t, labels)
            rows = self._criterion(self.of.to_x0(prediction, x, t), labels)
            (g,) = torch.autograd.grad(rows.sum(), x, retain_graph=outside)
        return prediction if outside else prediction.detach(), g

    def _criterion(self, x0: Tensor, labels: Tensor) -> Tensor:
        """(B,) to be raised."""
        logits = self.classifier(x0 if self.bound is None else x0.clamp(-self.bound, self.bound))
        least = self.num_classes if self.criterion == "loss" else 2
        if logits.ndim != 2 or len(logits) != len(x0) or logits.shape[1] < least:
            raise ConfigError(
                f"entropy guidance: the classifier gives {tuple(logits.shape)} for {len(x0)} images",
                f"give one whose answer is (B, K) logits with K >= {least}",
            )
        if self.criterion == "loss":
            return F.cross_entropy(logits, labels.clamp_max(self.num_classes - 1), reduction="none")
        log_p = logits.log_softmax(dim=1)
        return -(log_p.exp() * log_p).sum(dim=1)
