"""The sets of images of one measurement, read so that they can be compared: the same classes, size and mode."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.data.plain import EVERYTHING, ONE_CLASS, Measurable, align, read_any
from imbdiff.metrics.checks import MODES
from imbdiff.metrics.reference import StoredReference, is_reference, load_reference
from imbdiff.runtime.errors import ConfigError, DataError, RunError

Splits = tuple[str | None, str | None, str | None]


@dataclass(frozen=True, eq=False)
class Stored:
    """A stored reference where a :class:`Measurable` is expected."""

    images: StoredReference
    name: str
    notes: tuple[str, ...] = field(default=())

    @property
    def unlabelled(self) -> bool:
        return self.images.class_names == (ONE_CLASS,)

    def without_labels(self) -> Stored:
        """The same images as one class."""
        zeros = np.zeros(len(self.images), np.int64)
        return replace(self, images=replace(self.images, labels=zeros, class_names=(ONE_CLASS,)))


def read_sets(
    fake: Any, reference: Any, train: Any, splits: Splits, size: int | None, resize: str | None
) -> dict[str, Any]:
    """The sets "synthetic", "reference" and, if given, "train", in the reference's classes; all without labels if one
    has none.

    Args:
        fake, reference, train: what :func:`read_any` takes; a run folder for `fake`, a reference folder for
            `reference`; None for `train`.
        splits: of these three. None: everything there is; the test images; as of :func:`read_any`.
        size, resize: see :class:`imbdiff.pipeline.direct.Measuring`.

    Raises:
        DataError, ConfigError, RunError: see :func:`imbdiff.pipeline.direct.evaluate_any`.
    """
    of_fake, of_reference, of_train = splits
    real: Measurable | Stored
    if not isinstance(reference, ImageSet | np.ndarray) and is_reference(reference):
        opened = load_reference(reference)
        size, resize = _as_stored(opened, size, resize)
        as_made = f"the others are read as it was made: --size {size} --resize {resize}"
        real = Stored(opened, opened.name, () if opened.size is None else (as_made,))
    else:
        real = read_any(reference, of_reference, size, resize or "crop")
    sets = {"synthetic": read_any(_samples(fake), of_fake or EVERYTHING, size, resize or "crop")}
    if train is not None:
        sets["train"] = read_any(train, of_train, size, resize or "crop")
    every = (real, *sets.values())
    if any(m.unlabelled for m in every):
        if not all(m.unlabelled for m in every):
            unused = "classes are not used: one of the sets has no class folders or labels"
            real = replace(real.without_labels(), notes=(*real.notes, unused))
        sets = {name: m.without_labels() for name, m in sets.items()}
    for name, m in sets.items():
        _check_alike(m, real)
        images, note = align(m.images, real.images.class_names, m.name, real.name)
        sets[name] = replace(m, images=images, notes=(*m.notes, *([note] if note else [])))
    return {**sets, "reference": real}


def _as_stored(stored: StoredReference, size: int | None, resize: str | None) -> tuple[int | None, str | None]:
    """Size and policy for the images that are compared with a stored reference: its own where not given.

    Raises:
        ConfigError: those given are not those of the reference.
    """
    h, w, _ = stored.shape
    again = "leave the option out, or make the reference again with it: imbdiff reference"
    if size is not None and (h, w) != (size, size):
        raise ConfigError(f"--size {size}, but the images of the reference {stored.path} are {h} x {w} pixels", again)
    if stored.size is None:  # nothing was done to its images
        return size, resize
    if resize is not None and stored.resize is not None and resize != stored.resize:
        raise ConfigError(
            f"--resize {resize}, but the reference {stored.path} was made with --resize {stored.resize}", again
        )
    return stored.size, stored.resize or resize


def _check_alike(one: Measurable, real: Measurable | Stored) -> None:
    """Raises DataError where images differ in mode or size from the reference's."""
    a, b = one.images.shape, real.images.shape
    if a[2] != b[2]:
        raise DataError(
            f"{one.name} is {MODES[a[2]]} and {real.name} is {MODES[b[2]]}",
            "save both as grey or both as RGB: features of the two cannot be compared",
        )
    if a == b:
        return
    side = min(a[0], a[1], b[0], b[1])
    remedy = f"give --size {side}, which brings both to one size and is printed in the protocol"
    if isinstance(real, Stored):
        remedy = f"give --size {b[0]}" if b[0] == b[1] else f"bring those of {one.name} to that size"
    raise DataError(
        f"the images of {one.name} are {a[0]} x {a[1]} pixels, those of {real.name} {b[0]} x {b[1]}", remedy
    )


def _samples(fake: Any) -> Any:
    """The samples of a run folder; anything else as it is."""
    if isinstance(fake, ImageSet | np.ndarray) or not (Path(fake) / "config.yaml").is_file():
        return fake
    samples = Path(fake) / "samples"
    if not (samples / "manifest.json").is_file():
        raise RunError(f"the run {fake} has no finished samples", f"run `imbdiff sample {fake}` first")
    return samples
