"""Devices, precision and processes, through accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from imbdiff.runtime.dist import Dist, launched
from imbdiff.runtime.errors import ConfigError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "fp32", "bf16"]
BF16_FROM = 16
"""Side in pixels from which bfloat16 gains on a CPU with units for it: of smaller images converting costs as much."""


def resolve_device(name: str) -> torch.device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means here.

    Raises:
        ConfigError: it is none of these, or there is no such GPU.
    """
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, number = name.partition(":")
    if kind == "auto":
        kind = "cuda" if gpus else "cpu"
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise ConfigError(f"the device {name!r} is not supported", "use auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return torch.device("cpu")
    if int(number or 0) >= gpus:
        raise ConfigError(f"there is no GPU for --device {name}: torch finds {gpus}", "use --device auto or cpu")
    if launched():
        if number:
            raise ConfigError(f"--device {name} with several processes", "use --device cuda: each takes its own")
        number = os.environ.get("LOCAL_RANK", "0")
    return torch.device("cuda", int(number)) if number else torch.device("cuda")


@contextmanager
def cpu_threads(most: int | None) -> Iterator[None]:
    """Inside, torch computes with at most that many threads on a CPU; None: with as many as it has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if most is None else min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve_precision(precision: Precision, device: torch.device, side: int) -> Literal["fp32", "bf16"]:
    """What "auto" means for training on images of `side` pixels there (docs/speed.md): bf16 on GPUs that have it, and
    from `BF16_FROM` pixels on CPUs with AMX, where torch can tell. Other CPUs emulate it, slowly."""
    import torch

    if precision != "auto":
        return precision
    if device.type == "cuda":
        found = torch.cuda.is_bf16_supported()
    else:
        known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        found = side >= BF16_FROM and bool(known.get("amx_bf16"))
    return "bf16" if found else "fp32"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_accelerator(device: str, precision: Precision = "fp32", side: int = 0) -> Any:
    """accelerate's `Accelerator` for this process; under ``torchrun`` it joins the process group.

    Gradients are not scaled: fp16 is not offered.

    Args:
        device: as of `resolve_device`.
        precision, side: as of `resolve_precision`.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    target = resolve_device(device)
    if target.type == "cuda" and target.index is not None:
        torch.cuda.set_device(target)
    AcceleratorState._reset_state()  # its precision is global to the process and would outlive this run
    return Accelerator(
        cpu=target.type == "cpu",
        mixed_precision="bf16" if resolve_precision(precision, target, side) == "bf16" else "no",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            # processes generate shares of the images of different size, and wait for each other
            InitProcessGroupKwargs(timeout=timedelta(hours=24)),
        ],
    )


@cache
def prepare_threads() -> None:
    """Before several threads train: torch does now what it would otherwise do in the first of them.

    The first optimizer imports torch._dynamo, which sets an environment variable; meanwhile other threads' batch
    normalisation may read the environment, which the C library allows only while it is not written.
    """
    import torch

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def start(device: str) -> Dist:
    """Before the first work of a command: settles the CPU, and joins the other processes where there are some."""
    import torch

    torch.set_flush_denormal(True)  # such numbers, which training meets near convergence, are slow on a CPU
    if launched():
        make_accelerator(device)
    return Dist.current()


def set_backends(deterministic: bool) -> None:
    """Fast arithmetic on a GPU, or deterministic arithmetic."""
    import torch

    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = not deterministic
        torch.backends.cudnn.allow_tf32 = not deterministic
        torch.backends.cudnn.benchmark = not deterministic
        torch.backends.cudnn.deterministic = deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
