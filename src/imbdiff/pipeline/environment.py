"""What a run was made with: versions and hardware, without host names or paths."""

from __future__ import annotations

import platform
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
