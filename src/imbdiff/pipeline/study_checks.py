"""What is refused before a study begins: its options, and a folder that is something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from imbdiff.data.splits import Prepared
from imbdiff.pipeline.run import Run
from imbdiff.pipeline.sampling import check_strategy, images_to_add
from imbdiff.pipeline.study_looks import read_looks
from imbdiff.recognition.curation import parse_policy
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.use import Schedule
from imbdiff.runtime.errors import ConfigError, RunError
from imbdiff.runtime.files import read_json

SCHEMA = "imbdiff-study/1"


@dataclass(frozen=True)
class StudyOptions:
    """The grid of a study; see :class:`imbdiff.commands.StudyCommand`.

    Raises:
        ConfigError: an unknown word, or a number out of range.
    """

    numbers: tuple[str, ...] = ("0.25", "0.5", "1.0")
    curation: tuple[str, ...] = ("none", "agreement")
    recipes: tuple[str, ...] = ("ce", "balanced-softmax")
    weights: tuple[float, ...] = (1.0,)
    schedules: tuple[Schedule, ...] = ("mixed",)
    seeds: int | None = None
    draw: float = 1.5
    reveal_test: bool = False

    def __post_init__(self) -> None:
        for number in self.numbers:
            check_strategy(number)
        for policy in self.curation:
            parse_policy(policy)
        for recipe in self.recipes:
            get_recipe(recipe)
        for weight in self.weights:
            if not 0 < weight <= 1:
                raise ConfigError(
                    f"--weights {weight:g} is not in (0, 1]", "1 counts a synthetic image as much as a real one"
                )
        for schedule in self.schedules:
            if schedule not in get_args(Schedule):
                raise ConfigError(f"--schedules {schedule!r} is unknown", f"choose of {', '.join(get_args(Schedule))}")
        if self.seeds is not None and self.seeds < 1:
            raise ConfigError(f"--seeds {self.seeds} is not a number of classifiers", "give 1 or more")
        if not 1 <= self.draw <= 10:
            raise ConfigError(f"--draw {self.draw:g} is not in 1..10", "1.5 draws three candidates for two images")


def numbers_of(words: Sequence[str], prepared: Prepared) -> dict[str, tuple[int, ...]]:
    """Images to add, (C,), for each word.

    Raises:
        ConfigError: a word twice, or one that does not fit the classes.
    """
    numbers: dict[str, tuple[int, ...]] = {}
    for word in words:
        if word.strip() in numbers:
            raise ConfigError(f"the number {word!r} stands in the grid twice", "name each once")
        numbers[word.strip()] = images_to_add(word, prepared.stats)
    return numbers


def check_folder(folder: Path, run: Run, identity: dict[str, str]) -> None:
    """Refuses a study folder that is something else.

    Raises:
        RunError: it is a file, lies among the images, holds other files, or a study of other data or another model, or
            does not tell any more how often the test images were looked at.
    """
    for place in (folder, *folder.parents):
        if place.is_file():
            raise RunError(f"{place} is a file", "give another --out")
    source = Path(run.source)
    if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
        raise RunError(f"the study folder {folder} lies inside the images, {source}", "give an --out elsewhere")
    if not folder.exists():
        return
    if not (folder / "plan.json").exists():
        others = [p.name for p in folder.iterdir() if p.name != ".lock" and not p.name.endswith(".partial")]
        if others:
            raise RunError(
                f"{folder} is not a study: it holds {len(others)} other files, such as {sorted(others)[0]!r}",
                "give an empty or a new folder as --out; nothing was changed",
            )
        return
    found = read_json(folder / "plan.json")
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise RunError(f"{folder} is not a study of this version", "give another --out; nothing was changed")
    differ = [what for what, value in identity.items() if found.get("of", {}).get(what) != value]
    if differ:
        named = " and ".join({"data": "other data", "weights": "another model"}[what] for what in differ)
        raise RunError(
            f"the study in {folder} is of {named} than the run in {run.folder.path}",
            "give another --out, or remove it; nothing was changed",
        )
    read_looks(folder)
