"""The trainings of a comparison: one per (arm, seed), several at a time, each kept in a file of its own when done."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from imbdiff.data.imageset import ImageSet
from imbdiff.data.rows import join
from imbdiff.recognition.fit import FitPlan, fit, predict
from imbdiff.recognition.losses import class_prior
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest, read_json, write_json

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

_log = logging.getLogger(__name__)
FORMAT = 1
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Arm:
    """One way of training the classifier.

    Attributes:
        name: as printed.
        needs_synthetic: trains on real and synthetic images together.
        sampler: law of the batch sampler.
        loss: "cross-entropy" or "balanced-softmax".
        prior: of balanced softmax: "train" (real counts) or "effective" (real + w x synthetic); None otherwise.
    """

    name: str
    needs_synthetic: bool
    sampler: str
    loss: str
    prior: str | None = None

    @property
    def file(self) -> str:
        return self.name.lower().replace(" + ", "+").replace(" ", "-")


ARMS = (
    Arm("CE", False, "natural", "cross-entropy"),
    Arm("CE + class-balanced resampling", False, "balanced", "cross-entropy"),
    Arm("balanced softmax", False, "natural", "balanced-softmax", "train"),
    Arm("synthetic + CE", True, "natural", "cross-entropy"),
    Arm("synthetic + balanced softmax", True, "natural", "balanced-softmax", "train"),
)


@dataclass(frozen=True, eq=False)
class Job:
    arm: Arm
    seed: int
    plan: FitPlan
    prepared: Prepared
    synthetic: ImageSet | None
    synthetic_weight: float
    device: str
    folder: Path | None

    @property
    def path(self) -> Path | None:
        return None if self.folder is None else Path(self.folder) / f"{self.arm.file}-seed{self.seed}.json"

    def input_hash(self) -> str:
        """All that the predictions depend on; an arm without synthetic images does not depend on them."""
        val, synthetic = self.prepared.val, self.synthetic if self.arm.needs_synthetic else None
        return digest(
            [
                FORMAT,
                torch.__version__,
                torch.device(self.device).type,
                asdict(self.arm),
                self.seed,
                self.plan.to_json(),
                self.prepared.train.fingerprint,
                None if val is None else val.fingerprint,
                self.prepared.test.fingerprint,
                None if synthetic is None else [synthetic.fingerprint, self.synthetic_weight],
            ]
        )

    def stored(self) -> dict[str, Any] | None:
        """The result in the folder, or None where there is none for these inputs."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            found = read_json(self.path)
            if found["input"] == self.input_hash():
                return {"seed": self.seed, "test": list(found["test"]), "val": found["val"]}
        except (RunError, KeyError, TypeError):
            _log.warning("%s is damaged: this classifier is trained again", self.path)
        return None

    def train(self, stop: threading.Event) -> dict[str, Any] | None:
        if torch.device(self.device).type == "cpu":
            # holds for this thread only; one thread each is fastest for small networks and the same on every machine
            torch.set_num_threads(1)
        train, weights, synthetic_labels = self.prepared.train, None, None
        if self.arm.needs_synthetic:
            assert self.synthetic is not None
            train, weights = joined(train, self.synthetic, self.synthetic_weight)
            synthetic_labels = self.synthetic.labels
        prior = None
        if self.arm.prior is not None:
            c = len(train.class_names)
            prior = class_prior(self.arm.prior, self.prepared.train.labels, synthetic_labels, self.synthetic_weight, c)
        name = f"{self.arm.name}, seed {self.seed}"
        network = fit(
            train,
            self.plan,
            law=self.arm.sampler,
            prior=prior,
            weights=weights,
            seed=self.seed,
            device=self.device,
            stop=stop.is_set,
            name=name,
        )
        if stop.is_set():
            return None
        val = None if self.prepared.val is None else predict(network, self.prepared.val).tolist()
        result = {"test": predict(network, self.prepared.test).tolist(), "val": val}
        if self.path is not None:
            write_json(self.path, {"input": self.input_hash(), "arm": self.arm.name, "seed": self.seed, **result})
        return {"seed": self.seed, **result}


def joined(train: ImageSet, synthetic: ImageSet, weight: float) -> tuple[ImageSet, np.ndarray]:
    """Real and synthetic images as one set, and (N,) float64 weights: 1 and `weight`."""
    both = ImageSet(
        join([train.images, synthetic.images]),
        np.concatenate([train.labels, synthetic.labels]),
        train.class_names,
        (*(f"real/{i}" for i in train.ids), *(f"synthetic/{i}" for i in synthetic.ids)),
    )
    return both, np.concatenate([np.ones(len(train)), np.full(len(synthetic), float(weight))])


def run_all(jobs: Sequence[Job], workers: int, progress: Progress | None) -> dict[tuple[str, int], dict[str, Any]]:
    results: dict[tuple[str, int], dict[str, Any]] = {}
    waiting = []
    for job in jobs:
        found = job.stored()
        if found is None:
            waiting.append(job)
        else:
            results[job.arm.name, job.seed] = found
            _tell(progress, len(results), len(jobs), job, " (kept)")
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="classifier") as pool:
        futures: dict[Future[dict[str, Any] | None], Job] = {pool.submit(job.train, stop): job for job in waiting}
        try:
            open_futures = set(futures)
            while open_futures:
                finished, open_futures = wait(open_futures, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = futures[future]
                    result = future.result()
                    assert result is not None
                    results[job.arm.name, job.seed] = result
                    _tell(progress, len(results), len(jobs), job, "")
        except BaseException:
            # Ctrl-C and errors end the other trainings within some steps; finished ones are in the folder
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


def _tell(progress: Progress | None, done: int, total: int, job: Job, note: str) -> None:
    if progress is not None:
        progress(done, total, f"{job.arm.name}, seed {job.seed}{note}")


def default_workers(device: str) -> int:
    """Networks trained at a time: one per core on a CPU (one thread each), one on an accelerator."""
    if torch.device(device).type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, 8))
