"""Several processes of one command on this machine, as ``torchrun`` would start them, without its words around errors.

Each process takes its share of every batch: one for each GPU, or of a CPU's cores.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress

GRACE = 10.0
"""Seconds that the others have to end when one process has failed."""

SAY = 3.0
"""Seconds of these that the first process has to say what failed: it may be about to refuse the same."""

REFUSED = 2
"""The command's exit status for anything the user can mend: it was said in a sentence."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(count: int, arguments: Sequence[str]) -> int:
    """Runs ``python -m imbdiff ARGUMENTS`` as `count` processes that find each other; their threads share the cores.

    The first process writes to the terminal; of the others only the errors of one that failed before it are shown.

    Returns:
        The exit status: that of the first process, or of another that failed; 128 + n where signal n ended it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // count))),
    }  # fmt: skip
    running: list[subprocess.Popen[bytes]] = []
    before = False
    with tempfile.TemporaryFile() as words:
        try:
            for rank in range(count):
                quiet = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": words}
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "imbdiff", *arguments],
                        env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
                        **quiet,  # type: ignore[call-overload]
                    )
                )
            status, before = _wait(running)
        except KeyboardInterrupt:  # the terminal told the others too
            status = 130
        finally:
            _end(running)
        # what all of them refuse, the first has said
        if status and before and not (status == REFUSED and running[0].returncode == REFUSED):
            words.seek(0)
            sys.stderr.write(words.read().decode(errors="replace")[-4000:])
        return status if status >= 0 else 128 - status


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> tuple[int, bool]:
    """Until all have ended well, or one has not: the status, and whether another one failed before the first."""
    while True:
        found = [process.poll() for process in running]
        failed = [status for status in found if status]
        if failed:
            first = found[0]
            return (first, False) if first else (failed[0], True)
        if all(status == 0 for status in found):
            return 0, False
        time.sleep(0.05)


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + GRACE
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            if process.poll() is None and process is running[0]:
                process.wait(min(SAY, GRACE))
        if process.poll() is None:
            process.terminate()
    for process in running:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, until - time.monotonic()))
        if process.poll() is None:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    """On Linux: SIGTERM for this process when the launching one dies, so that none outlives a killed command."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
