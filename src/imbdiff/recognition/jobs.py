"""The trainings of a comparison: one per (arm, seed), several at a time, each kept in a file of its own when done."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.fit import train_classifier
from imbdiff.recognition.loop import Trained
from imbdiff.recognition.networks import Classifier
from imbdiff.recognition.networks.identity import plan_identity
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.predict import probabilities
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.use import Use
from imbdiff.runtime.checkpoint import CheckpointStore
from imbdiff.runtime.device import prepare_threads
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest, read_json, write_json
from imbdiff.runtime.launch import cores
from imbdiff.runtime.log import JsonLog

if TYPE_CHECKING:
    from imbdiff.data.splits import Prepared

_log = logging.getLogger(__name__)
FORMAT = 2
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Arm:
    """One way of training the classifier in a comparison.

    Attributes:
        recipe: a name of :data:`imbdiff.recognition.recipes.RECIPES`.
        use: how synthetic images take part; None: they do not.
        label: as printed; the recipe's, with "synthetic + " before it, where not given.
    """

    recipe: str
    use: Use | None = None
    label: str = ""

    @property
    def name(self) -> str:
        if self.label:
            return self.label
        return ("synthetic + " if self.use is not None else "") + get_recipe(self.recipe).label

    @property
    def needs_synthetic(self) -> bool:
        return self.use is not None

    @property
    def prior(self) -> str | None:
        """What the recipe counts as images of a class: "train", "effective", or None where it counts nothing."""
        if not get_recipe(self.recipe).needs_prior:
            return None
        return "train" if self.use is None else self.use.prior

    @property
    def file(self) -> str:
        return "".join(c if c.isalnum() or c in "+-." else "-" for c in self.name.lower().replace(" + ", "+"))

    def to_json(self) -> dict[str, Any]:
        recipe = get_recipe(self.recipe)
        return {
            "name": self.name,
            "recipe": self.recipe,
            "use": None if self.use is None else self.use.to_json(),
            "needs_synthetic": self.needs_synthetic,
            "sampler": recipe.law,
            "loss": recipe.loss,
            "prior": self.prior,
        }


@dataclass(frozen=True, eq=False)
class Job:
    """One training.

    Attributes:
        plan: network, steps and so on: the same in all that are compared.
        prepared: the splits; test images are predicted when training is over.
        synthetic: generated images, of arms that use them.
        looks: at validation images while training.
        folder: where the result is kept; None: nowhere.
    """

    arm: Arm
    seed: int
    plan: FitPlan
    prepared: Prepared
    synthetic: ImageSet | None
    device: str
    folder: Path | None
    looks: int = 0
    key: str = field(default="", kw_only=True)

    @property
    def file(self) -> str:
        return f"{self.arm.file}{self.key}-seed{self.seed}"

    @property
    def path(self) -> Path | None:
        return None if self.folder is None else Path(self.folder) / f"{self.file}.json"

    def input_hash(self) -> str:
        """All that the predictions depend on; an arm without synthetic images does not depend on them."""
        val, synthetic = self.prepared.val, self.synthetic if self.arm.needs_synthetic else None
        return digest(
            [
                FORMAT,
                torch.__version__,
                torch.device(self.device).type,
                {k: v for k, v in asdict(get_recipe(self.arm.recipe)).items() if k not in ("label", "idea", "source")},
                None if self.arm.use is None else self.arm.use.to_json(),
                self.seed,
                *plan_identity(self.plan, self.prepared.train),
                self.looks,
                self.prepared.train.fingerprint,
                None if val is None else val.fingerprint,
                self.prepared.test.fingerprint,
                None if synthetic is None else synthetic.fingerprint,
            ]
        )

    def stored(self) -> dict[str, Any] | None:
        """The result in the folder, or None where there is none for these inputs."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            found = read_json(self.path)
            if found["input"] == self.input_hash():
                return {"seed": self.seed, **{key: found[key] for key in ("test", "val", "best")}}
        except (RunError, KeyError, TypeError):
            _log.warning("%s is damaged: this classifier is trained again", self.path)
        return None

    def train(self, stop: threading.Event) -> dict[str, Any] | None:
        """Trains and predicts; None if it was stopped."""
        if torch.device(self.device).type == "cpu":
            # holds for this thread only; one thread each is fastest for small networks and the same on every machine
            torch.set_num_threads(1)
        identity = self.input_hash()
        place = None if self.folder is None else Path(self.folder) / "checkpoints" / self.file
        log = None if self.folder is None else JsonLog(Path(self.folder) / "logs" / f"{self.file}.jsonl")
        found = train_classifier(
            self.prepared.train,
            self.plan,
            get_recipe(self.arm.recipe),
            synthetic=self.synthetic if self.arm.needs_synthetic else None,
            use=self.arm.use,
            val=self.prepared.val,
            looks=self.looks,
            seed=self.seed,
            device=self.device,
            stop=stop.is_set,
            name=f"{self.arm.name}, seed {self.seed}",
            store=None if place is None else CheckpointStore(place),
            log=log,
            identity=identity,
        )
        if stop.is_set():
            return None
        result = self._predicted(found)
        if self.path is not None:
            write_json(self.path, {"input": identity, "arm": self.arm.name, "seed": self.seed, **result})
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)
        return {"seed": self.seed, **result}

    def _predicted(self, found: Trained) -> dict[str, Any]:
        val, test = self.prepared.val, self.prepared.test

        def of(network: Classifier, images: ImageSet | None) -> dict[str, Any] | None:
            if images is None:
                return None
            p = probabilities(network, images)
            sure = [round(float(x), 5) for x in p.max(axis=1)]
            return {"predicted": p.argmax(axis=1).astype(np.int64).tolist(), "confidence": sure}

        best = None
        if found.best is not None:
            best = {"step": found.best_step, "test": of(found.best, test), "val": of(found.best, val)}
        return {"test": of(found.last, test), "val": of(found.last, val), "best": best}


def run_all(jobs: Sequence[Job], workers: int, progress: Progress | None) -> dict[tuple[str, int], dict[str, Any]]:
    """Trains what is not in the folders yet, `workers` at a time.

    Returns:
        By (arm's name + key, seed): {"seed", "test": {"predicted", "confidence"}, "val": the same or None,
        "best": None or {"step", "test", "val"}}.
    """
    results: dict[tuple[str, int], dict[str, Any]] = {}
    waiting = []
    for job in jobs:
        found = job.stored()
        if found is None:
            waiting.append(job)
        else:
            results[job.arm.name + job.key, job.seed] = found
            _tell(progress, len(results), len(jobs), job, " (kept)")
    stop = threading.Event()
    prepare_threads()
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
                    results[job.arm.name + job.key, job.seed] = result
                    _tell(progress, len(results), len(jobs), job, "")
        except BaseException:
            # Ctrl-C and errors end the other trainings within some steps; finished ones are in the folder
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


def _tell(progress: Progress | None, done: int, total: int, job: Job, note: str) -> None:
    if progress is not None:
        progress(done, total, f"{job.arm.name}{job.key}, seed {job.seed}{note}")


def default_workers(device: str) -> int:
    """Networks trained at a time: one per core on a CPU (one thread each), one on an accelerator."""
    if torch.device(device).type != "cpu":
        return 1
    return max(1, min(cores(), 8))
