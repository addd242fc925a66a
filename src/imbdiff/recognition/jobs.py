"""The trainings of a comparison: one per arm and seed, several at a time, each kept in a file named by its inputs."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.arms import Arm
from imbdiff.recognition.fitting import Fit, fit
from imbdiff.recognition.networks import Classifier, probabilities
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.use import Use
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.device import cores, prepare_threads
from imbdiff.runtime.errors import NonFiniteLossError, RunError
from imbdiff.runtime.files import digest, read_json, write_json
from imbdiff.runtime.log import JsonLog
from imbdiff.training.loop import TrainingFiles

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

_log = logging.getLogger(__name__)
FORMAT = 4
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Conditions:
    """What is the same for all arms of a comparison.

    Attributes:
        plan: network, steps, rates, augmentation.
        prepared: the splits; validation and test images are predicted when a training is over.
        seeds: of weights, batches and augmentation; the same ones in every arm, so that arms are compared in pairs.
        folder: where the result of each training is kept; what is there for the same inputs is not trained again,
            whatever it was trained for, and what was begun continues. None: nowhere.
        workers: networks trained at a time, each on one CPU thread; default: one per core on a CPU, one on an
            accelerator. The results do not depend on it.
        progress: called with (finished, total, arm and seed just finished).
    """

    plan: FitPlan
    prepared: Prepared
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"
    folder: Path | None = None
    workers: int | None = None
    progress: Progress | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """A network's classes of (N,) images, and softmax probabilities of these."""

    predicted: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(cls, network: Classifier, images: ImageSet) -> Predictions:
        p = probabilities(network, images)
        return cls(p.argmax(axis=1).astype(np.int64), np.round(p.max(axis=1).astype(np.float64), 5))

    def to_json(self) -> dict[str, Any]:
        return {"predicted": self.predicted.tolist(), "confidence": self.confidence.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Predictions:
        return cls(np.array(values["predicted"], dtype=np.int64), np.array(values["confidence"], dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a training gave: predictions of test and validation images; `failed` says why there are none."""

    test: Predictions | None
    val: Predictions | None
    failed: str = ""


@dataclass(frozen=True, eq=False)
class Job:
    """One training."""

    arm: Arm
    seed: int
    synthetic: ImageSet | None
    conditions: Conditions

    @cached_property
    def identity(self) -> str:
        """A hash of all that the predictions depend on."""
        c, use = self.conditions, self.arm.use
        train, sets = c.prepared.train, (c.prepared.train, c.prepared.val, c.prepared.test, self.synthetic)
        recipe = asdict(get_recipe(self.arm.recipe))
        inputs = [
            FORMAT,
            torch.__version__,
            torch.device(c.device).type,
            {k: v for k, v in recipe.items() if k not in ("label", "idea", "source")},
            None if use is None else asdict(use),
            self.seed,
            *c.plan.identity(train.shape, len(train.class_names)),
            *(None if images is None else images.fingerprint for images in sets),
        ]
        return digest(inputs)

    @property
    def name(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def file(self) -> str:
        return f"{self.arm.file}-{self.identity[:12]}-seed{self.seed}"

    def stored(self) -> Predicted | None:
        """The result in the folder, or None where there is none for these inputs."""
        path = None if self.conditions.folder is None else Path(self.conditions.folder) / f"{self.file}.json"
        if path is None or not path.exists():
            return None
        try:
            found = read_json(path)
            if found["input"] == self.identity:
                val = None if found["val"] is None else Predictions.from_json(found["val"])
                return Predicted(Predictions.from_json(found["test"]), val)
        except (RunError, KeyError, TypeError, ValueError):
            _log.warning("%s is damaged: this classifier is trained again", path)
        return None

    def train(self, stop: threading.Event) -> Predicted | None:
        """Trains and predicts; None if it was stopped."""
        c, files = self.conditions, TrainingFiles()
        use_one_thread(c.device)
        if c.folder is not None:
            store = CheckpointStore(Path(c.folder) / "checkpoints" / self.file)
            files = TrainingFiles(store, JsonLog(Path(c.folder) / "logs" / f"{self.file}.jsonl"), self.identity)
        network = Fit(
            c.prepared.train, c.plan, get_recipe(self.arm.recipe), self.seed, c.device, self.synthetic,
            self.arm.use or Use(), self.name, stop.is_set, files,
        ).run()  # fmt: skip
        if stop.is_set():
            return None
        test = Predictions.of(network, c.prepared.test)
        val = None if c.prepared.val is None else Predictions.of(network, c.prepared.val)
        if c.folder is not None:
            facts = {"input": self.identity, "arm": self.arm.name, "seed": self.seed}
            parts = {"test": test.to_json(), "val": None if val is None else val.to_json()}
            write_json(Path(c.folder) / f"{self.file}.json", {**facts, **parts})
            shutil.rmtree(Path(c.folder) / "checkpoints" / self.file, ignore_errors=True)
        return Predicted(test, val)


def train_arms(
    arms: Mapping[Arm, ImageSet | None], conditions: Conditions, *, keep_going: bool = False
) -> dict[Arm, list[Predicted]]:
    """Trains every arm with every seed, several at a time; what is in the folder already is read.

    Equal inputs are one training.

    Args:
        arms: each with its synthetic images; None: without.
        keep_going: where a loss becomes infinite, the others go on; "failed" then says so. It is not kept, and the next
            call tries again.

    Returns:
        Of each arm one result per seed, in the order of the seeds.
    """
    asked = {
        arm: [Job(arm, int(seed), images, conditions) for seed in conditions.seeds] for arm, images in arms.items()
    }
    jobs: dict[str, Job] = {}
    for job in (job for own in asked.values() for job in own):
        jobs.setdefault(job.identity, job)
    results: dict[str, Predicted] = {}

    def finished(job: Job, result: Predicted, note: str = "") -> None:
        results[job.identity] = result
        if conditions.progress is not None:
            conditions.progress(len(results), len(jobs), job.name + note)

    for job in jobs.values():
        found = job.stored()
        if found is not None:
            finished(job, found, " (kept)")
    stop = threading.Event()
    prepare_threads()
    workers = conditions.workers or default_workers(conditions.device)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="classifier") as pool:
        waiting = {pool.submit(job.train, stop): job for identity, job in jobs.items() if identity not in results}
        try:
            for future in as_completed(waiting):
                try:
                    result = future.result()
                except NonFiniteLossError as error:
                    if not keep_going:
                        raise
                    result = Predicted(None, None, failed=error.message)
                assert result is not None
                finished(waiting[future], result)
        except BaseException:
            # Ctrl-C and errors end the other trainings within some steps; finished ones are in the folder
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {arm: [results[job.identity] for job in own] for arm, own in asked.items()}


def seconds_per_classifier(train: ImageSet, plan: FitPlan, device: str) -> float:
    """From a measured probe of some steps, with as many classifiers trained at a time as a comparison does."""
    workers = default_workers(device)

    def seconds(steps: int) -> float:
        def once(seed: int) -> None:
            use_one_thread(device)
            fit(train, replace(plan, steps=steps), seed=seed, device=device, name="probe")

        began = time.perf_counter()
        with ThreadPoolExecutor(max_workers=workers) as threads:
            list(threads.map(once, range(workers)))
        return time.perf_counter() - began

    prepare_threads()
    seconds(2)
    return max(seconds(12) - seconds(2), 1e-4) / 10 * plan.steps / workers


def default_workers(device: str) -> int:
    """Networks trained at a time: one per core on a CPU (one thread each), one on an accelerator."""
    return max(1, min(cores(), 8)) if torch.device(device).type == "cpu" else 1


def use_one_thread(device: str) -> None:
    """On a CPU, for this thread of a pool: fastest for small networks, and the same on every machine."""
    if torch.device(device).type == "cpu":
        torch.set_num_threads(1)
