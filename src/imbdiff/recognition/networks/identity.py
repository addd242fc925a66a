"""What tells two networks apart in caches: of those that come with this package the name says enough."""

from __future__ import annotations

import importlib.metadata
import inspect
from pathlib import Path
from typing import Any

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.networks import Maker, build_network
from imbdiff.recognition.networks.foreign import find_maker, parse_library
from imbdiff.recognition.plan import FitPlan
from imbdiff.runtime.files import digest, sha256_file


def network_identity(name: str | Maker, shape: tuple[int, int, int], num_classes: int) -> str | list[Any]:
    """A name, or for networks made elsewhere what they are: version, structure, first weights, the file of their code.

    Two functions of one name are told apart by what they make; what they do differently in their forward pass, by the
    file that they stand in.

    Args:
        shape: (H, W, C).
    """
    if isinstance(name, str) and not name.startswith("module:"):
        library = parse_library(name)
        return [name, importlib.metadata.version(library[0])] if library else name
    made = build_network(name, shape, num_classes, 0)
    weights = [[k, digest(v.detach().cpu().float().flatten().tolist())] for k, v in made.state_dict().items()]
    maker = find_maker(name) if isinstance(name, str) else name
    return [name if isinstance(name, str) else _called(maker), str(made), digest(weights), _source(maker)]


def plan_identity(plan: FitPlan, images: ImageSet) -> list[Any]:
    """What tells two plans apart in caches, for such images: their values, and what the network is."""
    return [plan.to_json(), network_identity(plan.network, images.shape, len(images.class_names))]


def is_pretrained(name: str | Maker) -> bool:
    """Whether the network's weights come from images that are not known here: those of a library."""
    library = parse_library(name) if isinstance(name, str) else None
    return bool(library and library[2])


def _called(maker: Maker) -> str:
    inner = getattr(maker, "func", maker)  # of a partial
    return f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__name__)}"


def _source(maker: Maker) -> str | None:
    inner: Any = getattr(maker, "func", maker)
    try:
        path = inspect.getsourcefile(inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner))
    except TypeError:
        return None
    return sha256_file(Path(path)) if path and Path(path).is_file() else None
