import numpy as np
import pytest
from PIL import Image

from imbdiff.data.decode import Target, fit, parse_size, resolve
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import noise


def bands(height: int, width: int) -> np.ndarray:
    """Left third black, middle third grey, right third white."""
    return np.repeat(np.repeat(np.array([[0, 128, 255]], np.uint8), width // 3, axis=1), height, axis=0)


def test_crop_keeps_the_middle():
    out = np.asarray(fit(Image.fromarray(bands(30, 90)), Target(10, 10, "crop")))
    assert out.shape == (10, 10)
    assert (out[:, 2:-2] == 128).all()


def test_stretch_keeps_everything():
    out = np.asarray(fit(Image.fromarray(bands(30, 90)), Target(9, 9, "stretch")))
    assert out[4, [0, 4, 8]].tolist() == [0, 128, 255]


def test_pad_keeps_everything_and_fills_with_the_borders_median():
    x = np.full((10, 30, 3), (10, 20, 30), np.uint8)
    x[4:6, 10:20] = 255
    out = np.asarray(fit(Image.fromarray(x), Target(30, 30, "pad")))
    assert (out[:9] == (10, 20, 30)).all()
    assert (out[21:] == (10, 20, 30)).all()
    assert out[14, 15].tolist() == [255, 255, 255]
    assert np.array_equal(out[10:20], x)


def test_target_is_height_then_width():
    for policy in ("crop", "pad", "stretch"):
        assert np.asarray(fit(Image.fromarray(noise(40, 20, 3)), Target(8, 12, policy))).shape == (8, 12, 3)


def test_no_resampling_at_the_right_size():
    image = Image.fromarray(noise(9, 5, 3))
    for policy in ("crop", "pad", "stretch"):
        assert fit(image, Target(9, 5, policy)) is image


def test_downscaling_is_antialiased():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    out = np.asarray(fit(Image.fromarray(checks.astype(np.uint8)), Target(8, 8, "crop")))
    assert np.abs(out.astype(int) - 127).max() < 20  # without antialiasing it would be black or white


def test_resolve_keeps_a_common_small_size():
    assert resolve({(28, 20): 5}, None, "crop", "x") == (Target(28, 20, "crop"), ())
    assert resolve({(64, 64): 5}, None, "crop", "x")[1] == ()


def test_resolve_scales_a_common_large_size_to_64_and_says_so():
    target, notes = resolve({(450, 600): 5}, None, "pad", "x")
    assert target == Target(48, 64, "pad")
    assert "450 x 600" in notes[0]
    assert "--data.size" in notes[0]
    assert resolve({(1024, 683): 5}, None, "crop", "x")[0].shape == (64, 40)
    assert resolve({(1000, 20): 5}, None, "crop", "x")[0].shape == (64, 8)


def test_mixed_sizes_need_a_policy():
    with pytest.raises(DataError) as error:
        resolve({(28, 28): 3, (30, 20): 9}, None, "crop", "x")
    assert "30 x 20" in error.value.message
    assert "28 x 28" in error.value.message
    assert "--data.size" in error.value.remedy
    assert resolve({(28, 28): 3, (30, 20): 9}, 16, "crop", "x")[0].shape == (16, 16)


@pytest.mark.parametrize("size", [0, -8, 3, True, 8.5, (8,), (8, 8, 3), (8, 2), "32"])
def test_impossible_sizes(size):
    with pytest.raises(ConfigError):
        parse_size(size)


def test_unknown_policy():
    with pytest.raises(ConfigError, match="zoom"):
        resolve({(8, 8): 1}, 8, "zoom", "x")
