"""Images by number, on a device: from one tensor that lies there, or from disk, read ahead of their use."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from imbdiff.data.imageset import Rows

SHARE = 0.25
"""Of a GPU's free memory, that images on disk may take; with more they are read as they are needed."""


class Gather:
    """(N, C, H, W) uint8 images, of which rows can be had on a device.

    Arrays, and images on disk that take less than a quarter of a GPU's free memory, are copied to the device as one
    tensor. Other images stay on disk: rows that are announced by :meth:`ahead` are read by a thread meanwhile.

    Args:
        images: (N, H, W, C) uint8, an array or Rows.
        device: where they are wanted.

    Attributes:
        waited: seconds that :meth:`rows` waited for the disk.
    """

    def __init__(self, images: np.ndarray | Rows, device: torch.device) -> None:
        self.device = device
        self.waited = 0.0
        self._tensor: Tensor | None = None
        self._rows: Rows | None = None
        if isinstance(images, Rows) and not _fits(images.nbytes, device):
            self._rows = images
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
            self._coming: dict[bytes, Future[np.ndarray]] = {}
        elif isinstance(images, Rows):
            n, h, w, c = images.shape
            self._tensor = torch.empty((n, c, h, w), dtype=torch.uint8, device=device)
            for start in range(0, n, 4096):
                part = torch.from_numpy(images[start : start + 4096]).to(device)
                self._tensor[start : start + 4096] = part.permute(0, 3, 1, 2)
        else:
            # a copy also of arrays that may not be written to, which torch warns of
            self._tensor = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C")).to(device)

    @property
    def on_device(self) -> bool:
        return self._tensor is not None

    def rows(self, index: np.ndarray) -> Tensor:
        """(B, C, H, W) uint8 images at `index` (B,), on the device."""
        if self._tensor is not None:
            return self._tensor.index_select(0, torch.from_numpy(index).to(self.device))
        assert self._rows is not None
        began = time.perf_counter()
        coming = self._coming.pop(index.tobytes(), None)
        x = self._rows[index] if coming is None else coming.result()
        self.waited += time.perf_counter() - began
        host = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        if self.device.type == "cuda":
            return host.pin_memory().to(self.device, non_blocking=True)
        return host

    def ahead(self, index: np.ndarray) -> None:
        """Begins to read the images at `index`, the very array that :meth:`rows` will be asked for next but one."""
        if self._rows is None:
            return
        key = index.tobytes()
        if key in self._coming:
            return
        while len(self._coming) >= 8:  # announced and never asked for
            self._coming.pop(next(iter(self._coming)))
        self._coming[key] = self._thread.submit(self._rows.__getitem__, index)


def _fits(nbytes: int, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes <= SHARE * free
