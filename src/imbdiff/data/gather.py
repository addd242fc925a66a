"""Images by number, on a device: from one tensor there, or from disk, read ahead of their use."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from imbdiff.data.imageset import Rows

SHARE = 0.25
"""Of a GPU's free memory, that images on disk may take; with more they are read as they are needed."""
AHEAD = 8
"""Batches that are read ahead at most."""


class Gather:
    """(N, C, H, W) uint8 images, or float16 latents, of which rows can be had on a device.

    Arrays, and images on disk that take less than a quarter of a GPU's free memory, are copied to the device as one
    tensor. Other images stay on disk: rows that are announced by :meth:`ahead` are read by a thread meanwhile.

    Args:
        images: (N, H, W, C) uint8 or float16, an array or Rows.
        device: where they are wanted.

    Attributes:
        on_device: whether all images are there.
        waited: seconds that :meth:`rows` waited for the disk.
    """

    def __init__(self, images: np.ndarray | Rows, device: torch.device) -> None:
        self.device = device
        self.waited = 0.0
        self.on_device = not isinstance(images, Rows) or _fits(images.nbytes, device)
        if not self.on_device:
            self._images = images
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
            self._coming: dict[bytes, Future[np.ndarray]] = {}
            return
        n, h, w, c = images.shape
        of = torch.uint8 if images.dtype == np.uint8 else torch.float16
        self._tensor = torch.empty((n, c, h, w), dtype=of, device=device)
        for start in range(0, n, 4096):
            part = torch.from_numpy(np.array(images[start : start + 4096])).to(device)
            self._tensor[start : start + 4096] = part.permute(0, 3, 1, 2)

    def rows(self, index: np.ndarray) -> Tensor:
        """(B, C, H, W) images at `index` (B,), of their type, on the device."""
        if self.on_device:
            return self._tensor.index_select(0, torch.from_numpy(index).to(self.device))
        began = time.perf_counter()
        coming = self._coming.pop(index.tobytes(), None)
        x = self._images[index] if coming is None else coming.result()
        self.waited += time.perf_counter() - began
        host = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
        if self.device.type == "cuda":
            return host.pin_memory().to(self.device, non_blocking=True)
        return host

    def ahead(self, index: np.ndarray) -> None:
        """Begins to read the images at `index`, the very array that :meth:`rows` will be asked for later."""
        key = index.tobytes()
        if self.on_device or key in self._coming:
            return
        while len(self._coming) >= AHEAD:  # announced and never asked for
            self._coming.pop(next(iter(self._coming)))
        self._coming[key] = self._thread.submit(self._images.__getitem__, index)


def _fits(nbytes: int, device: torch.device) -> bool:
    return device.type == "cuda" and nbytes <= SHARE * torch.cuda.mem_get_info(device)[0]
