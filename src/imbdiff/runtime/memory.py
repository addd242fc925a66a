"""Memory on a CPU: what a step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

MMAP_MAX, MMAP_THRESHOLD, TRIM_THRESHOLD = -4, -3, -1  # numbers of glibc's malloc.h
DEFAULT_MMAP_MAX = 65536
#: where glibc's thresholds end up by themselves, at most, as large blocks are freed. Once one is set it moves none of
#: them any more, and 128 KiB, where they start, would have every activation of a small network mapped anew
USUAL_MMAP, USUAL_TRIM = 32 * 2**20, 64 * 2**20
_depth, _lock = 0, threading.Lock()


@contextmanager
def freed_memory_kept(wanted: bool = True) -> Iterator[None]:
    """Within, glibc does not give freed memory of the main thread back to the system; at the end it does, all at once.

    By its defaults it maps every block of 32 MiB or more anew, and returns what is free at the end of the heap: a
    network whose activations are that large has every page of them cleared at every step: see
    ``benchmarks/page_faults.py``. Afterwards glibc's thresholds stay where they would have ended up; what an
    environment variable set them to is lost. With other C libraries nothing is done.

    Args:
        wanted: False does nothing: for work on a GPU.
    """
    global _depth
    library = ctypes.CDLL(None) if sys.platform == "linux" and wanted else None
    if library is None or not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    with _lock:
        _depth += 1
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                library.mallopt(MMAP_MAX, DEFAULT_MMAP_MAX)
                library.mallopt(MMAP_THRESHOLD, USUAL_MMAP)
                library.mallopt(TRIM_THRESHOLD, USUAL_TRIM)
                library.malloc_trim(0)
