"""What batches cost in training a classifier, and what they cost in a plain loop over PIL images.

    OMP_NUM_THREADS=1 python benchmarks/classifier_loader.py

"ours" draws indices, gathers uint8 rows of one tensor, moves and mirrors the batch and converts it to floats. "PIL" is
`torch.utils.data.DataLoader` without workers over a data set that pads, crops, mirrors, converts and standardises one
PIL image after another. The steps train the same network by SGD; "plain" has PIL's batches and torch's default memory
format, "plain, channels last" has the memory format of ours and so differs from it by its batches alone. The share is
the loader's time within the step: both are timed in turns, in one process. Images are random bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from harness import Side, compare, spread, write_result
from imbdiff.data.augment import Augmentation, scaled
from imbdiff.data.gather import Gather
from imbdiff.data.samplers import BatchSampler
from imbdiff.recognition.networks import build_network
from imbdiff.runtime.streams import rng, torch_rng

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class PilImages(Dataset[tuple[Tensor, int]]):
    """Pad by black pixels, crop, mirror, to a tensor, standardise: one image at a time, each number drawn by itself,
    as RandomCrop, RandomHorizontalFlip, ToTensor and Normalize of torchvision do."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, shift: int, seed: int) -> None:
        self.images, self.labels, self.shift, self.random = images, labels, shift, torch_rng(seed, "PIL")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[i])
        w, h = image.size
        image = ImageOps.expand(image, self.shift, 0)
        top, left = (int(torch.randint(0, 2 * self.shift + 1, (1,), generator=self.random)) for _ in range(2))
        image = image.crop((left, top, left + w, top + h))
        if torch.rand(1, generator=self.random) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (torch.as_tensor(v)[:, None, None] for v in (MEAN, STD))
        return x.clone().sub_(mean).div_(std), int(self.labels[i])


def pil_batches(images: np.ndarray, labels: np.ndarray, batch: int, shift: int) -> Iterator[tuple[Tensor, Tensor]]:
    data = PilImages(images, labels, shift, 0)
    while True:
        yield from DataLoader(data, batch, shuffle=True, drop_last=True, generator=torch_rng(0, "PIL order"))


def our_batches(
    images: np.ndarray, labels: np.ndarray, batch: int, how: Augmentation
) -> Iterator[tuple[Tensor, Tensor]]:
    data, sampler = Gather(images, torch.device("cpu")), BatchSampler(labels, batch)
    target, step = torch.from_numpy(labels), 0
    while True:
        index = sampler.indices(step)
        draws = how.draw(batch, torch_rng(0, "augmentation", step))
        yield scaled(how.apply(data.rows(index), draws)), target[torch.from_numpy(index)]
        step += 1


def trainer(
    network: str, shape: tuple[int, int, int], batches: Iterator[tuple[Tensor, Tensor]], last: bool
) -> Callable[[], None]:
    """One optimizer step of a network; `last`: in the memory format channels last."""
    net = build_network(network, shape, 10)
    net = net.to(memory_format=torch.channels_last) if last else net  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)

    def step() -> None:
        x, y = next(batches)
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        loss = functional.cross_entropy(net(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def times(run: Callable[[], object], n: int) -> Callable[[], None]:
    def several() -> None:
        for _ in range(n):
            run()

    return several


def measure(network: str, side: int, given: argparse.Namespace) -> dict[str, Any]:
    """Ratios for one network and size: the loaders against each other, the steps against each other, the share."""
    shape, shift = (side, side, 3), max(1, side // 8)
    r = rng(0, "images", side)
    images = r.integers(0, 256, (given.images, *shape), dtype=np.uint8)
    labels = r.integers(0, 10, given.images)
    how = Augmentation("mirror", shift, border="zero")
    ours, pil = our_batches(images, labels, given.batch, how), pil_batches(images, labels, given.batch, shift)
    n = given.batches
    loaders = compare(
        [Side("ours", times(lambda: next(ours), n)), Side("PIL", times(lambda: next(pil), n))],
        repeats=given.repeats, memory_repeats=0,
    )  # fmt: skip
    steps = given.steps if side < 16 else 1
    feeds = {"ours": (ours, True), "plain": (pil, False), "plain, channels last": (pil, True)}
    sides = [Side(name, times(trainer(network, shape, *feed), steps)) for name, feed in feeds.items()]
    sides.append(Side("our loader", times(lambda: next(ours), steps)))
    trained = compare(sides, repeats=given.repeats, memory_repeats=0)
    seconds = {row["name"]: row["wall_s"]["values"] for row in trained["sides"]}
    cpu = {row["name"]: row["cpu_s"]["values"] for row in trained["sides"]}
    shares = {
        what: spread(a / b for a, b in zip(found["our loader"], found["ours"], strict=True))
        for what, found in (("wall", seconds), ("cpu", cpu))
    }
    compared = [("loader, PIL / ours", loaders["ratios"][0]), ("step, plain / ours", trained["ratios"][0])]
    compared.append(("step, plain in channels last / ours", trained["ratios"][1]))
    costs = [
        {
            "what": f"{network}, {side} px: {kind}, {row['name']}",
            "wall ms": round(1e3 * row["wall_s"]["median"] / per, 3),
            "CPU ms": round(1e3 * row["cpu_s"]["median"] / per, 3),
            "images per CPU second": round(given.batch * per / row["cpu_s"]["median"]),
        }
        for result, per, kind in ((loaders, n, "a batch"), (trained, steps, "a step"))
        for row in result["sides"]
        if row["name"] != "our loader"
    ]
    named = [("share of the loader in our step", shares[what], what) for what in ("wall", "cpu")]
    named += [(name, r[what], what) for name, r in compared for what in ("wall", "cpu")]
    ratios = [
        {"ratio": f"{network}, {side} px: {name}", "of": {"wall": "wall time", "cpu": "CPU time"}[what], **brief(s)}
        for name, s, what in named
    ]
    return {"costs": costs, "ratios": ratios}


def brief(s: dict[str, Any]) -> dict[str, float]:
    return {k: round(s[k], 5) for k in ("median", "q1", "q3", "min", "max")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=20, help="of the loaders alone, in one timed run")
    parser.add_argument("--steps", type=int, default=10, help="of small images, in one timed run; 1 of others")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-result", action="store_true")
    given = parser.parse_args()
    rows = [measure("resnet32", 32, given), measure("resnet-small", 8, given)]
    result = {part: [row for found in rows for row in found[part]] for part in ("costs", "ratios")}
    for row in result["costs"] + result["ratios"]:
        print(*row.values(), sep="  ")
    if not given.no_result:
        config = {k: v for k, v in vars(given).items() if k != "no_result"}
        write_result("classifier_loader", result, config=config, notes=(__doc__ or "").split("\n\n", 2)[2])


if __name__ == "__main__":
    main()
