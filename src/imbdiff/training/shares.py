"""How much each term of the loss takes part in the gradient: a term that does nothing is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from imbdiff.objectives.batch import NoisyBatch
from imbdiff.runtime.dist import Dist
from imbdiff.runtime.log import COSINE, SHARE
from imbdiff.training.step import TrainingStep


def gradient_shares(
    step: TrainingStep,
    batches: Mapping[str, NoisyBatch],
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, float]:
    """Each term's share of the gradient's norm, and its cosine with the gradient of the base loss.

        share_i = || w_i grad L_i || / sum_j || w_j grad L_j ||,      cosine_i = <grad L_i, grad L_base> / (|| || || ||)

    over the trained parameters of the networks (an objective's own projections are left out) and the global batch: the
    gradients are averaged over processes, all of which call this. Weights, gradients, buffers of the objectives and
    random states are left as they were; with terms that compare rows, all rows of the batches are compared.

    Returns:
        "share/OBJECTIVE/TERM" -> share, and "cosine/OBJECTIVE/TERM" -> cosine, of all but terms of the base loss; empty
        where there is one term alone.
    """
    parameters = [p for p in step.networks.parameters() if p.requires_grad]
    buffers = {name: buffer.clone() for name, buffer in step.objectives.named_buffers()}
    dist = next(iter(batches.values())).dist
    first = _terms(step, batches, buffers, autocast)
    names = list(first)
    if len(names) < 2:
        return {}
    based = {o.name for o in step.active if o.base}
    names.sort(key=lambda name: name.split("/")[0] not in based)  # those of the base loss first
    norms: dict[str, Tensor] = {}
    dots: dict[str, Tensor] = {}
    base: Tensor | None = None
    for name in names:
        # a pass for each: compiled networks and those in chunks can be gone back through once
        terms = first or _terms(step, batches, buffers, autocast)
        first = {}
        grads = torch.autograd.grad(terms[name], parameters, allow_unused=True)
        flat = _flat(parameters, grads, dist)
        norms[name] = flat.norm()
        if name.split("/")[0] in based:
            base = flat if base is None else base + flat
        elif base is not None:
            dots[name] = flat @ base / (norms[name] * base.norm()).clamp_min(torch.finfo(flat.dtype).tiny)
        del flat, grads, terms
    total = float(sum(norms.values()))
    shares = {SHARE + name: float(norm) / total if total else 0.0 for name, norm in norms.items()}
    return {**shares, **{COSINE + name: float(value) for name, value in dots.items()}}


def _terms(
    step: TrainingStep,
    batches: Mapping[str, NoisyBatch],
    buffers: Mapping[str, Tensor],
    autocast: Callable[[], AbstractContextManager[object]],
) -> dict[str, Tensor]:
    """The weighted terms with their graph, in a forward pass that leaves no trace."""
    device = next(step.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), autocast():
        terms, _ = step.terms(batches)
    with torch.no_grad():
        for name, buffer in step.objectives.named_buffers():
            buffer.copy_(buffers[name])
    return {name: term for name, term in terms.items() if term.requires_grad}


def _flat(parameters: Sequence[Tensor], grads: tuple[Tensor | None, ...], dist: Dist) -> Tensor:
    parts = [
        torch.zeros(p.numel(), device=p.device) if g is None else g.flatten().float()
        for p, g in zip(parameters, grads, strict=True)
    ]
    return dist.total(torch.cat(parts)) / dist.world
