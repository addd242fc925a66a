"""Encoded images from anywhere, decoded in threads where there are few and in processes where there are many."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np

from imbdiff.data.decode import File, Target, UnusableImageError, decode

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 256
"""Images per task."""
PROCESSES_FROM = 4096
"""Images from which starting processes (a second or two) pays: most of the work on small images is Python's own."""


class Reader(ABC):
    """Gives the encoded bytes of an image. It travels to worker processes, so it holds names and not open files.

    Attributes:
        stays: it does not travel: images are read in the process that asks for them.
    """

    stays = False

    @abstractmethod
    def open(self, place: Any) -> File:
        """The image at `place`: a path, or bytes that can be read and sought.

        Raises:
            UnusableImageError, OSError: it cannot be read; the message says why.
        """

    @abstractmethod
    def stamp(self, place: Any) -> str:
        """What changes when the image at `place` does, found without reading it: size and time, or a checksum."""


@dataclass(frozen=True)
class PathReader(Reader):
    """Files below a folder; places are paths below it with forward slashes."""

    root: Path

    def open(self, place: str) -> File:
        return self.root / place

    def stamp(self, place: str) -> str:
        try:
            found = os.stat(self.root / place)
        except OSError as error:
            return str(error.errno)
        return f"{found.st_size} {found.st_mtime_ns}"


@dataclass(frozen=True)
class Decoding:
    """Decodes images at places, in a worker; with `own`, only images of that (height, width)."""

    reader: Reader
    target: Target
    grey: bool
    own: tuple[int, int] | None = None

    def __call__(self, places: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
        """(n, H, W, C) uint8 and {number: why} of the unusable, whose rows are black."""
        x = np.zeros((len(places), *self.target.shape, 1 if self.grey else 3), dtype=np.uint8)
        bad = {}
        for i, place in enumerate(places):
            try:
                x[i] = decode(self.reader.open(place), self.target, self.grey, self.own)
            except (UnusableImageError, OSError) as error:
                bad[i] = str(error)
        return x, bad


def decoded(decoding: Decoding, places: Sequence[Any], chunk: int = 0) -> tuple[np.ndarray, dict[int, str]]:
    """What :class:`Decoding` gives, of many images, `chunk` (256) to a task."""
    x = np.zeros((len(places), *decoding.target.shape, 1 if decoding.grey else 3), dtype=np.uint8)
    bad: dict[int, str] = {}
    done = 0
    tasks = ((part,) for part in chunks(places, chunk or CHUNK))
    for part, wrong in in_chunks(decoding, tasks, 0 if decoding.reader.stays else len(places)):
        x[done : done + len(part)] = part
        bad |= {done + i: why for i, why in wrong.items()}
        done += len(part)
    return x, bad


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def in_chunks(work: Callable[..., R], tasks: Iterable[Sequence[Any]], n: int) -> Iterator[R]:
    """``work(*task)`` of every task, in order, as they come. Only a few tasks are taken ahead of those that are done.

    Args:
        work: picklable; it gets one task's arguments.
        tasks: the arguments of each task.
        n: images in all tasks together, which decides about threads or processes.
    """
    processes = 1 if n < PROCESSES_FROM else min(joblib.cpu_count(), -(-n // CHUNK))
    if processes > 1:
        # loky: no fork of a process that runs threads, and scripts need no `if __name__ == "__main__"`
        pool = joblib.Parallel(
            n_jobs=processes,
            backend="loky",
            return_as="generator",
            batch_size=1,
            initializer=_end_with,
            initargs=(os.getpid(),),
        )
        yield from pool(joblib.delayed(work)(*task) for task in tasks)
        return
    count = min(8, joblib.cpu_count())
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(count) as threads:
        # Pillow decodes outside the interpreter lock
        for task in tasks:
            waiting.append(threads.submit(work, *task))
            if len(waiting) > 2 * count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _end_with(parent: int) -> None:
    """Lets a worker process end with the one that started it, however that one ends. Called before its first task.

    Args:
        parent: id of the process that started this one, passed on by itself: it may be gone by now.
    """

    def until_orphaned() -> None:
        while os.getppid() == parent:  # of a killed process the workers would wait for work for ever
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=until_orphaned, daemon=True).start()
