"""imbalanced-diffusion: class-conditional diffusion models for long-tailed image data.

    import imbdiff

    data = imbdiff.prepare("digits", imbalance_factor=50)
    config = imbdiff.preset("demo")
    model = imbdiff.train(data, config)
    images = imbdiff.sample(model, imbdiff.images_to_draw("auto", data.stats), config)

Names are loaded when they are first used: ``import imbdiff`` itself costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from imbdiff.version import __version__

# Two OpenMP threads that spin while they wait cost tenfold on a machine that does anything else. The library that reads
# this is loaded with torch, so import imbdiff before it, or set it. A value of your own is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from imbdiff.config import RunConfig as RunConfig
    from imbdiff.config import override as override
    from imbdiff.data.inspect import inspect as inspect
    from imbdiff.data.sources import load as load
    from imbdiff.data.splits import prepare as prepare
    from imbdiff.diffusion.generate import generate as generate
    from imbdiff.diffusion.saved import load_model as load_model
    from imbdiff.diffusion.saved import save_model as save_model
    from imbdiff.integrations.oversampler import DiffusionOverSampler as DiffusionOverSampler
    from imbdiff.metrics.evaluate import evaluate as evaluate
    from imbdiff.pipeline.curation import sample_curated as sample_curated
    from imbdiff.pipeline.predicting import load_classifier as load_classifier
    from imbdiff.pipeline.run import run as run
    from imbdiff.pipeline.sampling import sample as sample
    from imbdiff.pipeline.strategy import images_to_draw as images_to_draw
    from imbdiff.pipeline.sweep import sweep as sweep
    from imbdiff.pipeline.training import train as train
    from imbdiff.presets import preset as preset
    from imbdiff.recognition.comparison import classify as classify
    from imbdiff.recognition.trained import judges as judges

_WHERE = {
    "DiffusionOverSampler": "imbdiff.integrations.oversampler",
    "RunConfig": "imbdiff.config",
    "override": "imbdiff.config",
    "preset": "imbdiff.presets",
    "inspect": "imbdiff.data.inspect",
    "load": "imbdiff.data.sources",
    "prepare": "imbdiff.data.splits",
    "generate": "imbdiff.diffusion.generate",
    "load_classifier": "imbdiff.pipeline.predicting",
    "load_model": "imbdiff.diffusion.saved",
    "save_model": "imbdiff.diffusion.saved",
    "evaluate": "imbdiff.metrics.evaluate",
    "run": "imbdiff.pipeline.run",
    "sample": "imbdiff.pipeline.sampling",
    "sample_curated": "imbdiff.pipeline.curation",
    "sweep": "imbdiff.pipeline.sweep",
    "train": "imbdiff.pipeline.training",
    "images_to_draw": "imbdiff.pipeline.strategy",
    "classify": "imbdiff.recognition.comparison",
    "judges": "imbdiff.recognition.trained",
}

__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'imbdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
