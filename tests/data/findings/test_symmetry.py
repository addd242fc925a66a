import numpy as np
import pytest

from imbdiff.data.findings.look import Look
from imbdiff.data.findings.symmetry import CHANGES, MOST, level, symmetry
from imbdiff.data.source import pixel_hash, smaller
from tests.data.test_near_duplicates import _digits, _smooth


def look(x, y=None):
    small = np.stack([smaller(image) for image in x])
    y = np.zeros(len(x), np.int64) if y is None else y
    ids = tuple(map(str, range(len(x))))
    return Look("train", ids, y, tuple(pixel_hash(image) for image in x), small, np.arange(len(x)))


def test_images_without_an_orientation_may_be_mirrored_and_turned():
    found = symmetry(look(_smooth(700, 1)), 1, True)
    for change in CHANGES:
        assert abs(found[change]["share"] - 0.5) < 0.06, change
        assert found[change]["low"] < 0.5 < found[change]["high"]
        assert found[change]["verdict"] == "safe"
    assert found["suggest"] == "turns"


def test_each_change_is_told_from_the_others():
    x = _smooth(600, 2).astype(int)
    x[:, 4:12] += 60  # a bright stripe above the middle
    found = symmetry(look(np.clip(x, 0, 255).astype(np.uint8)), 1, True)
    assert found["left_right"]["verdict"] == "safe"
    assert found["up_down"]["verdict"] == found["quarter_turn"]["verdict"] == "against"
    assert found["suggest"] == "mirror"
    found = symmetry(look(np.clip(x, 0, 255).astype(np.uint8).transpose(0, 2, 1, 3)), 1, True)
    assert (found["left_right"]["verdict"], found["up_down"]["verdict"]) == ("against", "safe")
    assert found["suggest"] == "none"


def test_classes_are_compared_within_themselves():
    """Mirroring exchanges the two classes: the set as a whole is symmetric, its classes are not."""
    x = _smooth(600, 3).astype(int)
    x[:300, :, 4:12] += 60
    x[300:, :, 20:28] += 60
    x, y = np.clip(x, 0, 255).astype(np.uint8), np.repeat([0, 1], 300).astype(np.int64)
    assert symmetry(look(x), 1, True)["left_right"]["verdict"] != "against"
    assert symmetry(look(x, y), 2, True)["left_right"]["verdict"] == "against"


def test_light_from_one_side_is_no_orientation():
    x = _smooth(600, 4) * 0.6 + np.linspace(0, 100, 32)[None, :, None, None]
    assert symmetry(look(np.clip(x, 0, 255).astype(np.uint8)), 1, True)["up_down"]["verdict"] == "safe"


def test_against_a_plain_loop():
    x = _smooth(60, 5)
    x = np.concatenate([x, x[:1, :, ::-1]])  # the mirror image of another one is as near as that one
    y = (np.arange(61) % 3).astype(np.int64)
    images = look(x, y)
    flat = level(images.small)
    turned = level(np.ascontiguousarray(images.small[:, :, ::-1]))
    hits = 0
    for i in range(61):
        others = [j for j in range(61) if j != i and y[j] == y[i]]
        own = min(np.linalg.norm(flat[i] - flat[j]) for j in others)
        changed = min(np.linalg.norm(flat[i] - turned[j]) for j in others)
        hits += own < changed
    assert symmetry(images, 3, True)["left_right"]["share"] == pytest.approx(hits / 61, abs=1e-4)


def test_level_takes_off_planes_only():
    g = np.linspace(-1, 1, 8)
    plane = 120 + 30 * g[:, None, None] - 20 * g[None, :, None]
    bump = plane.copy()
    bump[3, 4] += 60
    found = level(np.stack([np.rint(plane), np.rint(bump)]).astype(np.uint8))
    assert np.abs(found[0]).max() < 0.2
    assert found[1].argmax() == 3 * 8 + 4
    np.testing.assert_allclose(np.sqrt((found[1] ** 2).mean()), 1, atol=1e-5)


def test_digits_must_not_be_mirrored():
    train, _ = _digits()
    found = symmetry(look(train.images, train.labels), 10, True)
    assert all(found[change]["verdict"] == "against" for change in CHANGES)
    assert all(found[change]["share"] > 0.9 for change in CHANGES)
    assert found["suggest"] == "none"


def test_too_few_images_say_nothing():
    for n in (12, 40):
        found = symmetry(look(_smooth(n, 6)), 1, True)
        assert all(found[change]["verdict"] == "unclear" for change in CHANGES)
        assert found["left_right"]["images"] == n
    assert found["suggest"] is None
    assert symmetry(look(_smooth(9, 6)), 1, True)["left_right"]["share"] is None
    flat = look(np.full((30, 8, 8, 1), 7, np.uint8))
    assert symmetry(flat, 1, True)["left_right"]["share"] is None


def test_oblong_images_are_not_judged_by_turns_and_large_sets_are_capped():
    many = np.random.default_rng(0).integers(0, 256, (MOST + 500, 8, 8, 3), dtype=np.uint8)
    n = len(many)
    images = Look(
        "train", tuple(map(str, range(n))), np.zeros(n, np.int64), tuple(map(pixel_hash, many)), many, np.arange(n)
    )
    found = symmetry(images.select(np.arange(300)), 1, square=False)
    assert found["quarter_turn"]["share"] is None
    assert found["left_right"]["images"] == 300
    assert symmetry(images, 1, False)["images"] == MOST
