"""`imbdiff predict RUN IMAGES`: the class of each image, by a classifier that the stage `classify` left.

The table has one row per image, in the order of the source: file, predicted, probability (of the predicted class), and
``p_CLASS`` of every class.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imbdiff.data.arrays import ArraySource
from imbdiff.data.names import counted, display_name, named
from imbdiff.data.plain import is_array, read_array
from imbdiff.data.source import Source
from imbdiff.data.sources import load
from imbdiff.data.spec import user_path
from imbdiff.pipeline.folder import RunFolder
from imbdiff.recognition.saved import DESCRIPTION, ImageClassifier, read_description
from imbdiff.runtime.device import resolve_device
from imbdiff.runtime.errors import ConfigError, DataError, RunError, listing
from imbdiff.runtime.files import atomic, check_free, sha256_file
from imbdiff.runtime.progress import Progress

COLUMNS = ("file", "predicted", "probability")
BATCH = 512
SHOWN = 20
"""Classes in the summary."""


def load_classifier(path: str | Path, arm: str | None = None, *, device: str = "cpu") -> ImageClassifier:
    """The classifier of a run, or of a folder that :meth:`ImageClassifier.save` wrote.

    Args:
        path: a run folder, or such a folder.
        arm: of a run, the name of one of the arms whose networks are kept, or a part of it that no other has; default:
            the arm of the verdict, without synthetic images the best control.

    Raises:
        RunError: there is none, or a file of it is missing, damaged or of another run.
        ConfigError: an arm whose networks are not kept.
    """
    path = user_path(path)
    run = RunFolder(path)
    if run.exists:
        run.allow_code()
        return ImageClassifier.load(_of_run(run, arm), device=resolve_device(device))
    if not (path / DESCRIPTION).is_file():
        raise RunError(
            f"{path} is neither a run folder nor a saved classifier: config.yaml and {DESCRIPTION} are missing",
            "give a folder that `imbdiff run` made",
        )
    if arm is not None:
        _chosen(arm, {str(read_description(path).get("about", {}).get("arm", "")): path}, path)
    return ImageClassifier.load(path, device=resolve_device(device))


def _of_run(run: RunFolder, arm: str | None) -> Path:
    """The folder of a run's classifier; of the arm that is asked for."""
    written = run.stages().get("classify", {}).get("classifiers")
    again = f"run `{run.command('classify')}` first"
    if not written:
        raise RunError(f"the run in {run.path} has no classifier yet", again)
    folders: dict[str, Path] = {}
    for name, key in written.items():
        folder = run.path / "classifier" / name
        if not (folder / DESCRIPTION).is_file() or sha256_file(folder / DESCRIPTION) != key:
            raise RunError(f"{folder / DESCRIPTION} is missing, was altered, or is of another run", again)
        folders[str(read_description(folder)["about"]["arm"])] = folder
    return next(iter(folders.values())) if arm is None else _chosen(arm, folders, run.path)


def _chosen(arm: str, folders: dict[str, Path], where: Path) -> Path:
    if arm in folders:
        return folders[arm]
    found = [name for name in folders if arm.casefold() in name.casefold()]
    if len(found) != 1:
        what = "several classifiers are" if found else "no classifier is"
        raise ConfigError(
            f"{what} called {arm!r} in {where}; there are:\n{listing(map(repr, found or folders))}",
            f"give one of these names, such as --arm {shlex.quote((found or list(folders))[0])}",
        )
    return folders[found[0]]


@dataclass(eq=False)
class Predictions:
    """What was predicted.

    Attributes:
        classes: (C,) names.
        counts, sums: (C,) images predicted as each class, and the sum of their probabilities.
        copies: images that are training images.
        grey: images in colour that were made grey.
        bad: {file: why} of the images that could not be read.
    """

    classes: list[str]
    counts: np.ndarray
    sums: np.ndarray
    copies: int = 0
    grey: int = 0
    bad: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def notes(self) -> list[str]:
        found = []
        if self.grey:
            what = counted(self.grey, "image in colour was", "images in colour were")
            found.append(f"{what} made grey: the classifier was trained on grey images")
        if self.copies:
            what = counted(self.copies, "image is a training image", "images are training images")
            found.append(f"{what} of this classifier: how well it knows these says nothing about others")
        return found

    def lines(self) -> list[str]:
        """Images and mean probability of each predicted class, the most frequent first."""
        order = [k for k in np.argsort(-self.counts, kind="stable").tolist() if self.counts[k]]
        shown = [display_name(self.classes[k], 40) for k in order[:SHOWN]]
        width = max(9, *map(len, shown))
        rows = [f"  {'class':<{width}}  {'images':>9}  mean probability"]
        rows += [
            f"  {name:<{width}}  {self.counts[k]:>9,}  {self.sums[k] / self.counts[k]:.2f}"
            for name, k in zip(shown, order, strict=False)
        ]
        more, none = len(order) - SHOWN, len(self.classes) - len(order)
        rows += [f"  and {counted(more, 'other class', 'other classes')}"] if more > 0 else []
        missing = [name for k, name in enumerate(self.classes) if not self.counts[k]]
        rows += [f"  no image: {named([display_name(name, 40) for name in missing], 10)}"] if none else []
        return rows


def predict_any(
    run: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    arm: str | None = None,
    device: str = "auto",
    replace: bool = False,
    quiet: bool = False,
) -> None:
    """Predicts the class of every image of a source and writes a table of them.

    Args:
        run: see :func:`load_classifier`.
        images: any source, see :func:`imbdiff.data.sources.load`, also without classes; a single image; an .npy file.
            All splits are predicted.
        arm: see :func:`load_classifier`.
        out: the CSV file; "-" is the standard output, and the summary then goes to the standard error.
        replace: replace the file where it is there.

    Raises:
        DataError: no image there; images that could not be read, after the others have been predicted and written.
        RunError, ConfigError: see :func:`load_classifier`; a file that is there or cannot be written.
    """
    place = _checked_out(out, images, replace)
    say = sys.stderr if place is None else sys.stdout
    classifier = load_classifier(run, arm, device=device)
    source = _opened(images)

    def log(text: str) -> None:
        if not quiet:
            print(text, file=say, flush=True)

    log(f"classifier: {describe(classifier)}")
    for note in source.warnings:
        log(f"  note: {note}")
    try:
        with _writing(place) as handle:
            found = _predict_into(csv.writer(handle, lineterminator="\n"), classifier, source, quiet=quiet)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise RunError(f"{place or 'the standard output'} cannot be written: {error}", "give another --out") from error
    log(f"predicted: {counted(found.total, 'image')}")
    for line in found.lines():
        log(line)
    for note in found.notes():
        log(f"  note: {note}")
    if place is not None:
        log(f"predictions: {place}")
    if found.bad:
        others = "" if place is None else f"; the predictions of the others are in {place}"
        raise _unreadable(found.bad, found.total, f"replace these files or leave them out{others}")


def _predict_into(writer: Any, classifier: ImageClassifier, source: Source, *, quiet: bool) -> Predictions:
    """Writes the rows of all images that can be read, batch by batch."""
    names = [str(name) for name in classifier.classes_.tolist()]
    found = Predictions(names, np.zeros(len(names), np.int64), np.zeros(len(names)))
    writer.writerow([*COLUMNS, *(f"p_{name}" for name in names)])
    n = sum(len(records.ids) for records in source.records.values())
    batch: list[tuple[str, np.ndarray]] = []

    def flush() -> None:
        if not batch:
            return
        x = np.stack([one for _, one in batch])
        p = classifier.predict_proba(x)
        best = p.argmax(axis=1)
        top = p.max(axis=1)
        for (name, _), k, highest, row in zip(batch, best.tolist(), top.tolist(), p.tolist(), strict=True):
            writer.writerow([name, names[k], f"{highest:.6g}", *(f"{value:.6g}" for value in row)])
        found.counts += np.bincount(best, minlength=len(names))
        found.sums += np.bincount(best, weights=top, minlength=len(names))
        found.copies += int(classifier.copies(x).sum())
        batch.clear()

    with Progress("predict", n, quiet=quiet) as progress:
        for i, (name, one, why) in enumerate(source.converted(classifier.target, classifier.shape[2] == 1)):
            if one is None:
                found.bad[name] = why
                continue
            batch.append((name, one[0]))
            found.grey += one[1]
            if len(batch) == BATCH:
                flush()
                progress.update(i + 1)
        flush()
        progress.update(n)
    if not found.total:
        raise _unreadable(found.bad, 0, "give images that can be read")
    return found


def describe(classifier: ImageClassifier) -> str:
    """A classifier in a line."""
    h, w, channels = classifier.shape
    about = classifier.about
    text = f"{about.get('arm', 'saved')}, {counted(len(classifier.members), 'network')}"
    score = about.get("balanced_accuracy")
    if score is not None:
        text += f", balanced accuracy {score:.3f} on {about['test_images']:,} test images"
    return f"{text}; images are brought to {h} x {w}, {'grey' if channels == 1 else 'RGB'} ({classifier.resize})"


def _opened(images: str | Path) -> Source:
    path = user_path(images)
    if is_array(path):
        return ArraySource({"train": (read_array(path), None)}, name=str(images), strict=False)
    return load(images, strict=False)


def _unreadable(bad: dict[str, str], predicted: int, remedy: str) -> DataError:
    rows = [f"{display_name(name, 200)}: {display_name(why, 200)}" for name, why in bad.items()]
    return DataError(
        f"{len(bad)} of {counted(len(bad) + predicted, 'image')} could not be read:\n{listing(rows, 100)}", remedy
    )


def _checked_out(out: str | Path, images: str | Path, replace: bool) -> Path | None:
    """Where the table goes; None: to the standard output.

    Raises:
        ConfigError, RunError: a folder, what is read, or there already.
    """
    if str(out) == "-":
        return None
    place = Path(out)
    if place.exists() and os.path.exists(images) and os.path.samefile(place, images):
        raise ConfigError(f"--out {place} is what is read", "give another file")
    check_free(place, replace)
    return place


@contextlib.contextmanager
def _writing(place: Path | None) -> Iterator[Any]:
    """A text file that appears when it is whole; the standard output where `place` is None."""
    if place is None:
        yield sys.stdout
        return
    with atomic(place) as aside, open(aside, "w", newline="", encoding="utf-8") as handle:
        yield handle
