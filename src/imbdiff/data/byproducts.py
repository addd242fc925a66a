"""Files among the images of a class that are none of it: masks, annotations, thumbnails, and what systems leave there.

What lies in a folder such as ``masks`` or is called ``NAME_mask`` belongs to another image if there is one of the same
name and place once such words are taken away: ``COVID/masks/1.png`` to ``COVID/images/1.png``, ``1_mask.png`` to
``1.png``, ``masks/cat/1.png`` to ``images/cat/1.png``. Classes may be called ``mask`` and ``no_mask``.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Sequence

from imbdiff.data.names import counted, shown

_WORDS = (
    "masks?|segm?|segmentations?|segmented|segmentationclass|segmentationobject|annotations?|annotated|annots?|"
    "ground[ _-]?truths?|gts?|labels?|labell?ed|overlays?|heat[ _-]?maps?|grad[ _-]?cams?|saliency|thumbs?|thumbnails?|"
    "previews?|contours?|outlines?|b?boxes|bbox|trimaps?|superpixels?|mattes?|depth|checkpoint"
)
_SURE = re.compile(
    r"masks|(segmentation|annotation|overlay|heat[ _-]?map|grad[ _-]?cam|thumbnail|trimap|label|preview)s|"
    r"ground[ _-]?truths?|gt",
    re.IGNORECASE,
)
"""Names of folders that are no classes, whereas "mask" and "thumb" may be."""
_PICTURES = "images?|imgs?|photos?|pictures?|originals?|raw|jpe?gs?|pngs?"
_WORD = re.compile(f"{_WORDS}", re.IGNORECASE)
_PICTURE = re.compile(f"{_PICTURES}", re.IGNORECASE)
_AFTER = re.compile(rf"(.*?)[ ._-]+(?:{_WORDS}|\d+x\d+)(?:[ ._-]?\(?\d{{1,2}}\)?)?", re.IGNORECASE | re.DOTALL)
_BEFORE = re.compile(rf"(?:{_WORDS})[ ._-]*(.+)", re.IGNORECASE | re.DOTALL)
_IMAGE_BEFORE = re.compile(rf"(?:{_PICTURES})[ ._-]*(.+)|(.+?)[ ._-]+(?:{_PICTURES})", re.IGNORECASE | re.DOTALL)
_SYSTEM = frozenset(
    ["@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler"]
) | {"lost+found", "system volume information"}
"""What Synology, QNAP, Windows and others leave in folders; most systems' names begin with a dot or two underscores."""
MANY = "masks, annotations, thumbnails or the like"
_HINT = re.compile(
    r"mask|seg|annot|truth|gt|label|overlay|heat|grad|saliency|thumb|preview|contour|outline|box|trimap|superpixel|matte|"
    r"depth|checkpoint|\dx\d"
)
"""Letters of all these words, to look for first: many times faster."""
_PICTURE_HINT = re.compile("im|photo|pict|orig|raw|jp|png")
_DOUBLE = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
KEEP = "byproducts"
"""The option that keeps all (``byproducts=keep``)."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or a system's own."""
    return name.startswith((".", "__")) or name.casefold() in _SYSTEM


def is_pictures(name: str) -> bool:
    """Whether a folder is called "images" or the like."""
    return bool(_PICTURE.fullmatch(name))


def is_byproduct(name: str) -> bool:
    """Whether a column of images is called as masks and the like are."""
    return any(_WORD.fullmatch(word) for word in re.split(r"[ ._-]+", name))


def find_byproducts(images: Sequence[str], level: int = 0) -> tuple[list[str], list[str]]:
    """Images that belong to others of a set, and those that lie in folders of such a name without belonging to one.

    Args:
        images: paths below one root, with forward slashes.
        level: the part of the path that is the class.
    """
    if not _HINT.search("\n".join(images).lower()):
        return [], []
    folders = {path: posixpath.dirname(path) for path in images}
    about = {folder: _folder(folder, level) for folder in set(folders.values())}
    keys = {path: _key(path, about[folder][0]) for path, folder in folders.items()}
    real = {key for path, (key, own) in keys.items() if not (own or about[folders[path]][1])}
    # a folder of masks next to the classes: of numbers that every class has, none is known to be its image
    once = Counter((*key[:level], key[-1]) for key in real)
    pictured = {above for folder in about for above in _holders(folder, _PICTURE, 1)}
    found, alone = [], []
    for path, (key, own) in keys.items():
        _, marked, beside = about[folders[path]]
        if not (own or marked):
            continue
        sure = _holders(folders[path], _SURE, level)
        if key in real or (beside and once[(*key[:level], key[-1])] == 1) or sure & pictured:
            found.append(path)
        elif sure:
            alone.append(path)
    return found, alone


def _holders(folder: str, name: re.Pattern[str], first: int) -> set[str]:
    """The folders on the way to one, itself included, that hold one of such a name; not the first ones."""
    parts = folder.split("/")
    return {"/".join(parts[:i]) for i in range(first, len(parts)) if name.fullmatch(parts[i])}


def _key(path: str, kept: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """The place and name of an image without words for by-products, and whether there was one in its name."""
    stem, marked = posixpath.splitext(path[path.rfind("/") + 1 :])[0], False
    lower = stem.lower()
    if lower.endswith(_DOUBLE):  # 1.jpg.png
        stem = stem[: stem.rfind(".")]
    found = (_AFTER.fullmatch(stem) or _BEFORE.fullmatch(stem)) if _HINT.search(lower) else None
    if found and found[1]:
        marked, stem = True, found[1]
    plain = _IMAGE_BEFORE.fullmatch(stem) if _PICTURE_HINT.search(lower) else None
    stem = next(filter(None, plain.groups())) if plain else stem
    return (*kept, stem.strip(" ._-").casefold()), marked


def _folder(folder: str, level: int) -> tuple[tuple[str, ...], bool, bool]:
    """A folder without words for by-products, whether there was one, and whether it was all of the class's name."""
    kept, marked, beside = [], False, False
    for depth, part in enumerate(folder.split("/") if folder else []):
        words = re.split(r"([ ._-]+)", part)
        own = any(_WORD.fullmatch(word) for word in (part, *words))
        whole = bool(_WORD.fullmatch(part) or _PICTURE.fullmatch(part))
        if depth <= level and own and not _SURE.search(part):
            words, own, whole = [part], False, False  # a class may be called so
        rest = [] if whole else [word for word in words if not (_WORD.fullmatch(word) or _PICTURE.fullmatch(word))]
        plain = "".join(rest if own or whole else words).strip(" ._-").casefold()
        kept += [plain] if plain else []
        marked, beside = marked or own, beside or (own and whole and depth == level)
    return tuple(kept), marked, beside


def left_out_byproducts(images: Sequence[str], where: str, level: int, keep: bool) -> tuple[set[str], list[str]]:
    """The by-products among `images` that are left out, and notes; with `keep`, none are."""
    found, alone = find_byproducts(images, level)
    notes = []
    if found and not keep:
        notes.append(
            f"left out of {where}: {counted(len(found), 'mask, annotation, thumbnail or the like', MANY)} of other "
            f"images, by their names: {shown(found)}; SOURCE?{KEEP}=keep keeps them"
        )
    if alone := [*alone, *(found if keep else [])]:
        notes.append(
            f"{where}: {counted(len(alone), 'image')} may be masks, annotations or the like, by the names of folders "
            f"or files, and count as images: {shown(alone)}"
        )
    return set() if keep else set(found), notes
