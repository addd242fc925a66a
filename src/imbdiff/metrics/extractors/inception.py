"""The extractor behind the name FID: an Inception v3 of 2015 with its weights.

Heusel et al. (2017) computed FID in the features of one particular file of weights. A number is called FID only where
the weights are that file, recognised by its SHA-256; any other file of the same layout is ``FD[inception-unknown]``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from imbdiff.metrics.extractors.base import (
    Extractor,
    as_tensor,
    check_rgb,
    hash_weights,
    in_chunks,
    softmax,
    to_rgb,
)
from imbdiff.metrics.extractors.inception_net import FEATURES, InceptionV3, resize_like_tf1
from imbdiff.metrics.extractors.weights import download, load_into, read_weights
from imbdiff.runtime.errors import ConfigError, DataError
from imbdiff.runtime.files import sha256_file

FID_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the file, as several public repositories state it independently of each other for their own downloads. It agrees
with the eight digits in the two names; this project has not had the file at hand."""
FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
"""What torch-fidelity and pytorch-fid call it: the same bytes under two names."""
URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
VERIFIED = False
"""Set it when features of the real weights have been compared with torch-fidelity's on real images."""


class InceptionFeatures(Extractor):
    """2,048 features ("pool3") of the FID Inception v3, and its 1,008 probabilities for the Inception score.

    Args:
        network: with its weights.
        sha256: of the weight file, or None for a network that came from no file.
        device: where it runs.
    """

    preprocessing = (
        "grey repeated to RGB; uint8 to float32; bilinear resize to 299 x 299 with the sampling of TensorFlow 1 "
        "(no half-pixel centres, no antialias), as torch-fidelity does; (x - 128) / 128"
    )
    dim = FEATURES
    role = "judge"
    pretrained = True
    max_batch = 64  # a batch of 256 at 299 x 299 would take gigabytes

    def __init__(self, network: InceptionV3, sha256: str | None = None, *, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.is_fid = sha256 == FID_SHA256
        self.sha256 = sha256
        self.name = "inception-v3-fid" if self.is_fid else "inception-unknown"
        self.verified = VERIFIED if self.is_fid else None
        # what the field compares between papers, though its features were learned from other images
        self.ranking_only = not self.is_fid
        self.trained_on_note = "ImageNet (ILSVRC 2012 training images)" if self.is_fid else "not known"
        known = "the FID weights" if self.is_fid else "not one of the known FID files"
        self.weights_note = f"SHA-256 {sha256 or 'none'}: {known}" + (
            "; unverified: never run against the real weights by this project" if self.verified is False else ""
        )
        self.fingerprint = hash_weights(f"inception-v3 1 {self.preprocessing}", network.state_dict().values())

    def check(self, shape: tuple[int, ...]) -> None:
        check_rgb(self.name, shape, least=2)

    def _batch(self, x: np.ndarray) -> np.ndarray:
        h = (resize_like_tf1(to_rgb(as_tensor(x, self.device))) - 128) / 128
        return self.network(h).cpu().numpy()

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """(N, 1008) float32: softmax of features @ W^T *without* the bias, as the Inception score is computed by all.

        The graph that Salimans et al. (2016) published multiplies by the weights of the last layer and leaves its bias
        out; torch-fidelity calls it ``logits_unbiased``.
        """
        weight = self.network.fc.weight
        return in_chunks(features, lambda rows: softmax(functional.linear(rows, weight)), self.device)


def load_inception(weights: str | Path | None = None, *, device: str | torch.device = "cpu") -> InceptionFeatures:
    """The FID Inception, with weights from a file, from torch's cache, or from the network.

    Args:
        weights: one of :data:`FILES`, or any state dict of the same layout (never called FID). Not given:
            ``$TORCH_HOME/hub/checkpoints``, where torch-fidelity and pytorch-fid keep theirs; downloaded to there once.

    Raises:
        ConfigError: there is no file and no network; names the file, its hash, its address and where to put it.
        DataError: the file is damaged, of another layout, or a program (as NVIDIA's file of these weights is).
    """
    path = _places()[0] if weights is None else Path(weights)
    remedy = f"fetch {URL} (SHA-256 {FID_SHA256}), put it at {path}, or give it with --inception-weights FILE"
    if weights is None:
        path = find_inception_weights() or download(URL, path, FID_SHA256, remedy)
    elif not path.is_file():
        raise ConfigError(f"there is no file of Inception weights at {path}", remedy)
    sha256 = sha256_file(path)
    if weights is None and sha256 != FID_SHA256:
        raise DataError(f"{path} has SHA-256 {sha256}, not {FID_SHA256}", f"remove it; then {remedy}")
    network = InceptionV3()
    load_into(network, read_weights(path), path, "the FID Inception v3")
    return InceptionFeatures(network, sha256, device=device)


def find_inception_weights() -> Path | None:
    """The weights in torch's cache, under either of their names, or None. Nothing is downloaded, nothing is hashed."""
    return next((p for p in _places() if p.is_file()), None)


def _places() -> list[Path]:
    return [Path(torch.hub.get_dir()) / "checkpoints" / name for name in FILES]
