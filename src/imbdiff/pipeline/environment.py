"""The installation: what a run was made with, without host names or paths, and a check of it."""

from __future__ import annotations

import importlib
import importlib.util
import platform
import shutil
from importlib import metadata
from typing import Any

PACKAGES = (
    "torch", "numpy", "pillow", "diffusers", "accelerate", "safetensors", "scikit-learn", "matplotlib",
)  # fmt: skip


def environment(device: str = "cpu") -> dict[str, Any]:
    """Versions of what decides the numbers, and the machine's processor, memory and GPU."""
    import psutil
    import torch

    from imbdiff.version import __version__

    found: dict[str, Any] = {
        "imbdiff": __version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": device,
    }
    if device.startswith("cuda"):
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's model, or its architecture where that is unknown."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            for line in handle:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def diagnose() -> tuple[list[str], bool]:
    """Lines to print, those with a problem marked "!", and whether there was none."""
    import torch

    from imbdiff.metrics.extractors import efficientnet
    from imbdiff.runtime.device import BF16_FROM, resolve_precision

    found = environment("cuda" if torch.cuda.is_available() else "cpu")
    lines = [f"  imbdiff {found['imbdiff']}, Python {found['python']}, {found['system']}"]
    lines.append("  " + ", ".join(f"{name} {version}" for name, version in found["packages"].items()))
    lines.append(
        f"  {found['processor']}, {found['cores']} cores, {found['memory_gib']} GiB, {found['threads']} torch threads, "
        f"bf16 {'yes' if resolve_precision('auto', torch.device('cpu'), BF16_FROM) == 'bf16' else 'no'}"
    )
    healthy = True
    if torch.cuda.is_available():
        lines.append(f"  GPU: {found['gpu']}, bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}")
    else:
        lines.append("  no GPU: training is for small images here")
    judge = efficientnet.NAME if efficientnet.installed() else f"none; to have one: {efficientnet.INSTALL}"
    lines.append(f"  pretrained judge for colour photographs: {judge}")
    if importlib.util.find_spec("torchvision") and torch.version.cuda is None:
        try:
            importlib.import_module("torchvision")
        except Exception:
            healthy = False
            lines.append("! torchvision does not import next to CPU torch and breaks diffusers: uninstall it")
    free = shutil.disk_usage(".").free / 2**30
    if free < 1:
        healthy = False
        lines.append(f"! only {free:.1f} GiB of disk are free here")
    try:
        from imbdiff.objectives.denoising import Denoising
        from imbdiff.testing import check_objective

        check_objective(Denoising(), processes=("ddpm",))
        lines.append("  a training step on a small model: right")
    except Exception as error:
        healthy = False
        lines.append(f"! a training step on a small model failed: {error}")
    return lines, healthy
