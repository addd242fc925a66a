from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imbdiff.data import decode as decode_module
from imbdiff.data.decode import Target, UnusableImageError, decode, fit, parse_size, read_header, resolve
from imbdiff.runtime.errors import ConfigError, DataError
from tests.data.making import noise, write


def test_rgb_png_comes_back_exactly(tmp_path):
    x = noise(5, 7, 3)
    path = write(tmp_path / "a.png", x)
    assert np.array_equal(decode(path, None, grey=False), x)
    header = read_header(path)
    assert (header.size, header.mode, header.grey) == ((5, 7), "RGB", False)


def test_grey_png_has_one_channel_or_three_equal_ones(tmp_path):
    x = noise(5, 7)
    path = write(tmp_path / "a.png", x)
    assert np.array_equal(decode(path, None, grey=True), x[..., None])
    assert np.array_equal(decode(path, None, grey=False), np.repeat(x[..., None], 3, axis=2))
    assert read_header(path).grey


def test_mode_1_is_black_and_white(tmp_path):
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1").save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png").mode == "1"
    assert decode(tmp_path / "a.png", None, grey=True)[..., 0].tolist() == [[0, 255], [255, 0]]


def test_rgba_is_put_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]
    path = write(tmp_path / "a.png", rgba)
    # alpha 51 = 20 %: 0.2 * colour + 0.8 * 255
    expected = [[200, 100, 0], [255, 255, 255], [244, 224, 204]]
    assert np.abs(decode(path, None, grey=False)[0].astype(int) - expected).max() <= 1


def test_la_is_put_on_white_and_stays_grey(tmp_path):
    la = np.array([[[10, 255], [10, 0]]], np.uint8)
    Image.fromarray(la, "LA").save(tmp_path / "a.png")
    assert read_header(tmp_path / "a.png").grey
    assert decode(tmp_path / "a.png", None, grey=True)[..., 0].tolist() == [[10, 255]]


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert decode(tmp_path / "plain.png", None, grey=False)[0].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert decode(tmp_path / "clear.png", None, grey=False)[0].tolist() == [[255, 0, 0], [255, 255, 255]]
    assert not read_header(tmp_path / "plain.png").grey


def test_grey_palette_counts_as_grey(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([v for k in range(256) for v in (255 - k,) * 3])
    image.putdata([3, 250])
    image.save(tmp_path / "a.gif")
    header = read_header(tmp_path / "a.gif")
    assert header.grey
    assert decode(tmp_path / "a.gif", None, grey=True)[..., 0].tolist() == [[252, 5]]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_is_divided_by_257(tmp_path, suffix):
    x = np.array([[0, 257 * 7, 257 * 7 + 129, 65535]], np.uint16)
    path = write(tmp_path / f"a.{suffix}", x)
    assert decode(path, None, grey=True)[..., 0].tolist() == [[0, 7, 8, 255]]
    assert read_header(path).grey


def test_16_bit_pgm(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 257 * 3, 65535))
    assert decode(tmp_path / "a.pgm", None, grey=True)[..., 0].tolist() == [[3, 255]]


def test_values_without_a_set_range_are_refused(tmp_path):
    Image.fromarray(np.array([[0.5, 2.0]], np.float32)).save(tmp_path / "f.tif")
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(UnusableImageError, match="floating-point"):
        decode(tmp_path / "f.tif", None, grey=True)
    with pytest.raises(UnusableImageError, match="70000"):
        decode(tmp_path / "i.tif", None, grey=True)


def test_cmyk_becomes_rgb(tmp_path):
    cmyk = np.zeros((4, 4, 4), np.uint8)
    cmyk[..., 0] = 255  # full cyan: no red
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")
    assert read_header(tmp_path / "a.tif").mode == "CMYK"
    assert decode(tmp_path / "a.tif", None, grey=False)[0, 0].tolist() == [0, 255, 255]


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
    x = np.full((8, 8, 3), 128, np.uint8)
    path = write(tmp_path / f"a.{suffix}", x)
    assert np.abs(decode(path, None, grey=False).astype(int) - 128).max() <= 3
    assert f".{suffix}" in decode_module.EXTENSIONS


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode(tmp_path / "a.gif", None, grey=False)[0, 0].tolist() == [255, 0, 0]


def test_empty_truncated_and_foreign_files(tmp_path):
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(buffer, "PNG")
    (tmp_path / "half.png").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(UnusableImageError, match="0 bytes"):
        read_header(tmp_path / "zero.png")
    with pytest.raises(UnusableImageError, match="not an image"):
        read_header(tmp_path / "text.png")
    read_header(tmp_path / "half.png")  # the header is whole
    with pytest.raises(UnusableImageError, match="damaged"):
        decode(tmp_path / "half.png", None, grey=False)


def test_postscript_is_not_even_tried(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n")
    with pytest.raises(UnusableImageError, match="not an image"):
        read_header(tmp_path / "a.png")


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
