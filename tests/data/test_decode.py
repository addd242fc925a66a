"""Every file type and mode that a user's folder may hold, and sizes."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imbdiff.data import decode as decode_module
from imbdiff.data.decode import Target, UnusableImageError, decode, fit, parse_size, read_header, resolve
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import encoded, noise, write


def test_rgb_and_grey_come_back_exactly(tmp_path):
    x = noise(5, 7, 3)
    path = write(tmp_path / "a.png", x)
    assert np.array_equal(decode(path, None, grey=False), x)
    header = read_header(path)
    assert (header.size, header.mode, header.grey) == ((5, 7), "RGB", False)
    grey = write(tmp_path / "b.png", x[..., 0])
    assert np.array_equal(decode(grey, None, grey=True), x[..., :1])
    assert np.array_equal(decode(grey, None, grey=False), np.repeat(x[..., :1], 3, axis=2))
    assert read_header(grey).grey


def palette(*colours, **options):
    image = Image.new("P", (len(colours), 1))
    image.putpalette([v for colour in colours for v in colour])
    image.putdata(range(len(colours)))
    return encoded(image, **options)


RGBA = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
CYAN = Image.fromarray(np.array([[[255, 0, 0, 0]]], np.uint8), "CMYK")
DEEP = np.array([[0, 257 * 7, 257 * 7 + 129, 65535]], np.uint16)
FRAMES = [Image.new("RGB", (1, 1), colour) for colour in ("red", "blue")]


@pytest.mark.parametrize(
    ("data", "grey", "values"),
    [
        (encoded(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")), True, [0, 255]),
        # alpha 51 = 20 %: 0.2 * colour + 0.8 * 255
        (encoded(RGBA), False, [[200, 100, 0], [255, 255, 255], [244, 224, 204]]),
        (encoded(Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA")), True, [10, 255]),
        (palette((255, 0, 0), (0, 0, 255)), False, [[255, 0, 0], [0, 0, 255]]),
        (palette((255, 0, 0), (0, 0, 255), transparency=1), False, [[255, 0, 0], [255, 255, 255]]),
        (palette((252,) * 3, (5,) * 3), True, [252, 5]),
        (encoded(DEEP), True, [0, 7, 8, 255]),
        (encoded(DEEP, "TIFF"), True, [0, 7, 8, 255]),
        (b"P5 2 1 65535\n" + struct.pack(">HH", 257 * 3, 65535), True, [3, 255]),
        (encoded(CYAN, "TIFF"), False, [[0, 255, 255]]),
        (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), False, [[255, 0, 0]]),
    ],
)
def test_modes(tmp_path, data, grey, values):
    (tmp_path / "a.png").write_bytes(data)
    assert read_header(tmp_path / "a.png").grey == grey
    found = decode(tmp_path / "a.png", None, grey)[0]
    assert np.abs(found.astype(int).squeeze(-1) - values if grey else found.astype(int) - values).max() <= 1


def test_values_without_a_set_range_are_refused(tmp_path):
    Image.fromarray(np.array([[0.5, 2.0]], np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(UnusableImageError, match="floating-point"):
        decode(tmp_path / "f.tif", None, grey=True)
    with pytest.raises(UnusableImageError, match="70000"):
        decode(tmp_path / "i.tif", None, grey=True)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(("orientation", "turned"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation_is_applied(tmp_path, suffix, orientation, turned):
    x = np.zeros((16, 32, 3), np.uint8)
    x[:8, :16] = 255  # one white corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / f"a.{suffix}", x, exif=exif, quality=95)
    expected = np.rot90(x, turned)  # 6: the camera was turned, rotate by 90 degrees clockwise = 3 counter-clockwise
    got = decode(path, None, grey=False)
    assert read_header(path).size == got.shape[:2] == expected.shape[:2]
    assert np.abs(got.astype(int) - expected).mean() < 10


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "bmp", "gif", "tif", "tiff", "webp", "ppm"])
def test_all_listed_formats_open(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", np.full((8, 8, 3), 128, np.uint8))
    assert np.abs(decode(path, None, grey=False).astype(int) - 128).max() <= 3
    assert f".{suffix}" in decode_module.EXTENSIONS


WHOLE = encoded(noise(64, 64, 3))


@pytest.mark.parametrize(
    ("data", "why", "header"),
    [
        (b"", "0 bytes", False),
        (b"hello", "not an image", False),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n", "not an image", False),  # not even tried
        (WHOLE[: len(WHOLE) // 2], "damaged", True),
    ],
)
def test_empty_truncated_and_foreign_files(tmp_path, data, why, header):
    (tmp_path / "a.png").write_bytes(data)
    if header:
        read_header(tmp_path / "a.png")
    else:
        with pytest.raises(UnusableImageError, match=why):
            read_header(tmp_path / "a.png")
    with pytest.raises(UnusableImageError, match=why):
        decode(tmp_path / "a.png", None, grey=False)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 30_000])  # beyond Pillow's warning, and beyond its error
def test_decompression_bombs_are_refused_from_the_header(tmp_path, side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    for look in (read_header, lambda path: decode(path, None, grey=True)):
        with pytest.raises(UnusableImageError, match="decompression bomb"):
            look(tmp_path / "a.png")


def bands(height: int, width: int) -> np.ndarray:
    """Left third black, middle third grey, right third white."""
    return np.repeat(np.repeat(np.array([[0, 128, 255]], np.uint8), width // 3, axis=1), height, axis=0)


def test_crop_stretch_and_pad():
    crop = np.asarray(fit(Image.fromarray(bands(30, 90)), Target(10, 10, "crop")))
    assert (crop[:, 2:-2] == 128).all()  # keeps the middle
    stretch = np.asarray(fit(Image.fromarray(bands(30, 90)), Target(9, 9, "stretch")))
    assert stretch[4, [0, 4, 8]].tolist() == [0, 128, 255]
    x = np.full((10, 30, 3), (10, 20, 30), np.uint8)
    x[4:6, 10:20] = 255
    pad = np.asarray(fit(Image.fromarray(x), Target(30, 30, "pad")))
    assert (pad[:9] == (10, 20, 30)).all()  # the border's median
    assert (pad[21:] == (10, 20, 30)).all()
    assert np.array_equal(pad[10:20], x)


@pytest.mark.parametrize("policy", ["crop", "pad", "stretch"])
def test_target_is_height_then_width_and_the_right_size_is_not_touched(policy):
    assert np.asarray(fit(Image.fromarray(noise(40, 20, 3)), Target(8, 12, policy))).shape == (8, 12, 3)
    image = Image.fromarray(noise(9, 5, 3))
    assert fit(image, Target(9, 5, policy)) is image


def test_downscaling_is_antialiased():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    out = np.asarray(fit(Image.fromarray(checks.astype(np.uint8)), Target(8, 8, "crop")))
    assert np.abs(out.astype(int) - 127).max() < 20  # without antialiasing it would be black or white


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((28, 20), (28, 20)),
        ((64, 64), (64, 64)),
        ((450, 600), (48, 64)),
        ((1024, 683), (64, 40)),
        ((1000, 20), (64, 8)),
    ],
)
def test_one_common_size_is_kept_up_to_64(size, shape):
    target, notes = resolve({size: 5}, None, "pad", "x")
    assert target == Target(*shape, "pad")
    assert (f"{size[0]} x {size[1]}" in "".join(notes)) == (size != shape)


def test_mixed_sizes_need_a_policy():
    with pytest.raises(DataError) as error:
        resolve({(28, 28): 3, (30, 20): 9}, None, "crop", "x")
    assert "30 x 20" in error.value.message
    assert "28 x 28" in error.value.message
    assert "--data.size" in error.value.remedy
    assert resolve({(28, 28): 3, (30, 20): 9}, (8, 12), "crop", "x")[0] == Target(8, 12, "crop")


@pytest.mark.parametrize("size", [3, 0, -8, 8.0, "8", (8,), (8, 8, 8), (8, 2)])
def test_impossible_sizes(size):
    with pytest.raises(ConfigError, match="image size"):
        parse_size(size)


def test_impossible_policies_and_images():
    with pytest.raises(ConfigError, match="unknown resize policy 'squash'"):
        resolve({(8, 8): 1}, None, "squash", "x")
    with pytest.raises(DataError, match=r"the images of x are 2 x 9 pixels.*at least 4"):
        resolve({(2, 9): 1}, None, "crop", "x")
