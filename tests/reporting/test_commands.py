"""Every command that a page prints is one that the command line takes."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from imbdiff.arguments import given
from imbdiff.cli import COMMANDS, GROUPS, STAGE_COMMANDS, RunCommand, TrainCommand
from imbdiff.config import RunConfig, flatten, override, to_dict
from imbdiff.pipeline.folder import repeat_command
from imbdiff.presets import PRESETS, preset
from imbdiff.reporting.compare import build_comparison
from imbdiff.reporting.report import build_report

from . import fake
from .test_answer import found


def taken(line: str) -> dict[str, Any]:
    """What the command line reads in it; refused: ConfigError."""
    program, verb, *words = shlex.split(line)
    assert program == "imbdiff"
    if verb in ("run", "train"):
        kinds: tuple[Any, ...] = (RunCommand if verb == "run" else TrainCommand, RunConfig)
    elif verb in GROUPS:
        kinds = (STAGE_COMMANDS[verb], RunConfig)
    else:
        kinds = (COMMANDS[verb],)
    return given(verb, words, *kinds)[0]


def commands_on(page: str) -> list[str]:
    texts = re.findall(r"<code>(imbdiff [^<]*)</code>", re.sub(r"<span>(--[^<]*)</span>", r"\1", page))
    texts += re.findall(r"\((imbdiff (?:curate|classify) [^),]+)", page)
    return [html.unescape(text) for text in texts]


def pages() -> Mapping[str, str]:
    full, bare = fake.full(), fake.minimal()
    made = {"full": build_report(full), "bare": build_report(bare)}
    made["compared"] = build_comparison([full, replace(bare, title="b")])
    for outcome in ("helped", "hurt", "no difference", "not measured"):
        for kept in ([], ["balanced softmax"]):
            results = found(outcome, kept=kept, learned={"warnings": ["odd (imbdiff curate RUN --curate.policy none)"]})
            made[f"{outcome} {kept}"] = build_report(replace(full, classifier=results))
    return made


def test_commands_of_pages_are_taken() -> None:
    seen = set()
    for page in pages().values():
        lines = [line for line in commands_on(page) if line != "imbdiff classify"]
        assert lines
        for line in lines:
            if len(shlex.split(line)) > 2:
                taken(line)
                seen.add(line.split()[1])
    assert seen >= {"run", "classify", "evaluate", "sample", "predict", "curate", "train"}


def booleans(kind: Any, prefix: str = "") -> list[str]:
    made = []
    for f in fields(kind):
        value = getattr(kind, f.name)
        if is_dataclass(value):
            made += booleans(value, f"{prefix}{f.name}.")
        elif isinstance(value, bool):
            made.append(prefix + f.name)
    return made


@pytest.mark.parametrize("name", ["demo", "tiny", "small", "standard"])
def test_every_boolean_is_repeated_both_ways(name: str) -> None:
    """Each option that is off by default and on, and the reverse, as the page prints it."""
    base = preset(name)
    switches = booleans(base)
    assert len(switches) > 3
    assert name in PRESETS
    for switch in switches:
        before = dict(flatten(to_dict(base)))[switch]
        config = override(base, {switch: not before})
        values = taken(repeat_command("digits", "runs/x y", config))
        assert values[switch] is (not before)
        assert values["out"] == "runs/x y"


@pytest.mark.parametrize("seed", range(4))
def test_several_options_at_once_are_repeated(seed: int) -> None:
    random = np.random.default_rng(seed)
    base = preset("tiny")
    switches = [switch for switch in booleans(base) if random.random() < 0.5]
    changed = {switch: not dict(flatten(to_dict(base)))[switch] for switch in switches}
    changed |= {"classify.recipes": ("ce", "resampling"), "data.size": 32, "sample.strategy": "a b=3,c=4"}
    values = taken(repeat_command("it's a folder", "o", override(base, changed)))
    assert values["source"] == "it's a folder"
    assert {key: values[key] for key in changed if key in values} == {k: v for k, v in changed.items() if k in values}
    assert set(changed) - set(values) <= {"classify.recipes"}
