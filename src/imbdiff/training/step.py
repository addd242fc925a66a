"""One wrapped call: networks and objectives together, from a batch to named losses.

This module is what accelerate prepares, what is compiled and what is checkpointed. Its forward pass makes the
requests, calls the networks and returns the losses: exactly one wrapped call per micro-step, because two forwards
before a backward are where data parallelism goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from imbdiff.objectives.batch import DrawKind, NoisyBatch
from imbdiff.objectives.evaluator import evaluate
from imbdiff.objectives.objective import Objective, Request, Usage
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.log import COSINE, SHARE


class TrainingStep(nn.Module):
    """The trainable networks and the objectives.

    Args:
        networks: name -> network; "model" is the one that sampling uses.
        objectives: those of weight 0 are left out.
        frozen: names of networks that are not trained; they stay in eval mode.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        objectives: Sequence[Objective],
        *,
        frozen: Sequence[str] = (),
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
        answers, self.usage = evaluate(dict(self.networks.items()), batches, asked)

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

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Random states and buffers of the objectives are afterwards as before."""
        buffers = {name: buffer.detach().clone() for name, buffer in self.objectives.named_buffers()}
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
        with torch.no_grad():
            for name, buffer in self.objectives.named_buffers():
                buffer.copy_(buffers[name])

    def gradient_shares(
        self,
        batches: Mapping[str, NoisyBatch],
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> dict[str, float]:
        """Each term's share of the gradient's norm, and its cosine with the gradient of the base loss: a term that does
        nothing is seen.

            share_i = || w_i grad L_i || / sum_j || w_j grad L_j ||
            cosine_i = <grad L_i, grad L_base> / (|| grad L_i || || grad L_base ||)

        over the trained parameters of the networks (an objective's own projections are left out) and the global batch:
        the gradients are averaged over processes, all of which call this. Weights, gradients, buffers of the objectives
        and random states are left as they were; with terms that compare rows, all rows of the batches are compared.

        Returns:
            "share/OBJECTIVE/TERM" -> share, and "cosine/OBJECTIVE/TERM" -> cosine, of all but terms of the base loss;
            empty where there is one term alone.
        """
        parameters = [p for p in self.networks.parameters() if p.requires_grad]
        dist = next(iter(batches.values())).dist

        def weighted() -> dict[str, Tensor]:
            with self.undisturbed(), autocast():
                terms, _ = self.terms(batches)
            return {name: term for name, term in terms.items() if term.requires_grad}

        first = weighted()
        if len(first) < 2:
            return {}
        based = {o.name for o in self.active if o.base}
        norms: dict[str, Tensor] = {}
        dots: dict[str, Tensor] = {}
        base: Tensor | None = None
        for name in sorted(first, key=lambda name: name.split("/")[0] not in based):  # those of the base loss first
            # a pass for each: a compiled network can be gone back through once
            terms = first or weighted()
            first = {}
            grads = torch.autograd.grad(terms[name], parameters, allow_unused=True)
            parts = [
                torch.zeros(p.numel(), device=p.device) if g is None else g.flatten().float()
                for p, g in zip(parameters, grads, strict=True)
            ]
            flat = dist.total(torch.cat(parts)) / dist.world
            norms[name] = flat.norm()
            if name.split("/")[0] in based:
                base = flat if base is None else base + flat
            elif base is not None:
                dots[name] = flat @ base / (norms[name] * base.norm()).clamp_min(torch.finfo(flat.dtype).tiny)
            del flat, parts, grads, terms
        total = float(sum(norms.values()))
        shares = {SHARE + name: float(norm) / total if total else 0.0 for name, norm in norms.items()}
        return {**shares, **{COSINE + name: float(value) for name, value in dots.items()}}
