"""Networks that are made elsewhere: by timm, by torchvision, or by a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from imbdiff.metrics.extractors.pretrained import Backbone, timm_backbone, torchvision_backbone
from imbdiff.recognition.networks.classifier import Classifier, Normalised, without
from imbdiff.runtime.errors import ConfigError
from imbdiff.runtime.optional import optional
from imbdiff.runtime.tables import imported

Maker = Callable[[tuple[int, int, int], int], nn.Module]
"""(shape (H, W, C), num_classes) -> a network whose input is (B, C, H, W) in [-1, 1]."""

LIBRARIES = ("timm", "torchvision")
OTHERWISE = "use one of the networks that come with this package"
HOW = "give the function as module:PACKAGE.MODULE:FUNCTION, with its folder in PYTHONPATH"


def parse_library(name: str) -> tuple[str, str, bool] | None:
    """(library, model, pretrained) of ``timm:NAME[?pretrained]`` or ``torchvision:NAME[?pretrained]``, or None.

    Raises:
        ConfigError: no model is named, or what follows the question mark is not "pretrained".
    """
    library, colon, rest = name.partition(":")
    if library not in LIBRARIES or not colon:
        return None
    model, question, option = rest.partition("?")
    if not model or (question and option != "pretrained"):
        raise ConfigError(f"network {name!r} cannot be read", f"write {library}:NAME or {library}:NAME?pretrained")
    return library, model, bool(question)


def check_library(library: str, model: str) -> None:
    """Refuses a model that the library does not know, without building it.

    Raises:
        ConfigError: the library is not installed, or knows no such model.
    """
    what = f"the network {library}:{model}"
    if library == "timm":
        timm = optional("timm", "timm", what, OTHERWISE)
        base = model.partition(".")[0]
        if not timm.is_model(base):
            near = ", ".join(timm.list_models(f"*{base[:6]}*")[:5])
            raise ConfigError(f"timm has no model {model!r}", f"see timm.list_models(); near: {near or 'none'}")
        return
    models = optional("torchvision.models", "torchvision", what, OTHERWISE)
    known = models.list_models(module=models)
    if model not in known:
        near = ", ".join([m for m in known if m.startswith(model[:4])][:5])
        raise ConfigError(f"torchvision has no classifier {model!r}", f"near: {near or 'none'}")


def from_library(
    library: str, model: str, pretrained: bool, shape: tuple[int, int, int], num_classes: int
) -> Classifier:
    """A model of timm or torchvision with a new head; its weights are drawn from torch's global generator.

    With `pretrained` they are those that the library distributes; images are then standardised as they were for it,
    and the network says that it is pretrained. Grey images are repeated to RGB where the weights or torchvision need
    three channels; timm makes networks of any number.

    Raises:
        ConfigError: the library is not there or does not know the model, its weights are out of reach, or images of
            this shape are not what it takes.
    """
    check_library(library, model)
    channels = shape[2]
    name = f"{library}:{model}"
    if (pretrained or library == "torchvision") and channels not in (1, 3):
        raise ConfigError(f"{name} takes RGB images, not {channels} channels", f"or grey ones; {OTHERWISE}")
    if pretrained:
        found = timm_backbone(model) if library == "timm" else torchvision_backbone(model)
        body: nn.Module = nn.Sequential(*_rgb(channels), *_standard(found), _trainable(found.network))
    elif library == "timm":
        body = _timm(model, shape)
    else:
        body = nn.Sequential(*_rgb(channels), _torchvision(model))
    classifier = Classifier(body, _feature_dim(body, shape, name), num_classes)
    classifier.pretrained = pretrained
    return classifier


def _rgb(channels: int) -> list[nn.Module]:
    return [RepeatChannels(3)] if channels == 1 else []


class RepeatChannels(nn.Module):
    """(B, 1, H, W) -> (B, times, H, W)."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, self.times, -1, -1)


def _standard(found: Backbone) -> list[nn.Module]:
    return [Normalised(found.mean, found.std)]


def _trainable(network: nn.Module) -> nn.Module:
    # extractors are frozen
    return _one_output(network).requires_grad_(True)


def _timm(model: str, shape: tuple[int, int, int]) -> nn.Module:
    timm = optional("timm", "timm", f"the network timm:{model}", OTHERWISE)
    h, w, channels = shape
    why = ""
    # networks with position embeddings are made for one size and must be told; others do not know the option
    for more in ({}, {"img_size": (h, w)}):
        try:
            network = timm.create_model(model, pretrained=False, num_classes=0, in_chans=channels, **more)
            with torch.no_grad():
                network.eval()(torch.zeros(2, channels, h, w))
            return network.train()
        except (RuntimeError, OSError, ValueError, TypeError, AssertionError) as error:
            why = why or _first_line(error)
    raise ConfigError(f"timm:{model} cannot be made for images of {h} x {w} x {channels}: {why}", OTHERWISE)


def _torchvision(model: str) -> nn.Module:
    models = optional("torchvision.models", "torchvision", f"the network torchvision:{model}", OTHERWISE)
    inside: dict[str, Any] = {}
    if model in ("googlenet", "inception_v3"):
        inside = {"init_weights": True, "aux_logits": False}
    network = models.get_model(model, weights=None, **inside)
    last = [key for key, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not last:
        raise ConfigError(f"torchvision:{model} has no linear last layer", "choose another model")
    return without(network, last[-1])


def _one_output(network: Any) -> nn.Module:
    """Without the auxiliary classifiers of GoogLeNet and Inception, which make training's output a tuple."""
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for name in ("aux1", "aux2", "AuxLogits"):
            if hasattr(network, name):
                setattr(network, name, None)
    return network


def _feature_dim(body: nn.Module, shape: tuple[int, int, int], name: str) -> int:
    h, w, channels = shape
    was = body.training
    try:
        with torch.no_grad():
            found = body.eval()(torch.zeros(2, channels, h, w))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{name} does not take images of {h} x {w}: {_first_line(error)}", OTHERWISE) from error
    finally:
        body.train(was)
    if not isinstance(found, Tensor) or found.ndim != 2:
        what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"{name} gives features {what}, not (B, D)", "choose another model")
    return int(found.shape[1])


def find_maker(name: str) -> Maker:
    """The function that ``module:PACKAGE.MODULE:FUNCTION`` names.

    Raises:
        ConfigError: the module does not import, or has no such function.
    """
    found = imported(name, "network")
    if not callable(found):
        raise ConfigError(f"network {name!r}: it is a {type(found).__name__}, and cannot be called", HOW)
    return found


def from_maker(make: Maker, name: str, shape: tuple[int, int, int], num_classes: int) -> Classifier:
    """The user's own network as a classifier; see :meth:`Classifier.of`.

    Raises:
        ConfigError: it is not a network, does not take images of this shape, its logits are not (B, num_classes), or
            its linear layer of `num_classes` outputs is not what makes them.
    """
    network = make(shape, num_classes)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{name} gives a {type(network).__name__}, not a torch.nn.Module", "return the network")
    wanted = probe(network, name, shape, num_classes)
    classifier = Classifier.of(network, num_classes)
    if classifier is network:
        return classifier
    try:
        same = torch.allclose(probe(classifier, name, shape, num_classes), wanted, equal_nan=True)
    except ConfigError:
        same = False  # the rest does not run without that layer
    if not same:
        raise ConfigError(
            f"{name}: the last linear layer of {num_classes} outputs is not the one that makes the logits",
            "give the network `features`, `head` and `feature_dim`",
        )
    return classifier


def probe(network: nn.Module, name: str, shape: tuple[int, int, int], num_classes: int) -> Tensor:
    """(2, num_classes) logits of two images in evaluation mode.

    Raises:
        ConfigError: the network fails on them, or gives something else.
    """
    h, w, channels = shape
    x = torch.linspace(-1, 1, 2 * channels * h * w).reshape(2, channels, h, w)
    was = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(x)
    except Exception as error:  # whatever the user's own network raises
        raise ConfigError(
            f"{name} fails on 2 images of {h} x {w} x {channels}: {type(error).__name__}: {_first_line(error)}",
            "it must take (B, C, H, W) float32 in [-1, 1]",
        ) from error
    finally:
        network.train(was)
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        what = f"of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ConfigError(f"{name} gives {what} for 2 images", f"it must give (2, {num_classes}) logits")
    return logits


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
