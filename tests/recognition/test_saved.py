"""The classifier that a comparison leaves: what it predicts, on disk and back, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from scipy.special import softmax

from imbdiff.data.imageset import ImageSet
from imbdiff.recognition import saved
from imbdiff.recognition.arms import Arm, make_arms
from imbdiff.recognition.comparison import Classified, classify, kept_arms
from imbdiff.recognition.decision import Decision
from imbdiff.recognition.fitting import Fit
from imbdiff.recognition.networks import Classifier
from imbdiff.recognition.plan import FitPlan
from imbdiff.recognition.recipes import get_recipe
from imbdiff.recognition.saved import DESCRIPTION, ImageClassifier, Member, is_whole
from imbdiff.runtime.errors import ConfigError, DataError, RunError

from .conftest import NAMES, make_prepared, make_set, tiny

PLAN = FitPlan(tiny, steps=12, batch_size=8)
ARMS = make_arms(ensemble=1)
SEEDS = (3, 4)


def compared(folder: Path | None, synthetic: ImageSet | None, val: ImageSet | None) -> tuple[Any, Classified]:
    prepared = make_prepared(val)
    prepared.manifest = {"resize": "pad"}
    found = classify(
        prepared, synthetic, plan=PLAN, arms=ARMS, primary=ARMS[-1].name, seeds=SEEDS, folder=folder, keep_weights=True
    )  # fmt: skip
    return prepared, found


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Classified]:
    folder = tmp_path_factory.mktemp("comparison")
    return folder, *compared(folder, make_set((20, 20, 20), 9), make_set((8, 8, 8), 1))


@pytest.fixture
def classifier(once: tuple[Path, Any, Classified]) -> ImageClassifier:
    return next(iter(once[2].classifiers.values()))


def members_of(folder: Path, classifier: ImageClassifier) -> list[Path]:
    """The results of the trainings of the first seed: one without synthetic images, one with them."""
    names = [member.file.name.removesuffix(".network.safetensors") for member in classifier.members if member.file]
    assert [name.rpartition("-")[2] for name in names] == ["seed3", "seed3"]
    assert [name.startswith("synthetic+balanced-softmax") for name in names] == [False, True]
    return [folder / f"{name}.safetensors" for name in names]


def test_probabilities_are_those_of_the_comparison(once, classifier: ImageClassifier) -> None:  # type: ignore[no-untyped-def]
    folder, prepared, found = once
    parts = [load_file(path)["test"] for path in members_of(folder, classifier)]
    p = np.mean(np.stack(parts).astype(np.float64), axis=0)
    result = next(r for r in found.arms if r.arm.name == ARMS[-1].name)
    how, shares = result.decisions[0], np.bincount(prepared.train.labels) / len(prepared.train)
    expected = softmax((np.log(p) - how.tau * np.log(shares)) / how.temperature, axis=1)
    q = classifier.predict_proba(prepared.test.images)
    np.testing.assert_allclose(q, expected, atol=1e-6)
    assert q.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
    right = classifier.predict(prepared.test.images) == np.array(NAMES)[prepared.test.labels]
    assert classifier.score(prepared.test.images, np.array(NAMES)[prepared.test.labels]) == right.mean()
    recalls = [right[prepared.test.labels == k].mean() for k in range(3)]
    assert classifier.about["balanced_accuracy"] == pytest.approx(np.mean(recalls))


def test_the_arm_of_the_verdict_leads_and_the_placebo_is_not_kept(once) -> None:  # type: ignore[no-untyped-def]
    folder, _, found = once
    names = list(found.classifiers)
    assert names[0] == ARMS[-1].name
    assert "2 x balanced softmax" in names
    assert not any("repeated" in name for name in names)
    kept = [path.name for path in folder.glob("*.network.safetensors")]
    later = [name for name in kept if "seed4" in name]
    assert len(kept) > len(later)
    assert len(later) <= len(ARMS[-1].members)  # those that teach
    assert not [name for name in kept if "repeated" in name or name.startswith("ce")]


def test_without_synthetic_images_the_control_leads(tmp_path: Path) -> None:
    _, found = compared(None, None, make_set((8, 8, 8), 1))
    assert next(iter(found.classifiers)) == found.control.arm
    _, found = compared(tmp_path, None, None)  # nothing chose among the controls
    assert found.control.arm is None
    assert next(iter(found.classifiers)) == "2 x balanced softmax"


def test_saved_and_loaded_is_the_same(classifier: ImageClassifier, once, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    test = once[1].test.images
    before = classifier.predict_proba(test)
    classifier.save(tmp_path / "first")
    first = ImageClassifier.load(tmp_path / "first")
    assert (first.predict_proba(test) == before).all()
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    first.save(tmp_path / "second")
    second = ImageClassifier.load(tmp_path / "second")
    assert (second.predict_proba(test) == before).all()
    for loaded in (first, second):
        assert loaded.classes_.tolist() == list(NAMES)
        assert (loaded.shape, loaded.resize) == ((8, 10, 1), "pad")
        assert (loaded.decision, loaded.trained_on) == (classifier.decision, classifier.trained_on)
        assert dict(loaded.about) == dict(classifier.about)
    assert is_whole(tmp_path / "second")


def coloured(images: ImageSet) -> ImageSet:
    return replace(images, images=np.repeat(images.images, 3, axis=3))


@pytest.mark.parametrize("recipe", ["ldam-drw", "logit-adjustment", "tau-norm", "lws"])
def test_heads_of_every_kind_come_back(recipe: str, tmp_path: Path) -> None:
    images = make_set((20, 10, 6), 0)
    network = Fit(images, PLAN, get_recipe(recipe)).run()
    own = single(network, tiny)
    own.save(tmp_path)
    assert (ImageClassifier.load(tmp_path).predict_proba(images.images) == own.predict_proba(images.images)).all()


def test_standardised_pixels_come_back(tmp_path: Path) -> None:
    images = coloured(make_set((20, 10, 6), 0))
    network = Fit(images, replace(PLAN, protocol="cifar-lt"), get_recipe("ce")).run()
    own = single(network, tiny, (8, 10, 3))
    own.save(tmp_path)
    assert (ImageClassifier.load(tmp_path).predict_proba(images.images) == own.predict_proba(images.images)).all()


def test_distributed_weights_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    build = saved.build_network

    def counted(name: str, *rest: Any, **options: Any) -> Classifier:
        asked.append(name)
        return build(tiny, *rest, **options)

    network = tiny((8, 10, 1), 3).eval()
    single(network, "timm:resnet18?pretrained").save(tmp_path)
    monkeypatch.setattr(saved, "build_network", counted)
    assert ImageClassifier.load(tmp_path).members[0].network.pretrained
    assert asked == ["timm:resnet18"]


def single(network: Classifier, made_by: Any = tiny, shape: tuple[int, int, int] = (8, 10, 1)) -> ImageClassifier:
    decision, log_prior = Decision(0.5, 2.0), np.log([0.5, 0.3, 0.2])
    return ImageClassifier([Member(network, made_by)], np.array([7, 3, 5]), shape, decision, log_prior)


def untrained(seed: int = 0, made_by: Any = tiny) -> ImageClassifier:
    torch.manual_seed(seed)
    return single(tiny((8, 10, 1), 3).eval(), made_by)


def test_numbers_as_labels(tmp_path: Path) -> None:
    own = untrained()
    own.save(tmp_path)
    x = make_set((2, 2, 2), 0).images
    loaded = ImageClassifier.load(tmp_path)
    assert set(loaded.predict(x).tolist()) <= {7, 3, 5}
    assert loaded.score(x, loaded.predict(x)) == 1.0
    with pytest.raises(DataError, match=r"'7'.*\[7, 3, 5\]"):
        loaded.score(x, np.array(["7"] * 6))
    assert loaded.predict(x[:0]).shape == (0,)
    assert loaded.predict_proba(x[:0]).shape == (0, 3)
    assert loaded.predict(x[..., 0]).tolist() == loaded.predict(x).tolist()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 8, 10, 1), np.float32), "float32"),
        (np.zeros((2, 8, 8, 1), np.uint8), r"\(2, 8, 8, 1\).*\(N, 8, 10\)"),
        (np.zeros((2, 8, 10, 3), np.uint8), "grey"),
        (np.zeros((8, 10), np.uint8), r"X\[None\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(x: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        untrained().predict_proba(x)


def test_read_brings_images_to_the_classifier_and_names_bad_ones(tmp_path: Path) -> None:
    own = replace(untrained(), resize="pad")
    Image.fromarray(np.full((20, 40, 3), 90, np.uint8)).save(tmp_path / "wide.png")
    x = own.read([tmp_path / "wide.png", str(tmp_path / "wide.png"), Image.new("L", (10, 8), 90)])
    assert x.shape == (3, 8, 10, 1)
    assert (x == 90).all()
    assert own.predict(x).shape == (3,)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        own.read([tmp_path / "wide.png", tmp_path / "bad.png"])


def test_copies_of_training_images_are_found(classifier: ImageClassifier, once) -> None:  # type: ignore[no-untyped-def]
    train, test = once[1].train.images, once[1].test.images
    x = np.concatenate([train[:3], test[:2], np.zeros((1, 8, 10, 1), np.uint8)])
    assert classifier.copies(x).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("harm", ["missing", "cut", "another"])
def test_a_file_that_is_not_the_saved_one_is_named(harm: str, tmp_path: Path) -> None:
    untrained(0).save(tmp_path / "own")
    untrained(1).save(tmp_path / "other")
    [path] = (tmp_path / "own").glob("*.safetensors")
    [other] = (tmp_path / "other").glob("*.safetensors")
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-8] if harm == "cut" else other.read_bytes())
    with pytest.raises(RunError, match=path.name):
        ImageClassifier.load(tmp_path / "own")
    assert not is_whole(tmp_path / "own")
    untrained(0).save(tmp_path / "own")  # the remedy
    assert is_whole(tmp_path / "own")


def test_a_description_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no saved classifier"):
        ImageClassifier.load(tmp_path)
    untrained().save(tmp_path)
    path = tmp_path / DESCRIPTION
    whole = json.loads(path.read_text())
    for harm in ({"format": "other/1"}, {"shape": "x"}, {"members": [{"network": "tiny", "sha256": "../../x"}]}):
        path.write_text(json.dumps({**whole, **harm}))
        with pytest.raises(RunError):
            ImageClassifier.load(tmp_path)
    path.write_text("{")
    with pytest.raises(RunError, match="damaged"):
        ImageClassifier.load(tmp_path)


def test_a_killed_saving_leaves_the_old_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = make_set((2, 2, 2), 0).images
    old, new = untrained(0), untrained(1)
    old.save(tmp_path)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saved, "write_json", dies)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)
    monkeypatch.undo()
    assert (ImageClassifier.load(tmp_path).predict_proba(x) == old.predict_proba(x)).all()
    new.save(tmp_path)
    assert (ImageClassifier.load(tmp_path).predict_proba(x) == new.predict_proba(x)).all()
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_network_without_a_name_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="module:PACKAGE"):
        untrained(made_by=lambda shape, classes: tiny(shape, classes)).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_that_were_altered_are_trained_again(once, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Files of a run's trainings: a damaged one does not become a member."""
    prepared, found = compared(tmp_path, None, make_set((8, 8, 8), 1))
    member = next(iter(found.classifiers.values())).members[0]
    before = next(iter(found.classifiers.values())).predict_proba(prepared.test.images)
    assert member.file is not None
    member.file.write_bytes(b"damaged")
    _, again = compared(tmp_path, None, make_set((8, 8, 8), 1))
    assert (next(iter(again.classifiers.values())).predict_proba(prepared.test.images) == before).all()


def test_a_comparison_without_a_folder_gives_the_same(once) -> None:  # type: ignore[no-untyped-def]
    _, prepared, found = once
    _, other = compared(None, make_set((20, 20, 20), 9), make_set((8, 8, 8), 1))
    for name, own in found.classifiers.items():
        np.testing.assert_allclose(
            own.predict_proba(prepared.test.images), other.classifiers[name].predict_proba(prepared.test.images),
            atol=1e-6,
        )  # fmt: skip


def test_distilled_networks_are_kept_where_there_are_some() -> None:
    distilled = Arm("ce", ARMS[-1].members[1].use, teacher=ARMS[-1])
    names = [arm.name for arm in kept_arms([*ARMS, distilled], ARMS[-1].name)]
    assert names[0] == ARMS[-1].name
    assert distilled.name in names
