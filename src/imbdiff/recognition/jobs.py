"""The trainings of a comparison: one per arm and seed, several at a time, each kept in a file named by its inputs."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
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
FORMAT = 3
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Conditions:
    """What is the same for all arms of a comparison.

    Attributes:
        plan: network, steps, rates, augmentation.
        prepared: the splits; test images are predicted when a training is over.
        seeds: of weights, batches and augmentation; the same ones in every arm, so that arms are compared in pairs.
        validations: how often the balanced accuracy on validation images is measured while training; the best weights
            are kept next to the last.
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
    validations: int = 0
    folder: Path | None = None
    workers: int | None = None
    progress: Progress | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network says of (N,) images: classes, and softmax probabilities of these."""

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
    """What a training gave: predictions by the network after the last step, or at the best one by validation images.

    Attributes:
        step: of the network.
        best: of a network after the last step, the best one; None where there was no validation.
        failed: why there are none.
    """

    test: Predictions | None
    val: Predictions | None
    step: int | None = None
    best: Predicted | None = None
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        parts = {name: None if p is None else p.to_json() for name, p in (("test", self.test), ("val", self.val))}
        return {**parts, "step": self.step, "best": None if self.best is None else self.best.to_json()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Predicted:
        test, val = (None if p is None else Predictions.from_json(p) for p in (values["test"], values["val"]))
        best = values["best"]
        return cls(test, val, values["step"], None if best is None else cls.from_json(best))


@dataclass(frozen=True, eq=False)
class Job:
    """One training."""

    arm: Arm
    seed: int
    synthetic: ImageSet | None
    conditions: Conditions
    identity: str = ""

    def with_identity(self) -> Job:
        """The same with a hash of all that the predictions depend on."""
        c, use = self.conditions, self.arm.use
        train, val, test = c.prepared.train, c.prepared.val, c.prepared.test
        recipe = asdict(get_recipe(self.arm.recipe))
        inputs = [
            FORMAT,
            torch.__version__,
            torch.device(c.device).type,
            {k: v for k, v in recipe.items() if k not in ("label", "idea", "source")},
            None if use is None else asdict(use),
            self.seed,
            *c.plan.identity(train.shape, len(train.class_names)),
            c.validations,
            train.fingerprint,
            None if val is None else val.fingerprint,
            test.fingerprint,
            None if self.synthetic is None else self.synthetic.fingerprint,
        ]
        return replace(self, identity=digest(inputs))

    @property
    def name(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def file(self) -> str:
        return f"{self.arm.file}-{self.identity[:12]}-seed{self.seed}"

    def stored(self) -> Predicted | None:
        """The result in the folder, or None where there is none for these inputs."""
        folder = self.conditions.folder
        for path in [] if folder is None else Path(folder).glob(f"*-{self.identity[:12]}-seed{self.seed}.json"):
            try:
                found = read_json(path)
                if found["input"] == self.identity:
                    return Predicted.from_json(found)
            except (RunError, KeyError, TypeError, ValueError):
                _log.warning("%s is damaged: this classifier is trained again", path)
        return None

    def train(self, stop: threading.Event) -> Predicted | None:
        """Trains and predicts; None if it was stopped."""
        c, files = self.conditions, TrainingFiles()
        if torch.device(c.device).type == "cpu":
            # holds for this thread only; one thread each is fastest for small networks and the same on every machine
            torch.set_num_threads(1)
        if c.folder is not None:
            store = CheckpointStore(Path(c.folder) / "checkpoints" / self.file)
            files = TrainingFiles(store, JsonLog(Path(c.folder) / "logs" / f"{self.file}.jsonl"), self.identity)
        found = Fit(
            c.prepared.train, c.plan, get_recipe(self.arm.recipe), self.seed, c.device, self.synthetic,
            self.arm.use or Use(), c.prepared.val, c.validations, self.name, stop.is_set, files,
        ).run()  # fmt: skip
        if stop.is_set():
            return None

        def predicted(network: Classifier, step: int | None, best: Predicted | None = None) -> Predicted:
            val = c.prepared.val
            of_val = None if val is None else Predictions.of(network, val)
            return Predicted(Predictions.of(network, c.prepared.test), of_val, step, best)

        best = None if found.best is None else predicted(found.best, found.best_step)
        result = predicted(found.last, found.steps, best)
        if c.folder is not None:
            facts = {"input": self.identity, "arm": self.arm.name, "seed": self.seed}
            write_json(Path(c.folder) / f"{self.file}.json", {**facts, **result.to_json()})
            shutil.rmtree(Path(c.folder) / "checkpoints" / self.file, ignore_errors=True)
        return result


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
        arm: [Job(arm, int(seed), images, conditions).with_identity() for seed in conditions.seeds]
        for arm, images in arms.items()
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
        waiting: dict[Future[Predicted | None], Job] = {
            pool.submit(job.train, stop): job for identity, job in jobs.items() if identity not in results
        }
        try:
            open_futures = set(waiting)
            while open_futures:
                ended, open_futures = wait(open_futures, return_when=FIRST_COMPLETED)
                for future in ended:
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
            if torch.device(device).type == "cpu":
                torch.set_num_threads(1)  # of this thread, as in a comparison
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
    if torch.device(device).type != "cpu":
        return 1
    return max(1, min(cores(), 8))
