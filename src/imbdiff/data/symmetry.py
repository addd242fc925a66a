"""What may be done to the images of a set without changing what they show: its symmetry, the option --data.augment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Symmetry = Literal["none", "mirror", "turns"]
"""What leaves the meaning of images as it is: nothing, mirroring left and right, or mirroring and quarter turns."""


@dataclass(frozen=True)
class Allowed:
    """What a symmetry allows, in words.

    Attributes:
        always: done to images at random in all training.
        rotated: how far images are rotated where more changes are made: a generator that is conditioned on them,
            classifiers with --classify.changes.
        suits: sets that it is right for.
    """

    always: str
    rotated: str
    suits: str


SYMMETRIES: dict[Symmetry, Allowed] = {
    "none": Allowed(
        "never mirrored", "by up to 15 degrees",
        "digits, text, traffic signs, body parts of a left and a right: a mirrored image shows something else",
    ),
    "mirror": Allowed(
        "mirrored left and right, half of the time", "by up to 15 degrees",
        "most photographs: animals, plants, objects, scenes",
    ),
    "turns": Allowed(
        "mirrored, and turned by quarters or upside down", "by any angle",
        "what has no upright: microscopy, skin, satellite images",
    ),
}  # fmt: skip


def unasked_changes(flippable: bool) -> str:
    """One line: what a run does where it is not asked for anything, and the option for others."""
    why = "this source is known to allow it" if flippable else "nothing is known of what these images allow"
    own = SYMMETRIES[unasked(flippable)].always
    return f"training images are {own}: {why}; otherwise: --data.augment mirror|turns|none"


def unasked(flippable: bool) -> Symmetry:
    """What a run does where it is not asked for anything: no more than is known to be safe.

    Args:
        flippable: the source is known to allow mirroring.
    """
    return "mirror" if flippable else "none"
