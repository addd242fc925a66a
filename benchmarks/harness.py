"""How this repository measures speed, memory and work.

Both sides run in one process and alternate, A B A B, so that a machine that warms up, throttles or is shared does the
same to both. What measures does not disturb what is timed: timing, memory and counting are separate passes.

    from harness import Side, compare, write_result

    result = compare([Side("merged", merged), Side("separate", separate)], repeats=7, modules=[network])
    write_result("merged_passes", result, config={"batch": 64})
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import resource
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from results_file import write_result

__all__ = ["Side", "compare", "compare_apart", "count", "give_back", "peak_rss", "spread", "write_result"]


@dataclass(frozen=True)
class Side:
    """One of the things compared.

    Attributes:
        name: as it stands in the result file.
        run: does the work once; its return value is dropped.
        prepare: called before each run and not measured: resets whatever the run consumes.
    """

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] | None = None


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Median, quartiles (linear interpolation), extremes, n and the values themselves in the order measured."""
    v = [float(x) for x in values]
    if not v:
        raise ValueError("no values to summarise")
    q1, median, q3 = (float(q) for q in np.quantile(v, [0.25, 0.5, 0.75]))
    return {"median": median, "q1": q1, "q3": q3, "min": min(v), "max": max(v), "n": len(v), "values": v}


def compare(
    sides: Sequence[Side],
    *,
    repeats: int = 5,
    warmup: int = 1,
    memory_repeats: int = 3,
    modules: Sequence[torch.nn.Module] = (),
    counting: bool = True,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Measures all sides, alternating.

    Args:
        sides: one or more; names must differ. Ratios are against the first.
        repeats: timed runs of each side.
        warmup: runs of each side before anything is measured.
        memory_repeats: runs of each side, not timed, whose peak memory is taken; 0 leaves it out.
        modules: networks whose forward calls are counted.
        counting: one more run of each side, whose forward calls and operations are counted; False leaves it out.
        device: where the work is done; a GPU is waited for before a clock is read.

    Returns:
        {"sides": [{"name", "wall_s", "cpu_s", "peak_rss_mb", "rise_mb", "peak_gpu_mb", "forwards", "flop"}],
        "ratios": [{"name", "against", "wall", "cpu"}], "method": {...}}. Seconds and MB (10^6 bytes) are spreads;
        ratios are spreads over the pairs of neighbouring runs; "forwards" counts calls of one run, in the order of
        `modules`; "flop" is one run's floating-point operations as torch counts them: matrix products, convolutions
        and attention, forward and backward, a multiply-add as two.

    Raises:
        ValueError: no sides, equal names, or no repeats.
    """
    names = _names([side.name for side in sides], repeats)
    device = torch.device(device)
    for _ in range(warmup):
        for side in sides:
            _once(side, device)
    times = [_once(side, device) for _ in range(repeats) for side in sides]
    wall, cpu = ([t[i] for t in times] for i in (0, 1))
    peaks = [_peak(side, device) for _ in range(memory_repeats) for side in sides]
    n = len(sides)
    rows = []
    for i, side in enumerate(sides):
        row: dict[str, Any] = {"name": side.name, "wall_s": spread(wall[i::n]), "cpu_s": spread(cpu[i::n])}
        if peaks:
            for key in peaks[0]:
                row[key] = spread(p[key] for p in peaks[i::n])
        if counting:
            row["forwards"], row["flop"] = count(side, modules, device)
        rows.append(row)
    ratios = [_against(side.name, names[0], (wall[i::n], cpu[i::n]), (wall[0::n], cpu[0::n]))
              for i, side in enumerate(sides) if i]  # fmt: skip
    method = {
        "order": "alternating: " + " ".join(names) + " ...",
        "repeats": repeats,
        "warmup": warmup,
        "memory_repeats": memory_repeats,
        "memory": "resident set, " + ("kernel high-water mark" if _can_reset_peak() else "sampled every millisecond"),
        "device": device.type,
    }
    return {"sides": rows, "ratios": ratios, "method": method}


def compare_apart(
    sides: Sequence[tuple[str, Callable[[], Side]]], *, repeats: int = 5, warmup: int = 1
) -> dict[str, Any]:
    """Times sides that alternate, A B A B, each in a process of its own: no side's memory helps or hinders another's.

    Args:
        sides: names, and what makes each side in its process (picklable).
        repeats: timed runs of each side.
        warmup: runs of each side before anything is timed.

    Returns:
        {"sides": [{"name", "wall_s", "cpu_s", "kernel_s", "page_faults"}], "ratios": [...], "method": {...}} as
        `compare` gives them; "kernel_s" is the system's part of "cpu_s".

    Raises:
        ValueError: no sides, equal names, or no repeats.
        RuntimeError: a process ended; its traceback is on the terminal.
    """
    names = _names([name for name, _ in sides], repeats)
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    times: list[list[tuple[float, ...]]] = [[] for _ in sides]
    try:
        for _, make in sides:
            here, there = context.Pipe()
            processes.append(context.Process(target=_serve, args=(there, make), daemon=True))
            processes[-1].start()
            there.close()  # so that a process that ends is noticed
            pipes.append(here)
        for number in range(warmup + repeats):
            for (name, _), pipe, own in zip(sides, pipes, times, strict=True):
                try:
                    pipe.send(True)
                    found = pipe.recv()
                except (EOFError, OSError) as error:
                    raise RuntimeError(f"the process of {name!r} has ended") from error
                if number >= warmup:
                    own.append(found)
    finally:
        for pipe in pipes:
            with suppress(OSError):
                pipe.send(False)
        for process in processes:
            process.join(20)
            process.kill()
    wall, cpu, kernel, faults = ([[t[i] for t in own] for own in times] for i in range(4))
    return {
        "sides": [
            {
                "name": name, "wall_s": spread(wall[i]), "cpu_s": spread(cpu[i]), "kernel_s": spread(kernel[i]),
                "page_faults": spread(faults[i]),
            }
            for i, name in enumerate(names)
        ],
        "ratios": [
            _against(name, names[0], (wall[i], cpu[i]), (wall[0], cpu[0])) for i, name in enumerate(names) if i
        ],
        "method": {
            "order": "alternating, each in a process of its own: " + " ".join(names) + " ...",
            "repeats": repeats, "warmup": warmup, "device": "cpu",
        },
    }  # fmt: skip


def _serve(pipe: Connection, make: Callable[[], Side]) -> None:
    side = make()
    while pipe.recv():
        pipe.send(_once(side, torch.device("cpu")))


def _names(names: list[str], repeats: int) -> list[str]:
    if not names or len(set(names)) < len(names) or repeats < 1:
        raise ValueError(f"need sides of different names and at least one repeat, not {names} x {repeats}")
    return names


def _against(
    name: str, first: str, times: tuple[Sequence[float], ...], of_first: tuple[Sequence[float], ...]
) -> dict[str, Any]:
    wall, cpu = (spread(_ratio(a, b)) for a, b in zip(times, of_first, strict=True))
    return {"name": name, "against": first, "wall": wall, "cpu": cpu}


def _ratio(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x / max(y, 1e-9) for x, y in zip(a, b, strict=True)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spent() -> np.ndarray:
    """CPU seconds, those of them in the kernel, and page faults: this process's and of children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array(
        [sum(x) for x in zip(*((s.ru_utime + s.ru_stime, s.ru_stime, s.ru_minflt) for s in spent), strict=True)]
    )


def _once(side: Side, device: torch.device) -> tuple[float, float, float, float]:
    """(wall, CPU, kernel) seconds and page faults of one run; garbage is collected before, not during."""
    if side.prepare:
        side.prepare()
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        _wait(device)
        before, wall = _spent(), time.perf_counter()
        side.run()
        _wait(device)
        wall = time.perf_counter() - wall
        cpu, kernel, faults = (_spent() - before).tolist()
        return wall, cpu, kernel, faults
    finally:
        if enabled:
            gc.enable()


def _peak(side: Side, device: torch.device) -> dict[str, float]:
    """Peak memory of one run in MB: resident set, its rise above where it stood, and the GPU's allocated bytes."""
    if side.prepare:
        side.prepare()
    give_back()  # so that the other side's memory is not reused unseen
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = psutil.Process().memory_info().rss
    with peak_rss() as peak:
        side.run()
        _wait(device)
    found = {"peak_rss_mb": peak[0] / 1e6, "rise_mb": max(0.0, (peak[0] - before) / 1e6)}
    if device.type == "cuda":
        found["peak_gpu_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    return found


def give_back() -> None:
    """Collects garbage, and gives freed memory back to the system."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _can_reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _high_water() is not None
    except OSError:
        return False


def _high_water() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


@contextmanager
def peak_rss() -> Iterator[list[int]]:
    """Yields a list whose only item, after the block, is the largest resident set within it, in bytes.

    On Linux the kernel's own high-water mark is reset and read, which misses nothing; elsewhere a thread samples.
    """
    peak = [0]
    if _can_reset_peak():
        yield peak
        peak[0] = _high_water() or 0
        return
    done, me = threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], me.memory_info().rss)
            done.wait(0.001)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = max(peak[0], me.memory_info().rss)


def count(side: Side, modules: Sequence[torch.nn.Module], device: torch.device) -> tuple[list[int], int]:
    """Forward calls of each module and floating-point operations, in one run of `side`."""
    if side.prepare:
        side.prepare()
    calls = [0] * len(modules)

    def hook(i: int) -> Callable[..., None]:
        def called(*_: Any) -> None:
            calls[i] += 1

        return called

    handles = [module.register_forward_pre_hook(hook(i)) for i, module in enumerate(modules)]
    try:
        with FlopCounterMode(display=False) as counter:
            side.run()
            _wait(device)
    finally:
        for handle in handles:
            handle.remove()
    return calls, int(counter.get_total_flops())
