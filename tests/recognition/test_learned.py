"""What was learned, on made-up images and networks: noise, classes, training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import energy_distance as scipy_energy
from sklearn.datasets import load_digits

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition.learned import NOISE, at_chance, energy_distance, look, noise_of
from imbdiff.recognition.plan import FitPlan

NAMES = tuple("0123456789")


def digits(first: int, last: int) -> ImageSet:
    x, y = load_digits(return_X_y=True)
    x = np.repeat(np.repeat(x.reshape(-1, 8, 8, 1), 2, 1), 2, 2) * 255 / 16
    return ImageSet(x[first:last].astype(np.uint8), y[first:last].astype(np.int64), NAMES)


@pytest.fixture(scope="module")
def prepared() -> Any:
    return SimpleNamespace(train=digits(0, 300), val=None, test=digits(300, 600))


def changed(images: ImageSet, change: Any) -> ImageSet:
    random = np.random.default_rng(0)
    x = [np.clip(change(image.astype(float), random), 0, 255) for image in images.images]
    return ImageSet(np.array(x).astype(np.uint8), images.labels, images.class_names)


CHANGES = {
    "real": (lambda x, g: x, False),
    "darker": (lambda x, g: 0.6 * x, False),
    "blurred": (lambda x, g: gaussian_filter(x, (0.7, 0.7, 0)), False),
    "some noise": (lambda x, g: x + g.normal(0, 15, x.shape), False),
    "static": (lambda x, g: g.uniform(0, 255, x.shape), True),
    "mostly noise": (lambda x, g: 0.3 * x + g.normal(90, 60, x.shape), True),
    "flat": (lambda x, g: 0 * x + x.mean(), True),
    "blobs": (lambda x, g: 128 + 200 * gaussian_filter(g.normal(0, 1, x.shape), (2, 2, 0)), True),
}


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("classes", [range(10), (3,)])
def test_noise_is_told_from_real_images_whatever_their_tone(prepared: Any, kind: str, classes: Any) -> None:
    change, noise = CHANGES[kind]
    images = digits(600, 1500)
    made = changed(images.select(np.flatnonzero(np.isin(images.labels, list(classes)))), change)
    assert (noise_of(made, prepared) > NOISE) == noise


def test_with_few_images_nothing_is_said_of_noise(prepared: Any) -> None:
    assert noise_of(digits(600, 605), prepared) is None


def test_energy_distance_is_scipys_but_for_its_bias() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, 1500), random.normal(1, 1, 1200)
    found = energy_distance(a[:, None], b[:, None], np.full(1500, 1 / 1500), np.full(1200, 1 / 1200))
    assert found == pytest.approx(scipy_energy(a, b) ** 2, abs=2e-3)
    twice = energy_distance(np.r_[a, a][:, None], b[:, None], np.full(3000, 1 / 3000), np.full(1200, 1 / 1200))
    assert twice == pytest.approx(found, abs=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_chance_is_chance_whatever_is_guessed_and_a_little_skill_is_not(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.choice(40, 800, p=np.arange(1, 41) / 820)
    guesses = {
        "always one": np.zeros((3, 800), int), "uniform": random.integers(0, 40, (3, 800)),
        "by frequency": random.choice(labels, (3, 800)), "a part of the classes": random.integers(30, 40, (3, 800)),
    }  # fmt: skip
    assert at_chance(guesses, labels) is not None
    skilled = np.where(random.random((3, 800)) < 0.15, labels, guesses["uniform"])
    assert at_chance({**guesses, "skilled": skilled}, labels) is None
    assert at_chance(guesses, np.zeros(800, int)) is None  # one class: there is no chance to speak of


class Nearest(torch.nn.Module):
    """Puts an image into the class of the nearest of its examples."""

    def __init__(self, examples: ImageSet, labels: np.ndarray | None = None) -> None:
        super().__init__()
        self.examples, self.labels = examples, examples.labels if labels is None else labels


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch, prepared: Any) -> Any:
    def predict(network: Any, images: ImageSet) -> np.ndarray:
        a, b = (x.images.reshape(len(x), -1).astype(float) for x in (images, network.examples))
        return network.labels[((a[:, None] - b[None]) ** 2).sum(-1).argmin(1)]

    monkeypatch.setattr("imbdiff.recognition.learned.predict", predict)

    def run(synthetic: ImageSet, network: Any = None, steps: int = 1000) -> Any:
        plan = FitPlan(steps=steps, batch_size=64)
        return look(network or Nearest(prepared.train), "balanced softmax", plan, synthetic, prepared)

    return run


def test_good_images_of_a_trained_network_are_judged_without_a_warning(looked: Any) -> None:
    found = looked(digits(600, 800))
    assert (found.lack, found.warnings, found.fitted) == (None, (), 1.0)
    assert found.agreement > 0.8
    assert found.real == pytest.approx(found.agreement, abs=0.1)


@pytest.mark.parametrize("wrong", [0.2, 0.5, 0.8])
def test_many_images_of_another_class_are_warned_of_with_remedies(looked: Any, wrong: float) -> None:
    images = digits(600, 800)
    labels = images.labels.copy()
    labels[: int(200 * wrong)] = (labels[: int(200 * wrong)] + 1) % 10
    found = looked(ImageSet(images.images, labels, NAMES))
    assert found.lack is None
    (warning,) = found.warnings
    assert f"{100 * (1 - found.agreement):.0f} % of 200 synthetic images" in warning
    assert "--curate.policy agreement" in warning
    assert "--train.images" in warning


def test_images_that_do_not_show_their_classes_or_are_noise_leave_no_verdict(looked: Any) -> None:
    images = digits(600, 800)
    shuffled = ImageSet(images.images, np.random.default_rng(0).permutation(images.labels), NAMES)
    assert "chance" in looked(shuffled).lack.reason
    static = changed(images, CHANGES["static"][0])
    assert "noise" in looked(static).lack.reason
    # of one class alone chance says nothing
    one = images.select(np.flatnonzero(images.labels == 3))
    assert looked(one).lack is None


@pytest.mark.parametrize(("steps", "lacking"), [(20, True), (1000, False)])
def test_a_network_that_does_not_fit_its_own_images_yet_leaves_no_verdict(
    looked: Any, prepared: Any, steps: int, lacking: bool
) -> None:
    labels = np.random.default_rng(0).permutation(prepared.train.labels)
    labels[:60] = prepared.train.labels[:60]
    found = looked(digits(600, 800), Nearest(prepared.train, labels), steps)
    assert found.fitted < 0.4
    if lacking:
        assert "passes" in found.lack.reason
        # the remedy's number of steps settles it
        steps = int(found.lack.remedy.split()[-1])
        found = looked(digits(600, 800), Nearest(prepared.train, labels), steps)
    assert found.lack is None
