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
from contextlib import ExitStack, suppress

GRACE = 10.0
"""Seconds that the others have to end when one process has failed."""

SAY = 3.0
"""Seconds that the first process has before that to say what failed; where another one refused, which it may be about
to do too, `GRACE`."""

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
    status, failed = 0, 0
    with ExitStack() as files:
        words = [files.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        try:
            for rank in range(count):
                quiet = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": words[rank]}
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "imbdiff", *arguments],
                        env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
                        **quiet,  # type: ignore[call-overload]
                    )
                )
            status, failed = _wait(running)
        except KeyboardInterrupt:  # the terminal told the others too
            status = 130
        finally:
            _end(running, GRACE if status == REFUSED else SAY)
        # what all of them refuse, the first has said
        if failed and not (status == REFUSED and running[0].returncode == REFUSED):
            words[failed].seek(0)
            sys.stderr.write(words[failed].read().decode(errors="replace")[-4000:])
        if status < 0:
            why = " (out of memory?)" if -status == 9 else ""
            sys.stderr.write(f"error: process {failed} of {count} was ended by signal {-status}{why}\n")
        return status if status >= 0 else 128 - status


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Until all have ended well, or one has not: its status, and which it was.

    Of several at once the one that refused is it: the others may have failed because it ended.
    """
    while True:
        found = [process.poll() for process in running]
        failed = [(status != REFUSED, rank, status) for rank, status in enumerate(found) if status]
        if failed:
            _, rank, status = min(failed)
            return status, rank
        if all(status == 0 for status in found):
            return 0, 0
        time.sleep(0.05)


def _end(running: Sequence[subprocess.Popen[bytes]], say: float) -> None:
    """Ends all; the first has `say` seconds to end by itself."""
    for first in running[:1]:
        with suppress(subprocess.TimeoutExpired):
            first.wait(say)
    for process in running:
        if process.poll() is None:
            process.terminate()
    until = time.monotonic() + GRACE
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
