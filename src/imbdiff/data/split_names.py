"""What splits are called: one list for folders, zip files, tables, Parquet files and sets of the hub.

A name counts in any case, with digits, punctuation and words such as "images", "set" or "data" around it: ``Training``,
``test_set``, ``images-train``, ``val2017``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from imbdiff.data.names import display_name, named
from imbdiff.runtime.errors import DataError

SPELLINGS = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "tst", "holdout", "heldout", "privatetest"),
}
"""{split: how it is written}, in lower case and without what may stand around it."""
EITHER = ("eval", "evaluation", "publictest")
"""The test split where nothing else is (Food-11), otherwise validation (FER2013)."""
_AROUND = "(?:images?|imgs?|photos?|pictures?|data|datasets?|sets?|splits?|subsets?|samples?|files?|folders?)*"
_EVERY = (*(word for words in SPELLINGS.values() for word in words), *EITHER)
_EXACT = re.compile(f"{_AROUND}({'|'.join(sorted(_EVERY, key=len, reverse=True))}){_AROUND}")
_PART = re.compile(r"(k?folds?|parts?|splits?|cv|batch)|(un|semi)?(labell?ed|supervised)|unused")
_COLUMN = re.compile(
    r"(data(set)?)?(split|splits|subset|partition|usage)(name|type)?|sets?|k?folds?|cvfolds?|trainval(test)?"
)
MANY = 50
"""Different values from which on a column holds no splits."""
_YES, _NO = ("1", "true", "yes", "t", "y", "1.0"), ("0", "false", "no", "f", "n", "0.0")


def _letters(name: str) -> str:
    return re.sub(r"[\W\d_]+", "", unicodedata.normalize("NFKC", name).casefold()[:200])


def word_of(name: str) -> str:
    """The word of SPELLINGS or EITHER that a name is a spelling of, "" if it is none."""
    found = _EXACT.fullmatch(_letters(name))
    return found[1] if found else ""


def is_split_name(name: str) -> bool:
    """Whether a whole name is a spelling, or that of a fold or an unlabelled part."""
    return bool(word_of(name) or _PART.fullmatch(_letters(name)))


def looks_like_split(name: str) -> bool:
    """Whether a name is that of a split, or has one among its words (``seg_train``)."""
    return is_split_name(name) or any(map(word_of, re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", name[:200])))


def assigned(names: Iterable[str]) -> dict[str, list[str]]:
    """{train, val, test: the names that are spellings of it}; "eval" is the test split unless there is another."""
    words = {name: word_of(name) for name in names}
    found = {split: [name for name in words if words[name] in spelled] for split, spelled in SPELLINGS.items()}
    found["val" if found["test"] else "test"] += [name for name in words if words[name] in EITHER]
    return found


def of_cells(column: str, cells: Sequence[str]) -> dict[str, str]:
    """{cell: train, val or test} of the cells of a column that say a split; ``is_train`` has yes and no."""
    values = set(cells)
    found = {cell: split for split, some in assigned(values).items() for cell in some}
    asked = re.fullmatch(r"(is|in)[\W_]*(.+)", column, re.IGNORECASE)
    own = next((split for split, some in assigned([asked[2] if asked else column]).items() if some), "")
    own = own if asked or own == "train" else ""  # "test" may be that of a patient
    plain = {cell: cell.strip().casefold() for cell in values}
    if own and not found and set(plain.values()) <= {*_YES, *_NO}:
        other = "test" if own == "train" else "train"
        return {cell: own if plain[cell] in _YES else other for cell in values}
    return found


def split_column(columns: Mapping[str, Sequence[str]], where: str, given: bool) -> tuple[str | None, list[str]]:
    """The column that says each row's split, None where none does, and notes.

    It is one whose cells mostly say a split and that has a usual name or more than one split; of equal ones the first.

    Args:
        columns: {name: (N,) cells}, without those of images and labels.
        given: the splits are known already: such a column is not used.

    Raises:
        DataError: two columns contradict each other.
    """
    usable: dict[str, list[str]] = {}
    notes = []
    for name, cells in columns.items():
        different = set(cells)
        usual = bool(_COLUMN.fullmatch(_letters(name)))
        if not 1 <= len(different) <= MANY:
            continue
        known = of_cells(name, cells)
        said = [cell in known for cell in cells if cell.strip()]
        share = float(np.mean(said)) if said else 0.0
        splits = set(known.values())
        if share and (usual or (share >= 0.5 and (len(splits) > 1 or len(different) > len(known)))):
            usable[name] = [known.get(cell, "") for cell in cells]
        elif (usual and len(different) > 1) or (share >= 0.5 and splits != {"train"}):
            values = ", ".join(display_name(value, 20) for value in sorted(different)[:5])
            notes.append(
                f"the column {name!r} of {where} looks like one of splits ({values}) and is not used: write train, val "
                "or test there, or split= (empty) if it is none"
            )
    if given:
        used = [name for name, cells in usable.items() if set(cells) != {"train"}]
        return None, [*notes, *(f"the column {name!r} of {where} is not used: the splits are given" for name in used)]
    if len({tuple(cells) for cells in usable.values()}) > 1:
        raise DataError(
            f"the columns {named(list(usable))} of {where} say different splits",
            f"choose one by SOURCE?split={next(iter(usable))}; SOURCE?split= (empty) uses every row for training",
        )
    chosen = next(iter(usable), None)
    if chosen is not None:
        notes.append(f"the splits are those of the column {chosen!r} of {where}; split= (empty) trains on all rows")
    return chosen, notes
