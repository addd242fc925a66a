from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from .cases import two_processes


@pytest.fixture(scope="session")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """Results of every case on two processes, by rank: started once."""
    folder: Path = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(two_processes, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
