"""Encoded images from anywhere, decoded in threads where there are few and in processes where there are many."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import joblib
import numpy as np

from imbdiff.data.decode import File, Target, UnusableImageError, decode, header, is_colourless, opened, pixels

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 256
"""Images per task."""
PROCESSES_FROM = 4096
"""Images from which starting processes (a second or two) pays: most of the work on small images is Python's own."""


class Reader:
    """Gives the encoded bytes of an image. It travels to worker processes, so it holds names and not open files.

    Attributes:
        in_process: it does not travel; its images are read one after the other by the process that asks for them, and
            none is kept on disk.
        identity: which folder, archive or set it reads from; "" in this process.
    """

    in_process = False
    identity: str = ""

    def open(self, place: Any) -> File:
        """The image at `place`.

        Raises:
            UnusableImageError, OSError: it cannot be read; the message says why.
        """
        raise NotImplementedError

    def stamp(self, place: Any) -> str:
        """What changes when the image at `place` does, found without reading it: size and time, or a checksum."""
        raise NotImplementedError


class PathReader(Reader):
    """Files below a folder; places are paths below it with forward slashes."""

    def __init__(self, root: Path) -> None:
        self.root, self.identity = root, os.path.abspath(root)

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
    """Decodes images at places; with `own`, only images of that (height, width), with `no_colour`, only grey ones."""

    reader: Reader
    target: Target
    grey: bool
    own: tuple[int, int] | None = None
    no_colour: bool = False

    def __call__(self, places: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
        """(n, H, W, C) uint8 and {number: why} of the unusable, whose rows are black."""
        x = np.zeros((len(places), *self.target.shape, 1 if self.grey else 3), dtype=np.uint8)
        bad = {}
        for i, place in enumerate(places):
            try:
                file = self.reader.open(place)
                x[i] = decode(file, self.target, self.grey, self.own, no_colour=self.no_colour)
            except (UnusableImageError, OSError) as error:
                bad[i] = str(error)
        return x, bad

    def many(self, places: Sequence[Any], chunk: int = 0) -> tuple[np.ndarray, dict[int, str]]:
        """The same of many images, `chunk` (256) to a task."""
        x = np.zeros((len(places), *self.target.shape, 1 if self.grey else 3), dtype=np.uint8)
        bad: dict[int, str] = {}
        done = 0
        for part, wrong in in_chunks(self, ((part,) for part in chunks(places, chunk or CHUNK)), self.reader, len(x)):
            x[done : done + len(part)] = part
            bad |= {done + i: why for i, why in wrong.items()}
            done += len(part)
        return x, bad


def chunks(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def in_chunks(work: Callable[..., R], tasks: Iterable[Sequence[Any]], reader: Reader, n: int) -> Iterator[R]:
    """``work(*task)`` of every task, in order: in threads, of many images in processes.

    Args:
        work: picklable; it gets one task's arguments.
        tasks: the arguments of each task.
        reader: that `work` uses.
        n: images in all tasks together.
    """
    if reader.in_process:
        yield from (work(*task) for task in tasks)
    elif n < PROCESSES_FROM:
        with ThreadPoolExecutor(min(8, joblib.cpu_count())) as threads:  # Pillow decodes outside the interpreter lock
            yield from threads.map(lambda task: work(*task), tasks)
    else:
        # loky: no fork of a process that runs threads, and scripts need no `if __name__ == "__main__"`
        pool = joblib.Parallel(
            n_jobs=min(joblib.cpu_count(), -(-n // CHUNK)),
            backend="loky",
            return_as="generator",
            batch_size=1,
            initializer=_end_with,
            initargs=(os.getpid(),),
        )
        yield from pool(joblib.delayed(work)(*task) for task in tasks)


def _end_with(parent: int) -> None:
    """Lets a worker process end with the process `parent` that started it, however that one ends."""

    def until_orphaned() -> None:
        while os.getppid() == parent:  # of a killed process the workers would wait for work for ever
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=until_orphaned, daemon=True).start()


def worked(work: Callable[[File], Any], reader: Reader, places: Sequence[Any]) -> list[tuple[Any, str]]:
    """(``work(file)`` or None, why not) of every place."""
    results: list[tuple[Any, str]] = []
    for place in places:
        try:
            results.append((work(reader.open(place)), ""))
        except (UnusableImageError, OSError) as error:
            results.append((None, str(error)))
    return results


def converted_grey(target: Target, grey: bool, file: File) -> tuple[np.ndarray, bool]:
    """The pixels of an image, and whether it was in colour and is grey now."""
    with opened(file) as image:
        x = pixels(image, target, grey)
        return x, grey and not header(image).grey and not is_colourless(pixels(image, None, False))


def colourless(file: File) -> bool:
    with opened(file) as image:
        return is_colourless(pixels(image, None, False))
