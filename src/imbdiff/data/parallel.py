"""The same work on many images: in threads where there are few, in processes where there are many."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import joblib

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 256
"""Images per task."""
PROCESSES_FROM = 4096
"""Images from which starting processes (a second or two) pays: most of the work on small images is Python's own."""


def workers(n: int) -> int:
    """Processes for `n` images; 1 = threads do."""
    return joblib.cpu_count() if n >= PROCESSES_FROM else 1


def chunks(items: Sequence[T], size: int = CHUNK) -> list[Sequence[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _end_with(parent: int) -> None:
    """Lets a worker process end with the one that started it, however that one ends. Called before its first task.

    Args:
        parent: id of the process that started this one, told by itself: it may be gone by now.
    """

    def until_orphaned() -> None:
        while os.getppid() == parent:  # of a killed process the workers would wait for work for ever
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=until_orphaned, daemon=True).start()


def in_chunks(work: Callable[..., R], tasks: Iterable[Sequence[object]], n: int) -> Iterator[R]:
    """``work(*task)`` of every task, in order, as they come. Only a few tasks are taken ahead of those that are done.

    Args:
        work: picklable; it gets one task's arguments.
        tasks: the arguments of each task.
        n: images in all tasks together, which decides about threads or processes.
    """
    processes = min(workers(n), -(-n // CHUNK))
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
