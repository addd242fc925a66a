"""Published losses in miniature, each as an `Objective`: what the contract must be able to express.

Formulas and constants follow the papers; they are written for clarity, not for use.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbdiff.diffusion.process import MIN_DIVISOR, Process, expand
from imbdiff.objectives.batch import LabelDraw, NoisyBatch, PermutationDraw, UniformDraw
from imbdiff.objectives.objective import Answer, Draw, Labels, Objective, Request, Rows
from imbdiff.runtime.errors import ConfigError

FAR = -1e9  # a logit that no softmax gives weight to, and yet finite: rows without a partner stay finite


def row_mse(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)


def others(batch: NoisyBatch, gathered: int) -> Tensor:
    """(B, gathered) bool: False where a column is the row itself."""
    return ~torch.eye(gathered, dtype=torch.bool)[batch.dist.share(gathered)]


class LowRank(nn.Module):
    """A network of two layers whose second has a low-rank part that `capacity` switches off row by row (CM)."""

    def __init__(self, process: Process, shape: tuple[int, int, int], num_classes: int, *, rank: int = 2) -> None:
        super().__init__()
        width, dim = 24, shape[0] * shape[1] * shape[2]
        self.process, self.shape = process, shape
        self.table = nn.Parameter(torch.randn(num_classes + 1, width))
        self.first, self.second = nn.Linear(dim + 2, width), nn.Linear(width, dim)
        self.down, self.up = nn.Parameter(torch.randn(width, rank) / 4), nn.Parameter(torch.randn(rank, dim) / 4)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        labels: Tensor,
        taps: Sequence[str] = (),
        predict_rows: int | None = None,
        capacity: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        n = len(x_t) if predict_rows is None else predict_rows
        time = (self.process.model_time(t) / 1000).to(x_t.dtype)[:, None]
        hidden = (self.first(torch.cat([x_t.flatten(1), time, time.square()], 1)) + self.table[labels]).tanh()
        low = hidden[:n] @ self.down @ self.up
        if capacity is not None:
            low = capacity[:n, None] * low
        return (self.second(hidden[:n]) + low).reshape(n, *self.shape), {"mid": hidden} if "mid" in taps else {}


class UCL(Objective):
    """CCUA's unconditional contrast: L_i = s_i log(1 + sum_{j != i} exp((cos_ij - 1) / tau)), j over all processes."""

    name = "ucl"

    def __init__(self, *, tau: float = 0.1, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.tau = tau

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("null", taps=("mid",), prediction=False)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        z = F.normalize(answers[0].taps["mid"].flatten(1), dim=1)
        everyone = batch.dist.gather(z)
        logits = ((z @ everyone.T - 1) / self.tau).masked_fill(~others(batch, len(everyone)), FAR)
        return {"repel": batch.noise_level * F.softplus(logits.logsumexp(1))}


class Alignment(Objective):
    """CCUA's alignment: L_i = s_i || eps_c - eps_u ||^2, gradient into both; rows with dropped labels left out."""

    name = "alignment"

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("given"), Request("null")]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        given, null = answers
        gap = row_mse(batch.difference(given.pred, null.pred, given))
        return {"gap": batch.noise_level * ~batch.dropped * gap}


class T2H(Objective):
    """Oriented calibration: the target is the noise that leads to another, more frequent row's clean image.

    Candidates are the rows of all processes: P(z = j) = softmax_j(-|| x_t - a x0_j ||^2 / (2 s^2)).
    """

    name = "t2h"

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.draws = {"transfer": UniformDraw()}

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("given")]

    @torch.no_grad()
    def target(self, batch: NoisyBatch) -> Tensor:
        x0, labels = batch.dist.gather(batch.x0), batch.dist.gather(batch.labels)
        a, s = (expand(c, batch.x_t).to(batch.x_t) for c in batch.process.coefficients(batch.t))
        s = s.clamp_min(MIN_DIVISOR)
        gap = (batch.x_t[:, None] - a[:, None] * x0) / s[:, None]
        cdf = (-gap.square().flatten(2).sum(2) / 2).softmax(1).cumsum(1)
        z = (cdf <= batch.draws["transfer"]).sum(1).clamp_max(len(x0) - 1)
        counts = torch.tensor(batch.stats.counts)
        accepted = counts[labels[z]] >= counts[batch.labels]
        clean = torch.where(expand(accepted, batch.x0), x0[z], batch.x0)
        return batch.process.target(clean, (batch.x_t - a * clean) / s, batch.t)

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        return {"mse": row_mse(answers[0].pred - self.target(batch))}


class CM(Objective):
    """Capacity manipulation: (w_con^y - w_div^y) || eps_full - eps_base ||^2, both weight states in one pass."""

    name = "cm"

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("given"), Request("given", capacity="base")]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        full, base = answers
        counts = torch.tensor(batch.stats.counts, dtype=torch.float64)
        consistent = len(counts) * counts / counts.sum()
        diverse = len(counts) / (counts * (1 / counts).sum())
        gap = row_mse(batch.difference(full.pred, base.pred, full)) * ~batch.dropped
        return {
            "consistent": consistent[batch.labels].to(gap) * gap,
            "diverse": -diverse[batch.labels].to(gap) * gap,
        }


class Coral(Objective):
    """CORAL: SupCon on a projection of the features; the head is the objective's own. lambda = exp((1 - s) / tau_r)."""

    name = "coral"

    def __init__(self, width: int, *, tau: float = 0.1, tau_r: float = 0.5, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.tau, self.tau_r = tau, tau_r
        self.head = nn.Linear(width, 8)

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("given", taps=("mid",), prediction=False)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        z = F.normalize(self.head(answers[0].taps["mid"]), dim=1)
        everyone, labels = batch.dist.gather(z), batch.dist.gather(batch.labels)
        other = others(batch, len(everyone))
        log_p = (z @ everyone.T / self.tau).masked_fill(~other, FAR).log_softmax(1)
        positive = other & (batch.labels[:, None] == labels)
        contrast = -log_p.masked_fill(~positive, 0).sum(1) / positive.sum(1).clamp_min(1)
        return {"supcon": ((1 - batch.noise_level) / self.tau_r).exp() * contrast}


class DiffRC(Objective):
    """DiffRC's pair-wise loss: within a class group, KL(p_tar || p_sou) of the softmax over cosines of predicted x_0.

    p_tar has temperature 1 + gamma N_k; the source network is frozen, unconditional, and sees the same x_t and t.
    """

    name = "diffrc"

    def __init__(self, *, gamma: float = 0.1, weight: float = 1.0) -> None:
        super().__init__(weight=weight, part="grouped")
        self.gamma = gamma

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("given"), Request("null", network="source", grad=False)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        pair = (batch.group[:, None] == batch.group) & (batch.group >= 0) & ~torch.eye(len(batch), dtype=torch.bool)
        counts = torch.tensor(batch.stats.counts)[batch.labels]

        def log_p(answer: Answer, temperature: Tensor | float) -> Tensor:
            x0 = F.normalize(batch.process.to_x0(answer.pred, batch.x_t, batch.t).flatten(1), dim=1)
            return (x0 @ x0.T / temperature).masked_fill(~pair, FAR).log_softmax(1)

        target, source = log_p(answers[0], (1 + self.gamma * counts)[:, None]), log_p(answers[1], 1.0)
        return {"pair": (target.exp() * (target - source)).masked_fill(~pair, 0).sum(1)}


class DiffROP(Objective):
    """Overlap, exact: L = 1 / (1 + mean_i s_i [y_i != y'_i] || eps(x_t, y) - eps(x_t, y') ||^2), y' of another row."""

    name = "diffrop"

    def __init__(self, *, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.draws = {"pairing": PermutationDraw()}

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("given"), Request(Labels("diffrop", batch.permuted("pairing", batch.labels)))]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        own, other = answers
        applies = ~batch.dropped & (own.labels != other.labels)
        gap = batch.noise_level * applies * row_mse(batch.difference(own.pred, other.pred, own))
        return {"overlap": 1 / (1 + batch.dist.gather(gap).mean())}


class Dispersive(Objective):
    """Dispersive loss: log mean_ij exp(-|| z_i - z_j ||^2 / D / tau), one number for the rows of all processes."""

    name = "dispersive"

    def __init__(self, *, tau: float = 1.0, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.tau = tau

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        return [Request("given", taps=("mid",), prediction=False)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        z = batch.dist.gather(answers[0].taps["mid"].flatten(1))
        return {"spread": (-(z[:, None] - z).square().mean(2) / self.tau).exp().mean().log()}


class SampledBalancing(Objective):
    """CBDM on k rows of every stratum of the batch, drawn in proportion to their weight and re-weighted: unbiased.

    Systematic sampling: points u, u + 1, ..., u + k - 1 on the running sum of the inclusion probabilities
    pi_i = min(1, k w_i / sum w), clipped until they are at most 1. Strata are consecutive rows, so that they do not
    depend on the number of processes.
    """

    name = "sampled_balancing"
    floor = 1e-6  # where fewer than k rows have a weight

    def __init__(self, *, k: int = 3, stratum: int = 8, gamma: float = 0.25, weight: float = 1.0) -> None:
        super().__init__(weight=weight)
        self.k, self.stratum, self.gamma = k, stratum, gamma
        self.draws = {"comparison": LabelDraw(), "systematic": UniformDraw()}

    def inclusion(self, batch: NoisyBatch) -> Tensor:
        """(strata, rows of a stratum) float64, every line adds up to k."""
        size = min(self.stratum, len(batch))
        if len(batch) % size:
            raise ConfigError(f"{len(batch)} rows are no multiple of a stratum's {size}")
        k = min(self.k, size)
        w = ((batch.noise_level * ~batch.dropped).double() + self.floor).reshape(-1, size)
        certain = torch.zeros_like(w, dtype=torch.bool)
        for _ in range(k):
            left = k - certain.sum(1, keepdim=True)
            pi = left * w / (w * ~certain).sum(1, keepdim=True).clamp_min(1e-300)
            certain = certain | (pi >= 1)
        left = k - certain.sum(1, keepdim=True)
        pi = left * w / (w * ~certain).sum(1, keepdim=True).clamp_min(1e-300)
        return torch.where(certain, 1.0, pi)

    def rows(self, batch: NoisyBatch) -> Rows:
        pi = self.inclusion(batch)
        strata, size = pi.shape
        k = min(self.k, size)
        u = batch.draws["systematic"].double().reshape(strata, size)[:, :1]
        points = u.clamp(1e-7, 1 - 1e-7) + torch.arange(k)
        within = torch.searchsorted(pi.cumsum(1), points, right=True).clamp_max(size - 1)
        return Rows(f"{self.name}:{k} of {size}", (within + size * torch.arange(strata)[:, None]).flatten())

    def requests(self, batch: NoisyBatch) -> Sequence[Request]:
        rows = self.rows(batch)
        return [Request("given", rows), Request(Draw("comparison"), rows)]

    def terms(self, batch: NoisyBatch, answers: Sequence[Answer]) -> dict[str, Tensor]:
        true, other = answers
        w = true.of(batch.noise_level * ~batch.dropped / self.inclusion(batch).flatten())
        pull = w * row_mse(batch.difference(true.pred, other.pred.detach(), true))
        commit = self.gamma * w * row_mse(batch.difference(true.pred.detach(), other.pred, true))
        return {"pull": batch.spread(pull, true), "commit": batch.spread(commit, true)}
