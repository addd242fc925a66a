"""What the log says of each term's part in the gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imbdiff.diffusion.process import PROCESSES
from imbdiff.objectives.class_balancing import ClassBalancing
from imbdiff.objectives.denoising import Denoising
from imbdiff.objectives.prototype_contrast import PrototypeContrast
from imbdiff.runtime.log import read_jsonl
from tests.contract.cases import make_batches, make_step


def test_shares_and_cosines_are_those_of_the_gradients() -> None:
    process = PROCESSES["ddpm-v"]
    step = make_step([Denoising(), ClassBalancing(weight=0.3)], process)
    batches = make_batches(step, process)
    found = step.gradient_shares(batches)
    networks = list(step.networks.parameters())
    terms, _ = step.terms(batches)
    grads = {}
    for name in terms:
        again, _ = step.terms(batches)
        parts = torch.autograd.grad(again[name], networks, allow_unused=True)
        grads[name] = torch.cat(
            [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(networks, parts, strict=True)]
        )
    total = sum(g.norm() for g in grads.values())
    base = grads["denoising/mse"]
    for name, g in grads.items():
        assert found[f"share/{name}"] == pytest.approx(float(g.norm() / total), rel=1e-5)
        if name != "denoising/mse":
            expected = float(torch.nn.functional.cosine_similarity(g, base, dim=0))
            assert found[f"cosine/{name}"] == pytest.approx(expected, abs=1e-5)
    assert sum(v for k, v in found.items() if k.startswith("share/")) == pytest.approx(1)
    assert "cosine/denoising/mse" not in found


def test_a_weaker_term_has_a_smaller_share_and_one_alone_none() -> None:
    process = PROCESSES["ddpm"]
    strong, weak = (make_step([Denoising(), ClassBalancing(weight=w)], process) for w in (1.0, 0.001))
    a, b = (s.gradient_shares(make_batches(s, process))["share/class_balancing/pull"] for s in (strong, weak))
    assert b < 0.01 < a
    alone = make_step([Denoising()], process)
    assert alone.gradient_shares(make_batches(alone, process)) == {}


def test_nothing_is_left_of_it() -> None:
    """Weights, gradients, the prototypes that move in every forward pass, and the random state."""
    from imbdiff.diffusion.encoder import PrototypeEncoder
    from imbdiff.training.step import TrainingStep

    process = PROCESSES["ddpm"]
    model = make_step([Denoising()], process).networks["model"]
    encoder = PrototypeEncoder.like(model, 1)  # type: ignore[arg-type]
    other = PrototypeContrast()
    other.name = "second"
    step = TrainingStep({"model": encoder}, [PrototypeContrast(), other])
    batches = make_batches(step, process, dtype=torch.float32)
    before = {k: v.clone() for k, v in step.state_dict().items()}
    random = torch.random.get_rng_state()
    assert step.gradient_shares(batches)
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in step.state_dict().items())
    assert all(p.grad is None for p in step.parameters())


def test_a_training_logs_them_and_is_the_same_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import imbdiff
    from imbdiff.pipeline import training
    from imbdiff.training.step import TrainingStep
    from tests.pipeline.conftest import SMALL

    config = imbdiff.override(imbdiff.preset("tiny"), {**SMALL, "model": {"backbone": "mlp"}, "method": "cbdm"})
    data = training.prepare_data("digits", config.data)
    model = training.train(data, config, tmp_path / "a", quiet=True)
    rows = read_jsonl(tmp_path / "a" / "log.jsonl")
    told = [row for row in rows if "share/class_balancing/pull" in row]
    assert 1 <= len(told) < len(rows) or len(rows) == 1
    assert all(0 <= row["share/class_balancing/pull"] <= 1 for row in told)
    assert all(-1.001 <= row["cosine/class_balancing/commit"] <= 1.001 for row in told)
    monkeypatch.setattr(TrainingStep, "gradient_shares", lambda *_: {})
    without = training.train(data, config, tmp_path / "b", quiet=True)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), without.parameters(), strict=True))
