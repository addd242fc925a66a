"""How often the test images of a study's folder were looked at: ``looks.json``, which no other grid overwrites.

Whoever has seen test numbers and then asks for another grid chooses with them in mind: each look is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imbdiff.recognition.grid import Cell
from imbdiff.recognition.plan import FitPlan
from imbdiff.runtime.errors import RunError
from imbdiff.runtime.files import digest, read_json, write_json

FILE = "looks.json"


def read_looks(folder: Path) -> list[dict[str, Any]]:
    """The looks so far; where the file is gone, those that ``study.json`` tells of.

    Raises:
        RunError: the file is damaged: how often was looked is not known any more.
    """
    path = folder / FILE
    if not path.exists():
        result = read_json(folder / "study.json") if (folder / "study.json").exists() else {}
        return list(result.get("looks", [])) if isinstance(result, dict) else []
    remedy = "put the file back, or give another --out: a new folder counts anew"
    try:
        found = read_json(path)
    except RunError as error:
        raise RunError(error.message, remedy) from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise RunError(f"{path} is damaged: it holds no list of looks", remedy)
    return found


def grid_hash(
    cells: Sequence[Cell], without: Sequence[str], seeds: Sequence[int], plan: FitPlan, draw: float, confidence: float
) -> str:
    """Of everything that a grid is, in whatever order it was given."""
    rows = sorted(digest([cell.name, list(cell.wanted), cell.use.to_json()]) for cell in cells)
    return digest([rows, sorted(without), sorted(seeds), plan.to_json(), draw, confidence])


def add_look(folder: Path, grid: str, cells: int, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Writes down what `found`, of :func:`~imbdiff.recognition.sweep.sweep`, saw of the test images; all looks so far.

    A look is "recommended", "control" (None where nothing was chosen), "grid" (:func:`grid_hash`), "cells" (how many it
    has) and "revealed" (all of them were looked at). The same one again is no new look.
    """
    looks = read_looks(folder)
    picked, revealed = found["recommendation"], found["exploratory"] is not None
    look = {
        "recommended": picked and picked["name"],
        "control": picked and picked["control"],
        "grid": grid,
        "cells": cells,
        "revealed": revealed,
    }
    if (found["test"] is not None or revealed) and look not in looks:
        looks.append(look)
    if looks:
        write_json(folder / FILE, looks)
    return looks
