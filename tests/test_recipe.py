"""Combinations of methods: what goes together is trained together in merged passes, what does not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import imbdiff
from imbdiff.config import override
from imbdiff.diffusion.process import PROCESSES
from imbdiff.methods import METHODS, get_method
from imbdiff.runtime.errors import ConfigError
from imbdiff.training.parts import Part
from tests.contract.cases import make_batches, make_step
from tests.pipeline.conftest import SMALL


def taken(name: str, kind: str = "ddpm") -> tuple[dict[str, torch.Tensor], Any]:
    """The losses of one step of a method's model phase, and what it cost."""
    step = make_step(get_method(name).target.objectives(), PROCESSES[kind])
    losses = step(make_batches(step, PROCESSES[kind]))
    return losses, step.usage


@pytest.mark.parametrize("kind", ["ddpm", "ddpm-v", "flow"])
@pytest.mark.parametrize("names", [("cbdm", "ccua"), ("ccua", "cbdm", "dispersive"), ("diffrop", "cbdm", "coral")])
def test_a_combination_has_every_term_and_shares_the_passes(names: tuple[str, ...], kind: str) -> None:
    together, usage = taken("+".join(names), kind)
    alone = [taken(name, kind)[0] for name in names]
    for losses in alone:
        for term in losses.keys() - {"loss"}:
            assert torch.allclose(together[term], losses[term], rtol=1e-9), term
    # the denoising loss is in each of them, and in all of them once
    base = alone[0]["denoising/mse"]
    expected = sum(losses["loss"] - base for losses in alone) + base
    assert torch.allclose(together["loss"], expected, rtol=1e-9)
    assert usage.passes == 1
    assert usage.rows / 16 == get_method("+".join(names)).cost == 1 + sum(METHODS[n].cost - 1 for n in names)


def test_cbdm_and_ccua_together_are_three_passes_in_one_call() -> None:
    _, usage = taken("cbdm+ccua")
    assert (usage.passes, usage.rows) == (1, 3 * 16)


def test_what_stands_for_the_denoising_loss_replaces_it() -> None:
    found = {o.name for o in get_method("cbdm+t2h").target.objectives()}
    assert found == {"class_balancing", "transfer"}
    assert {o.name for o in get_method("ddpm-focal+coral").target.objectives()} == {"focal", "supervised_contrast"}


def test_the_one_law_that_is_not_natural_is_taken() -> None:
    assert get_method("cbdm+ddpm-brs").target.parts == (Part(distribution="tempered", factor=0.1),)
    assert get_method("ddpm-brs+cbdm").target.parts == (Part(distribution="tempered", factor=0.1),)
    assert get_method("ccua+ddpm-brs").target.parts == (Part(distribution="tempered", factor=0.1),)
    assert get_method("cbdm+coral").target.parts == (Part(),)


def test_the_first_one_says_how_to_sample() -> None:
    assert get_method("cbdm+ccua").omega == METHODS["cbdm"].omega != METHODS["ccua"].omega
    assert get_method("ccua+cbdm").omega == METHODS["ccua"].omega
    assert get_method("coral+cbdm-finetune").init == "required"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cbdm+cbdm", "named twice"),
        ("cbdm+nothing", "unknown name 'nothing' among the methods"),
        ("cbdm+", "unknown name '' among the methods"),
        ("ccua+ddpm-balanced", "ccua samples its rows tempered .0.1., ddpm-balanced samples them balanced"),
        ("t2h+ddpm-focal", "t2h and ddpm-focal each replace the denoising loss"),
        ("ccua+ccua-v1", "both bring unconditional_contrast, with other constants"),
        ("cbdm+cbdm-finetune", "both bring class_balancing, with other constants"),
        ("t2h+h2t", "both bring transfer, with other constants"),
        ("diffrop+diffrop-released", "both bring [a-z_]*overlap[a-z_]*, with other constants"),
    ],
)
def test_what_excludes_each_other_is_refused_with_the_reason(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        get_method(name)


def test_a_run_trains_a_combination_and_its_page_names_it(tmp_path: Path) -> None:
    config = override(imbdiff.preset("tiny"), {**SMALL, "method": "cbdm+ccua"})
    page = imbdiff.run("digits", tmp_path / "run", config, wanted=("train", "sample", "report"), quiet=True)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    for term in ("class_balancing/pull", "unconditional_contrast/repel", "alignment/gap", "denoising/mse"):
        assert f'"{term}"' in log
    assert "cbdm+ccua" in page.read_text()
