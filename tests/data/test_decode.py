"""Every file type and mode that a user's folder may hold, and sizes."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from imbdiff.data import decode as decode_module
from imbdiff.data.decode import (
    Target,
    UnusableImageError,
    decode,
    fit,
    header,
    opened,
    parse_size,
    pixels,
    read_header,
    resolve,
)  # fmt: skip
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


@pytest.mark.parametrize(
    ("sizes", "size", "policy", "shape", "chosen"),
    [
        ({(28, 28): 3, (30, 20): 9}, None, "auto", (20, 20), "pad"),  # three quarters would lose a third
        ({(28, 28): 95, (28, 14): 4}, None, "auto", (28, 28), "crop"),  # fewer than one of twenty lose half
        ({(28, 28): 94, (28, 14): 5}, None, "auto", (12, 12), "pad"),
        ({(600, 450): 2, (450, 600): 1}, None, "auto", (32, 32), "crop"),  # a quarter is not more than a quarter
        ({(640, 320): 2, (10, 10): 1}, 16, "auto", (16, 16), "pad"),
        ({(640, 320): 2, (10, 10): 1}, "16x8", "auto", (16, 8), "pad"),  # now the square one would lose half
        ({(640, 320): 2}, "16x8", "auto", (16, 8), "crop"),
        ({(640, 320): 2, (10, 10): 1}, None, "stretch", (32, 32), "stretch"),
        ({(640, 320): 2}, None, "auto", (64, 32), "crop"),
        ({(28, 20): 7}, None, "auto", (28, 20), "crop"),
    ],
)
def test_size_and_policy_are_chosen_by_the_sizes_and_said(sizes, size, policy, shape, chosen):
    target, notes = resolve(sizes, size, policy, "x")
    assert target == Target(*shape, chosen)
    assert any("--data.size" in note for note in notes) == (size is None and (len(sizes) > 1 or max(max(sizes)) > 64))
    # whatever was not asked for and differs from image to image is named, with its option
    assert any("--data.resize" in note for note in notes) == (policy == "auto" and len(sizes) > 1)


def test_a_size_that_is_asked_for():
    assert resolve({(28, 28): 3, (30, 20): 9}, (8, 12), "crop", "x")[0] == Target(8, 12, "crop")


@pytest.mark.parametrize("size", [3, 0, -8, 8.0, "3", "8x", "x8", "8x8x8", "8 by 8", "8x2", (8,), (8, 8, 8), (8, 2)])
def test_impossible_sizes(size):
    with pytest.raises(ConfigError, match="size"):
        parse_size(size)


@pytest.mark.parametrize("size", [(24, 32), [24, 32], "24x32", "24X32", "24×32"])
def test_sizes_that_are_not_square(size):
    assert parse_size(size) == (24, 32)


def test_impossible_policies_and_images():
    with pytest.raises(ConfigError, match="unknown resize policy 'squash'"):
        resolve({(8, 8): 1}, None, "squash", "x")
    with pytest.raises(DataError, match=r"the images of x are 2 x 9 pixels.*at least 4"):
        resolve({(2, 9): 1}, None, "crop", "x")


UPRIGHT = np.zeros((20, 12, 3), np.uint8)
UPRIGHT[:6, :4] = 255  # one white corner
STORED = {1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: np.rot90(UPRIGHT, 2), 4: UPRIGHT[::-1], 5: UPRIGHT.transpose(1, 0, 2),
          6: np.rot90(UPRIGHT), 7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2), 8: np.rot90(UPRIGHT, 3)}  # fmt: skip


@pytest.mark.parametrize("orientation", sorted(STORED))
@pytest.mark.parametrize("form", ["TIFF", "JPEG", "PNG", "WEBP"])
def test_headers_and_pixels_agree_on_all_orientations(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"tiffinfo": {0x0112: orientation}} if form == "TIFF" else {"exif": exif}
    data = encoded(np.ascontiguousarray(STORED[orientation]), form, **how)
    got = decode(BytesIO(data), None, grey=False)
    assert read_header(BytesIO(data)).size == got.shape[:2] == (20, 12)
    assert np.abs(got.astype(int) - UPRIGHT).mean() < 12


@pytest.mark.parametrize("early", [1, 6])
def test_an_orientation_behind_the_pixels_of_png_is_ignored(early):
    exif = Image.Exif()
    exif[0x0112] = 8
    body = b"eXIf" + exif.tobytes()[6:]
    first = Image.Exif()
    first[0x0112] = early
    whole = encoded(np.ascontiguousarray(STORED[early]), **({"exif": first} if early > 1 else {}))
    late = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = whole[:-12] + late + whole[-12:]
    assert read_header(BytesIO(data)).size == (20, 12)
    if early == 1:
        assert np.array_equal(decode(BytesIO(data), None, grey=False), UPRIGHT)


@pytest.mark.parametrize(
    ("form", "several"), [("TIFF", True), ("GIF", True), ("WEBP", True), ("PNG", True), ("MPO", False)]
)
def test_pages_and_frames_are_seen_from_the_header(form, several):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    assert read_header(BytesIO(data)).several == several
    assert not read_header(BytesIO(encoded(frames[0], "JPEG" if form == "MPO" else form))).several
    with opened(BytesIO(data)) as image:  # looking for a second page does not change what is read
        header(image)
        red = pixels(image, None, grey=False)
    assert (red.reshape(-1, 3).mean(axis=0).round() / 255).round().tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("x", "values"),
    [
        (np.array([[0, 255]], np.int32), None),
        (np.array([[7, 8]], np.int32), None),
        (np.array([[-5, 90]], np.int16), None),
        (np.array([[0, 65535]], np.int32), [0, 255]),
        (np.array([[0, 0]], np.int32), [0, 0]),
        (np.array([[0, 200]], np.uint16), [0, 1]),  # by the range of 16 bits, whatever it is
    ],
)
def test_deep_tiff_is_never_black_in_silence(x, values):
    data = encoded(x, "TIFF")
    if values is not None:
        assert decode(BytesIO(data), None, grey=True).ravel().tolist() == values
        return
    with pytest.raises(UnusableImageError, match="bits") as error:
        decode(BytesIO(data), None, grey=True)
    if x.min() >= 0:  # what it advises
        assert "8 bits" in str(error.value)
        assert (
            decode(BytesIO(encoded(x.astype(np.uint8), "TIFF")), None, grey=True).ravel().tolist() == x.ravel().tolist()
        )


def test_the_lowest_value_of_a_tiff_may_be_white():
    x = np.array([[0, 257 * 10, 65535]], np.uint16)
    assert decode(BytesIO(encoded(x, "TIFF", tiffinfo={262: 0})), None, grey=True).ravel().tolist() == [255, 245, 0]


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "video"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"8BPS\0\1", "Photoshop"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"RIFF\0\0\0\0WAVE", "not an image"),
    ],
)
def test_other_formats_are_named_whatever_the_file_is_called(tmp_path, head, said):
    (tmp_path / "a.jpg").write_bytes(head + b"\0" * 200)
    for file in (tmp_path / "a.jpg", BytesIO(head + b"\0" * 200)):
        with pytest.raises(UnusableImageError, match=said):
            read_header(file)


def test_avif_that_pillow_could_read_is_named(tmp_path):
    try:
        Image.new("RGB", (8, 8)).save(tmp_path / "a.avif")
    except (OSError, KeyError):
        pytest.skip("this Pillow writes no AVIF")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.avif").read_bytes())
    with pytest.raises(UnusableImageError, match="AVIF"):
        decode(tmp_path / "a.jpg", None, grey=False)
