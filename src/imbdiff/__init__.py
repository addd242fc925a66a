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

# Two OpenMP threads that spin while they wait cost tenfold and more on a machine that does anything else. The library
# that reads this is loaded with torch: set before `import torch`, or import imbdiff first. A value of your own is kept.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from imbdiff.config import RunConfig, override
    from imbdiff.data.inspect import inspect
    from imbdiff.data.sources import load
    from imbdiff.data.splits import prepare
    from imbdiff.diffusion.generate import generate
    from imbdiff.diffusion.saved import load_model, save_model
    from imbdiff.integrations.oversampler import DiffusionOverSampler
    from imbdiff.metrics.evaluate import evaluate
    from imbdiff.pipeline.curation import sample_curated
    from imbdiff.pipeline.run import run
    from imbdiff.pipeline.sampling import sample
    from imbdiff.pipeline.strategy import images_to_draw
    from imbdiff.pipeline.training import train
    from imbdiff.presets import preset
    from imbdiff.recognition.comparison import classify
    from imbdiff.recognition.trained import judges

_WHERE = {
    "DiffusionOverSampler": "imbdiff.integrations.oversampler",
    "RunConfig": "imbdiff.config",
    "override": "imbdiff.config",
    "preset": "imbdiff.presets",
    "inspect": "imbdiff.data.inspect",
    "load": "imbdiff.data.sources",
    "prepare": "imbdiff.data.splits",
    "generate": "imbdiff.diffusion.generate",
    "load_model": "imbdiff.diffusion.saved",
    "save_model": "imbdiff.diffusion.saved",
    "evaluate": "imbdiff.metrics.evaluate",
    "run": "imbdiff.pipeline.run",
    "sample": "imbdiff.pipeline.sampling",
    "sample_curated": "imbdiff.pipeline.curation",
    "train": "imbdiff.pipeline.training",
    "images_to_draw": "imbdiff.pipeline.strategy",
    "classify": "imbdiff.recognition.comparison",
    "judges": "imbdiff.recognition.trained",
}

__all__ = [
    "DiffusionOverSampler",
    "RunConfig",
    "__version__",
    "classify",
    "evaluate",
    "generate",
    "images_to_draw",
    "inspect",
    "judges",
    "load",
    "load_model",
    "override",
    "prepare",
    "preset",
    "run",
    "sample",
    "sample_curated",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'imbdiff' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
