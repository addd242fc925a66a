"""LPIPS between images of a class (Zhang et al. 2018): intra-class diversity by a learned distance between images.

Papers of this field report it without a common protocol; here it is AlexNet, 50 pairs of each class, chosen by hash. It
needs the package lpips (the extra ``fidelity``) and the weights of its backbone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imbdiff.data.imageset import ImageSet
from imbdiff.metrics.rows import Estimate, row_keys
from imbdiff.metrics.scopes import Scope
from imbdiff.metrics.statistics import student95
from imbdiff.metrics.tables import ClassColumns, number_row
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.streams import rng

ImageDistance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
SMALLEST = 64
"""Pixels of the shorter side that an image is enlarged to."""
PROTOCOL = (
    "mean LPIPS (AlexNet) over 50 pairs of images of a class, chosen by hash; smaller images are enlarged to 64 "
    "pixels; groups: mean over their classes; beside it the same for the reference images; 95 % interval (Student's t) "
    "where no image is in two pairs"
)


def lpips_diversity(
    images: Mapping[int, np.ndarray],
    pairs: int = 50,
    net: str = "alex",
    weights: Path | None = None,
    *,
    seed: int = 0,
    distance: ImageDistance | None = None,
    batch: int = 25,
) -> dict[int, Estimate]:
    """Mean LPIPS between images of each class.

    Args:
        images: class -> (n, H, W, C) uint8, C 1 or 3.
        pairs: of each class; all of them where there are fewer. They are chosen by the hashes of the images; where the
            class has 2 `pairs` images or more, no image is in two of them.
        net: "alex", "vgg" or "squeeze".
        weights: file with the backbone's weights, for use without network; torchvision's by default.
        distance: (n, 3, H, W) x 2 in [-1, 1] -> (n,), in place of LPIPS.

    Returns:
        class -> mean; the 95 % interval (Student's t) only where no image is in two pairs. Refused below 2 images.

    Raises:
        ConfigError: the package lpips is missing, or `net` is none of its networks.
        DataError: images of another type or shape.
    """
    for k, x in images.items():
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in (1, 3):
            raise DataError(f"images of class {k} must be (n, H, W, 1 or 3) uint8, not {x.shape} {x.dtype}")
    measure = distance or lpips_distance(net, weights)
    result = {}
    for k, x in images.items():
        about = {"net": net, "pairs": 0}
        order = np.argsort(row_keys(x.reshape(len(x), -1), seed), kind="stable")
        if len(x) < 2:
            estimate = Estimate.refuse(f"pairs need at least 2 images; here {len(x)}", None, None, **about)
        else:
            first, second, apart = _pairs(len(x), pairs, rng(seed, "lpips", int(k)))
            values = []
            for start in range(0, len(first), batch):
                a, b = (_tensor(x[order[i[start : start + batch]]]) for i in (first, second))
                with torch.no_grad():
                    values += measure(a, b).double().reshape(-1).tolist()
            mean, about["pairs"] = float(np.mean(values)), len(values)
            half = student95(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5 if apart else None
            low, high = (None, None) if half is None else (max(0.0, mean - half), mean + half)
            estimate = Estimate.of(mean, low, high, None, None, **about)
        result[k] = Estimate(**{**estimate.__dict__, "n_synthetic": len(x), "n_effective": float(len(x))})
    return result


def lpips_report(
    synthetic: ImageSet,
    reference: ImageSet,
    every: Sequence[Scope],
    *,
    reference_name: str,
    seed: int = 0,
    distance: ImageDistance | None = None,
) -> dict[str, Any]:
    """LPIPS of every class of the synthetic and the reference images, and means over the classes of each scope.

    Returns:
        {"numbers", "yardsticks", "classes": columns, "protocol"}, to be merged into what
        :func:`imbdiff.metrics.evaluate.evaluate` gives.
    """
    columns = ClassColumns(len(synthetic.class_names))
    result: dict[str, Any] = {"numbers": [], "yardsticks": []}
    measure = distance or lpips_distance()
    for images, kind, target in ((synthetic, "synthetic", "numbers"), (reference, "reference", "yardsticks")):
        by_class = {int(k): images.images[images.labels == k] for k in np.unique(images.labels)}
        found = lpips_diversity(by_class, seed=seed, distance=measure)
        common = {
            "reference": "none" if kind == "synthetic" else f"{reference_name} images",
            "extractor": "lpips-alex",
            "fingerprint": "lpips 0.1 alex",
            "ranking_only": True,
            "judge_saw_reference": False,
        }
        for scope in every:
            mine = [found[k] for k in scope.classes.tolist() if k in found and found[k].value is not None]
            own = {**common, "classes_left_out": len(scope.classes) - len(mine)}
            row = number_row("LPIPS", scope.name, _mean(mine), "higher", own)
            if scope.kind == "class":
                columns.add(row, int(scope.classes[0]), kind)
            else:
                result[target].append(row)
    return {**result, "classes": columns.to_json(), "protocol": PROTOCOL}


def _mean(parts: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates, with its interval where all have one."""
    if not parts:
        return Estimate(None, refused="no class of these has two images")
    value, n = float(np.mean([p.value for p in parts])), sum(p.n_synthetic for p in parts)
    if any(p.high is None for p in parts):
        return Estimate(value, n_synthetic=n, n_effective=float(n))
    half = float(np.sqrt(np.sum([(p.high - p.value) ** 2 for p in parts if p.high and p.value]))) / len(parts)
    return Estimate(value, max(0.0, value - half), value + half, n_synthetic=n, n_effective=float(n))


def _pairs(n: int, pairs: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, bool]:
    """Rows of up to `pairs` different pairs of n, and whether each row is in one pair only."""
    if n >= 2 * pairs:
        rows = generator.permutation(n)[: 2 * pairs]
        return rows[:pairs], rows[pairs:], pairs > 1
    first, second = np.triu_indices(n, 1)
    keep = np.sort(generator.permutation(len(first))[:pairs])
    return first[keep], second[keep], False


def _tensor(x: np.ndarray) -> torch.Tensor:
    y = torch.from_numpy(np.ascontiguousarray(x)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return y.expand(-1, 3, -1, -1) if y.shape[1] == 1 else y


def lpips_distance(net: str = "alex", weights: Path | None = None) -> ImageDistance:
    """(n, 3, H, W) x 2 in [-1, 1] -> (n,) LPIPS; raises ConfigError where the package is missing."""
    if net not in ("alex", "vgg", "squeeze"):
        raise ConfigError(f"LPIPS has no network {net!r}", "choose alex, vgg or squeeze")
    try:
        import lpips  # type: ignore[import-not-found]
    except ImportError as error:
        raise ConfigError(
            "LPIPS needs the package lpips, which is not installed",
            "pip install 'imbalanced-diffusion[fidelity]', or leave LPIPS out: the feature diversity needs nothing",
        ) from error
    network: Any = lpips.LPIPS(net=net, pnet_rand=weights is not None, verbose=False).eval()
    if weights is not None:
        from imbdiff.metrics.extractors.weights import read_weights

        # lpips cuts torchvision's `features` into slices and keeps the numbers of the layers
        given = {k.removeprefix("features."): v for k, v in read_weights(weights).items() if k.startswith("features.")}
        wanted = network.net.state_dict()
        try:
            network.net.load_state_dict({name: given[name.split(".", 1)[1]] for name in wanted})
        except (KeyError, RuntimeError) as error:
            raise DataError(f"{weights} does not hold the weights of torchvision's {net}: {error}") from error

    def measure(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if min(a.shape[-2:]) < SMALLEST:  # AlexNet's strides leave nothing of fewer pixels
            scale = SMALLEST / min(a.shape[-2:])
            a, b = (torch.nn.functional.interpolate(z, scale_factor=scale, mode="bilinear") for z in (a, b))
        return network(a, b).reshape(-1)

    return measure
