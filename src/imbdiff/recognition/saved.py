"""The classifier that predicts: the networks of an arm and how they decide, in memory and in a folder.

A folder holds ``classifier.json`` and the weights of each network as safetensors, in files that are named by the hash
of what is in them. The JSON is written last and says which files belong together, so that a folder holds the old
classifier or the whole new one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from imbdiff.data.decode import File, Target, UnusableImageError, decode
from imbdiff.data.imageset import ImageSet
from imbdiff.data.names import named
from imbdiff.recognition.decision import Decision, mean_probabilities
from imbdiff.recognition.heads import CosineHead
from imbdiff.recognition.networks import Classifier, Maker, Normalised, build_network, name_of, probabilities
from imbdiff.runtime.errors import ConfigError, DataError, RunError, listing
from imbdiff.runtime.files import atomic, read_json, sha256_file, write_bytes, write_json
from imbdiff.runtime.tables import PREFIX

FORMAT = "imbdiff-classifier/1"
DESCRIPTION = "classifier.json"
AGAIN = "restore it, or save the classifier again; of a run: imbdiff classify RUN"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Member:
    """A network of a classifier.

    Attributes:
        network: trained, in eval mode.
        made_by: what :func:`build_network` makes it by.
        file: where its weights are already: saving links that file, where it can, in place of writing another.
    """

    network: Classifier
    made_by: str | Maker
    file: Path | None = None


@dataclass(eq=False)
class ImageClassifier:
    """A trained classifier in scikit-learn's style: one network or several, whose probabilities are averaged.

    What decides is :class:`imbdiff.recognition.decision.Decision` of the average.

    Attributes:
        members: its networks, all of the same images and classes.
        classes_: (C,) names or whole numbers: what is predicted.
        shape: (H, W, C) of the images, C = 1 (grey) or 3 (RGB).
        decision: the strength of the adjustment and the temperature.
        log_prior: (C,) log of the classes' shares of the real training images.
        resize: crop, pad or stretch: how training images came to that size, see :mod:`imbdiff.data.decode`.
        trained_on: hashes of the real training images' pixels.
        about: facts to print: "arm", "seed", "balanced_accuracy" on "test_images".
    """

    members: Sequence[Member]
    classes_: np.ndarray
    shape: tuple[int, int, int]
    decision: Decision
    log_prior: np.ndarray
    resize: str = "crop"
    trained_on: frozenset[str] = frozenset()
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.classes_ = np.asarray(self.classes_)
        if self.classes_.ndim != 1 or self.classes_.dtype.kind not in "iuU":
            raise ConfigError(
                f"classes_ is {self.classes_.shape} {self.classes_.dtype}", "give (C,) texts or whole numbers"
            )
        if not self.members:
            raise ConfigError("a classifier needs at least one network", "give its members")

    def __repr__(self) -> str:
        h, w, channels = self.shape
        grey = "grey" if channels == 1 else "RGB"
        return f"ImageClassifier({len(self.members)} networks, {len(self.classes_)} classes, {h} x {w} {grey})"

    def to(self, device: torch.device | str) -> ImageClassifier:
        """Moves the networks; returns the classifier."""
        for member in self.members:
            member.network.to(device)
        return self

    # -- predicting

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """(N, C) float64 probabilities in the order of `classes_`; rows sum to 1.

        Args:
            X: (N, H, W) or (N, H, W, C) uint8, 0 to 255, of the classifier's size; :meth:`read` makes such of files.

        Raises:
            DataError: another type, size or number of channels.
        """
        return self._decided(self._images(X))

    def predict(self, X: np.ndarray) -> np.ndarray:
        """(N,) of `classes_`: the most probable of each image; see :meth:`predict_proba`."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def score(self, X: np.ndarray, y: np.ndarray) -> float:
        """The accuracy on images X of labels `y` (N,), each among `classes_`.

        Raises:
            DataError: no image, or labels that are not among `classes_`.
        """
        images, y = self._images(X), np.asarray(y)
        if y.shape != (len(images),) or not len(images):
            raise DataError(f"y is {y.shape} for {len(images)} images", "give one label for each of one image or more")
        known = set(self.classes_.tolist())
        if strange := [label for label in np.unique(y).tolist() if label not in known]:
            raise DataError(
                f"y has labels that the classifier does not know: {_shown(strange)}; it knows "
                f"{_shown(self.classes_.tolist())}",
                "give labels as they are in classes_: texts are not numbers",
            )
        return float((self.classes_[self._decided(images).argmax(axis=1)] == y).mean())

    def copies(self, X: np.ndarray) -> np.ndarray:
        """(N,) bool: whether an image is one of the training images, pixel by pixel; blank images are none."""
        images = self._images(X)
        blank = np.ptp(images.images.reshape(len(images), -1), axis=1) == 0
        return np.array([h in self.trained_on for h in images.hashes], dtype=bool) & ~blank

    @property
    def target(self) -> Target:
        """What images are brought to."""
        return Target(*self.shape[:2], self.resize)

    def read(self, files: Sequence[str | Path | Image | File]) -> np.ndarray:
        """(N, H, W, C) uint8: images from files or of Pillow, brought to the classifier's size and colours as the
        training images were.

        Raises:
            DataError: files that cannot be used, all listed.
        """
        found, bad = [], []
        for file in files:
            try:
                own = Path(file) if isinstance(file, str) else file
                found.append(decode(own, self.target, self.shape[2] == 1))
            except (UnusableImageError, OSError) as error:
                bad.append(f"{file}: {error}")
        if bad:
            raise DataError(f"{len(bad)} images cannot be used:\n{listing(bad)}", "replace them or leave them out")
        return np.stack(found) if found else np.zeros((0, *self.shape), np.uint8)

    def _decided(self, images: ImageSet) -> np.ndarray:
        p = mean_probabilities([probabilities(member.network, images) for member in self.members])
        return self.decision.probabilities(p, self.log_prior)

    def _images(self, X: np.ndarray) -> ImageSet:
        X = np.asarray(X)
        h, w, channels = self.shape
        wanted = f"(N, {h}, {w}, 3)" if channels == 3 else f"(N, {h}, {w}) or (N, {h}, {w}, 1)"
        if X.dtype != np.uint8:
            raise DataError(
                f"X is {X.dtype}", "give images as uint8, 0 to 255: (255 * X).round().astype('uint8') of 0..1"
            )
        images = X[..., None] if X.ndim == 3 else X
        if images.ndim != 4 or images.shape[1:] != self.shape:
            own = f"X is {X.shape}, and this classifier takes {wanted} uint8"
            if X.ndim == 4 and X.shape[3] != channels and X.shape[1:3] == (h, w):
                colours = "images in colour" if channels == 3 else "grey images"
                raise DataError(f"{own}: it was trained on {colours}", "let read() of this classifier convert them")
            one = " (a single image is X[None])" if X.ndim in (2, 3) else ""
            raise DataError(own, f"bring images to that size, as read() of this classifier does{one}")
        names = tuple(str(name) for name in self.classes_.tolist())
        return ImageSet(images, np.zeros(len(images), np.int64), names)

    # -- on disk

    def save(self, folder: str | Path) -> None:
        """Writes the classifier; what was saved there before is replaced when the new one is whole.

        Raises:
            ConfigError: a network that was given as a function which no module has by name.
        """
        folder = Path(folder)
        described = [{"network": _spelled(one.made_by), **_head_of(one.network)} for one in self.members]
        folder.mkdir(parents=True, exist_ok=True)
        for one, facts in zip(self.members, described, strict=True):
            facts["sha256"] = _place(one, folder)
        write_json(folder / DESCRIPTION, {
            "format": FORMAT,
            "about": dict(self.about),
            "classes": self.classes_.tolist(),
            "shape": list(self.shape),
            "resize": self.resize,
            "decision": asdict(self.decision),
            "log_prior": self.log_prior.tolist(),
            "members": described,
            "trained_on": "".join(sorted(self.trained_on)),
        })  # fmt: skip
        kept = {_weights_of(folder, facts["sha256"]) for facts in described}
        for path in folder.glob("*.safetensors"):
            if path not in kept:
                path.unlink()

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> ImageClassifier:
        """Reads what :meth:`save` wrote.

        Raises:
            RunError: the folder holds no classifier, or a file of it is missing, damaged or of another one.
            ConfigError: a network of a package that is not installed.
        """
        folder = Path(folder)
        found = read_description(folder)
        try:
            shape = (int(found["shape"][0]), int(found["shape"][1]), int(found["shape"][2]))
            classes, decision = np.asarray(found["classes"]), Decision(**found["decision"])
            log_prior, resize = np.asarray(found["log_prior"], dtype=np.float64), str(found["resize"])
            facts = [(str(one["network"]), str(one["sha256"]), one.get("scale")) for one in found["members"]]
            hashes = str(found["trained_on"])
            about = dict(found["about"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise RunError(f"{folder / DESCRIPTION} does not describe a classifier: {error!r}", AGAIN) from error
        members = [
            Member(_network(_checked(folder, key), network, scale, shape, len(classes)), network)
            for network, key, scale in facts
        ]
        seen = frozenset(hashes[i : i + 32] for i in range(0, len(hashes), 32))
        return cls(members, classes, shape, decision, log_prior, resize, seen, about).to(device)


def read_description(folder: Path) -> dict[str, Any]:
    """What ``classifier.json`` says.

    Raises:
        RunError: it is missing, damaged or of another format.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise RunError(f"{folder} holds no saved classifier ({DESCRIPTION} is missing)", AGAIN)
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        what = found.get("format") if isinstance(found, dict) else None
        raise RunError(
            f"{path} is no {FORMAT} but {what!r}", "use the version of imbdiff that wrote it, or save it again"
        )
    return found


def is_whole(folder: Path) -> bool:
    """Whether a saved classifier is all there, every file with what was written."""
    try:
        for one in read_description(folder)["members"]:
            _checked(folder, one["sha256"])
    except (RunError, KeyError, TypeError):
        return False
    return True


def _weights_of(folder: Path, key: str) -> Path:
    return folder / f"{key[:16]}.safetensors"


def _checked(folder: Path, key: Any) -> bytes:
    """The bytes of the file of weights with the hash `key`.

    Raises:
        RunError: it is missing, or holds something else.
    """
    if not isinstance(key, str) or not _SHA256.fullmatch(key):  # no path is made of anything else
        raise RunError(f"{folder / DESCRIPTION} is damaged: {key!r} is no hash", AGAIN)
    path = _weights_of(folder, key)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path}, a network of this classifier, cannot be read: {error.strerror}", AGAIN) from error
    if hashlib.sha256(data).hexdigest() != key:
        raise RunError(f"{path} is not what this classifier was saved with: it is damaged, or of another one", AGAIN)
    return data


def _place(member: Member, folder: Path) -> str:
    """Puts the weights of a network into the folder; returns their hash."""
    data = None
    if member.file is None:
        data = save_tensors({k: v.detach().contiguous().cpu() for k, v in member.network.state_dict().items()})
    key = hashlib.sha256(data).hexdigest() if data is not None else sha256_file(member.file)  # type: ignore[arg-type]
    path = _weights_of(folder, key)
    if path.exists() and sha256_file(path) == key:
        return key
    if data is not None:
        write_bytes(path, data)
        return key
    assert member.file is not None
    with atomic(path) as aside:
        try:
            os.link(member.file, aside)
        except OSError:  # another disk, or a file system without such links
            shutil.copyfile(member.file, aside)
    return key


def _network(data: bytes, made_by: str, scale: Any, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """A network with the weights in `data`, in eval mode.

    Raises:
        RunError: they do not fit it.
        ConfigError: it cannot be made.
    """
    plain, _, pretrained = made_by.partition("?")  # distributed weights need not be fetched to be replaced
    network = build_network(
        plain if pretrained == "pretrained" else made_by, shape, num_classes,
        head="linear" if scale is None else "cosine",
    )  # fmt: skip
    network.pretrained = pretrained == "pretrained"
    try:
        state: dict[str, Tensor] = load_tensors(data)
        if {"first.mean", "first.std"} <= set(state) and isinstance(network.first, torch.nn.Identity):
            network.first = Normalised(*(state[f"first.{name}"].flatten().tolist() for name in ("mean", "std")))
        network.load_state_dict(state)
    except (RuntimeError, SafetensorError) as error:
        raise RunError(
            f"the saved weights do not fit the network {made_by}: {error}",
            "use the code of the network that they were trained with",
        ) from error
    if isinstance(network.head, CosineHead) and scale is not None:
        network.head.scale = float(scale)
    # as it was trained: other formats round otherwise
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def _head_of(network: Classifier) -> dict[str, Any]:
    """What weights alone do not say of a head: the scale of cosines."""
    return {"scale": float(network.head.scale)} if isinstance(network.head, CosineHead) else {}


def _spelled(made_by: str | Maker) -> str:
    """The name by which a network can be made again.

    Raises:
        ConfigError: it is a function that no module has under its name.
    """
    if isinstance(made_by, str):
        return made_by
    module, name = getattr(made_by, "__module__", ""), getattr(made_by, "__qualname__", "")
    if module in ("", "__main__") or getattr(sys.modules.get(module), name, None) is not made_by:
        raise ConfigError(
            f"a classifier of the network {name_of(made_by)} cannot be saved: it could not be made again by name",
            "write a function (shape, num_classes) -> network into a module, and name it module:PACKAGE.MODULE:NAME",
        )
    return f"{PREFIX}{module}:{name}"


def _shown(labels: Sequence[Any]) -> str:
    return named([str(label) for label in labels], 5) if isinstance(labels[0], str) else f"{list(labels[:5])}"
