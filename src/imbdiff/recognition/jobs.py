"""The trainings of a comparison: one per arm and seed, several at a time, each kept in a file named by its inputs."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.arms import Arm
from imbdiff.recognition.decision import Decision, Ensemble, choose_decision, log_prior_of, mean_probabilities
from imbdiff.recognition.fitting import Fit, fit, load_network
from imbdiff.recognition.networks import Classifier, probabilities
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.use import Use
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.device import cores, prepare_threads
from imbdiff.runtime.errors import NonFiniteLossError
from imbdiff.runtime.files import atomic, digest, sha256_file
from imbdiff.runtime.log import JsonLog
from imbdiff.training.loop import TrainingFiles

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

_log = logging.getLogger(__name__)
FORMAT = 5
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
        adjust: the teachers of a distilled network are adjusted on validation images, as the arms are.
        keep: names of arms of which the networks of the first seed are kept, in the folder beside the results.
    """

    plan: FitPlan
    prepared: Prepared
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"
    folder: Path | None = None
    workers: int | None = None
    progress: Progress | None = None
    keep: tuple[str, ...] = ()
    adjust: bool = True


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a training gave.

    Attributes:
        test, val: (N, C) float32 probabilities of the classes, of test and validation images.
        failed: why there are none.
    """

    test: np.ndarray | None
    val: np.ndarray | None
    failed: str = ""

    @classmethod
    def mean(cls, members: Sequence[Predicted]) -> Predicted:
        """Of an ensemble: the mean of its members' probabilities; failed where one is."""
        failed = next((member.failed for member in members if member.failed), "")
        if failed:
            return cls(None, None, failed)

        def mean(part: str) -> np.ndarray | None:
            found = [getattr(member, part) for member in members]
            return None if found[0] is None else mean_probabilities(found)

        return cls(mean("test"), mean("val"))


@dataclass(frozen=True, eq=False)
class Job:
    """One training.

    Attributes:
        teachers: the trainings of the networks that give it soft labels.
        keep: the network's weights, in the folder or in memory.
    """

    arm: Arm
    seed: int
    synthetic: ImageSet | None
    conditions: Conditions
    teachers: tuple[Job, ...] = ()
    keep: bool = False

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
            self.arm.changes,
            # and what their decision is chosen by
            [*(teacher.identity for teacher in self.teachers), list(c.prepared.claimable), c.adjust]
            if self.teachers
            else [],
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

    @property
    def path(self) -> Path | None:
        """Where the result is kept; the network's weights beside it."""
        return None if self.conditions.folder is None else Path(self.conditions.folder) / f"{self.file}.safetensors"

    @property
    def weights(self) -> Path | None:
        return None if self.path is None else self.path.with_suffix(".network.safetensors")

    def stored(self) -> Predicted | None:
        """The result in the folder, or None where there is none for these inputs."""
        path, weights = self.path, self.weights
        if path is None or weights is None or not path.exists():
            return None
        if self.keep and not weights.exists():
            return None
        try:
            with safe_open(path, "np") as file:
                facts = file.metadata()
                facts = json.loads(facts["facts"]) if "facts" in facts else facts  # otherwise of an earlier version
                if self.keep and facts["weights"] != sha256_file(weights):
                    raise KeyError
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if facts["input"] == self.identity and facts.get("arrays", _hash(found)) == _hash(found):
                return Predicted(found["test"], found.get("val"))
        except (SafetensorError, KeyError, TypeError, ValueError, OSError):
            _log.warning("%s is damaged: this classifier is trained again", path)
        return None

    def network(self, made: Mapping[str, Classifier]) -> Classifier:
        """The trained network, in eval mode on its device: of `made`, by identity, or from the folder."""
        if self.weights is None:
            return made[self.identity]
        c = self.conditions
        found = load_network(self.weights, c.plan, get_recipe(self.arm.recipe), c.prepared.train)
        return found.to(torch.device(c.device))

    def failed_teacher(self, done: Mapping[str, Predicted]) -> str:
        """Why a teacher has failed; empty where none has."""
        return Predicted.mean([done[t.identity] for t in self.teachers]).failed if self.teachers else ""

    def _teacher(self, done: Mapping[str, Predicted], made: Mapping[str, Classifier]) -> Ensemble | None:
        """What gives soft labels: the teachers together, as they decide."""
        if not self.teachers:
            return None
        prepared, own = self.conditions.prepared, Predicted.mean([done[t.identity] for t in self.teachers])
        log_prior = log_prior_of(prepared.train)
        decision = Decision()
        if self.conditions.adjust:
            decision = choose_decision(own.val, prepared.val, log_prior, prepared.claimable)
        return Ensemble([t.network(made) for t in self.teachers], replace(decision, temperature=1.0), log_prior)

    def train(
        self, stop: threading.Event, done: Mapping[str, Predicted], made: dict[str, Classifier]
    ) -> Predicted | None:
        """Trains and predicts; None if it was stopped.

        Args:
            done: results of the teachers, by identity.
            made: networks by identity, where there is no folder: of the teachers; its own is added, to be kept.
        """
        c, files = self.conditions, TrainingFiles()
        use_one_thread(c.device)
        if c.folder is not None:
            store = CheckpointStore(Path(c.folder) / "checkpoints" / self.file)
            files = TrainingFiles(store, JsonLog(Path(c.folder) / "logs" / f"{self.file}.jsonl"), self.identity)
        network = Fit(
            c.prepared.train, c.plan, get_recipe(self.arm.recipe), self.seed, c.device, self.synthetic,
            self.arm.use or Use(), self.arm.changes, self._teacher(done, made), self.name, stop.is_set, files,
        ).run()  # fmt: skip
        if stop.is_set():
            return None
        found = {"test": probabilities(network, c.prepared.test)}
        if c.prepared.val is not None:
            found["val"] = probabilities(network, c.prepared.val)
        if self.path is not None and self.weights is not None:
            facts = {"input": self.identity, "arm": self.arm.name, "seed": str(self.seed)}
            if self.keep:
                with atomic(self.weights) as aside:
                    save_file({k: v.contiguous().cpu() for k, v in network.state_dict().items()}, aside)
                facts["weights"] = sha256_file(self.weights)
            with atomic(self.path) as aside:
                # as one text: several would be written in any order
                save_arrays(found, aside, {"facts": json.dumps({**facts, "arrays": _hash(found)})})
            shutil.rmtree(self.path.parent / "checkpoints" / self.file, ignore_errors=True)
        elif self.keep:
            made[self.identity] = network
        return Predicted(found["test"], found.get("val"))


def _hash(arrays: Mapping[str, np.ndarray]) -> str:
    """Of all of them, by name."""
    return digest([[name, x.tobytes().hex()] for name, x in sorted(arrays.items())])


def jobs_of(
    arm: Arm, seed: int, synthetic: ImageSet | None, conditions: Conditions, *, keep: bool = False
) -> list[Job]:
    """The trainings of one classifier of `arm`: several of an ensemble."""

    def images(one: Arm) -> ImageSet | None:
        train = conditions.prepared.train
        if one.sees_synthetic:
            return synthetic
        if not one.placebo:
            return None
        if synthetic is None or one.use is None or one.use.prior == "domain":  # class-balanced rows
            return train
        return repeated(train, synthetic)

    if arm.teacher is None:
        return [Job(one, own, images(one), conditions, (), keep) for one, own in arm.networks(seed)]
    teachers = jobs_of(arm.teacher, seed, synthetic, conditions, keep=True)
    return [Job(arm, seed, images(arm), conditions, tuple(teachers), keep)]


def repeated(train: ImageSet, like: ImageSet) -> ImageSet:
    """Training images, of each class as many as `like` has, again and again where there are fewer."""
    wanted = np.bincount(like.labels, minlength=len(train.class_names))
    rows = [np.resize(np.flatnonzero(train.labels == k), n) for k, n in enumerate(wanted) if n]
    return train.select(np.concatenate(rows))


def train_arms(
    arms: Mapping[Arm, ImageSet | None],
    conditions: Conditions,
    *,
    keep_going: bool = False,
    made: dict[str, Classifier] | None = None,
) -> dict[Arm, list[Predicted]]:
    """Trains every arm with every seed, several at a time; what is in the folder already is read.

    Equal inputs are one training.

    Args:
        arms: each with its synthetic images; None: without.
        keep_going: where a loss becomes infinite, the others go on; "failed" then says so. It is not kept, and the next
            call tries again.
        made: where there is no folder, networks that are kept are added to it, by identity.

    Returns:
        Of each arm one result per seed, in the order of the seeds.
    """
    first = conditions.seeds[0]
    asked = {
        arm: [
            jobs_of(arm, int(seed), images, conditions, keep=arm.name in conditions.keep and seed == first)
            for seed in conditions.seeds
        ]
        for arm, images in arms.items()
    }
    jobs: dict[str, Job] = {}
    for job in (job for classifiers in asked.values() for networks in classifiers for job in networks):
        for one in (*job.teachers, job):
            if one.keep or one.identity not in jobs:
                jobs[one.identity] = one
    results: dict[str, Predicted] = {}

    def finished(job: Job, result: Predicted, note: str = "") -> None:
        results[job.identity] = result
        if conditions.progress is not None:
            conditions.progress(len(results), len(jobs), job.name + note)

    for job in jobs.values():
        found = job.stored()
        if found is not None:
            finished(job, found, " (kept)")
    made = {} if made is None else made
    for wave in (False, True):  # those that have teachers come last
        waiting = [job for identity, job in jobs.items() if identity not in results and bool(job.teachers) == wave]
        for job in [job for job in waiting if job.failed_teacher(results)]:
            waiting.remove(job)
            finished(job, Predicted(None, None, job.failed_teacher(results)))
        for job, result in _at_once(waiting, conditions, results, made, keep_going=keep_going):
            finished(job, result)
    return {
        arm: [Predicted.mean([results[job.identity] for job in networks]) for networks in classifiers]
        for arm, classifiers in asked.items()
    }


def _at_once(
    jobs: Sequence[Job],
    conditions: Conditions,
    done: Mapping[str, Predicted],
    made: dict[str, Classifier],
    *,
    keep_going: bool,
) -> Iterator[tuple[Job, Predicted]]:
    """Trains `jobs`, several at a time, and gives each with its result when it is over."""
    stop = threading.Event()
    prepare_threads()
    workers = conditions.workers or default_workers(conditions.device)
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="classifier") as pool:
        waiting = {pool.submit(job.train, stop, done, made): job for job in jobs}
        try:
            for future in as_completed(waiting):
                try:
                    result = future.result()
                except NonFiniteLossError as error:
                    if not keep_going:
                        raise
                    result = Predicted(None, None, failed=error.message)
                assert result is not None
                yield waiting[future], result
        except BaseException:
            # Ctrl-C and errors end the other trainings within some steps; finished ones are in the folder
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


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
