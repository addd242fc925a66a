"""torch.compile, behind a check: what a network gives compiled is compared with what it gives without, first.

With torch 2.13 on a CPU, inductor gives wrong gradients for diffusers' `UNet2DModel` (everything upstream of the first
up-sampler gets 0) without a word, and right ones without its layout optimisation. So nothing is compiled here that was
not compared before, on this machine, with this network and these shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from imbdiff.runtime.dist import Dist

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BACKEND: Any = "inductor"
DEVICES = ("cuda",)
#: inductor's options that are tried, in order
OPTIONS: tuple[dict[str, Any], ...] = ({}, {"layout_optimization": False})
#: largest relative error of all tensors together: float32, and under bfloat16 autocast, whose rounding is 2^-9
FP32, BF16 = 1e-3, 3e-2
#: of each tensor, times the limit: relative to itself, and what is small against all of them passes
EACH, SMALL = 10.0, 0.1
#: graphs of one function: torch's own limit, 8, counts those of all networks of the process, and beyond it a network
#: runs uncompiled without a word
GRAPHS = 1024


def compiles(device: torch.device) -> bool:
    """Whether networks on that device are compiled: on a GPU. TORCH_COMPILE_DISABLE=1 makes torch leave it."""
    return device.type in DEVICES


def compile_if_equal(
    networks: Sequence[nn.Module],
    evidence: Callable[[], Mapping[str, Tensor]],
    *,
    what: str,
    bf16: bool = False,
    together: bool = False,
    notify: Callable[[str], None] = print,
) -> bool:
    """Compiles `networks` in place, with fixed shapes, if `evidence` stays the same.

    Args:
        evidence: calls them; what it gives, by name, has to be the same compiled and not.
        what: names it: "gradients of one batch".
        bf16: it runs under bfloat16 autocast, whose rounding the comparison allows for.
        together: all processes call this: where one finds a difference, none compiles. `evidence` must not wait for
            the others before its networks are called.

    Returns:
        Whether they are compiled; False, without a word, where there are none.
    """
    import torch

    if not networks:
        return False
    dynamo: Any = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, GRAPHS)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, GRAPHS)
    expected, why = evidence(), ""
    for options in OPTIONS if BACKEND == "inductor" else (None,):
        for network in networks:
            network.compile(backend=BACKEND, dynamic=False, options=options)
        try:
            with dynamo.patch(fail_on_recompile_limit_hit=True):
                why = difference(evidence(), expected, BF16 if bf16 else FP32)
        except torch.OutOfMemoryError:
            uncompile(networks)
            raise
        except Exception as error:  # whatever a compiler raises
            why = f"compiling failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if together:
            why = next(filter(None, [why, *Dist.current().gather_objects(why)]), "")
        if not why:
            notify(f"compiled: the {what} are those without")
            return True
        uncompile(networks)
    notify(f"not compiled, {what} compared: {why}")
    return False


def uncompile(networks: Sequence[nn.Module]) -> None:
    """Their calls are as they were before `compile_if_equal`."""
    for network in networks:
        network._compiled_call_impl = None


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], limit: float) -> str:
    """What is wrong with `found`; "" if nothing is.

    Wrong is: other names, a tensor of zeros where there was none, a relative error of all together above `limit`, or of
    one tensor above `EACH` times that, unless it is below `SMALL` times what all together may be off by.
    """
    if found.keys() != expected.keys():
        return f"there are {len(expected)} without, {len(found)} compiled"
    lost = [n for n, x in expected.items() if bool(x.any()) and not bool(found[n].any())]
    if lost:
        return f"compiled, {len(lost)} of {len(expected)} are 0, such as that of {lost[0]}"
    size = {n: float(x.double().norm()) for n, x in expected.items()}
    off = {n: float((found[n].double() - x.double()).norm()) for n, x in expected.items()}
    norm, error = math.hypot(*size.values()), math.hypot(*off.values())
    if not error <= limit * norm:
        return f"compiled, they differ by {error / max(norm, 1e-30):.1%}"
    for n in expected:
        if not off[n] <= max(EACH * limit * size[n], SMALL * limit * norm):
            return f"compiled, that of {n} differs by {off[n] / max(size[n], 1e-30):.1%}"
    return ""
