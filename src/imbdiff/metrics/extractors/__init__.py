"""Extractors: images -> feature rows. :func:`make_extractor` makes one from its name; each kind has a file."""

from imbdiff.metrics.extractors.base import Extractor, Role, to_unit
from imbdiff.metrics.extractors.baselines import RandomConv, RawPixels
from imbdiff.metrics.extractors.catalogue import EXTRACTORS, make_extractor
from imbdiff.metrics.extractors.cifar_resnet import CifarResNet, CifarResNetFeatures
from imbdiff.metrics.extractors.classifier import ClassifierFeatures, FeatureNetwork
from imbdiff.metrics.extractors.inception import InceptionFeatures

__all__ = [
    "EXTRACTORS",
    "CifarResNet",
    "CifarResNetFeatures",
    "ClassifierFeatures",
    "Extractor",
    "FeatureNetwork",
    "InceptionFeatures",
    "RandomConv",
    "RawPixels",
    "Role",
    "make_extractor",
    "to_unit",
]
