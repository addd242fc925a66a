"""Extractors by name: what a command line or a configuration says, and the extractor that it means."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from imbdiff.metrics.extractors.backbones import hf_backbone, timm_backbone, torchvision_backbone
from imbdiff.metrics.extractors.base import Extractor
from imbdiff.metrics.extractors.baselines import RandomConv, RawPixels
from imbdiff.metrics.extractors.checkpoint import NetworkBuilder, checkpoint
from imbdiff.metrics.extractors.cifar_resnet import cifar_resnet
from imbdiff.metrics.extractors.inception import find_inception_weights, inception
from imbdiff.runtime.errors import ConfigError

__all__ = ["EXTRACTORS", "Entry", "find_inception_weights", "make_extractor"]


@dataclass(frozen=True)
class Entry:
    """One row of the table of extractors.

    Attributes:
        form: how it is asked for; capitals stand for what the user fills in.
        what: it is, in a sentence.
        needs: files, packages or network.
        number: what a Fréchet distance in its features is called.
    """

    form: str
    what: str
    needs: str
    number: str


EXTRACTORS = (
    Entry("random-conv", "fixed random convolutional network, 32 features; ranks only", "nothing", "FD[random-conv]"),
    Entry("raw-pixels", "the pixels themselves; ranks only", "nothing", "FD[raw-pixels]"),
    Entry("inception", "the Inception v3 of FID, 2,048 features", "its weights, cached or downloaded (96 MB)", "FID"),
    Entry("inception:FILE", "the same with weights from a file; FID only for the known file", "the file", "FID"),
    Entry(
        "cifar-resnet:FILE",
        "CIFAR-10 classifier, option-A ResNet-20 to 110, 64 features; it judges classes as well",
        "the file; images 32 x 32 RGB",
        "FD[cifar-resnetNN]",
    ),
    Entry("timm:NAME", "a backbone of timm; ranks only", "the extra timm, weights or network", "FD[timm:NAME]"),
    Entry(
        "torchvision:NAME",
        "a classifier of torchvision less its last layer; ranks only",
        "the extra torchvision, weights or network",
        "FD[torchvision:NAME]",
    ),
    Entry(
        "hf:NAME",
        "a transformers image model such as facebook/dinov2-small, or a folder with one; ranks only",
        "the extra hf, the folder or network",
        "FD[hf:NAME]",
    ),
    Entry(
        "checkpoint:ARCH:FILE",
        "your own weights; ARCH: a network of this project, cifar-resnetNN, inception, timm:NAME, torchvision:NAME",
        "the file (safetensors, or a state dict without Python objects)",
        "FD[ARCH:STEM@HASH]",
    ),
)
"""What there is, for ``imbdiff methods`` and the documentation."""


def make_extractor(
    spec: str,
    shape: tuple[int, int, int],
    *,
    device: str | torch.device = "cpu",
    inception_weights: str | Path | None = None,
    networks: Mapping[str, NetworkBuilder] | None = None,
) -> Extractor:
    """The extractor that `spec` names, checked against the images to come before any long work.

    Args:
        spec: one of the forms in :data:`EXTRACTORS`.
        shape: (H, W, C) of the images.
        inception_weights: for ``inception``, in place of torch's cache.
        networks: networks of this project that ``checkpoint:`` may name, see :func:`checkpoint`.

    Raises:
        ConfigError: there is no such extractor (the nearest name is given), or what it needs is missing.
        DataError: a file is not what it should be, or images of `shape` do not fit.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ConfigError(f"the shape of images is (H, W, C), not {shape}", "give three numbers")
    extractor = _make(spec.strip(), shape, device, inception_weights, networks)
    extractor.check(shape)
    return extractor


def _make(
    spec: str,
    shape: tuple[int, int, int],
    device: str | torch.device,
    inception_weights: str | Path | None,
    networks: Mapping[str, NetworkBuilder] | None,
) -> Extractor:
    kind, colon, rest = spec.partition(":")
    if colon and not rest:
        raise ConfigError(f"extractor {spec!r} names nothing after the colon", f"write {_form_of(kind)}")
    if spec == "random-conv":
        return RandomConv(shape[2], device=device)
    if spec == "raw-pixels":
        return RawPixels(shape)
    if kind == "inception":
        return inception(rest or inception_weights, device=device)
    if kind == "cifar-resnet" and rest:
        return cifar_resnet(Path(rest), device=device)
    if kind == "timm" and rest:
        return timm_backbone(rest, device=device)
    if kind == "torchvision" and rest:
        return torchvision_backbone(rest, device=device)
    if kind == "hf" and rest:
        return hf_backbone(rest, device=device)
    if kind == "checkpoint" and rest:
        return _checkpoint(spec, rest, shape, device, networks)
    raise ConfigError(f"unknown extractor {spec!r}", _list(spec, kind))


def _checkpoint(
    spec: str,
    rest: str,
    shape: tuple[int, int, int],
    device: str | torch.device,
    networks: Mapping[str, NetworkBuilder] | None,
) -> Extractor:
    parts = rest.split(":")
    words = 2 if parts[0] in ("timm", "torchvision") else 1
    architecture, file = ":".join(parts[:words]), ":".join(parts[words:])
    if not file:
        raise ConfigError(f"extractor {spec!r} names no file", "write checkpoint:ARCH:FILE")
    return checkpoint(architecture, Path(file), shape, networks=networks, device=device)


def _form_of(kind: str) -> str:
    forms = [e.form for e in EXTRACTORS if e.form.partition(":")[0] == kind]
    return " or ".join(forms) or f"one of: {', '.join(e.form for e in EXTRACTORS)}"


def _list(spec: str, kind: str) -> str:
    """The remedy for a name that is not known: the form meant, else the nearest, then all."""
    forms = [e.form for e in EXTRACTORS]
    names = list(dict.fromkeys(f.partition(":")[0] for f in forms))
    near = [kind] if kind in names else difflib.get_close_matches(kind.lower(), names, 1, cutoff=0.5)
    hint = f"did you mean {_form_of(near[0])}? " if near else ""
    return f"{hint}There are: {', '.join(forms)}"
