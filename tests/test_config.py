"""Configuration: presets, overrides by name, YAML round trips, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import yaml

from imbdiff.config import RunConfig, TrainConfig, override, to_dict
from imbdiff.presets import PRESETS, choose_preset, preset
from imbdiff.runtime.errors import ConfigError


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_valid_and_survive_yaml(name: str) -> None:
    config = preset(name)
    assert config.preset == name
    assert override(RunConfig(), yaml.safe_load(yaml.safe_dump(to_dict(config)))) == config
    assert PRESETS[name].idea
    assert PRESETS[name].expect


def test_demo_is_digits_at_imbalance_factor_50() -> None:
    assert preset("demo").data.imbalance_factor == 50
    assert preset("cifar-lt").train.steps == 300_000


def test_overrides_by_dotted_name_and_by_group_agree() -> None:
    dotted = override(RunConfig(), {"train.lr": "1e-4", "train.images": 640.0, "data.size": 32, "seed": 3})
    nested = override(RunConfig(), {"train": {"lr": 1e-4, "images": 640}, "data": {"size": 32}, "seed": 3})
    assert dotted == nested
    assert dotted.train.lr == 1e-4
    assert dotted.train.batch_size == RunConfig().train.batch_size
    assert override(dotted, {"data.size": None}).data.size is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian.lr": 1}, "unknown option trian.lr.*did you mean train"),
        ({"train.learning": 1}, "unknown option train.learning"),
        ({"train": {"lrr": 1}}, r"unknown option train.lrr.*did you mean train.lr\?"),
        ({"train": 3}, "train is a group"),
        ({"train.lr": "fast"}, "train.lr='fast' is not valid"),
        ({"train.images": 1.5}, "train.images=1.5 is not valid"),
        ({"seed": True}, "seed=True is not valid"),
        ({"data.resize": "squash"}, "expected auto or crop or pad or stretch"),
        ({"sample.interval": [0.1]}, "sample.interval"),
        ({"sample.interval": [0.9, 0.1]}, "low <= high"),
        ({"train.images": 0}, "train.images=0 is not in"),
        ({"train.ema_half_life": 0}, "train.ema_half_life"),
        ({"data.test_fraction": 1.0}, "data.test_fraction"),
        ({"classify.seeds": 0}, "classify.seeds"),
        ({"model.dropout": 1.0}, "model.dropout"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        override(RunConfig(), values)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"(?s)unknown preset 'dmeo'.*demo"):
        preset("dmeo")


def test_the_default_preset_goes_by_size_and_device() -> None:
    assert choose_preset(8, "cpu") == "tiny"
    assert choose_preset(32, "cpu") == "small"
    assert choose_preset(33, "cpu") == "medium"
    assert choose_preset(32, "cuda") == "standard"


def test_configuration_is_frozen_and_light() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainConfig().lr = 1.0  # type: ignore[misc]
    code = (
        "import sys, imbdiff, imbdiff.config; print([m for m in ('torch', 'numpy', 'diffusers') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_importing_the_package_keeps_threads_from_spinning() -> None:
    import os

    code = "import os, imbdiff; print(os.environ['OMP_WAIT_POLICY'])"
    free = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for env, expected in ((free, "PASSIVE"), ({**free, "OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert out.stdout.strip() == expected
