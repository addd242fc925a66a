"""From class id to what the network takes. Objectives know labels only; a prompt embedding would go here.

The null label, "no class", is C = num_classes. It is an ordinary label for everyone: batches hold it where a label was
dropped, and guidance asks for it by `Conditioner.null`.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from imbdiff.data.geometric import CONDITION_SIZE


class Conditioner(nn.Module):
    """Maps labels (B,) in [0, C] to the network's condition."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    @property
    def null(self) -> int:
        """The null label, C."""
        return self.num_classes

    @abstractmethod
    def forward(self, labels: Tensor) -> Tensor: ...

    def tables(self) -> list[nn.Parameter]:
        """Its tables of class vectors: none by default."""
        return []


class VectorConditioner(Conditioner):
    """A learned vector per class, to be added to the time embedding; the null label is the zero vector.

    That is the convention of the code bases of this field, where the embedding is simply not added for the null label.
    Vectors start at N(0, 1), as torch's embeddings do.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__(num_classes)
        self.table = nn.Parameter(torch.randn(num_classes, dim))
        self.register_buffer("zero", torch.zeros(1, dim), persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        assert isinstance(self.zero, Tensor)
        return torch.cat([self.table, self.zero])[labels]

    def tables(self) -> list[nn.Parameter]:
        return [self.table]


class AugmentationConditioner(nn.Linear):
    """Maps the vector (B, 9) of a geometric change (`imbdiff.data.geometric`) to what is added to the time embedding.

    In a transformer, to its tokens.

    Without a bias, so that the zero vector, an image as it is, adds nothing: sampling needs no vector. Weights start at
    N(0, 1), as class vectors do. CBDM's code has torch's default, a fifth of that; in short runs the network then makes
    little of the vector, and from zeros less still: telling it the wrong mirroring raised the loss of an MLP on digits,
    2,000 steps at p = 0.12, by 37 %, 6 % and 2 % (at the middle of time).
    """

    def __init__(self, dim: int) -> None:
        super().__init__(CONDITION_SIZE, dim, bias=False)
        nn.init.normal_(self.weight)

    def forward(self, change: Tensor) -> Tensor:
        return super().forward(change.to(self.weight.dtype))


class LabelPassthrough(Conditioner):
    """Labels as they are, for networks that own a table of C + 1 rows (DiT)."""

    def forward(self, labels: Tensor) -> Tensor:
        return labels


class NoCondition(Conditioner):
    """Adds nothing to the time embedding, whatever the label; has no parameters."""

    def forward(self, labels: Tensor) -> Tensor:
        return torch.zeros((), device=labels.device)
