"""The section of images: real ones, synthetic ones, and the training image nearest to each.

Images are chosen at random with a fixed seed, so that none was picked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from imbdiff.data.imageset import ImageSet
from imbdiff.reporting import blocks as ui
from imbdiff.reporting.content import ReportData
from imbdiff.reporting.pictures import COLUMNS, scaled_down, some, spread
from imbdiff.reporting.text import number

MAX_CLASSES = 30

Nearest = Mapping[int, tuple[int, float | None]]
"""For some synthetic images the nearest training image of any class, and its distance where it was recorded."""


def nearest_of(memorisation: Mapping[str, Any] | None) -> Nearest:
    if memorisation is None:
        return {}
    found = (memorisation[key] for key in ("index", "any_train_index", "any_distance"))
    return {i: (train, distance) for i, train, distance in zip(*found, strict=True)}


def images(data: ReportData, run: str) -> ui.Section:
    """Real images of each shown class, synthetic ones, and below each its nearest training image; at most 30 classes.

    Synthetic images whose nearest training image is known come before the others.
    """
    nearest = nearest_of(data.memorisation)
    made = [k for k in data.by_size if data.filled[k]]
    shown = spread(made or data.by_size, MAX_CLASSES)
    shelves = [_class_shelf(data, k, nearest) for k in shown]
    groups = [group for shelf in shelves for one in shelf.sets if one.kind == "synthetic" for group in one.groups]
    paired = any(len(group.pictures) > 1 for group in groups)
    copied = sum(group.frame == "copied" for group in groups)
    shapes = dict.fromkeys(one.shape for one in (data.train, data.synthetic) if one is not None)
    texts = [
        f"Chosen at random with a fixed seed, not picked{ui.of_all(len(shown), len(data.by_size), 'classes')}.",
        *map(scaled_down, shapes),
        f"Classes are sorted by size{'; those without synthetic images are left out' * bool(made)}."
        if len(made) < len(data.by_size)
        else "Classes are sorted by size.",
        "Below each synthetic image is the training image nearest to it: one that equals its neighbour is a copy, not "
        "a new image. A neighbour of another class has a yellow frame." * paired,
    ]
    blocks: list[ui.Block] = [ui.Text(" ".join(text for text in texts if text))]
    if copied:
        equal = "equals" if copied == 1 else "equal"
        text = f"{copied} of the synthetic images shown {equal} a training image exactly (framed)."
        blocks.append(ui.Text(text, "alert"))
    if not groups:
        blocks.append(ui.missing("There are no synthetic images to show.", f"imbdiff sample {run}"))
    elif data.train is not None and not paired:
        blocks.append(ui.missing("The nearest training images have not been searched.", f"imbdiff evaluate {run}"))
    title = "Synthetic images" if data.train is None else "Real and synthetic images"
    return ui.Section("images", title, [*blocks, *shelves], "Images")


def _class_shelf(data: ReportData, k: int, nearest: Nearest) -> ui.Shelf:
    train, synthetic, sets = data.train, data.synthetic, []
    if train is not None:
        rows = some(np.flatnonzero(train.labels == k), COLUMNS, "report", "real", k)
        real = [ui.Group([ui.Picture(train.images[i], f"real: {train.ids[i]}")]) for i in rows]
        sets.append(ui.PictureSet(real, "real", "real"))
    if synthetic is not None and (train is None or synthetic.shape == train.shape):
        own = np.flatnonzero(synthetic.labels == k)
        known = own[[int(i) in nearest for i in own]] if len(own) and train is not None else own
        rows = some(known if len(known) else own, COLUMNS, "report", "synthetic", k)
        groups = [_with_nearest(synthetic, i, train, nearest.get(i)) for i in rows]
        sets.append(ui.PictureSet(groups, "synthetic", "synthetic"))
    counts = [] if train is None else [f"{number(data.stats.counts[k])} real"]
    counts += [f"{number(data.filled[k])} synthetic"] if data.filled[k] else []
    return ui.Shelf(sets, data.stats.names[k], f"{data.group(k)} · {' + '.join(counts)}" if counts else "")


def _with_nearest(
    synthetic: ImageSet, i: int, train: ImageSet | None, found: tuple[int, float | None] | None
) -> ui.Group:
    head = ui.Picture(synthetic.images[i], f"synthetic: {synthetic.ids[i]}")
    if found is None or train is None:
        return ui.Group([head])
    at, distance = found
    same = train.labels[at] == synthetic.labels[i]
    away = "" if distance is None else f", distance {number(distance)}"
    away += "" if same else f", of class {train.class_names[train.labels[at]]}"
    title = f"nearest training image: {train.ids[at]}{away}"
    below = ui.Picture(train.images[at], title, "near" if same else "near other")
    return ui.Group([head, below], frame="copied" if distance == 0 else "")


def sample_set(images: ImageSet | None, class_name: str, heading: str = "") -> ui.PictureSet:
    """The first images of the class, at most `COLUMNS`; none where there is no class of that name."""
    if images is None or class_name not in images.class_names:
        return ui.PictureSet([], heading)
    own = np.flatnonzero(images.labels == images.class_names.index(class_name))
    pictures = [
        ui.Picture(images.images[i], f"synthetic image of {class_name}")
        for i in some(own, COLUMNS, "compare", class_name)
    ]
    return ui.PictureSet([ui.Group([picture]) for picture in pictures], heading)
