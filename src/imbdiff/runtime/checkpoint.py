"""Checkpoints: written aside, checksummed, renamed. Safetensors and JSON only; nothing is unpickled.

``FOLDER/ckpt-000000012800/`` holds ``state.safetensors`` and ``meta.json``, which has the checksum of the former and of
itself and is written last. A checkpoint that does not match them is reported and the one before is used.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import atomic, read_json, sealed, sha256_file, write_json

KEPT = 2
"""The newest ones, of which one may be damaged; where not all are kept."""


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint: what was saved, and where."""

    path: Path
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one training, in `folder`: the newest, or all of them."""

    folder: Path
    all: bool = False

    def save(self, images: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
        """Writes a checkpoint made after `images` images; removes all but the two newest, unless all are kept.

        Raises:
            RunError: the disk is full. Earlier checkpoints are untouched.
        """
        from safetensors.torch import save_file

        path = self.folder / f"ckpt-{images:012d}"
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        # contiguous copies: safetensors refuses tensors that share memory
        own = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        with atomic(path) as aside:
            aside.mkdir(parents=True)
            save_file(own, aside / "state.safetensors")
            sha256 = sha256_file(aside / "state.safetensors")
            write_json(aside / "meta.json", sealed({**meta, "images": images, "sha256": sha256}))
        for old in () if self.all else self.paths()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return path

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first, damaged ones included."""
        return sorted(path for path in self.folder.glob("ckpt-*") if path.name[5:].isdecimal() and path.is_dir())

    def images(self) -> list[int]:
        """Images seen of all of them, the oldest first."""
        return [int(path.name.removeprefix("ckpt-")) for path in self.paths()]

    def read(self, images: int) -> Checkpoint | None:
        """The checkpoint after so many images; None where there is none.

        Raises:
            RunError: it is damaged.
        """
        path = self.folder / f"ckpt-{images:012d}"
        if not path.exists():
            return None
        try:
            return _whole(path)
        except (RunError, OSError) as error:
            raise RunError(f"the checkpoint {path} is damaged", "choose another one") from error

    def latest(self, report: Callable[[str], None] = print) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None where there is none. Damaged ones are reported and left alone.

        Raises:
            RunError: a checkpoint cannot be read just now, whether it is whole or not.
        """
        for path in reversed(self.paths()):
            try:
                return _whole(path)
            except (RunError, FileNotFoundError) as error:
                report(f"checkpoint {path.name} is damaged and is not used: {error}")
            except OSError as error:
                raise RunError(
                    f"{path} cannot be read: {error}",
                    "repeat the command when it can; without this folder it goes on from the checkpoint before",
                ) from error
        return None


def _whole(path: Path) -> Checkpoint:
    """The checkpoint in a folder.

    Raises:
        RunError: it is damaged.
        OSError: it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        meta = read_json(path / "meta.json")
        if sha256_file(path / "state.safetensors") != meta["sha256"]:
            raise RunError("state.safetensors does not match its checksum")
        return Checkpoint(path, load_file(path / "state.safetensors"), meta)
    except (KeyError, TypeError, SafetensorError) as error:
        raise RunError(str(error)) from error
