"""A run of several test processes ends when one of them has died, however it died.

pytest-xdist sees that a worker is gone when its pipe closes. A child that the worker forked, such as a process of a
pool, holds the pipe open for as long as it lives, and the run would wait for ever. Here the run's own process looks at
its workers, and ends what a dead one has left behind; xdist then reports the test that it died in.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import psutil
import pytest

GRACE = 10.0
"""Seconds that xdist has to see that a worker is gone."""


class DeadWorkers:
    """A plugin of the run's own process."""

    def __init__(self, grace: float) -> None:
        self.grace, self.ended = grace, threading.Event()
        self.workers: dict[str, tuple[int, list[str]]] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_newgateway(self, gateway: Any) -> None:
        pid = gateway._rinfo().pid
        self.workers[gateway.id] = pid, psutil.Process(pid).cmdline()

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        self.workers.pop(node.gateway.id, None)

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        threading.Thread(target=self._watch, name="dead workers", daemon=True).start()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.ended.set()

    def _watch(self) -> None:
        since: dict[str, float] = {}
        while not self.ended.wait(self.grace / 10):
            now = time.monotonic()
            workers = dict(self.workers)
            since = {name: since.get(name, now) for name, (pid, _) in workers.items() if _dead(pid)}
            for name, began in since.items():
                if now - began > self.grace:
                    _end_orphans(workers[name][1])
                if now - began > 3 * self.grace:
                    print(f"\ntest process {name} has died, and the run does not see it: ended", file=sys.stderr)
                    os._exit(1)


def _dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _end_orphans(command: list[str]) -> None:
    """Kills forks of dead workers of this run: they have a worker's command line, and no parent but the system."""
    for process in psutil.process_iter():
        try:
            if process.ppid() == 1 and os.getpgid(process.pid) == os.getpgid(0) and process.cmdline() == command:
                process.kill()
        except (psutil.Error, OSError):
            continue


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        config.pluginmanager.register(DeadWorkers(float(os.environ.get("IMBDIFF_GRACE", GRACE))), "dead workers")
