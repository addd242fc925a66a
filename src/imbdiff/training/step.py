"""One wrapped call: networks and objectives together, from a batch to named losses.

This module is what accelerate prepares, what is compiled and what is checkpointed. Its forward pass makes the
requests, calls the networks and returns the losses: exactly one wrapped call per micro-step, because two forwards
before a backward are where data parallelism goes wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from imbdiff.objectives.batch import DrawKind, NoisyBatch
from imbdiff.objectives.evaluator import evaluate
from imbdiff.objectives.objective import Objective, Request, Usage
from imbdiff.runtime.errors import ConfigError


class TrainingStep(nn.Module):
    """The trainable networks and the objectives.

    Args:
        networks: name -> network; "model" is the one that sampling uses.
        objectives: those of weight 0 are left out.
        frozen: names of networks that are not trained; they stay in eval mode.
        max_rows: the most rows of one pass, see `evaluate`.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        objectives: Sequence[Objective],
        *,
        frozen: Sequence[str] = (),
        max_rows: int | None = None,
    ) -> None:
        super().__init__()
        active = [o for o in objectives if o.weight > 0]
        if not active:
            raise ConfigError("there is no objective with a weight above 0", "give at least one")
        names = [o.name for o in active]
        if len(set(names)) != len(names):
            raise ConfigError(f"two objectives have the same name: {names}", "give one of them another `name`")
        unknown = [name for name in frozen if name not in networks]
        if unknown:
            raise ConfigError(f"the networks {unknown} are to be frozen", f"this method declares {sorted(networks)}")
        for objective in active:
            objective.prepare(networks)
        self.networks = nn.ModuleDict(dict(networks))
        self.objectives = nn.ModuleList(active)
        self.frozen = tuple(frozen)
        self.max_rows = max_rows
        self.usage = Usage()
        for name in self.frozen:
            self.networks[name].requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> TrainingStep:
        """Train mode for all but the frozen networks."""
        super().train(mode)
        for name in self.frozen:
            self.networks[name].eval()
        return self

    @property
    def active(self) -> list[Objective]:
        return [o for o in self.objectives if isinstance(o, Objective)]

    def draws(self, part: str = "main") -> dict[str, DrawKind]:
        """The draws that the objectives of a part declare.

        Raises:
            ConfigError: two objectives declare different draws under one name.
        """
        merged: dict[str, DrawKind] = {}
        for objective in self.active:
            for name, kind in objective.draws.items() if objective.part == part else ():
                if merged.setdefault(name, kind) != kind:
                    raise ConfigError(
                        f"two objectives declare the draw {name!r} as {merged[name]} and {kind}",
                        "give one of the draws another name",
                    )
        return merged

    def forward(self, batches: Mapping[str, NoisyBatch]) -> dict[str, Tensor]:
        """Named losses, each a scalar; "loss" is what to differentiate.

        Its gradient, averaged over processes, is the gradient of the weighted sum of all terms over the global batch
        divided by that batch's size. The other entries are the terms by "objective/term", unweighted, without gradient,
        and among them what objectives monitor, which is no part of "loss".
        """
        weighted, losses = self.terms(batches)
        total: Tensor | float = 0.0
        for term in weighted.values():
            total = total + term
        assert isinstance(total, torch.Tensor)
        return {"loss": total, **losses}

    def terms(self, batches: Mapping[str, NoisyBatch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Each term by "objective/term", a scalar: times its weight with its graph; and unweighted without gradient,
        together with what objectives monitor."""
        asked: list[tuple[str, Request]] = []
        spans: list[slice] = []
        for objective in self.active:
            if objective.part not in batches:
                raise ConfigError(
                    f"{objective.name} reads the part {objective.part!r}", f"this step has {sorted(batches)}"
                )
            wanted = list(objective.requests(batches[objective.part]))
            spans.append(slice(len(asked), len(asked) + len(wanted)))
            asked += [(objective.part, request) for request in wanted]
        answers, self.usage = evaluate(dict(self.networks.items()), batches, asked, max_rows=self.max_rows)

        weighted: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        for objective, span in zip(self.active, spans, strict=True):
            batch = batches[objective.part]
            for name, term in objective.terms(batch, answers[span]).items():
                if term.shape not in ((), (len(batch),)):
                    raise ConfigError(
                        f"{objective.name}/{name} has shape {tuple(term.shape)}",
                        f"a term is a scalar or one value per row, ({len(batch)},)",
                    )
                value = term.mean()  # processes hold equal shares, so the mean of their means is the global mean
                losses[f"{objective.name}/{name}"] = value.detach()
                if name not in objective.monitors:
                    weighted[f"{objective.name}/{name}"] = objective.weight * value
        return weighted, losses
